"""The passages' encoder trained with its index made anew meanwhile: what is due when, how old vectors are, failures."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regrad.data.passages import Passage, encode_passages
from regrad.errors import CorpusError, Interrupted, RetrievalError, TrainingError
from regrad.lab.config import LabEncoderConfig
from regrad.lab.encoder import write_encoder
from regrad.retrieval.base import open_retriever
from regrad.retrieval.config import DenseConfig, EncoderConfig
from regrad.retrieval.dense import DenseRetriever, build_dense_index
from regrad.retrieval.embedding import Vectors
from regrad.retrieval.encoder import Encoder
from regrad.training.checkpoint import TrainState
from regrad.training.loop import train_on
from regrad.training.retriever.artefact import TrainedEncoder
from regrad.training.retriever.candidates import PassageVectors
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.finder import DenseFinder
from regrad.training.retriever.learner import RetrieverLearner, open_dense
from regrad.training.retriever.passage_side import PassageSide, RefresherHere
from regrad.training.retriever.run import check_indexes, read_asked, write_trained
from tests.tools.refusals import refused, refused_settings
from tests.unit.retrieval.test_differentiable import observed
from tests.unit.training.retriever.test_learner import ByWord, Kept, corpus, found_first, write_questions
from tests.unit.training.retriever.test_learner import settings as plain


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passages")
    write_encoder(LabEncoderConfig(output=f"{folder}/encoder", dimensions=64))
    made = EncoderConfig(path=f"{folder}/encoder")
    dense = DenseConfig(encoder=made, vectors="flat")
    build_dense_index(corpus(), f"{folder}/index-encoder", Encoder(made, "cpu"), dense)
    write_questions(folder)
    return folder


def settings(place: Path, every: int, delay: int, *extra: str) -> RetrieverTrainConfig:
    passages = f"passages={{encoder: {place}/new-encoder, corpus: unread.jsonl, every: {every}, delay: {delay}}}"
    return plain(place, passages, "objective={kind: marginal}", "optimizer.steps=20", *extra)


class Counting(RefresherHere):
    """Says at which calls it was asked, and dies if it is told to."""

    def __init__(self, dies_at: int = 0, error: Exception | None = None) -> None:
        super().__init__([corpus()])
        self.begun, self._dies_at = 0, dies_at
        self._error = error or RetrievalError("its machine is gone", code="damaged")

    def start(self, encoder: Encoder) -> None:
        self.begun += 1
        super().start(encoder)

    def wait(self) -> None:
        if self.begun == self._dies_at:
            raise self._error


def train(
    config: RetrieverTrainConfig, refresher: RefresherHere, folder: Path | None = None, checkpoint: Path | None = None
) -> tuple[RetrieverLearner, TrainState]:
    asked, device = read_asked(config), torch.device("cpu")
    retriever = open_dense(config.index, config.k, "cpu")
    learner = RetrieverLearner(config, retriever, ByWord(), len(asked), device, refresher=refresher)
    return learner, train_on(learner, asked, config, Kept(folder), checkpoint=nullcontext(checkpoint))


def _side(learner: RetrieverLearner) -> PassageSide:
    finder = learner._finder
    assert isinstance(finder, DenseFinder) and finder.side is not None
    return finder.side


@pytest.mark.slow
def test_vectors_are_made_every_so_many_steps_and_taken_in_after_the_delay(place: Path) -> None:
    refresher = Counting()
    learner, state = train(settings(place, 6, 2), refresher)
    product = learner.product(state)
    assert isinstance(product, TrainedEncoder)
    notes = product.notes
    assert refresher.begun == 3
    assert [(one["step"], one["made_at"]) for one in notes["refreshes"]] == [(8, 6), (14, 12)]
    assert all(0 <= one["overlap"] <= 1 for one in notes["refreshes"])
    assert min(one["overlap"] for one in notes["refreshes"]) < 1, "training changes what is found"
    assert learner.numbers()["vector_age"] == 20 - 12
    assert learner.numbers()["top_k_overlap"] == notes["refreshes"][-1]["overlap"]


@pytest.mark.slow
def test_new_vectors_are_those_of_the_encoder_at_that_step(place: Path) -> None:
    class Seen(Counting):
        def read(self) -> Vectors:
            self.seen = super().read()
            return self.seen

    refresher = Seen()
    learner, _ = train(settings(place, 10, 0, "optimizer.steps=11"), refresher)
    before = PassageVectors(open_dense(f"{place}/index-encoder", 1, "cpu").vectors, torch.device("cpu"), "index")
    side = _side(learner)
    rows = torch.arange(len(corpus()))[None]
    assert torch.equal(side.vectors.of(rows)[0], torch.from_numpy(refresher.seen))
    assert not torch.allclose(side.vectors.of(rows), before.of(rows), atol=1e-3)
    # One step has been taken since: the encoder is another one again, by a little.
    now = side.of(corpus()).detach()
    assert 0 < float((now - side.vectors.of(rows)[0]).abs().max()) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("step", ["004", "008", "012"])
def test_a_run_that_was_stopped_goes_on_with_the_vectors_that_it_had(place: Path, tmp_path: Path, step: str) -> None:
    """Before the first refresh; while vectors are made that are not in use yet; with others in use."""
    config = settings(place, 6, 3, "checkpoints.every=4")
    whole, whole_state = train(config, Counting(), tmp_path)
    resumed, state = train(config, Counting(), None, tmp_path / step)
    assert state.losses == whole_state.losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


@pytest.mark.slow
def test_a_run_that_was_stopped_within_an_iteration_after_a_refresh_draws_the_same_lists(
    place: Path, tmp_path: Path
) -> None:
    """Lists that were drawn from the old vectors are not there in a resumed run, so no run uses them on."""
    objective = "objective={kind: dro, samples: 4, shown: 2, iteration: 20}"
    config = settings(place, 5, 0, objective, "checkpoints.every=6", "optimizer.lr=0.1")
    whole, whole_state = train(config, Counting(), tmp_path)
    resumed, state = train(config, Counting(), None, tmp_path / "006")
    assert state.losses == whole_state.losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("refresh", [1, 2])
def test_a_refresh_that_dies_is_an_error_and_the_state_is_kept(place: Path, tmp_path: Path, refresh: int) -> None:
    config = settings(place, 6, 1, "checkpoints.every=100")
    at = 6 * refresh + 1
    with refused(Interrupted, "refresh_failed", step=at, reason="its machine is gone"):
        train(config, Counting(dies_at=refresh), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{at:03}"], "a checkpoint of that very step"
    _, state = train(config, Counting(), None, tmp_path / f"{at:03}")
    assert state.losses == train(config, Counting())[1].losses


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("no kernel"), torch.OutOfMemoryError("full"), MemoryError()])
def test_whatever_ends_a_refresh_it_is_that_error_and_the_state_is_kept(
    place: Path, tmp_path: Path, error: Exception
) -> None:
    config = settings(place, 6, 1, "checkpoints.every=100")
    reason = f"{type(error).__name__}: {error}"
    with refused(Interrupted, "refresh_failed", step=7, reason=reason):
        train(config, Counting(1, error), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["007"]


@pytest.mark.slow
def test_new_vectors_that_cannot_be_compared_are_a_refresh_that_failed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Counting):
        def read(self) -> Vectors:
            made = super().read()
            made[2] = np.nan
            return made

    with refused(Interrupted, "refresh_failed", step=6) as raised:
        train(settings(place, 6, 0, "checkpoints.every=100"), Broken(), tmp_path)
    assert isinstance(raised.value.__cause__, RetrievalError)
    assert [path.name for path in tmp_path.iterdir()] == ["006"]


@pytest.mark.slow
def test_a_step_that_fails_when_it_has_taken_new_vectors_in_makes_them_once(place: Path, tmp_path: Path) -> None:
    config = settings(place, 6, 0, "checkpoints.every=100", "objective={kind: jsa}")
    asked = read_asked(config)

    class Fails(RetrieverLearner):
        def candidates(self, batch: Any) -> Any:
            if self._step == 6:
                raise MemoryError
            return super().candidates(batch)

    retriever = open_dense(config.index, config.k, "cpu")
    learner = Fails(config, retriever, ByWord(), len(asked), torch.device("cpu"), refresher=Counting())
    with pytest.raises(MemoryError):
        train_on(learner, asked, config, Kept(tmp_path))
    resumed, state = train(config, Counting(), None, tmp_path / "006")
    whole, whole_state = train(config, Counting())
    assert state.losses == whole_state.losses
    assert _side(resumed).refreshes == _side(whole).refreshes


@pytest.mark.slow
def test_the_new_index_is_of_the_trained_encoder_and_finds_what_answers(place: Path, tmp_path: Path) -> None:
    config = settings(place, 10, 0, f"output={tmp_path}/trained", "optimizer.steps=40")

    def index_anew(corpus_uri: str, encoder: EncoderConfig, output: str) -> str:
        dense = DenseConfig(encoder=encoder, vectors="flat")
        build_dense_index(corpus(), f"{tmp_path}/made", Encoder(encoder, "cpu"), dense)
        return f"{tmp_path}/made"

    learner, state = train(config, Counting())
    learner.product(state).save(tmp_path / "product")
    assert write_trained(config, tmp_path / "product", index_anew) == len(corpus())
    assert found_first(config.output, config) > 0.8
    with open_retriever(config.output) as retriever:
        assert isinstance(retriever, DenseRetriever)
        expected = _side(learner).of(corpus()).detach()
        torch.testing.assert_close(torch.from_numpy(retriever.vectors.copy()), expected, atol=1e-5, rtol=1e-5)
        assert retriever.passages_encoder("cpu").digest() == retriever.passages_digest


@pytest.mark.parametrize("objective", ["{kind: jsa}", "{kind: dro, samples: 4, shown: 2}"])
def test_a_step_with_many_passages_is_the_same_in_passes_of_few_tokens(place: Path, objective: str) -> None:
    def stepped(batch_tokens: int) -> tuple[list[torch.Tensor], list[int]]:
        config = settings(place, 6, 0, f"objective={objective}", f"batch_tokens={batch_tokens}")
        asked = read_asked(config)
        with open_dense(config.index, config.k, "cpu") as retriever:
            refresher = Counting()
            learner = RetrieverLearner(
                config, retriever, ByWord(), len(asked), torch.device("cpu"), refresher=refresher
            )
            parts = [module for module, _ in learner._finder.parts().values()]
            with ExitStack() as stack:
                observing = [stack.enter_context(observed(module)) for module in parts]
                assert learner.step(asked[:6], 1.0).loss is not None
        gradients = [p.grad for module in parts for p in module.parameters() if p.grad is not None]
        return gradients, [tokens for one in observing for tokens in one.tokens]

    expected, whole = stepped(10**6)
    found, passes = stepped(30)
    assert max(whole) > 100 and max(passes) <= 30
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_settings_of_refreshes_that_do_not_hold_together_are_refused(place: Path) -> None:
    with refused_settings("delay_of_refresh"):
        settings(place, 6, 6)
    with refused_settings("corpus_missing"):
        settings(place, 6, 0, f"others=[{{index: {place}/index-encoder, output: {place}/other}}]")


@pytest.mark.parametrize("wrong", ["shorter", "longer", "other order"])
def test_a_corpus_that_is_not_the_indexes_is_found_before_anything_is_trained(
    place: Path, tmp_path: Path, wrong: str
) -> None:
    config = settings(place, 6, 0, f"passages.corpus={tmp_path}/corpus.jsonl")
    with pytest.raises(CorpusError):
        check_indexes(config)
    right = corpus()
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(right))
    check_indexes(config)
    first, *rest = right
    added = Passage("new", "", "text")
    made, at = {
        "shorter": ([first], rest[0].id),
        "longer": ([*right, added], added.id),
        "other order": ([rest[0], first, *rest[1:]], first.id),
    }[wrong]
    (tmp_path / "corpus.jsonl").write_bytes(encode_passages(made))
    with refused(TrainingError, "other_corpus", passage_id=at):
        check_indexes(config)
