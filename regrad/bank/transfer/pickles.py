"""Files that torch.save wrote: tensors, and nothing that could run code."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from regrad.bank.transfer.intake import BadAtom
from regrad.errors import BankError


def read_tensors(path: Path) -> Any:
    """What is in the file, mapped into memory where its format allows that.

    Raises `BankError` for a file that holds more than tensors, numbers, text, lists and dictionaries, without having
    run any of it; `BadAtom` for one that is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise BankError(
            f"{path} is refused: it is not a file of plain tensors, and what else it asks for could run code "
            f"({_reason(error)})"
        ) from error
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        reason = str(error).strip().splitlines()
        raise BadAtom(f"{path} cannot be read: {reason[0] if reason else type(error).__name__}") from error


def _reason(error: Exception) -> str:
    """The unpickler's own words, without its advice to load the file all the same."""
    found = re.search(r"(?:Unsupported \w+|GLOBAL|Trying to call)[^\n]{0,80}", str(error))
    return found[0] if found else "it is not a pickle of torch.save"
