"""A GGUF file as a base model: dequantised once, into a directory that is kept.

Its weights are in float32, where a number of a few bits times its block's scale is exact; bfloat16 would round it. So
the same file gives the same weights, and the same fingerprint, everywhere.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from regrad.digests import file_digest
from regrad.errors import ModelError
from regrad.models.checkpoint import LOADING
from regrad.storage import cache_directory
from regrad.text import in_one_line, listed

_MAGIC = b"GGUF"
_CARD = "gguf.json"


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is, or the one of a directory that has no other weights; raises `ModelError` if it has
    several."""
    if path.suffix.lower() == ".gguf":
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = listed([file.name for file in files], 5)
        raise ModelError(
            f"{path} has several GGUF files: {names}; give the path of one of them", code="several_gguf", path=str(path)
        )
    return files[0] if files else None


def dequantised(file: Path) -> Path:
    """A directory in Hugging Face format with the file's weights in float32 and its tokenizer.

    It is in the cache under the file's SHA-256, complete or absent, even if several processes make it at once.
    Raises `ModelError` for a file that is not GGUF, or whose architecture transformers cannot read from GGUF.
    """
    target = cache_directory() / "gguf" / _digest(file)[:24]
    if (target / _CARD).exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not storage's `directory_writer`, which replaces what is there: another process may be reading from it.
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    try:
        _convert(file, staging)
        (staging / _CARD).write_text(json.dumps({"file": file.name}))
        staging.rename(target)
    except OSError:
        if not (target / _CARD).exists():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            if stream.read(len(_MAGIC)) != _MAGIC:
                raise ModelError(f"{file} is not a GGUF file, or is cut short", code="not_gguf", path=str(file))
        return file_digest(file)
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read: {error.strerror or error}", code="unreadable", path=str(file)
        ) from error


def _convert(file: Path, target: Path) -> None:
    transformers_logging.disable_progress_bar()
    try:
        with LOADING:
            model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError, RuntimeError) as error:
        reason = in_one_line(error, 300)
        raise ModelError(
            f"{file} cannot be read as a language model: {reason}", code="gguf_unreadable", path=str(file)
        ) from error
    # transformers takes the dequantised model for a quantised one, and would refuse to save it.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
