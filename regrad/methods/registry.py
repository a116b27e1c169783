"""Every method by name, and the settings of any of them.

A new family of methods is a module beside this one, and its settings class in `MethodConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Discriminator, Tag

from regrad.errors import MethodError
from regrad.methods.base import MethodInfo, MethodSettings
from regrad.methods.dyprag import DyPragConfig
from regrad.methods.prag import DPragConfig, PragConfig, PragOnLoraConfig
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.rag_gd import RagGdConfig, RagGdConstantConfig, TtSgdConfig
from regrad.methods.regrad import ReGradConfig, ReGradOnlineConfig
from regrad.methods.static_lora import StaticLoraConfig
from regrad.methods.tta import TtaConfig, TtaragConfig
from regrad.registry import Registry
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
        raise ValueError("a method's name or a mapping with its settings is expected")
    if not isinstance(_kind(value), str):
        return value
    try:
        family = _families()[METHODS[_kind(value)].name]
    except MethodError as error:
        raise ValueError(str(error)) from error
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
        raise ValueError(
            f"method {_kind(value)!r}{label} takes no {', no '.join(foreign)}; it takes "
            + ", ".join(name for name in family.model_fields if name not in ("name", "method"))
            + "".join(f"; {meant[key]} is a setting of {', '.join(taken)}" for key, taken in foreign.items())
        )


def _tag(value: Any) -> str:
    """The name of the settings class, by which pydantic chooses it."""
    if isinstance(value, MethodSettings):
        return type(value).__name__
    family = _families().get(_kind(value)) if isinstance(_kind(value), str) else None
    return (family or PromptOnlyConfig).__name__  # without a name it says that the name is missing


MethodConfig = Annotated[
    Annotated[PromptOnlyConfig, Tag("PromptOnlyConfig")]
    | Annotated[StaticLoraConfig, Tag("StaticLoraConfig")]
    | Annotated[PragConfig, Tag("PragConfig")]
    | Annotated[PragOnLoraConfig, Tag("PragOnLoraConfig")]
    | Annotated[DPragConfig, Tag("DPragConfig")]
    | Annotated[DyPragConfig, Tag("DyPragConfig")]
    | Annotated[ReGradConfig, Tag("ReGradConfig")]
    | Annotated[ReGradOnlineConfig, Tag("ReGradOnlineConfig")]
    | Annotated[TtaConfig, Tag("TtaConfig")]
    | Annotated[TtaragConfig, Tag("TtaragConfig")]
    | Annotated[TtSgdConfig, Tag("TtSgdConfig")]
    | Annotated[RagGdConfig, Tag("RagGdConfig")]
    | Annotated[RagGdConstantConfig, Tag("RagGdConstantConfig")],
    Discriminator(_tag),
    BeforeValidator(_readable),
]
"""The settings of one method: of the class of its family."""

_TAGGED = get_args(get_args(MethodConfig)[0])
FAMILIES: tuple[type[MethodSettings], ...] = tuple(get_args(tagged)[0] for tagged in _TAGGED)
METHODS: Registry[MethodInfo] = Registry(
    "method", MethodError, {info.name: info for family in FAMILIES for info in family.METHODS}
)


def _families() -> dict[str, type[MethodSettings]]:
    return {info.name: family for family in FAMILIES for info in family.METHODS}


def takers(setting: str) -> list[str]:
    """The names of the methods that have this setting."""
    return [name for name, family in _families().items() if setting in family.model_fields]
