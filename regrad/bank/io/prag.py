"""The LoRA adapters of passages that PRAG trains (github.com/oneal2000/PRAG), as a bank of kind `adapter`.

Below a directory, one PEFT adapter directory a passage: `data_<n>/passage_<m>/adapter_config.json` beside
`adapter_model.safetensors` (or `.bin`). An atom is the adapter's A and B, flattened in the subspace that they span.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from regrad.bank.config import CodecName
from regrad.bank.io.release import Keyed, group, read_names
from regrad.bank.io.tensors import flat_atom, subspace_names
from regrad.bank.io.transfer import BadAtom, Imported, layout_for, local_source, read_tensors, take_in
from regrad.digests import json_digest
from regrad.errors import BankError, ModelError
from regrad.models.config import SubspaceConfig
from regrad.models.subspace import Subspace, block_of

_CONFIG, _WEIGHTS, _PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_START = "base_weight"
"""The directory of the adapter that all others were trained from; it belongs to no passage."""
# The keys of PEFT's adapter_config.json that are read here, and those that change nothing in what A and B do: which
# modules were chosen (the tensors say it), how they were trained, how the base model's weights lie in memory. Any other
# key that is set makes an adapter more, or other, than an A and a B of one rank a projection. PEFT's versions add keys.
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "base_model_name_or_path"}
_CHOICE_OF_MODULES = {"target_modules", "exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern"}
_WITHOUT_EFFECT = {
    *("task_type", "auto_mapping", "revision", "inference_mode", "peft_version", "megatron_core"),
    *("lora_dropout", "merge_weights", "fan_in_fan_out", "eva_config", "qalora_group_size"),
}
_UNDERSTOOD = _READ | _CHOICE_OF_MODULES | _WITHOUT_EFFECT
# The values with which these change nothing; other starts (PiSSA, LoftQ) take their part out of the base weights.
_NEUTRAL: dict[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


@dataclass(frozen=True)
class Frame:
    """What all adapters of a bank share."""

    base: str
    subspace: Subspace


def import_adapters(
    source: str, uri: str, ids: str | None = None, codec: CodecName | None = None, base_identity: str | None = None
) -> Imported:
    """Add every adapter below a directory to a bank. A passage's id is its path from there, or what `ids` says.

    `base_identity` stands for the base model in the fingerprint instead of the name in the adapters' configuration.
    Raises `BankError` if adapters are of several shapes or bases or are not plain LoRA; one that is damaged or not
    finite is quarantined.
    """
    with local_source(source) as local:
        root = local.path
        folders = sorted(path.parent for path in root.rglob(_CONFIG) if path.parent.name != _START)
        if not folders:
            raise BankError(
                f"there is no adapter below {local.uri}: no directory has {_CONFIG}", code="no_adapters", uri=local.uri
            )
        frame = _first_frame(folders, base_identity)
        layout = layout_for(uri, "adapter", adapter_fingerprint(frame), frame.subspace, codec)
        items = []
        for folder in folders:
            key = root.name if folder == root else folder.relative_to(root).as_posix()
            items.append(Keyed(key, key, partial(_load, folder, frame, base_identity)))
        grouped = group(items, read_names(ids) if ids else None, local.uri)
        return take_in(uri, layout, local.renamed(grouped.incoming()), grouped.left_out)


def read_base_weight(uri: str, subspace: Subspace) -> Tensor:
    """One PEFT adapter [p], such as the `base_weight` that all of PRAG's adapters are trained from.

    Raises `BankError` if it cannot be read or is of another subspace.
    """
    with local_source(uri) as local:
        if not (local.path / _CONFIG).is_file():
            raise BankError(f"there is no adapter at {local.uri}: {_CONFIG} is missing", code="no_adapters", uri=uri)
        config, tensors = _config(local.path), subspace_names(_weights(local.path), local.uri)
        found = _subspace(config, tensors, local.path)
        if (found.rank, found.scaling) != (subspace.rank, subspace.scaling):
            raise BankError(
                f"{local.uri} has rank {found.rank} and alpha {found.scaling * found.rank:g}, but adapters of rank "
                f"{subspace.rank} and alpha {subspace.scaling * subspace.rank:g} are to be trained from it; set "
                "adapter.rank and adapter.alpha to its own",
                code="other_adapter",
                differs="rank or scaling",
            )
        return flat_atom(tensors, subspace, local.uri)


def adapter_fingerprint(frame: Frame) -> str:
    """The first 16 hex digits of SHA-256 over what adapters depend on: their kind, base model and subspace."""
    head = {"kind": "adapter", "base": frame.base, "subspace": frame.subspace.to_json()}
    return json_digest(head)


def _first_frame(folders: list[Path], base_identity: str | None) -> Frame:
    """The frame of the first adapter that can be read."""
    problem = ""
    for folder in folders:
        try:
            return _read(folder, base_identity)[0]
        except BadAtom as error:
            problem = problem or str(error)
    raise BankError(
        f"none of {len(folders)} adapters can be read; the first: {problem}",
        code="no_readable_adapter",
        problem=problem,
    )


def _load(folder: Path, expected: Frame, base_identity: str | None) -> Tensor:
    frame, tensors = _read(folder, base_identity)
    if frame != expected:
        what = "base model" if frame.base != expected.base else "rank, scaling or projections"
        raise BankError(
            f"{folder} has another {what} than the adapters before it; import it into another bank",
            code="other_adapter",
            differs=what,
        )
    return flat_atom(tensors, frame.subspace, str(folder))


def _read(folder: Path, base_identity: str | None) -> tuple[Frame, dict[str, Tensor]]:
    config = _config(folder)
    tensors = subspace_names(_weights(folder), str(folder))
    base = base_identity or config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise BankError(f"{folder / _CONFIG} names no base model: give it with --base-identity", code="no_base_model")
    return Frame(base, _subspace(config, tensors, folder)), tensors


def _config(folder: Path) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadAtom(f"{path} cannot be read: {error}", code="unreadable", file=str(path)) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise BankError(f"{path} is not the configuration of a LoRA adapter", code="no_lora", file=str(path))
    odd = [name for name, value in config.items() if value and name not in _UNDERSTOOD]
    odd = sorted(name for name in odd if config[name] not in _NEUTRAL.get(name, ()))
    if odd:
        shown = ", ".join(f"{name} to {config[name]!r:.60}" for name in odd[:3])
        raise BankError(
            f"{path} sets {shown}, with which an adapter does more than its A and B; only plain LoRA of one rank makes "
            "an atom",
            code="not_plain_lora",
            settings=odd,
        )
    return config


def _weights(folder: Path) -> Mapping[str, Any]:
    if (folder / _WEIGHTS).is_file():
        try:
            return load_file(folder / _WEIGHTS)
        except (OSError, SafetensorError, ValueError) as error:
            file = str(folder / _WEIGHTS)
            raise BadAtom(f"{file} cannot be read: {error}", code="unreadable", file=file) from error
    if not (folder / _PICKLED).is_file():
        raise BadAtom(f"{folder} has neither {_WEIGHTS} nor {_PICKLED}", code="no_weights", folder=str(folder))
    found = read_tensors(folder / _PICKLED)
    if not isinstance(found, Mapping):
        raise BankError(f"{folder / _PICKLED} is not a dictionary of tensors", code="no_tensors")
    return found


def _subspace(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> Subspace:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise BankError(
            f"{folder / _CONFIG}: r and lora_alpha must be numbers, found {rank!r:.40} and {alpha!r:.40}",
            code="wrong_field",
            field="r",
        )
    names = sorted({name[:-2] for name in tensors}, key=_order)
    modules = []
    for name in names:
        a_RI, b_OR = tensors.get(f"{name}.A"), tensors.get(f"{name}.B")
        if a_RI is None or b_OR is None or a_RI.dim() != 2 or b_OR.dim() != 2:
            raise BankError(f"{folder}: {name} needs a matrix A and a matrix B", code="no_matrix", tensor=name)
        modules.append((name, a_RI.shape[1], b_OR.shape[0]))
    return Subspace(tuple(modules), rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _order(name: str) -> tuple[int, int, str]:
    """The order in which regrad finds projections in a model: by block, then as the default settings name them."""
    projections = SubspaceConfig.model_fields["projections"].default
    projection = name.rsplit(".", 1)[-1]
    place = projections.index(projection) if projection in projections else len(projections)
    try:
        return block_of(name)[1], place, name
    except ModelError:
        return -1, place, name
