"""What servers follow: a file that is written whole, and taken up only if it holds together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regrad.errors import BankError, ConfigError, FingerprintMismatch, MetaInitError, ServeError
from serve_app.config import ServeConfig
from serve_app.messages import Release
from serve_app.rollout import (
    Follower,
    ReleaseConfig,
    ReleaseList,
    changing_releases,
    own_release,
    read_releases,
    resolve_release,
    resolve_releases,
    rolled_back,
    updated,
    write_releases,
)
from tests.tools.patience import Deadline
from tests.tools.refusals import refused
from tests.tools.releasing import commit, meta_init, setup


@pytest.fixture
def config(tmp_path: Path) -> ServeConfig:
    return setup(tmp_path)


def of(config: ServeConfig, **options: object) -> ReleaseConfig:
    return ReleaseConfig.model_validate({"meta_init": config.meta_init, "bank": config.bank, **options})


def test_without_a_file_the_settings_are_the_release(config: ServeConfig) -> None:
    assert read_releases(config) == own_release(config)
    assert read_releases(config).releases[0].bank_version is None


def test_a_list_comes_back_as_it_was_written(config: ServeConfig) -> None:
    written = updated(own_release(config), of(config, name="next", bank_version=1, share=0.25))
    write_releases(config, written)
    assert read_releases(config) == written
    assert [release.share for release in written.releases] == [0.75, 0.25]


def test_an_update_replaces_and_two_roll_backs_change_nothing(config: ServeConfig) -> None:
    first = own_release(config)
    second = updated(first, of(config, bank_version=1))
    assert [release.bank_version for release in second.releases] == [1]
    assert rolled_back(second).releases == first.releases
    assert rolled_back(rolled_back(second)) == second
    with refused(ServeError, "nothing_to_roll_back"):
        rolled_back(first)


def test_a_share_for_a_release_of_the_same_name_is_refused(config: ServeConfig) -> None:
    with refused(ServeError, "name_taken", name="main"):
        updated(own_release(config), of(config, share=0.5))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "null",
        '{"releases": []}',
        '{"releases": [{"bank": "x"}]}',
        "\x00\xff",
        '{"releases": 3}',
        "[" * 100_000,
    ],
    ids=range(8),
)
def test_garbage_is_a_configuration_error(config: ServeConfig, tmp_path: Path, text: str) -> None:
    (tmp_path / "releases.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        read_releases(config)


def test_a_list_without_traffic_or_with_a_name_twice_is_refused(config: ServeConfig) -> None:
    with pytest.raises(ValueError, match="type=no_share"):
        ReleaseList(releases=(of(config, share=0.0),))
    with pytest.raises(ValueError, match="type=repeated"):
        ReleaseList(releases=(of(config), of(config)))


def test_a_pair_that_does_not_belong_together_is_refused(config: ServeConfig, tmp_path: Path) -> None:
    other = meta_init(tmp_path / "other", seed=1)
    with pytest.raises(FingerprintMismatch):
        resolve_release(of(config, meta_init=str(tmp_path / "other")))
    with refused(BankError, "version_not_found", version=9):
        resolve_release(of(config, bank_version=9))
    with refused(MetaInitError, "not_found", uri=str(tmp_path / "nowhere")):
        resolve_release(of(config, meta_init=str(tmp_path / "nowhere")))
    commit(tmp_path / "other-bank", other)
    assert (
        resolve_release(of(config, meta_init=str(tmp_path / "other"), bank=str(tmp_path / "other-bank")))[
            0
        ].bank_version
        == 1
    )


def test_a_meta_init_on_another_base_is_refused(config: ServeConfig, tmp_path: Path) -> None:
    commit(tmp_path / "bank-c", meta_init(tmp_path / "c", base="c" * 64))
    stranger = of(config, meta_init=str(tmp_path / "c"), bank=str(tmp_path / "bank-c"))
    with refused(ServeError, "another_base", found="c" * 64, meta_init=stranger.meta_init):
        resolve_releases(config, ReleaseList(releases=(stranger,)))


async def nothing(releases: Sequence[Release]) -> None:
    """There is nothing to prepare."""


def follow(follower: Follower, until: Callable[[], bool], seconds: float = 10.0) -> None:
    async def wait() -> None:
        follower.start()
        deadline = Deadline(seconds)
        while not until():
            assert not deadline.over, "it did not happen"
            await asyncio.sleep(0.02)

    asyncio.run(wait())


def test_a_follower_takes_a_new_version_up(config: ServeConfig, tmp_path: Path) -> None:
    follower = Follower(config, nothing)
    assert follower.releases[0].bank_version == 1
    second = commit(tmp_path / "bank", meta_init(tmp_path / "again"), seed=2)
    follow(follower, lambda: follower.releases[0].bank_version == 2)
    assert follower.facts[0]["bank_version"] == second.label


def test_a_follower_stays_with_the_last_good_list(
    config: ServeConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_releases(config, ReleaseList(releases=(of(config, name="good"),)))
    follower = Follower(config, nothing)
    for wrong in ("{", ReleaseList(releases=(of(config, bank=str(tmp_path / "none")),)).model_dump_json()):
        (tmp_path / "releases.json").write_text(wrong)
        caplog.clear()
        follow(follower, lambda: "the last good ones stay" in caplog.text)
        assert follower.releases[0].name == "good"
    write_releases(config, ReleaseList(releases=(of(config, name="better"),)))
    follow(follower, lambda: follower.releases[0].name == "better")


def test_a_new_release_is_prepared_before_it_is_in_force(config: ServeConfig) -> None:
    prepared: list[tuple[list[str], list[str]]] = []

    async def prepare(releases: Sequence[Release]) -> None:
        prepared.append(([one.name for one in releases], [one.name for one in follower.releases]))

    follower = Follower(config, prepare)
    write_releases(config, ReleaseList(releases=(of(config, name="renamed"),)))
    follow(follower, lambda: follower.releases[0].name == "renamed")
    assert prepared == [], "it is the same MetaInit and bank"
    commit(Path(config.bank), meta_init(Path(config.meta_init)), seed=2)
    follow(follower, lambda: follower.releases[0].bank_version == 2)
    assert prepared == [(["renamed"], ["renamed"])]


def test_a_list_that_is_set_overrides_the_file(config: ServeConfig) -> None:
    follower = Follower(config, nothing)
    follower.set(ReleaseList(releases=(of(config, name="set"),)))
    assert follower.releases[0].name == "set"
    follower.set(None)
    assert follower.releases[0].name == "main"


def test_two_updates_at_once_both_happen(tmp_path: Path) -> None:
    config = ServeConfig(meta_init="m", bank="b", index="i", releases=str(tmp_path / "releases.json"))

    def add(number: int) -> None:
        with changing_releases(config) as current:
            time.sleep(0.01)
            new = ReleaseConfig(name=f"r{number}", meta_init="m", bank=f"b{number}")
            write_releases(config, ReleaseList(releases=(new,), previous=(*current.previous, *current.releases)))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(8)))
    found = read_releases(config)
    assert len({item.name for item in (*found.releases, *found.previous)}) == 9
