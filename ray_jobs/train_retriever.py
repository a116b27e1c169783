"""Job: train a dense index's question encoder by whether its passages help to answer, and the generator beside it.

ray job submit -- python -m ray_jobs.train_retriever --config configs/jobs/retriever-lab.yaml
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs.cluster import cluster, job_main, require_model
from ray_jobs.refreshing import RefresherBeside, discard_vectors, index_anew, require_together
from ray_jobs.train_runner import steps_line, train_until_done
from regrad.training.retriever.artefact import CARD, TRAINED
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.run import (
    check_indexes,
    check_outputs,
    data_digest,
    retriever_worker,
    write_trained,
)
from regrad.training.workers import Workers


def run(config: RetrieverTrainConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output` and the others; returns one line about it."""
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_outputs(config)
    config.method.check()
    require_model(config.model.path)
    check_indexes(config)

    def keep(checkpoint: Path) -> tuple[int, dict[str, Any]]:
        trained = checkpoint / TRAINED
        notes = json.loads((trained / CARD).read_text())["notes"]
        return write_trained(config, trained, partial(index_anew, config)), notes

    leaner = "use fewer workers (cluster.workers), a smaller batch_tokens or a smaller k"
    data = {"data": data_digest(config)}
    worker = partial(retriever_worker, refresher=RefresherBeside)
    with cluster(*(["deepspeed"] if config.optimizer.zero_stage is not None else [])):
        if config.passages is not None:
            require_together(config)
        passages, notes = train_until_done(config, data, worker, keep, "training the retriever", leaner)
    discard_vectors(config)
    return _describe(config, passages, notes)


def _describe(config: RetrieverTrainConfig, passages: int, notes: dict[str, Any]) -> str:
    """One line about a run."""
    written = " and ".join([config.output, *(other.output for other in config.others)])
    beside = f"; generator at {config.generator.output}" if config.generator else ""
    return (
        f"retriever at {written} ({passages} passages): {config.objective.kind} under {config.method.kind}, "
        f"{notes['questions']} questions, {steps_line(notes)}{beside}"
    )


if __name__ == "__main__":
    job_main(RetrieverTrainConfig, run, __doc__ or "")
