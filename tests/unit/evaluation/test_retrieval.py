from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from regrad.cli.main import regrad
from regrad.data.passages import Passage
from regrad.data.question_sets import QuestionSetConfig, read_questions
from regrad.data.questions import Question
from regrad.errors import EvaluationError
from regrad.evaluation.retrieval import gold_of, measure, read_qrels, scores_of, trec_run
from regrad.retrieval.base import RETRIEVERS, open_retriever
from tests.tools.overlap import build_overlap_index
from tests.tools.refusals import refused

PASSAGES = [Passage("a", "", "harbour town"), Passage("b", "", "harbour of towers"), Passage("c", "", "mountain")]
QUESTIONS = [
    Question("q1", "harbour town", ("x",), passage_ids=("a",)),
    Question("q2", "harbour towers of town", ("x",), passage_ids=("a", "c")),
    Question("q3", "mountain", ("x",)),
    Question("q4", "mountain", ("x",), passage_ids=("c", "gone")),
]


@pytest.fixture(scope="module", autouse=True)
def _overlap_is_known() -> Iterator[None]:
    RETRIEVERS["overlap"] = "tests.tools.overlap:OverlapRetriever"
    yield
    del RETRIEVERS["overlap"]


@pytest.fixture
def index(tmp_path: Path) -> str:
    build_overlap_index(PASSAGES, str(tmp_path / "index"))
    return str(tmp_path / "index")


def test_the_measures_are_those_of_the_textbook() -> None:
    run = {"q": [("x", 3.0), ("a", 2.0), ("y", 1.0), ("b", 0.5)]}
    found = scores_of(run, {"q": {"a": 1, "b": 1, "c": 1}}, (1, 2, 4))["q"]
    assert [found[f"recall@{k}"] for k in (1, 2, 4)] == pytest.approx([0, 1 / 3, 2 / 3])
    assert found["mrr"] == 0.5
    ideal = 1 + 1 / 1.584962500721156 + 0.5
    assert found["ndcg@4"] == pytest.approx((1 / 1.584962500721156 + 1 / 2.321928094887362) / ideal, abs=1e-6)


def test_equal_scores_stay_in_the_order_of_the_index() -> None:
    for run in ([("a", 1.0), ("z", 1.0)], [("z", 1.0), ("a", 1.0)]):
        found = scores_of({"q": run}, {"q": {"a": 1}}, (1,))["q"]
        assert found["recall@1"] == float(run[0][0] == "a")


