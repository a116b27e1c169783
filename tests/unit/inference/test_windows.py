"""Models whose layers see a window only: what they can read, and that the engine decodes as they do."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from regrad.data.passages import Passage
from regrad.errors import ModelError, PromptTooLong
from regrad.evaluation.runner import fit_prompt
from regrad.inference.decoding import GenerationRequest, generate
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.methods.base import Evidence, Prompt, open_question
from regrad.models.loading import LanguageModel
from regrad.training.meta.task_plan import Lengths
from tests.tools.decoded import PROMPTS, Heard, run, update
from tests.tools.random_models import loaded, random_gemma3, random_model
from tests.tools.reference_decoding import reference_generate
from tests.tools.refusals import refused

WINDOW, CONTEXT = 24, 256
SIZE = {"sliding_window": WINDOW, "max_position_embeddings": CONTEXT}


def model(kind: str) -> PreTrainedModel:
    """Mistral's layers all slide; of the others' some do and some do not. Qwen2's may and here do not at all, too."""
    if kind == "gemma3":
        return random_gemma3(**SIZE)
    settings = {
        "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
        "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
        "qwen2-full": {"use_sliding_window": False},
    }
    return random_model(kind.removesuffix("-full"), **SIZE, **settings.get(kind, {}))


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "qwen2", "qwen2-full", "gemma3"])
def test_beyond_the_window_the_engine_answers_as_transformers(kind: str, tiny: LanguageModel, tmp_path: Path) -> None:
    """Prompts within and beyond the window in one batch, read whole and in pieces, and answers that cross it."""
    lm = loaded(model(kind), tiny, tmp_path)
    prompts = [*PROMPTS, "Ada was born in London and lived there. " * 8 + PROMPTS[0], "word " * 60]
    requests = [DecodingRequest(prompt, each, 30) for prompt in prompts for each in ((), update(lm, 1))]
    assert max(len(lm.encode_prompt(prompt)) for prompt in prompts) > 2 * WINDOW
    expected = [reference_generate(lm, [GenerationRequest(r.prompt, r.updates, 30)])[0].text for r in requests]
    for piece in (7, 2048):
        assert [heard.text for heard in run(Engine(lm, prefill_tokens=piece), requests)] == expected


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_the_context_is_what_the_model_has_positions_for(kind: str, tiny: LanguageModel, tmp_path: Path) -> None:
    """In a multimodal checkpoint both numbers are those of the text model, and nested."""
    lm = loaded(model(kind), tiny, tmp_path)
    assert lm.context_length == Lengths.of(lm.config).context == CONTEXT
    long = "word " * CONTEXT
    with refused(PromptTooLong, context=256):
        Engine(lm).submit(DecodingRequest(long), Heard())
    with refused(PromptTooLong, context=256):
        generate(lm, [GenerationRequest(long)])


def test_no_passage_is_dropped_that_the_model_can_read(tiny: LanguageModel, tmp_path: Path) -> None:
    lm = loaded(model("gemma2"), tiny, tmp_path)
    passages = [Passage(str(i), "Ada", "Ada was born in London and lived there.") for i in range(3)]
    prompt = Prompt(Evidence(open_question("Who?")), tuple(passages))
    fitted = fit_prompt(lm, prompt, 8, None, drop=True)
    assert len(lm.encode_prompt(fitted.prompt)) > WINDOW
    assert fitted.dropped == 0


def test_layers_that_are_no_attention_are_refused_by_the_engine(tiny: LanguageModel) -> None:
    tiny.model.config.layer_types = ["full_attention", "linear_attention"] * 2
    with refused(ModelError, "unknown_layers", kinds=["linear_attention"]):
        Engine(tiny)
