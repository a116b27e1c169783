"""Tensors as NumPy arrays of their bits, in bf16: what Ray moves between processes without pickling the numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bits_of(values: Tensor) -> Any:
    """The numbers in bf16, as an array of int16."""
    return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy()


def tensor_of(bits: Any) -> Tensor:
    """The tensor of such an array, which may be read-only: it is copied."""
    return torch.from_numpy(bits.copy()).view(torch.bfloat16)
