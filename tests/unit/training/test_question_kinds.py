"""Closed questions are trained, scored in training and evaluated with one prompt; kind and choices are never lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regrad.data.augmented import Augmented, Pair, from_tasks, pair_of
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.data.tasks import Task, read_tasks
from regrad.errors import CorpusError
from regrad.inference.decoding import Generation, GenerationRequest
from regrad.methods.base import Evidence, Prompt
from regrad.models.loading import LanguageModel
from regrad.training.lora.config import AdapterConfig, FinetuneConfig
from regrad.training.lora.examples import adapter_examples, read_examples
from regrad.training.meta import trainer
from regrad.training.meta.collate import encode_question
from regrad.training.meta.config import ShapeConfig
from regrad.training.meta.objective import Point
from regrad.training.meta.task_plan import Lengths
from tests.tools.chats import chat
from tests.tools.refusals import refused

PASSAGES = [{"id": "a", "title": "A", "text": "Ada wrote."}, {"id": "b", "title": "", "text": "She did."}]
KINDS: dict[str, dict[str, Any]] = {
    "open": {"question": "Who?", "answers": ["Ada", "Ada L."]},
    "yes-no": {"question": "Is it?", "answer": True, "kind": "yes-no"},
    "maybe": {"question": "Is it?", "answer": "maybe", "kind": "yes-no", "choices": ["yes", "no", "maybe"]},
    "choice": {"question": "Which?", "answer": 1, "choices": ["Bob", "Ada", "Cy"]},
}
ANSWERS = {"open": "Ada", "yes-no": "yes", "maybe": "maybe", "choice": "B"}


def file_of(folder: Path, question: dict[str, Any]) -> str:
    path = folder / "tasks.jsonl"
    path.write_text(json.dumps({"id": "t", "passages": PASSAGES, "questions": [question]}) + "\n")
    return str(path)


def evaluated(lm: LanguageModel, path: str, with_passages: bool) -> list[int]:
    """The ids of the prompt that `regrad eval` gives the model for a file's only question."""
    (question,) = read_questions(QuestionSetConfig(name="set", path=path, format="tasks"))
    shown = question.passages if with_passages else ()
    return lm.encode_prompt(Prompt(Evidence(question, question.passages), shown).text(lm.config.prompts))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_passages", [False, True])
@pytest.mark.parametrize("as_chat", [False, True])
def test_training_and_evaluation_have_the_same_prompt(
    tmp_path: Path,
    tiny: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    with_passages: bool,
    as_chat: bool,
) -> None:
    lm = chat(tiny, system="Be brief.") if as_chat else tiny
    path = file_of(tmp_path, KINDS[kind])
    expected, answer = evaluated(lm, path, with_passages), lm.encode(lm.config.prompts.reply(ANSWERS[kind]))
    (task,) = read_tasks(path)
    shape = ShapeConfig(in_prompt=with_passages)

    ids, start = encode_question(lm, task, task.questions[0], shape)
    assert ids == [*expected, *answer, *lm.eos] and start == len(expected)
    context = lm.context_length or 0
    assert Lengths(lm.tokenizer, lm.config, context, lm.vocabulary_size).question(
        task, task.questions[0], shape
    ) == len(ids)

    for objective in ("questions", "questions-with-passages"):
        if with_passages == (objective != "questions"):
            config = FinetuneConfig(model=lm.config, objective=objective, tasks=path, output=str(tmp_path / "out"))
            (example,) = read_examples(config, lm)
            assert (list(example.ids), example.start) == (ids, start)

    asked: list[GenerationRequest] = []

    def answered(lm: LanguageModel, requests: Sequence[GenerationRequest]) -> list[Generation]:
        asked.extend(requests)
        return [Generation(ANSWERS[kind], 1)]

    monkeypatch.setattr(trainer, "generate", answered)
    at = Point(lm.subspace.initial(0), torch.zeros(lm.subspace.size))
    assert trainer.score_tasks(lm, at, [task], shape=shape) == trainer.Sums(1.0, 1.0, 1)
    assert lm.encode_prompt(asked[0].prompt) == expected


@pytest.mark.parametrize(
    ("kind", "said", "right"),
    [
        ("yes-no", "Yes, it is.", 1),
        ("yes-no", "yes or no", 0),
        ("maybe", "maybe", 1),
        ("choice", "B. Ada", 1),
        ("choice", "A", 0),
        ("open", "Ada L.", 1),
    ],
)
def test_a_dev_score_reads_an_answer_as_evaluation_does(kind: str, said: str, right: float) -> None:
    (question,) = Task.from_record({"passages": PASSAGES, "questions": [KINDS[kind]]}).questions
    assert trainer.score_answer(question.asked, said).exact_match == right


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_keeps_kind_choices_and_answers_on_its_way_through_a_file(kind: str) -> None:
    task = Task.from_record({"id": "t", "passages": PASSAGES, "questions": [KINDS[kind]]})
    assert Task.from_record(json.loads(json.dumps(task.to_record()))) == task
    assert task.questions[0].asked.kind == (kind if kind != "maybe" else "yes-no")


def test_an_answer_that_is_one_options_letter_and_anothers_text_is_not_confused() -> None:
    question = {"question": "Which?", "answer": "B", "choices": ["B", "A"]}
    task = Task.from_record({"passages": PASSAGES, "questions": [question]})
    assert task.questions[0].answer == "A"
    assert Task.from_record(task.to_record()) == task


@pytest.mark.parametrize(
    ("wrong", "code", "field"),
    [
        ({"kind": "chioce"}, "wrong_field", "kind"),
        ({"kind": "choice"}, "missing_field", "choices"),
        ({"choices": ["x"]}, "wrong_field", "choices"),
        ({"choices": ["x", "y"]}, "wrong_field", "answer"),
        ({"kind": "yes-no"}, "wrong_field", "answer"),
        ({"choises": ["x", "y"]}, "unknown_field", "choises"),
    ],
)
def test_a_kind_that_is_wrong_is_an_error_that_names_the_place(wrong: dict[str, Any], code: str, field: str) -> None:
    record = {"passages": PASSAGES, "questions": [{"question": "Q?", "answer": "Rome", **wrong}]}
    with refused(CorpusError, code, where="f line 1 question 0", field=field):
        Task.from_record(record, "f line 1")


def test_adapters_and_instruction_data_keep_the_kind_of_a_tasks_question(tiny: LanguageModel) -> None:
    task = Task.from_record({"passages": PASSAGES, "questions": [KINDS["choice"], KINDS["yes-no"]]})
    (item,) = from_tasks([task], most=5)
    assert [pair.kind for pair in item.pairs] == ["choice", "yes-no"]
    assert Augmented.from_record(json.loads(json.dumps(item.to_record()))) == item
    text = tiny.tokenizer.decode(adapter_examples(tiny, item, AdapterConfig())[0].ids)
    assert "Answer with the letter only: A, B or C." in text
    alone = replace(item, pairs=(Pair("Who?", "Ada"),))
    assert adapter_examples(tiny, alone, AdapterConfig()) == adapter_examples(
        tiny, replace(item, pairs=(pair_of({"question": "Who?", "answer": "Ada"}),)), AdapterConfig()
    )


def test_a_question_of_a_task_is_a_question_of_evaluation() -> None:
    (question,) = Task.from_record({"passages": PASSAGES, "questions": [KINDS["choice"]]}).questions
    assert question.asked == Question("", "Which?", ("B",), "choice", ("Bob", "Ada", "Cy"))
