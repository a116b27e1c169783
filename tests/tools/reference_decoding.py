"""Greedy decoding by transformers alone, which knows nothing of the engine: what the engine is tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import GenerationConfig

from regrad.inference.decoding import Generation, GenerationRequest
from regrad.models.loading import LanguageModel
from regrad.models.subspace import by_subspace


@torch.inference_mode()
def reference_generate(lm: LanguageModel, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """The answers, cut at the stop string, one request after the other."""
    return [_answer(lm, request) for request in requests]


def _answer(lm: LanguageModel, request: GenerationRequest) -> Generation:
    prompt = lm.encode_prompt(request.prompt, request.raw)
    ids = torch.tensor([prompt], device=lm.device)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=request.max_new_tokens,
        eos_token_id=list(lm.end_ids) or None,
        pad_token_id=lm.pad_id,
    )
    updates = {subspace: vector[None].to(lm.device) for subspace, vector in by_subspace(request.updates).items()}
    with lm.applied(updates):
        output = lm.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    written = output[0, len(prompt) :].tolist()
    ends = [written.index(end) for end in lm.end_ids if end in written]
    text = lm.tokenizer.decode(written[: min(ends, default=len(written))], skip_special_tokens=True)
    return Generation(text.lstrip().split(lm.config.prompts.stop)[0].strip(), len(prompt))
