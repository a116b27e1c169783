"""Writing and judging questions: what is kept, why the rest is not, and that a draft is its passage's alone."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from regrad.data.augmented import Pair
from regrad.data.jsonl import encode_jsonl
from regrad.data.passages import Passage
from regrad.evaluation.metrics import exact_match
from regrad.inference.decoding import Generation, GenerationRequest, Sampled, generate
from regrad.lab.config import LabWriterConfig
from regrad.lab.question_writer import _example
from regrad.lab.world import World
from regrad.models.loading import LanguageModel, load_language_model
from regrad.settings import load_settings
from regrad.training.synthesis import writer as module
from regrad.training.synthesis.config import SynthesisConfig
from regrad.training.synthesis.writer import Draft, PairWriter, Rejected, read_line
from tests.tools.refusals import refused_settings

ADA = Passage("ada", "Ada Dripen", "Ada Dripen was born in Girton. She enjoys chess.")
BORN = " Where was Ada Dripen born?\nAnswer: Girton\n"


def config(lm: LanguageModel, **settings: Any) -> SynthesisConfig:
    defaults = {"model": lm.config, "corpus": "c", "output": "o", "candidates": 2, "max_new_tokens": 24}
    return SynthesisConfig(**{**defaults, **settings})


Script = Callable[..., Draft]


@pytest.fixture
def draft_of(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> Script:
    """The draft of `ADA` when the model writes these texts and answers, with and without the passage, like this."""

    def run(texts: Sequence[str | Sampled], reads: dict[str, str], knows: dict[str, str], **settings: Any) -> Draft:
        def generate(lm: LanguageModel, requests: Sequence[GenerationRequest]) -> list[Generation]:
            told = [reads if request.prompt.startswith("Passage:") else knows for request in requests]
            asked = [request.prompt.rsplit("Question: ", 1)[1].removesuffix("\nAnswer:") for request in requests]
            return [Generation(answers.get(q, "?"), 1) for answers, q in zip(told, asked, strict=True)]

        written = [text if isinstance(text, Sampled) else Sampled(text, True) for text in texts]
        monkeypatch.setattr(module, "generate", generate)
        monkeypatch.setattr(module, "sample", lambda *_: written)
        [draft] = PairWriter(tiny, config(tiny, candidates=len(texts), **settings)).write([ADA])
        assert draft.candidates == len(texts)
        return draft

    return run


Q = "Where was Ada Dripen born?"


def test_a_pair_that_the_passage_answers_and_the_model_does_not_know_is_kept(draft_of: Script) -> None:
    assert draft_of([BORN], reads={Q: "girton."}, knows={Q: "Thomville"}).pairs == (Pair(Q, "Girton"),)


@pytest.mark.parametrize(
    ("text", "reads", "knows", "reason"),
    [
        ("Ada was born.", {}, {}, "no question and answer"),
        (" ?\nAnswer: Girton\n", {}, {}, "no question and answer"),
        (" Where was Ada Dripen born?\nAnswer: the\n", {}, {}, "no question and answer"),
        (Sampled(BORN, False), {Q: "Girton"}, {}, "too long"),
        (" Where was Ada Dripen born?\nAnswer: " + "Girton " * 30 + "\n", {}, {}, "too long"),
        (BORN, {Q: "Thomville"}, {}, "not answered from the passage"),
        (BORN, {Q: "Girton"}, {Q: "Girton"}, "answered without the passage"),
    ],
)
def test_a_pair_that_does_not_hold_is_listed_with_its_reason(
    draft_of: Script, text: str | Sampled, reads: dict[str, str], knows: dict[str, str], reason: str
) -> None:
    draft = draft_of([text], reads, knows)
    assert draft.pairs == ()
    assert [item.reason for item in draft.rejected] == [reason]


def test_a_question_is_kept_once(draft_of: Script) -> None:
    again = " where was Ada Dripen  born\nAnswer: girton\n"
    reads = {Q: "Girton", "where was Ada Dripen  born": "Girton"}
    draft = draft_of([BORN, BORN, again, " Where was Ada Dripen born?\nAnswer: Thomville\n"], reads, {})
    assert draft.pairs == (Pair(Q, "Girton"),)
    assert Counter(item.reason for item in draft.rejected) == {"duplicate": 2, "not answered from the passage": 1}


def test_what_was_rejected_can_be_read(draft_of: Script) -> None:
    draft = draft_of(["Ada was born.", BORN], reads={Q: "Thomville"}, knows={})
    assert draft.rejected == (
        Rejected("no question and answer", detail="Ada was born."),
        Rejected("not answered from the passage", Q, "Girton"),
    )


def test_passages_that_cannot_be_used_are_refused_and_stop_nothing(tiny: LanguageModel) -> None:
    """Too long for the setting, and for the model's context of 256 tokens; the drafts keep the order."""
    passages = [
        Passage("empty", "Ada", "  "),
        ADA,
        Passage("long", "Ada", "Girton " * 40),
        Passage("longer", "Ada", "Girton " * 250),
    ]
    drafts = PairWriter(tiny, config(tiny, max_passage_tokens=35)).write(passages)
    assert [draft.passage.id for draft in drafts] == ["empty", "ada", "long", "longer"]
    assert [draft.candidates for draft in drafts] == [0, 2, 0, 0]
    reasons = [[item.reason for item in draft.rejected] for draft in drafts if not draft.candidates]
    assert reasons == [["empty text"], ["the passage is too long"], ["the passage is too long"]]
    [refused] = PairWriter(tiny, config(tiny)).write(passages[3:])
    assert "the model's context is 256" in refused.rejected[0].detail


