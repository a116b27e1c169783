"""`regrad bank`: one file a verb. A new verb is its file and a line here."""

from __future__ import annotations

import click

from regrad.cli.lazy import LazyGroup

_VERBS = {
    "info": "What the bank is, what is on its disk, where a passage's atom lies.",
    "diff": "Which passages came, went or changed between two versions.",
    "verify": "Read every byte and name what is damaged (exit status 1), and the way out.",
    "add": "Compute the atoms of more passages, or of changed ones (Ray Data).",
    "delete": "Forget passages: from now on no version gives them out.",
    "compact": "Copy what is left out of shards that hold deleted atoms; join small ones.",
    "gc": "Remove old versions and the files that only they needed.",
    "export": "Copy atoms to another bank, or to files of tensors.",
    "import": "Add atoms from such copies, from the ReGrad release or from PRAG.",
}


@click.command("bank", cls=LazyGroup, package="regrad.cli.bank", verbs=_VERBS)
def command() -> None:
    """Look at a Gradient Bank, add to it, forget passages, mend, prune, copy it.

    A bank is a directory at any URI. It has versions; each is a complete collection of atoms (one a passage), and the
    newest is in force. What changes a bank makes a new version and leaves the files of the old ones.

    \b
    To forget passages, bytes and all:
        regrad bank delete URI ID...     nobody gets them any more
        regrad bank compact URI          no file of the new version holds them
        regrad bank gc URI               the old versions' files are removed
        regrad bank info URI             says whether anything is left
    """
