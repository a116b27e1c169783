"""A real Chromium for tests and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.tools.patience import completed

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
MAY_NOT_INSTALL = 3


class NoBrowser(Exception):
    """There is no Chromium, and it may not be installed here."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium with a fresh profile."""
    path = find()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def find() -> str:
    """The path of a Chromium; raises `NoBrowser`, or `RuntimeError` where installing it has failed."""
    script = str(Path(__file__).parent / "browser.sh")
    result = completed([script], 500)
    if result.returncode == MAY_NOT_INSTALL:
        raise NoBrowser("no Chromium: install one (Debian: apt-get install chromium) or set CHROMIUM to its path")
    if result.returncode:
        raise RuntimeError(f"Chromium could not be installed: {result.stderr.strip()[-500:]}")
    return result.stdout.strip()
