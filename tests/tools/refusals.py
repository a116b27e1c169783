"""Errors as tests assert on them: by class, stable code and fields, not by their sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from regrad.errors import ConfigError, RegradError

E = TypeVar("E", bound=RegradError)


@contextmanager
def refused(kind: type[E], code: str = "", **fields: object) -> Iterator[pytest.ExceptionInfo[E]]:
    """The block raises this error, with this part of a code after its class's area, and at least these fields."""
    with pytest.raises(kind) as info:
        yield info
    expected = f"{kind.area}.{code}" if code else kind.area
    assert info.value.code == expected, f"{info.value.code}, not {expected}: {info.value}"
    found = {name: info.value.fields.get(name, "(not given)") for name in fields}
    assert found == fields, str(info.value)


@contextmanager
def refused_settings(
    problem: str, key: str | None = None, near: str = ""
) -> Iterator[pytest.ExceptionInfo[ConfigError]]:
    """The block raises the `ConfigError` of settings with this problem: at this key, if it is given, and with this as
    the nearest right name."""
    with refused(ConfigError, "invalid") as info:
        yield info
    problems = info.value.fields["problems"]
    assert isinstance(problems, list)
    found = [(one["problem"], one["key"], one.get("near", "")) for one in problems]
    assert (problem, near) in [(one, name) for one, _, name in found], f"{found}: {info.value}"
    assert key is None or (problem, key, near) in found, f"{found}: {info.value}"
