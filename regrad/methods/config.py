"""One row of a table of results: a method and what it needs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from regrad.settings import Location, Settings


class MethodConfig(Settings):
    """A method with its artefacts. A string stands for a method of that name that needs none."""

    name: str = Field(min_length=1, description="the row's label")
    method: str = Field("", description="one of regrad.methods.registry.METHODS; the same as the name if empty")
    meta_init: Location | None = Field(None, description="regrad, regrad+icl, regrad-online")
    bank: Location | None = Field(None, description="of gradients (regrad), or of trained adapters (prag)")
    bank_version: int | None = Field(None, ge=1, description="the one in force if null")
    adapter: Location | None = Field(None, description="a static LoRA of `regrad finetune`: cpt, ft-*, prag-warm")
    gamma: float = Field(1.0, ge=0, description="scale of the update; regrad, regrad+icl, regrad-online")
    weighting: str = Field(
        "sum", description="how several become one (regrad.gradients.merging.MERGES); prag: sum or mean"
    )
    on_missing: Literal["fewer", "online", "fail"] = Field(
        "fewer", description="a passage without an atom: leave it out and say so, compute it now, or stop"
    )
    prompt_style: Literal["default", "pe"] | None = Field(None, description="the method's own if null")
    demonstrations: int = Field(
        0, ge=0, le=1000, description="so many solved questions, the first of the set's file, before every question"
    )
    steps: int = Field(3, ge=1, le=1000, description="tta: gradient steps on a question's passages")
    lr: float = Field(1e-4, gt=0, description="tta: of AdamW")
    adapt_on: Literal["passages", "suffixes"] = Field(
        "passages", description="tta: predict all of a passage, or its second part from its first (TTARAG)"
    )
    in_prompt: bool = Field(True, description="tta: put the passages into the prompt, too; false: only train on them")
    seed: int = Field(
        0, description="tta: of the LoRA that every question starts from; an evaluation adds the cell's seed"
    )

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def kind(self) -> str:
        """The method's name."""
        return self.method or self.name
