"""Training a question encoder on a small corpus, with likelihoods that are known."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage
from regrad.data.questions import Question
from regrad.errors import ConfigError, EvaluationError, PromptTooLong, RetrievalError, TrainingError
from regrad.lab.config import LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.meta_init import random_meta_init
from regrad.models.loading import load_language_model
from regrad.retrieval.base import open_retriever
from regrad.retrieval.config import DenseConfig, EncoderConfig, FuseConfig
from regrad.retrieval.dense import build_dense_index
from regrad.retrieval.encoder import Encoder
from regrad.retrieval.fused import fuse_indexes
from regrad.settings import builtin_config, load_settings
from regrad.training.callbacks import Silent
from regrad.training.checkpoint import TrainCheckpoint, TrainState
from regrad.training.loop import train_on
from regrad.training.retriever import run
from regrad.training.retriever.candidates import PassageVectors
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.learner import NumberedQuestion, RetrieverLearner, open_dense
from regrad.training.retriever.likelihood import Asked, MethodLikelihood
from regrad.training.retriever.run import check_indexes, read_asked, write_indexes
from tests.tools.refusals import refused, refused_settings

NAMES = ("Anna", "Boris", "Clara", "David", "Edith", "Frank")
FACTS = {"born": "native", "employs": "staff", "study": "alumnus"}
"""The word of a question, and that of the note which answers it: they share nothing."""


def corpus() -> list[Passage]:
    notes = [(name, word) for name in NAMES for word in FACTS.values()]
    return [Passage(f"{name}.{word}", name, f"{name} {word} {word} of {name}{word}") for name, word in notes]


class ByWord:
    """An answer is likely with the passage that says it."""

    def __init__(self) -> None:
        self.asked = 0

    def of(self, asked: Sequence[Asked]) -> Tensor:
        self.asked += len(asked)
        return torch.tensor([0.0 if question.answers[0] in shown[0].text else -6.0 for question, shown in asked])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retriever")
    for name, seed in (("encoder", 0), ("other-encoder", 1)):
        write_encoder(LabEncoderConfig(output=f"{folder}/{name}", dimensions=64, seed=seed))
        index(folder, name, f"index-{name}")
    write_questions(folder)
    return folder


def write_questions(folder: Path) -> None:
    """Each fact of each name."""
    asked = [
        {"id": f"{name}-{word}", "question": f"{word} {name}", "answers": [f"{name}{fact}"]}
        for name in NAMES
        for word, fact in FACTS.items()
    ]
    (folder / "questions.jsonl").write_bytes(encode_jsonl(asked))


def index(folder: Path, encoder: str, name: str, vectors: str = "flat") -> None:
    settings = EncoderConfig(path=f"{folder}/{encoder}")
    config = DenseConfig.model_validate({"encoder": settings, "vectors": vectors})
    build_dense_index(corpus(), f"{folder}/{name}", Encoder(settings, "cpu"), config)


def settings(place: Path, *extra: str) -> RetrieverTrainConfig:
    values = [f"index={place}/index-encoder", f"output={place}/trained", "others=[]", "k=4", "temperature=0.1"]
    values += [f"questions.path={place}/questions.jsonl", "optimizer.steps=40", "optimizer.batch_size=6"]
    values += ["optimizer.lr=0.03", "checkpoints.every=10"]
    return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), [*values, *extra])


class Kept(Silent):
    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder / f"{checkpoint.state.step:03}")


def train(
    config: RetrieverTrainConfig, folder: Path | None = None, checkpoint: Path | None = None, likelihood: Any = None
) -> tuple[RetrieverLearner, TrainState]:
    asked = read_asked(config)
    retriever = open_dense(config.index, config.k, "cpu")
    learner = RetrieverLearner(config, retriever, likelihood or ByWord(), len(asked), torch.device("cpu"))
    return learner, train_on(learner, asked, config, Kept(folder), checkpoint=nullcontext(checkpoint))


def found_first(index_uri: str, config: RetrieverTrainConfig) -> float:
    with open_retriever(index_uri) as retriever:
        asked = [item.question for item in read_asked(config)]
        hits = retriever.search([question.question for question in asked], 1)
    right = [q.answers[0] in found[0].passage.text for q, found in zip(asked, hits, strict=True)]
    return sum(right) / len(right)


@pytest.mark.parametrize(
    "objective",
    [
        "{kind: marginal}",
        "{kind: vrag, over: union}",
        "{kind: jsa}",
        "{kind: jsa, simplified: true}",
        "{kind: distill}",
    ],
)
def test_what_was_trained_is_an_ordinary_index_that_finds_what_answers(
    place: Path, tmp_path: Path, objective: str
) -> None:
    config = settings(place, f"objective={objective}", f"output={tmp_path}/trained")
    assert found_first(config.index, config) < 0.6
    likelihood = ByWord()
    learner, state = train(config, likelihood=likelihood)
    learner.product(state).save(tmp_path / "encoder")
    assert write_indexes(config, tmp_path / "encoder") == len(corpus())
    assert found_first(config.output, config) > 0.8
    assert likelihood.asked <= len(corpus()) * len(read_asked(config)), "each question and passage at most once"
    if "jsa" in objective:
        assert 0 < learner.numbers()["acceptance"] <= 1
        assert 1 <= learner.numbers()["effective_sample"] <= 50


def test_an_index_that_was_trained_can_be_trained_again_and_moved(place: Path, tmp_path: Path) -> None:
    config = settings(place, f"output={tmp_path}/once", "optimizer.steps=20")
    learner, state = train(config)
    learner.product(state).save(tmp_path / "encoder")
    write_indexes(config, tmp_path / "encoder")
    (tmp_path / "once").rename(tmp_path / "moved")
    again = settings(place, f"index={tmp_path}/moved", f"output={tmp_path}/twice", "optimizer.steps=20")
    learner, state = train(again)
    learner.product(state).save(tmp_path / "encoder")
    write_indexes(again, tmp_path / "encoder")
    assert found_first(again.output, again) >= found_first(again.index, again)


@pytest.mark.parametrize("objective", ["{kind: jsa, keep_chain: true}", "{kind: vrag}"])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(place: Path, tmp_path: Path, objective: str) -> None:
    config = settings(place, f"objective={objective}", "optimizer.steps=20")
    whole, whole_state = train(config, tmp_path)
    resumed, state = train(config, None, tmp_path / "010")
    assert state.losses == whole_state.losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name
    kept = whole.tensors()["chains"]
    assert bool(kept.numel()) is ("keep_chain" in objective)
    assert not kept.numel() or (kept >= 0).any()


class Fails(ByWord):
    """At its nth call."""

    def __init__(self, at: int, error: Exception) -> None:
        super().__init__()
        self._left, self._error = at, error

    def of(self, asked: Sequence[Asked]) -> Tensor:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return super().of(asked)


@pytest.mark.parametrize(
    "error",
    [TrainingError("inf", code="likelihood_not_finite"), PromptTooLong("4000 tokens"), torch.OutOfMemoryError("full")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("objective", ["{kind: jsa, keep_chain: true}", "{kind: dro, samples: 4, iteration: 3}"])
def test_a_step_that_fails_loses_no_step_before_it(
    place: Path, tmp_path: Path, objective: str, error: Exception
) -> None:
    config = settings(place, f"objective={objective}", "optimizer.steps=8", "checkpoints.every=100")
    with pytest.raises(type(error)) as raised:
        train(config, tmp_path, likelihood=Fails(3, error))
    assert raised.value is error
    (kept,) = tmp_path.iterdir()
    assert int(kept.name) > 0
    resumed, state = train(config, None, kept)
    whole, whole_state = train(config)
    assert state.losses == whole_state.losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


def test_a_failure_in_the_gradient_leaves_the_parameters_as_they_were(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(place, "optimizer.steps=4", "checkpoints.every=2")
    whole, _ = train(config, tmp_path)
    calls = iter(range(10))

    def failing(learner: RetrieverLearner, *rest: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("no kernel")
        return differentiated(learner, *rest)

    differentiated = RetrieverLearner._differentiated
    monkeypatch.setattr(RetrieverLearner, "_differentiated", failing)
    (tmp_path / "failed").mkdir()
    with pytest.raises(RuntimeError, match="no kernel"):
        train(config, tmp_path / "failed")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "failed").iterdir()] == ["002"]
    resumed, _ = train(config, None, tmp_path / "failed" / "002")
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


def test_a_vector_of_the_index_that_is_not_finite_is_the_indexs_damage(place: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(place / "index-encoder", tmp_path / "damaged"))
    vectors = np.fromfile(damaged / "vectors.f32", np.float32).reshape(len(corpus()), -1)
    vectors[5, 3] = np.nan
    vectors.tofile(damaged / "vectors.f32")
    config = settings(place, f"index={damaged}")
    with refused(RetrievalError, "damaged", uri=str(damaged), row=5):
        train(config)


def test_a_question_that_is_not_finite_is_no_damage_of_the_index() -> None:
    vectors = PassageVectors(np.eye(4, dtype=np.float32), torch.device("cpu"), "index")
    queries = torch.eye(4)[:2]
    queries[1] = float("nan")
    assert vectors.nearest(queries, 1)[0].tolist() == [0]


def test_likelihoods_that_are_kept_have_a_bound_and_it_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(place, "optimizer.steps=20")
    expected = train(config)[1].losses
    monkeypatch.setattr("regrad.training.retriever.learner._MOST_KNOWN", 20)
    likelihood = ByWord()
    learner, state = train(config, likelihood=likelihood)
    assert state.losses == expected
    assert len(learner._known) <= 20 < likelihood.asked


def test_a_question_encoder_that_is_differentiated_gives_the_vectors_that_are_searched_with(place: Path) -> None:
    encoder = Encoder(EncoderConfig(path=f"{place}/encoder"), "cpu")
    asked = [item.question.question for item in read_asked(settings(place))]
    torch.testing.assert_close(
        encoder.question_vectors(asked).detach(), torch.from_numpy(encoder.encode_questions(asked))
    )
    assert encoder.question_vectors(asked).requires_grad


def test_the_posterior_reads_the_answer_behind_the_question(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not behind the turns, whose end an encoder does not read."""
    read: list[str] = []

    def vectors(encoder: Encoder, texts: Sequence[str], batch_tokens: int | None = None) -> Tensor:
        read.extend(texts)
        return torch.ones(len(texts), encoder.dimensions)

    config = settings(place, "objective={kind: vrag}", "separator=' = '")
    with open_dense(config.index, config.k, "cpu") as retriever:
        learner = RetrieverLearner(config, retriever, ByWord(), 1, torch.device("cpu"))
        monkeypatch.setattr(Encoder, "question_vectors", vectors)
        turns = (("user", "Who?"), ("assistant", "Ada"))
        learner.candidates([NumberedQuestion(0, Question("", "born Anna", ("Annaborn",), turns=turns))])
    assert read == ["born Anna\nAda\nWho?", "born Anna = Annaborn\nAda\nWho?"]


