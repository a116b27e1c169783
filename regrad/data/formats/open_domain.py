"""Open-domain questions with short answers.

From one passage: PopQA, Natural Questions, TriviaQA, MS MARCO. From several: 2WikiMultihopQA, HotpotQA,
ComplexWebQuestions, MuSiQue, Bamboogle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from regrad.data.field_names import answers_name
from regrad.data.formats.regrad_release import sampled
from regrad.data.passages import Passage
from regrad.data.question_files import QuestionFile, open_file
from regrad.data.questions import Fields, Question

NOT_ANSWERED = "has no answer (MS MARCO)"
_NO_ANSWER = "No Answer Present."


def popqa(file: QuestionFile) -> Iterator[Question]:
    """PopQA (github.com/AlexTMallen/adaptive-retrieval): a tsv with `id`, `prop`, `question`, `possible_answers`.

    `possible_answers` is a JSON list of names, or a list if the file can hold one; `prop`, the relation, is the group.
    """
    for record in file.records():
        is_list = isinstance(record.fields.get("possible_answers"), list)
        answers = record.texts("possible_answers") if is_list else record.json_texts("possible_answers")
        yield Question(record.maybe("id"), record.text("question"), answers, group=record.maybe("prop"))


def natural_questions(file: QuestionFile) -> Iterator[Question]:
    """Natural Questions, open: JSON lines of `question` and `answer`, or DPR's `nq-test.qa.csv`.

    NQ-open (github.com/google-research-datasets/natural-questions) has a list in `answer`. DPR's file, also of its
    other sets, is tab-separated without a header: question, and a Python list of answers.
    """
    if file.rows is None and not file.text.lstrip().startswith(("{", "[")):
        for record in file.table(("question", "answers")):
            yield Question("", record.text("question"), _python_list(record, "answers"))
        return
    for record in file.records():
        yield Question(record.maybe("id"), record.text("question"), record.texts(answers_name(record.fields)))


def _python_list(record: Fields, field: str) -> tuple[str, ...]:
    try:
        value = ast.literal_eval(record.text(field))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list):
        raise record.error(field, "a list of strings such as ['a', 'b']")
    return Fields(record.where, {field: value}).texts(field)


def triviaqa(file: QuestionFile) -> Iterator[Question]:
    """TriviaQA 1.0 (nlp.cs.washington.edu/triviaqa): an object whose `Data` are `QuestionId`, `Question`, `Answer`.

    `Answer` has a `Value` and `Aliases`, which hold it; the test files, whose answers are kept back, have none.
    """
    for record in file.records("Data"):
        answer = record.record("Answer")
        names = tuple(dict.fromkeys((*answer.maybe_texts("Value"), *answer.maybe_texts("Aliases"))))
        if not names:
            raise answer.error("Aliases", "a list of names")
        yield Question(record.text("QuestionId"), record.text("Question"), names)


def ms_marco(file: QuestionFile) -> Iterator[Question]:
    """MS MARCO's question answering, version 2.1 (microsoft.github.io/msmarco): its one object, JSON lines, or rows.

    The object has a column for each of `query`, `query_id`, `answers`, `passages` and more, in which a number names the
    record; lines have the same fields. Passages are `passage_text` and `is_selected`, a list of objects, or as in the
    hub's rows an object of lists; their ids are those of the query and a number, and those that are selected are gold.
    Questions whose answer is "No Answer Present." are left out.
    """
    for record in _marco_records(file):
        answers = tuple(text for text in record.maybe_texts("answers") if text != _NO_ANSWER)
        if not record.has("answers"):
            raise record.error("answers", "a list of answers")
        if not answers:
            file.left_out[NOT_ANSWERED] += 1
            continue
        name = record.text("query_id")
        passages, selected = _marco_passages(name, record)
        group = record.maybe("query_type")
        yield Question(
            name, record.text("query"), answers, passage_ids=tuple(selected), passages=tuple(passages), group=group
        )


def _marco_records(file: QuestionFile) -> Iterator[Fields]:
    records = list(file.records())
    columns = {record.key: record.fields for record in records if record.key}
    if not {"query", "query_id"} <= set(columns):
        yield from records
        return
    for number in columns["query_id"]:
        row = {name: column[number] for name, column in columns.items() if number in column}
        yield Fields(f"{file.uri} record {number}", row)


def _marco_passages(name: str, record: Fields) -> tuple[list[Passage], list[str]]:
    if not record.has("passages"):
        return [], []
    if isinstance(record.fields["passages"], dict):
        columns = record.record("passages")
        texts = columns.strings("passage_text")
        chosen = columns.flags("is_selected", len(texts))
    else:
        objects = record.records("passages")
        texts = tuple(one.text("passage_text") for one in objects)
        chosen = [one.has("is_selected") and one.flag("is_selected") for one in objects]
    passages = [Passage(f"{name}/{number}", "", text) for number, text in enumerate(texts)]
    return passages, [passage.id for passage, gold in zip(passages, chosen, strict=True) if gold]


def hotpotqa(file: QuestionFile) -> Iterator[Question]:
    """HotpotQA (hotpotqa.github.io): a JSON list with `_id`, `question`, `answer`, `type`, `context` and more.

    `context` is a list of [title, sentences] and `supporting_facts` one of [title, sentence number]. A passage's id is
    its title, as HotpotQA's own evaluation has it.
    """
    for record in file.records():
        yield _with_context(record, record.texts("answer"))


def two_wiki(file: QuestionFile) -> Iterator[Question]:
    """2WikiMultihopQA (github.com/Alab-NII/2wikimultihop), which follows HotpotQA's format, or HippoRAG's sample of it.

    With the set's `id_aliases.json`, the names of the answer's Wikidata item (`answer_id`) count as answers, as they do
    in its evaluation script v1.1. The sample is a list of `test_id`, `question` and `answer`, one or several.
    """
    aliases = _wikidata_aliases(file.aliases)
    for record in file.records():
        if not record.has("_id") and record.has("test_id"):
            yield sampled(record)
            continue
        more = aliases.get(record.maybe("answer_id"), ())
        yield _with_context(record, tuple(dict.fromkeys((*record.texts("answer"), *more))))


def _with_context(record: Fields, answers: tuple[str, ...]) -> Question:
    passages = tuple(Passage(title, title, _joined(record, sentences)) for title, sentences in record.pairs("context"))
    gold = dict.fromkeys(title for title, _ in record.pairs("supporting_facts"))
    return Question(
        record.text("_id"),
        record.text("question"),
        answers,
        passage_ids=tuple(gold),
        passages=tuple({passage.id: passage for passage in passages}.values()),
        group=record.maybe("type"),
    )


def _joined(record: Fields, sentences: object) -> str:
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        raise record.error("context", "a list of [title, sentences] pairs")
    return " ".join(sentence.strip() for sentence in sentences)


def _wikidata_aliases(uri: str | None) -> Mapping[str, tuple[str, ...]]:
    """Wikidata id -> names: JSON lines of `Q_id`, `aliases` and `demonyms`, of which the names count."""
    if uri is None:
        return {}
    return {record.text("Q_id"): record.maybe_texts("aliases") for record in open_file(uri).records()}


def complex_web_questions(file: QuestionFile) -> Iterator[Question]:
    """ComplexWebQuestions 1.1 (tau-nlp): a JSON list with `ID`, `question`, `compositionality_type` and `answers`.

    An answer has an `answer` and `aliases`. A list of `test_id`, `question` and `answer` is read as well.
    """
    for record in file.records():
        if not record.has("ID") and record.has("test_id"):
            yield sampled(record)
            continue
        answers = [
            name
            for answer in record.records("answers")
            for name in (*answer.maybe_texts("answer"), *answer.maybe_texts("aliases"))
        ]
        if not answers:
            raise record.error("answers", "a list with an 'answer'")
        group = record.maybe("compositionality_type")
        yield Question(record.text("ID"), record.text("question"), tuple(dict.fromkeys(answers)), group=group)


def musique(file: QuestionFile) -> Iterator[Question]:
    """MuSiQue 1.0 (github.com/StonyBrookNLP/musique): JSON lines, Answerable or Full.

    Fields `id`, `question`, `answer`, `answer_aliases`, `answerable`, and `paragraphs` of `idx`, `title`,
    `paragraph_text`, `is_supporting`. What is not answerable is left out: in Full, it is a twin with the same id. A
    passage's id is the question's with the paragraph's number; the group is how many hops, such as 3hop1.
    """
    for record in file.records():
        if record.fields.get("answerable") is False:
            file.left_out["is not answerable (MuSiQue-Full)"] += 1
            continue
        name, paragraphs = record.text("id"), record.records("paragraphs")
        passages = [_paragraph(name, paragraph) for paragraph in paragraphs]
        yield Question(
            name,
            record.text("question"),
            tuple(dict.fromkeys((*record.texts("answer"), *record.maybe_texts("answer_aliases")))),
            passage_ids=tuple(p.id for p, r in zip(passages, paragraphs, strict=True) if r.fields.get("is_supporting")),
            passages=tuple(passages),
            group=name.partition("__")[0],
        )


def _paragraph(question: str, record: Fields) -> Passage:
    return Passage(f"{question}/{record.text('idx')}", record.maybe("title"), record.text("paragraph_text"))


def bamboogle(file: QuestionFile) -> Iterator[Question]:
    """Bamboogle (github.com/ofirpress/self-ask): a table of `Question` and `Answer`, or JSON lines in any case."""
    for record in file.records():
        lowered = Fields(record.where, {name.strip().lower(): value for name, value in record.fields.items()})
        yield Question(lowered.maybe("id"), lowered.text("question"), lowered.texts("answer"))
