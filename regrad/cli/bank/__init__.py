"""`regrad bank`: what can be done with a bank; each verb is imported when it is used."""

from __future__ import annotations

import click

from regrad.cli.options import LazyGroup

_VERBS = {
    "info": ("regrad.cli.bank.inspect:info", "What the bank is, what is on its disk, where a passage's atom lies."),
    "diff": ("regrad.cli.bank.inspect:diff", "Which passages were added, removed or changed between two versions."),
    "verify": (
        "regrad.cli.bank.inspect:verify",
        "Read every byte, name what is damaged (exit status 1), and say how to repair it.",
    ),
    "add": ("regrad.cli.bank.change:add", "Compute the atoms of more passages, or of changed ones (Ray Data)."),
    "delete": ("regrad.cli.bank.change:delete", "Forget passages: no version returns them any more."),
    "compact": (
        "regrad.cli.bank.change:compact",
        "Rewrite shards that contain deleted atoms, without them; join small ones.",
    ),
    "gc": ("regrad.cli.bank.change:gc", "Remove old versions and the files that only they needed."),
    "export": ("regrad.cli.bank.change:export", "Copy atoms to another bank, to files of tensors or to PEFT."),
    "import": ("regrad.cli.bank.change:import_", "Add atoms from such copies, from the ReGrad release or from PRAG."),
}


@click.command("bank", cls=LazyGroup, verbs=_VERBS)
def bank() -> None:
    """Look at a Gradient Bank, add to it, forget passages, repair, prune or copy it.

    A bank is a directory at any URI. It has versions; each is a complete collection of atoms (one a passage), and the
    newest is the current one. A change makes a new version and leaves the files of the old ones.

    \b
    To forget passages and remove their bytes:
        regrad bank delete URI ID...     no version returns them any more
        regrad bank compact URI          no file of the new version contains them
        regrad bank gc URI               the old versions' files are removed
        regrad bank info URI             says whether anything is left
    """
