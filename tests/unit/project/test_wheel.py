"""What a user installs: packages, configurations, the lab's base model and the console command; and that it works."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from tests.tools.patience import completed

ROOT = Path(__file__).parents[3]
BUILTIN = """
from regrad.settings import builtin_config
for name in ("jobs/demo.yaml", "jobs/train-lab.yaml", "serve/lab.yaml"):
    assert builtin_config(name).exists() and "site" in builtin_config(name).parts, builtin_config(name)
"""


@pytest.mark.slow
def test_the_wheel_of_the_sources_holds_what_it_needs_and_works_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), "-t"]
    built = completed([*build, "sdist"], 120, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (sources,) = tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(sources, tmp_path)  # Python 3.11.2, which Debian 12 has, knows no filters yet
    built = completed([*build, "wheel"], 120, cwd=tmp_path / sources.name.removesuffix(".tar.gz"))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        entry = next(packed.read(name).decode() for name in names if name.endswith("entry_points.txt"))
        packed.extractall(tmp_path / "site")
    assert {
        "regrad/lab/base/model.safetensors",
        "regrad/lab/base/tokenizer.json",
        "regrad/starts/smollm2-135m-both/adapter_model.safetensors",
        "regrad/configs/jobs/demo.yaml",
        "regrad/configs/serve/lab.yaml",
        "ray_jobs/meta_train.py",
        "serve_app/app.py",
    } <= names
    assert {f"serve_app/web/{file.name}" for file in (ROOT / "serve_app" / "web").iterdir()} <= names
    assert {"serve_app/web/index.html", "serve_app/web/style.css", "serve_app/web/main.js"} <= names
    assert "regrad = regrad.cli.main:main" in entry
    assert wheel.stat().st_size < 8_000_000

    # As after `pip install`: no file of the checkout is in reach.
    elsewhere, environment = tmp_path / "elsewhere", {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    elsewhere.mkdir()
    for arguments in (["-c", BUILTIN], ["-m", "regrad.cli.main", "lab", "world"]):
        run = completed([sys.executable, *arguments], 120, cwd=elsewhere, env=environment)
        assert run.returncode == 0, run.stderr
    assert (elsewhere / "runs" / "lab" / "corpus.jsonl").exists()
