"""Every method by name. A new one is one file and one entry here."""

from __future__ import annotations

import difflib

from regrad.errors import MethodError
from regrad.methods.base import Method
from regrad.methods.direct import DIRECT
from regrad.methods.knowledge import Knowledge
from regrad.methods.rag import RAG
from regrad.methods.regrad import REGRAD, REGRAD_ICL, REGRAD_ONLINE

METHODS: dict[str, Method] = {method.name: method for method in (DIRECT, RAG, REGRAD, REGRAD_ICL, REGRAD_ONLINE)}


def get_method(name: str) -> Method:
    """The method of this name; raises `MethodError` naming the nearest right one."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise MethodError(f"unknown method {name!r:.60}{hint} The methods are {', '.join(METHODS)}")


__all__ = ["METHODS", "Knowledge", "Method", "get_method"]
