"""The process in which Lucene runs: what happens when it, or the one who asks, is killed, interrupted or wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from regrad.data.passages import Passage
from regrad.errors import RetrievalError
from regrad.retrieval import java, lucene_process
from regrad.retrieval.base import open_retriever
from regrad.retrieval.bm25 import LuceneRetriever, build_index
from regrad.retrieval.lucene_process import LuceneProcess, lucene
from regrad.retrieval.lucene_worker import reply_to
from tests.tools.patience import Deadline, patient
from tests.tools.refusals import refused

PASSAGES = [Passage(f"p{number}", "", f"word{number} and what all share") for number in range(20)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("lucene") / "index")
    assert build_index(PASSAGES, uri) == 20
    return uri


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[LuceneProcess]:
    """One of the test's own."""
    own = LuceneProcess()
    monkeypatch.setattr(lucene_process, "_of", lambda pid: own)
    yield own
    own.stop()


def test_java_runs_in_another_process_that_is_shared(index: str) -> None:
    with open_retriever(index) as first, open_retriever(index) as second:
        assert first.search_ids(["word3"], 1) == second.search_ids(["word3"], 1)
    assert psutil.Process(lucene().pid).ppid() == os.getpid()
    assert not any("libjvm" in mapped.path for mapped in psutil.Process().memory_maps())


@pytest.mark.slow
def test_a_killed_process_costs_no_search(index: str, process: LuceneProcess) -> None:
    with open_retriever(index) as retriever:
        before = retriever.search_ids(["word7", "what all share"], 5)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        assert retriever.search_ids(["word7", "what all share"], 5) == before


def test_what_is_asked_of_a_closed_index_is_answered_and_leaves_nothing_open(
    index: str, process: LuceneProcess
) -> None:
    with open_retriever(index) as retriever, open_retriever(index) as other:
        assert isinstance(retriever, LuceneRetriever)
        assert isinstance(other, LuceneRetriever)
        joined = retriever.joined([other])
        before = joined.ranked(["word7"], 3)
        assert process.ask("opened") == 3
        joined.close()
        assert process.ask("opened") == 2
        assert joined.ranked(["word7"], 3) == before
        assert process.ask("opened") == 2
    assert process.ask("opened") == 0


def test_closing_an_index_starts_nothing(index: str, process: LuceneProcess) -> None:
    retriever = open_retriever(index)
    process.stop()
    retriever.close()
    assert process.pid is None


@pytest.mark.slow
def test_a_process_killed_in_an_index_is_an_error_and_leaves_nothing(tmp_path: Path, process: LuceneProcess) -> None:
    def passages() -> Iterator[Passage]:
        for number in range(50_000):
            if number == 20_000:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
            yield Passage(str(number), "", "a text")

    with refused(RetrievalError, "lucene_ended"):
        build_index(passages(), str(tmp_path / "index"))
    assert list(tmp_path.iterdir()) == []
    assert build_index(PASSAGES, str(tmp_path / "index")) == 20


@pytest.mark.slow
def test_what_interrupts_a_request_does_not_give_its_reply_to_the_next(
    index: str, process: LuceneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_retriever(index) as retriever:
        expected, before = retriever.search_ids(["word5"], 1), process.pid
        with monkeypatch.context() as patch:
            patch.setattr(json, "loads", lambda text: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                retriever.search_ids(["word9"], 1)
        assert retriever.search_ids(["word5"], 1) == expected
        assert process.pid != before


@pytest.mark.slow
def test_it_ends_with_the_one_who_asked(index: str) -> None:
    code = "import os, sys, time; from regrad.retrieval.base import open_retriever; open_retriever(sys.argv[1]); "
    code += "from regrad.retrieval.lucene_process import lucene; print(lucene().pid, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, index], stdout=subprocess.PIPE, text=True) as asking:
        assert asking.stdout is not None
        worker = psutil.Process(int(asking.stdout.readline()))
        asking.kill()
    deadline = Deadline(20)
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert not deadline.over
        psutil.wait_procs([worker], timeout=patient(0.2))


@pytest.mark.parametrize("line", ["no JSON", '{"do": "search"}', '{"do": "nothing of the kind"}', "[]"])
def test_a_request_that_is_none_is_an_error_and_not_the_end(line: str) -> None:
    reply = reply_to(line, lambda: LuceneProcess())  # type: ignore[arg-type,return-value]
    assert reply["error"]["code"] == "retrieval.lucene_failed"


def test_an_error_of_lucene_comes_with_its_code_and_fields(tmp_path: Path, process: LuceneProcess) -> None:
    with refused(RetrievalError, "damaged") as caught:
        process.ask("open", name="a", folder=str(tmp_path / "none"), k1=1.2, b=0.75)
    assert caught.value.fields["folder"] == str(tmp_path / "none")
    assert process.ask("is_open", name="a") is False


@pytest.mark.parametrize(
    ("variable", "wrong"),
    [("REGRAD_JAVA_HEAP", ["", "1", "0g", "1gb", "-Xmx1g", "1.5g"]), ("REGRAD_JAVA_THREADS", ["", "0", "257", "two"])],
)
def test_what_the_environment_says_of_java_is_checked(
    variable: str, wrong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {"REGRAD_JAVA_HEAP": java.java_heap, "REGRAD_JAVA_THREADS": java.java_threads}[variable]
    monkeypatch.delenv(variable, raising=False)
    assert read() in ("1g", 4)
    for value in wrong:
        monkeypatch.setenv(variable, value)
        with refused(RetrievalError, "bad_environment", variable=variable, found=value):
            read()


@pytest.mark.slow
def test_heap_and_threads_are_those_of_the_environment(
    index: str, process: LuceneProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGRAD_JAVA_HEAP", "lots")
    with refused(RetrievalError, "bad_environment", variable="REGRAD_JAVA_HEAP", found="lots"):
        process.ask("opened")
    process.stop()
    monkeypatch.setenv("REGRAD_JAVA_HEAP", "96m")
    monkeypatch.setenv("REGRAD_JAVA_THREADS", "3")
    with open_retriever(index) as retriever:
        retriever.search_ids(["word7"], 5)
        assert process.pid is not None
        before = psutil.Process(process.pid).num_threads()
        retriever.search_ids(["word7"] * 40, 5)
        assert 1 <= psutil.Process(process.pid).num_threads() - before <= 3
    flags = subprocess.run(
        [java.java_home() / "bin" / "jcmd", str(process.pid), "VM.flags"], check=True, capture_output=True, text=True
    )
    assert f"-XX:MaxHeapSize={96 << 20}" in flags.stdout
