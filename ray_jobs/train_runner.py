"""A training run under Ray Train: its directory and checkpoints, fitting until it is done, and its workers' listener.

What a run leaves when it is interrupted is its settings and Ray Train's checkpoints. A lost worker and a lost driver
are resumed in the same way: by fitting again on the same directory.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, Protocol, TypeVar

from fsspec.implementations.local import LocalFileSystem
from pyarrow import PythonFile
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray import train
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import Checkpoint as RayCheckpoint
from ray.train import CheckpointConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from ray_jobs._ray_compat.core import allocator
from ray_jobs._ray_compat.train import CHECKPOINT_LIST, TrainerWithoutCleaner
from ray_jobs.cluster import cluster, joined, require_workers, wants_gpu
from ray_jobs.progress import progress_channel
from ray_jobs.run_settings import UNFINISHED, as_written, check_unfinished, note_finished, run_storage
from ray_jobs.waiting import release, reservation_logged, reservations
from regrad.errors import RegradError, TrainingError
from regrad.locking import exclusive
from regrad.storage import Storage, check_replaceable
from regrad.training.callbacks import StepReport
from regrad.training.checkpoint import DevScore, TrainCheckpoint
from regrad.training.config import TrainConfig
from regrad.training.trackers import Watcher, make_sinks
from regrad.training.workers import Workers

Kept = TypeVar("Kept")
P = TypeVar("P", bound="Savable")
logger = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints"
_REASON = 300  # characters


@contextmanager
def run_directory(config: TrainConfig, data: dict[str, Any], best_by: str | None = None) -> Iterator[RunDirectory]:
    """The run's directory, locked for this driver; raises `TrainingError` if another driver trains into it now.

    The checkpoints with the highest `best_by` are kept; without it, the newest.
    """
    storage = run_storage(config)

    def busy(holder: str) -> TrainingError:
        return TrainingError(
            f"another run is training into {config.output} now; wait for it, or choose another output (it is {holder})",
            code="run_in_progress",
            output=config.output,
        )

    with exclusive(storage, busy):
        check_replaceable(storage.uri, UNFINISHED)
        yield RunDirectory(config, data, storage, best_by)


class RunDirectory:
    """Where an unfinished run can be resumed. Raises `TrainingError` if it has other settings or data."""

    def __init__(self, config: TrainConfig, data: dict[str, Any], storage: Storage, best_by: str | None = None) -> None:
        self._keep = config.checkpoints.keep
        self._best_by = best_by
        self.storage = storage
        if not config.checkpoints.resume:
            self.remove()
        self.resumed = storage.exists(UNFINISHED)
        if self.resumed:
            check_unfinished(storage, config, data)
        else:
            storage.write(UNFINISHED, as_written(config, data))

    def run_config(self) -> RunConfig:
        """Where Ray Train puts checkpoints, and which it keeps."""
        best = {"checkpoint_score_attribute": self._best_by, "checkpoint_score_order": "max"} if self._best_by else {}
        # A step makes and drops thousands of tensors of other sizes than the last one's. glibc searches what is free
        # longer with every step (of a real model's time 20% after 60 tasks, 40% after 700) and keeps more of it.
        environment = {"env_vars": found} if (found := allocator()) else None
        handler = WholeFiles() if self.storage.is_local else FSSpecHandler(self.storage.fs)
        return RunConfig(
            name=_CHECKPOINTS,
            storage_path=self.storage.root,
            storage_filesystem=PyFileSystem(handler),
            checkpoint_config=CheckpointConfig(num_to_keep=self._keep, **best),
            worker_runtime_env=environment,
        )

    def remove(self) -> None:
        """Remove the files of the run, and the directory if it has no others."""
        Storage(f"{self.storage.uri}/{_CHECKPOINTS}").remove()
        self.storage.remove_file(UNFINISHED)
        if not self.storage.list():
            self.storage.remove()

    def mark(self) -> bytes:
        """Changes when a new checkpoint is complete: Ray's list of them, without what a failed upload left."""
        name = f"{_CHECKPOINTS}/{CHECKPOINT_LIST}"
        return self.storage.read(name) if self.storage.exists(name) else b""


