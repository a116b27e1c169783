"""Updates as PEFT adapter directories, so that any server that loads LoRAs can answer with a bank's passages.

A ReGrad update is whole LoRA parameters, phi0 - gamma * alpha * (sum of atoms), so a request's passages are one
adapter of phi0's rank. Trained adapters (PRAG) are added as products B A, which takes the sum of their ranks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from safetensors import SafetensorError
from torch import Tensor

from regrad.bank.reader import BankReader
from regrad.errors import AtomNotFound, BankError, MetaInitError
from regrad.meta_init import MetaInit
from regrad.models.subspace import ADAPTER_CONFIG, Subspace, save_adapter
from regrad.storage import Storage, directory_writer
from regrad.text import counted

NOTES = "regrad.json"
"""Beside PEFT's two files: what the adapter was made of."""


def export_start(
    uri: str, output: str, meta_init_uri: str, version: int | None = None, base: str | None = None
) -> None:
    """Write phi0 alone, what a bank's updates start from; raises as `export_update`."""
    meta_init = _loaded(meta_init_uri)
    BankReader(uri, meta_init.fingerprint, version).close()
    notes = {"meta_init": meta_init.fingerprint, "passage_ids": []}
    _write(output, base or meta_init.model.path, meta_init.subspace, meta_init.phi0, notes)


def export_update(
    uri: str,
    output: str,
    passage_ids: Sequence[str],
    meta_init_uri: str | None = None,
    version: int | None = None,
    gamma: float = 1.0,
    base: str | None = None,
) -> None:
    """Write the update of these passages together as the new directory `output`, complete or not at all.

    A bank of gradients needs the MetaInit that it belongs to; a bank of adapters needs `base`, the name of its model.
    Raises `FingerprintMismatch` for another MetaInit, `AtomNotFound` with all ids that the version has no atom for,
    `AtomDamaged`, `BankError` for repeated or no ids, an `output` that exists, or a vector that is not finite, and
    `MetaInitError` for a MetaInit whose updates act on the answer alone.
    """
    _check_absent(output)
    _check_distinct(passage_ids)
    meta_init = _loaded(meta_init_uri) if meta_init_uri is not None else None
    with BankReader(uri, meta_init.fingerprint if meta_init else None, version) as bank:
        manifest = bank.manifest
        _check_present(bank, uri, passage_ids)
        if manifest.kind == "gradient":
            if meta_init is None:
                raise BankError(
                    f"the bank at {uri} holds gradients: an update needs the MetaInit that they were computed at",
                    code="no_meta_init",
                    uri=uri,
                )
            subspace, vector_P = meta_init.subspace, meta_init.update(bank.sum(passage_ids), gamma)
            base = base or meta_init.model.path
        else:
            if base is None or gamma != 1.0:
                raise BankError(
                    f"the bank at {uri} holds adapters: name the base model that they were trained on, and leave gamma "
                    "at 1",
                    code="no_base_model",
                    uri=uri,
                )
            subspace, vector_P = _side_by_side(manifest.parsed_subspace(), bank.read(passage_ids))
    notes = {"bank": manifest.label, "passage_ids": list(passage_ids), "gamma": gamma}
    _write(output, base, subspace, vector_P, {**notes, manifest.kind: manifest.fingerprint})


def _loaded(uri: str) -> MetaInit:
    meta_init = MetaInit.load(uri)
    if meta_init.acts_on != "everything":
        raise MetaInitError(
            f"updates of the MetaInit at {uri} act on the {meta_init.acts_on} alone, but servers apply a PEFT adapter "
            "to the prompt as well and would answer differently; train with inner.acts_on everything to export them",
            code="acts_on_answer",
            uri=uri,
        )
    return meta_init


def _check_distinct(passage_ids: Sequence[str]) -> None:
    repeated = [passage_id for passage_id, count in Counter(passage_ids).items() if count > 1]
    if repeated or not passage_ids:
        found = f"twice {repeated[:3]}" if repeated else "none"
        raise BankError(
            f"the passages of an update are named once each; found {found}", code="bad_ids", repeated=repeated
        )


def _check_present(bank: BankReader, uri: str, passage_ids: Sequence[str]) -> None:
    missing = [passage_id for passage_id in passage_ids if passage_id not in bank]
    if missing:
        text = f"version {bank.manifest.version} of the bank at {uri} has no atom for {missing[:5]}"
        raise AtomNotFound(f"{text} ({counted(len(missing), 'passage')} of {len(passage_ids)})", passage_ids=missing)


def _side_by_side(subspace: Subspace, atoms_NP: Tensor) -> tuple[Subspace, Tensor]:
    """The LoRA whose product B A is the sum of the atoms' products."""
    wide = Subspace(subspace.modules, subspace.rank * len(atoms_NP), subspace.scaling)
    parts = [subspace.unflatten(atom_P) for atom_P in atoms_NP]
    joined = {
        name: torch.cat([part[name] for part in parts], dim=1 if name.endswith(".B") else 0) for name in subspace.shapes
    }
    return wide, wide.flatten(joined)


def _check_absent(output: str) -> None:
    storage = Storage(output)
    if storage.fs.exists(storage.root):
        raise BankError(f"{output} exists already; choose another place for it", code="output_exists", uri=output)


def _write(output: str, base: str, subspace: Subspace, vector_P: Tensor, notes: Mapping[str, object]) -> None:
    _check_absent(output)
    if not bool(torch.isfinite(vector_P).all()):
        raise BankError(
            "the update has numbers that are not finite; a smaller gamma or fewer passages may help", code="not_finite"
        )
    try:
        with directory_writer(output, ADAPTER_CONFIG) as folder:
            save_adapter(folder, base, subspace, vector_P)
            (folder / NOTES).write_text(json.dumps(notes, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except SafetensorError as error:
        raise BankError(
            f"the adapter cannot be written to {output}: {error}", code="not_written", uri=output
        ) from error