def test_scores_that_are_not_finite_change_nothing_and_stop_the_run(place: Path) -> None:
    config = settings(place, "optimizer.max_bad_steps=3")

    class Broken(RetrieverLearner):
        def candidates(self, batch: Any) -> Any:
            union, found = super().candidates(batch)
            found.prior.data[0, 0] = float("nan")
            return union, found

    retriever = open_dense(config.index, config.k, "cpu")
    before = retriever.encoder.digest()
    learner = Broken(config, retriever, ByWord(), 18, torch.device("cpu"))
    with refused(TrainingError, "not_finite", step=3, times=3):
        train_on(learner, read_asked(config), config)
    assert retriever.encoder.digest() == before


def test_an_index_that_cannot_be_trained_on_is_refused(place: Path, tmp_path: Path) -> None:
    with refused(TrainingError, "fewer_passages_than_k", passages=len(corpus()), k=19):
        open_dense(f"{place}/index-encoder", 19, "cpu")
    parts = (f"{place}/index-encoder", f"{place}/index-other-encoder")
    fuse_indexes(FuseConfig(indexes=parts), f"{tmp_path}/fused")
    with refused(RetrievalError, "not_dense", uri=f"{tmp_path}/fused", found="fused"):
        open_dense(f"{tmp_path}/fused", 2, "cpu")
    index(place, "encoder", "near", "hnsw")
    with refused(RetrievalError, "no_vectors"):
        train(settings(place, f"index={place}/near"))


