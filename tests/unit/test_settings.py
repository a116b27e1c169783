from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import fsspec
import pytest
from pydantic import BaseModel, field_validator

import regrad
from regrad.bank.config import BankConfig, BuildConfig
from regrad.cli.demo.config import DemoConfig
from regrad.errors import ConfigError
from regrad.evaluation.config import EvalConfig
from regrad.lab.config import LabWriterConfig
from regrad.models.config import ModelConfig
from regrad.retrieval.config import IndexConfig
from regrad.settings import Settings, builtin_config, invalid, load_settings, models_in, parse_settings, read_yaml
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.synthesis.config import SynthesisConfig
from tests.tools.refusals import refused, refused_settings


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def unknown(key: str, near: str) -> dict[str, str]:
    return {"key": key, "problem": "extra_forbidden", "near": near}


def test_misspelt_key_names_the_nearest_right_one(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "corpus: a\noutputt: b\n")
    missing = {"key": "output", "problem": "missing"}
    with refused(ConfigError, "invalid", problems=[missing, unknown("outputt", near="output")]):
        load_settings(IndexConfig, path)


def test_misspelt_nested_override_names_the_nearest_right_one() -> None:
    with refused(ConfigError, "invalid", problems=[unknown("bank.codek", near="bank.codec")]):
        load_settings(BuildConfig, builtin_config("jobs/build-lab.yaml"), ["bank.codek=bf16"])


def test_a_list_is_not_called_too_short_for_a_misspelt_key_in_it() -> None:
    values = {"output": "o", "models": {"m": {"path": "p"}}, "sets": [], "methods": [{"name": "regrad", "gama": 1}]}
    short = {"key": "sets", "problem": "too_short", "near": ""}
    with refused(ConfigError, "invalid", problems=[short, unknown("methods.0.gama", near="methods.0.gamma")]):
        parse_settings(EvalConfig, values, "c.yaml")


def test_a_key_near_nothing_lists_the_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "c.yaml", "corpus: a\noutput: b\nzzzzzz: 1\n")
    with refused(ConfigError, "invalid", problems=[unknown("zzzzzz", near="")]) as found:
        load_settings(IndexConfig, path)
    assert f"the keys here are {', '.join(IndexConfig.model_fields)}" in str(found.value)


def test_a_key_of_a_section_is_named_with_its_section() -> None:
    with refused(ConfigError, "invalid", problems=[unknown("codec", near="bank.codec")]):
        load_settings(BuildConfig, builtin_config("jobs/build-lab.yaml"), ["codec=bf16"])


def test_a_key_of_several_sections_is_named_with_all_of_them() -> None:
    with refused(ConfigError, "invalid", problems=[unknown("steps", near="")]) as found:
        load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), ["steps=3"])
    assert "'inner.steps' or 'optimizer.steps'" in str(found.value)


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("sets.0.first=20", "sets.0.limit"),
        ("sets.0.cut=true", "sets.0.prag_style_cut"),
        ("sets.0.passages.fill=random", "sets.0.passages.distractors"),
        ("too_long=fail", "on_overflow"),
        ("sets.0.passages.bm25={k1: 1}", "sets.0.passages.retrieval.bm25"),
    ],
)
def test_a_setting_that_got_another_name_is_named_with_it(override: str, right: str) -> None:
    with refused(ConfigError, "invalid") as found:
        load_settings(EvalConfig, builtin_config("jobs/eval-lab.yaml"), [override])
    assert f": it is '{right}' now" in str(found.value)


def test_a_setting_that_became_two_is_named_with_both() -> None:
    with refused(ConfigError, "invalid", problems=[unknown("shape.order", near="")]) as found:
        load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), ["shape.order=best-first"])
    assert "'shape.order': it is 'model.prompts.order' or 'shape.shuffled' now" in str(found.value)


def has_key(kind: type[BaseModel], key: str) -> bool:
    """Whether a settings class has the key, in a section or in any member of a union."""
    name, _, rest = key.partition(".")
    field = kind.model_fields.get(name)
    return field is not None and (not rest or any(has_key(one, rest) for one in models_in(field.annotation)))


def subclasses(kind: type[Settings]) -> set[type[Settings]]:
    return {one for child in kind.__subclasses__() for one in (child, *subclasses(child))}


def sections(kind: type[BaseModel]) -> list[type[BaseModel]]:
    return [one for field in kind.model_fields.values() for one in models_in(field.annotation)]


