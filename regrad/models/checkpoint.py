"""Reading a checkpoint: complete, intact, finite and not quantised, or refused with the file or tensor at fault.

transformers fills a missing weight with random numbers, drops one that it has no place for, casts one of another type,
and says so only in a log. A bank or a MetaInit made with such a model is worthless, so all of that is an error here,
before anything is computed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from regrad.errors import ModelError
from regrad.models.architectures import architecture_of
from regrad.models.placement import device_map_of
from regrad.models.sharded import whole
from regrad.models.tokens import turn_end
from regrad.storage import safetensors_header
from regrad.text import listed

_ADAPTER, _GENERATION = "adapter_config.json", "generation_config.json"
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What transformers reads beside the weights. Of a large tokenizer.json only the beginning is looked at here.
_SETTINGS = ("config.json", _GENERATION, _INDEX, "tokenizer_config.json", "tokenizer.json", "tokenizer.model")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_LFS_POINTER = b"version https://git-lfs"
_MOST_PARSED = 1 << 20
_MOST_NAMED = 3
# Types of numbers, as safetensors calls them, that a weight has only with a scale beside it.
_QUANTISED = re.compile(r"F8_\w+|F4|E8M0|[IU]\d+|BOOL")
# Tensors of old checkpoints that the model computes itself.
_COMPUTED = re.compile(r"(\.inv_freq|\.(cos|sin)_cached|\.masked_bias|\.(attn|attention)\.bias)$")

# transformers replaces a method of its base class while it loads a model and puts back what it found: two threads that
# load at once leave it replaced for good, and every later model of the process with its head untied.
LOADING = threading.Lock()


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode, its tokenizer, and the ids of the tokens that end an answer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    end_ids: tuple[int, ...]


def load_checkpoint(
    path: str, name: str, dtype: torch.dtype, attention: str, devices: Sequence[torch.device] = ()
) -> Checkpoint:
    """Load from a local directory or a hub name; raises `ModelError`, which calls the checkpoint `name`.

    With several `devices` each weight is read to its own (see `placement`), and nowhere is there a copy of all of them.
    Refused are weights that are missing, of another shape, of no use to the model, cut short, not fetched (a Git LFS
    pointer) or quantised, and adapters.
    """
    config, tokenizer = load_without_weights(path, name)
    places = device_map_of(config, devices) if len(devices) > 1 else None
    transformers_logging.disable_progress_bar()
    try:
        with LOADING:
            model, info = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                output_loading_info=True,
                device_map=places,
            )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise _not_loaded(name, error) from error
    if getattr(model, "_hf_peft_config_loaded", False):  # of the hub, where the files were not looked at before
        raise _is_adapter(name, "")
    _check_complete(info, name)
    _check_all_used(model, info, name)
    end_ids = _end_ids(model.generation_config, config, tokenizer, name)
    model.generation_config = GenerationConfig()  # greedy means greedy, whatever the model's own file suggests
    return Checkpoint(model.requires_grad_(False).eval(), tokenizer, end_ids)


def load_without_weights(path: str, name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A checkpoint's configuration and tokenizer, in a moment; raises `ModelError` as far as that can be seen without.

    That is all that `load_checkpoint` refuses but what is wrong with single tensors.
    """
    if Path(path).is_dir():
        _check_files(Path(path), name)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        _check_not_quantised(config, name)
    except ModelError:
        raise
    except Exception as error:
        raise _not_loaded(name, error) from error
    try:
        return config, AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        if not Path(path).is_dir() or any(Path(path, file).is_file() for file in _TOKENIZERS):
            raise _not_loaded(name, error) from error
        raise ModelError(
            f"there is no tokenizer next to the model {name}, such as a tokenizer.json; save it there, too",
            code="no_tokenizer",
            path=name,
        ) from error