def test_an_index_of_another_encoder_gets_no_question_encoder(place: Path, tmp_path: Path) -> None:
    others = f"others=[{{index: {place}/index-other-encoder, output: {tmp_path}/other}}]"
    config = settings(place, others, "optimizer.steps=1")
    with refused(RetrievalError, "other_encoder"):
        check_indexes(config)


def test_questions_without_answers_are_nothing_to_train_on(place: Path, tmp_path: Path) -> None:
    (tmp_path / "bare.jsonl").write_bytes(encode_jsonl([{"id": "1", "question": "who?", "answers": []}]))
    with pytest.raises((EvaluationError, TrainingError)):
        read_asked(settings(place, f"questions.path={tmp_path}/bare.jsonl"))


@pytest.mark.slow
def test_a_run_weighs_by_the_mean_over_tokens_if_that_is_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, dict[tuple[str, str], float]] = {"sequence": {}, "token-mean": {}}
    tokens: dict[str, int] = {}

    class Seen(MethodLikelihood):
        def of(self, asked: Sequence[Asked]) -> Tensor:
            found = super().of(asked)
            for (question, (passage,)), value in zip(asked, found.tolist(), strict=True):
                seen[kind][question.question, passage.id] = value
                reply = self.lm.config.prompts.reply(question.answers[0])
                tokens[question.question] = len(self.lm.encode(reply)) + len(self.lm.ending)
            return found

    monkeypatch.setattr(run, "MethodLikelihood", Seen)
    for kind in seen:
        run.train_retriever_in_process(settings(place, f"likelihood={kind}", "optimizer.steps=1"))
    assert seen["sequence"].keys() == seen["token-mean"].keys() and len(seen["sequence"]) >= 24
    for (question, passage_id), whole in seen["sequence"].items():
        mean = seen["token-mean"][question, passage_id]
        assert mean * tokens[question] == pytest.approx(whole, rel=1e-3, abs=1e-3)
    assert min(tokens.values()) > 1


