"""The Dockerfile's steps in a clean root, where no container engine is at hand. On Debian, as root:

    python -m tests.tools.image_root ROOT --mirror URL [--python PREFIX] [--lend DIRECTORY ...] [--then COMMAND]

ROOT is a directory that does not exist yet, or one with the base alone. The base is a Debian by debootstrap (from the
mirror) instead of the image that `BASE` names, with a Python of this machine in /usr/local. Then each step: RUN in a
chroot, COPY from this project as `.dockerignore` lets it, USER, ENV and WORKDIR as they say; at last CMD, and `--then`
as the image's user. apt and pip are set up as on this machine, with the directories to lend where they find packages.
ROOT is left there, to look at: remove it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).parents[2]
_PACKAGES = "ca-certificates,libssl3,libffi8,libsqlite3-0,zlib1g,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libuuid1"
_PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
_LENT = (*("/etc/apt", "/usr/share/keyrings", "/etc/pip.conf", "/etc/resolv.conf", "/etc/hosts"),)


def steps(text: str) -> list[tuple[str, str]]:
    """(instruction, rest) of each step of a Dockerfile, lines that go on joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(first, rest) for first, rest in found]


class Root:
    """A root that steps change."""

    def __init__(self, path: Path) -> None:
        self.path, self._folder, self._user = path, "/", "root"
        self._variables = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LANG": "C.UTF-8"}
        self._arguments: dict[str, str] = {}
        self.lent = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        if trusted := os.environ.get("PIP_CERT"):  # elsewhere, as a step makes the file of this name anew
            shutil.copy(trusted, path / "trusted.crt")
            self.lent["PIP_CERT"] = "/trusted.crt"

    def run(self, command: str) -> None:
        """In a shell of the root, as its user, in its folder."""
        inside = f"cd {shlex.quote(self._folder)} && {command}"
        variables = self._variables | self._arguments | self.lent
        user = [] if self._user == "root" else [f"--userspec={self._user}:{self._user}"]
        subprocess.run(["chroot", *user, str(self.path), "/bin/sh", "-c", inside], env=variables, check=True)

    def step(self, name: str, rest: str) -> None:
        """One of the Dockerfile's."""
        match name:
            case "RUN":
                self.run(rest)
            case "COPY":
                self._copy(shlex.split(rest))
            case "WORKDIR":
                self._folder = rest
                (self.path / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                self._user = rest
                people = [line.split(":") for line in (self.path / "etc/passwd").read_text().splitlines()]
                self._variables["HOME"] = next(
                    home for name, _, number, *_, home, _ in people if rest in (name, number)
                )
            case "ENV":
                self._variables |= dict(word.split("=", 1) for word in shlex.split(rest))
            case "ARG":
                key, _, value = rest.partition("=")
                self._arguments[key] = value.strip('"')
            case "CMD":
                self.run(shlex.join(json.loads(rest)))
            case "FROM":
                pass
            case _:
                raise SystemExit(f"no such step is known: {name}")

    def _copy(self, words: list[str]) -> None:
        owner = next((word.removeprefix("--chown=") for word in words if word.startswith("--chown=")), None)
        *sources, target = [word for word in words if not word.startswith("--")]
        allowed = (PROJECT / ".dockerignore").read_text().split()
        for source in sources:
            assert f"!{source}" in allowed, f"{source} is ignored"
            to = self.path / target.lstrip("/")
            to = to / source if target.endswith("/") else to
            if (PROJECT / source).is_dir():
                shutil.copytree(PROJECT / source, to, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / source, to)
            if owner:
                subprocess.run(
                    ["chroot", str(self.path), "chown", "-R", owner, f"/{to.relative_to(self.path)}"], check=True
                )


@contextmanager
def lent(root: Path, directories: list[str]) -> Iterator[None]:
    """Inside the block the root has this machine's settings of apt and pip, and the kernel's file systems."""
    mounts = ["/proc", "/dev", *directories]
    for place in _LENT:
        here, there = Path(place), root / place.lstrip("/")
        if here.is_dir():
            shutil.copytree(here, there, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.gpg~"))
        elif here.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, there)
    for place in mounts:
        there = root / place.lstrip("/")
        there.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--rbind", "--make-rslave", place, str(there)], check=True)
    try:
        yield
    finally:
        for place in mounts:
            subprocess.run(["umount", "--recursive", "--lazy", str(root / place.lstrip("/"))], check=False)


def _take_python(prefix: Path, target: Path) -> None:
    """Copy a Python of this machine without what is installed in it."""
    own = shutil.ignore_patterns("site-packages", "__pycache__", "test", "tests")
    shutil.copytree(prefix / "lib" / _PYTHON, target / "lib" / _PYTHON, ignore=own, symlinks=True, dirs_exist_ok=True)
    for library in (prefix / "lib").glob("libpython*"):
        shutil.copy(library, target / "lib")
    shutil.copy(prefix / "bin" / _PYTHON, target / "bin")
    (target / "bin/python3").unlink(missing_ok=True)
    (target / "bin/python3").symlink_to(_PYTHON)


def main() -> None:
    """Make the base, run all steps and what is to be tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--mirror", required=True, help="of Debian's packages")
    parser.add_argument(
        "--lend", nargs="*", default=[], help="directories of this machine that pip reads, as absolute paths"
    )
    parser.add_argument("--python", type=Path, default=Path(sys.base_prefix), help="its prefix (default: this one's)")
    parser.add_argument("--then", default="regrad --help", help="a command of the image's user, after all steps")
    arguments = parser.parse_args()
    if not arguments.root.exists():
        packages = ["--variant=minbase", f"--include={_PACKAGES}"]
        subprocess.run(["debootstrap", *packages, "bookworm", str(arguments.root), arguments.mirror], check=True)
    _take_python(arguments.python, arguments.root / "usr/local")
    root = Root(arguments.root.resolve())
    with lent(arguments.root.resolve(), arguments.lend):
        root.run(f"/sbin/ldconfig && {_PYTHON} -m ensurepip && {_PYTHON} -m pip install --no-cache-dir --upgrade pip")
        for name, rest in steps((PROJECT / "Dockerfile").read_text()):
            print(f"== {name} {rest}", file=sys.stderr, flush=True)
            root.step(name, rest)
        root.run(arguments.then)


if __name__ == "__main__":
    main()