def _not_loaded(name: str, error: Exception) -> ModelError:
    # Of any class: transformers and the libraries that it asks raise what comes up, the tokenizers' even `Exception`.
    # What is not an error of ours would be taken for a lost worker, and tried again.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    if not isinstance(error, OSError | ValueError | ImportError):  # the text of others, as of a KeyError, says little
        reason = f"{type(error).__name__}: {reason}"
    return ModelError(f"no language model could be loaded from {name}: {reason}", code="not_loaded", path=name)


def _is_adapter(name: str, base: str) -> ModelError:
    of_base = f" of {base}" if base else ""
    return ModelError(
        f"{name} is an adapter{of_base} and not a whole model; give its base model, or merge the adapter into it with "
        "PEFT's `merge_and_unload` and save the result",
        code="is_adapter",
        path=name,
        base=base,
    )


def stored_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint of the model holds: parameters, then the buffers that are saved, such as a router's bias."""
    yield from model.named_parameters()
    stored = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


def check_finite(model: nn.Module, name: str) -> None:
    """Raise `ModelError` for the first weight that holds NaN or an infinity."""
    for tensor, weights in stored_tensors(model):
        with whole(weights):
            finite = bool(torch.isfinite(weights).all())
        if not finite:
            raise ModelError(
                f"{name}: the weight {tensor} has numbers that are not finite; download or convert the model again, "
                "or load it with another `dtype`",
                code="not_finite",
                path=name,
                tensor=tensor,
            )


def _check_files(folder: Path, name: str) -> None:
    # With PEFT installed, transformers would load the base that the adapter names and put the adapter into it.
    if (folder / _ADAPTER).is_file():
        try:
            base = json.loads((folder / _ADAPTER).read_bytes()).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
        raise _is_adapter(name, base if isinstance(base, str) else "")
    for file in _SETTINGS:
        if (folder / file).is_file():
            _check_settings_file(folder / file, name)
    for file in _weight_files(folder):
        if not (folder / file).is_file():
            raise ModelError(
                f"{name}: {_INDEX} names {file}, which is not there; copy or download it",
                code="weights_not_found",
                path=name,
                file=file,
            )
        _check_weight_file(folder / file, name)


def _check_settings_file(file: Path, name: str) -> None:
    # A generation_config.json that cannot be read is passed over by transformers, and its end tokens with it.
    with file.open("rb") as stream:
        content = stream.read(_MOST_PARSED)
    if content.startswith(_LFS_POINTER):
        raise _not_fetched(file, name)
    if file.suffix != ".json" or len(content) == _MOST_PARSED:
        return
    try:
        readable = isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        readable = False
    if not readable:
        raise ModelError(
            f"{name}: {file.name} is not a JSON object; copy or download it again",
            code="json_damaged",
            path=name,
            file=file.name,
        )


def _weight_files(folder: Path) -> list[str]:
    """The files that transformers would read, by their names; if it would find none, all that look like weights."""
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    if (folder / _INDEX).is_file():
        places = json.loads((folder / _INDEX).read_bytes()).get("weight_map")
        if isinstance(places, dict) and places:
            return sorted(set(map(str, places.values())))
    return sorted(file.name for file in folder.glob("*.safetensors"))


def _check_weight_file(file: Path, name: str) -> None:
    with file.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise _not_fetched(file, name)
        tensors, expected = _tensor_types(stream)
    found = file.stat().st_size
    if expected is None or found != expected:
        sizes = "" if expected is None else f" ({found:,} bytes of {expected:,})"
        raise ModelError(
            f"{name}: {file.name} is cut short or damaged{sizes}; copy or download it again",
            code="weights_damaged",
            path=name,
            file=file.name,
        )
    for tensor, kind in tensors.items():
        if tensor.endswith(("weight", "weight_packed")) and _QUANTISED.fullmatch(kind):
            raise _quantised(name, f"{tensor} is {kind}", kind)


def _not_fetched(file: Path, name: str) -> ModelError:
    return ModelError(
        f"{name}: {file.name} is a Git LFS pointer and not the file itself; run `git lfs pull` there",
        code="not_fetched",
        path=name,
        file=file.name,
    )


