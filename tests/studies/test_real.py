"""The real study without its model: its sets from made-up files, its steps, its figures and its document."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path

import pytest
import torch

import regrad
from regrad.data.questions import normalise
from regrad.data.tasks import Task
from regrad.errors import ConfigError, EvaluationError
from regrad.evaluation.output import CellCard, Planned
from regrad.evaluation.records import Record, write_records
from regrad.meta_init import MetaInit
from regrad.models.loading import LanguageModel
from regrad.settings import load_settings
from regrad.storage import Storage
from regrad.training.lora.lora_artifact import StaticLora
from studies.real import plan
from studies.real.config import RealConfig, RealStepsConfig
from studies.real.findings import Row, Table, best_prompts, figures, to_json
from studies.real.reading import Reading
from studies.real.report import write_report
from studies.real.retrieval import found_grid
from studies.real.sets import HELD, OTHER_QUESTIONS, SAME_ARTICLE, TRAINING, write_sets
from studies.step import Command
from tests.tools.evaluating import record
from tests.tools.refusals import refused

HERE = Path(plan.__file__).parent


@pytest.fixture
def tiny_lora(tiny: LanguageModel) -> StaticLora:
    """Not trained."""
    values = tiny.subspace.initial(0)
    return StaticLora(tiny.config, tiny.identity(), tiny.subspace, values, {"steps": 7, "parent": None})


SETS = ("squad_dev", "boolq_dev", "musique_dev_gold")


def lines(name: str, articles: int, per_article: int = 4) -> list[dict[str, object]]:
    """Questions of articles, two about each passage."""
    found = []
    for number in range(articles * per_article):
        article, place = divmod(number, per_article)
        passage = {"id": f"{name}-p{number // 2}", "title": f"{name} article {article}", "text": f"Fact {number // 2}."}
        other = {"id": f"{name}-other{number}", "title": "other", "text": "Nothing."}
        found.append(
            {
                "id": f"{name}-{number}",
                "question": f"What is fact {place} of {article}?",
                "answers": ["yes" if name.startswith("boolq") else f"fact {number}"],
                "passages": [other, passage],
                "gold": [passage["id"]],
            }
        )
    return found


@pytest.fixture
def config(tmp_path: Path) -> RealConfig:
    """Small made-up files of the sets' layout."""
    data = tmp_path / "data"
    data.mkdir()
    for name, articles in ((TRAINING, 80), *((name, 6) for name in SETS)):
        with gzip.open(data / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines(name, articles))
    return RealConfig(
        output=str(tmp_path / "out"),
        data=str(data),
        sets=SETS,
        retrieved_sets=("squad_dev",),
        questions=8,
        dev_questions=8,
    )


def read(config: RealConfig, name: str, file: str = "questions") -> list[dict[str, object]]:
    return [
        json.loads(line) for line in (Path(config.output) / "sets" / name / f"{file}.jsonl").read_text().splitlines()
    ]


def test_sets_have_their_gold_passages_and_no_article_on_both_sides(config: RealConfig) -> None:
    write_sets(config)
    training, held = read(config, TRAINING), read(config, HELD)
    assert held
    assert not {line["group"] for line in training} & {line["group"] for line in held}
    for name in SETS:
        asked = read(config, name)
        assert len(asked) == 8
        corpus = {line["id"] for line in read(config, name, "corpus")}
        named = {line["id"] for line in read(config, name, "asked")}
        for line in asked:
            assert [passage["id"] for passage in line["passages"]] == line["passage_ids"]
            assert set(line["passage_ids"]) <= named <= corpus
        shown = {line["question"] for line in read(config, name, "demonstrations")}
        assert len(shown) == 4
        if name != "squad_dev":
            assert not {line["id"] for line in read(config, name, "demonstrations")} & {line["id"] for line in asked}
    assert {line["kind"] for line in read(config, "boolq_dev")} == {"yes-no"}
    assert {line["id"] for line in read(config, "squad_dev", "demonstrations")} <= {line["id"] for line in training}


def test_the_draw_does_not_depend_on_the_order_of_the_file(config: RealConfig) -> None:
    write_sets(config)
    before = {name: read(config, name) for name in SETS}
    for name in SETS:
        path = Path(config.data) / f"{name}.jsonl.gz"
        shuffled = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
        random.Random(0).shuffle(shuffled)
        path.write_bytes(gzip.compress(b"".join(shuffled)))
    write_sets(config)
    assert {name: read(config, name) for name in SETS} == before


