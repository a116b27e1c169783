"""Any number of texts through a network of sentence-transformers, differentiable, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from regrad.models.batching import length_groups

Text = str | tuple[str, str]


def network_output(model: Any, texts: Sequence[Text], name: str, batch_tokens: int | None) -> Tensor:
    """The output `name` of each text or pair [N, ...], in one pass if that has at most `batch_tokens` padded tokens.

    More go in several passes, texts of similar length together, and one that is longer goes alone. Each pass is run
    again in the backward pass, so that the activations of one are in memory at a time. The weights must be the same
    then, and dropout off. With `batch_tokens` None there is one pass.
    """
    features = model.preprocess(list(texts))
    ids = features.get("input_ids")
    if batch_tokens is None or ids is None or ids.numel() <= batch_tokens:
        return _passed(model, features, name)
    groups = length_groups(_lengths(model, texts, features), batch_tokens)
    if len(groups) == 1:
        return _passed(model, features, name)
    outputs = [_passed_twice(model, [texts[row] for row in group], name) for group in groups]
    places = torch.tensor(list(chain.from_iterable(groups))).argsort()
    return torch.cat(outputs)[places.to(outputs[0].device)]


def _lengths(model: Any, texts: Sequence[Text], features: Mapping[str, Any]) -> list[int]:
    mask_NT = features.get("attention_mask")
    if mask_NT is not None:
        return mask_NT.sum(1).tolist()  # type: ignore[no-any-return]
    # A network that joins all texts' tokens, as a static embedding does, has no mask that tells them apart.
    return [model.preprocess([text])["input_ids"].numel() for text in texts]


def _passed_twice(model: Any, texts: Sequence[Text], name: str) -> Tensor:
    # Tokenised again, as only the model knows on which side it pads, and what else follows from the padding.
    features = model.preprocess(list(texts))
    if not torch.is_grad_enabled():
        return _passed(model, features, name)
    # Nothing is drawn in a pass, so the state of the random numbers need not be put back.
    output: Tensor = checkpoint(_passed, model, features, name, use_reentrant=False, preserve_rng_state=False)
    return output


def _passed(model: Any, features: Mapping[str, Any], name: str) -> Tensor:
    # A dictionary of its own: the network writes its activations into it, and the caller's is kept for a second pass.
    features = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in features.items()}
    return model(features)[name]  # type: ignore[no-any-return]
