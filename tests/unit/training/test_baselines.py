"""The documented commands that make the baselines' weights: each is valid and reads what an earlier one made."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from regrad.evaluation.config import EvalConfig
from regrad.lab.config import LabConfig
from regrad.methods.prag import DPragConfig, PragConfig, PragOnLoraConfig
from regrad.methods.static_lora import StaticLoraConfig
from regrad.retrieval.config import IndexConfig
from regrad.settings import Settings, builtin_config, load_settings
from regrad.training.lora.config import AdaptersConfig, AugmentConfig, FinetuneConfig

ROOT = Path(__file__).parents[3]
KINDS: dict[str, type[Settings]] = {
    **{"lab world": LabConfig, "index": IndexConfig, "augment": AugmentConfig},
    **{"finetune": FinetuneConfig, "adapters": AdaptersConfig, "eval": EvalConfig},
}
DEFAULTS = {"lab world": "lab-world", **{verb: f"{verb}-lab" for verb in ("index", "augment", "finetune", "adapters")}}
LAB_FILES = ("corpus.jsonl", "questions.jsonl", "tasks.jsonl", "dev.jsonl", "augmented.jsonl")


def parsed(line: str) -> Settings:
    """The settings of a documented command, its paths below the working directory."""
    words = shlex.split(line, comments=True)[1:]
    options = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    verb, pairs = " ".join(words[:options]), words[options:]
    given = list(zip(pairs[::2], pairs[1::2], strict=True))
    assert {option for option, _ in given} <= {"--config", "--set"}
    files = [ROOT / value for option, value in given if option == "--config"]
    path = files[0] if files else builtin_config(f"jobs/{DEFAULTS[verb]}.yaml")
    return load_settings(KINDS[verb], path, [value for option, value in given if option == "--set"])


def documented() -> list[Settings]:
    section = (
        (ROOT / "docs" / "evaluation.md").read_text().split("## The baselines' weights\n")[1].split("| method |")[0]
    )
    return [parsed(line) for line in section.splitlines() if line.startswith("    regrad ")]


def reads(settings: Settings) -> set[str]:
    found: set[str | None] = set()
    match settings:
        case IndexConfig():
            found = {settings.corpus}
        case AugmentConfig():
            found = {settings.corpus, settings.import_from, settings.tasks}
        case FinetuneConfig():
            found = {settings.corpus, settings.tasks, settings.start_from}
        case AdaptersConfig():
            found = {settings.corpus, settings.static}
        case EvalConfig():
            found = {one.path for one in settings.sets} | {one.passages.index for one in settings.sets}
            found |= {
                place for method in settings.methods for place in (method.artefacts.adapter, method.artefacts.bank)
            }
    return {str(place) for place in found if place}


def makes(settings: Settings) -> set[str]:
    if isinstance(settings, LabConfig):
        assert settings.augmented, "the augmentation that `regrad augment` takes"
        return {f"{settings.output}/{name}" for name in LAB_FILES}
    return {settings.bank.uri if isinstance(settings, AdaptersConfig) else str(getattr(settings, "output", ""))}


def test_every_documented_command_reads_what_is_there_and_writes_where_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    there: set[str] = set()
    for settings in documented():
        assert reads(settings) <= there, type(settings).__name__
        assert not makes(settings) & there
        there |= makes(settings)
    assert isinstance(settings, EvalConfig)
    families = (StaticLoraConfig, PragConfig, PragOnLoraConfig, DPragConfig)
    needing = {info.name for family in families for info in family.METHODS}
    needing -= {"rag-gd-base"}  # asked in configs/jobs/eval-rag-gd-lab.yaml, with the demonstrations that it is for
    assert {one.kind for one in settings.methods} == {"direct", "rag"} | needing


def test_the_warm_adapters_fit_beside_the_lora_that_they_are_trained_upon() -> None:
    steps = documented()
    warm = [one for one in steps if isinstance(one, FinetuneConfig) and one.model.subspace.rank < 32]
    upon = [one for one in steps if isinstance(one, AdaptersConfig) and one.static]
    (evaluation,) = [one for one in steps if isinstance(one, EvalConfig)]
    target = evaluation.models["lab"]
    by_place = {one.output: one for one in warm}
    assert {one.static for one in upon} == by_place.keys()
    for adapters in upon:
        static = by_place[str(adapters.static)]
        assert static.model.subspace.rank + max(evaluation.k) * adapters.adapter.rank <= target.subspace.rank
        assert static.model.model_copy(update={"subspace": target.subspace}) == target
        assert static.model.subspace.layers == target.subspace.layers
        free = {"soft_orthogonality": 0.0, "hard_orthogonality": False}
        plain = load_settings(AdaptersConfig, builtin_config("jobs/adapters-lab.yaml")).adapter
        assert adapters.adapter.model_copy(update=free) == plain
