"""From settings to updates: what a method needs is checked before a model is loaded, and opened after it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from regrad.config import MethodConfig
from regrad.language_model.loading import LanguageModel
from regrad.methods.adapting import open_adapting
from regrad.methods.base import Source
from regrad.methods.names import get_method, method_of
from regrad.methods.prag import check_adapters, open_adapters
from regrad.methods.regrad import check_gradients, check_gradients_now, open_gradients, open_gradients_now
from regrad.methods.static import check_static, open_static
from regrad.methods.updates import SameForAll, Updates


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
