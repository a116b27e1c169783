"""How an atom is stored: one codec a file, chosen by name. docs/bank-format.md has every byte.

A new codec is a subclass of `Codec`, its name in `regrad.bank.config.CodecName`, and one line in `CODECS`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from regrad.bank.codecs.base import Codec
from regrad.bank.codecs.low_rank import LowRankCodec
from regrad.bank.codecs.quantized import CastCodec, Int4Codec, Int8Codec
from regrad.errors import BankError
from regrad.models.subspace import Subspace
from regrad.registry import Registry

CODECS: Registry[Callable[[Subspace], Codec]] = Registry(
    "codec",
    BankError,
    {
        "float32": partial(CastCodec, dtype=torch.float32),
        "bf16": partial(CastCodec, dtype=torch.bfloat16),
        "int8": Int8Codec,
        "int4": Int4Codec,
        "lowrank16": partial(LowRankCodec, ratio=16),
        "lowrank32": partial(LowRankCodec, ratio=32),
    },
)


def codec_for(name: str, subspace: Subspace) -> Codec:
    """The codec of this name for atoms of this subspace; raises `BankError` that names the nearest one if unknown."""
    return CODECS[name](subspace)
