"""Job: index a corpus with Lucene on some node of the cluster.

ray job submit -- python -m ray_jobs.index_corpus --config configs/jobs/index-lab.yaml
"""

from __future__ import annotations

from ray_jobs.cluster import cluster, run_task
from ray_jobs.entry import main
from regrad.config import IndexConfig
from regrad.corpus import read_passages
from regrad.retrieval.lucene import build_index


def run(config: IndexConfig) -> str:
    """Index the corpus; returns one line saying what was made and where."""
    next(read_passages(config.corpus), None)
    with cluster():
        count = run_task(_index, config.corpus, config.output, config.threads, num_cpus=1)
    return f"BM25 index at {config.output}: {count} passages"


def _index(corpus: str, output: str, threads: int) -> int:
    return build_index(read_passages(corpus), output, threads)


if __name__ == "__main__":
    main(IndexConfig, run, __doc__ or "")
