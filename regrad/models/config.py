"""Settings of the base model, its prompts and its subspace: apart, as the command line reads them without torch."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from regrad.prompts import PromptFormat
from regrad.settings import Settings

ActsOn = Literal["everything", "answer"]
"""The tokens that an update acts on: all, or the last one of the prompt and those of the answer."""


class SubspaceConfig(Settings):
    """The adaptation subspace: LoRA of one rank on some projections of some blocks."""

    rank: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    layers: Literal["upper-half", "all"] | tuple[int, ...] = "upper-half"
    projections: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")

    @property
    def scaling(self) -> float:
        """The factor alpha / rank on B A."""
        return self.alpha / self.rank


def _existing(path: str) -> str:
    expanded = os.path.expanduser(path)
    return os.path.abspath(expanded) if os.path.exists(expanded) else path


ModelPath = Annotated[str, AfterValidator(_existing)]
"""A directory or its URI, a GGUF file, a hub name, or `package:NAME/PATH` for one inside an installed package."""


class ModelConfig(Settings):
    """A base language model, its prompts and its subspace."""

    path: ModelPath
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["eager", "sdpa"] = "eager"
    prompts: PromptFormat = PromptFormat()
    subspace: SubspaceConfig = SubspaceConfig()
