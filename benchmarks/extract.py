"""Atoms a second: all passages of a batch in one backward pass, against one passage at a time.

    python benchmarks/extract.py --json extract.json                (--quick: under a minute, a small big model)

One by one is the way of the paper's release: plain PEFT, a forward and a backward pass of each passage, its gradients
put into a dict of float32 on the CPU. All ways run in this process, in turn, on the same passages, on the lab's model
and on random weights of the shape of Llama-3.2-1B; the ratio is the number to quote. The fraction of the matrix peak
is FLOP/s over those of a large matrix product in the same run, type and threads; `flops.py` says what is counted. The
second table is about a tier between text and atoms (`middle_tier.py`).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from common import in_turn, show, write
from flops import atom_flop, matrix_peak
from middle_tier import tier_figures, tier_rows
from peft import PeftModel
from subjects import Subject, big_subject, lab_subject
from torch import Tensor, nn

from regrad.bank.codecs import codec_for
from regrad.gradients.extractor import AtomExtractor, encode_passage

BASELINE = "PEFT, one by one"


def plain_copy(model: nn.Module) -> nn.Module:
    """The same weights, not copied, without regrad's hooks."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, shared)  # type: ignore[arg-type]
    for module in twin.modules():
        module._forward_hooks.clear()
    return twin


def one_by_one(subject: Subject) -> Callable[[], list[dict[str, Tensor]]]:
    """A forward and a backward pass for each passage; gradients in float32 on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        subject.meta_init.save(folder)
        model = PeftModel.from_pretrained(plain_copy(subject.lm.model), folder, is_trainable=True).eval()
    encoded = [torch.tensor([encode_passage(subject.lm, item)], device=subject.lm.device) for item in subject.passages]
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}

    def atom(ids: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: value.grad.float().cpu() for name, value in trained.items()}

    return lambda: [atom(ids) for ids in encoded]


def batched(subject: Subject) -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """Ways to extract with regrad: float32 atoms in batches of several sizes, and int8 records in the largest."""
    int8 = codec_for("int8", subject.lm.subspace)
    for tokens in subject.batch_tokens:
        extractor = AtomExtractor(subject.lm, subject.meta_init, batch_tokens=tokens)
        yield f"regrad, {tokens} tokens a batch", lambda e=extractor: [x.atom for x in e.extract(subject.passages)]  # type: ignore[misc]
    yield (
        f"regrad, {tokens} tokens a batch, int8 records",
        lambda e=extractor: [x.record for x in e.extract(subject.passages, int8.encode)],  # type: ignore[misc]
    )


def difference(subject: Subject, expected: Mapping[str, Tensor], atom: Tensor) -> float:
    """Relative error of an atom against PEFT's gradients."""
    named = {name.removeprefix("base_model.model."): value for name, value in expected.items()}
    keys = {name: "{}.lora_{}.default.weight".format(*name.rsplit(".", 1)) for name in subject.lm.subspace.shapes}
    flat = subject.lm.subspace.flatten({name: named[key] for name, key in keys.items()})
    return float((atom - flat).norm() / flat.norm())


def speed_rows(subject: Subject, peak: float) -> list[dict[str, Any]]:
    """One row a way."""
    runs: dict[str, Callable[[], list[Any]]] = {BASELINE: one_by_one(subject), **dict(batched(subject))}
    seconds = in_turn(runs, subject.repeats, subject.lm.device)
    flop, count = sum(atom_flop(subject.lm, length) for length in subject.lengths), len(subject.passages)
    return [
        {
            "model": subject.name,
            "dtype": str(subject.dtype).removeprefix("torch."),
            "way": name,
            "ms a passage": 1e3 * value / count,
            "atoms/s": count / value,
            "time / one by one": value / seconds[BASELINE],
            "GFLOP/s": flop / value / 1e9,
            "of the matrix peak": flop / value / peak,
        }
        for name, value in seconds.items()
    ]


def error(subject: Subject) -> float:
    """Relative error of the shortest passage's atom, computed with another beside it, against PEFT's."""
    two = sorted(subject.passages, key=lambda item: len(encode_passage(subject.lm, item)))[:2]
    [atom, _] = AtomExtractor(subject.lm, subject.meta_init, batch_tokens=10**6).extract(two)
    assert atom.atom is not None
    return difference(subject, one_by_one(replace(subject, passages=two[:1]))()[0], atom.atom)


def speed_figures(subject: Subject, rows: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    """The numbers to quote, of the fastest way."""
    best = min((row for row in rows if row["way"] != BASELINE), key=lambda row: float(row["ms a passage"]))
    figures = {
        "batched_over_single": best["time / one by one"],
        "fraction_of_peak": best["of the matrix peak"],
        "best_way": best["way"],
        "matrix_peak_gflops": peak / 1e9,
        "tokens_a_passage": sum(subject.lengths) / len(subject.lengths),
        "relative_error": error(subject),
    }
    return {f"{name}{subject.suffix}": value for name, value in figures.items()}


def subjects(arguments: argparse.Namespace, device: torch.device) -> Iterator[Subject]:
    """One after the other, as each may fill the memory."""
    yield lab_subject(device, arguments.passages, arguments.repeats)
    if not arguments.lab_only:
        big_passages = arguments.big_passages or (256 if device.type == "cuda" else 3)
        yield big_subject(device, big_passages, arguments.big_repeats, arguments.quick)


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--big-passages", type=int, default=0, help="for the big model; default 3, or 256 on a GPU")
    parser.add_argument("--big-repeats", type=int, default=1)
    parser.add_argument("--lab-only", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", default="", metavar="FILE")
    parser.add_argument("--quick", action="store_true", help="fewer passages, and a small model for the big one")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.passages, arguments.repeats = 32, 1
    torch.set_num_threads(arguments.threads)
    device, rows, tiers, figures = torch.device(arguments.device), [], [], {}
    for subject in subjects(arguments, device):
        peak = matrix_peak(device, subject.dtype)
        speed, tier = speed_rows(subject, peak), tier_rows(subject)
        figures |= {**speed_figures(subject, speed, peak), **tier_figures(tier, subject.suffix)}
        rows, tiers = [*rows, *speed], [*tiers, *tier]
    show(rows)
    show(tiers)
    show([{"figure": name, "value": value} for name, value in figures.items()])
    if arguments.json:
        write(arguments.json, figures, [*rows, *tiers], device)


if __name__ == "__main__":
    main()
