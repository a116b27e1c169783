"""Every method by its name, the settings that it takes, its checks, and opening its updates."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from regrad.errors import MetaInitError, MethodError
from regrad.meta_init import read_card
from regrad.methods.atoms import bank_manifest
from regrad.methods.base import Method, SameForAll, Source, Updates
from regrad.methods.config import MethodConfig
from regrad.methods.prag import FT_PRAG, PRAG, PRAG_ICL, PRAG_WARM, check_adapters, open_adapters
from regrad.methods.prompt_only import DIRECT, PE_RAG, RAG
from regrad.methods.regrad import (
    REGRAD,
    REGRAD_ICL,
    REGRAD_ONLINE,
    check_gradients,
    check_gradients_now,
    open_gradients,
    open_gradients_now,
)
from regrad.methods.static_lora import CPT, FT_DIRECT, FT_RAG, INSTRUCTION_CPT, check_static, open_static, static_uri
from regrad.methods.tta import TTA, open_adapting
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel
from regrad.models.subspace import Subspace
from regrad.training.lora.lora_artifact import check_ranks, read_adapter_card

_ALL = (
    *(DIRECT, RAG, PE_RAG, CPT, INSTRUCTION_CPT, FT_DIRECT, FT_RAG),
    *(PRAG, PRAG_ICL, PRAG_WARM, FT_PRAG, REGRAD, REGRAD_ICL, REGRAD_ONLINE, TTA),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
SERVED: dict[str, Method] = {name: method for name, method in METHODS.items() if method.served}
"""Those that a server offers: what they need is in a release."""

_ALL_TAKE = ("prompt_style", "demonstrations")
_TAKEN: dict[Source, tuple[str, ...]] = {
    "none": (),
    "static": (),
    "adapters": ("bank", "bank_version", "weighting", "on_missing"),
    "gradients": ("meta_init", "bank", "bank_version", "gamma", "weighting", "on_missing"),
    "gradients-now": ("meta_init", "gamma", "weighting"),
    "adapting": ("steps", "lr", "adapt_on", "in_prompt", "seed"),
}
SETTINGS: dict[str, tuple[str, ...]] = {
    name: (*(("adapter",) if method.static else ()), *_TAKEN[method.update], *_ALL_TAKE)
    for name, method in METHODS.items()
}
"""The settings of `MethodConfig` that a method looks at, beside its names."""


def get_method(name: str, among: Mapping[str, Method] = METHODS) -> Method:
    """The method of this name; raises `MethodError` naming the nearest right one."""
    if name in among:
        return among[name]
    near = difflib.get_close_matches(name, among, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise MethodError(f"unknown method {name!r:.60}{hint} The methods are {', '.join(among)}")


def method_of(config: MethodConfig) -> Method:
    """The method as its settings say; raises `MethodError` for a setting that it does not have."""
    method = get_method(config.kind)
    check_settings(config)
    return method if config.in_prompt else replace(method, passages_in_prompt=False)


def check_settings(config: MethodConfig) -> None:
    """Raise `MethodError` if something is set that the method does not look at, to another value than the default."""
    taken = {"name", "method", *SETTINGS[config.kind]}
    fields = type(config).model_fields
    idle = [name for name in fields if name not in taken and getattr(config, name) != fields[name].default]
    if idle:
        label = f" ({config.name})" if config.name != config.kind else ""
        raise MethodError(
            f"method {config.kind!r}{label} takes no {', no '.join(idle)}; it takes {', '.join(SETTINGS[config.kind])}"
        )


def check_fits(config: MethodConfig, target: SubspaceConfig, passages: int) -> None:
    """Raise `MethodError` or `MetaInitError` if the rank or scale of the method's LoRAs does not fit the model's.

    A static LoRA and the adapters of at most `passages` stand side by side in the rank; a MetaInit has the model's own.
    """
    method, ranks = get_method(config.kind), []
    if method.static:
        uri = static_uri(config)
        ranks.append(_subspace(read_adapter_card(uri), uri).rank)
    if method.update == "adapters":
        ranks += [bank_manifest(config, "adapter").parsed_subspace().rank] * passages
    try:
        check_ranks(ranks, target.rank)
    except MethodError as error:
        raise MethodError(f"{config.name}: {error}") from error
    if method.applies_gradients and config.meta_init:
        _check_same(config, target, _subspace(read_card(config.meta_init), config.meta_init))


def _check_same(config: MethodConfig, target: SubspaceConfig, found: Subspace) -> None:
    if (found.rank, found.scaling) != (target.rank, target.scaling):
        raise MetaInitError(
            f"{config.name}: the MetaInit at {config.meta_init} has rank {found.rank} and scale {found.scaling:g}, and "
            f"the model's settings have rank {target.rank} and scale {target.scaling:g}; set model.subspace as it was "
            "when the MetaInit was trained"
        )


def _subspace(card: Mapping[str, Any], uri: str) -> Subspace:
    try:
        return Subspace.from_json(card["subspace"])
    except (KeyError, TypeError, ValueError) as error:
        raise MethodError(f"the card at {uri} is damaged: its subspace cannot be read") from error


@dataclass(frozen=True)
class _Kind:
    check: Callable[[MethodConfig], None]
    open: Callable[[MethodConfig, LanguageModel], Updates]


def _nothing(config: MethodConfig) -> None:
    """Nothing is needed."""


_KINDS: dict[Source, _Kind] = {
    "none": _Kind(_nothing, lambda config, lm: SameForAll()),
    "static": _Kind(check_static, open_static),
    "adapters": _Kind(check_adapters, open_adapters),
    "gradients": _Kind(check_gradients, open_gradients),
    "gradients-now": _Kind(check_gradients_now, open_gradients_now),
    "adapting": _Kind(_nothing, open_adapting),
}


def check_method(config: MethodConfig) -> None:
    """Raise `MethodError` (or what reading a card or manifest raises) if the method lacks what it needs.

    Reads cards and manifests only: a few KB.
    """
    _KINDS[method_of(config).update].check(config)


def open_updates(config: MethodConfig, lm: LanguageModel) -> Updates:
    """The method's updates on this model; raises as `check_method`, and if an artefact is not this model's."""
    check_method(config)
    return _KINDS[get_method(config.kind).update].open(config, lm)