class WholeFiles(FSSpecHandler):  # type: ignore[misc]
    """A local file system that writes beside a file and renames when it is closed.

    Ray Train writes its list of checkpoints in place. Killed at that moment it would leave an empty list, from which no
    run can be resumed.
    """

    def __init__(self) -> None:
        super().__init__(LocalFileSystem())

    def open_output_stream(self, path: str, metadata: Any) -> PythonFile:
        """See pyarrow's handler."""
        return PythonFile(_Beside(path), mode="w")


class _Beside(io.FileIO):
    def __init__(self, path: str) -> None:
        self._path, self._beside = path, f"{path}.{uuid.uuid4().hex[:8]}.part"
        super().__init__(self._beside, "wb")

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.replace(self._beside, self._path)


def fit_until_done(
    worker: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    config: TrainConfig,
    place: RunDirectory,
    what: str,
    leaner: str,
    **data: Any,
) -> Result:
    """Run `worker(settings)` on all workers until it is done; `data` goes to Ray Train (`datasets` and so on).

    `leaner` says how `what` needs less memory.

    A lost worker costs the steps since the last checkpoint. Raises `TrainingError` after more than
    `checkpoints.max_failures` losses without a new checkpoint between them. An error of ours is raised at once, as
    itself: it would come again.
    """
    cluster = config.cluster
    scaling = ScalingConfig(
        num_workers=cluster.workers,
        use_gpu=wants_gpu(cluster),
        resources_per_worker={"CPU": cluster.cpus_per_worker, **cluster.resources},
    )
    # Ray Train's cleaner frees what a dead driver held. A cluster of our own ends with its driver, and has no
    # dashboard, which the cleaner asks: every training would wait 12 s for it at its end.
    trainer_class = TorchTrainer if joined() else TrainerWithoutCleaner
    if place.resumed:
        logger.info("resuming the unfinished run at %s", place.storage.uri)
    failures, mark = 0, place.mark()
    earlier = reservations()
    while True:
        # A trainer fits once: another attempt needs another trainer, which finds the checkpoints of the last one.
        trainer = trainer_class(
            worker, train_loop_config=settings, scaling_config=scaling, run_config=place.run_config(), **data
        )
        try:
            with reservation_logged(cluster):
                return trainer.fit()
        # Where memory runs out, Ray ends a worker, or the process that looks after all of them; that can be lost in
        # other ways, too, with its node. Then the error is none of training's.
        except (TrainingFailedError, OutOfMemoryError, RayActorError) as error:
            cause = _cause(error)
            reason = _reason(cause, leaner)
            failures = 1 if place.mark() != mark else failures + 1
            if isinstance(cause, RegradError) or failures > config.checkpoints.max_failures:
                raise _failure(cause, reason, what, place) from error
            mark = place.mark()
            # If the process that looks after the workers is gone, nobody else frees their room.
            release(reservations() - earlier)
            logger.warning("a worker was lost (%s); resuming from the last checkpoint", reason)


def _failure(cause: BaseException, reason: str, what: str, place: RunDirectory) -> BaseException:
    """What to raise when no further attempt is made."""
    if isinstance(cause, RegradError):
        return cause
    text = f"{what} failed: {reason}; what was done is kept in {place.storage.uri}: run it again to resume"
    if isinstance(cause, OutOfMemoryError):
        return TrainingError(text, code="out_of_memory")
    return TrainingError(text, code="worker_failed", reason=reason)


class Savable(Protocol):
    """What a run makes, which can be written anywhere."""

    def save(self, uri: str, /) -> None:
        """Write the directory, whole or not at all."""


def saved(load: Callable[[Path], P], name: str, config: TrainConfig, data: dict[str, Any]) -> Callable[[Path], P]:
    """A `keep` of `train_until_done`: the product of this name in the checkpoint, written at the run's output."""

    def keep(checkpoint: Path) -> P:
        product = load(checkpoint / name)
        product.save(config.output)
        note_finished(config, data)
        return product

    return keep


def steps_line(notes: Mapping[str, Any]) -> str:
    """The steps that a product's notes have, those that were skipped, and the last loss."""
    skipped = f", {notes['skipped_steps']} skipped" if notes["skipped_steps"] else ""
    loss = f", loss {notes['losses'][-1]:.4f}" if notes["losses"] else ""
    return f"{notes['steps']} steps{skipped}{loss}"