def test_a_line_that_is_no_passage_becomes_a_draft_that_says_so() -> None:
    assert read_line(b'{"id": "a", "text": "x"}') == Passage("a", "", "x")
    for line in (b"not json", b'{"id": "", "text": "x"}', b"[" * 100_000, b'{"id": "x", "text": "\xff"}'):
        draft = read_line(line)
        assert isinstance(draft, Draft)
        assert [item.reason for item in draft.rejected] == ["not a passage"]


def test_drafts_survive_being_written() -> None:
    odd = Passage("ü\u2028", "T", "one\u0085two")
    drafts = [Draft(odd, 3, (Pair("q\u2028?", "a"),), (Rejected("r", detail="d\n"),)), Draft(ADA)]
    assert drafts[0].to_record()["pairs"] == [{"question": "q\u2028?", "answer": "a"}]
    written = encode_jsonl(draft.to_record() for draft in drafts)
    assert [module.draft_of(json.loads(line)) for line in written.split(b"\n") if line] == drafts


@pytest.fixture(scope="module")
def taught(writer_path: str, lab_model: LanguageModel) -> LanguageModel:
    return load_language_model(lab_model.config.model_copy(update={"path": writer_path}), "cpu")


@pytest.mark.slow
def test_a_draft_does_not_depend_on_its_batch_or_on_the_order(taught: LanguageModel, passages: list[Passage]) -> None:
    one_batch = PairWriter(taught, config(taught, batch_passages=16)).write(passages)
    by_id = {draft.passage.id: draft for draft in one_batch}
    shuffled = random.Random(1).sample(passages, len(passages))
    for draft in PairWriter(taught, config(taught, batch_passages=5)).write(shuffled):
        assert draft == by_id[draft.passage.id]
    assert PairWriter(taught, config(taught, batch_passages=1)).write(passages[:3]) == one_batch[:3]
    assert sum(len(draft.pairs) for draft in one_batch) > 5
    assert PairWriter(taught, config(taught, seed=1)).write(passages) != one_batch


def test_pairs_hold_when_the_model_is_asked_again(taught: LanguageModel, passages: list[Passage]) -> None:
    prompts = taught.config.prompts
    for draft in PairWriter(taught, config(taught)).write(passages):
        for pair in draft.pairs:
            texts = [prompts.prompt(pair.question, [draft.passage]), prompts.prompt(pair.question)]
            reads, knows = generate(taught, [GenerationRequest(text) for text in texts])
            assert exact_match(reads.text, [pair.answer])
            assert not exact_match(knows.text, [pair.answer])


def test_the_key_is_of_what_drafts_depend_on(taught: LanguageModel, tiny: LanguageModel) -> None:
    key = PairWriter(taught, config(taught)).key
    assert PairWriter(taught, config(taught, output="x", questions=1, tasks_per_passage=9)).key == key
    for other in ({"seed": 1}, {"candidates": 3}, {"prompt": "{text}\nQ:"}, {"temperature": 1.0}):
        assert PairWriter(taught, config(taught, **other)).key != key
    assert PairWriter(tiny, config(taught)).key != key


def test_a_prompt_without_the_passage_is_refused() -> None:
    with refused_settings("wrong_fields", "prompt"):
        load_settings(SynthesisConfig, None, ["model.path=m", "corpus=c", "output=o", "prompt='Question: {title}'"])


def test_the_lab_writer_learns_from_people_whom_pretraining_reads_about(world: World, tiny: LanguageModel) -> None:
    rng, seen = random.Random(LabWriterConfig(model=tiny.config).seed), set()
    for _ in range(50):
        ids, start = _example(tiny, world, rng)
        text = tiny.tokenizer.decode(ids)
        seen.add(text.split("Passage: ")[1].split("\n")[0])
        assert tiny.tokenizer.decode(ids[:start]).endswith("\nQuestion:")
    assert seen <= {person.name for person in world.reading}
