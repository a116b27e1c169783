"""What a user installs: the three packages, the configurations, the lab's base model and the console command."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

from tests.tools.patience import completed

ROOT = Path(__file__).parents[3]


def test_the_wheel_holds_what_it_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = completed(command, 120, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    assert {
        "regrad/lab/base/model.safetensors",
        "regrad/lab/base/tokenizer.json",
        "regrad/configs/jobs/demo.yaml",
        "regrad/configs/serve/lab.yaml",
        "ray_jobs/meta_train.py",
        "serve_app/app.py",
    } <= names
    assert {f"serve_app/web/{file.name}" for file in (ROOT / "serve_app" / "web").iterdir()} <= names
    assert {"serve_app/web/index.html", "serve_app/web/style.css", "serve_app/web/main.js"} <= names
    assert "regrad = regrad.cli.main:main" in entry
    assert wheel.stat().st_size < 8_000_000