def _tensor_types(stream: BinaryIO) -> tuple[dict[str, str], int | None]:
    """The type of each tensor, and the size that the file must have; None for one without a proper header."""

    def read(start: int, end: int) -> bytes:
        stream.seek(start)
        return stream.read(end - start)

    try:
        header, data_start = safetensors_header(read, 100 << 20)
        tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
        return {key: str(entry["dtype"]) for key, entry in tensors.items()}, data_start + end
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}, None


def _check_not_quantised(config: Any, name: str) -> None:
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not found:
        return
    settings = found if isinstance(found, dict) else found.to_dict()
    method = str(settings.get("quant_method", "unknown"))
    raise _quantised(name, method, method)


def _quantised(name: str, how: str, method: str) -> ModelError:
    return ModelError(
        f"{name} is quantised ({how}), and gradients through quantised weights are not those of the model; give "
        "the checkpoint that it was made from",
        code="quantised",
        path=name,
        method=method,
    )


def _check_complete(info: dict[str, Any], name: str) -> None:
    for problem, what in (("missing_keys", "lacks"), ("mismatched_keys", "has in another shape")):
        # A key of another shape comes with its two shapes.
        keys = sorted(key if isinstance(key, str) else str(key[0]) for key in info.get(problem) or ())
        if keys:
            raise ModelError(
                f"{name} {what} {listed(keys, _MOST_NAMED)}, which would be left at random values; is a file of the "
                "checkpoint missing, or is it of another kind of model?",
                code=problem,
                path=name,
                tensors=keys[:_MOST_NAMED],
            )


def _check_all_used(model: nn.Module, info: dict[str, Any], name: str) -> None:
    """Raise `ModelError` for weights in the text decoder, or of a module there is, that the model has no place for.

    A tower for images, a classification head or blocks that predict further tokens may be left out.
    """
    blocks = architecture_of(model).block_list(model)[0] + "."
    further = getattr(model.config.get_text_config(), "num_nextn_predict_layers", 0) or 0  # type: ignore[operator,union-attr]
    count = len(model.get_submodule(blocks[:-1]))  # type: ignore[arg-type]
    left_out = {f"{blocks}{number}" for number in range(count, count + int(further))}
    modules = {path for path, _ in model.named_modules() if path}

    def is_needed(tensor: str) -> bool:
        if tensor.startswith(blocks):
            return ".".join(tensor.split(".")[: blocks.count(".") + 1]) not in left_out
        return tensor.rpartition(".")[0] in modules

    keys = sorted(map(str, info.get("unexpected_keys") or ()))
    if odd := [key for key in keys if is_needed(key) and not _COMPUTED.search(key)]:
        raise ModelError(
            f"{name} has {listed(odd, _MOST_NAMED)}, for which a {type(model).__name__} built by its config.json has "
            "no place; is config.json that of another model, or are the weights quantised?",
            code="unexpected_keys",
            path=name,
            tensors=odd[:_MOST_NAMED],
        )


def _end_ids(
    generation: GenerationConfig | None, config: Any, tokenizer: PreTrainedTokenizerBase, name: str
) -> tuple[int, ...]:
    """The tokenizer's end token, those of generation_config.json and config.json, and the one that ends a chat's turn.

    Chat models end a turn with another token than a text, and not every checkpoint lists it.
    """
    ids = [tokenizer.eos_token_id, *turn_end(tokenizer)]
    for settings in (generation, config, config.get_text_config()):
        given = getattr(settings, "eos_token_id", None)
        ids += given if isinstance(given, list | tuple) else [given]
    ids = [number for number in ids if number is not None]
    if odd := [number for number in ids if type(number) is not int]:
        raise ModelError(
            f"{name}: an end token is {odd[0]!r:.40} in generation_config.json or config.json, and `eos_token_id` is "
            "the id of a token or a list of ids; correct it there",
            code="bad_end_token",
            path=name,
            found=str(odd[0]),
        )
    return tuple(dict.fromkeys(ids))