def test_what_took_a_settings_place_is_there() -> None:
    """Of every class that has such settings; `/` is of a file that has a section of that class."""
    for walked in walk_packages(regrad.__path__, "regrad."):
        if walked.name.endswith((".config", ".question_sets")) or walked.name.startswith("regrad.methods."):
            import_module(walked.name)
    kinds = subclasses(Settings)
    moved = [(kind, target) for kind in kinds for target in kind.MOVED.values()]
    assert len(moved) >= 9
    for kind, targets in moved:
        for target in (targets,) if isinstance(targets, str) else targets:
            places = [one for one in kinds if kind in sections(one)] if target[0] == "/" else [kind]
            assert any(has_key(place, target.lstrip("/")) for place in places), (kind, target)


def test_an_error_of_a_whole_class_names_no_empty_key() -> None:
    overrides = ["inner.steps=2", "strategy.name=difference"]
    with refused(ConfigError, "invalid", problems=[{"key": "", "problem": "steps_need_graph", "near": ""}]) as found:
        load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), overrides)
    assert ": inner.steps above 1 needs" in str(found.value) and "''" not in str(found.value)


def test_override_changes_an_item_of_a_list() -> None:
    path = builtin_config("jobs/eval-lab.yaml")
    plain, changed = load_settings(EvalConfig, path), load_settings(EvalConfig, path, ["sets.0.limit=20", "k.0=2"])
    assert (changed.sets[0].limit, changed.k[0]) == (20, 2)
    assert changed.sets[1:] == plain.sets[1:]


@pytest.mark.parametrize("override", ["sets.9.limit=20", "sets.limit=20", "sets.-1.limit=20", "sets.9=20"])
def test_override_of_an_item_that_is_not_there_is_refused(override: str) -> None:
    with refused(ConfigError, "bad_override", override=override):
        load_settings(EvalConfig, builtin_config("jobs/eval-lab.yaml"), [override])


def test_override_changes_one_value_and_keeps_the_rest() -> None:
    path = builtin_config("jobs/build-lab.yaml")
    plain, changed = load_settings(BuildConfig, path), load_settings(BuildConfig, path, ["bank.codec=bf16"])
    assert plain.bank.codec == "float32"
    assert changed == plain.model_copy(update={"bank": plain.bank.model_copy(update={"codec": "bf16"})})


@pytest.mark.parametrize("override", ["model=models/small.yaml", "model={path: changed, prompts: models/prompts.yaml}"])
def test_override_may_name_a_file_from_the_directory_that_one_is_in(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.yaml").write_text("path: changed\nprompts: prompts.yaml\n")
    (tmp_path / "models" / "prompts.yaml").write_text("question: 'Asked: {question}'\n")
    monkeypatch.chdir(tmp_path)
    settings = load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), [override])
    assert settings.model.path.endswith("changed")
    assert settings.model.prompts.question == "Asked: {question}"


def test_override_that_names_no_file_is_refused() -> None:
    with refused(ConfigError, "not_found", path="models/nowhere.yaml"):
        load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml"), ["model=models/nowhere.yaml"])


@pytest.mark.parametrize("override", ["nonsense", "=3", "a=[1"])
def test_malformed_override_is_refused(override: str) -> None:
    with refused(ConfigError, "bad_override", override=override):
        load_settings(IndexConfig, None, [override])


def test_wrong_value_says_what_was_expected_and_found() -> None:
    problem = {"key": "bank.codec", "problem": "literal_error", "near": "bf16"}
    with refused(ConfigError, "invalid", problems=[problem]) as found:
        load_settings(BuildConfig, builtin_config("jobs/build-lab.yaml"), ["bank.codec=bf17"])
    assert "'float32', 'bf16', " in str(found.value) and "found 'bf17'" in str(found.value)


def test_missing_file_and_bad_yaml_are_config_errors(tmp_path: Path) -> None:
    write(tmp_path, "train.yaml", "")
    with refused(ConfigError, "not_found", near="train.yaml"):
        load_settings(IndexConfig, tmp_path / "tran.yaml")
    with refused(ConfigError, "not_yaml"):
        load_settings(IndexConfig, write(tmp_path, "bad.yaml", "a: [1\n"))
    with refused(ConfigError, "no_mapping", found="list"):
        load_settings(IndexConfig, write(tmp_path, "list.yaml", "- 1\n"))
    with refused(ConfigError, "invalid", problems=[{"key": "output", "problem": "missing"}]):
        load_settings(IndexConfig, write(tmp_path, "less.yaml", "corpus: a\n"))