def test_questions_without_gold_are_left_out_and_unknown_passages_named(index: str) -> None:
    with open_retriever(index) as retriever:
        found = measure(retriever, QUESTIONS, gold_of(QUESTIONS), (1, 3))
        with refused(EvaluationError, "no_gold", questions=1):
            measure(retriever, QUESTIONS[2:3], gold_of(QUESTIONS[2:3]), (1,))
    assert list(found.scores) == ["q1", "q2", "q4"]
    assert found.unknown == ["gone"]
    assert found.means()["recall@1"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found.means()["mrr"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert trec_run(found, "us").splitlines()[0] == "q1 Q0 a 1 2.000000 us"


def test_relevant_passages_are_read_in_both_forms(tmp_path: Path) -> None:
    for text in ("q1 0 a 1\nq1 0 b 0\n\nq2 0 c 2\n", "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t0\nq2\tc\t2\n"):
        (tmp_path / "qrels").write_text(text)
        assert read_qrels(str(tmp_path / "qrels")) == {"q1": {"a": 1}, "q2": {"c": 2}}
    (tmp_path / "qrels").write_text("q1 0 a 1\nq1 a\n")
    with refused(EvaluationError, "bad_qrels", line=2):
        read_qrels(str(tmp_path / "qrels"))


def test_relevant_passages_may_be_compressed_marked_and_decimal(tmp_path: Path) -> None:
    text = "\ufeffquery-id\tcorpus-id\tscore\nq1\ta\t1.0\n"
    (tmp_path / "qrels.tsv.gz").write_bytes(gzip.compress(text.encode()))
    assert read_qrels((tmp_path / "qrels.tsv.gz").as_uri()) == {"q1": {"a": 1}}


@pytest.mark.parametrize("relevance", ["0.5", "99999999999999999999", "nan", "inf", "yes"])
def test_a_relevance_that_is_none_is_refused(relevance: str, tmp_path: Path) -> None:
    (tmp_path / "qrels").write_text(f"q1 0 a {relevance}\n")
    with refused(EvaluationError, "bad_qrels", line=1):
        read_qrels(str(tmp_path / "qrels"))


@pytest.mark.parametrize(("content", "code"), [(b"q\xe9 0 a 1\n", "not_utf8"), (None, "unreadable")])
def test_qrels_that_cannot_be_read_are_named(content: bytes | None, code: str, tmp_path: Path) -> None:
    if content is None:
        (tmp_path / "qrels").mkdir()
    else:
        (tmp_path / "qrels").write_bytes(content)
    with refused(EvaluationError, code, uri=str(tmp_path / "qrels")):
        read_qrels(str(tmp_path / "qrels"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("queries.jsonl", '{"_id": "q1", "text": "harbour town"}\n'),
        ("topics.tsv", "q1\tharbour town\n"),
    ],
)
def test_a_published_set_is_measured_as_it_is(name: str, text: str, index: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\ta\t1\n")
    arguments = ["eval-retrieval", str(tmp_path / name), index, "--qrels", str(tmp_path / "test.tsv"), "--k", "1"]
    result = CliRunner().invoke(regrad, arguments)
    assert result.exit_code == 0, result.output
    assert "1.000" in result.output.splitlines()[-1]


def test_questions_without_answers_are_not_for_scoring(tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "harbour town"}\n')
    with refused(EvaluationError, "no_answers", id="q1"):
        read_questions(QuestionSetConfig(name="s", path=str(tmp_path / "queries.jsonl"), format="beir"))


@pytest.mark.slow
def test_times_are_of_an_index_that_was_asked_before(index: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_retriever(index) as retriever:
        search, asked = retriever.search_ids, list[int]()

        def slow_at_first(questions: list[str], k: int) -> list[list[tuple[str, float]]]:
            time.sleep(0 if asked else 1.0)
            asked.append(len(questions))
            return search(questions, k)

        monkeypatch.setattr(retriever, "search_ids", slow_at_first)
        found = measure(retriever, QUESTIONS, gold_of(QUESTIONS), (1,))
    assert found.batched_ms < 300
    assert max(found.alone_ms) < 1000


def test_an_id_with_a_space_is_in_no_run_file(index: str) -> None:
    question = Question("q 1", "harbour", ("x",), passage_ids=("a",))
    with open_retriever(index) as retriever:
        found = measure(retriever, [question], gold_of([question]), (1,))
    with refused(EvaluationError, "id_with_spaces", question_id="q 1"):
        trec_run(found, "us")


def test_the_command_prints_a_row_an_index_and_writes_what_was_found(index: str, tmp_path: Path) -> None:
    records = [
        {"id": q.id, "question": q.question, "answers": ["x"], "passage_ids": list(q.passage_ids)} for q in QUESTIONS
    ]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    out = ["--json", str(tmp_path / "out.json"), "--run", str(tmp_path / "run.txt"), "--k", "3,1"]
    result = CliRunner().invoke(regrad, ["eval-retrieval", str(tmp_path / "q.jsonl"), index, *out])
    assert result.exit_code == 0, result.output
    assert "3 questions" in result.output and "1 that name no passage" in result.output
    assert "recall@3" in result.output and "1 relevant passages are not in it, such as 'gone'" in result.output
    found = json.loads((tmp_path / "out.json").read_text())[index]
    assert found["means"]["recall@1"] == pytest.approx(0.5)
    assert found["questions"]["q1"]["recall@1"] == 1.0
    assert (tmp_path / "run.txt").read_text().startswith("q1 Q0 a 1 ")


@pytest.mark.parametrize("wrong", [["--k", "0"], ["--k", "x"], ["--k", "5000"], ["--run", "r", "other"]])
def test_a_wrong_option_is_a_usage_error(index: str, wrong: list[str]) -> None:
    assert CliRunner().invoke(regrad, ["eval-retrieval", "q.jsonl", index, *wrong]).exit_code == 2