def test_settings_that_do_not_hold_together_are_refused(place: Path) -> None:
    for extra in (
        ["tasks=x.jsonl"],
        ["method=direct"],
        ["objective={kind: jsa, keep_chain: true}", "cluster.workers=2"],
    ):
        with pytest.raises(ConfigError):
            settings(place, *extra)


@pytest.mark.parametrize(
    "extra",
    [
        "output={index}",
        "others=[{{index: {other}, output: {output}/}}]",
        "others=[{{index: {other}, output: {other}}}]",
        "generator={{output: {output}}}",
        "passages={{encoder: {index}, corpus: x}}",
        "passages={{encoder: x, corpus: ./x}}",
        "method={{name: regrad-online, meta_init: {output}/}}",
        "generator={{output: {other}, start_from: {other}/../index-other-encoder}}",
        "selector={{model: {other}, output: {other}}}",
        "selector={{model: {other}, output: {output}/selector}}",  # which writing the index would remove
        "generator={{output: {index}/generator}}",
        "generator={{output: {folder}}}",
        "generator={{output: {folder}/link-to-index}}",
        "output={folder}/questions.jsonl",
        "others=[{{index: {other}, output: x/corpus, corpus: x/corpus/corpus.jsonl}}]",
        "checkpoints.location={output}",
    ],
)
def test_a_result_in_the_place_of_another_or_of_what_is_read_is_refused(place: Path, extra: str) -> None:
    config = settings(place)
    places = {"index": config.index, "output": config.output, "other": f"{place}/index-other-encoder", "folder": place}
    if not (place / "link-to-index").exists():
        (place / "link-to-index").symlink_to(config.index)
    with refused_settings("repeated"):
        settings(place, extra.format(**places), "objective={kind: dro}")


