"""`regrad tasks`: which passages a question gets, what is left out and why, and what train and dev never share."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regrad.data.passages import Passage, encode_passages
from regrad.data.questions import Question
from regrad.data.tasks import Task, read_tasks
from regrad.errors import CorpusError, StorageError, TrainingError
from regrad.retrieval.base import RETRIEVERS
from regrad.settings import parse_settings
from regrad.storage import Storage
from regrad.training.meta.config import MetaTrainConfig
from regrad.training.meta.task_plan import files_of
from regrad.training.task_files.config import TasksConfig
from regrad.training.task_files.maker import CORPUS, DEV, LEFT_OUT, REPORT, TRAIN, TaskMaker, describe_report, held_out
from regrad.training.task_files.passages import GOLD_NOT_FOUND, GOLD_NOWHERE, NO_GOLD, NOTHING_GIVEN, UNUSABLE
from tests.tools.overlap import OverlapRetriever, build_overlap_index
from tests.tools.refusals import refused, refused_settings

RETRIEVED = {"distractors": 2, "distractors_from": "retrieved"}
WORDS = {"p": "Paris is in France.", "q": "Quito is in Ecuador.", "r": "Rome is in Italy.", "s": "Sofia is old."}


def passage(name: str) -> dict[str, str]:
    return {"id": name, "title": name.upper(), "text": WORDS[name]}


def question(name: str, given: str = "", gold: str = "", **more: Any) -> dict[str, Any]:
    record = {"id": name, "question": f"{name}?", "answers": [f"{name} answer", "other"]}
    return {**record, "passages": [passage(p) for p in given], "passage_ids": list(gold), **more}


def write(path: Path, *records: Mapping[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def config(folder: Path, questions: str, passages: Mapping[str, Any] = {}, **settings: Any) -> TasksConfig:
    """Given passages, unless it is said otherwise."""
    sections = {"questions": {"path": questions}, "passages": {"source": "given", **passages}}
    return parse_settings(TasksConfig, {**sections, "output": str(folder / "out"), **settings}, "test")


def make(settings: TasksConfig) -> dict[str, Any]:
    return TaskMaker(settings, Storage(f"{settings.output}.parts"), lambda text: None).make()


def made(settings: TasksConfig, name: str = TRAIN) -> list[Task]:
    make(settings)
    return read_tasks(f"{settings.output}/{name}")


def shown(task: Task) -> str:
    return "".join(passage.id for passage in task.passages)


def test_a_task_has_the_question_with_kind_choices_and_all_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set.jsonl",
        question("a", "pq", answers=["Paris", "paris"]),
        question("b", "pq", answers=["no"], kind="yes-no"),
        question("c", "pq", answers=["x"], choices=["y", "x"]),
    )
    settings = config(tmp_path, path)
    report = make(settings)
    tasks = read_tasks(f"{settings.output}/{TRAIN}")
    assert [task.id for task in tasks] == ["set/a", "set/b", "set/c"]
    assert [task.questions[0].asked for task in tasks] == [
        Question("", "a?", ("Paris", "paris")),
        Question("", "b?", ("no",), "yes-no", ("yes", "no")),
        Question("", "c?", ("B",), "choice", ("y", "x")),
    ]
    assert report[TRAIN] == {"tasks": 3, "questions": 3, "kinds": {"open": 1, "yes-no": 1, "choice": 1}}
    assert {p.id for p in map(Passage.from_record, read_json(Path(settings.output) / CORPUS))} == {"p", "q"}


def read_json(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("passages", "expected"),
    [
        ({"k": 2}, {"a": "pq", "b": "qr", "c": "rs"}),
        ({"k": 2, "gold": "in"}, {"a": "pr", "b": "qs", "c": GOLD_NOWHERE, "d": NO_GOLD}),
        ({"k": 3, "gold": "required"}, {"a": "pqr", "b": GOLD_NOT_FOUND, "c": GOLD_NOT_FOUND, "d": NO_GOLD}),
        ({"k": 3, "gold": "out"}, {"a": "pq", "b": "qr", "c": "rs"}),
        ({"source": "gold", "k": 1}, {"a": "r", "b": "s", "c": GOLD_NOWHERE, "d": NO_GOLD}),
        ({"k": 2, "max_words": 3}, {"a": UNUSABLE, "b": UNUSABLE, "c": "s"}),
    ],
    ids=["any", "in", "required", "out", "gold", "short ones"],
)
def test_which_passages_a_question_gets_and_why_it_is_left_out(
    tmp_path: Path, passages: dict[str, Any], expected: dict[str, str]
) -> None:
    """c names a passage that is nowhere, d none; s is known from c."""
    records = [question("a", "pqr", "r"), question("b", "qr", "s"), question("c", "rs", "x"), question("d")]
    settings = config(tmp_path, write(tmp_path / "set.jsonl", *records), passages)
    report = make(settings)
    found = {task.questions[0].question[0]: shown(task) for task in read_tasks(f"{settings.output}/{TRAIN}")}
    found |= {item["id"]: item["reason"] for item in read_json(Path(settings.output) / LEFT_OUT)}
    assert found == {"d": NOTHING_GIVEN, **expected}
    assert sum(report["left_out"].values()) + report[TRAIN]["questions"] == report["questions"] == 4


def test_gold_and_random_passages_come_from_a_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(encode_passages(Passage(**passage(name)) for name in WORDS))
    path = write(tmp_path / "set.jsonl", question("a", gold="rp"), question("b", gold="s"))
    passages = {"source": "gold", "corpus": str(corpus), "distractors": 2}
    first, second = made(config(tmp_path, path, passages))
    assert shown(first)[:2] == "rp" and set(shown(first)[2:]) == {"q", "s"}
    assert shown(second)[0] == "s" and len(set(shown(second))) == 3
    assert [shown(task) for task in made(config(tmp_path, path, passages))] == [shown(first), shown(second)]
    assert shown(made(config(tmp_path, path, {**passages, "distractors": 9}))[1]) != shown(second)


def test_random_passages_without_a_corpus_are_those_of_all_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", question("a", "pq"), question("b", "rs"))
    first, second = made(config(tmp_path, path, {"distractors": 2}))
    assert shown(first)[:2] == "pq" and set(shown(first)[2:]) == {"r", "s"}
    assert shown(second)[:2] == "rs" and set(shown(second)[2:]) == {"p", "q"}
    alone = write(tmp_path / "alone.jsonl", question("a", gold="p"))
    with refused(TrainingError, "no_corpus"):
        make(config(tmp_path, alone, {"source": "gold", "distractors": 1}))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """Of all passages, searched by the words that they share with a question."""
    RETRIEVERS["overlap"] = "tests.tools.overlap:OverlapRetriever"
    build_overlap_index((Passage(**passage(name)) for name in WORDS), str(tmp_path / "index"))
    yield str(tmp_path / "index")
    del RETRIEVERS["overlap"]


def test_passages_are_retrieved_and_distractors_are_the_next_that_are_not_gold(tmp_path: Path, index: str) -> None:
    records = [question("a", gold="s", question="Is Paris in France?"), question("b", question="Is Rome in Italy?")]
    path = write(tmp_path / "set.jsonl", *records)
    first, second = made(config(tmp_path, path, {"source": "index", "index": index, "k": 1}))
    assert (shown(first), shown(second)) == ("p", "r")
    (behind,) = made(config(tmp_path, path, {"source": "gold", "index": index, **RETRIEVED}))
    assert shown(behind)[:2] == "sp" and len(set(shown(behind))) == 3
    (within,) = made(config(tmp_path, path, {"source": "index", "index": index, "k": 2, "gold": "in"}))
    assert shown(within) == "ps"


def test_what_was_retrieved_before_a_run_was_stopped_is_not_searched_again(
    tmp_path: Path, index: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regrad.training.task_files.maker._BATCH", 2)
    searched: list[str] = []
    ranked = OverlapRetriever.ranked

    def some(self: OverlapRetriever, questions: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        if len(searched) == 4:
            raise KeyboardInterrupt
        searched.extend(questions)
        return ranked(self, questions, k)

    path = write(tmp_path / "set.jsonl", *(question(f"q{i}", question=f"Paris {i}?") for i in range(6)))
    settings = config(tmp_path, path, {"source": "index", "index": index})
    monkeypatch.setattr(OverlapRetriever, "ranked", some)
    with pytest.raises(KeyboardInterrupt):
        make(settings)
    assert not Path(settings.output).exists()
    monkeypatch.setattr(OverlapRetriever, "ranked", ranked)
    undisturbed = made(config(tmp_path / "other", path, {"source": "index", "index": index}))
    searched.clear()
    monkeypatch.setattr(OverlapRetriever, "ranked", some)
    assert made(settings) == undisturbed
    assert searched == ["Paris 4?", "Paris 5?"]


def test_questions_on_the_same_passages_share_a_task_each_with_its_own_order(tmp_path: Path) -> None:
    records = [question("a", "pq"), question("b", "qp"), question("c", "pq"), question("d", "r")]
    tasks = made(config(tmp_path, write(tmp_path / "set.jsonl", *records), questions_per_task=2))
    assert [(shown(t), [(q.question, q.context) for q in t.questions]) for t in tasks] == [
        ("pq", [("a?", (0, 1)), ("b?", (1, 0))]),
        ("pq", [("c?", (0, 1))]),
        ("r", [("d?", (0,))]),
    ]


def test_questions_that_share_a_task_share_its_distractors(tmp_path: Path) -> None:
    records = [question(f"q{i}", "pqrs"[i % 2], "pqrs"[i % 2]) for i in range(8)] + [question("x", "rs", "r")]
    path = write(tmp_path / "set.jsonl", *records)
    passages = {"source": "gold", "distractors": 1}
    assert [len(t.questions) for t in made(config(tmp_path, path, passages, questions_per_task=4))] == [4, 4, 1]
    alone = made(config(tmp_path, path, passages))
    assert len({shown(task) for task in alone if shown(task)[0] == "p"}) > 1


def squad_file(path: Path, articles: int, paragraphs: int, impossible: bool = False) -> str:
    number = count()
    answers = [{"text": "x", "answer_start": 0}, {"text": "x", "answer_start": 0}]
    data = [
        {
            "title": f"Article {a}",
            "paragraphs": [
                {
                    "context": f"Paragraph {p} of {a}: x.",
                    "qas": [
                        {"id": f"q{next(number)}", "question": f"What is {a}, {p}, {q}?", "answers": answers}
                        for q in range(3)
                    ]
                    + [{"id": f"q{next(number)}", "question": "Why?", "answers": [], "is_impossible": True}]
                    * impossible,
                }
                for p in range(paragraphs)
            ],
        }
        for a in range(articles)
    ]
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return str(path)


def test_a_squad_file_becomes_tasks_of_its_paragraphs_and_no_article_is_split(tmp_path: Path) -> None:
    path = squad_file(tmp_path / "train-v2.0.json", articles=10, paragraphs=2, impossible=True)
    sections = {"questions": {"path": path, "format": "squad"}, "passages": {"source": "gold"}}
    settings = parse_settings(TasksConfig, {**sections, "output": str(tmp_path / "out"), "dev_fraction": 0.25}, "test")
    report = make(settings)
    train, dev = read_tasks(f"{settings.output}/{TRAIN}"), read_tasks(f"{settings.output}/{DEV}")
    assert (len(train), len(dev), report["questions"]) == (48, 12, 80)
    assert report["left_out"] == {"has no answer (SQuAD 2.0)": 20}
    titles = [{task.passages[0].title for task in tasks} for tasks in (train, dev)]
    assert len(titles[1]) == 2 and titles[0].isdisjoint(titles[1])
    assert all(len(task.passages) == 1 and not task.questions[0].aliases for task in train)
    assert "left out 20 of 80 questions (has no answer (SQuAD 2.0): 20)" in describe_report(report, settings.output)


def test_rows_of_squad_are_the_same_questions(tmp_path: Path) -> None:
    row = {
        "id": "q0",
        "title": "T",
        "context": "It is x.",
        "question": "What?",
        "answers": {"text": ["x", "x"], "answer_start": [6, 6]},
    }
    sections = {
        "questions": {"path": write(tmp_path / "rows.jsonl", row), "format": "squad"},
        "passages": {"source": "gold"},
    }
    (task,) = made(parse_settings(TasksConfig, {**sections, "output": str(tmp_path / "out")}, "test"))
    assert (task.passages[0].title, task.passages[0].text, task.questions[0].answer) == ("T", "It is x.", "x")


def test_data_aug_becomes_tasks_of_the_passages_that_it_gives(tmp_path: Path) -> None:
    records = [
        {"test_id": 0, "question": "Q?", "answer": ["x"], "passages": ["one", "two", "three"], "augment": []},
        {"test_id": 1, "question": "Which?", "answer": "B", "choices": ["y", "x"], "passages": ["two", "", "one"]},
    ]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(records))
    sections = {"questions": {"path": str(path), "format": "data-aug"}, "passages": {"source": "given"}}
    first, second = made(parse_settings(TasksConfig, {**sections, "output": str(tmp_path / "out")}, "test"))
    assert [p.text for p in first.passages] == ["one", "two", "three"]
    assert [p.text for p in second.passages] == ["two", "one"] and second.questions[0].kind == "choice"
    assert first.passages[0] == second.passages[1]


def test_flashrag_lines_are_questions(tmp_path: Path) -> None:
    path = write(
        tmp_path / "nq.jsonl",
        {"id": "test_0", "question": "q", "golden_answers": ["x", "y"], "passages": [passage("p")]},
    )
    (task,) = made(config(tmp_path, path))
    assert (task.id, task.questions[0].answer, task.questions[0].aliases) == ("nq/test_0", "x", ("y",))


def test_limits_are_drawn_by_the_seed_and_a_larger_one_has_all_of_a_smaller(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", *(question(f"q{i}", "p") for i in range(40)))
    drawn = {
        (limit, seed): [task.id for task in made(config(tmp_path, path, limit=limit, seed=seed))]
        for limit, seed in ((5, 0), (10, 0), (5, 1))
    }
    assert len(drawn[5, 0]) == 5 and set(drawn[5, 0]) < set(drawn[10, 0]) and drawn[5, 0] != drawn[5, 1]
    assert drawn[10, 0] == sorted(drawn[10, 0], key=lambda name: int(name.removeprefix("set/q")))
    report = make(config(tmp_path, path, limit=10, dev_fraction=0.5, dev_limit=4))
    assert (report[TRAIN]["questions"], report[DEV]["questions"]) == (10, 4)
    assert report["left_out"] == {"over `limit` or `dev_limit`": 26}


@given(
    groups=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=2), min_size=1, max_size=30),
    fraction=st.floats(0, 0.9),
    seed=st.integers(0, 9),
)
def test_what_hangs_together_is_on_one_side_and_dev_is_never_too_large(
    groups: list[list[str]], fraction: float, seed: int
) -> None:
    questions = [Question(f"q{i}", f"Question {i}", ("x",)) for i in range(len(groups))]
    parts = {q.id: group for q, group in zip(questions, groups, strict=True)}
    try:
        dev = held_out(questions, parts, fraction, seed)
    except TrainingError:
        assume(False)
    assert len(dev) <= round(fraction * len(questions))
    sides: list[set[str]] = [set(), set()]
    for name, group in parts.items():
        sides[name in dev].update(group)
    assert sides[0].isdisjoint(sides[1])
    assert dev == held_out(questions[::-1], parts, fraction, seed)


def test_a_question_that_is_asked_twice_is_on_one_side(tmp_path: Path) -> None:
    twice = [question(f"q{i}", "pqrs"[i % 4], question=f"Who  is {i // 2}?") for i in range(20)]
    settings = config(tmp_path, write(tmp_path / "set.jsonl", *twice), dev_fraction=0.4, split_by="question")
    make(settings)
    train, dev = ({t.questions[0].question for t in read_tasks(f"{settings.output}/{name}")} for name in (TRAIN, DEV))
    assert len(dev) == 4 and train.isdisjoint(dev)


def test_one_article_cannot_be_split_and_the_message_says_what_can(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", *(question(f"q{i}", "p", "p") for i in range(10)))
    with refused(TrainingError, "cannot_split", wanted=3, smallest=10) as error:
        make(config(tmp_path, path, dev_fraction=0.3))
    assert "split_by" in str(error.value)
    assert make(config(tmp_path, path, dev_fraction=0.3, split_by="question"))[DEV]["questions"] == 3


def test_an_output_is_whole_or_not_there_and_what_is_something_else_is_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "set.jsonl", question("a", "p"))
    settings = config(tmp_path, path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(StorageError):
        make(settings)
    assert [child.name for child in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    make(settings)
    make(config(tmp_path, path, limit=1))
    assert {child.name for child in (tmp_path / "out").iterdir()} == {TRAIN, CORPUS, LEFT_OUT, REPORT}


def test_if_no_task_can_be_made_what_was_left_out_is_written(tmp_path: Path) -> None:
    settings = config(tmp_path, write(tmp_path / "set.jsonl", question("a"), question("b")))
    with refused(TrainingError, "no_tasks", reason=NOTHING_GIVEN):
        make(settings)
    assert [item["id"] for item in read_json(Path(settings.output) / LEFT_OUT)] == ["a", "b"]


def test_train_refuses_a_directory_in_which_dev_is_among_the_tasks(tmp_path: Path) -> None:
    settings = config(
        tmp_path, write(tmp_path / "set.jsonl", *(question(f"q{i}", "p") for i in range(9))), dev_fraction=0.3
    )
    make(settings)
    sources = {"tasks": settings.output, "dev": f"{settings.output}/{DEV}"}
    training = {"model": {"path": "x"}, "output": str(tmp_path / "meta-init"), **sources}
    with refused(CorpusError, "dev_among_tasks", file=f"{settings.output}/{DEV}"):
        files_of(parse_settings(MetaTrainConfig, training, "test"))
    training["tasks"] = f"{settings.output}/{TRAIN}"
    assert files_of(parse_settings(MetaTrainConfig, training, "test")) == [(0, training["tasks"])]


@pytest.mark.parametrize(
    ("passages", "problem"),
    [
        ({"source": "index"}, "index_missing"),
        ({"distractors": 1, "distractors_from": "retrieved"}, "index_missing"),
        ({"source": "gold", "gold": "out"}, "gold_needs_others"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, passages: dict[str, Any], problem: str) -> None:
    with refused_settings(problem, "passages"):
        config(tmp_path, "set.jsonl", passages)