def train_until_done(
    config: TrainConfig,
    data: dict[str, Any],
    worker: Callable[..., Any],
    keep: Callable[[Path], Kept],
    what: str,
    leaner: str = "use fewer workers (cluster.workers), or start again with a smaller optimizer.batch_size",
) -> Kept:
    """A whole run, or the rest of an unfinished one, of what is trained on one list of items.

    Each worker calls `worker(config, listener, device, workers, checkpoint)`. `keep` gets the directory of the last
    checkpoint and writes what is wanted of it; only then are the run's files removed. Raises as `run_directory` and
    `fit_until_done`.
    """

    def on_worker(settings: dict[str, Any]) -> None:
        listener, device = WorkerReporter(settings["progress"]), train.torch.get_device()
        worker(config, listener, device, workers_of_run(), checkpoint_to_resume())

    with cluster():
        require_workers(config.cluster)
        with run_directory(config, data) as place, watching(config) as progress:
            result = fit_until_done(on_worker, {"progress": progress}, config, place, what, leaner)
            with checkpoint_of(result.checkpoint, what, result).as_directory() as folder:
                kept = keep(Path(folder))
            place.remove()
    return kept


def checkpoint_of(checkpoint: RayCheckpoint | None, what: str, result: Result) -> RayCheckpoint:
    """The checkpoint of a result; raises `TrainingError` if there is none."""
    if checkpoint is None:
        raise TrainingError(f"{what} made no checkpoint: {result.error}", code="no_checkpoint")
    return checkpoint


def _reason(cause: BaseException, leaner: str) -> str:
    """In one line, which ends with a whole word."""
    if isinstance(cause, OutOfMemoryError):
        return f"the memory of its machine ran out, and Ray ended it: {leaner}"
    lines = str(cause).strip().splitlines() or [""]
    return f"{type(cause).__name__}: {shorten(lines[-1], _REASON, placeholder=' ...')}"


def _cause(error: Exception) -> BaseException:
    """What went wrong in the first worker that failed, or in the process that looks after them: an error of ours, or a
    lack of memory, if there is one among them."""
    by_rank: dict[int, Any] = getattr(error, "worker_failures", None) or {}
    found = [*by_rank.values(), getattr(error, "controller_failure", None) or error]
    failures: list[BaseException] = [getattr(failure, "cause", None) or failure for failure in found]
    telling = [failure for kind in (RegradError, OutOfMemoryError) for failure in failures if isinstance(failure, kind)]
    return [*telling, *failures][0]


@contextmanager
def watching(config: TrainConfig) -> Iterator[Any]:
    """On the driver: log lines, and numbers for the configured trackers; gives the handle that workers push to."""
    sinks = make_sinks(config.watch, config.output, config.model_dump(mode="json"))
    with closing(Watcher(logger.info, sinks)) as watcher, progress_channel(watcher) as progress:
        yield progress


def workers_of_run() -> Workers:
    """On a worker: its place among all of them."""
    context = train.get_context()
    return Workers(context.get_world_rank(), context.get_world_size(), context.get_local_world_size())


@contextmanager
def checkpoint_to_resume() -> Iterator[Path | None]:
    """On a worker: a directory with the checkpoint to resume from, if there is one."""
    if found := train.get_checkpoint():
        with found.as_directory() as folder:
            yield Path(folder)
    else:
        yield None


class WorkerReporter:
    """One worker's `Listener`: the first tells the driver, and checkpoints go through Ray Train."""

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._first = train.get_context().get_world_rank() == 0

    def note(self, text: str) -> None:
        """See `Listener`."""
        self._tell(text)

    def report(self, report: StepReport) -> None:
        """See `Listener`."""
        self._tell(report)

    def scored(self, score: DevScore) -> None:
        """See `Listener`."""
        self._tell(score)

    def checkpoint(self, checkpoint: TrainCheckpoint) -> None:
        """Give it to Ray Train, with the scores by which Ray keeps the best; waits until all workers are here."""
        score = checkpoint.state.latest_score
        scores = {f"dev_{name}": number for name, number in score.values.items()} if score else {}
        metrics = {"step": checkpoint.state.step, **scores}
        # `train.report` is a barrier: the other workers call it without a checkpoint.
        if not self._first:
            train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder) / "checkpoint")
            train.report(metrics, checkpoint=RayCheckpoint.from_directory(f"{folder}/checkpoint"))

    def _tell(self, item: Any) -> None:
        if self._first:
            self._progress.push.remote(item)
