"""A soft prompt, embeddings of virtual tokens before every prompt, as an artefact; and what its training starts from.

Lester et al. 2021 (arXiv 2104.08691). On disk it is a PEFT prompt-tuning adapter with a card, `soft_prompt.json`. The
virtual tokens come before everything else, the model's start token included, as in the paper and in PEFT.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regrad.errors import MethodError, TrainingError
from regrad.models.config import ModelConfig
from regrad.models.virtual_tokens import virtual_tokens
from regrad.training.cards import CardKind, digest_of
from regrad.training.lora.config import SoftPromptConfig
from regrad.training.lora.lora_artifact import CorpusCosts, corpus_costs

if TYPE_CHECKING:
    from regrad.models.loading import LanguageModel

SOFT_PROMPT_CARD = CardKind("soft_prompt", "soft_prompt.json", "regrad finetune", ("digest", "base_identity"))
# PEFT's names.
_WEIGHTS, _TENSOR = "adapter_model.safetensors", "prompt_embeddings"
# As in the paper, whose vocabulary is sorted by frequency; that of a tokenizer by pairs nearly is.
_COMMONEST = 5000


@dataclass(frozen=True)
class SoftPrompt:
    """Embeddings [N, D] float32 of virtual tokens, and the base that they belong to.

    They are what the model is given as `inputs_embeds`. `notes` is what the training records.
    """

    KIND: ClassVar = SOFT_PROMPT_CARD

    model: ModelConfig
    base_identity: str
    values: Tensor
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of SHA-256 over base and numbers."""
        return digest_of({"base": self.base_identity}, {_TENSOR: self.values})

    @property
    def size_bytes(self) -> int:
        """Of the numbers, as they are stored."""
        return self.values.nbytes

    def put(self, lm: LanguageModel) -> tuple[int, ...]:
        """The ids of its virtual tokens in this model, which from now on reads them.

        Raises `MethodError` if it is another model's, or leaves no room in the model's context; and `ModelError` as
        `virtual_tokens`.
        """
        if (found := lm.identity()) != self.base_identity:
            raise MethodError(
                f"the soft prompt belongs to base weights {self.base_identity[:16]} but the model loaded from "
                f"{lm.config.path} has {found[:16]}; train one for this model with `regrad finetune`",
                code="soft_prompt_of_another_base",
                expected=found[:16],
                found=self.base_identity[:16],
            )
        return room_for(lm, self.values)

    def save(self, uri: str | Path) -> None:
        """Write the directory, whole or not at all; an existing soft prompt of ours is replaced."""
        card = {
            "digest": self.digest,
            "base_identity": self.base_identity,
            "shape": list(self.values.shape),
            "model": self.model.model_dump(mode="json"),
            "notes": dict(self.notes),
        }
        SOFT_PROMPT_CARD.write(uri, card, self._write)

    def _write(self, folder: Path) -> None:
        from peft import PromptTuningConfig  # brings every model of transformers with it: seconds, in each process

        save_file({_TENSOR: self.values.contiguous()}, folder / _WEIGHTS)
        tokens, width = self.values.shape
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=tokens,
            token_dim=width,
            num_transformer_submodules=1,
            base_model_name_or_path=self.model.path,
            inference_mode=True,
        )
        config.save_pretrained(str(folder))

    @staticmethod
    def load(uri: str | Path) -> SoftPrompt:
        """Read and verify; raises `MethodError` if something is missing, damaged or not what the card says."""
        with SOFT_PROMPT_CARD.opened(uri) as (card, folder):
            values = load_file(folder / _WEIGHTS)[_TENSOR].float()
            model = ModelConfig.model_validate(card["model"])
            loaded = SoftPrompt(model, card["base_identity"], values, card["notes"])
            sound = list(values.shape) == card["shape"] and loaded.digest == card["digest"]
        SOFT_PROMPT_CARD.check_content(uri, sound, [values])
        return loaded


def room_for(lm: LanguageModel, values_ND: Tensor) -> tuple[int, ...]:
    """The ids of these virtual tokens in the model; raises `MethodError` if its context has no room behind them."""
    tokens = len(values_ND)
    if lm.within(tokens + 1) <= tokens:
        raise MethodError(
            f"the soft prompt has {tokens} virtual tokens, but the model's context is {lm.context_length}: no prompt "
            "fits behind it; train a shorter one (soft_prompt.tokens of `regrad finetune`)",
            code="soft_prompt_longer_than_context",
            tokens=tokens,
            context=lm.context_length,
        )
    return virtual_tokens(lm).put(values_ND)


@torch.no_grad()
def initial_embeddings(lm: LanguageModel, config: SoftPromptConfig, seed: int) -> Tensor:
    """What training starts from [N, D] float32 on the CPU: embeddings of a text's tokens, or of tokens drawn.

    Raises `TrainingError` for a text without a token, and `TokenOutOfVocabulary`.
    """
    if config.from_text is not None:
        if not (found := lm.encode(config.from_text)):
            raise TrainingError(
                f"soft_prompt.from_text is {config.from_text!r:.40}, which has no tokens; give a text that has some",
                code="text_without_tokens",
            )
        ids = list(islice(cycle(found), config.tokens))
    else:
        controls = set(lm.tokenizer.all_special_ids)
        common = [token for token in range(min(_COMMONEST, lm.vocabulary_size)) if token not in controls]
        ids = random.Random(f"{seed}/soft prompt").choices(common, k=config.tokens)
    # Through the module, which in some families scales its rows.
    embedded: Tensor = lm.model.get_input_embeddings()(torch.tensor([ids], device=lm.device))  # type: ignore[operator]
    return embedded[0].float().cpu()


def soft_prompt_costs(uri: str | Path) -> CorpusCosts | None:
    """As `corpus_costs`, of the soft prompt at `uri`."""
    return corpus_costs(uri, SOFT_PROMPT_CARD, lambda card: int(card["shape"][0]) * int(card["shape"][1]))
