"""Every method by name. A new one is one file and one entry here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace

from regrad.config import MethodConfig
from regrad.errors import MethodError
from regrad.methods.adapting import TTA
from regrad.methods.base import Method
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
    if config.in_prompt:
        return method
    if not method.starts_at_random:
        raise MethodError(f"{config.name}: 'in_prompt: false' is a setting of tta, not of {config.kind}")
    return replace(method, passages_in_prompt=False)
