"""The lab world: a function of its seed, with people that no stage mixes up, and a base that can read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regrad.data.corpora import read_passages
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.tasks import read_tasks
from regrad.lab.config import LabConfig
from regrad.lab.files import held_out_corpus, held_out_questions, write_lab
from regrad.lab.pretraining import measure
from regrad.lab.sets import LabQuestion
from regrad.lab.tokenizer import check_single_tokens
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.models.local_files import resolve_path


def test_the_same_seed_is_the_same_world(world: World) -> None:
    again = World()
    assert again.held_out == world.held_out
    assert World(seed=1).held_out != world.held_out


def test_nobody_is_in_two_splits(world: World) -> None:
    splits = [world.held_out, world.meta, world.memorised, world.reading]
    assert [len(split) for split in splits] == [400, 8000, 300, 51300]
    assert len({person.name for split in splits for person in split}) == 60_000


def test_held_out_people_occur_in_no_training_file(world: World, tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=200))
    held_out = {person.name for person in world.held_out}
    for name in ("tasks.jsonl", "dev.jsonl"):
        titles = {passage.title for task in read_tasks(str(tmp_path / name)) for passage in task.passages}
        assert not titles & held_out
    assert {passage.title for passage in read_passages(str(tmp_path / "corpus.jsonl"))} == held_out
    train = {p.id for task in read_tasks(str(tmp_path / "tasks.jsonl")) for p in task.passages}
    dev = {p.id for task in read_tasks(str(tmp_path / "dev.jsonl")) for p in task.passages}
    assert not train & dev


def test_of_fewer_people_are_the_first_documents_and_all_questions(world: World, tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=5, people=12, questions=40, augmented=1))
    corpus = list(read_passages(str(tmp_path / "corpus.jsonl")))
    assert corpus == held_out_corpus(world)[:12]
    asked = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    assert {one["passage_id"] for one in asked} == {passage.id for passage in corpus}
    assert {one["other_passage_id"] for one in asked} <= {passage.id for passage in corpus}
    augmented = [json.loads(line) for line in (tmp_path / "augmented.jsonl").read_text().splitlines()]
    assert [one["id"] for one in augmented] == [passage.id for passage in corpus]


def test_documents_without_questions_are_of_the_people_of_the_tasks(world: World, tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=5, documents=30))
    written = [passage.id for passage in read_passages(str(tmp_path / "documents.jsonl"))]
    assert written == [person.passage_id for person in world.meta[:30]]


def test_solved_questions_come_with_their_passages_and_are_about_nobody_who_is_asked_about(tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=5, demonstrations=4))
    solved = read_questions(QuestionSetConfig(name="solved", path=str(tmp_path / "demonstrations.jsonl")))
    assert len(solved) == 4
    for one in solved:
        assert one.answers[0] in one.passages[0].text
        assert len(one.passages) == 3
    asked = {p.id for p in read_passages(str(tmp_path / "corpus.jsonl"))}
    assert not asked & {passage.id for one in solved for passage in one.passages}


def test_every_passage_states_all_five_facts(world: World) -> None:
    for person, passage in zip(world.held_out, held_out_corpus(world), strict=True):
        assert passage.title == person.name
        assert all(value in passage.text for value in person.values.values())


def test_the_control_passage_has_another_answer(world: World) -> None:
    people = {person.passage_id: person for person in world.held_out}
    for item in held_out_questions(world, 200):
        other = people[item.other_passage_id]
        assert item.answers[0] in people[item.passage_id].values.values()
        assert item.answers[0] not in other.values.values()


def test_the_shipped_tokenizer_belongs_to_the_world(world: World, lab_model: LanguageModel) -> None:
    check_single_tokens(lab_model.tokenizer, world)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_shipped_base_reads_three_passages_and_knows_no_held_out_person(world: World) -> None:
    quality = measure(resolve_path("package:regrad.lab/base"), world, questions=150)
    assert quality["direct"] <= 0.10
    assert quality["rag_k1"] >= 0.95
    assert quality["rag_k3"] >= 0.95
    assert quality["memorised"] >= 0.95


def test_the_shipped_base_is_small(lab_model: LanguageModel) -> None:
    folder = Path(resolve_path("package:regrad.lab/base"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6_000_000
    assert 0.9e6 < sum(p.numel() for p in lab_model.model.parameters()) < 1.3e6


def test_a_line_of_the_question_file_has_one_passage_and_one_control(world: World) -> None:
    [asked] = held_out_questions(world, 1)
    record = json.loads(json.dumps(asked.to_record()))
    assert list(record) == ["question", "answers", "passage_id", "other_passage_id"]
    assert (record["passage_id"], record["other_passage_id"]) == (asked.passage_ids[0], asked.other_passage_ids[0])
    assert LabQuestion.from_record(record) == asked
