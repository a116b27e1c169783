"""What an import costs: transformers and torch are loaded by the processes that need them alone."""

from __future__ import annotations

import sys

import pytest

from regrad.retrieval.base import RETRIEVERS
from tests.tools.patience import completed

BANK = [f"regrad.bank.{name}" for name in ("reader", "writer", "maintenance")]
JOBS = ("meta_train", "finetune", "train_adapters", "build_bank", "synthesize", "evaluate")
COMMANDS = ("serve", "trial", "demo", "jobs", "bank", "submit", "passages")
LIGHT_JOBS = [f"ray_jobs.{name}" for name in ("progress", "waiting", "corpus_blocks", "index_corpus", "make_tasks")]
KINDS = sorted({kind.partition(":")[0] for kind in RETRIEVERS.values()})
REPLICAS = [f"serve_app.{name}" for name in ("config", "evidence", "gateway")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        pytest.param(BANK, "transformers", id="a bank"),
        pytest.param(
            [f"ray_jobs.{name}" for name in JOBS], "transformers.modeling_utils", id="a job without a model here"
        ),
        pytest.param(LIGHT_JOBS, "torch", id="what cuts a corpus, indexes it and tells of progress"),
        pytest.param(["ray_jobs.cell_actors"], "matplotlib", id="a worker of an evaluation"),
        pytest.param([f"regrad.cli.{name}" for name in COMMANDS], "torch", id="a question at the command line"),
        pytest.param(["regrad.cli.main"], "ray", id="the list of verbs, without Ray"),
        pytest.param(["regrad.cli.main"], "torch", id="the list of verbs"),
        pytest.param(REPLICAS, "transformers", id="a replica without a model"),
        pytest.param(["regrad.retrieval.lucene_worker"], "torch", id="a search engine"),
        pytest.param(KINDS, "torch", id="a kind of index"),
        pytest.param(KINDS, "faiss", id="a kind of index, without FAISS"),
    ],
)
def test_it_does_without(modules: list[str], unwanted: str) -> None:
    code = (
        f"import sys\nfor name in {modules}:\n    __import__(name)\n    assert {unwanted!r} not in sys.modules, name\n"
    )
    done = completed([sys.executable, "-c", code], 60)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_searching_loads_none_of_pyserinis_other_searchers(tmp_path: object) -> None:
    code = (
        "import sys\n"
        "from regrad.retrieval.lucene_worker import Lucene\n"
        "lucene, folder = Lucene(), sys.argv[1]\n"
        "lucene.begin(folder, 1, ['contents'], 'en')\n"
        'lucene.add([\'{"id": "a", "contents": "hello"}\'])\n'
        "lucene.finish(folder, 1)\n"
        "lucene.open('x', folder, 0.9, 0.4)\n"
        "assert lucene.search('x', ['hello'], 1, {'contents': 1.0})[0][0][0] == 'a'\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
    )
    done = completed([sys.executable, "-c", code, f"{tmp_path}/index"], 60)
    assert done.returncode == 0, done.stderr
