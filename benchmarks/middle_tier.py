"""Would a tier pay that stores what the first adapted block reads, instead of the atom?

Such a record is [T, hidden] in bf16 and the token ids; a query runs the adapted blocks on it, forward and backward. It
lies between a passage's text (all is computed) and an encoded atom (nothing is). Here each gives the atoms of one
question's passages from host memory to the device; fetching from a disk or a store is not included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from common import in_turn
from subjects import Subject
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from regrad.bank.codecs import CODECS, codec_for
from regrad.gradients.extractor import encode_passage, passage_batch, passage_gradients
from regrad.models.batching import share_lower_blocks

ONLINE, ACTIVATIONS, QUESTION = "text (computed online)", "activations, bf16", 5


def tier_rows(subject: Subject) -> list[dict[str, Any]]:
    """One row a way to keep an atom: bytes a passage, time to the atom, error of the atom against the one from text."""
    ways = {ONLINE: _online(subject), ACTIVATIONS: _from_activations(subject)}
    exact = ways[ONLINE]()
    sizes = {ONLINE: _mean_bytes(subject), ACTIVATIONS: _activation_bytes(subject)}
    for name in CODECS:
        codec = codec_for(name, subject.lm.subspace)
        records = codec.encode(exact).cpu()
        ways[name] = lambda codec=codec, records=records: codec.decode(records.to(exact.device))
        sizes[name] = codec.record_bytes
    found = {name: exact if name == ONLINE else way() for name, way in ways.items()}
    errors = {name: float((atoms - exact).norm() / exact.norm()) for name, atoms in found.items()}
    seconds = in_turn(ways, subject.repeats, subject.lm.device)
    return [
        {
            "model": subject.name,
            "kept as": name,
            "bytes": int(sizes[name]),
            "bytes / activations": sizes[name] / sizes[ACTIVATIONS],
            "ms an atom": 1e3 * seconds[name] / len(exact),
            "time / online": seconds[name] / seconds[ONLINE],
            "relative error": errors[name],
        }
        for name in ways
    ]


def tier_figures(rows: list[dict[str, Any]], suffix: str) -> Mapping[str, float]:
    """The numbers to quote."""
    found = next(row for row in rows if row["kept as"] == ACTIVATIONS)
    return {
        f"from_activations_over_online{suffix}": found["time / online"],
        f"activation_bytes{suffix}": found["bytes"],
        f"activation_relative_error{suffix}": found["relative error"],
    }


def _online(subject: Subject) -> Callable[[], Tensor]:
    lm, phi0 = subject.lm, subject.meta_init.phi0.to(subject.lm.device)

    def run() -> Tensor:
        batch = passage_batch(lm, [encode_passage(lm, item) for item in subject.passages[:QUESTION]])
        return passage_gradients(lm, phi0, batch)[0].float()

    return run


def _from_activations(subject: Subject) -> Callable[[], Tensor]:
    lm, phi0 = subject.lm, subject.meta_init.phi0.to(subject.lm.device)
    sequences = [encode_passage(lm, item) for item in subject.passages[:QUESTION]]
    entered = share_lower_blocks(lm, passage_batch(lm, sequences), 10**9).entered
    assert entered is not None
    stored = [row[: len(ids) - 1].bfloat16().cpu() for row, ids in zip(entered, sequences, strict=True)]

    def run() -> Tensor:
        padded = pad_sequence(stored, batch_first=True).to(lm.device).to(subject.dtype)
        batch = replace(passage_batch(lm, sequences), entered=padded)
        return passage_gradients(lm, phi0, batch)[0].float()

    return run


def _activation_bytes(subject: Subject) -> float:
    """Two bytes a number, and four a token id; the last token is only predicted."""
    lengths, hidden = subject.lengths[:QUESTION], subject.lm.model.config.hidden_size  # type: ignore[union-attr]
    return sum((length - 1) * 2 * hidden + 4 * length for length in lengths) / len(lengths)


def _mean_bytes(subject: Subject) -> float:
    texts = [subject.lm.config.prompts.atom_text(item) for item in subject.passages[:QUESTION]]
    return sum(len(text.encode()) for text in texts) / len(texts)
