"""A rebuild skips what is done, goes on where it was killed, and makes current only what holds."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from regrad.errors import NotPromoted, RebuildError, ServeError, StorageError
from regrad.rebuild.flow import rebuild, roll_back
from regrad.rebuild.records import Records, RunRecord
from regrad.rebuild.steps import alone, remove_left_over
from regrad.rebuild.versions import PromotionConfig, Version, Versions
from regrad.storage import Storage
from tests.tools.patience import completed
from tests.tools.rebuilding import cheap_rebuild, contents
from tests.tools.refusals import refused

KILLS = 20


def quiet(_: str) -> None:
    """For what a rebuild says."""


def test_a_second_rebuild_does_nothing_and_changes_no_byte(tmp_path: Path) -> None:
    ran: list[str] = []
    line = rebuild(cheap_rebuild(str(tmp_path), ran=ran), quiet)
    assert ran == ["meta-init", "index", "bank", "eval"]
    assert "is current" in line
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "nothing has changed" in rebuild(cheap_rebuild(str(tmp_path), ran=ran), quiet)
    assert len(ran) == 4
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_of_another_corpus_only_what_depends_on_it_is_made(tmp_path: Path) -> None:
    ran: list[str] = []
    rebuild(cheap_rebuild(str(tmp_path)), quiet)
    rebuild(cheap_rebuild(str(tmp_path), corpus="another", ran=ran), quiet)
    assert ran == ["index", "bank", "eval"]
    first, second = Versions(Storage(tmp_path)).ids()
    current = Versions(Storage(tmp_path)).current()
    assert current is not None
    assert (current.version, current.previous) == (second, first)


@pytest.mark.parametrize("step", ["meta-init", "index", "bank", "eval"])
@pytest.mark.parametrize("recorded", [False, True])
def test_an_error_of_a_step_leaves_what_is_in_force_and_the_next_run_goes_on(
    tmp_path: Path, step: str, recorded: bool
) -> None:
    """Interrupted as soon as the step's record is begun, or when the work is done and its record is not."""
    rebuild(cheap_rebuild(str(tmp_path / "whole")), quiet)
    interrupt(str(tmp_path / "cut"), step, recorded)
    assert not (tmp_path / "cut" / "current.json").exists()
    rebuild(cheap_rebuild(str(tmp_path / "cut")), quiet)
    assert contents(str(tmp_path / "cut")) == contents(str(tmp_path / "whole"))


