"""Atoms as one safetensors file a passage, and LoRA tensors by the names that regrad and PEFT give them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from regrad.bank.config import CodecName
from regrad.bank.format import BankKind, Layout
from regrad.bank.io.transfer import BadAtom, Imported, Incoming, hash_of, layout_for, local_source, outgoing, take_in
from regrad.bank.reader import BankReader
from regrad.data.jsonl import encode_jsonl, read_jsonl
from regrad.errors import BankError
from regrad.models.subspace import Subspace
from regrad.settings import Settings, parse_settings
from regrad.storage import directory_writer

_PEFT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")
_OURS = re.compile(r".+\.[AB]")
_HASH = re.compile(r"[0-9a-f]{64}")


def subspace_names(tensors: Mapping[Any, Any], where: str) -> dict[str, Tensor]:
    """Tensors by `<module>.A` and `<module>.B`, from names of that form or PEFT's.

    Raises `BankError` for a name that is not a LoRA tensor's, a value that is not a plain tensor, or two of one name.
    """
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        peft = _PEFT.fullmatch(name) if isinstance(name, str) else None
        if not peft and not (isinstance(name, str) and _OURS.fullmatch(name)):
            raise BankError(
                f"{where}: {name!r:.120} is not the name of a LoRA tensor", code="unknown_tensor", tensor=str(name)
            )
        ours = f"{peft[1]}.{peft[2]}" if peft else name
        if ours in found:
            raise BankError(f"{where}: {name!r:.120} occurs twice", code="duplicate_tensor", tensor=ours)
        if not is_plain(value):
            raise BankError(
                f"{where}: {name!r:.120} is not a tensor of floating-point numbers", code="no_tensor", tensor=ours
            )
        found[ours] = value
    return found


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
        raise BankError(
            f"{where} does not fit the subspace of {len(expected)} tensors: it {listed}",
            code="other_tensors",
            missing=missing,
            extra=extra,
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise BankError(
                f"{where} does not fit the subspace: {name} is {list(tensors[name].shape)}, expected {list(shape)}",
                code="other_shape",
                tensor=name,
                found=list(tensors[name].shape),
                expected=list(shape),
            )
    atom_P = subspace.flatten({name: tensors[name].detach().float() for name in expected})
    if not bool(torch.isfinite(atom_P).all()):
        raise BadAtom("a number is not finite", code="not_finite")
    return atom_P


# An export: one file a passage, a listing of them, and a card that says what the atoms are.

CARD = "bank.json"
LISTING = "atoms.jsonl"
_FORMAT = 1


class ExportCard(Settings):
    """What the atoms of an export are, and which version of a bank they came from."""

    format: int = _FORMAT
    kind: BankKind
    fingerprint: str
    translator: str | None = None
    subspace: dict[str, Any]
    codec: CodecName
    version: str


def file_name(passage_id: str) -> str:
    """The file of a passage's tensors."""
    return f"{hashlib.sha256(passage_id.encode()).hexdigest()[:32]}.safetensors"


def export_tensors(uri: str, output: str, version: int | None = None, passage_ids: Sequence[str] | None = None) -> int:
    """Write a version's atoms (or those of some passages) as tensors to a new directory, or over an earlier export.

    Whole or not at all; returns how many there are. Raises `StorageError` if `output` is something else, and
    `AtomNotFound` or `AtomDamaged` as `copy_bank`.
    """
    with BankReader(uri, version=version) as bank:
        records = outgoing(uri, bank, passage_ids)
    count = 0
    manifest = bank.manifest
    subspace = manifest.parsed_subspace()
    card = ExportCard(
        kind=manifest.kind,
        fingerprint=manifest.fingerprint,
        translator=manifest.translator,
        subspace=manifest.subspace,
        codec=manifest.codec,
        version=manifest.label,
    )
    with directory_writer(output, CARD) as folder, open(folder / LISTING, "wb") as listing:
        for rows, found in records:
            for row, atom_P in zip(rows.to_pylist(), bank.codec.decode(torch.from_numpy(found)), strict=True):
                name = file_name(row["passage_id"])
                # Cloned: the tensors are views of one atom, and safetensors refuses tensors that share memory.
                tensors = {tensor: view.clone() for tensor, view in subspace.unflatten(atom_P).items()}
                (folder / name).write_bytes(save(tensors))
                line = {"id": row["passage_id"], "file": name, "text_hash": hash_of(row) or None}
                listing.write(encode_jsonl([line]))
            count += len(rows)
        (folder / CARD).write_text(card.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    return count


def import_tensors(folder: str, uri: str, codec: CodecName | None = None) -> Imported:
    """Add an export, of `export_tensors` or another tool, to a bank.

    A file that is missing or damaged, or a number that is not finite, quarantines its passage. Raises `BankError` if
    the directory is not an export or a file has other tensors than the card says.
    """
    with local_source(folder) as source:
        card = _read_card(source.path)
        try:
            subspace = Layout(**{name: getattr(card, name) for name in Layout.model_fields}).parsed_subspace()
        except ValueError as error:
            raise BankError(f"{source.path / CARD}: {error}", code="bad_card", file=CARD) from error
        layout = layout_for(uri, card.kind, card.fingerprint, subspace, codec, card.translator)
        return take_in(uri, layout, source.renamed(_incoming(source.path, subspace)))


def _read_card(folder: Path) -> ExportCard:
    path = folder / CARD
    if not path.is_file():
        raise BankError(f"{folder} is not an export of atoms: {CARD} is missing", code="no_export", missing=CARD)
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise BankError(f"{path} is not JSON; export the atoms again", code="bad_card", file=CARD) from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise BankError(
            f"{path} is not the card of an export of format {_FORMAT}, which this version of regrad reads: export the "
            "atoms again with this version",
            code="bad_card",
            file=CARD,
        )
    return parse_settings(ExportCard, data, str(path))


def _incoming(folder: Path, subspace: Subspace) -> Iterator[Incoming]:
    if not (folder / LISTING).is_file():
        raise BankError(f"{folder} is not an export of atoms: {LISTING} is missing", code="no_export", missing=LISTING)
    for where, line in read_jsonl(str(folder / LISTING)):
        passage_id, name, text_hash = _parsed(line, where)
        path = folder / name
        try:
            try:
                tensors = load_file(path)
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                raise BadAtom(f"{name} cannot be read: {error}", code="unreadable", file=name) from error
            yield Incoming(passage_id, text_hash, flat_atom(subspace_names(tensors, str(path)), subspace, str(path)))
        except BadAtom as error:
            yield Incoming(passage_id, text_hash, None, str(error))


def _parsed(line: dict[str, Any], where: str) -> tuple[str, str, str]:
    passage_id, name = line.get("id"), line.get("file")
    if not isinstance(passage_id, str) or not isinstance(name, str) or not passage_id or not name:
        text = f"{where}: an object with id and file is expected, found {line!r:.80}"
        raise BankError(text, code="wrong_field", where=where, field="id" if isinstance(name, str) and name else "file")
    text_hash = line.get("text_hash") or ""
    if Path(name).name != name:
        text = f"{where}: {name!r:.80} is not the name of a file in the same directory"
        raise BankError(text, code="wrong_field", where=where, field="file")
    if text_hash and not (isinstance(text_hash, str) and _HASH.fullmatch(text_hash)):
        text = f"{where}: text_hash must be 64 hex digits or null, found {text_hash!r:.80}"
        raise BankError(text, code="wrong_field", where=where, field="text_hash")
    return passage_id, name, text_hash
