"""Settings of `regrad rebuild`: those of its steps, and what serves what they make."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, model_validator

from regrad.bank.config import BuildConfig
from regrad.evaluation.config import EvalConfig
from regrad.rebuild.records import CostConfig
from regrad.rebuild.versions import OWN, PromotionConfig
from regrad.retrieval.config import IndexConfig
from regrad.settings import Location, Settings, invalid
from regrad.training.meta.config import MetaTrainConfig

META_INIT, INDEX, BANK, EVALUATION = (f"{OWN}{name}" for name in ("meta-init", "index", "bank", "eval"))
_INDEX_PLACE = re.compile(OWN + "[a-z][a-z0-9-]*")


class ServingConfig(Settings):
    """The servers that take a version up when it is promoted."""

    releases: Location = Field(description="the file named as `releases` in the servers' settings")
    collection: Location | None = Field(
        None, description="the collection named as `index` in the servers' settings; created if there is none"
    )
    name: str = Field("main", description="name of the release")
    url: str | None = Field(None, description="wait until the server at this address answers from it")


class RebuildConfig(Settings):
    """`regrad rebuild`: meta-train, index, build, verify, evaluate, promote.

    The sections are the settings of the verbs. What a step makes is at `version://NAME`; whatever reads it names it so.
    """

    output: Location
    corpus: Location
    meta_init: Location | None = Field(None, description="an existing MetaInit, instead of `train`")
    train: MetaTrainConfig | None = None
    index: tuple[IndexConfig, ...] = Field(min_length=1, description="built in this order; the last one is served")
    build: BuildConfig
    eval: EvalConfig
    promotion: PromotionConfig = PromotionConfig()
    serving: ServingConfig | None = None
    cost: CostConfig = CostConfig()
    rates: dict[str, float] = Field(
        {}, description="for --dry-run, by step: units per second and worker, for steps that were never measured"
    )

    @model_validator(mode="before")
    @classmethod
    def _filled(cls, data: Any) -> Any:
        return _with_places(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _possible(self) -> RebuildConfig:
        if (self.train is None) == (self.meta_init is None):
            raise invalid("not_one_start", "give `train`, or `meta_init` instead of it")
        self._check_places()
        if self.serving and self.serving.collection and not any(one.corpus for one in self.index):
            raise invalid(
                "nothing_to_collect",
                "serving.collection takes the indexes that are made of the corpus, and there are none",
            )
        _among(self.promotion.method, [one.name for one in self.eval.methods], "promotion.method")
        _among(self.promotion.set, [one.name for one in self.eval.sets], "promotion.set")
        _among(self.promotion.k, list(self.eval.k), "promotion.k")
        return self

    def _check_places(self) -> None:
        fixed = {"build.bank.uri": (self.build.bank.uri, BANK), "eval.output": (self.eval.output, EVALUATION)}
        if self.train is not None:
            fixed["train.output"] = (self.train.output, META_INIT)
        for key, (found, expected) in fixed.items():
            if found != expected:
                raise invalid(
                    "place_of_version",
                    f"{key} belongs to the version: leave it out, or give {expected}; found {found!r:.80}",
                )
        taken = {META_INIT, BANK, EVALUATION}
        for number, index in enumerate(self.index):
            key = f"index.{number}.output"
            if not _INDEX_PLACE.fullmatch(index.output):
                raise invalid(
                    "place_of_version",
                    f"{key} belongs to the version: {OWN}NAME is expected, found {index.output!r:.80}",
                )
            if index.output in taken:
                raise invalid("repeated", f"{key} is {index.output}, which is taken; give each index its own name")
            taken.add(index.output)


def _with_places(data: dict[str, Any]) -> dict[str, Any]:
    """The settings with the places that follow from each other, wherever none is given."""
    corpus, filled = data.get("corpus"), dict(data)
    meta_init = {"meta_init": data["meta_init"] if data.get("meta_init") else META_INIT}
    if isinstance(data.get("train"), dict):
        filled["train"] = {"output": META_INIT, **data["train"]}
    found = data.get("index", {})
    indexes = [found] if isinstance(found, dict) else found
    if isinstance(indexes, list):
        filled["index"] = [_index(one, corpus) if isinstance(one, dict) else one for one in indexes]
    build = data.get("build", {})
    if isinstance(build, dict):
        bank = build.get("bank", {})
        bank = {"uri": BANK, **bank} if isinstance(bank, dict) else bank
        filled["build"] = {**meta_init, "corpus": corpus, **build, "bank": bank}
    if isinstance(data.get("eval"), dict):
        filled["eval"] = {"output": EVALUATION, **data["eval"]}
    return filled


def _index(one: dict[str, Any], corpus: Any) -> dict[str, Any]:
    of = {} if one.get("fuse") or one.get("rerank") else {"corpus": corpus}
    return {**of, "output": INDEX, **one}


def _among(name: Any, known: list[Any], key: str) -> None:
    if name is not None and name not in known:
        raise invalid(
            "unknown_name", f"{key} is {name!r:.60}, which is none of the evaluation's: {', '.join(map(str, known))}"
        )
