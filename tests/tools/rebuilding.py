"""A rebuild of cheap steps that each write several files, as a program that can be killed at any line.

python -m tests.tools.rebuilding OUTPUT [LINES]

With LINES it kills itself (SIGKILL) at that line of all that it runs in the files of a rebuild and of storage, so a
number names a moment, and the same number the same one. Without, it prints how many lines a whole run has.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from regrad.rebuild.flow import Rebuild, rebuild
from regrad.rebuild.records import MadeOutput, RunRecord
from regrad.rebuild.steps import Done, Step, StepOutcome
from regrad.rebuild.versions import PromotionConfig, Version
from regrad.storage import Storage
from tests.tools.dying import traced

_TRACED = ("regrad/rebuild", "regrad/storage.py", "regrad/locking.py", "tests/tools/rebuilding.py")
_FILES = 3


def cheap_rebuild(
    output: str,
    corpus: str = "corpus",
    score: float = 0.5,
    ran: list[str] | None = None,
    serve: Callable[[Version], str | None] = lambda _: None,
    promotion: PromotionConfig | None = None,
    **changes: Any,
) -> Rebuild:
    """Training, index, bank and an evaluation that says `score`; `ran` gets the name of every step that works."""
    place = Storage(output)
    names = ("meta-init", "index", "bank")
    keys = {name: _short(f"{name} of {corpus if name != 'meta-init' else 'tasks'}") for name in names}
    ran = [] if ran is None else ran

    def step(name: str, key: str, facts: Mapping[str, Any] | None = None) -> Step:
        folder = f"artefacts/{name}-{key}"

        def work(done: Done) -> StepOutcome:
            ran.append(name)
            for number in range(_FILES):
                if not place.exists(f"{folder}/{number}"):
                    place.write(f"{folder}/{number}", f"{name} {key} {number} {sorted(done)}".encode() * 10)
            made = MadeOutput(place=folder, bytes=_FILES, digest=_short(folder))
            return StepOutcome(f"{name} is made", dict(facts or {}), (made,), count=100, busy_seconds=0.0)

        return Step(name, key, {"corpus": corpus}, work, like=name, unit="things", count=lambda: 200)

    bank = {"bank_version": 1, "passages": 7}
    return Rebuild(
        output=place,
        steps=[step(name, keys[name], bank if name == "bank" else None) for name in names],
        places={name: f"artefacts/{name}-{keys[name]}" for name in names},
        keys=keys,
        pinned=lambda done: dict(done["bank"].facts),
        evaluation=lambda version: step("eval", _short(repr(sorted(version.keys.items()))), {"score": score}),
        score=_score,
        serve=serve,
        promotion=promotion or PromotionConfig(),
        **changes,
    )


def contents(output: str) -> dict[str, bytes]:
    """Every file of a rebuild but the run records, which have times."""
    place = Storage(output)
    return {name: place.read(name) for name in place.files() if not name.startswith("runs/")}


def _score(record: RunRecord) -> float:
    return float(record.facts["score"])


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


if __name__ == "__main__":
    job = cheap_rebuild(sys.argv[1])
    count = traced(_TRACED, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    rebuild(job, lambda _: None)
    sys.settrace(None)
    sys.stdout.write(f"{count[0]}\n")
