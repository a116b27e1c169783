"""LoRA tensors under the names that PEFT, other projects and regrad give them, made into an atom."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from regrad.bank.transfer.intake import BadAtom
from regrad.errors import BankError
from regrad.language_model.subspace import Subspace

_PEFT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_OURS = re.compile(r".+\.[AB]")


def subspace_names(tensors: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Tensors by `<module>.A` and `<module>.B`, whichever way their names say that.

    Raises `BankError` for a name that is not a LoRA tensor's, a value that is not a plain tensor, or two of one name.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        ours = _name(name)
        if ours is None or ours in found:
            reason = "occurs twice" if ours else "is not the name of a LoRA tensor"
            raise BankError(f"{where}: {name!r:.120} {reason}")
        if not is_plain(value):
            raise BankError(f"{where}: {name!r:.120} is not a tensor of floating-point numbers")
        found[ours] = value
    return found


def _name(name: Any) -> str | None:
    if not isinstance(name, str):
        return None
    match = _PEFT.fullmatch(name)
    if match:
        return f"{match[1]}.{match[2]}"
    return name if _OURS.fullmatch(name) else None


def is_plain(value: Any) -> bool:
    """Whether this is an ordinary tensor of floating-point numbers in memory."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and value.is_floating_point()


def flat_atom(tensors: Mapping[str, Tensor], subspace: Subspace, where: str) -> Tensor:
    """Tensors by the subspace's names as [P] float32.

    Raises `BankError` if names or shapes are not the subspace's, `BadAtom` if a number is not finite.
    """
    expected = subspace.shapes
    missing = [name for name in expected if name not in tensors]
    extra = sorted(set(tensors) - set(expected))
    if missing or extra:
        listed = "; ".join(f"{what} {names[:3]}" for what, names in (("lacks", missing), ("also has", extra)) if names)
        raise BankError(f"{where} does not fit the subspace of {len(expected)} tensors: it {listed}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise BankError(
                f"{where} does not fit the subspace: {name} is {list(tensors[name].shape)}, expected {list(shape)}"
            )
    atom_P = subspace.flatten({name: tensors[name].detach().float() for name in expected})
    if not bool(torch.isfinite(atom_P).all()):
        raise BadAtom("a number is not finite")
    return atom_P
