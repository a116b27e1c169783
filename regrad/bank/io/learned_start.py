"""Importing the ReGrad release's learned start: phi0 and step sizes, with its two configurations, to a MetaInit.

Its directory (`output_dir` of their Meta.py) has `meta_state_dict.pth`, LoRA tensors and step sizes by the names that
they have in their learner, `peft_config.json` and `learner_config.json`. What is not in it is which weights the base
had and how passages and prompts were written: those are the model's settings that the import is given.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrad.bank.config import LearnedStartConfig
from regrad.bank.io.tensors import is_plain
from regrad.bank.io.transfer import BadAtom, LocalSource, local_source, read_tensors
from regrad.errors import BankError, MetaInitError
from regrad.meta_init import MetaInit
from regrad.models.config import SubspaceConfig
from regrad.models.loading import LanguageModel, load_language_model
from regrad.models.subspace import Subspace, block_of

STATE, PEFT, LEARNER = "meta_state_dict.pth", "peft_config.json", "learner_config.json"
_LORA = re.compile(r"base_model\.base_model\.model\.(.+)\.lora_([AB])\.default\.weight")
_ALPHA = re.compile(r"alpha_base_model-model-(.+)-lora_([AB])-default-weight")
_MODES = ("tie", "same", "full", "fix")
_UNDERSTOOD = {"r", "lora_alpha", "use_rslora", "target_modules", "peft_type"}
_WITHOUT_EFFECT = {"task_type", "inference_mode", "base_model_name_or_path", "revision", "lora_dropout", "peft_version"}
"""Keys of PEFT that say nothing of what a trained A and B mean; dropout is of training alone."""


@dataclass(frozen=True)
class _Start:
    """What the directory holds: LoRA tensors and step sizes by `<module>.A` and `.B`, and how they are meant."""

    where: str
    lora: Mapping[str, Tensor]
    alphas: Mapping[str, Tensor]
    one_alpha: Tensor | None
    rank: int
    scaling: float
    mode: str
    initial: float
    base: str


def run(config: LearnedStartConfig) -> str:
    """Import, and return one line about what was made."""
    made = import_learned_start(config)
    low, high = float(made.step_sizes.min()), float(made.step_sizes.max())
    return (
        f"MetaInit {made.fingerprint} at {config.output}: {len(made.subspace.modules)} projections, "
        f"rank {made.subspace.rank}, step sizes {low:.3g} to {high:.3g}"
    )


def import_learned_start(config: LearnedStartConfig) -> MetaInit:
    """Write the start (a directory, at any URI) as a MetaInit of the base model.

    Raises `MetaInitError` naming the file, the key or the tensor that does not fit, and `ModelError` if the base has no
    such projections.
    """
    with local_source(config.source) as local:
        start = _read(local)
    subspace = _subspace_config(start)
    lm = load_language_model(config.model.model_copy(update={"subspace": subspace}))
    phi0, step_sizes = _fitted(start, lm)
    notes = {"imported": "regrad-release", "base_model_name_or_path": start.base}
    made = MetaInit(
        lm.config, lm.identity(), lm.subspace, phi0, step_sizes, notes=notes, step_size_mode=start.mode
    )  # fmt: skip
    made.save(config.output)
    return made


def _read(source: LocalSource) -> _Start:
    folder, where = source.path, source.uri
    peft, learner = _json(folder, PEFT, where), _json(folder, LEARNER, where)
    rank, scaling = _rank_and_scaling(peft, f"{where}/{PEFT}")
    mode, initial = learner.get("alpha_mode", "tie"), _number(learner, "init_alpha", f"{where}/{LEARNER}", 1e-2)
    if mode not in _MODES:
        raise _wrong_key(f"{where}/{LEARNER}", "alpha_mode", f"one of {', '.join(_MODES)}", mode)
    lora, alphas, one_alpha = _sorted_out(_state(source), f"{where}/{STATE}")
    base = str(learner.get("base_model_name_or_path", ""))
    return _Start(f"{where}/{STATE}", lora, alphas, one_alpha, rank, scaling, mode, initial, base)


def _json(folder: Path, name: str, where: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise MetaInitError(
            f"{where} has no {name}: the directory that the release's Meta.py wrote is expected, with {STATE}, {PEFT} "
            f"and {LEARNER}",
            code="incomplete_start", file=name,
        )  # fmt: skip
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise MetaInitError(f"{where}/{name} is not JSON: {error}", code="not_json", file=name) from error
    if not isinstance(found, dict):
        raise MetaInitError(f"{where}/{name} is not a JSON object", code="not_json", file=name)
    return found


def _rank_and_scaling(peft: Mapping[str, Any], where: str) -> tuple[int, float]:
    from peft import LoraConfig  # brings every model of transformers with it: seconds

    if str(peft.get("peft_type")).upper() != "LORA":
        raise _wrong_key(where, "peft_type", "LORA", peft.get("peft_type"))
    plain = LoraConfig().to_dict()
    for key, value in peft.items():
        if key not in _UNDERSTOOD | _WITHOUT_EFFECT and value and value != plain.get(key):
            raise _wrong_key(where, key, "a plain LoRA, which leaves it out,", value)
    rank, alpha = peft.get("r"), _number(peft, "lora_alpha", where)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise _wrong_key(where, "r", "a positive whole number", rank)
    return rank, alpha / (math.sqrt(rank) if peft.get("use_rslora") else rank)


def _number(values: Mapping[str, Any], key: str, where: str, default: float | None = None) -> float:
    found = values.get(key, default)
    if not isinstance(found, int | float) or isinstance(found, bool) or not math.isfinite(found):
        raise _wrong_key(where, key, "a number", found)
    return float(found)


def _wrong_key(where: str, key: str, expected: str, found: object) -> MetaInitError:
    return MetaInitError(f"{where}: '{key}': {expected} is expected, found {found!r:.80}", code="wrong_key", key=key)


def _state(source: LocalSource) -> Mapping[Any, Any]:
    path = source.path / STATE
    if not path.is_file():
        raise MetaInitError(f"{source.uri} has no {STATE}", code="incomplete_start", file=STATE)
    try:
        found = read_tensors(path)
    except BadAtom as error:
        raise MetaInitError(source.named(str(error)), code="damaged_start", file=STATE) from error
    except BankError as error:  # it asks for more than tensors, and is not run
        raise MetaInitError(source.named(str(error)), code="unsafe_start", file=STATE) from error
    if not isinstance(found, Mapping):
        raise MetaInitError(f"{source.uri}/{STATE} is not a dictionary of tensors", code="damaged_start", file=STATE)
    return found


def _sorted_out(state: Mapping[Any, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]:
    """LoRA tensors and step sizes by our names, in the order of the file, and the step size of all if there is one."""
    lora: dict[str, Tensor] = {}
    alphas: dict[str, Tensor] = {}
    one: Tensor | None = None
    for name, value in state.items():
        tensor, step_size = _LORA.fullmatch(str(name)), _ALPHA.fullmatch(str(name))
        if not is_plain(value) or not bool(torch.isfinite(value).all()):
            raise _wrong_tensor(where, name, "is not a tensor of finite floating-point numbers")
        if tensor:
            lora[f"{tensor[1]}.{tensor[2]}"] = value.detach().float()
        elif step_size:
            alphas[f"{step_size[1].replace('-', '.')}.{step_size[2]}"] = value.detach().float()
        elif name == "alpha":
            one = value.detach().float()
        else:
            raise _wrong_tensor(where, name, "is neither a LoRA tensor nor a step size of the release's learner")
    if not lora:
        raise MetaInitError(f"{where} has no LoRA tensor", code="damaged_start", file=STATE)
    return lora, alphas, one


def _wrong_tensor(where: str, name: object, problem: str) -> MetaInitError:
    return MetaInitError(f"{where}: {name!r:.160} {problem}", code="wrong_tensor", tensor=str(name))


def _subspace_config(start: _Start) -> SubspaceConfig:
    """The blocks and projections of the tensors."""
    paths = dict.fromkeys(name[:-2] for name in start.lora)
    layers = sorted({block_of(path)[1] for path in paths})
    projections = dict.fromkeys(path.split(f".{block_of(path)[1]}.", 1)[1] for path in paths)
    alpha = start.scaling * start.rank
    return SubspaceConfig(rank=start.rank, alpha=alpha, layers=tuple(layers), projections=tuple(projections))


def _fitted(start: _Start, lm: LanguageModel) -> tuple[Tensor, Tensor]:
    """phi0 [P] and the step sizes in the order of the model's subspace, every tensor looked at."""
    subspace = lm.subspace
    for name in start.lora:
        if name not in subspace.shapes:
            raise _wrong_tensor(start.where, name, "is of no projection that the base model has")
    tensors = {name: _of_shape(start.lora, name, shape, start.where) for name, shape in subspace.shapes.items()}
    return subspace.flatten(tensors), _step_sizes(start, subspace)


def _of_shape(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...], where: str, what: str = "") -> Tensor:
    found = tensors.get(name)
    if found is None:
        raise _wrong_tensor(where, name, f"{what}is missing")
    if tuple(found.shape) != shape:
        raise _wrong_tensor(where, name, f"{what}has the shape {list(found.shape)}; {list(shape)} is expected")
    return found


def _step_sizes(start: _Start, subspace: Subspace) -> Tensor:
    if start.mode == "fix":
        return torch.full((len(subspace.shapes),), start.initial)
    if start.mode == "same":
        if start.one_alpha is None or start.one_alpha.numel() != 1:
            raise _wrong_tensor(start.where, "alpha", "is missing, or not one number, as alpha_mode same has it")
        return start.one_alpha.reshape(1).expand(len(subspace.shapes)).clone()
    found = {
        name: _of_shape(start.alphas, name, shape if start.mode == "full" else (), start.where, "has a step size that ")
        for name, shape in subspace.shapes.items()
    }
    return subspace.flatten(found) if start.mode == "full" else torch.stack(list(found.values()))
