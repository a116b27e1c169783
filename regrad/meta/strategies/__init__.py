"""Ways to the same meta-gradient: `graph`, `hvp`, `difference`; and `first-order`, an approximation, as an ablation."""

from __future__ import annotations

from regrad.meta.strategies.base import Strategy, make_strategy

__all__ = ["Strategy", "make_strategy"]
