"""Every job as `ray job submit` runs it, and serving as `serve deploy` does, on a cluster started with `ray start`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests
import yaml

from regrad.bank.reader import BankReader
from regrad.meta_init import MetaInit
from tests.integration.conftest import BIN, RayCluster, RunningDemo, environment, free_port, search
from tests.tools.patience import Deadline, completed, patient

CONFIGS = Path(__file__).parents[3] / "configs"


def submit(cluster: RayCluster, job: str, config: Path, *settings: str) -> str:
    options = [part for setting in settings for part in ("--set", setting)]
    command = [BIN / "ray", "job", "submit", "--address", cluster.dashboard, "--"]
    command += ["python", "-m", f"ray_jobs.{job}", "--config", str(config), *options]
    result = completed(command, 300, env=environment())
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    return result.stdout


def test_meta_train_job(ray_cluster: RayCluster, demo: RunningDemo, tmp_path: Path) -> None:
    lines = (demo.runs / "lab" / "tasks.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "tasks.jsonl").write_text("".join(lines[:40]))
    settings = [f"tasks={tmp_path}/tasks.jsonl", "dev=null", f"output={tmp_path}/m"]
    settings += ["optimizer.steps=3", "watch.every=1"]
    output = submit(ray_cluster, "meta_train", CONFIGS / "jobs/train-lab.yaml", *settings)
    made = MetaInit.load(tmp_path / "m")
    assert f"MetaInit {made.fingerprint} at {tmp_path}/m: 3 steps" in output
    assert made.notes["workers"] == 2


def test_index_corpus_job(ray_cluster: RayCluster, demo: RunningDemo, tmp_path: Path) -> None:
    settings = [f"corpus={demo.runs}/lab/corpus.jsonl", f"output={tmp_path}/index"]
    output = submit(ray_cluster, "index_corpus", CONFIGS / "jobs/index-lab.yaml", *settings)
    assert f"BM25 index at {tmp_path}/index: 400 passages" in output
    assert len(search(f"{tmp_path}/index", "born")) == 3


def test_build_bank_job(ray_cluster: RayCluster, demo: RunningDemo, tmp_path: Path) -> None:
    settings = [f"meta_init={demo.runs}/meta-init", f"corpus={demo.runs}/lab/corpus.jsonl"]
    settings += [f"bank.uri={tmp_path}/bank", "bank.codec=int8", "cluster.workers=1"]
    output = submit(ray_cluster, "build_bank", CONFIGS / "jobs/build-lab.yaml", *settings)
    assert "400 passages, int8" in output
    bank, full = BankReader(f"{tmp_path}/bank"), BankReader(f"{demo.runs}/bank")
    ids = full.passage_ids()[:20]
    exact = full.read(ids)
    error = (bank.read(ids) - exact).norm() / exact.norm()
    assert 0 < error < 0.02


def test_a_job_with_a_bad_setting_fails_with_one_sentence(ray_cluster: RayCluster) -> None:
    with pytest.raises(AssertionError, match="did you mean 'bank.codec'"):
        submit(ray_cluster, "build_bank", CONFIGS / "jobs/build-lab.yaml", "bank.codek=int8")


def test_serve_deploy(ray_cluster: RayCluster, demo: RunningDemo, tmp_path: Path) -> None:
    config = yaml.safe_load((CONFIGS / "serve/lab.yaml").read_text())
    port = config["http_options"]["port"] = free_port()
    runs = demo.runs
    config["applications"][0]["args"] = {
        "meta_init": f"{runs}/meta-init",
        "bank": f"{runs}/bank",
        "index": f"{runs}/index",
    }
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [BIN / "serve", "deploy", "--address", ray_cluster.dashboard, str(path)]
    result = completed(command, 60, env=environment())
    assert result.returncode == 0, result.stderr
    url = f"http://127.0.0.1:{port}/v1/answer"
    answer = _ask_when_ready(url, {"question": "Where was Les Dripen born?", "k": 1})
    assert answer["answer"] == "Thomville"
    assert answer["passages"][0]["id"] == "les-dripen"


def _ask_when_ready(url: str, body: dict[str, object]) -> dict[str, object]:
    deadline = Deadline(180)
    while True:
        try:
            response = requests.post(url, json=body, timeout=patient(30))
            if response.ok:
                return dict(response.json())
        except (requests.ConnectionError, requests.Timeout):
            pass
        assert not deadline.over, f"{url} did not answer"
        time.sleep(0.5)
