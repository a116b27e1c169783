"""Continual training and fine-tuning: one LoRA for all questions.

Standard CPT reads the corpus, Instruction CPT reads it with questions about it, and the fine-tuned rivals learn the
task from the training questions: without passages (Direct) or with them in the prompt (RAG).
"""

from __future__ import annotations

from regrad.errors import MethodError
from regrad.methods.base import Method, SameForAll, Updates
from regrad.methods.config import MethodConfig
from regrad.models.loading import LanguageModel
from regrad.training.lora.lora_artifact import StaticLora, join, read_adapter_card

CPT = Method("cpt", "trained on the corpus", passages_in_prompt=False, update="static", static=True)
INSTRUCTION_CPT = Method(
    "instruction-cpt", "trained on the corpus with questions", passages_in_prompt=False, update="static", static=True
)
FT_DIRECT = Method("ft-direct", "fine-tuned on questions", passages_in_prompt=False, update="static", static=True)
FT_RAG = Method(
    "ft-rag", "fine-tuned on questions with passages", passages_in_prompt=True, update="static", static=True
)


def check_static(config: MethodConfig) -> None:
    """Raise `MethodError` if there is no adapter."""
    read_adapter_card(static_uri(config))


def static_uri(config: MethodConfig) -> str:
    """Where the adapter is; raises `MethodError` if the settings do not say."""
    if config.adapter is None:
        raise MethodError(
            f"method {config.kind} ({config.name}) needs 'adapter', a LoRA of `regrad finetune`, and none is given"
        )
    return config.adapter


def open_static(config: MethodConfig, lm: LanguageModel) -> Updates:
    """The LoRA in the model's own subspace. Raises `MethodError` if it is another model's or does not fit."""
    static = StaticLora.load(static_uri(config))
    static.check_base(lm)
    return SameForAll(join([(static.subspace, static.values)], lm.subspace))
