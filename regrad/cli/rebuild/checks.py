"""What can be found wrong before a rebuild begins: each is one sentence now, not after hours."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from ray_jobs.cluster import require_workers
from regrad.data.corpora import read_passages
from regrad.data.question_sets import read_questions
from regrad.errors import CorpusError, EvaluationError, RebuildError
from regrad.rebuild.config import RebuildConfig
from regrad.rebuild.steps import check_writable
from regrad.retrieval.java import java_home
from regrad.settings import WorkersConfig
from regrad.storage import Storage
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.task_plan import files_of
from regrad.training.workers import Workers


def check_before(config: RebuildConfig) -> None:
    """Raise the first thing that a step would fail by: what is missing, empty or cannot be written."""
    check_writable(Storage(config.output))
    if config.serving is not None:
        check_writable(Storage(config.serving.releases.rpartition("/")[0]))
    _check_libraries(config)
    if next(read_passages(config.corpus), None) is None:
        raise CorpusError(f"{config.corpus}: the corpus is empty", code="empty", uri=config.corpus)
    for one in config.eval.sets:
        if not read_questions(one):
            raise EvaluationError(f"set {one.name!r}: {one.path} has no question", code="no_question", set=one.name)
    if config.train is not None:
        _check_training(config.train)


def check_workers(config: RebuildConfig) -> None:
    """Raise `ClusterError` if a cluster that cannot grow lacks what any of the steps needs; Ray is running."""
    for workers in _workers(config):
        require_workers(workers)


def _workers(config: RebuildConfig) -> Iterator[WorkersConfig]:
    if config.train is not None:
        yield config.train.cluster
    yield config.build.cluster
    yield config.eval.cluster


def _check_training(config: MetaTrainConfig) -> None:
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    files_of(config)


def _check_libraries(config: RebuildConfig) -> None:
    wanted = {}
    if config.train is not None and config.train.optimizer.zero_stage is not None:
        wanted["deepspeed"] = "train.optimizer.zero_stage is set"
    if any(one.dense or one.rerank for one in config.index):
        wanted["sentence_transformers"] = "an index is dense or reranked"
    for name, why in wanted.items():
        if find_spec(name) is None:
            raise RebuildError(
                f"{name} is not installed, and {why}; install it (constraints.txt has its version)",
                code="library_missing",
                library=name,
            )
    if any(one.corpus is not None and one.dense is None for one in config.index):
        java_home()
