"""The harder labs: functions of the seed, in the lab's formats, apart from training, and hard in the way they claim."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from regrad.cli import lab as lab_cli
from regrad.data.corpora import read_passages
from regrad.data.tasks import read_tasks
from regrad.gradients.extractor import encode_passage
from regrad.lab.config import LabConfig
from regrad.lab.files import set_corpus, set_questions, set_tasks, write_hard_lab
from regrad.lab.sets import CURRENT, FORMER, SETS, UNSEEN_QUESTIONS, UNSEEN_STATEMENTS, Conflict, LabSet
from regrad.lab.wording import ATTRIBUTES, QUESTIONS, STATEMENTS
from regrad.lab.world import World
from regrad.models.loading import LanguageModel

FILES = ["corpus.jsonl", "dev.jsonl", "questions.jsonl", "tasks.jsonl"]


@pytest.fixture(params=sorted(SETS))
def lab(request: pytest.FixtureRequest, world: World) -> LabSet:
    return SETS[request.param](world)


@pytest.mark.slow
def test_the_same_seed_is_the_same_lab(lab: LabSet) -> None:
    again = type(lab)(World())
    assert set_corpus(again) == set_corpus(lab)
    assert set_questions(again, 50) == set_questions(lab, 50)
    assert list(set_tasks(again, again.meta[:99], 2, 4, 5)) == list(set_tasks(lab, lab.meta[:99], 2, 4, 5))
    assert set_corpus(type(lab)(World(seed=1))) != set_corpus(lab)


def test_of_fewer_subjects_are_all_passages_and_questions(lab: LabSet) -> None:
    few = {passage.id for passage in set_corpus(lab, 11)}
    assert len(few) < len(set_corpus(lab))
    assert few == {one for item in set_questions(lab, 44, 11) for one in (*item.passage_ids, *item.other_passage_ids)}


def test_the_gold_passages_state_the_answer_and_the_control_does_not(lab: LabSet) -> None:
    corpus = {passage.id: passage.text for passage in set_corpus(lab)}
    assert len(corpus) == len(set_corpus(lab))
    for item in set_questions(lab, 200):
        assert all(item.answers[0] in corpus[passage_id] for passage_id in item.passage_ids)
        if item.group != "unchanged":
            assert not any(item.answers[0] in corpus[passage_id] for passage_id in item.other_passage_ids)


def test_nobody_of_the_corpus_is_in_the_tasks(lab: LabSet) -> None:
    names = {person.name for person in lab.held_out}
    assert len(names) == len(lab.held_out) == 400
    assert not names & {person.name for person in lab.meta}


@pytest.mark.slow
def test_the_files_are_the_labs(lab: LabSet, tmp_path: Path) -> None:
    variant = next(name for name, kind in SETS.items() if kind is type(lab))
    config = LabConfig(
        output=str(tmp_path),
        variant=variant,
        questions=20,
        task_records=3,
        people_per_record=4,  # type: ignore[arg-type]
    )
    assert sorted(write_hard_lab(config).list()) == FILES
    asked = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    known = {passage.id for passage in read_passages(str(tmp_path / "corpus.jsonl"))}
    assert len(asked) == 20
    assert all(set(item["passage_ids"]) <= known and item["answers"] for item in asked)
    for task in [*read_tasks(str(tmp_path / "tasks.jsonl")), *read_tasks(str(tmp_path / "dev.jsonl"))]:
        for question in task.questions:
            assert any(question.answer in task.passages[i].text for i in question.context)
        assert not {passage.id for passage in task.passages} & known
        assert task.id.startswith(f"{variant}-"), "tasks of several labs can be mixed"


def test_documents_come_with_a_question_for_each_attribute_about_people_who_are_asked_about_nowhere_else(
    tmp_path: Path,
) -> None:
    write_hard_lab(LabConfig(output=str(tmp_path), variant="many", documents=6, task_records=1, people_per_record=3))
    notes = {passage.id: passage.text for passage in read_passages(str(tmp_path / "documents.jsonl"))}
    asked = [json.loads(line) for line in (tmp_path / "document-questions.jsonl").read_text().splitlines()]
    assert len(asked) == len(notes) == 6 * len(ATTRIBUTES)
    assert all(item["answers"][0] in notes[item["passage_ids"][0]] for item in asked)
    assert not set(notes) & {passage.id for passage in read_passages(str(tmp_path / "corpus.jsonl"))}


def test_the_command_writes_a_harder_lab(tmp_path: Path) -> None:
    places = [f"output={tmp_path}/lab", "variant=conflict", "questions=5", "task_records=2"]
    result = CliRunner().invoke(lab_cli.lab, ["world", *(part for place in places for part in ("--set", place))])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "lab").iterdir()) == FILES


def tokens(lm: LanguageModel, lab: LabSet) -> list[int]:
    """Of each passage of the corpus, without start and end."""
    return [len(encode_passage(lm, passage)) - 2 for passage in set_corpus(lab)]


def test_five_notes_or_long_passages_are_more_than_the_context_holds(lab_model: LanguageModel, world: World) -> None:
    limit = lab_model.model.config.max_position_embeddings
    for name in ("many", "long"):
        lengths = tokens(lab_model, SETS[name](world))
        assert 5 * sum(lengths) / len(lengths) > limit, name
        assert max(lengths) < limit / 3, name


def test_the_notes_do_not_say_what_they_answer(world: World) -> None:
    lab = SETS["many"](world)
    words = {
        w.strip("?").lower() for wordings in QUESTIONS.values() for q in wordings for w in q.split() if "{" not in w
    }
    told = {w.strip(".").lower() for p in set_corpus(lab)[:500] for w in p.text.replace(p.title, "").split()}
    assert told & words <= {"a", "for", "in", "is", "of", "the", "was", "has", "at"}


def test_three_facts_of_five_have_changed(world: World) -> None:
    lab = Conflict(world)
    for person in world.held_out[:50]:
        former = lab.former(person)
        assert sum(former.values[a] != person.values[a] for a in ATTRIBUTES) == 3
    groups = [item.group for item in set_questions(lab, 200)]
    assert 0.4 < groups.count("changed") / 200 < 0.8
    assert {p.id.rsplit(".", 1)[1] for p in set_corpus(lab)} == {CURRENT[1:], FORMER[1:]}


def test_unseen_wordings_are_in_no_other_list(world: World) -> None:
    for attribute in ATTRIBUTES:
        assert not set(UNSEEN_STATEMENTS[attribute]) & set(STATEMENTS[attribute])
        assert not set(UNSEEN_QUESTIONS[attribute]) & set(QUESTIONS[attribute])
    lab = SETS["unseen"](world)
    seen = [s.format(subject="X", value="Y").split("Y")[0][1:] for a in ATTRIBUTES for s in UNSEEN_STATEMENTS[a]]
    told = " ".join(p["text"] for task in set_tasks(lab, lab.meta[:200], 20, 4, 5) for p in task["passages"])
    assert "skilled" not in told.replace("known as a skilled", "")
    assert not any(part in told for part in seen if "skilled" not in part)
    assert {item.group for item in set_questions(lab, 30)} == {"statements", "questions", "both"}
