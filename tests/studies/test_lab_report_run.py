"""`regrad lab report` as a user runs it, as small as it gets: everything once, and a second call that finds it done."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.conftest import BIN, environment
from tests.tools.patience import patient

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]  # on an idle machine: minutes

TINY = (
    *("people=20", "questions=8", "hard_questions=5", "records=40", "documents=[5,10]", "timed=3", "batched=32"),
    *("steps.regrad=3", "steps.icl=1", "steps.mixed=1", "steps.continued=1", "steps.notes=1", "steps.notes_icl=1"),
    *("steps.fine_tuning=2", "steps.adapters=1", "steps.epochs=1"),
)


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    options = [part for value in TINY for part in ("--set", value)]
    line = [sys.executable, str(BIN / "regrad"), "lab", "report", "--quick", *options]
    return subprocess.run(
        line,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=patient(1000),
        check=False,
    )


@pytest.mark.usefixtures("forked")
def test_one_command_makes_the_whole_report_and_a_second_one_finds_it_done(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    out = tmp_path / "runs" / "lab-report-quick"
    found = json.loads((out / "report.json").read_text())
    assert [claim["id"] for claim in found["claims"]] == list(range(1, 10))
    for claim in found["claims"]:
        assert {"statement", "value", "interval", "p", "reproduced"} <= set(claim)
        assert 0.0 <= claim["p"] <= 1.0
    assert {"k3_gap", "k5_gap"} <= set(found["figures"])
    assert {row["study"] for row in found["rows"]} >= {"methods", "merges", "drift", "notes"}
    assert found["measured"]["unchanged"] is True
    assert found["measured"]["different"] == 0
    assert found["seconds"] > 0
    text = (out / "lab-report.md").read_text()
    assert "A quick run" in text
    for image in re.findall(r"\]\((images/[^)]+)\)", text):
        assert (out / image).read_bytes().startswith(b"<?xml")
    assert len(re.findall(r"^### \d", text, re.MULTILINE)) == 9

    started = time.monotonic()
    again = run(tmp_path)
    steps = int(re.findall(r"(\d+) steps, (\d+) of them done before", again.stdout)[0][1])
    assert again.stdout.startswith(f"{steps} steps, {steps} of them done before")
    assert time.monotonic() - started < patient(120)
    assert json.loads((out / "report.json").read_text())["claims"] == found["claims"]
