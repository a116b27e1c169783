"""Every method by name, and the settings of any of them.

A family of methods is a module beside this one: every class there that has rows of the table (`METHODS`) is one.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, Tag

import regrad.methods
from regrad.errors import MethodError
from regrad.methods.base import MethodInfo, MethodSettings
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.registry import Registry
from regrad.settings import invalid
from regrad.text import nearest_name


def _kind(value: Mapping[str, Any]) -> Any:
    return value.get("method") or value.get("name")


def _readable(value: Any) -> Any:
    """Takes a string for a method of that name, and refuses settings that only other methods have, naming those."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, MethodSettings):
        return value
    if not isinstance(value, Mapping):
        raise invalid("not_a_method", "a method's name or a mapping with its settings is expected")
    if not isinstance(_kind(value), str):
        return value
    try:
        family = _families()[METHODS[_kind(value)].name]
    except MethodError as error:
        raise invalid("unknown_method", str(error), near=str(error.fields.get("near", ""))) from error
    _refuse_foreign(value, family)
    return value


def _refuse_foreign(value: Mapping[str, Any], family: type[MethodSettings]) -> None:
    """Raise `ValueError` for settings that only other methods have, also if they are misspelt."""
    # A key that resembles one of the method's own settings is left to its class, which names that one.
    settings = dict.fromkeys(field for each in FAMILIES for field in each.model_fields)
    meant = {key: nearest_name(key, settings) for key in value}
    foreign = {key: takers(near) for key, near in meant.items() if near and near not in family.model_fields}
    if foreign:
        label = f" ({value['name']})" if value.get("name") not in (None, _kind(value)) else ""
        raise invalid(
            "foreign_setting",
            f"method {_kind(value)!r}{label} takes no {', no '.join(foreign)}; it takes "
            + ", ".join(name for name in family.model_fields if name not in ("name", "method"))
            + "".join(f"; {meant[key]} is a setting of {', '.join(taken)}" for key, taken in foreign.items()),
        )


def _tag(value: Any) -> str:
    """The name of the settings class, by which pydantic chooses it."""
    if isinstance(value, MethodSettings):
        return type(value).__name__
    family = _families().get(_kind(value)) if isinstance(_kind(value), str) else None
    return (family or PromptOnlyConfig).__name__  # without a name it says that the name is missing


def _families_of_modules() -> tuple[type[MethodSettings], ...]:
    """The settings classes with rows of the table, in the order of their modules and then as they are written."""
    names = sorted(found.name for found in pkgutil.iter_modules(regrad.methods.__path__, "regrad.methods."))
    modules = [import_module(name) for name in names if name != __name__]
    classes = [value for module in modules for value in vars(module).values() if isinstance(value, type)]
    return tuple(each for each in dict.fromkeys(classes) if each.__dict__.get("METHODS"))


FAMILIES = _families_of_modules()

if TYPE_CHECKING:
    MethodConfig = MethodSettings
else:
    MethodConfig = Annotated[
        reduce(or_, [Annotated[family, Tag(family.__name__)] for family in FAMILIES]),
        Discriminator(_tag),
        BeforeValidator(_readable),
    ]
"""The settings of one method: of the class of its family."""

METHODS: Registry[MethodInfo] = Registry(
    "method", MethodError, {info.name: info for family in FAMILIES for info in family.METHODS}
)


def _families() -> dict[str, type[MethodSettings]]:
    return {info.name: family for family in FAMILIES for info in family.METHODS}


def takers(setting: str) -> list[str]:
    """The names of the methods that have this setting."""
    return [name for name, family in _families().items() if setting in family.model_fields]
