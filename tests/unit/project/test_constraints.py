"""What `constraints.txt` pins can be installed where the README says that regrad can."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[3]
OLDEST = "3.11.2"
"""Of Debian 12."""


def test_the_pinned_versions_take_the_oldest_python_that_people_have() -> None:
    """Debian 12 has Python 3.11.2, and a pin that wants 3.11.5 ends `make install` there."""
    looked_at, refusing = 0, []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin = Requirement(line)
        try:
            found = metadata(pin.name)
        except PackageNotFoundError:  # of an extra, or of another system
            continue
        if pin.specifier.contains(found["Version"].partition("+")[0]):
            looked_at += 1
            if not SpecifierSet(found["Requires-Python"] or "").contains(OLDEST):
                refusing.append(f"{line} asks for Python {found['Requires-Python']}")
    assert refusing == []
    assert looked_at > 200, "or nothing is installed here as it is pinned"
