"""The lab report's plan: which steps there are, what each needs, and the command that does it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from regrad.data.corpora import read_passages
from regrad.evaluation.config import EvalConfig
from regrad.settings import builtin_config, load_settings
from regrad.training.lora.config import FinetuneConfig
from studies.lab_report.config import LabReportConfig
from studies.lab_report.files import write_documents
from studies.lab_report.plan import ONE_SEED, STUDIES, changes, make_steps, path_of
from studies.step import Command


def study(name: str, config: LabReportConfig) -> EvalConfig:
    return load_settings(EvalConfig, path_of(name), changes(name, config))


def read_by(settings: EvalConfig) -> set[str]:
    """Every place that an evaluation reads."""
    found: set[str] = set()
    for one in settings.sets:
        found |= {one.path, *filter(None, (one.passages.index, one.passages.corpus))}
        for method, seed in itertools.product(settings.methods, settings.seeds):
            uses = method.artefacts
            places = filter(None, (uses.meta_init, uses.bank, uses.adapter))
            found |= {place.replace("{seed}", str(seed)).replace("{set}", one.name) for place in places}
    return found


@pytest.mark.parametrize("name", ["lab-report", "lab-report-quick"])
def test_an_evaluation_needs_the_steps_that_make_what_it_reads_and_no_others(name: str) -> None:
    config = load_settings(LabReportConfig, builtin_config(f"jobs/{name}.yaml"), ["output=/tmp/out"])
    steps = {step.name: step for step in make_steps(config)}
    for each in STUDIES:
        step, settings = steps[f"study {each}"], study(each, config)
        assert settings.output == step.makes == f"/tmp/out/studies/{each}"
        assert settings.seeds == (config.seeds[:1] if each in ONE_SEED else config.seeds)
        made = {steps[other].makes: other for other in step.needs}
        sources = {
            next((n for p, n in made.items() if f"{place}/".startswith(f"{p}/")), place) for place in read_by(settings)
        }
        assert sources == step.needs


def test_a_command_reads_what_the_steps_before_it_make() -> None:
    config = LabReportConfig(output="/tmp/out", seeds=(0, 1), documents=(10, 30))
    steps = {step.name: step for step in make_steps(config)}
    for step in steps.values():
        if isinstance(step.work, Command) and not step.is_evaluation:
            named = [text for text in re.findall(r"/tmp/out[^'\] ]*", str(step.work)) if text != step.makes]
            made = [steps[other].makes for other in step.needs]
            assert all(any(f"{text}/".startswith(f"{place}/") for place in made) for text in named), step.name
            assert len(named) >= len(made), step.name


def test_names_are_different_and_what_is_needed_comes_before() -> None:
    config = LabReportConfig(output="/tmp/out", seeds=(0, 1), documents=(10, 30))
    steps = make_steps(config)
    place = {step.name: number for number, step in enumerate(steps)}
    needs = {step.name: step.needs for step in steps}
    assert len(place) == len(steps)
    assert all(place[other] < place[name] for name, others in needs.items() for other in others)
    assert needs["start mixed-1"] == {"lab", "lab firms", "start regrad-1"}
    assert needs["adapter cpt-documents-30-1"] == {"documents", "adapter cpt-documents-10-1"}
    assert needs["measure"] == needs.keys() - {"measure"}


def test_a_step_is_a_command_that_a_reader_can_type() -> None:
    (build,) = (step.work for step in make_steps(LabReportConfig(output="/tmp/out")) if step.name == "bank raw")
    assert str(build) == (
        f"regrad build --config {builtin_config('jobs/build-lab.yaml')} --set bank.uri=/tmp/out/banks/raw "
        "--set cluster.workers=1 --set cluster.cpus_per_worker=0.25 --set meta_init=/tmp/out/starts/raw "
        "--set corpus=/tmp/out/lab/corpus.jsonl --set bank.codec=float32"
    )


def test_a_training_without_its_job_says_so_and_a_function_is_named() -> None:
    steps = {step.name: step.work for step in make_steps(LabReportConfig(output="/tmp/out"))}
    training = steps["start regrad-0"]
    assert isinstance(training, Command)
    assert str(training).endswith("  # run in one process, without workers and checkpoints")
    assert "#" not in str(replace(training, as_job=True))
    assert shlex.split(str(training), comments=True) == ["regrad", *training.arguments]
    assert str(steps["measure"]) == "studies.lab_report.measurements.measure"


def test_a_command_ends_with_the_line_that_the_verb_says(tmp_path: Path) -> None:
    values = (f"output={tmp_path}/lab", "questions=2", "task_records=1")
    line = Command("lab world", builtin_config("jobs/lab-world.yaml"), values).run()
    assert line.startswith(f"lab world at {tmp_path}/lab: ")
    assert (tmp_path / "lab" / "corpus.jsonl").exists()


def test_continual_training_goes_on_with_what_came_since() -> None:
    config = LabReportConfig(output="/tmp/out", seeds=(0,), documents=(10, 30))
    found = {s.name: s.work.settings for s in make_steps(config)}
    first, second = found["adapter cpt-documents-10-0"], found["adapter cpt-documents-30-0"]
    assert isinstance(first, FinetuneConfig)
    assert isinstance(second, FinetuneConfig)
    assert (first.start_from, first.corpus) == (None, "/tmp/out/documents/10.jsonl")
    assert (second.start_from, second.corpus) == (first.output, "/tmp/out/documents/30.jsonl")


def test_the_documents_of_a_number_are_those_that_came_since(tmp_path: Path) -> None:
    config = LabReportConfig(output=str(tmp_path), questions=6, documents=(3, 5))
    write_documents(config)
    files = ("3", "5", "until-3", "until-5", "all")
    three, five, until_three, until_five, everything = (
        [passage.id for passage in read_passages(f"{tmp_path}/documents/{name}.jsonl")] for name in files
    )
    assert (len(three), len(five)) == (3, 2)
    old = until_three[:-3]
    assert (until_three, until_five) == ([*old, *three], [*old, *three, *five])
    assert everything[: len(until_five)] == until_five
    asked = [json.loads(line) for line in (tmp_path / "documents" / "questions.jsonl").read_text().splitlines()]
    assert [item["group"] for item in asked] == ["new"] * 6 + ["memorised"] * 6
    assert {item["passage_id"] for item in asked[6:]} <= set(old)
    assert {item["passage_id"] for item in asked[:6]} <= set(everything) - set(old)


def test_numbers_of_documents_take_the_files_places() -> None:
    config = LabReportConfig(output="/tmp/out", documents=(10, 30))
    drift = study("drift", config)
    assert [one.name for one in drift.sets] == ["documents-10", "documents-30"]
    assert drift.sets[1].passages.index == "/tmp/out/index/documents-30"
    assert {m.adapter for m in study("methods", config).methods if m.name == "cpt"} == {"/tmp/out/adapters/cpt-{seed}"}
    names = [m.name for m in study("general", config).methods if "documents" in m.name]
    assert names == ["cpt, documents-10", "cpt, documents-30"]
