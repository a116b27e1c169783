"""`regrad keys`: one file a verb."""

from __future__ import annotations

import click

from regrad.cli.lazy import LazyGroup

_VERBS = {
    "create": "Make a key and print it, this once.",
    "list": "Who has keys, with which limits, and which are no longer good.",
    "revoke": "Take a key back: servers refuse it within two seconds.",
}


@click.command("keys", cls=LazyGroup, package="regrad.cli.keys", verbs=_VERBS)
def command() -> None:
    """Give people keys to a server, list them, take them back.

    Keys are in one file (--file), of which the server knows by its setting protection.keys. The file holds no key, only
    their hashes: a key that is lost cannot be read from it, make another.
    """
