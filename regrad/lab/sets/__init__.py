"""Harder labs: the same base model, other people or other texts, where reading from a prompt is no longer enough.

Each is one file and one entry here; `regrad lab world --set variant=NAME` writes it, in the lab's own formats.
"""

from __future__ import annotations

from regrad.errors import ConfigError
from regrad.lab.sets.base import LabSet
from regrad.lab.sets.firms import Firms
from regrad.lab.sets.hard import Conflict, Long, Many
from regrad.lab.sets.unseen import Unseen
from regrad.registry import Registry

SETS: Registry[type[LabSet]] = Registry(
    "lab set",
    ConfigError,
    {
        "many": Many,
        "long": Long,
        "conflict": Conflict,
        "unseen": Unseen,
        "firms": Firms,
    },
)
