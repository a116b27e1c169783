"""Every method by name. A new one is one file and one entry here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from regrad.config import MethodConfig
from regrad.errors import MethodError
from regrad.methods.adapting import TTA
from regrad.methods.base import Method, Source
from regrad.methods.direct import DIRECT
from regrad.methods.prag import FT_PRAG, PRAG, PRAG_ICL, PRAG_WARM
from regrad.methods.rag import PE_RAG, RAG
from regrad.methods.regrad import REGRAD, REGRAD_ICL, REGRAD_ONLINE
from regrad.methods.static import CPT, FT_DIRECT, FT_RAG, INSTRUCTION_CPT

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