def test_the_control_has_another_passage_of_the_same_article(config: RealConfig) -> None:
    write_sets(config)
    own = {line["id"]: line for line in read(config, "squad_dev")}
    control = read(config, "squad_dev", SAME_ARTICLE)
    assert len(control) == 8
    for line in control:
        (passage,) = line["passages"]
        (gold,) = own[line["id"]]["passages"]
        assert passage["title"] == gold["title"]
        assert passage["id"] != gold["id"]


def test_prag_learns_the_other_questions_of_the_passages_and_none_that_is_asked(config: RealConfig) -> None:
    write_sets(config)
    asked = read(config, "squad_dev")
    tasks = [Task.from_record(line) for line in read(config, "squad_dev", OTHER_QUESTIONS)]
    assert {task.passages[0].id for task in tasks} <= {name for line in asked for name in line["passage_ids"]}
    taught = [question.question for task in tasks for question in task.questions]
    # Two questions a passage: of those that are asked about, the other is taught unless it is asked, too.
    both = len(asked) - len({line["passage_ids"][0] for line in asked})
    assert len(taught) == len(asked) - 2 * both > 0
    assert not {normalise(text) for text in taught} & {normalise(str(line["question"])) for line in asked}


def test_a_demonstration_is_not_asked_even_about_another_passage(config: RealConfig) -> None:
    path = Path(config.data) / "boolq_dev.jsonl.gz"
    again = [
        line | {"id": f"{line['id']}-again", "question": "What is the same?"} for line in lines("boolq_dev", 6)[:20]
    ]
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in (*lines("boolq_dev", 6), *again))
    write_sets(config)
    asked = {line["question"] for line in read(config, "boolq_dev")}
    assert "What is the same?" in asked
    assert not asked & {line["question"] for line in read(config, "boolq_dev", "demonstrations")}


def test_a_set_that_is_not_there_or_has_no_gold_is_named(config: RealConfig) -> None:
    (Path(config.data) / "boolq_dev.jsonl.gz").unlink()
    with refused(EvaluationError, "set_missing", set="boolq_dev"):
        write_sets(config)
    line = lines("boolq_dev", 1)[0] | {"gold": ["nobody"]}
    (Path(config.data) / "boolq_dev.jsonl").write_text(json.dumps(line) + "\n")
    with refused(EvaluationError, "bad_question"):
        write_sets(config)


@pytest.mark.parametrize("name", ["quick", "standard", "full"])
def test_every_step_has_valid_settings_and_needs_steps_before_it(name: str, tmp_path: Path) -> None:
    config = load_settings(RealConfig, HERE / f"{name}.yaml", [f"output={tmp_path}"])
    seen = set[str]()
    for step in plan.make_steps(config):
        assert step.needs <= seen, step.name
        assert step.name not in seen
        seen.add(step.name)
        if isinstance(step.work, Command):
            settings = step.work.settings
            assert str(tmp_path) in json.dumps(settings.model_dump(mode="json")), step.name
            assert "runs/real" not in json.dumps(step.work.content()).replace(str(tmp_path), ""), step.name
    retrieved = [plan.BY_RETRIEVER[retriever] for retriever in config.retrievers]
    assert {f"study {study}" for study in ("dev", "gold", *retrieved, "controls", "prag", "codecs")} <= seen


def test_each_retriever_has_an_index_of_each_set_and_an_evaluation(tmp_path: Path) -> None:
    config = RealConfig(output=str(tmp_path), start="a", retrieved_sets=("squad_dev",))
    steps = {step.name: step for step in plan.make_steps(config)}
    fused = steps["index fused squad_dev"]
    assert isinstance(fused.work, Command)
    joined = tuple(f"{tmp_path}/index/{name}/squad_dev" for name in ("bm25", "dense"))
    assert fused.work.settings.fuse.indexes == joined
    assert fused.needs == {"index bm25 squad_dev", "index dense squad_dev"}
    for retriever, study in plan.BY_RETRIEVER.items():
        asked = steps[f"study {study}"]
        assert isinstance(asked.work, Command)
        (one,) = asked.work.settings.sets
        assert (one.name, one.passages.index) == ("squad_dev", f"{tmp_path}/index/{retriever}/squad_dev")
        assert f"index {retriever} squad_dev" in asked.needs
    only = {step.name for step in plan.make_steps(config.model_copy(update={"retrievers": ("bm25",)}))}
    assert not only & {"encoder", "index dense squad_dev", "study retrieved-dense", "study retrieved-fused"}
    with pytest.raises(ValueError, match="type=parts_missing"):
        RealConfig(retrievers=("bm25", "fused"))


