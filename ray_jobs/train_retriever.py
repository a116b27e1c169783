"""Job: train a dense index's question encoder by whether its passages help to answer, and the generator beside it.

ray job submit -- python -m ray_jobs.train_retriever --config configs/jobs/retriever-lab.yaml
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from ray_jobs.cluster import cluster, job_main, require_model
from ray_jobs.refreshing import RefresherBeside, check_vectors_place, discard_vectors, index_anew, require_together
from ray_jobs.run_settings import check_made_by_training, check_others, finished_line, is_finished, note_finished
from ray_jobs.train_runner import steps_line, train_until_done
from regrad.storage import Storage
from regrad.training.retriever.artefact import CARD, TRAINED
from regrad.training.retriever.config import RetrieverTrainConfig
from regrad.training.retriever.run import (
    check_indexes,
    check_outputs,
    data_digests,
    results_of,
    retriever_worker,
    write_trained,
)
from regrad.training.workers import Workers


def run(config: RetrieverTrainConfig) -> str:
    """Train, or resume an unfinished run, and write `config.output` and the others; returns one line about it.

    Results of the same settings and data are left as they are. Raises `TrainingError` for those of others.
    """
    Workers(count=config.cluster.workers).check(config.optimizer.batch_size)
    check_outputs(config)
    config.method.check()
    require_model(config.model.path)
    check_indexes(config)
    data = data_digests(config)
    results = results_of(config)
    others = [uri for uri, _ in results if uri != config.output]
    if is_finished(config, data, others=others) and all(Storage(uri).exists(card) for uri, card in results):
        return finished_line(f"retriever at {_places(config)}")

    check_made_by_training(config, results)
    check_vectors_place(config)

    def keep(checkpoint: Path) -> tuple[int, dict[str, Any]]:
        trained = checkpoint / TRAINED
        notes = json.loads((trained / CARD).read_text())["notes"]
        check_others(config, data, others)
        passages = write_trained(config, trained, partial(index_anew, config))
        note_finished(config, data, others)
        discard_vectors(config)  # while the run counts as unfinished, so that a kill here leaves nothing for ever
        return passages, notes

    leaner = "use fewer workers (cluster.workers), a smaller batch_tokens or a smaller k"
    worker = partial(retriever_worker, refresher=RefresherBeside)
    with cluster(*(["deepspeed"] if config.optimizer.zero_stage is not None else [])):
        if config.passages is not None:
            require_together(config)
        passages, notes = train_until_done(config, data, worker, keep, "training the retriever", leaner)
    return _describe(config, passages, notes)


def _describe(config: RetrieverTrainConfig, passages: int, notes: dict[str, Any]) -> str:
    """One line about a run."""
    beside = f"; generator at {config.generator.output}" if config.generator else ""
    return (
        f"retriever at {_places(config)} ({passages} passages): {config.objective.kind} under {config.method.kind}, "
        f"{notes['questions']} questions, {steps_line(notes)}{beside}"
    )


def _places(config: RetrieverTrainConfig) -> str:
    return " and ".join([config.output, *(other.output for other in config.others)])


if __name__ == "__main__":
    job_main(RetrieverTrainConfig, run, __doc__ or "")
