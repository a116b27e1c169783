"""Whether a model is what the table of families takes it for: a few tokens are read in each way that regrad reads them.

Whether it is decoded rightly, `regrad.inference.verification` checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from regrad.errors import ModelError

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

# Two rows, as the first dimension of what a block reads must be that of the rows.
_IDS = [[0, 1, 2], [2, 1, 0]]


@torch.no_grad()
def check_model(lm: LanguageModel) -> None:
    """Raise `ModelError` for a model that regrad would adapt or read wrongly.

    One whose blocks cannot be shared between passes (see `Blocks`) is slower for it, and right.
    """
    lm.architecture.windows(lm.text_config)
    ids = torch.tensor(_IDS, device=lm.device)
    kind = type(lm.model).__name__
    try:
        own = lm.model(input_ids=ids, use_cache=True)
        hidden = _hidden(lm, ids)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{kind} cannot be run as other language models are: {reason}; choose another model"
        ) from error
    _check_cache(kind, own)
    if not torch.isfinite(own.logits).all():
        raise ModelError(
            f"{kind} gives logits that are not finite: a weight of it is damaged, or too large for its type"
        )
    if not _close(own.logits, lm.logits(hidden)):
        raise ModelError(f"{kind} makes its logits in a way that regrad does not know; its gradients would be wrong")
    if not _can_share(lm, ids, hidden):
        lm.blocks.share_nothing()


def _check_cache(kind: str, output: Any) -> None:
    """A model with other states than keys and values gives no cache of these, or has layers of other types in it."""
    layers = getattr(getattr(output, "past_key_values", None), "layers", None)
    # A dummy stands for a block that reads the keys and values of a lower one, or that has no attention.
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer) for layer in layers):
        raise ModelError(
            f"{kind} keeps something else than keys and values for the tokens that it has read, and regrad could not "
            "decode with it; choose another model"
        )


def _hidden(lm: LanguageModel, ids_NT: Tensor) -> Tensor:
    """Final hidden states; every adapted projection must read every token of every row, once and in their order."""
    read: dict[str, list[int]] = {name: [] for name, _, _ in lm.subspace.modules}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            read[name].append(inputs[0].shape[:-1].numel())

        return hook

    handles = [lm.model.get_submodule(name).register_forward_hook(note(name)) for name in read]
    try:
        hidden = lm.hidden(ids_NT)
    finally:
        for handle in handles:
            handle.remove()
    if wrong := [name for name, tokens in read.items() if tokens != [ids_NT.numel()]]:
        raise ModelError(
            f"{type(lm.model).__name__} does not give every token once to {wrong[0]}, so an update of it would be "
            "wrong; set `subspace.projections` to others"
        )
    return hidden


def _can_share(lm: LanguageModel, ids_NT: Tensor, expected: Tensor) -> bool:
    """Whether the output of the lower blocks, a row a row of the batch, is all that the upper ones need of them."""
    try:
        entered = lm.blocks.enter(ids_NT)
        if entered is None:
            return True
        return entered.shape[:2] == ids_NT.shape and _close(lm.hidden(ids_NT, entered), expected)
    except Exception:  # whatever a model makes of blocks that are left out, it needs them
        return False


def _close(own: Tensor, ours: Tensor) -> bool:
    return torch.allclose(own.float(), ours.float(), rtol=2e-2, atol=2e-2)
