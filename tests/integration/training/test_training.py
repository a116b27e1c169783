"""Meta-training as a job: the same result as one process, data through Ray Data, and what happens when things die."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ray_jobs import meta_train
from ray_jobs.task_stream import open_stream, worker_steps
from ray_jobs.train_runner import RunDirectory, run_directory
from regrad.data.tasks import Task, read_tasks
from regrad.errors import CorpusError, StorageError, TrainingError
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.meta_init import MetaInit
from regrad.models.loading import load_language_model
from regrad.settings import builtin_config, load_settings
from regrad.storage import Storage
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.optim import MetaParameters, PlainEngine
from regrad.training.meta.task_plan import TasksInMemory
from regrad.training.meta.trainer import MetaLearner, meta_loop, meta_train_in_process
from regrad.training.sampler import Sampler, SampleSource
from regrad.training.workers import Workers
from tests.integration.conftest import BIN, environment
from tests.tools.fork_server import forks
from tests.tools.patience import Deadline, patient
from tests.tools.refusals import refused

STEPS = 60
LONG = (f"optimizer.steps={STEPS}", "checkpoints.every=6", "watch.every=2")
_MARK = "REGRAD_TEST_MARK"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    write_lab(LabConfig(output=str(folder), task_records=12, people_per_record=3))
    return folder


def settings(lab: Path, folder: Path, *extra: str) -> MetaTrainConfig:
    values = [f"tasks={lab}/tasks.jsonl", "dev=null", f"output={folder}/m", "optimizer.steps=4"]
    values += ["strategy.name=graph", *extra]
    return load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), values)


def test_two_workers_train_what_one_process_trains_and_leave_nothing_behind(
    lab: Path, s3: str, local_cluster: str
) -> None:
    """The hand-over, the checkpoints and the result are on an object store."""
    output = f"{s3}/trained"
    config = settings(lab, Path("unused"), f"output={output}", f"dev={lab}/dev.jsonl")
    lm = load_language_model(config.model, "cpu")
    parameters = MetaParameters(lm.subspace, config.inner, config.seed)
    start = parameters.phi0.detach().clone()
    learner = MetaLearner(lm, PlainEngine(parameters, config.optimizer), config, lm.identity())
    loop = meta_loop(learner, config, [read_tasks(uri) for uri in config.dev])
    alone = learner.product(loop.run(TasksInMemory.read(config).steps()))
    line = meta_train.run(config)
    shared = MetaInit.load(output)
    score = shared.notes["dev"][0]
    expected = f"4 steps, dev EM {score['exact_match']:.3f}, F1 {score['f1']:.3f}"
    right, other, none = (score[f"loss_{name}"] for name in ("right", "other", "none"))
    losses = f"outer loss {right:.3f} (another task's passages {other:.3f}, none {none:.3f})"
    assert line == f"MetaInit {shared.fingerprint} at {output}: {expected}, {losses}"
    assert sorted(name for name in Storage(s3).list() if "trained" in name) == ["trained", "trained.logs"]
    assert [name for name in Storage(f"{output}.logs").list() if "tfevents" in name]
    # AdamW divides by the root of the squared gradient: where that is tiny, float32 rounding of the average shows.
    assert (shared.phi0 - alone.phi0).norm() / (alone.phi0 - start).norm() < 2e-2
    torch.testing.assert_close(shared.step_sizes, alone.step_sizes, rtol=1e-3, atol=1e-3)
    assert shared.notes["losses"] == pytest.approx(alone.notes["losses"], rel=1e-2)
    assert shared.notes["tasks"] == [{"uri": config.tasks[0].uri, "weight": None, "tasks": 12}]
    assert score["exact_match"] == pytest.approx(alone.notes["dev"][0]["exact_match"], abs=0.05)
    assert shared.notes["parent"] is None


def test_training_goes_on_from_another_meta_init_on_another_domain(
    lab: Path, tmp_path: Path, local_cluster: str
) -> None:
    """With ZeRO 3 and several of the settings at once; the card names the parent and the data."""
    first = settings(lab, tmp_path, "optimizer.steps=2")
    parent = meta_train_in_process(first)
    parent.save(first.output)
    mixed = [{"uri": f"{lab}/tasks.jsonl", "weight": 3}, {"uri": f"{lab}/dev.jsonl", "weight": 1}]
    extra = [f"tasks={json.dumps(mixed)}", f"start_from={first.output}", f"output={tmp_path}/next"]
    extra += ["optimizer.zero_stage=3", "strategy.name=auto", "shape.distractor_probability=0.5"]
    extra += ["shape.in_prompt=true", "shape.bad_tasks=skip", "shape.max_tokens=250", "inner.step_size_space=log"]
    extra += ["optimizer.micro_batch=1", "optimizer.schedule=cosine", "optimizer.steps=2"]
    meta_train.run(settings(lab, tmp_path, *extra))
    child = MetaInit.load(f"{tmp_path}/next")
    assert child.notes["parent"] == parent.fingerprint
    assert [source["weight"] for source in child.notes["tasks"]] == [3.0, 1.0]
    moved = (child.phi0 - parent.phi0).abs().max()
    assert 0 < moved < 0.05, "it began where the parent ended"


def test_the_stream_is_the_order_of_the_seed_whatever_the_files_and_the_workers(
    lab: Path, tmp_path: Path, local_cluster: str
) -> None:
    records = [json.loads(line) for line in (lab / "tasks.jsonl").read_text().splitlines()]
    tasks = [{**record, "id": f"t{i:02}"} for i, record in enumerate(records)]
    folder = tmp_path / "mixed"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(tasks[:5]), folder / "a.parquet")
    (folder / "b.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks[5:]))
    config = settings(lab, tmp_path, f"tasks={folder}", "optimizer.steps=14")
    stream = open_stream(config)
    order = [draw.number for draw in Sampler([SampleSource(12, f"{config.seed}/0")], 2).draws(0, 28)]
    expected = [[f"t{order[2 * step]:02}", f"t{order[2 * step + 1]:02}"] for step in range(14)]
    assert ids(worker_steps(stream.draws.iterator(), config, 0, Workers())) == expected
    for rank in range(2):
        found = ids(worker_steps(stream.draws.iterator(), config, 5, Workers(rank, 2)))
        assert found == [[step[rank]] for step in expected[5:]], "from any step on, this worker's share"
    assert stream.plan.summary == [{"uri": str(folder), "weight": None, "tasks": 12}]
    epochs = open_stream(settings(lab, tmp_path, f"tasks={folder}", "optimizer.epochs=1.5")).plan.config.optimizer
    assert epochs.steps == 9, "one and a half times twelve tasks, two at a time"


def test_a_job_lays_out_the_tasks_that_one_process_draws(lab: Path, tmp_path: Path, local_cluster: str) -> None:
    """Distractors, several sources and another number of steps included."""
    mixed = [{"uri": f"{lab}/tasks.jsonl", "weight": 3}, {"uri": f"{lab}/dev.jsonl", "weight": 1}]
    extra = [
        f"tasks={json.dumps(mixed)}",
        "shape.distractor_probability=0.5",
        "shape.questions=2",
        "optimizer.epochs=2",
    ]
    config = settings(lab, tmp_path, *extra)
    stream, tasks = open_stream(config), TasksInMemory.read(config)
    assert stream.plan == tasks.plan
    for workers in (Workers(), Workers(1, 2)):
        laid_out = worker_steps(stream.draws.iterator(), stream.plan.config, 2, workers)
        assert list(laid_out) == list(tasks.steps(2, workers))


def ids(steps: Iterator[list[Task]]) -> list[list[str]]:
    return [[task.id for task in tasks] for tasks in steps]


def test_bad_tasks_are_fatal_with_their_line_or_skipped_and_counted(
    lab: Path, tmp_path: Path, local_cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (lab / "tasks.jsonl").read_text().splitlines()
    named = [json.dumps({**json.loads(line), "id": "same"}) for line in lines[:2]]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*named, '{"passages": []}', *lines[2:5]]) + "\n")
    config = settings(lab, tmp_path, f"tasks={bad}")
    with refused(CorpusError, "bad_task", place=f"{bad} line 3", bad=2):
        open_stream(config)
    stream = open_stream(settings(lab, tmp_path, f"tasks={bad}", "shape.bad_tasks=skip"))
    assert stream.plan.summary[0]["tasks"] == 4
    assert "line 2: task id 'same' is also at" in caplog.text
    assert "2 of 6 tasks are skipped" in caplog.text
    with refused(CorpusError, "no_tasks", uri=str(bad)):
        bad.write_text("{}\n")
        open_stream(settings(lab, tmp_path, f"tasks={bad}", "shape.bad_tasks=skip"))


def test_a_batch_that_workers_cannot_share_is_a_clear_error(lab: Path, tmp_path: Path) -> None:
    config = settings(lab, tmp_path, "optimizer.batch_size=3")
    with refused(TrainingError, "batch_not_divisible", batch_size=3, workers=2):
        meta_train.run(config)
    assert not (tmp_path / "m").exists()


def test_a_loss_that_diverges_stops_the_run_at_once_with_a_clear_error(
    lab: Path, tmp_path: Path, local_cluster: str
) -> None:
    extra = ("inner.initial_step_size=1e30", "cluster.workers=1", "optimizer.max_bad_steps=2")
    with refused(TrainingError, "not_finite", step=2, times=2):
        meta_train.run(settings(lab, tmp_path, *extra))
    assert not (tmp_path / "m").exists()


def test_a_run_with_other_settings_or_data_is_not_resumed(lab: Path, tmp_path: Path) -> None:
    def opened(digest: str, *extra: str) -> bool:
        with run_directory(settings(lab, tmp_path, *extra), {"tasks": digest}) as place:
            return place.resumed

    assert not opened("data")
    assert opened("data", "watch.every=7", "cluster.workers=1")
    with refused(TrainingError, "run_of_other_settings", keys=["optimizer.lr"]):
        opened("data", "optimizer.lr=0.1")
    with refused(TrainingError, "run_of_other_settings", keys=["data.tasks"]):
        opened("other")
    assert not opened("data", "optimizer.lr=0.1", "checkpoints.resume=false")
    (tmp_path / "m.training" / "run.json").write_text("{")
    with refused(TrainingError, "run_damaged"):
        opened("data", "optimizer.lr=0.1")


def test_two_drivers_do_not_train_into_one_place(lab: Path, tmp_path: Path) -> None:
    """Not even one that would discard what the other has done."""
    config = settings(lab, tmp_path)
    fresh = settings(lab, tmp_path, "checkpoints.resume=false")
    with run_directory(config, {}):
        with refused(TrainingError, "run_in_progress"), run_directory(fresh, {}):
            pass
        assert (tmp_path / "m.training" / "run.json").exists()
    with run_directory(config, {}) as place:
        assert place.resumed
    assert not (tmp_path / "m.training.lock").exists()


def test_what_a_failed_upload_leaves_does_not_count_as_a_new_checkpoint(lab: Path, tmp_path: Path) -> None:
    """Otherwise a run whose disk is full would be tried again for ever."""
    with run_directory(settings(lab, tmp_path), {}) as place:
        before = place.mark()
        place.storage.write("checkpoints/checkpoint_half/state.safetensors", b"half")
        assert place.mark() == before
        place.storage.write("checkpoints/checkpoint_manager_snapshot.json", b"{}")
        assert place.mark() != before


def test_a_directory_that_is_something_else_is_left_alone(lab: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m.training"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for extra in ((), ("checkpoints.resume=false",)):
        config = settings(lab, tmp_path, *extra)
        with refused(StorageError, "occupied"), run_directory(config, {}):
            pass
    assert (folder / "thesis.tex").read_text() == "years of work"
    (folder / "thesis.tex").unlink()
    with run_directory(settings(lab, tmp_path), {}) as place:
        (folder / "notes.txt").write_text("mine")
        place.remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_file_that_cannot_be_read_is_one_error_even_when_bad_tasks_are_skipped(
    lab: Path, tmp_path: Path, local_cluster: str
) -> None:
    for name in ("broken.parquet", "broken.jsonl.gz"):
        (tmp_path / name).write_bytes(b"PAR1 garbage")
        with refused(CorpusError, "file_unreadable", uri=f"{tmp_path}/{name}"):
            open_stream(settings(lab, tmp_path, f"tasks={tmp_path}/{name}", "shape.bad_tasks=skip"))


def test_a_run_that_was_killed_after_its_last_step_only_has_to_be_saved(
    lab: Path, tmp_path: Path, local_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(lab, tmp_path, "cluster.workers=1", "optimizer.zero_stage=null")
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "remove", lambda self: None)
        meta_train.run(config)
    done = MetaInit.load(config.output)
    shutil.rmtree(config.output)
    line = meta_train.run(config)
    found = MetaInit.load(config.output)
    assert found.fingerprint == done.fingerprint
    assert not (tmp_path / "m.training").exists()
    assert meta_train.run(config).startswith(f"finished already: {line}; ")
    other = config.model_copy(update={"seed": config.seed + 1})
    with refused(TrainingError, "finished_with_other_settings", keys=["seed"]):
        meta_train.run(other)
    assert MetaInit.load(config.output).notes == found.notes, "it was not trained again"
    meta_train.run(other, replaces=True)
    assert MetaInit.load(config.output).fingerprint != found.fingerprint


class Run:
    """`regrad train` as a user runs it, in a process group of its own, found again by a mark in its environment."""

    def __init__(self, lab: Path, folder: Path) -> None:
        self.mark, self.folder = uuid.uuid4().hex, folder
        self.output: list[str] = []
        values = [f"tasks={lab}/tasks.jsonl", "dev=null", f"output={folder}/m", "strategy.name=graph", *LONG]
        options = [part for value in values for part in ("--set", value)]
        self.process = subprocess.Popen(
            [str(BIN / "regrad"), "train", *options],
            env=environment(**{_MARK: self.mark}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        threading.Thread(target=lambda: self.output.extend(self.process.stdout or ()), daemon=True).start()

    def wait(self, done: Callable[[], bool], seconds: float = 240) -> None:
        deadline = Deadline(seconds)
        while not done():
            if deadline.over or (self.process.poll() is not None):
                pytest.fail("the run did not get there:\n" + "".join(self.output[-20:]), pytrace=False)
            time.sleep(0.05)

    def checkpoint(self) -> int:
        """The step of the last complete checkpoint."""
        listed = self.folder / "m.training" / "checkpoints" / "checkpoint_manager_snapshot.json"
        found = json.loads(listed.read_text())["latest_checkpoint_result"] if listed.exists() else None
        return int(found["metrics"]["step"]) if found else 0

    def running(self, kind: str) -> list[psutil.Process]:
        """The actors of this kind in this run, such as its training workers."""
        return [p for p in self.processes() if kind in " ".join(_command(p))]

    def processes(self) -> list[psutil.Process]:
        """Everything that this run started, and what was forked for it."""
        forked = {fork.pid for fork in forks() if fork.environment.get(_MARK) == self.mark}
        return [p for p in psutil.process_iter() if p.pid in forked or _mark(p) == self.mark]


def _mark(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(_MARK)
    except psutil.Error:
        return None


def _command(process: psutil.Process) -> list[str]:
    try:
        return [process.name(), *process.cmdline()]
    except psutil.Error:
        return []


def shown(lines: Iterable[str]) -> list[int]:
    """The steps of which these lines tell."""
    return [int(line.split("step ")[1].split("/")[0]) for line in lines if "  loss " in line]


@pytest.fixture(scope="module")
def undisturbed(lab: Path, local_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> MetaInit:
    folder = tmp_path_factory.mktemp("undisturbed")
    meta_train.run(settings(lab, folder, *LONG))
    return MetaInit.load(folder / "m")


def test_after_killed_worker_controller_and_driver_the_result_is_the_same_to_the_last_bit(
    lab: Path, tmp_path: Path, undisturbed: MetaInit, caplog: pytest.LogCaptureFixture
) -> None:
    """The runs that nobody kills are made in this process, on the cluster that is there."""
    run = Run(lab, tmp_path)
    try:
        run.wait(lambda: run.checkpoint() >= 12)
        for kind in ("TrainWorker", "TrainController"):
            run.running(kind)[-1].send_signal(signal.SIGKILL)
            reached = run.checkpoint() + 12
            run.wait(lambda reached=reached: run.checkpoint() >= reached)  # type: ignore[misc]
        for worker in run.running("TrainWorker"):
            worker.suspend()  # or they would train to the end without their driver
        everything = run.processes()
        os.kill(run.process.pid, signal.SIGKILL)
        run.process.wait(patient(10))
        psutil.wait_procs(everything, timeout=3)  # some end with their driver
    finally:
        for process in run.processes():
            process.kill()
    assert "".join(run.output).count("a worker was lost") == 2, "and replaced"
    assert sorted(step for step in shown(run.output) if step <= 12) == [2, 4, 6, 8, 10, 12], "none was done again"
    assert not (tmp_path / "m").exists()
    with caplog.at_level("INFO"):
        meta_train.run(settings(lab, tmp_path, *LONG))
    assert "resuming the unfinished run" in caplog.text
    assert reached < min(shown(caplog.messages)) < STEPS, "it began after the last checkpoint"
    found = MetaInit.load(tmp_path / "m")
    assert found.notes["losses"] == undisturbed.notes["losses"]
    assert found.fingerprint == undisturbed.fingerprint
    assert not (tmp_path / "m.training").exists()
