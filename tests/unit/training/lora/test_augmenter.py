"""Augmentation: by a model (here one whose texts are given), from ready files, from tasks, and the lab's own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from regrad.data.augmented import (
    Augmented,
    Pair,
    encode_augmented,
    from_tasks,
    parse_augmented,
    read_augmented,
    read_ready,
)
from regrad.data.passages import Passage, passage_id
from regrad.data.tasks import Task, TaskQuestion, read_tasks
from regrad.errors import CorpusError, TrainingError
from regrad.inference.decoding import Sampled, draws, sample
from regrad.lab.config import LabConfig
from regrad.lab.files import write_lab
from regrad.lab.world import World
from regrad.models.loading import LanguageModel
from regrad.settings import parse_settings
from regrad.training.lora import augmenter
from regrad.training.lora.augmenter import NO_PAIRS, Augmenter, parse_pairs
from regrad.training.lora.config import AugmentConfig, FinetuneConfig
from regrad.training.lora.examples import data_digest, read_examples
from tests.tools.augmenting import augmented
from tests.tools.chats import chat
from tests.tools.refusals import refused, refused_settings

GOOD = '[{"question": "Who?", "answer": "me", "full_answer": "It is me."}, {"question": "Where?", "answer": "here"}]'


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        (GOOD, ["me", "here"]),
        (f"Sure! Here it is [as JSON]:\n```json\n{GOOD}\n```", ["me", "here"]),
        ('[{"question": "Who?"}]', []),
        ('[{"question": "Who?", "answer": " "}]', []),
        ('[{"question": "Who?", "answer": 3}]', ["3"]),
        ('[{"question": "Who?", "answer": ["me", "you"]}]', ["me, you"]),
        ('[{"question": "Who?", "answer": true}]', []),
        (GOOD[:-1], []),
        ("[" * 100_000, []),
        ("[]", []),
        ("", []),
    ],
    ids=range(11),
)
def test_pairs_are_the_first_json_list_that_is_one(text: str, answers: list[str]) -> None:
    assert [pair.answer for pair in parse_pairs(text, 3)] == answers
    assert len(parse_pairs(text, 1)) == min(1, len(answers))


def test_pairs_may_be_needed_in_number_and_with_full_answers() -> None:
    assert len(parse_pairs(GOOD, 3, least=2)) == 2
    assert parse_pairs(GOOD, 3, least=3) == ()
    assert parse_pairs(GOOD, 3, full_answers=True) == ()
    assert len(parse_pairs(GOOD, 1, full_answers=True)) == 1, "of those that are kept"
    more = f"[{GOOD[1:-1]}, {GOOD[1:]}"
    assert len(parse_pairs(f"first {GOOD} then {more}", 4, least=4)) == 4


class Scripted:
    """Stands in for sampling: texts by prompt and try."""

    def __init__(self, good_after: dict[str, int]) -> None:
        self.good_after, self.tries, self.calls = good_after, dict.fromkeys(good_after, 0), 0

    def __call__(self, lm: Any, prompts: Sequence[Sequence[int]], *_: Any, **__: Any) -> list[Sampled]:
        self.calls += 1
        return [Sampled(self._text(lm.tokenizer.decode(ids, skip_special_tokens=True)), True) for ids in prompts]

    def _text(self, prompt: str) -> str:
        if prompt.startswith("Rewrite"):
            return " other words "
        title = next(name for name in self.good_after if name in prompt)
        self.tries[title] += 1
        return GOOD if self.tries[title] > self.good_after[title] else "no list"


def settings(lm: LanguageModel, **changes: Any) -> AugmentConfig:
    data = {"corpus": "c", "output": "o", "model": lm.config.model_dump(), "max_new_tokens": 30}
    short = {"rewrite_prompt": "Rewrite {passage}", "pairs_prompt": "Ask {pairs} of {passage}"}
    return parse_settings(AugmentConfig, {**data, **short, **changes}, "test")


def test_only_what_failed_is_asked_again_and_not_for_ever(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted({"One": 0, "Two": 2, "Never": 99})
    monkeypatch.setattr(augmenter, "sample", script)
    texts = [Passage(name.lower(), name, "something") for name in script.good_after]
    passages = [*texts[:2], Passage("empty", "Empty", " "), texts[2], Passage("long", "Long", "word " * 300)]
    found = Augmenter(tiny, settings(tiny, retries=3)).write(passages)
    assert [item.tries for item in found] == [1, 3, 0, 4, 0]
    assert [item.reason.split(":")[0] for item in found] == ["", "", "empty text", NO_PAIRS, "the passage is too long"]
    assert found[3].detail == "no list"
    assert found[1].augmented == Augmented(
        texts[1], ("other words",), (Pair("Who?", "me", "It is me."), Pair("Where?", "here"))
    )


def test_a_passage_with_too_few_questions_is_asked_again_and_then_said(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augmenter, "sample", Scripted({"One": 0}))
    config = settings(tiny, retries=3, least_pairs=3)
    (found,) = Augmenter(tiny, config).write([Passage("one", "One", "something")])
    assert (found.augmented, found.reason, found.tries) == (None, NO_PAIRS, 4)
    assert found.detail == GOOD[:200]
    with refused_settings("least_above_most"):
        settings(tiny, least_pairs=4)


def test_a_chat_model_writes_in_its_chat_template_and_others_continue_a_text(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], float]] = []

    def sampled(lm: Any, prompts: Any, chance: Any, temperature: float, top_p: float, *_: Any) -> list[Sampled]:
        seen.extend((list(ids), top_p) for ids in prompts)
        return [Sampled(GOOD, True) for _ in prompts]

    monkeypatch.setattr(augmenter, "sample", sampled)
    one, asked = Passage("one", "One", "some </s> thing"), "Ask 3 of One\n some </s> thing"
    for lm, wanted in [
        (tiny, [*tiny.bos, *tiny.encode(asked, controls=True)]),
        (chat(tiny, system="Be brief.", answer_start="The answer is"), chat(tiny).encode_prompt(asked)),
    ]:
        assert Augmenter(lm, settings(tiny, top_p=0.9)).write([one])[0].augmented
        assert seen[0] == (wanted, 0.9)
        seen.clear()


def test_what_a_passage_gets_does_not_depend_on_its_neighbours(tiny: LanguageModel, passages: list[Passage]) -> None:
    config = settings(tiny, temperature=1.0, retries=0)
    together = Augmenter(tiny, config)._rewrites(passages[:3])
    assert together[1] == Augmenter(tiny, config)._rewrites([passages[1]])[0]
    assert together[0] != together[1]
    assert Augmenter(tiny, config).key == Augmenter(tiny, config.model_copy(update={"output": "x"})).key
    assert Augmenter(tiny, config).key != Augmenter(tiny, config.model_copy(update={"retries": 1})).key


def test_of_one_token_there_is_no_choice(tiny: LanguageModel) -> None:
    def texts(key: str, top_k: int) -> list[str]:
        ids = [tiny.encode_prompt("Who is")]
        found = sample(tiny, ids, draws(key, 1, 6), 5.0, 1.0, lambda _: False, top_k)
        return [item.text for item in found]

    assert texts("a", 1) == texts("b", 1)
    assert texts("a", 0) != texts("b", 0)


def data_aug(*passages: dict[str, Any]) -> list[Any]:
    return [{"question": "Q", "answer": ["A"], "augment": list(passages)}]


def test_data_aug_is_read_once_a_passage_and_bad_ones_are_said(tmp_path: Path) -> None:
    pairs = [{"question": "Who?", "answer": "me", "full_answer": "It is me."}]
    good = {"pid": 0, "passage": "text one", "m-1b_rewrite": "one as text", "m-1b_qa": pairs}
    (tmp_path / "a.json").write_text(json.dumps(data_aug(good, {"pid": 1, "passage": "x", "m-1b_qa": [{"q": 1}]})))
    (tmp_path / "b.jsonl").write_text(json.dumps(data_aug(good, {"passage": "two", "m_qa": pairs})[0]))
    found = [item for _, item in read_ready(str(tmp_path))]
    first = Passage(passage_id("text one"), "", "text one")
    assert found[0] == Augmented(first, ("one as text",), (Pair("Who?", "me", "It is me."),))
    assert isinstance(found[1], CorpusError)
    assert "a.json record 1 augment 2: field 'question' is missing" in str(found[1])
    assert isinstance(found[2], Augmented)
    assert (found[2].passage.text, found[2].rewrites) == ("two", ())
    (tmp_path / "a.json").write_text("[{]")
    with refused(CorpusError, "not_json", where=str(tmp_path / "a.json")):
        list(read_ready(str(tmp_path / "a.json")))


@pytest.mark.parametrize("name", ["b.jsonl", "b.JSONL", "b.jsonl.gz", "b.ndjson", "b.json", "b.JSON.gz", "sub/b.jsonl"])
def test_every_file_of_a_directory_is_read_whatever_its_case_or_compression(tmp_path: Path, name: str) -> None:
    pairs = [{"question": "Who?", "answer": "me"}]
    record: Any = {"id": "b", "text": "two", "pairs": pairs}
    if ".json" in name.lower().replace(".jsonl", ""):
        record = data_aug({"passage": "two", "m_qa": pairs})
    content = json.dumps(record).encode()
    (tmp_path / "sub").mkdir()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "._a.json").write_bytes(b"a file of macOS")
    for uri in (tmp_path, tmp_path / name):
        assert [item.passage.text for _, item in read_ready(str(uri)) if isinstance(item, Augmented)] == ["two"]


def test_what_stands_for_nothing_is_no_rewrite_and_no_pair(tmp_path: Path) -> None:
    lines = ['{"id": "a", "text": "x", "rewrites": null, "pairs": NaN}', '{"id": "b", "text": "x", "pairs": %s}']
    pairs = '[{"question": "How many?", "answer": 2.0, "full_answer": null, "kind": NaN}]'
    (tmp_path / "augmented.jsonl").write_text("\n".join(lines) % pairs)
    nothing, number = read_augmented(str(tmp_path))
    assert (nothing.rewrites, nothing.pairs) == ((), ())
    assert number.pairs == (Pair("How many?", "2"),)


def test_augmented_passages_are_taken_as_they_are_and_a_bad_one_is_said(world: World, tmp_path: Path) -> None:
    items = augmented(world, 3)
    path = tmp_path / "augmented.jsonl"
    bad = {**items[1].to_record(), "pairs": [{"question": "?"}]}
    lines = [json.dumps(record) for record in (items[0].to_record(), bad, items[2].to_record())]
    path.write_text("\n".join(lines))
    found = [item for _, item in read_ready(str(path))]
    assert [found[0], found[2]] == [items[0], items[2]]
    assert isinstance(found[1], CorpusError)
    assert "augmented.jsonl line 2: field 'answer' is missing" in str(found[1])
    path.write_text('{"id": "a", "text": "b"}')
    with refused(CorpusError, "unknown_record", where=f"{path} line 1"):
        list(read_ready(str(path)))
    with refused(CorpusError, "not_found", uri=str(tmp_path / "nothing.jsonl")):
        list(read_ready(str(tmp_path / "nothing.jsonl")))


def test_questions_of_tasks_belong_to_the_best_passage_of_their_context() -> None:
    a, b = Passage("a", "A", "a"), Passage("b", "B", "b")
    questions = tuple(TaskQuestion(f"q{i}", "x", (i % 2, 1 - i % 2)) for i in range(5))
    found = list(from_tasks([Task((a, b), questions), Task((a,), (TaskQuestion("q0", "x", (0,)),))], 2))
    assert [(item.passage.id, [pair.question for pair in item.pairs]) for item in found] == [
        ("a", ["q0", "q2"]),
        ("b", ["q1", "q3"]),
    ]


def test_a_record_comes_back_and_a_wrong_one_is_named(world: World, tmp_path: Path) -> None:
    items = augmented(world, 2)
    path = tmp_path / "augmented.jsonl"
    path.write_bytes(encode_augmented(items))
    assert list(read_augmented(str(path))) == list(read_augmented(str(tmp_path))) == items
    wrong = (("rewrites", [""]), ("pairs", {}), ("id", ""))
    for field, value in wrong:
        with refused(CorpusError, "wrong_field", where="record", field=field):
            parse_augmented(json.dumps({**items[0].to_record(), field: value}).encode())
    with refused(CorpusError, "missing_field", where="record", field="answer"):
        parse_augmented(json.dumps({**items[0].to_record(), "pairs": [{"question": "?"}]}).encode())
    with refused(CorpusError, "not_json", where="record"):
        parse_augmented(b"{")


def test_the_labs_augmentation_keeps_the_facts_in_other_words(world: World, tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=2, augmented=5))
    found = list(read_augmented(str(tmp_path)))
    corpus = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    assert [item.passage.text for item in found] == [record["text"] for record in corpus]
    for item, person in list(zip(found, world.held_out, strict=True))[:50]:
        assert item.rewrites[0] != item.passage.text
        assert sorted(pair.answer for pair in item.pairs) == sorted(person.values.values())
        assert all(value in item.rewrites[0] for value in person.values.values())


def finetuning(lm: LanguageModel, objective: str, **data: Any) -> FinetuneConfig:
    values = {"model": lm.config.model_dump(), "objective": objective, "output": "o", "max_tokens": 200}
    return parse_settings(FinetuneConfig, {**values, **data}, "test")


def test_each_objective_predicts_what_it_is_about(tiny: LanguageModel, tmp_path: Path) -> None:
    write_lab(LabConfig(output=str(tmp_path), task_records=2, augmented=2, people_per_record=3))
    tasks = str(tmp_path / "tasks.jsonl")

    def first(objective: str, **data: Any) -> tuple[str, str]:
        config = finetuning(tiny, objective, **data)
        example = read_examples(config, tiny)[0]
        decode = tiny.tokenizer.decode
        return decode(example.ids[: example.start]), decode(example.ids[example.start :])

    task = read_tasks(tasks)[0]
    question = task.questions[0]
    read = first("instruction", corpus=str(tmp_path))[1]
    assert read.count("Question:") == 2
    assert read.startswith("Passage:")
    given, predicted = first("questions", tasks=tasks)
    assert "Passage" not in given
    assert predicted.strip().startswith(question.answer)
    given, predicted = first("questions-with-passages", tasks=tasks, k=2)
    assert given.count("Passage:") == 2
    best, second = (task.passages[i].title for i in question.context[:2])
    assert given.index(second) < given.index(best)
    assert predicted.strip().startswith(question.answer)


def test_the_digest_is_the_datas_and_wrong_settings_name_the_key(tiny: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "one"}\n')
    config = finetuning(tiny, "passages", corpus=str(tmp_path / "a.jsonl"))
    before = data_digest(config)
    assert before == data_digest(config)
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "two"}\n')
    assert data_digest(config) != before
    (tmp_path / "augmented.jsonl").write_text("")
    with refused(TrainingError, "nothing_to_train_on", uri=str(tmp_path / "augmented.jsonl")):
        data_digest(finetuning(tiny, "instruction", corpus=str(tmp_path / "augmented.jsonl")))
    with refused_settings("data_missing"):
        finetuning(tiny, "questions", corpus="c")
    with refused_settings("not_one_source"):
        settings(tiny, tasks="t")
    with refused_settings("wrong_fields", "pairs_prompt"):
        settings(tiny, pairs_prompt="{text}")
