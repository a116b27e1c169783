"""`regrad bank`: what can be done with a bank; each verb is imported when it is used."""

from __future__ import annotations

import click

from regrad.cli.options import LazyGroup

_VERBS = {
    "info": ("regrad.cli.bank.inspect:info", "What the bank is, what is on its disk, where a passage's atom lies."),
    "diff": ("regrad.cli.bank.inspect:diff", "Which passages came, went or changed between two versions."),
    "verify": (
        "regrad.cli.bank.verify:verify",
        "Read every byte and name what is damaged (exit status 1), and the way out.",
    ),
    "add": ("regrad.cli.bank.change:add", "Compute the atoms of more passages, or of changed ones (Ray Data)."),
    "delete": ("regrad.cli.bank.change:delete", "Forget passages: from now on no version gives them out."),
    "compact": (
        "regrad.cli.bank.change:compact",
        "Copy what is left out of shards that hold deleted atoms; join small ones.",
    ),
    "gc": ("regrad.cli.bank.change:gc", "Remove old versions and the files that only they needed."),
    "export": ("regrad.cli.bank.transfer:export", "Copy atoms to another bank, or to files of tensors."),
    "import": ("regrad.cli.bank.transfer:import_", "Add atoms from such copies, from the ReGrad release or from PRAG."),
}


@click.command("bank", cls=LazyGroup, verbs=_VERBS)
def bank() -> None:
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
