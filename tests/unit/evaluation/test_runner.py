"""Running a cell on the random model: every question under its own update, however many are decoded together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from regrad.data.passages import Passage
from regrad.data.question_sets import read_questions
from regrad.errors import EvaluationError, NothingFound, PromptTooLong
from regrad.evaluation.config import EvalConfig
from regrad.evaluation.output import CellResult
from regrad.evaluation.passages import FoundPassages, PassageFinder
from regrad.evaluation.plan import make_plan
from regrad.evaluation.records import check_records
from regrad.evaluation.runner import CellRunner, Generator
from regrad.inference.decoding import GenerationRequest, generate
from regrad.inference.rows import Finished
from regrad.lab.world import World
from regrad.meta_init import MetaInit
from regrad.methods.base import NOTHING_FOUND
from regrad.methods.registry import METHODS
from regrad.methods.regrad import BoundMetaInit
from regrad.models.loading import LanguageModel, load_language_model
from tests.tools.adapting import adapter_bank, static_lora
from tests.tools.evaluating import settings, write_set
from tests.tools.refusals import refused


@pytest.fixture
def folder(tmp_path: Path, passages: list[Passage], meta_init: MetaInit) -> Path:
    write_set(tmp_path, passages)
    meta_init.save(tmp_path / "meta-init")
    return tmp_path


def run(lm: LanguageModel, config: EvalConfig) -> list[CellResult]:
    return [CellRunner(lm, config).run(cell) for cell in make_plan(config)]


def only(folder: Path, lm: LanguageModel, method: str, k: int = 1, **changes: Any) -> EvalConfig:
    start = {"meta_init": str(folder / "meta-init")} if METHODS[method].applies_gradients else {}
    one = {"name": method, **start}
    return settings(folder, lm.config, methods=[one], k=[k], **changes)


def test_records_are_of_the_questions_and_the_same_however_many_at_once(folder: Path, tiny: LanguageModel) -> None:
    batches = [{"rows": 1, "questions": 1}, {"rows": 4, "questions": 5}, {}]
    runs = [run(tiny, only(folder, tiny, "rag", 3, batch=batch))[0] for batch in batches]
    said = [[(record.question_id, record.raw, record.passage_ids) for record in one.records] for one in runs]
    assert said[0] == said[1] == said[2]
    check_records(runs[0].records, read_questions(only(folder, tiny, "rag").sets[0]))


@pytest.mark.slow
def test_prag_on_all_blocks_and_regrad_on_the_upper_half_stand_in_one_table_as_if_each_were_alone(
    folder: Path, tiny: LanguageModel, world: World
) -> None:
    known = adapter_bank(tiny, world, str(folder / "adapters"), layers="all")[2]
    write_set(folder, known, len(known))
    static_lora(tiny, 7, folder / "lora")
    methods = [
        "direct",
        {"name": "regrad-online", "meta_init": str(folder / "meta-init")},
        {"name": "prag", "bank": str(folder / "adapters")},
        {"name": "cpt", "adapter": str(folder / "lora")},
    ]
    changes: dict[str, Any] = {"k": [3], "max_new_tokens": 12}
    table = run(tiny, settings(folder, tiny.config, methods=methods, **changes))
    said = [[record.raw for record in cell.records] for cell in table]
    assert len({tuple(texts) for texts in said}) == len(methods)
    for method, together in zip(methods, said, strict=True):
        fresh = load_language_model(tiny.config, "cpu")
        (alone,) = run(fresh, settings(folder, tiny.config, methods=[method], **changes))
        assert [record.raw for record in alone.records] == together


def test_passages_read_one_by_one_are_another_cell_and_with_one_passage_the_same_answers(
    folder: Path, tiny: LanguageModel
) -> None:
    def config(k: int, **changes: Any) -> EvalConfig:
        return settings(folder, tiny.config, methods=[{"name": "rag", **changes}], k=[k])

    apart = {"one_by_one": {"temperature": 0.5}}
    assert make_plan(config(3))[0].key != make_plan(config(3, **apart))[0].key
    alone, one = (run(tiny, config(1, **changes))[0].records for changes in ({}, apart))
    assert [record.raw for record in one] == [record.raw for record in alone]
    three = run(tiny, config(3, **apart))[0].records
    check_records(three, read_questions(config(3).sets[0]))
    assert all(a.prompt_tokens < b.prompt_tokens for a, b in zip(alone, three, strict=True))
    with pytest.raises(ValidationError) as caught:
        settings(folder, tiny.config, methods=[{"name": "direct", **apart}])
    assert [problem["type"] for problem in caught.value.errors()] == ["no_passages_to_read"]


def test_what_was_said_before_a_question_is_in_its_prompt_and_in_its_cells_key(
    folder: Path, tiny: LanguageModel
) -> None:
    config = only(folder, tiny, "rag")
    plain, (cell,) = run(tiny, config)[0].records, make_plan(config)
    path = folder / "questions.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    turns = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "Somebody"}]
    path.write_text("".join(json.dumps({**record, "turns": turns}) + "\n" for record in records))
    said = run(tiny, config)[0].records
    assert all(a.prompt_tokens < b.prompt_tokens for a, b in zip(plain, said, strict=True))
    assert make_plan(config)[0].key != cell.key


@pytest.mark.parametrize("method", ["rag", "regrad-online"])
def test_without_a_passage_the_base_model_answers_and_the_record_says_so(
    folder: Path, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    plain = run(tiny, only(folder, tiny, "direct"))[0].records
    monkeypatch.setattr(PassageFinder, "find", lambda self, questions, k: [FoundPassages(())] * len(questions))
    found = run(tiny, only(folder, tiny, method))[0].records
    assert [record.raw for record in found] == [record.raw for record in plain]
    assert {record.note for record in found} == {str(NOTHING_FOUND)}
    assert {record.note for record in plain} == {""}


def test_without_a_passage_the_policy_fail_refuses(
    folder: Path, tiny: LanguageModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = adapter_bank(tiny, world, str(folder / "adapters"))[2]
    write_set(folder, known, len(known))
    prag = {"name": "prag", "bank": str(folder / "adapters"), "on_missing": "fail"}
    monkeypatch.setattr(PassageFinder, "find", lambda self, questions, k: [FoundPassages(())] * len(questions))
    with refused(NothingFound, method="prag"):
        run(tiny, settings(folder, tiny.config, methods=[prag], k=[1]))


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"name": "tta"}, {"name": "ttarag", "accumulation": 1, "clip": None}])
def test_an_adapted_answer_does_not_depend_on_the_questions_before_it(
    folder: Path, tiny: LanguageModel, method: dict[str, Any]
) -> None:
    one_by_one = {"rows": 1, "questions": 1}  # a batch of another shape rounds in another way
    config = settings(folder, tiny.config, methods=[{**method, "lr": 0.03}], k=[1], batch=one_by_one)
    lines = (folder / "questions.jsonl").read_text().splitlines(keepends=True)
    asked = {record.question_id: record.raw for record in run(tiny, config)[0].records}
    assert len(set(asked.values())) > 1
    for line in reversed(lines):
        (folder / "questions.jsonl").write_text(line)
        (record,) = run(load_language_model(tiny.config, "cpu"), config)[0].records
        assert record.raw == asked[record.question_id]


def test_what_is_trained_on_passages_alone_has_none_in_its_prompt(folder: Path, tiny: LanguageModel) -> None:
    ways: dict[str, dict[str, Any]] = {
        "tta": {"lr": 1e-2},
        "alone": {"method": "tta", "in_prompt": False, "lr": 1e-2},
        "direct": {},
    }
    methods = [{"name": name, **way} for name, way in ways.items()]
    both, alone, direct = run(tiny, settings(folder, tiny.config, methods=methods, k=[1]))
    tokens = [[record.prompt_tokens for record in one.records] for one in (both, alone, direct)]
    assert tokens[1] == tokens[2]
    assert all(more > fewer for more, fewer in zip(tokens[0], tokens[1], strict=True))
    assert [r.raw for r in alone.records] != [r.raw for r in direct.records]
    assert all(len(record.passage_ids) == 1 for record in alone.records)


def test_every_question_is_answered_under_its_own_passages_update(
    folder: Path, tiny: LanguageModel, meta_init: MetaInit, passages: list[Passage]
) -> None:
    config = only(folder, tiny, "regrad-online")
    records = run(tiny, config)[0].records
    knowledge = BoundMetaInit(tiny, meta_init)
    for record, question, passage in zip(records, read_questions(config.sets[0]), passages, strict=False):
        atom = knowledge.compute([passage])[0].atom
        assert atom is not None
        updates = (knowledge.update(atom, 1.0),)
        request = GenerationRequest(tiny.config.prompts.prompt(question.question), updates, 6)
        assert record.raw == generate(tiny, [request])[0].text
    assert len({record.raw for record in records}) > 1


def test_direct_reads_no_passage(folder: Path, tiny: LanguageModel) -> None:
    records = run(tiny, only(folder, tiny, "direct"))[0].records
    assert {(record.k, record.passage_ids) for record in records} == {(0, ())}


def test_passages_that_do_not_fit_are_dropped_worst_first_and_noted(folder: Path, tiny: LanguageModel) -> None:
    whole = run(tiny, only(folder, tiny, "rag", 1))[0].records
    limit = max(record.prompt_tokens for record in whole) + 6
    short = run(tiny, only(folder, tiny, "rag", 3, context_tokens=limit))[0].records
    assert [record.raw for record in short] == [record.raw for record in whole]
    assert {record.note for record in short} == {"drop: 2 of 3 passages did not fit into the prompt"}


def test_a_prompt_that_is_too_long_can_stop_the_run(folder: Path, tiny: LanguageModel) -> None:
    with refused(PromptTooLong, passages=3, context=40):
        run(tiny, only(folder, tiny, "rag", 3, context_tokens=40, on_overflow="fail"))


def test_a_question_that_alone_is_too_long_is_an_error(folder: Path, tiny: LanguageModel) -> None:
    with refused(PromptTooLong, passages=0, demonstrations=0):
        run(tiny, only(folder, tiny, "rag", 3, context_tokens=8))


def test_a_set_that_changed_after_the_plan_is_refused(
    folder: Path, tiny: LanguageModel, passages: list[Passage]
) -> None:
    config = only(folder, tiny, "direct")
    cell = make_plan(config)[0]
    write_set(folder, passages, questions=5)
    with refused(EvaluationError, "questions_changed", set="people"):
        CellRunner(tiny, config).run(cell)


def test_progress_counts_every_question(folder: Path, tiny: LanguageModel) -> None:
    config, heard = only(folder, tiny, "direct", batch={"questions": 4}), []
    result = CellRunner(tiny, config).run(make_plan(config)[0], lambda *batch: heard.append(batch))
    assert [questions for questions, _ in heard] == [4, 2]
    spent = sum(vars(result.seconds).values())
    assert spent <= sum(seconds for _, seconds in heard)


def test_progress_is_told_by_time_inside_a_batch(
    folder: Path, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrad.evaluation.runner._TOLD_SECONDS", 0.0)
    told: list[int] = []
    config = only(folder, tiny, "direct")
    CellRunner(tiny, config).run(make_plan(config)[0], lambda questions, seconds: told.append(questions))
    assert sum(told) == 6
    assert set(told) == {1}


def test_questions_that_are_read_one_by_one_are_told_one_by_one_too(
    folder: Path, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    method = {"name": "rag", "one_by_one": {}}
    config = settings(folder, tiny.config, methods=[method], k=[3], batch={"questions": 6})
    CellRunner(tiny, config).run(make_plan(config)[0], lambda questions, seconds: told.append(questions))
    assert told == [2, 2, 2]  # as many prompts a batch as of another method
    told.clear()
    monkeypatch.setattr("regrad.evaluation.runner._TOLD_SECONDS", 0.0)
    CellRunner(tiny, config).run(make_plan(config)[0], lambda questions, seconds: told.append(questions))
    assert told == [1] * 6


def test_the_time_of_a_question_is_that_of_making_and_applying_its_update(folder: Path, tiny: LanguageModel) -> None:
    result = run(tiny, only(folder, tiny, "regrad-online"))[0]
    total = sum(record.milliseconds for record in result.records)
    assert total == pytest.approx(1e3 * (result.seconds.update + result.seconds.generation))
    assert result.seconds.update > 0 and result.seconds.generation > 0


def test_the_sets_rules_and_cut_decide_the_scores(
    folder: Path, tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Finished("So the answer is yes it is, I think.", "stop", 3, 4, 0, 0, 0, 1)
    monkeypatch.setattr(Generator, "answers", lambda self, prompts, *others: [said] * len(prompts))
    lines = (folder / "questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"answers": ["yes"]} for line in lines]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def first(**scoring: Any) -> tuple[str, float]:
        config = only(folder, tiny, "direct")
        config = config.model_copy(update={"sets": (config.sets[0].model_copy(update=scoring),)})
        record = run(tiny, config)[0].records[0]
        return record.prediction, record.f1

    assert first() == (said.text, pytest.approx(2 / 9))
    assert first(prag_style_cut=True) == ("yes it is", pytest.approx(0.5))
    assert first(prag_style_cut=True, rules="hotpotqa") == ("yes it is", 0.0)


def test_a_question_that_the_model_cannot_read_stops_no_other(folder: Path, tiny: LanguageModel) -> None:
    expected = [record.raw for record in run(tiny, only(folder, tiny, "rag"))[0].records]
    tiny.tokenizer.add_tokens(["Zorblax"])
    lines = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    lines[0]["question"] = lines[2]["question"] = "Who employs a Zorblax?"
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = run(tiny, only(folder, tiny, "rag", batch={"questions": 4}))[0].records
    assert [records[n].raw for n in (1, 3, 4, 5)] == [expected[n] for n in (1, 3, 4, 5)]
    for n in (0, 2):
        assert (records[n].raw, records[n].em, records[n].correct) == ("", 0.0, False)
        assert records[n].note.startswith("not asked: ") and "Zorblax" in records[n].note
