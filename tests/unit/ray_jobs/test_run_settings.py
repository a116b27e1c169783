"""When a training is finished already, and when what is there is another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs.run_settings import (
    FINISHED,
    UNFINISHED,
    as_written,
    check_made_by_training,
    check_others,
    is_finished,
    note_finished,
    run_storage,
)
from ray_jobs.train_runner import run_directory
from regrad.errors import StorageError, TrainingError
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from regrad.training.config import TrainConfig
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.retriever.config import RetrieverTrainConfig
from tests.tools.refusals import refused

DATA = {"tasks": "0123"}


def config(folder: Path, *changes: str) -> TrainConfig:
    values = [f"output={folder}/out", *changes]
    return load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), values)


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A folder with the result of a training."""
    assert not is_finished(config(tmp_path), DATA)
    note_finished(config(tmp_path), DATA)
    return tmp_path


def test_the_same_settings_and_data_have_nothing_left_to_do(finished: Path) -> None:
    free = ["cluster.workers=7", "watch.every=9", "checkpoints.every=3", "optimizer.micro_batch=1"]
    assert is_finished(config(finished), DATA)
    assert is_finished(config(finished, *free), DATA)
    (finished / "out").rename(finished / "moved")
    assert is_finished(config(finished, f"output={finished}/moved"), DATA)
    assert not is_finished(config(finished), DATA)


def test_a_retriever_is_trained_on_with_other_passes(tmp_path: Path) -> None:
    """As where the memory ran out: the way on is a smaller `batch_tokens`."""

    def retriever(*changes: str) -> TrainConfig:
        values = [f"output={tmp_path}/out", *changes]
        return load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), values)

    note_finished(retriever(), DATA)
    assert is_finished(retriever("batch_tokens=512"), DATA)


def test_a_result_of_others_is_kept_unless_it_is_to_be_replaced(finished: Path) -> None:
    for settings, data, keys in (
        (config(finished, "optimizer.lr=0.5", "optimizer.steps=3"), DATA, ["optimizer.lr", "optimizer.steps"]),
        (config(finished), {"tasks": "4567"}, ["data.tasks"]),
    ):
        with refused(TrainingError, "finished_with_other_settings", keys=keys, uri=f"{finished}/out"):
            is_finished(settings, data)
        assert not is_finished(settings, data, replaces=True)
    assert is_finished(config(finished), DATA)


def test_every_result_of_a_run_is_kept_from_a_run_with_other_settings(finished: Path) -> None:
    beside = f"{finished}/beside"
    assert not is_finished(config(finished), DATA, others=[beside])
    note_finished(config(finished), DATA, [beside])
    assert is_finished(config(finished), DATA, others=[beside])
    other = config(finished, f"output={finished}/other", "seed=1")
    with refused(TrainingError, "finished_with_other_settings", uri=beside, keys=["seed"]):
        is_finished(other, DATA, others=[beside])
    assert not is_finished(config(finished, "checkpoints.resume=false", "seed=1"), DATA, others=[beside])


def test_what_another_run_finished_while_one_was_interrupted_is_kept(finished: Path) -> None:
    """Only `output` is locked by its run, and begun to be replaced."""
    beside, interrupted = f"{finished}/beside", config(finished, f"output={finished}/other", "seed=1")
    with run_directory(interrupted, DATA):
        pass
    assert not is_finished(interrupted, DATA, others=[beside])
    note_finished(config(finished), DATA, [beside])
    with refused(TrainingError, "finished_with_other_settings", uri=beside, keys=["seed"]):
        is_finished(interrupted, DATA, others=[beside])
    with refused(TrainingError, "finished_with_other_settings", uri=beside):
        check_others(interrupted, DATA, [beside])
    replacing = config(finished, f"output={finished}/other", "seed=1", "checkpoints.resume=false")
    check_others(replacing, DATA, [beside])
    note_finished(interrupted, DATA, [beside])
    check_others(interrupted, DATA, [beside])


def test_what_no_training_has_made_is_not_replaced_unasked(finished: Path) -> None:
    """Such as a downloaded encoder, or an index of `regrad index`, where a result goes."""
    made = [(f"{finished}/out", "card.json"), (f"{finished}/model", "config.json")]
    check_made_by_training(config(finished), made)
    Storage(f"{finished}/out").write("card.json", b"{}")
    check_made_by_training(config(finished), made)
    Storage(f"{finished}/model").write("config.json", b"{}")
    with refused(StorageError, "occupied", uri=f"{finished}/model"):
        check_made_by_training(config(finished), made)
    check_made_by_training(config(finished, "checkpoints.resume=false"), made)
    with run_directory(config(finished), DATA):  # which may have been interrupted between a result and its note
        check_made_by_training(config(finished), made)


def test_a_run_of_an_older_version_goes_on_unless_it_used_what_it_did_not_note(tmp_path: Path) -> None:
    values = [f"output={tmp_path}/out"]
    retriever = load_settings(RetrieverTrainConfig, builtin_config("jobs/retriever-lab.yaml"), values)
    run_storage(retriever).write(UNFINISHED, as_written(retriever, {"data": "0123"}))
    now = {"data": "0123", "others": None, "method": None}
    with run_directory(retriever, now) as place:
        assert place.resumed
    used = {**now, "others": ["4567"]}
    with refused(TrainingError, "run_of_other_settings", keys=["data.others"]), run_directory(retriever, used):
        pass


def test_a_setting_that_is_newer_than_the_run_counts_if_it_is_not_at_its_default(finished: Path) -> None:
    """Else no run could be taken up after this package was updated."""
    place = finished / "out" / FINISHED
    settings = json.loads(place.read_text())
    del settings["shape"]["in_prompt_probability"], settings["inner"]["acts_on"]
    place.write_text(json.dumps(settings))
    assert is_finished(config(finished), DATA)
    other = config(finished, "shape.in_prompt_probability=0.5")
    with refused(TrainingError, "finished_with_other_settings", keys=["shape.in_prompt_probability"]):
        is_finished(other, DATA)


def test_who_takes_up_nothing_trains_anew(finished: Path) -> None:
    assert not is_finished(config(finished, "checkpoints.resume=false"), DATA)
    assert not is_finished(config(finished, "checkpoints.resume=false", "optimizer.lr=0.5"), DATA)


def test_an_unfinished_run_into_the_same_place_goes_on(finished: Path) -> None:
    """It was begun to replace what is there."""
    other = config(finished, "optimizer.lr=0.5")
    with run_directory(other, DATA):
        pass
    assert run_storage(other).uri == f"{finished}/out.training"
    assert not is_finished(other, DATA)
    with run_directory(other, DATA) as place:
        assert place.resumed
        place.remove()
    with refused(TrainingError, "finished_with_other_settings", keys=["optimizer.lr"]):
        is_finished(other, DATA)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_note_is_said(finished: Path, content: bytes) -> None:
    (finished / "out" / FINISHED).write_bytes(content)
    with refused(TrainingError, "run_damaged", uri=f"{finished}/out"):
        is_finished(config(finished), DATA)
