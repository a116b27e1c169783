"""`regrad submit` on a cluster started with `ray start`. In this process, as each start of a command takes seconds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from regrad.cli.main import regrad
from regrad.errors import ClusterError
from tests.integration.conftest import RayCluster
from tests.tools.refusals import refused


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a corpus and a configuration; what the job makes is put beside it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    passages = [{"id": f"b{row}", "title": "Bo", "text": f"Bo has {row} boats."} for row in range(10)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in passages))
    (folder / "index.yaml").write_text(f"corpus: corpus.jsonl\noutput: {tmp_path}/index\n")
    return folder


def submit(cluster: RayCluster, *words: str) -> Result:
    arguments = ["submit", *words, "--address", cluster.dashboard]
    return CliRunner().invoke(regrad, arguments, standalone_mode=False, catch_exceptions=False)


def test_a_job_is_run_once_followed_found_again_and_stopped(
    ray_cluster: RayCluster, folder: Path, tmp_path: Path
) -> None:
    first = submit(ray_cluster, "index", "--config", "index.yaml")
    assert "submitted regrad-index-" in first.stderr and "10 passages" in first.stdout
    assert (tmp_path / "index").is_dir()

    second = submit(ray_cluster, "index", "--config", "index.yaml")
    assert "found regrad-index-" in second.stderr and second.stdout == first.stdout

    begun = submit(ray_cluster, "index", "--config", "index.yaml", "--set", f"output={tmp_path}/other", "--detach")
    name = re.findall(r"submitted (\S+)", begun.stderr)[0]
    assert submit(ray_cluster, "stop", name).stdout.startswith(f"{name}  stopped")
    with refused(ClusterError, "job_failed", job=name, status="STOPPED"):
        submit(ray_cluster, "logs", name)
    assert submit(ray_cluster, "status").stdout.count("regrad-index-") == 2
