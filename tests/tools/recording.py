"""What is counted, kept for tests."""

from __future__ import annotations

from typing import Any

from serve_app.observability import Definition


class Recorded:
    """Stands in for Ray's metrics, which keep nothing outside a cluster."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, dict[str, str]]] = []

    def make(self, name: str, definition: Definition) -> Any:
        calls = self.calls

        class One:
            def _record(self, value: float, tags: dict[str, str] | None = None) -> None:
                assert set(tags or {}) == set(definition.tags), name
                calls.append((name, value, tags or {}))

        verb = {"counter": "inc", "gauge": "set", "histogram": "observe"}[definition.kind]
        setattr(One, verb, One._record)
        return One()

    def of(self, name: str) -> list[Any]:
        return [(value, *tags.values()) for called, value, tags in self.calls if called == name]
