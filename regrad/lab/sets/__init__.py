"""Harder labs: the same base model, other people or other texts, where reading from a prompt is no longer enough.

Each is a class and an entry here; `regrad lab world --set variant=NAME` writes it in the lab's own formats.
"""

from __future__ import annotations

from regrad.errors import ConfigError
from regrad.lab.sets.base import LabSet
from regrad.lab.sets.hard import Conflict, Long, Many
from regrad.lab.sets.wordings import Firms, Unseen
from regrad.registry import Registry

SETS: Registry[type[LabSet]] = Registry(
    "lab set",
    ConfigError,
    {"many": Many, "long": Long, "conflict": Conflict, "unseen": Unseen, "firms": Firms},
)