def test_a_result_may_be_beside_what_is_read(place: Path) -> None:
    """Files of questions and passages are in a folder, and so are the results of what was trained on them."""
    assert settings(place, f"questions.path={place}", f"generator={{output: {place}/trained-generator}}").generator


def test_the_encoder_that_an_index_was_made_with_is_never_replaced(place: Path) -> None:
    others = f"others=[{{index: {place}/index-other-encoder, output: x, corpus: {place}/corpus.jsonl}}]"
    for encoder in ("encoder", "other-encoder"):
        passages = f"passages={{encoder: {place}/./{encoder}, corpus: {place}/corpus.jsonl}}"
        with refused(TrainingError, "encoder_in_use"):
            run.check_indexes(settings(place, others, passages))


@pytest.mark.parametrize("key", ["demonstrations: 2", "one_by_one: {}", "index: x", "retrieval: {bm25: {k1: 1}}"])
def test_settings_of_a_method_that_would_change_nothing_are_refused(place: Path, key: str) -> None:
    with refused_settings("ignored_in_training"):
        settings(place, f"method={{name: rag, {key}}}")


def test_what_a_run_was_given_is_known_by_its_content(place: Path, tmp_path: Path) -> None:
    """So that a resumed run does not go on with another start, and a finished one is not taken for that of another."""
    lm = load_language_model(settings(place).model, "cpu")
    random_meta_init(lm, 1.0).save(tmp_path / "start")
    build_dense_index(corpus(), f"{tmp_path}/other", *_encoder(place))
    others = f"others=[{{index: {tmp_path}/other, output: {tmp_path}/out}}]"
    config = settings(place, f"method={{name: regrad-online, meta_init: {tmp_path}/start}}", others)
    before = run.data_digests(config)
    assert run.data_digests(config) == before
    assert [key for key, value in run.data_digests(settings(place)).items() if value is not None] == ["data"]
    random_meta_init(lm, 2.0).save(tmp_path / "start")
    build_dense_index(corpus()[:5], f"{tmp_path}/other", *_encoder(place))
    after = run.data_digests(config)
    assert {key for key, value in after.items() if value != before[key]} == {"method", "others"}


def _encoder(place: Path) -> tuple[Encoder, DenseConfig]:
    settings = EncoderConfig(path=f"{place}/encoder")
    return Encoder(settings, "cpu"), DenseConfig(encoder=settings, vectors="flat")


def test_a_run_without_a_single_good_step_has_trained_nothing(place: Path) -> None:
    """However few they are."""

    class Broken(RetrieverLearner):
        def candidates(self, batch: Any) -> Any:
            union, found = super().candidates(batch)
            found.prior.data[0, 0] = float("nan")
            return union, found

    config = settings(place, "optimizer.steps=2")
    retriever = open_dense(config.index, config.k, "cpu")
    learner = Broken(config, retriever, ByWord(), 18, torch.device("cpu"))
    with refused(TrainingError, "not_finite", step=2, times=2):
        train_on(learner, read_asked(config), config)


def test_the_generator_may_be_one_with_a_lora_of_its_own(place: Path) -> None:
    assert settings(place, f"method={{name: ft-rag, adapter: {place}/lora}}").method.kind == "ft-rag"
    with refused_settings("method_without_passages"):
        settings(place, f"method={{name: cpt, adapter: {place}/lora}}")
