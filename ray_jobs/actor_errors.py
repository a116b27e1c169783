"""An error on its way from an actor to the driver, as text: Ray Data hands on that an actor failed, but not with what.

What arrives is the error that was raised, of its own class and with its own arguments, so that a job ends with the
sentence that it would end with in one process.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType

from regrad import errors
from regrad.errors import RegradError, StorageError


def encode_error(error: RegradError | OSError) -> str:
    """The error as a line of JSON, for a row of a data set.

    A full disk or a refused connection becomes a `StorageError`, and an error of a class that `regrad.errors` does not
    have the nearest one that it has.
    """
    if not isinstance(error, RegradError):
        place = f" ({error.filename})" if error.filename else ""
        return _line(StorageError, [f"{error.strerror or error}{place}"])
    kind = next(one for one in type(error).__mro__ if getattr(errors, one.__name__, None) is one)
    # Another class may take other arguments than ours does, but every one that is not special takes its text.
    return _line(kind, list(error.args) if kind is type(error) else [str(error)], vars(error))


def decode_error(encoded: str) -> RegradError:
    """The error that `encode_error` was given."""
    content = json.loads(encoded)
    error: RegradError = getattr(errors, content["kind"])(*content["arguments"])
    vars(error).update(content["attributes"])
    return error


def _line(
    kind: type[Exception], arguments: list[object], attributes: Mapping[str, object] = MappingProxyType({})
) -> str:
    content = {"kind": kind.__name__, "arguments": arguments, "attributes": dict(attributes)}
    return json.dumps(content, default=str)