def test_the_gold_passage_is_counted_where_it_is_among_those_found(tmp_path: Path) -> None:
    config = RealConfig(output=str(tmp_path), retrieved_sets=("squad_dev",))
    asked = [json.dumps({"id": f"q{number}", "passage_ids": [f"p{number}"]}) for number in range(4)]
    Storage(f"{tmp_path}/sets/squad_dev").write("questions.jsonl", "\n".join(asked).encode())

    def answered(number: int, k: int, found: tuple[str, ...]) -> Record:
        one = record(f"q{number}", True, "rag", set="squad_dev", k=k)
        return replace(one, passage_ids=found, passage_scores=(1.0,) * len(found))

    records = {
        "retrieved": [answered(number, 1, ("p0",)) for number in range(4)],
        "retrieved-dense": [answered(number, 3, ("p9", f"p{number % 2}", "p3")) for number in range(4)],
    }
    grid = found_grid(config, records)
    assert grid is not None
    assert [[cell.text for cell in row] for row in grid.rows] == [["bm25", "1", "25"], ["dense", "3", "75"]]
    assert found_grid(config, {}) is None


def test_a_ready_start_is_taken_and_not_trained(tmp_path: Path) -> None:
    def trained(config: RealConfig) -> dict[str, Command]:
        steps = plan.make_steps(config)
        return {s.name: s.work for s in steps if isinstance(s.work, Command) and s.work.verb == "train"}

    assert trained(RealConfig(output=str(tmp_path), start="a", start_icl="b")) == {}
    (work,) = trained(RealConfig(output=str(tmp_path), start="a")).values()
    assert work.settings.start_from == f"{tmp_path}/starts/regrad-0"
    assert set(trained(RealConfig(output=str(tmp_path), start="a", seeds=(3, 4)))) == {
        "start icl-3",
        "start regrad-4",
        "start icl-4",
    }
    with pytest.raises(ValueError, match="type=plain_start_missing"):
        RealConfig(start_icl="a")


def test_a_ready_lora_stands_in_for_fine_tuned_rag(tmp_path: Path, tiny_lora: StaticLora) -> None:
    tiny_lora.save(tmp_path / "ready")
    config = RealConfig(output=str(tmp_path / "out"), ft_rag=str(tmp_path / "ready"), steps=RealStepsConfig(ft_rag=0))
    (step,) = (step for step in plan.make_steps(config) if step.name == "adapter ft-rag")
    step.run()
    assert StaticLora.load(plan.ft_rag_place(config)).digest == tiny_lora.digest
    assert "ft-rag" not in plan.rows_left_out(config)


def test_rows_that_nothing_is_trained_for_are_left_out(tmp_path: Path) -> None:
    config = RealConfig(
        output=str(tmp_path),
        start="a",
        steps=RealStepsConfig(icl=0, ft_direct=0, ft_rag=0, cpt_epochs=0, prag_epochs=0),
        seeds=(1,),
    )
    steps = plan.make_steps(config)
    assert not [step.name for step in steps if any(name in step.name for name in ("icl", "ft-", "cpt", "prag"))]
    (gold,) = (step.work for step in steps if step.name == "study gold")
    assert isinstance(gold, Command)
    assert [step.work.settings for step in steps if isinstance(step.work, Command)]  # none names a row that is gone
    rows = [method.name for method in gold.settings.methods]
    assert rows == [
        "direct",
        "direct, 4 shots",
        "rag",
        "pe-rag",
        "rag, 4 shots",
        "raw gradients",
        "regrad",
    ]


def test_a_ready_start_is_told_where_the_model_lies(tmp_path: Path) -> None:
    ready = Path(regrad.__file__).parent / "starts" / "smollm2-135m"
    config = RealConfig(output=str(tmp_path), start=str(ready), model=str(tmp_path / "model"))
    (step,) = (step for step in plan.make_steps(config) if step.name == "start regrad-0")
    step.run()
    taken = MetaInit.load(f"{tmp_path}/starts/regrad-0")
    assert taken.model.path == config.model
    assert torch.equal(taken.phi0, MetaInit.load(str(ready)).phi0)
    with refused(ConfigError, "invalid"):
        load_settings(RealConfig, HERE / "standard.yaml", ["sets=[nq_open_oracle]"])


