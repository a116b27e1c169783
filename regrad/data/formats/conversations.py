"""Questions inside conversations: OR-QuAC and DoQA. The turns before a question come with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from regrad.data.passages import Passage, passage_id
from regrad.data.question_files import QuestionFile
from regrad.data.questions import Fields, Question, Turns

UNANSWERABLE = "has no answer (CANNOTANSWER)"
_NO_ANSWER = "CANNOTANSWER"


def or_quac(file: QuestionFile) -> Iterator[Question]:
    """OR-QuAC (github.com/prdwb/orconvqa-release), the JSON lines of its `preprocessed` folder.

    A record has `qid`, `question`, `answer` with a `text`, `history` of `question` and `answer`, and, but for the test
    set, `evidences` (texts of passages) with `retrieval_labels`. A passage's id is a hash of its text; the group is the
    conversation. The `rewrite`, which needs no history, is not read.
    """
    for record in file.records():
        answer = record.record("answer").text("text")
        if answer == _NO_ANSWER:
            file.left_out[UNANSWERABLE] += 1
            continue
        turns: list[tuple[str, str]] = []
        for turn in record.records("history"):
            turns += _turn(turn.text("question"), turn.record("answer").maybe("text") if turn.has("answer") else "")
        texts = record.strings("evidences") if record.fields.get("evidences") else ()
        passages = tuple(Passage(passage_id(text), "", text) for text in texts)
        labels = record.flags("retrieval_labels", len(passages)) if passages else []
        gold = [passage.id for passage, label in zip(passages, labels, strict=True) if label]
        name = record.text("qid")
        yield Question(
            name,
            record.text("question"),
            (answer,),
            passage_ids=tuple(dict.fromkeys(gold)),
            passages=passages,
            group=name.rpartition("_q#")[0],
            turns=tuple(turns),
        )


def doqa(file: QuestionFile) -> Iterator[Question]:
    """DoQA (ixa.eus/node/12931), its files in QuAC's layout, or the hub's rows of it, in their order.

    An object whose `data` are threads of `title` and `paragraphs`, each a `context` with a conversation: `qas` of `id`,
    `question`, `answers` and `orig_answer`. A row has the same fields, with `answers` an object of lists; which
    conversation it is of, its id says up to `_q#`. The paragraph is the gold passage, its id a hash of its text.
    """
    before: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    last: dict[str, int] = {}
    for record in file.records("data"):
        title = record.maybe("title")
        paragraphs = record.records("paragraphs") if record.has("paragraphs") else [record]
        for paragraph in paragraphs:
            text = paragraph.text("context")
            passage = Passage(passage_id(text), title, text)
            for asked in paragraph.records("qas") if paragraph.has("qas") else [paragraph]:
                name = asked.text("id")
                dialogue, mark, number = name.rpartition("_q#")
                if not (mark and number.isdecimal()):  # else the turns of all conversations would be one's
                    raise asked.error("id", "the conversation's, _q# and a number")
                if int(number) <= last.get(dialogue, -1):  # else a later turn would be among the earlier ones
                    raise asked.error("id", f"after {dialogue}{mark}{last[dialogue]}, in the conversation's order")
                last[dialogue] = int(number)
                yield from _of_thread(file, asked, name, passage, tuple(before[dialogue]))
                before[dialogue] += _turn(asked.text("question"), _given(asked))


def _of_thread(file: QuestionFile, record: Fields, name: str, passage: Passage, turns: Turns) -> Iterator[Question]:
    answers = tuple(text for text in _answers(record) if text != _NO_ANSWER)
    if not answers:
        file.left_out[UNANSWERABLE] += 1
        return
    yield Question(
        name,
        record.text("question"),
        answers,
        passage_ids=(passage.id,),
        passages=(passage,),
        group=name.rpartition("_q#")[0],
        turns=turns,
    )


def _answers(record: Fields) -> tuple[str, ...]:
    if isinstance(record.fields.get("answers"), dict):
        return record.record("answers").maybe_texts("text")
    return tuple(dict.fromkeys(answer.text("text") for answer in record.records("answers")))


def _given(record: Fields) -> str:
    """What was answered in the conversation itself."""
    if record.has("orig_answer"):
        return record.record("orig_answer").maybe("text")
    return next(iter(_answers(record)), "")


def _turn(question: str, answer: str) -> list[tuple[str, str]]:
    """A question and its answer; a question that had none stands alone."""
    return [("user", question), *([("assistant", answer)] if answer and answer != _NO_ANSWER else [])]
