"""DRO, and a cross-encoder trained by it and by others, on passages of which one kind answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage
from regrad.errors import RetrievalError, TrainingError
from regrad.methods.one_by_one import log_prior
from regrad.retrieval.base import RETRIEVERS, open_retriever
from regrad.retrieval.config import OneByOneConfig, RerankConfig
from regrad.retrieval.reranked import rerank_index
from regrad.settings import builtin_config, load_settings
from regrad.training.checkpoint import TrainState
from regrad.training.loop import train_on
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.learner import RetrieverLearner, open_trained_on
from regrad.training.retriever.likelihood import Asked
from regrad.training.retriever.run import check_indexes, data_digests, read_asked, write_trained
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused, refused_settings
from tests.unit.retrieval.test_differentiable import observed
from tests.unit.retrieval.test_reranked import save_cross_encoder
from tests.unit.training.retriever.test_learner import Kept, found_first
from tests.unit.training.retriever.test_learner import place as dense_place  # noqa: F401  (a fixture)
from tests.unit.training.retriever.test_learner import settings as dense

COLOURS = ("red", "green", "blue")
PASSAGES = [Passage(f"p{n}", "", f"the {COLOURS[n % 3]} {'fox' if n > 3 else 'owl'}") for n in range(6)]
"""Two are about the fox, and the index, which looks for common words, puts them no higher than others."""


class FirstIs:
    """An answer is the likelier, the earlier a passage with it stands in the list."""

    def of(self, asked: Sequence[Asked]) -> Tensor:
        ranks = [[question.answers[0] in one.text for one in shown] for question, shown in asked]
        return torch.tensor([-2.0 * (row.index(True) if True in row else 6) for row in ranks])


@pytest.fixture(autouse=True)
def _overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RETRIEVERS, "overlap", "tests.tools.overlap:OverlapRetriever")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selector")
    save_cross_encoder(folder / "cross-encoder", 0.1)
    build_overlap_index(PASSAGES, f"{folder}/index")
    asked = [{"id": colour, "question": f"where is the {colour}", "answers": ["fox"]} for colour in COLOURS]
    (folder / "questions.jsonl").write_bytes(encode_jsonl(asked))
    return folder


def settings(place: Path, *extra: str) -> RetrieverTrainConfig:
    values = [f"index={place}/index", f"output={place}/trained", "others=[]", "k=6", "temperature=1"]
    values += [f"questions.path={place}/questions.jsonl", "optimizer.steps=16", "optimizer.batch_size=3"]
    values += ["optimizer.lr=0.02", "checkpoints.every=5", "objective={kind: dro, samples: 8, shown: 2}"]
    values += [f"selector={{model: {place}/cross-encoder, output: {place}/selector}}"]
    return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), [*values, *extra])


def train(
    config: RetrieverTrainConfig, folder: Path | None = None, checkpoint: Path | None = None
) -> tuple[RetrieverLearner, TrainState]:
    asked = read_asked(config)
    retriever = open_trained_on(config, "cpu")
    learner = RetrieverLearner(config, retriever, FirstIs(), len(asked), torch.device("cpu"))
    return learner, train_on(learner, asked, config, Kept(folder), checkpoint=nullcontext(checkpoint))


def test_what_an_index_names_is_not_replaced(place: Path, tmp_path: Path) -> None:
    """The cross-encoder of a reranked index, and the index that it is over, are read with it."""
    save_cross_encoder(tmp_path / "other", 0.1)
    rerank_index(RerankConfig(index=f"{place}/index", model=f"{tmp_path}/other"), f"{tmp_path}/reranked")
    over = f"index={tmp_path}/reranked"
    for result in (f"selector.output={tmp_path}/./other", f"output={place}/index", f"output={place}/index/trained"):
        with refused(TrainingError, "encoder_in_use", index=f"{tmp_path}/reranked"):
            check_indexes(settings(place, over, result))
    check_indexes(settings(place, over))


def test_the_indexes_that_an_index_names_are_known_by_their_cards(place: Path, tmp_path: Path) -> None:
    build_overlap_index(PASSAGES, f"{tmp_path}/inner")
    rerank_index(RerankConfig(index=f"{tmp_path}/inner", model=f"{place}/cross-encoder"), f"{tmp_path}/reranked")
    over = [f"index={tmp_path}/reranked", f"others=[{{index: {tmp_path}/reranked, output: {tmp_path}/other}}]"]
    before = data_digests(settings(place, *over))
    assert data_digests(settings(place, *over)) == before
    build_overlap_index([*PASSAGES[1:], Passage("p0", "", "of something else")], f"{tmp_path}/inner")
    after = data_digests(settings(place, *over))
    assert {key for key, value in after.items() if value != before[key]} == {"data", "others"}


def _no_index(corpus: str, encoder: object, output: str) -> str:
    raise AssertionError("a selector makes no vectors")


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        "{kind: dro, samples: 8, shown: 2}",
        "{kind: dro, samples: 8, shown: 2, iteration: 10}",
        "{kind: marginal}",
        "{kind: jsa, simplified: true}",
    ],
)
def test_a_trained_selector_is_a_reranked_index_that_puts_first_what_answers(
    place: Path, tmp_path: Path, objective: str
) -> None:
    output = [f"output={tmp_path}/trained", f"selector.output={tmp_path}/selector", f"objective={objective}"]
    config = settings(place, *output)
    learner, state = train(config)
    learner.product(state).save(tmp_path / "product")
    assert write_trained(config, tmp_path / "product", _no_index) == len(PASSAGES)
    questions = [item.question.question for item in read_asked(config)]
    with open_retriever(config.output) as retriever, open_retriever(config.index) as before:
        assert retriever.card.kind == "reranked"
        found = [[hit.passage.text for hit in hits] for hits in retriever.search(questions, 2)]
        untrained = [[hit.passage.text for hit in hits] for hits in before.search(questions, 2)]
    assert all("fox" in text for texts in found for text in texts)
    assert not all("fox" in text for texts in untrained for text in texts)
    if "dro" in objective:
        assert 1 <= learner.numbers()["effective_lists"] <= 8


def test_a_trained_selectors_index_gives_the_probabilities_of_its_training(place: Path, tmp_path: Path) -> None:
    """Its scores over its temperature, which are what passages that are read one by one are weighed by."""
    output = [f"output={tmp_path}/trained", f"selector.output={tmp_path}/selector", "temperature=0.2"]
    config = settings(place, *output, "objective={kind: marginal}", "optimizer.steps=1")
    learner, state = train(config)
    questions = [item.question for item in read_asked(config)]
    with torch.no_grad():
        found = learner._finder.find(questions, torch.empty(0))
    rows_BU = found.union.rows.tolist()
    texts = learner._finder.passages([row for rows in rows_BU for row in rows])
    trained_BU = found.prior.softmax(1)
    assert float(trained_BU.max()) > 2 * float(trained_BU.min()), "else a uniform one would do"
    learner.product(state).save(tmp_path / "product")
    write_trained(config, tmp_path / "product", _no_index)
    with open_retriever(config.output) as retriever:
        for question, rows, trained_U in zip(questions, rows_BU, trained_BU, strict=True):
            (hits,) = retriever.search([question.query], config.k)
            served_K = log_prior(OneByOneConfig(), [hit.score for hit in hits], retriever.temperature).exp()
            served = dict(zip((hit.passage.id for hit in hits), served_K.tolist(), strict=True))
            expected = dict(zip((texts[row].id for row in rows), trained_U.tolist(), strict=True))
            assert served == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["005", "015"])
def test_a_run_that_was_stopped_goes_on_within_its_iteration(place: Path, tmp_path: Path, step: str) -> None:
    config = settings(place, "objective={kind: dro, samples: 4, shown: 2, iteration: 10}", "optimizer.steps=20")
    whole, whole_state = train(config, tmp_path)
    resumed, state = train(config, None, tmp_path / step)
    assert state.losses == whole_state.losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


@pytest.mark.slow
def test_within_an_iteration_lists_are_drawn_once_and_weigh_the_same(place: Path) -> None:
    class Counting(FirstIs):
        asked = 0

        def of(self, asked: Sequence[Asked]) -> Tensor:
            self.asked += len(asked)
            return super().of(asked)

    for iteration, drawn in ((1, 20), (10, 2)):
        likelihood = Counting()
        objective = f"objective={{kind: dro, samples: 4, shown: 2, iteration: {iteration}}}"
        config = settings(place, objective, "optimizer.steps=20")
        asked = read_asked(config)
        retriever = open_trained_on(config, "cpu")
        learner = RetrieverLearner(config, retriever, likelihood, len(asked), torch.device("cpu"))
        train_on(learner, asked, config)
        assert likelihood.asked == drawn * len(asked) * 4


@pytest.mark.slow
def test_dro_trains_a_question_encoder_as_the_other_objectives_do(dense_place: Path, tmp_path: Path) -> None:  # noqa: F811
    """What it finds first becomes what answers: the same corpus and likelihoods as theirs."""
    output = [f"output={tmp_path}/trained", "objective={kind: dro, samples: 8, shown: 2}"]
    config = dense(dense_place, *output, "k=8", "optimizer.steps=60")
    asked = read_asked(config)
    with open_trained_on(config, "cpu") as retriever:
        learner = RetrieverLearner(config, retriever, FirstIs(), len(asked), torch.device("cpu"))
        learner.product(train_on(learner, asked, config)).save(tmp_path / "product")
    write_trained(config, tmp_path / "product", _no_index)
    assert found_first(config.index, config) < 0.6
    assert found_first(config.output, config) > 0.8


@pytest.mark.parametrize("objective", ["{kind: dro, samples: 8, shown: 2}", "{kind: marginal}"])
def test_a_step_with_many_pairs_is_the_same_in_passes_of_few_tokens(place: Path, objective: str) -> None:
    """Those that draw lists too, in which nothing is differentiated."""

    def stepped(batch_tokens: int) -> tuple[list[Tensor], list[int]]:
        config = settings(place, f"objective={objective}", f"batch_tokens={batch_tokens}")
        asked = read_asked(config)
        with open_trained_on(config, "cpu") as retriever:
            learner = RetrieverLearner(config, retriever, FirstIs(), len(asked), torch.device("cpu"))
            module = learner._finder.parts()["selector"][0]
            with observed(module) as passes:
                assert learner.step(asked, 1.0).loss is not None
        return [p.grad for p in module.parameters() if p.grad is not None], passes.tokens

    expected, whole = stepped(10**6)
    found, passes = stepped(16)
    assert max(whole) > 100 and max(passes) <= 16
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_question_of_which_the_index_finds_nothing_is_refused(place: Path, tmp_path: Path) -> None:
    asked = [{"id": "1", "question": "xyzzy", "answers": ["fox"]}]
    (tmp_path / "asked.jsonl").write_bytes(encode_jsonl(asked))
    config = settings(place, f"questions.path={tmp_path}/asked.jsonl")
    with refused(TrainingError, "nothing_found", question="xyzzy"):
        check_indexes(config)
    with refused(TrainingError, "nothing_found", question="xyzzy"):
        train(config)
    check_indexes(settings(place))


def test_a_question_of_which_nothing_is_found_later_loses_no_step(place: Path, tmp_path: Path) -> None:
    """As where the index, or a question beyond those that are looked at first, is to blame."""
    asked = [{"id": str(n), "question": f"where is the {COLOURS[n % 3]} {n}", "answers": ["fox"]} for n in range(15)]
    asked.append({"id": "none", "question": "xyzzy", "answers": ["fox"]})
    (tmp_path / "asked.jsonl").write_bytes(encode_jsonl(asked))
    late = ["objective={kind: marginal}", "checkpoints.every=100", "seed=1"]
    config = settings(place, f"questions.path={tmp_path}/asked.jsonl", *late)
    (tmp_path / "kept").mkdir()
    with refused(TrainingError, "nothing_found", question="xyzzy"):
        train(config, tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    assert int(kept.name) > 0


def test_what_a_selector_needs_is_checked_first(place: Path, tmp_path: Path) -> None:
    with refused(TrainingError, "fewer_passages_than_k", passages=6, k=7):
        open_trained_on(settings(place, "k=7"), "cpu")
    with refused(RetrievalError, "no_cross_encoder"):
        (tmp_path / "empty").mkdir()
        train(settings(place, f"selector.model={tmp_path}/empty"))
    for objective in ("{kind: vrag}", "{kind: jsa}"):
        with refused_settings("selector_without_posterior"):
            settings(place, f"objective={objective}")
    with refused_settings("selector_keeps_no_chain"):
        settings(place, "objective={kind: jsa, simplified: true, keep_chain: true}")
    with refused_settings("selector_of_passages"):
        settings(place, f"passages={{encoder: {place}/x, corpus: {place}/y}}")
