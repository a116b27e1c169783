"""What Wikipedia's 21 million passages would take at 1B, 8B and 70B parameters: computed, not measured.

    python benchmarks/scaling_table.py                 (--json scaling.json; --utilisation 0.4 --tokens 140 ...)

Bytes are those of the codecs for the subspace, exactly. Times follow from counted operations (`flops.py`), bytes, and
the makers' figures for GPUs, links and disks; `utilisation` is the share of a GPU's peak, and of its bandwidth, that is
taken to be reached. A decoding step of B rows reads the weights once and each row's own update and keys and values, or
computes 2 N B operations for N parameters, whichever takes longer. A base that is too large for one GPU is split over
the fewest that hold it (`regrad.models.placement`), whose blocks compute in turn: no faster than one GPU with enough
memory would be. What bounds a server is what gives the fewest
answers a second: the GPU, the disk or network that atoms come from, or the link that brings the sum to the GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from common import show, write
from flops import Dimensions, flop_of

from regrad.bank.codecs import CODECS, codec_for
from regrad.models.placement import stages
from regrad.models.subspace import Subspace

PASSAGES = 21_015_324
"""Of DPR's `psgs_w100.tsv`."""


@dataclass(frozen=True)
class Base:
    """A Llama and its subspace: gate, up and down of the upper half of the blocks."""

    name: str
    shape: Dimensions
    tied: bool = False

    @property
    def subspace(self) -> Subspace:
        """As `find_subspace` finds it."""
        of = self.shape
        sides = {
            "gate": (of.hidden, of.feed_forward),
            "up": (of.hidden, of.feed_forward),
            "down": (of.feed_forward, of.hidden),
        }
        upper = range(of.blocks - of.upper, of.blocks)
        modules = tuple((f"layers.{block}.{name}", *size) for block in upper for name, size in sides.items())
        return Subspace(modules, of.rank, 2.0)

    @property
    def block(self) -> int:
        """Parameters of a block, norms included."""
        of = self.shape
        return 2 * of.hidden * of.queries + 2 * of.hidden * of.keys + 3 * of.hidden * of.feed_forward + 2 * of.hidden

    @property
    def beside(self) -> int:
        """Parameters outside of the blocks."""
        return (1 if self.tied else 2) * self.shape.vocabulary * self.shape.hidden + self.shape.hidden

    @property
    def parameters(self) -> int:
        """Of the base, norms included."""
        return self.shape.blocks * self.block + self.beside

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token, in bf16."""
        return 4 * self.shape.blocks * self.shape.keys


@dataclass(frozen=True)
class Gpu:
    """Peak in bf16 without sparsity (FLOP/s), memory (bytes) and its bandwidth (bytes/s), by the maker."""

    name: str
    peak: float
    memory: float
    bandwidth: float
    link: float


BASES = (
    Base("1B, rank 16", Dimensions(16, 8, 2048, 8192, 2048, 512, 128_256, 16), tied=True),
    Base("8B, rank 4", Dimensions(32, 16, 4096, 14_336, 4096, 1024, 128_256, 4)),
    Base("70B, rank 1", Dimensions(80, 40, 8192, 28_672, 8192, 1024, 128_256, 1)),
    Base("70B, rank 4", Dimensions(80, 40, 8192, 28_672, 8192, 1024, 128_256, 4)),
)
GPUS = (
    Gpu("A100 80 GB", 312e12, 80e9, 2.039e12, 25e9),
    Gpu("H200", 989e12, 141e9, 4.8e12, 50e9),
)
SOURCES = {"disk": 7e9, "network": 12.5e9}
"""Bytes a second: one NVMe disk, and 100 Gbit/s to an object store."""


@dataclass(frozen=True)
class Assumed:
    """What a question and a passage are, and how well a GPU is used."""

    tokens: int = 140
    utilisation: float = 0.4
    k: int = 3
    prompt: int = 40
    answer: int = 20
    rows: int = 32


def codec_rows() -> Iterator[dict[str, Any]]:
    """Bytes of one gradient and of the bank, by base and codec."""
    for base in BASES:
        for name in CODECS:
            record = codec_for(name, base.subspace).record_bytes
            yield {
                "base": base.name,
                "numbers": f"{base.subspace.size:,}",
                "codec": name,
                "bytes a gradient": f"{record:,}",
                "bank, TB": f"{record * PASSAGES / 1e12:.1f}",
                "MB a question": f"{Assumed.k * record / 1e6:.1f}",
            }


def build_rows(assumed: Assumed) -> Iterator[dict[str, Any]]:
    """Time of all gradients on the fewest GPUs that hold the base, and what a generator needs of their memory."""
    for base in BASES:
        flop = flop_of(base.shape, assumed.tokens)
        for gpu in GPUS:
            needed, gpus = generator_bytes(base, assumed), gpus_of(base, gpu, assumed)
            hours = gpus * PASSAGES * flop / (assumed.utilisation * gpu.peak) / 3600
            yield {
                "base": base.name,
                "GPU": gpu.name,
                "GPUs": str(gpus),
                "TFLOP a gradient": f"{flop / 1e12:.2f}",
                "GPU hours": f"{hours:,.0f}",
                "gradients/s": f"{assumed.utilisation * gpu.peak / flop:,.0f}",
                "bf16 written, GB/s": f"{assumed.utilisation * gpu.peak / flop * 2 * base.subspace.size / 1e9:.2f}",
                "generator, GB": f"{needed / 1e9:.0f}",
                "fullest GPU, GB": f"{fullest_gpu(base, gpus, assumed) / 1e9:.0f}",
            }


def generator_bytes(base: Base, assumed: Assumed) -> int:
    """Weights in bf16, and for each row of a full batch its update (float32 and bf16) and its keys and values."""
    row = 6 * base.subspace.size + (assumed.prompt + assumed.answer) * base.token_bytes
    return 2 * base.parameters + assumed.rows * row


def fullest_gpu(base: Base, gpus: int, assumed: Assumed) -> int:
    """Bytes of a generator on the fullest of so many GPUs: of its blocks weights, updates, keys and values."""
    of, kept = base.shape, (assumed.prompt + assumed.answer) * base.token_bytes // base.shape.blocks
    loads = [2 * base.beside, *[0] * (gpus - 1)]
    for block, gpu in enumerate(stages([base.block] * of.blocks, base.beside, gpus)):
        update = 6 * base.subspace.size // of.upper if block >= of.blocks - of.upper else 0
        loads[gpu] += 2 * base.block + assumed.rows * (update + kept)
    return max(loads)


def gpus_of(base: Base, gpu: Gpu, assumed: Assumed) -> int:
    """The fewest GPUs that hold a generator."""
    return next(count for count in range(1, base.shape.blocks + 1) if fullest_gpu(base, count, assumed) <= gpu.memory)


def answers_of(base: Base, gpu: Gpu, assumed: Assumed) -> float:
    """Answers a second of the GPUs of one generator with a full batch: prompts read, then one step a token."""
    flop_rate, byte_rate = assumed.utilisation * gpu.peak, assumed.utilisation * gpu.bandwidth
    own = 2 * base.subspace.size + (assumed.prompt + assumed.answer) * base.token_bytes
    step = max(2 * base.parameters * assumed.rows / flop_rate, (2 * base.parameters + assumed.rows * own) / byte_rate)
    prefill = max(2 * base.parameters * assumed.rows * assumed.prompt / flop_rate, 2 * base.parameters / byte_rate)
    return assumed.rows / (prefill + assumed.answer * step)


_SERVING = (
    *("base", "GPU", "GPUs", "codec", "answers/s of them", "loading, GB/s", "answers/s of one disk"),
    *("answers/s of the network", "bound by"),
)


def serving_rows(assumed: Assumed) -> Iterator[dict[str, Any]]:
    """What one generator answers, what it loads for that, and what bounds it with one disk or the network."""
    for base in BASES:
        for gpu in GPUS:
            for codec in ("bf16", "int4", "lowrank16"):
                record = codec_for(codec, base.subspace).record_bytes
                answers = answers_of(base, gpu, assumed)
                bounds = {
                    "GPU": answers,
                    **{name: rate / (assumed.k * record) for name, rate in SOURCES.items()},
                    "link to the GPU": gpu.link / (2 * base.subspace.size),
                }
                place = (base.name, gpu.name, str(gpus_of(base, gpu, assumed)), codec)
                yield _serving(place, answers, answers * assumed.k * record, bounds)


def _serving(place: tuple[str, ...], answers: float, loaded: float, bounds: Mapping[str, float]) -> dict[str, Any]:
    least = min(bounds, key=bounds.__getitem__)
    speeds = (f"{answers:,.0f}", f"{loaded / 1e9:.2f}", f"{bounds['disk']:,.0f}", f"{bounds['network']:,.0f}")
    return dict(zip(_SERVING, (*place, *speeds, least), strict=True))


def tables(assumed: Assumed) -> dict[str, list[dict[str, Any]]]:
    """All of it by name."""
    return {
        "bank": list(codec_rows()),
        "build": list(build_rows(assumed)),
        "serving": list(serving_rows(assumed)),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of a document."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *[[str(row[name]) for name in names] for row in rows]]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)


def main() -> None:
    """Print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=Assumed.tokens, help="of a passage of 100 words")
    parser.add_argument("--utilisation", type=float, default=Assumed.utilisation)
    parser.add_argument("--rows", type=int, default=Assumed.rows, help="decoded together")
    parser.add_argument("--markdown", action="store_true", help="as docs/scaling.md has them")
    parser.add_argument("--json", default="", metavar="FILE")
    arguments = parser.parse_args()
    found = tables(Assumed(tokens=arguments.tokens, utilisation=arguments.utilisation, rows=arguments.rows))
    for name, rows in found.items():
        print(f"\n{name} (computed)")
        print(markdown(rows)) if arguments.markdown else show(rows)
    if arguments.json:
        rows = [{"table": name, **row} for name, each in found.items() for row in each]
        write(arguments.json, {}, rows, torch.device("cpu"))


if __name__ == "__main__":
    main()
