"""Models whose layers see a window only: what they can read, wherever that is asked, and that the engine decodes so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.data.tasks import Task, TaskQuestion
from regrad.errors import ModelError, PromptTooLong
from regrad.gradients import extractor
from regrad.gradients.extractor import AtomExtractor, passage_batch
from regrad.inference.decoding import GenerationRequest, generate
from regrad.inference.engine import Engine
from regrad.inference.rows import DecodingRequest
from regrad.meta_init import random_meta_init
from regrad.methods.base import Evidence, Plan, Prompt, open_question
from regrad.methods.policies import PromptFitter
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.models.batching import TokenBatch
from regrad.models.loading import LanguageModel
from regrad.training.lora.examples import question_example
from regrad.training.meta.collate import encode_question
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.task_plan import Lengths
from regrad.training.retriever.likelihood import MethodLikelihood
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


@pytest.mark.slow
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
    plan = Plan(Prompt(Evidence(open_question("Who?")), tuple(passages)))
    fitter = PromptFitter(lm, lm.config.prompts, "drop")
    fitted = fitter.fitted(plan, 8)
    assert len(fitted.ids) > WINDOW
    assert fitted.plan == plan


MIDDLE = Passage("middle", "Ada", "Ada was born in London and lived there. " * 8)
"""Beyond the window, and within the context."""
LONG = Passage("long", "Ada", "word " * CONTEXT)


@pytest.fixture
def sliding(tiny: LanguageModel, tmp_path: Path) -> LanguageModel:
    return loaded(model("mistral"), tiny, tmp_path)


def test_a_limit_is_the_context_where_that_is_less(sliding: LanguageModel) -> None:
    assert (sliding.within(WINDOW + 1), sliding.within(CONTEXT + 1)) == (WINDOW + 1, CONTEXT)


def test_training_leaves_out_only_passages_beyond_the_context(sliding: LanguageModel) -> None:
    shape = ShapeConfig(in_prompt=True)
    asked = TaskQuestion("Who?", "Ada", (0, 1))
    ids, _ = encode_question(sliding, Task((MIDDLE, LONG), (asked,)), asked, shape)
    fitting = replace(asked, context=(0,))
    assert ids == encode_question(sliding, Task((MIDDLE,), (fitting,)), fitting, shape)[0] and len(ids) > WINDOW

    question = Question("", "Who?", ("Ada",))
    example = question_example(sliding, question, [MIDDLE, LONG])
    assert example == question_example(sliding, question, [MIDDLE]) and len(example.ids) > WINDOW


def test_a_likelihood_reads_a_passage_unless_it_is_beyond_the_context(sliding: LanguageModel) -> None:
    question = Question("", "Who?", ("Ada",))
    rag, direct = (MethodLikelihood(sliding, PromptOnlyConfig(name=name), False, 4096) for name in ("rag", "direct"))
    [middle, long] = rag.of([(question, (MIDDLE,)), (question, (LONG,))]).tolist()
    [without] = direct.of([(question, (LONG,))]).tolist()
    assert long == pytest.approx(without, rel=1e-5), "it is left out"
    assert middle != pytest.approx(without, rel=1e-3)


def test_a_passage_has_an_atom_unless_it_is_beyond_the_context(sliding: LanguageModel) -> None:
    middle, long = AtomExtractor(sliding, random_meta_init(sliding, 1.0)).extract([MIDDLE, LONG])
    assert middle.atom is not None and not middle.problem
    assert long.atom is None and f"more than {CONTEXT};" in long.problem


@pytest.mark.parametrize(("context", "read"), [(CONTEXT, 24), (16, 16)])
def test_extraction_is_verified_on_rows_as_long_as_the_context_allows(
    context: int, read: int, tiny: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = loaded(random_model("mistral", sliding_window=8, max_position_embeddings=context), tiny, tmp_path)
    widths = []

    def recording(lm: LanguageModel, encoded: Sequence[Sequence[int]]) -> TokenBatch:
        widths.append(max(map(len, encoded)))
        return passage_batch(lm, encoded)

    monkeypatch.setattr(extractor, "passage_batch", recording)
    AtomExtractor(lm, random_meta_init(lm, 1.0))
    assert max(widths) == read


def test_layers_that_are_no_attention_are_refused_by_the_engine(tiny: LanguageModel) -> None:
    tiny.model.config.layer_types = ["full_attention", "linear_attention"] * 2
    with refused(ModelError, "unknown_layers", kinds=["linear_attention"]):
        Engine(tiny)
