"""`regrad try` on a folder, at the demo's start, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from regrad.data.corpora import read_passages
from regrad.data.passages import Passage
from tests.integration.conftest import BIN, RunningDemo, environment, free_port
from tests.tools.patience import completed

QUESTION = "Where was Les Dripen born?"


def test_a_folder_is_asked_in_every_way_and_computed_once(demo: RunningDemo, tmp_path: Path) -> None:
    found = {item.id: item for item in read_passages(f"{demo.runs}/lab/corpus.jsonl") if isinstance(item, Passage)}
    folder = tmp_path / "texts"
    folder.mkdir()
    names = {"les-dripen", *list(found)[:6]}
    for name in names:
        (folder / f"{found[name].title}.txt").write_text(found[name].text + "\n")
    (folder / "broken.txt").write_bytes(b"\xff\xfe\xfd")
    start = f"{demo.runs}/meta-init"
    settings = [f"start={start}", "model=null", f"output={tmp_path}/out", f"http.port={free_port()}"]
    options = [part for setting in settings for part in ("--set", setting)]
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"question": QUESTION, "answers": ["Thomville"]}) + "\n")
    command = [BIN / "regrad", "try", folder, "--ask", QUESTION, "--questions", asked, *options]
    result = completed(command, 300, env=environment())
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    for piece in (
        f"{len(names)} passages of {len(names) + 1} files, 1 rejected",
        "left out: broken.txt",
        "ready after",
        "regrad+icl",
        "Les Dripen.txt:1",
    ):
        assert piece in result.stdout, result.stdout
    assert result.stdout.count("Thomville") >= 2, result.stdout
    assert "1 question, k=1" in result.stdout
    kept = json.loads((tmp_path / "out" / "answers.jsonl").read_text())
    assert kept["replies"]["regrad"]["holds_answer"] and not kept["replies"]["direct"]["holds_answer"], kept
