"""What a server that runs says of itself, and waiting until it says what is wanted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import requests

from regrad.client import API_KEY, with_key
from regrad.errors import ServeError

_TIMEOUT_SECONDS = 10
_WAIT_SECONDS = 30.0
_PAUSE_SECONDS = 0.2

url_option = click.option("--url", metavar="URL", help="Wait until the server at this address has taken it up.")


def releases_at(url: str) -> list[dict[str, Any]]:
    """The releases that a server answers from; raises `ServeError` if none answers, or not as one of ours does."""
    address = f"{url.rstrip('/')}/v1/bank"
    try:
        response = requests.get(address, timeout=_TIMEOUT_SECONDS, auth=with_key)
        found = response.json()["releases"] if response.ok else None
    except requests.JSONDecodeError:
        found = None
    except requests.RequestException as error:
        raise ServeError(f"no server answers at {url}; start one with `regrad serve`, or give --url") from error
    except (KeyError, TypeError):
        found = None
    if response.status_code == 401:
        raise ServeError(f"the server at {url} wants an API key: put one that it knows into {API_KEY}")
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ServeError(f"{address} does not say what is answered from (HTTP {response.status_code})")
    return found


def wait_for(url: str, wanted: Sequence[dict[str, Any]], say: Callable[[str], None] = click.echo) -> None:
    """Wait until the server says that it answers from these releases, of which it may say more.

    Raises `ServeError` after half a minute, or if no server answers.
    """
    deadline = time.monotonic() + _WAIT_SECONDS
    while not _are(found := releases_at(url), wanted):
        if time.monotonic() > deadline:
            raise ServeError(
                f"the server at {url} has not taken it up after {_WAIT_SECONDS:.0f} s: does it follow the same file "
                "(`releases`), and can it read what is in it? Its log says more"
            )
        time.sleep(_PAUSE_SECONDS)
    say(f"the server at {url} answers from it:\n{described(found)}")


def _are(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> bool:
    return len(found) == len(wanted) and all(
        there.get(key) == value
        for there, here in zip(found, wanted, strict=True)
        for key, value in here.items()
        if key != "passages"
    )


def described(releases: Sequence[dict[str, Any]]) -> str:
    """Releases in a few lines each."""
    return "\n".join(_described(release) for release in releases)


def _described(release: dict[str, Any]) -> str:
    follows = "the newest, always" if release.get("follows_newest") else "stays at this version"
    lines = {
        "MetaInit": f"{release.get('meta_init')} ({release.get('fingerprint')})",
        "bank": f"{release.get('bank')}",
        "version": f"{release.get('bank_version')} ({follows}), {release.get('passages')} passages",
    }
    head = f"{release.get('name')}: {float(release.get('share') or 0):.0%} of the traffic"
    return "\n".join([head, *(f"  {name:9} {text}" for name, text in lines.items())])
