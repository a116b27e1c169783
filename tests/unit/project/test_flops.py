"""The benchmark's count of an atom's floating-point operations, against torch's own counter."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

import pytest
from torch.utils.flop_counter import FlopCounterMode

from regrad.gradients.extractor import passage_batch, passage_gradients
from regrad.models.config import ModelConfig, SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


class OneModule(nullcontext[None]):
    """In place of the counter's own tracker of modules, whose hooks refuse `autograd.grad` of a module's input."""

    parents: ClassVar = {"Global"}


def counted(lm: LanguageModel, tokens: int) -> int:
    """What torch counts while one passage's gradient is computed."""
    batch = passage_batch(lm, [list(range(3, 3 + tokens))])
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = OneModule()
    with counter:
        passage_gradients(lm, lm.subspace.initial(), batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("layers", [(1, 2, 3), (2, 3), (3,)], ids=str)
@pytest.mark.parametrize("tokens", [2, 17, 180])
def test_the_formula_counts_what_torch_counts(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch, layers: tuple[int, ...], tokens: int
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from flops import atom_flop

    lm = load_language_model(ModelConfig(path=str(tiny_path), subspace=SubspaceConfig(rank=5, layers=layers)), "cpu")
    # Below 0.01 %: torch also counts the product that makes the angles of the rotary embedding.
    assert atom_flop(lm, tokens) == pytest.approx(counted(lm, tokens), rel=1e-4)