QUESTIONS = 60


def row(study: str, name: str, method: str, k: int, f1: float) -> list[Record]:
    """A row whose questions all have this score."""
    return [record(f"q{number}", number % 2 == 0, method, set=name, k=k, f1=f1) for number in range(QUESTIONS)]


def made_up(ours: float) -> dict[str, list[Record]]:
    gold = [
        *row("gold", "squad_dev", "direct", 0, 0.05),
        *row("gold", "squad_dev", "ft-direct", 0, 0.1),
        *row("gold", "squad_dev", "rag, 4 shots", 1, 0.4),
        *row("gold", "squad_dev", "ft-rag", 1, 0.5),
        *row("gold", "squad_dev", "regrad", 1, ours),
        *row("gold", "squad_dev", "regrad+icl", 1, 0.45),
    ]
    dev = [
        *row("dev", HELD, "direct", 0, 0.2),
        *row("dev", HELD, "direct, 4 shots", 0, 0.1),
        *row("dev", HELD, "rag", 1, 0.2),
        *row("dev", HELD, "pe-rag", 1, 0.1),
        *row("dev", HELD, "rag, 4 shots", 1, 0.3),
    ]
    return {"gold": gold, "dev": dev, "controls": row("controls", "another passage", "regrad", 1, 0.04)}


def test_figures_compare_with_the_best_prompts_and_say_what_is_missed() -> None:
    table = Table(made_up(ours=0.3))
    prompts = best_prompts(table, HELD)
    assert prompts == {"direct": "direct", "rag": "rag, 4 shots"}
    found = {one["name"]: one for one in to_json(figures(table, prompts))}
    assert found["f1_regrad_minus_other"]["points"] == pytest.approx(26)
    assert found["f1_regrad_minus_other"]["met"]
    assert found["f1_regrad_minus_ft_direct"]["met"]
    assert found["f1_regrad_minus_rag"]["points"] == pytest.approx(-10)
    assert not found["f1_regrad_minus_rag"]["met"]
    assert not found["f1_regrad_icl_minus_ft_rag"]["met"]
    assert "em_int4_minus_bf16" not in found  # was not asked
    assert not {one["name"]: one for one in to_json(figures(Table(made_up(ours=0.1)), prompts))}[
        "f1_regrad_minus_ft_direct"
    ]["met"]
    assert table.mean(Row("gold", "squad_dev", "nobody"), "f1") is None


def test_the_document_says_what_was_found_and_how(tmp_path: Path) -> None:
    config = RealConfig(output=str(tmp_path), report=str(tmp_path / "doc" / "real.md"), k=(1,))
    for study, records in made_up(ours=0.3).items():
        cards = []
        for number, (key, rows) in enumerate(groupby(records, key=lambda one: (one.set, one.method, one.k))):
            name, method, k = key
            card = CellCard(name=f"c{number}", model="m", set=name, method=method, k=k, seed=0, questions=QUESTIONS)
            found = [replace(one, model="m") for one in rows]
            write_records(Storage(f"{tmp_path}/studies/{study}"), f"cells/{card.name}.parquet", found)
            cards.append(card)
        planned = Planned(format=1, metric="f1", compare_to=None, k=(1,), cells=tuple(cards))
        Storage(f"{tmp_path}/studies/{study}").write("plan.json", planned.model_dump_json().encode())
    reading = Reading(48, 1.92, 3.67, 3.38, 5.55, 5.98, 6.39)
    (tmp_path / "reading.json").write_text(json.dumps(asdict(reading)))
    line = write_report(config, seconds=7200)
    assert line.startswith("4 of 6 figures reach their target")
    text = (tmp_path / "doc" / "real.md").read_text()
    assert "Direct is best asked as `direct` and RAG as `rag, 4 shots`" in " ".join(text.split())
    assert "ReGrad, with nothing in the prompt, against RAG at its best prompt: -10.0 points" in text
    assert "the right passage is worth 1.75 nats" in " ".join(text.split())
    assert "| f1\\_regrad\\_minus\\_other | +26.0" in text
    assert (tmp_path / "doc" / "images" / "real-gold.svg").read_bytes().startswith(b"<?xml")
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["loss_gap_right_vs_other"] == pytest.approx(1.75)
    (tmp_path / "reading.json").write_text("{}")
    with refused(EvaluationError, "damaged"):
        write_report(config, seconds=7200)
