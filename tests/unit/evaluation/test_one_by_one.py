"""Answers with passages one by one, against sums in plain numbers, on the lab's model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import ModelError
from regrad.evaluation.config import EvalBatchConfig
from regrad.evaluation.one_by_one import OneByOne
from regrad.evaluation.runner import Generator
from regrad.inference.rows import DecodingRequest, Finished
from regrad.lab.sets import Many
from regrad.lab.world import World
from regrad.methods.base import Evidence, NoAtoms, Plan
from regrad.methods.one_by_one import ReplyReader, apart, best_of, log_prior, marginal_scores, without_each
from regrad.methods.policies import PromptFitter
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.reading import LikelihoodReader
from regrad.models.config import ModelConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.retrieval.config import OneByOneConfig
from regrad.settings import builtin_config, load_settings
from tests.tools.refusals import refused


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_language_model(load_settings(ModelConfig, builtin_config("models/lab.yaml")), "cpu")


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """A question about a person, with the note that answers it between notes of other people."""
    world, rng = World(), random.Random(0)
    lab, notes = Many(world), []
    asked = lab.ask(world.meta[0], "employer", rng)
    for person in world.meta[:3]:
        item = lab.ask(person, "employer", rng)
        notes.append(next(note for note in lab.passages(person, rng) if note.id == item.passage_ids[0]))
    question = Question("", asked.question, asked.answers)
    return Evidence(question, (notes[1], notes[0], notes[2]), (0.1, 0.3, 0.2))


def answered(lm: LanguageModel, evidence: Evidence, settings: OneByOneConfig) -> tuple[Plan, Finished | None]:
    fitter, generator = PromptFitter(lm, lm.config.prompts, "drop"), Generator(lm, EvalBatchConfig())

    def fit(plan: Plan) -> tuple[Plan, DecodingRequest | None]:
        fitted = fitter.fitted(plan, 8)
        return fitted.plan, DecodingRequest(fitted.text, fitted.plan.updates, 8, ids=fitted.ids)

    one_by_one = OneByOne(lm, settings, PromptOnlyConfig(name="rag").open(lm), NoAtoms())
    (found,) = one_by_one.answers([evidence], one_by_one.plans([evidence]), fit, generator.answers)
    return found


def marginals(lm: LanguageModel, evidence: Evidence, texts: Sequence[str], temperature: float) -> list[float]:
    """Of each text, passage by passage."""
    method, reader = PromptOnlyConfig(name="rag").open(lm), LikelihoodReader(lm, 4096)
    priors = [math.exp(score / temperature) for score in evidence.scores]
    sums = [0.0] * len(texts)
    for one, prior in zip(apart(evidence), priors, strict=True):
        (plan,) = method.plan([one], NoAtoms())
        for number, text in enumerate(texts):
            sums[number] += prior / sum(priors) * math.exp(float(reader.log_likelihoods([plan], [text])[0]))
    return sums


def test_marginal_scores_are_the_logarithms_of_the_sums() -> None:
    found = marginal_scores(torch.tensor([0.25, 0.75]).log(), torch.tensor([[0.5, 0.1], [0.2, 0.3]]).log())
    torch.testing.assert_close(found.exp(), torch.tensor([0.25 * 0.5 + 0.75 * 0.1, 0.25 * 0.2 + 0.75 * 0.3]))


def test_the_temperature_is_the_settings_or_the_indexs_or_1() -> None:
    scores = (0.1, 0.3)
    for settings, trained_at, expected in (
        (OneByOneConfig(temperature=2.0), 0.05, 2.0),
        (OneByOneConfig(), 0.05, 0.05),
        (OneByOneConfig(), None, 1.0),
    ):
        found = log_prior(settings, scores, trained_at)
        torch.testing.assert_close(found, (torch.tensor(scores) / expected).log_softmax(0))


def test_what_a_passage_did_is_what_the_answer_loses_without_it() -> None:
    prior, likelihood = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.9, 0.1, 0.05])
    whole = math.log(0.5 * 0.9 + 0.3 * 0.1 + 0.2 * 0.05)
    without = [(0.3 * 0.1 + 0.2 * 0.05) / 0.5, (0.5 * 0.9 + 0.2 * 0.05) / 0.7, (0.5 * 0.9 + 0.3 * 0.1) / 0.8]
    found = without_each(prior.log(), likelihood.log())
    assert found == pytest.approx([whole - math.log(one) for one in without], abs=1e-6)
    assert found[0] > 0 > found[2]


def test_an_evaluation_takes_the_temperature_of_the_index_that_it_searches(
    lm: LanguageModel, evidence: Evidence
) -> None:
    fitter, generator = PromptFitter(lm, lm.config.prompts, "drop"), Generator(lm, EvalBatchConfig())

    def fit(plan: Plan) -> tuple[Plan, DecodingRequest | None]:
        fitted = fitter.fitted(plan, 8)
        return fitted.plan, DecodingRequest(fitted.text, fitted.plan.updates, 8, ids=fitted.ids)

    texts = []
    for settings, trained_at in ((OneByOneConfig(temperature=1e-3), None), (OneByOneConfig(), 1e-3)):
        one_by_one = OneByOne(lm, settings, PromptOnlyConfig(name="rag").open(lm), NoAtoms(), trained_at)
        ((_, given),) = one_by_one.answers([evidence], one_by_one.plans([evidence]), fit, generator.answers)
        assert given is not None
        texts.append(given.text)
    # So cold, the best scored note alone decides, which is not what a temperature of 1 gives.
    _, alone = answered(lm, apart(evidence)[1], OneByOneConfig())
    assert alone is not None and texts == [alone.text] * 2


def test_each_passage_stands_alone_with_its_score(evidence: Evidence) -> None:
    parts = apart(evidence)
    assert [part.passages for part in parts] == [(passage,) for passage in evidence.passages]
    assert [part.scores for part in parts] == [(score,) for score in evidence.scores]
    bare = replace(evidence, passages=(), scores=())
    assert apart(bare) == [bare]
    assert [part.scores for part in apart(replace(evidence, scores=()))] == [()] * 3


@pytest.mark.parametrize("temperature", [1.0, 0.02])
def test_the_answer_has_the_largest_marginal_likelihood(
    lm: LanguageModel, evidence: Evidence, temperature: float
) -> None:
    plan, given = answered(lm, evidence, OneByOneConfig(temperature=temperature))
    assert given is not None and plan.prompt.evidence.question == evidence.question
    each = [answered(lm, one, OneByOneConfig())[1] for one in apart(evidence)]
    texts = list(dict.fromkeys(one.text for one in each if one is not None))
    assert len(texts) > 1, "with other notes the answer is another one"
    sums = marginals(lm, evidence, texts, temperature)
    assert given.text == texts[sums.index(max(sums))]
    assert given.prompt_tokens == sum(one.prompt_tokens for one in each if one is not None)


def test_what_the_retriever_is_sure_of_decides(lm: LanguageModel, evidence: Evidence) -> None:
    for place in (0, 1):
        scores = tuple(50.0 if number == place else 0.0 for number in range(3))
        _, given = answered(lm, replace(evidence, scores=scores), OneByOneConfig())
        _, alone = answered(lm, apart(evidence)[place], OneByOneConfig())
        assert given is not None and alone is not None and given.text == alone.text


def test_without_passages_the_method_answers_as_it_does(lm: LanguageModel, evidence: Evidence) -> None:
    bare = replace(evidence, passages=(), scores=())
    plan, given = answered(lm, bare, OneByOneConfig())
    assert given is not None and "no passage was found" in str(plan.notes[0])


def test_a_question_that_the_model_cannot_be_asked_has_no_answer(lm: LanguageModel, evidence: Evidence) -> None:
    one_by_one = OneByOne(lm, OneByOneConfig(), PromptOnlyConfig(name="rag").open(lm), NoAtoms())
    plans = one_by_one.plans([evidence])
    found = one_by_one.answers([evidence], plans, lambda plan: (plan, None), lambda requests: [])
    assert [answer for _, answer in found] == [None]


def finished(text: str) -> Finished:
    return Finished(text, "stop", 1, 1, 0.0, 0.0, 0.0, 1)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_answers_without_finite_likelihoods_are_refused_with_their_question(broken: float) -> None:
    question, prior = Question("", "Who?", ()), torch.zeros(2).log_softmax(0)
    answers = [finished("a"), finished("b")]
    with refused(ModelError, "likelihood_not_finite", question="Who?"):
        best_of(question, prior, answers, torch.tensor([[-1.0, -2.0], [broken, -1.0]]))
    with refused(ModelError, "likelihood_not_finite", question="Who?"):
        best_of(question, torch.tensor([broken, 0.0]), answers, torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]))


def test_an_answer_that_was_decoded_can_be_read_however_little_room_is_left(lm: LanguageModel) -> None:
    """The end of an answer, and what another tokenisation adds to it, need not fit behind a prompt that does."""
    fitter, method, tokens = PromptFitter(lm, lm.config.prompts, "drop"), PromptOnlyConfig(name="rag").open(lm), 4
    most = lm.context_length
    assert most is not None
    fitting = []
    for words in range(most):
        passages = (Passage("a", "", "word " * words), Passage("b", "", "short"))
        plans = method.answer_plans(apart(Evidence(Question("", "Who?", ()), passages)), NoAtoms())
        fitted = [fitter.fitted(plan, tokens) for plan in plans]
        if not fitted[0].plan.prompt.passages:
            break
        fitting = fitted
    assert most - tokens - 2 < len(fitting[0].ids) <= most - tokens, "the longest that fits"
    text = "one two three four five six"
    reader = ReplyReader(lm)
    (batch,) = reader.batches([one.plan for one in fitting], text)
    assert batch.tokens.ids.shape[1] <= most
    rows = {place: batch.tokens.take(torch.tensor([row])) for row, place in enumerate(batch.places)}
    answered = {place: int(row.predicted.sum()) for place, row in rows.items()}
    assert answered[0] == answered[1] == most - len(fitting[0].ids), "as many tokens behind each prompt"
    for place, row in rows.items():
        ids = row.ids[0][row.ids[0] != lm.pad_id].tolist()
        assert ids[: len(fitting[place].ids)] == list(fitting[place].ids), "with the passage, as it was decoded"
    found = reader.likelihoods(OneByOneConfig(), [one.plan for one in fitting], [text])
    assert found.shape == (1, 2) and bool(found.isfinite().all())


def test_answers_are_read_the_same_in_passes_of_few_tokens(lm: LanguageModel) -> None:
    """As a server does, whose other requests are decoded in between."""
    passages = tuple(Passage(str(n), "", "Anna was born in Rome. " * (1 + n)) for n in range(5))
    evidence = Evidence(Question("", "Where was Anna born?", ()), passages)
    plans = PromptOnlyConfig(name="rag").open(lm).answer_plans(apart(evidence), NoAtoms())
    (whole_K,) = ReplyReader(lm).likelihoods(OneByOneConfig(), plans, ["Rome"])
    reader, found_K = ReplyReader(lm, batch_tokens=100), torch.empty(5)
    passes = reader.batches(plans, "Rome")
    for one in passes:
        found_K[list(one.places)] = reader.read(OneByOneConfig(), one)
    assert len(passes) > 1 and all(one.tokens.ids.numel() <= 100 or len(one.places) == 1 for one in passes)
    torch.testing.assert_close(found_K, whole_K, atol=1e-4, rtol=1e-5)  # float32, padded to other lengths


def test_a_raw_prompt_is_read_as_it_was_decoded(lm: LanguageModel) -> None:
    lm.tokenizer.chat_template = "{% for m in messages %}Question: {{ m['content'] }}\nAnswer:{% endfor %}"
    prompts = lm.config.prompts.model_copy(update={"chat": True})
    chat = replace(lm, config=lm.config.model_copy(update={"prompts": prompts}))
    evidence = Evidence(Question("", "Anna lives in", ()), (Passage("1", "", "Anna was born in Rome."),), raw=True)
    plans = PromptOnlyConfig(name="rag").open(chat).answer_plans([evidence], NoAtoms())
    fitted = PromptFitter(chat, prompts, "drop").fitted(plans[0], 6)
    (batch,) = ReplyReader(chat).batches([fitted.plan], "Rome")
    start = len(fitted.ids)
    assert batch.tokens.ids[0, :start].tolist() == list(fitted.ids)
    read = lm.tokenizer.decode(batch.tokens.ids[0, start:].tolist())
    assert read.strip().startswith("Rome"), read


@pytest.mark.parametrize("per_token", [False, True])
def test_an_empty_answer_is_as_likely_as_its_end(lm: LanguageModel, per_token: bool) -> None:
    """Without an end token behind answers, as in the papers' prompts, it has no token of its own: it is not certain."""
    lm.tokenizer.chat_template = "{% for m in messages %}Question: {{ m['content'] }}\nAnswer:{% endfor %}"
    prompts = lm.config.prompts.model_copy(update={"chat": True, "end_token": False})
    chat = replace(lm, config=lm.config.model_copy(update={"prompts": prompts}))
    evidence = Evidence(Question("", "Where was Anna born?", ()), (Passage("1", "", "Anna was born in Rome."),))
    plans = PromptOnlyConfig(name="rag").open(chat).answer_plans([evidence], NoAtoms())
    ids = PromptFitter(chat, prompts, "drop").fitted(plans[0], 6).ids
    with torch.no_grad():
        logits_V = chat.model(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = logits_V.log_softmax(-1)[chat.eos[0]]
    found = ReplyReader(chat).likelihoods(OneByOneConfig(per_token=per_token), plans, ["", "Rome"])
    assert float(found[0, 0]) == pytest.approx(float(expected), abs=1e-4)
    assert float(found[0, 0]) < -0.01
