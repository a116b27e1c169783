"""`regrad lab report`, as small as it gets: everything once, and a second call that finds it done."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from regrad.cli.main import regrad

TINY = (
    *("questions=8", "hard_questions=5", "records=40", "documents=[5,10]", "timed=3", "batched=32", "steps.epochs=1"),
    *("steps.regrad=3", "steps.icl=1", "steps.mixed=1", "steps.continued=1", "steps.notes=1", "steps.notes_icl=1"),
    *("steps.fine_tuning=2", "steps.adapters=1"),
)


def run(out: Path) -> str:
    options = [part for value in (*TINY, f"output={out}") for part in ("--set", value)]
    result = CliRunner().invoke(regrad, ["lab", "report", "--quick", *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_one_command_makes_the_whole_report_and_a_second_one_finds_it_done(local_cluster: str, tmp_path: Path) -> None:
    run(out := tmp_path / "report")
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

    again = run(out)
    steps = int(re.findall(r"(\d+) steps, (\d+) of them done before", again)[0][1])
    assert again.startswith(f"{steps} steps, {steps} of them done before")
    assert json.loads((out / "report.json").read_text())["claims"] == found["claims"]
