"""Versions of a rebuild with a real bank that they share, and a prune of them that can be killed at any line.

python -m tests.tools.pruning OUTPUT [LINES]

Prunes OUTPUT to its newest version. With LINES it kills itself (SIGKILL) at that line of all that it runs in the files
of a rebuild, of banks and of storage; without, it prints how many lines a whole run has.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from regrad.bank.format import read_manifest
from regrad.bank.reader import BankReader
from regrad.rebuild.flow import Rebuild
from regrad.rebuild.prune import InUse, prune
from regrad.rebuild.records import MadeOutput, Records, RunRecord
from regrad.rebuild.steps import Done, Step, StepOutcome
from regrad.rebuild.versions import Version, Versions
from regrad.storage import Storage
from tests.tools import banks
from tests.tools.dying import traced

_TRACED = ("regrad/rebuild", "regrad/bank/maintenance.py", "regrad/storage.py", "regrad/locking.py")


def bank_rebuild(output: str, corpus: int, meta_init: str = "m", keep_aside: bool = False) -> Rebuild:
    """A rebuild of a corpus (its number scales the atoms) with an index of its own and a bank for the MetaInit."""
    place = Storage(output)
    keys = {"meta-init": f"meta-{meta_init}", "index": f"index-{corpus}", "bank": f"bank-{meta_init}-{corpus}"}
    places = {
        "meta-init": f"artefacts/meta-init-{keys['meta-init']}",
        "index": f"artefacts/index-{keys['index']}",
        "bank": f"artefacts/bank-{meta_init}",
    }

    def filed(name: str) -> Step:
        def work(_: Done) -> StepOutcome:
            for number in range(2):
                place.write(f"{places[name]}/{number}", f"{name} {number}".encode())
            return StepOutcome(f"{name} is made", {}, (_made(places[name]),))

        return Step("train" if name == "meta-init" else name, keys[name], {}, work)

    def build(_: Done) -> StepOutcome:
        manifest = banks.fill(f"{output}/{places['bank']}", scale=corpus)
        place.write(f"{places['bank']}.preparation/{manifest.version:08d}.json", b"{}")
        facts = {"bank_version": manifest.version, "passages": manifest.passages}
        return StepOutcome("bank is made", facts, (_made(places["bank"]),))

    def verify(done: Done) -> StepOutcome:
        read_manifest(Storage(f"{output}/{places['bank']}"), int(done["build"].facts["bank_version"]))
        return StepOutcome("whole")

    def evaluation(version: Version) -> Step:
        folder = f"artefacts/eval-{'-'.join(version.keys.values())}"

        def work(_: Done) -> StepOutcome:
            place.write(f"{folder}/scores", b"0.5")
            return StepOutcome("scored", {"version": version.id}, (_made(folder),))

        content = {name: f"{name}:{key}" for name, key in version.keys.items()}
        return Step("eval", folder.rpartition("/")[2], content, work)

    reads = {"meta_init": f"meta-init:{keys['meta-init']}"}
    return Rebuild(
        output=place,
        steps=[
            *(filed(name) for name in ("meta-init", "index")),
            Step("build", keys["bank"], reads, build),
            Step("verify", "-".join(keys.values()), dict(keys), verify),
        ],
        places=places,
        keys=keys,
        pinned=lambda done: {**done["build"].facts, "searched": ("index",)},
        evaluation=evaluation,
        score=lambda record: -1.0 if keep_aside else 0.5,
    )


def _made(place: str) -> MadeOutput:
    return MadeOutput(place=place, bytes=2, digest="")


def whole(output: str) -> list[str]:
    """The ids of all versions; every part of each is there, and its version of the bank gives every atom."""
    versions = Versions(Storage(output))
    for name in versions.ids():
        version = versions.read(name)
        for part in ("meta-init", "index"):
            assert set(Storage(f"{output}/{version.places[part]}").files()) == {"0", "1"}, (name, part)
        with BankReader(f"{output}/{version.places['bank']}", version=version.bank_version) as bank:
            assert len(bank.read(bank.passage_ids())) == version.passages == 7
    return versions.ids()


def runs(output: str) -> list[RunRecord]:
    """All of them."""
    return list(Records(Storage(output)).all())


def pruned(output: str, keep: int = 1, used: InUse | None = None, dry_run: bool = False) -> Any:
    """A prune while servers use nothing, or this."""
    return prune(Storage(output), keep, nullcontext(used or InUse()), dry_run)


if __name__ == "__main__":
    count = traced(_TRACED, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    pruned(str(Path(sys.argv[1])))
    sys.settrace(None)
    sys.stdout.write(f"{count[0]}\n")