def interrupt(output: str, step: str, recorded: bool) -> None:
    writes = Records.write
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(self: Records, record: RunRecord) -> None:
            if record.step == step and (record.ended is not None) == recorded:
                raise KeyboardInterrupt
            writes(self, record)

        patch.setattr(Records, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rebuild(cheap_rebuild(output), quiet)


@pytest.mark.slow
def test_killed_at_random_points_it_completes_with_the_same_bytes(tmp_path: Path) -> None:
    whole = str(tmp_path / "whole")
    lines = int(run_program(whole).stdout)
    assert lines > 300
    chance = random.Random(20)
    points = sorted(chance.sample(range(1, lines), KILLS))
    for number, point in enumerate(points):
        output = str(tmp_path / f"killed-{number}")
        assert run_program(output, point).returncode == -signal.SIGKILL, point
        rebuild(cheap_rebuild(output), quiet)
        left = {name: data for name, data in contents(output).items() if not name.endswith(".tmp")}
        assert left == contents(whole), f"killed at line {point} of {lines}"


def test_killed_again_and_again_it_completes_with_the_same_bytes(tmp_path: Path) -> None:
    rebuild(cheap_rebuild(str(tmp_path / "whole")), quiet)
    output = str(tmp_path / "killed")
    for point in (60, 150, 260):  # each run begins anew and gets further
        assert run_program(output, point).returncode == -signal.SIGKILL
    rebuild(cheap_rebuild(output), quiet)
    left = {name: data for name, data in contents(output).items() if not name.endswith(".tmp")}
    assert left == contents(str(tmp_path / "whole"))


def run_program(output: str, *point: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.tools.rebuilding", output, *map(str, point)]
    return completed(command, 60, cwd=Path(__file__).parents[3])


def test_a_time_that_is_not_that_of_the_whole_work_is_not_taken_for_it(tmp_path: Path) -> None:
    interrupt(str(tmp_path), "bank", recorded=True)
    rebuild(cheap_rebuild(str(tmp_path)), quiet)
    attempts = {record.step: (record.attempts, record.whole) for record in Records(Storage(tmp_path)).all()}
    assert attempts == {"meta-init": (1, True), "index": (1, True), "bank": (2, False), "eval": (1, True)}


def test_a_score_that_fell_is_refused_with_both_numbers_and_the_version_is_kept(tmp_path: Path) -> None:
    output = str(tmp_path)
    rebuild(cheap_rebuild(output, score=0.8), quiet)
    served: list[Version] = []
    worse = cheap_rebuild(output, corpus="another", score=0.7, serve=lambda version: served.append(version))
    with refused(NotPromoted, "score_fell", score=0.7, current_score=0.8) as caught:
        rebuild(worse, quiet)
    assert "0.7000" in str(caught.value)
    assert "0.8000" in str(caught.value)
    first, second = Versions(Storage(output)).ids()
    current = Versions(Storage(output)).current()
    assert current is not None
    assert (current.version, current.previous) == (first, None)
    assert served == []
    # Kept aside, it can be made current without any step, where the rule allows what it lost.
    ran: list[str] = []
    rule = PromotionConfig(allowed_drop=0.1)
    line = rebuild(cheap_rebuild(output, "another", 0.7, ran, promotion=rule), quiet)
    assert second in line
    assert ran == []


def test_a_first_version_has_to_reach_the_minimum(tmp_path: Path) -> None:
    job = cheap_rebuild(str(tmp_path), score=0.3, promotion=PromotionConfig(minimum=0.31))
    with refused(NotPromoted, "below_minimum", score=0.3, minimum=0.31):
        rebuild(job, quiet)
    assert Versions(Storage(tmp_path)).current() is None


def test_rolled_back_a_version_is_not_taken_again_by_itself(tmp_path: Path) -> None:
    output = Storage(tmp_path)
    rebuild(cheap_rebuild(str(tmp_path)), quiet)
    with refused(RebuildError, "nothing_to_roll_back"):
        roll_back(output, lambda _: None)
    rebuild(cheap_rebuild(str(tmp_path), "another"), quiet)
    first, second = Versions(output).ids()
    served: list[str] = []
    roll_back(output, lambda version: served.append(version.id))
    assert served == [first]
    assert "was rolled back" in rebuild(cheap_rebuild(str(tmp_path), "another"), quiet)
    assert in_force(output) == first
    roll_back(output, lambda version: served.append(version.id))
    assert in_force(output) == second
    assert served == [first, second]


def test_servers_that_do_not_take_it_up_leave_the_version_before_in_force(tmp_path: Path) -> None:
    output = Storage(tmp_path)
    rebuild(cheap_rebuild(str(tmp_path)), quiet)
    (first,) = Versions(output).ids()

    def fails(_: Version) -> None:
        raise ServeError("it does not follow", code="not_followed")

    with refused(ServeError, "not_followed"):
        rebuild(cheap_rebuild(str(tmp_path), "another", serve=fails), quiet)
    assert in_force(output) == first
    ran: list[str] = []
    rebuild(cheap_rebuild(str(tmp_path), "another", ran=ran), quiet)
    assert ran == []
    assert in_force(output) != first


def test_of_two_rebuilds_at_once_the_second_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with alone(Storage(tmp_path)), refused(RebuildError, "busy") as caught:
        rebuild(cheap_rebuild(str(tmp_path)), quiet)
    assert "\n" not in str(caught.value)


def test_what_killed_runs_had_begun_beside_a_place_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".index-a.x1/part", "index-a/card", ".index-b.x2/part"):
        Storage(tmp_path).write(f"artefacts/{name}", b"1")
    remove_left_over(Storage(tmp_path), "artefacts/index-a")
    assert set(Storage(tmp_path).files()) == {"artefacts/index-a/card", "artefacts/.index-b.x2/part"}
    remove_left_over(Storage(tmp_path / "nothing"), "artefacts/index-a")


def test_an_output_that_cannot_be_written_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran: list[str] = []
    with refused(StorageError, "refused"):
        rebuild(cheap_rebuild(str(tmp_path / "file" / "rebuild"), ran=ran), quiet)
    assert ran == []


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    rebuild(cheap_rebuild(str(tmp_path)), quiet)
    record = next((tmp_path / "runs").glob("bank-*.json"))
    record.write_text("{")
    with refused(RebuildError, "record_damaged", uri=str(record)):
        rebuild(cheap_rebuild(str(tmp_path)), quiet)


def test_a_run_record_says_settings_software_times_and_outputs(tmp_path: Path) -> None:
    rebuild(cheap_rebuild(str(tmp_path)), quiet)
    record = json.loads(next((tmp_path / "runs").glob("bank-*.json")).read_text())
    assert record["settings"] == {"corpus": "corpus"}
    assert {"python", "regrad", "torch"} <= record["software"].keys()
    assert record["began"] <= record["ended"]
    assert record["seconds"] >= 0
    assert record["outputs"][0]["place"].startswith("artefacts/bank-")


def in_force(output: Storage) -> str:
    current = Versions(output).current()
    assert current is not None
    return current.version
