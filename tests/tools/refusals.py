"""Errors as tests assert on them: by class, stable code and fields, not by their sentences."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from regrad.errors import RegradError

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
