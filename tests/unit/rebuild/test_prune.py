"""A prune keeps whole versions only, and never one that is current, kept to go back to, in use or being made."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from regrad.bank.format import versions as bank_versions
from regrad.errors import BankError, RebuildError
from regrad.rebuild.flow import rebuild, roll_back
from regrad.rebuild.prune import InUse, Pruned
from regrad.rebuild.records import Records
from regrad.rebuild.steps import alone
from regrad.rebuild.versions import PRUNING, Versions
from regrad.storage import Storage
from tests.tools.patience import completed
from tests.tools.pruning import bank_rebuild, pruned, runs, whole
from tests.tools.refusals import refused

KILLS = 6


def quiet(_: str) -> None:
    """For what a rebuild says."""


@pytest.fixture
def output(tmp_path: Path) -> str:
    """Four versions: three of one bank, the last of another."""
    place = str(tmp_path / "out")
    for corpus in (1, 2, 3):
        rebuild(bank_rebuild(place, corpus), quiet)
    rebuild(bank_rebuild(place, 4, meta_init="n"), quiet)
    return place


def files(output: str) -> dict[str, bytes]:
    return {name: Storage(output).read(name) for name in Storage(output).files() if "lock" not in name}


def numbers(found: Pruned) -> dict[str, str]:
    return {name[:4]: reason for name, reason in found.kept.items()}


def test_what_only_old_versions_had_goes_and_the_rest_is_whole(output: str) -> None:
    before, size = files(output), sum(map(len, files(output).values()))
    planned = pruned(output, dry_run=True)
    assert files(output) == before
    assert pruned(output) == planned
    assert numbers(planned) == {"0004": "current", "0003": "before it"}
    assert [name[:4] for name in whole(output)] == ["0003", "0004"]
    places = Storage(output)
    assert bank_versions(Storage(f"{output}/artefacts/bank-m")) == [3]
    assert places.list("artefacts") == [
        *("bank-m", "bank-m.preparation", "bank-n", "bank-n.preparation"),
        *("eval-meta-m-index-3-bank-m-3", "eval-meta-n-index-4-bank-n-4"),
        *("index-index-3", "index-index-4", "meta-init-meta-m", "meta-init-meta-n"),
    ]
    assert {record.key for record in runs(output) if record.step != "eval"} == {
        *("meta-m", "index-3", "bank-m-3", "meta-m-index-3-bank-m-3"),
        *("meta-n", "index-4", "bank-n-4", "meta-n-index-4-bank-n-4"),
    }
    assert 0 < planned.bytes < size
    assert pruned(output).gone == type(planned.gone)(), "a second one finds nothing"


def test_a_bank_of_which_no_version_is_left_goes_as_a_whole(output: str) -> None:
    rebuild(bank_rebuild(output, 5, meta_init="n"), quiet)
    pruned(output)
    gone = ("bank-m", "meta-init-meta-m", "eval-meta-m", "index-index-1", "index-index-3")
    assert [name for name in Storage(output).list("artefacts") if name.startswith(gone)] == []
    assert [name[:4] for name in whole(output)] == ["0004", "0005"]


def test_the_version_in_force_and_the_one_before_stay_however_old(output: str) -> None:
    for _ in range(3):
        roll_back(Storage(output), lambda _: None)  # 3 current, 4 before it
    rebuild(bank_rebuild(output, 2), quiet)  # promotes 2 again, which is done
    found = pruned(output)
    assert numbers(found) == {"0002": "current", "0003": "before it", "0004": "new"}
    assert [name[:4] for name in whole(output)] == ["0002", "0003", "0004"]
    roll_back(Storage(output), lambda _: None)
    current = Versions(Storage(output)).current()
    assert current is not None
    assert current.version[:4] == "0003"


def test_what_servers_use_stays(output: str) -> None:
    bank = f"{output}/artefacts/bank-m"
    index = f"{output}/artefacts/index-index-2"
    used = InUse([f"file://{bank}", index], [(f"file://{bank}/", 1)])
    assert numbers(pruned(output, used=used)) == {
        **{"0001": "servers use it", "0002": "servers use it"},
        **{"0003": "before it", "0004": "current"},
    }
    assert len(whole(output)) == 4
    # A release that follows the newest version names a bank alone: it stays, whatever else goes.
    rebuild(bank_rebuild(output, 5, meta_init="n"), quiet)
    pruned(output, used=InUse([bank], [(bank, 3)]))
    assert [name[:4] for name in whole(output)] == ["0003", "0004", "0005"]


def test_what_an_unfinished_rebuild_goes_on_from_stays(output: str) -> None:
    rebuild(bank_rebuild(output, 5, meta_init="n"), quiet)
    records = Records(Storage(output))
    with pytest.MonkeyPatch.context() as patch:
        # Of another corpus with the old MetaInit, killed while it fills the bank.
        patch.setattr("tests.tools.banks.fill", interrupted)
        with pytest.raises(KeyboardInterrupt):
            rebuild(bank_rebuild(output, 6), quiet)
    pruned(output)
    left = Storage(output).list("artefacts")
    assert {"meta-init-meta-m", "index-index-6"} <= set(left)
    assert records.read("train", "meta-m") is not None
    ran: list[str] = []
    rebuild(bank_rebuild(output, 6), ran.append)
    assert [text.partition(":")[0] for text in ran if "done before" in text][:2] == ["train", "index"]
    assert whole(output)[-1][:4] == "0006"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_of_a_corpus_that_was_pruned_everything_is_made_again(output: str) -> None:
    pruned(output)
    rebuild(bank_rebuild(output, 1), quiet)
    assert whole(output)[-1][:4] == "0005"


def test_a_damaged_bank_is_found_before_anything_is_removed(output: str) -> None:
    manifest = Path(f"{output}/artefacts/bank-m/manifests/00000003.json")
    content = manifest.read_bytes()
    manifest.write_bytes(content[:50])
    before = files(output)
    with pytest.raises(BankError):
        pruned(output)
    assert files(output) == before


def test_while_a_rebuild_is_at_work_it_is_refused(output: str) -> None:
    with alone(Storage(output)), refused(RebuildError, "busy"):
        pruned(output)


def test_a_damaged_note_of_an_interrupted_prune_is_named(output: str) -> None:
    Storage(output).write(PRUNING, b"{")
    with refused(RebuildError, "version_damaged", uri=f"{output}/{PRUNING}"):
        rebuild(bank_rebuild(output, 1), quiet)


@pytest.mark.slow
def test_killed_at_random_points_it_leaves_whole_versions_and_is_finished_by_what_comes_next(
    output: str, tmp_path: Path
) -> None:
    copies = [copy(output, tmp_path / f"killed-{number}") for number in range(KILLS + 1)]
    lines = int(run_program(copies[-1]).stdout)
    assert lines > 300
    expected = set(files(copies[-1]))
    points = sorted(random.Random(17).sample(range(1, lines), KILLS))
    for number, (place, point) in enumerate(zip(copies, points, strict=False)):
        assert run_program(place, point).returncode == -signal.SIGKILL, point
        whole(place)
        # Whatever comes next does the rest: a prune, a roll back, a rebuild of what has gone.
        if number % 3 == 2:
            rebuild(bank_rebuild(place, 1), quiet)
            current = Versions(Storage(place)).current()
            assert current is not None
            assert current.version in whole(place)
            assert current.version[:4] in ("0001", "0005"), "it was not removed yet, or is made again"
            continue
        if number % 3 == 1:
            roll_back(Storage(place), lambda _: None)
        pruned(place)
        left = {name for name in files(place) if not name.endswith(".tmp")}
        assert left == expected, f"killed at line {point} of {lines}"
        whole(place)


def copy(output: str, target: Path) -> str:
    for name, data in files(output).items():
        Storage(target).write(name, data)
    return str(target)


def run_program(output: str, *point: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.tools.pruning", output, *map(str, point)]
    return completed(command, 60, cwd=Path(__file__).parents[3])


def test_its_note_is_json_that_a_person_can_read(output: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Versions, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pruned(output)
    note = json.loads(Storage(output).read(PRUNING))
    assert note["banks"] == {"artefacts/bank-m": [1, 2]}
    assert [name[:4] for name in note["versions"]] == ["0001", "0002"]
