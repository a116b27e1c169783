"""bf16 or float32: what this machine computes rightly and faster, found out in a child process and remembered.

What a processor says of itself is not enough: on some that name bf16 the first product ends the process with an illegal
instruction, and on others it is emulated and slower than float32.
"""

from __future__ import annotations

import hashlib
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from regrad.errors import ModelError, StorageError
from regrad.storage import Storage, cache_directory

PROBE = (sys.executable, "-P", str(Path(__file__).with_name("bf16_probe.py")))
_SECONDS = 300
_MOST_ERROR = 0.05
_LEAST_SPEEDUP = 1.1


@dataclass(frozen=True)
class Bf16:
    """What a probe found: whether products in bf16 are right here, whether they are faster, and why that is believed.

    Products are right if their relative error is that of 8 bits, and faster by the processor's own time.
    """

    right: bool
    faster: bool
    reason: str

    @staticmethod
    def of_probe(code: int, output: str) -> Bf16:
        """From the exit status and the output of `bf16_probe.py`."""
        if code:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
            return Bf16(False, False, f"a product in bf16 ended the process that tried it with {how}")
        found = json.loads(output)
        error, speedup = float(found["error"]), float(found["speedup"])
        if error > _MOST_ERROR:
            return Bf16(False, False, f"products in bf16 are wrong here (relative error {error:.2g})")
        times = f"{speedup:.2g} times as fast as in float32"
        return Bf16(True, speedup >= _LEAST_SPEEDUP, f"products in bf16 are right here, and {times}")


def bf16_here(device: torch.device) -> Bf16:
    """Of this device. A CPU is probed once; what was found is kept in the cache, by processor and version of torch."""
    if device.type != "cpu":
        return Bf16(True, True, f"{device.type} computes in bf16")
    return _probed(PROBE)


@cache
def _probed(command: tuple[str, ...]) -> Bf16:
    kept = Storage(str(cache_directory() / "bf16"))
    name = f"{hashlib.sha256(repr((_processor(), torch.__version__, command)).encode()).hexdigest()[:24]}.json"
    if kept.exists(name):
        try:
            return Bf16(**json.loads(kept.read(name)))
        except (ValueError, TypeError):  # damaged: found out again
            pass
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
        found = Bf16.of_probe(done.returncode, done.stdout)
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
        # Says nothing about the processor, so it is not remembered.
        return Bf16(False, False, f"whether bf16 works here could not be found out ({type(error).__name__})")
    if done.returncode <= 0:  # a status above 0 is an error of Python, such as a lack of memory
        with suppress(StorageError):  # a cache that cannot be written only costs another probe
            kept.write(name, json.dumps(asdict(found)).encode())
    return found


def processor_name() -> str:
    """The processor's model, as the system names it; its architecture where it has no name."""
    return _cpu_lines().get("model name", "").partition(":")[2].strip() or platform.processor() or platform.machine()


def _processor() -> str:
    """Model and instructions of the processor: virtual machines with one image move between several."""
    named = _cpu_lines()
    if not named:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(named.get(key, "") for key in ("model name", "flags", "Features", "CPU part"))


def _cpu_lines() -> dict[str, str]:
    """The last line of each key in Linux's description of its processors; none on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0].strip(): line for line in lines}


def require_bf16(device: torch.device, setting: str) -> None:
    """Raise `ModelError` unless products in bf16 are right here; `setting` asked for them by name."""
    found = bf16_here(device)
    if not found.right:
        raise ModelError(
            f"{setting} asks for bf16, but {found.reason}; use float32",
            code="no_bf16",
            setting=setting,
            reason=found.reason,
        )


@dataclass(frozen=True)
class ChosenPrecision:
    """Whether a run's products are in bf16, and a note on why, if that was open."""

    half: bool
    note: str = ""


def choose_precision(
    wanted: str, device: torch.device, own: str, decided: MutableMapping[str, str], on_any: Callable[[bool], bool]
) -> ChosenPrecision:
    """bf16 if it is `wanted`, or with `auto` if it is faster on every worker; else the model's `own` data type.

    `decided` keeps what `auto` took for a run that is resumed; `on_any` says whether something is so on any worker.
    Raises `ModelError` if bf16 is needed and wrong here.
    """
    if wanted == "bf16":
        require_bf16(device, "optimizer.precision")
    if wanted != "auto":
        return ChosenPrecision(wanted == "bf16")
    before = decided.get("precision")
    # A resumed run keeps its precision, but on a processor that lacks it that is an error and not another result.
    if before == "bf16":
        require_bf16(device, "the unfinished run (optimizer.precision: auto)")
    found = bf16_here(device)
    if before is None:
        before = decided["precision"] = "model" if on_any(not found.faster) else "bf16"
    half = before == "bf16"
    return ChosenPrecision(half, f"precision {'bf16' if half else own}: {found.reason}")
