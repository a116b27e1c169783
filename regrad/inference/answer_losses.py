"""How likely an answer is under several updates that act on it: the base model reads the prompt once for all."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from regrad.inference.passes import Readers, RowCache, final_states
from regrad.inference.verification import verify_decoding
from regrad.models.loading import LanguageModel
from regrad.models.token_losses import token_losses


@torch.inference_mode()
def answer_losses(lm: LanguageModel, prompt: Sequence[int], answer: Sequence[int], updates_UP: Tensor) -> Tensor:
    """Minus the log-probability (natural log) of an answer after a prompt, both as tokens, under each update [U].

    The updates are in the model's own subspace and act on the answer, as `Update.acts_on` says. Raises `ModelError` for
    a model that the engine cannot decode.
    """
    count = len(updates_UP)
    if not answer:
        return torch.zeros(count, device=lm.device)
    verified = verify_decoding(lm)
    tokens, start = [*(prompt or [lm.pad_id]), *answer], max(len(prompt), 1) - 1
    cache = RowCache(int(lm.text_config.num_hidden_layers), count * len(tokens))
    cache.reserve(count, len(tokens))
    read = partial(final_states, lm, cache, lm.architecture.windows(lm.text_config), slice(0, count))
    with verified.kernels.used():
        if start:
            whole = Readers([0] * count, whole=True) if verified.shares_whole else None
            read([tokens[:start]] * count, [0] * count, readers=whole)
        lower = Readers([0] * count, whole=False) if verified.shares else None
        with lm.lora.applied(updates_UP):
            states_MD = read([tokens[start:-1]] * count, [start] * count, [len(answer)] * count, lower)
    losses_M = token_losses(lm, states_MD, torch.tensor([*answer] * count, device=lm.device))
    return losses_M.view(count, -1).sum(1)