def test_relative_locations_become_absolute_and_uris_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_settings(IndexConfig, None, ["corpus=data/c.jsonl", "output=s3://bucket/index"])
    assert config.corpus == str(tmp_path / "data/c.jsonl")
    assert config.output == "s3://bucket/index"


@pytest.mark.parametrize("name", sorted(path.name for path in builtin_config("models").glob("*.yaml")))
def test_every_model_file_is_valid(name: str) -> None:
    assert load_settings(ModelConfig, builtin_config(f"models/{name}")).subspace.rank > 0


def test_every_job_file_is_valid() -> None:
    assert load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml")).model.subspace.layers == (1, 2, 3)
    synthesis = load_settings(SynthesisConfig, builtin_config("jobs/synth-lab.yaml"))
    lab = load_settings(LabWriterConfig, builtin_config("jobs/lab-writer.yaml")).model
    assert synthesis.model.prompts == lab.prompts
    demo = load_settings(DemoConfig, builtin_config("jobs/demo.yaml"))
    assert demo.train.optimizer.steps == 1000
    assert demo.build.bank.codec == "float32"


def test_files_that_include_each_other_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: b.yaml\n")
    (tmp_path / "b.yaml").write_text("model: a.yaml\n")
    with refused(ConfigError, "includes_itself", path=str(tmp_path / "a.yaml")):
        load_settings(DemoConfig, tmp_path / "a.yaml")


def test_a_configuration_and_what_it_includes_may_lie_in_an_object_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/jobs/train.yaml", b"model: ../models/small.yaml\ntasks: t.jsonl\noutput: s3://b/x\n")
    store.pipe_file("/bucket/models/small.yaml", b"path: s3://b/base\nprompts: prompts.yaml\n")
    store.pipe_file("/bucket/models/prompts.yaml", b"question: 'Asked: {question}'\n")
    place = "memory://bucket/jobs/train.yaml"
    files: list[str | Path] = []
    read_yaml(place, files=files)
    assert files == [place, *(f"memory://bucket/models/{name}.yaml" for name in ("small", "prompts"))]
    settings = load_settings(MetaTrainConfig, place)
    assert settings.model.path == "s3://b/base" and settings.model.prompts.question == "Asked: {question}"
    here = write(tmp_path, "train.yaml", "model: memory://bucket/models/small.yaml\ntasks: t.jsonl\noutput: s3://b/x\n")
    assert load_settings(MetaTrainConfig, here).model == settings.model

    with refused(ConfigError, "not_found", path="memory://bucket/jobs/none.yaml"):
        load_settings(IndexConfig, "memory://bucket/jobs/none.yaml")
    store.pipe_file("/bucket/models/prompts.yaml", b"prompts: ../jobs/train.yaml\n")
    with refused(ConfigError, "includes_itself", path=place):
        load_settings(MetaTrainConfig, place)


def test_a_location_may_begin_with_the_home_directory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    assert parse_settings(BankConfig, {"uri": "~/bank"}, "x").uri == "/home/user/bank"
    assert parse_settings(BankConfig, {"uri": ""}, "x").uri == ""


class Even(Settings):
    name: str = ""

    @field_validator("name")
    @classmethod
    def _is_even(cls, name: str) -> str:
        raise invalid("not_even", f"{name} is not {{even}}; did you mean 'even'?", near="even")


def test_what_a_validator_refuses_has_a_code_and_is_said_once_as_it_stands() -> None:
    with refused_settings("not_even", "name", near="even") as info:
        parse_settings(Even, {"name": "odd"}, "test")
    assert str(info.value) == "test: key 'name': odd is not {even}; did you mean 'even'?, found 'odd'"


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (IndexConfig, {"corpus": "c", "output": "o"}),
        (MetaTrainConfig, load_settings(MetaTrainConfig, builtin_config("jobs/train-lab.yaml")).model_dump()),
    ],
)
def test_workers_that_hold_no_whole_base_have_one_gpu(kind: type[Settings], values: dict[str, object]) -> None:
    with refused_settings("one_gpu_a_worker"):
        parse_settings(kind, values | {"cluster": {"gpus_per_worker": 2}}, "c.yaml")


def test_several_gpus_for_workers_without_any_are_refused() -> None:
    with refused_settings("gpus_without_gpu", "cluster"):
        load_settings(BuildConfig, builtin_config("jobs/build-lab.yaml"), ["cluster={gpu: false, gpus_per_worker: 2}"])
