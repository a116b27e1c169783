"""Releases: pairs of MetaInit and bank version with their shares; reading, changing and following their list."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import Field, model_validator

from regrad.bank.format import read_manifest
from regrad.errors import ConfigError, FingerprintMismatch, RegradError, ServeError
from regrad.locking import exclusive
from regrad.meta_init import read_card
from regrad.settings import Location, Settings, invalid, parse_settings
from regrad.storage import Storage
from serve_app.config import ServeConfig
from serve_app.messages import Release

logger = logging.getLogger("ray.serve")

_MOST_BYTES = 1 << 20
_LOCK_SECONDS = 10.0
MAIN = "main"


class ReleaseConfig(Settings):
    """One release as it is written; `bank_version` None follows the newest version."""

    name: str = Field(MAIN, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    meta_init: Location
    bank: Location
    bank_version: int | None = Field(None, ge=1)
    share: float = Field(1.0, ge=0, le=1, description="share of the traffic")


class ReleaseList(Settings):
    """The current releases, the main one first, and those before them (for a roll back)."""

    releases: tuple[ReleaseConfig, ...] = Field(min_length=1, max_length=4)
    previous: tuple[ReleaseConfig, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> ReleaseList:
        names = [release.name for release in self.releases]
        if len(set(names)) < len(names):
            raise invalid("repeated", "two releases have the same name")
        if not sum(release.share for release in self.releases) > 0:
            raise invalid("no_share", "no release has a share of the traffic")
        return self


def own_release(config: ServeConfig) -> ReleaseList:
    """The release of the server's settings alone."""
    main = ReleaseConfig(meta_init=config.meta_init, bank=config.bank, bank_version=config.bank_version)
    return ReleaseList(releases=(main,))


def read_releases(config: ServeConfig) -> ReleaseList:
    """The current list. Raises `ConfigError` for a file that is not one, `StorageError` if it cannot be read."""
    if config.releases is None:
        return own_release(config)
    folder, name = _split(config.releases)
    storage = Storage(folder)
    if not storage.exists(name):
        return own_release(config)
    try:
        data = json.loads(storage.read(name, 0, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{config.releases} is not JSON; write it with `regrad serve update`", code="not_json", uri=config.releases
        ) from error
    return parse_settings(ReleaseList, data, config.releases)


@contextmanager
def changing_releases(config: ServeConfig) -> Iterator[ReleaseList]:
    """The current list, locked against other commands inside the block.

    Raises as `read_releases`, and `ServeError` if another command holds the lock for longer than some seconds.
    """
    if config.releases is None:
        yield read_releases(config)
        return

    def busy(holder: str) -> ServeError:
        return ServeError(
            f"another command is changing {config.releases}; try again when it has ended (it is {holder})",
            code="releases_locked",
            uri=config.releases,
            holder=holder,
        )

    with exclusive(Storage(config.releases), busy, wait=_LOCK_SECONDS):
        yield read_releases(config)


def write_releases(config: ServeConfig, releases: ReleaseList) -> None:
    """Make a list current, in one write: gateways see the old list or the new one."""
    if config.releases is None:
        raise ServeError(
            "the server's settings have no 'releases' file to follow; set it and restart the server",
            code="no_releases_file",
        )
    folder, name = _split(config.releases)
    Storage(folder).write(name, (json.dumps(releases.model_dump(mode="json"), indent=1) + "\n").encode())


def updated(current: ReleaseList, new: ReleaseConfig) -> ReleaseList:
    """The list with `new` among its releases. With a share below 1, the main release keeps the rest.

    `rolled_back` undoes it. Raises `ServeError` if that is the list as it is, or if a share is for a release with the
    main one's name.
    """
    if (new,) == current.releases:
        raise ServeError(
            "this release is current already, so nothing would change; name another with --meta-init, --bank or "
            "--bank-version",
            code="nothing_changes",
            name=new.name,
        )
    if new.share >= 1:
        return ReleaseList(releases=(new,), previous=current.releases)
    main = current.releases[0]
    if main.name == new.name:
        raise ServeError(
            f"the main release is called {new.name!r}, too; name the new one with --name",
            code="name_taken",
            name=new.name,
        )
    rest = main.model_copy(update={"share": 1.0 - new.share})
    return ReleaseList(releases=(rest, new), previous=current.releases)


def rolled_back(current: ReleaseList) -> ReleaseList:
    """The list before this one; rolled back twice, it is this one again. Raises `ServeError` if there is none."""
    if not current.previous:
        raise ServeError("there is nothing to roll back to: no update was made yet", code="nothing_to_roll_back")
    return ReleaseList(releases=current.previous, previous=current.releases)


def resolve_release(release: ReleaseConfig) -> tuple[Release, dict[str, Any]]:
    """The release with its bank's version looked up, and facts about it for people.

    Raises `BankError`, `MetaInitError` or `StorageError` for what is missing, `FingerprintMismatch` if bank and
    MetaInit do not belong together.
    """
    fingerprint = read_card(release.meta_init)["fingerprint"]
    manifest = read_manifest(Storage(release.bank), release.bank_version)
    if manifest.fingerprint != fingerprint:
        raise FingerprintMismatch(manifest.fingerprint, fingerprint)
    found = Release(
        release.name,
        release.meta_init,
        release.bank,
        manifest.version,
        manifest.fingerprint,
        release.share,
        pinned=release.bank_version is not None,
    )
    facts = {
        "name": release.name,
        "share": release.share,
        "meta_init": release.meta_init,
        "fingerprint": fingerprint,
        "bank": release.bank,
        "bank_version": manifest.label,
        "follows_newest": release.bank_version is None,
        "passages": manifest.passages,
        "codec": manifest.codec,
        "bytes_per_atom": manifest.record_bytes,
    }
    return found, facts


def resolve_releases(config: ServeConfig, releases: ReleaseList) -> tuple[list[Release], list[dict[str, Any]]]:
    """All releases of a list, and the facts.

    Raises as `resolve_release`, and `ServeError` for a MetaInit on another base than the server's own: a generator
    holds one base model.
    """
    base = read_card(config.meta_init)["base_identity"]
    for release in releases.releases:
        other = read_card(release.meta_init)["base_identity"]
        if other != base:
            raise ServeError(
                f"the MetaInit at {release.meta_init} belongs to base weights {other[:16]}, but the server has "
                f"{base[:16]}; start another server for it",
                code="another_base",
                meta_init=release.meta_init,
                expected=base,
                found=other,
            )
    found = [resolve_release(release) for release in releases.releases]
    return [release for release, _ in found], [facts for _, facts in found]


def opened_ahead(config: ServeConfig, open_one: Callable[[Release], None]) -> None:
    """Open what the current releases name, before a question comes: a replica calls this when it starts.

    What cannot be opened is logged, and opened when it is needed: a replica starts without it, and answers degrade.
    """
    try:
        releases, _ = resolve_releases(config, read_releases(config))
    except (RegradError, OSError) as error:
        logger.warning("the releases cannot be opened before the first question: %s", error)
        return
    for release in releases:
        try:
            open_one(release)
        except (RegradError, OSError) as error:
            logger.warning("release %s cannot be opened before its first question: %s", release.name, error)


def _split(uri: str) -> tuple[str, str]:
    folder, _, name = uri.rpartition("/")
    return folder or ".", name


class Follower:
    """Knows the current `releases`, read every `follow_seconds`. A wrong list is logged, the last good one stays.

    `prepare` is given the new ones of a list and awaited before they are current.
    """

    releases: list[Release]

    def __init__(self, config: ServeConfig, prepare: Callable[[Sequence[Release]], Awaitable[None]]) -> None:
        self._config = config
        self._prepare = prepare
        self._fixed: ReleaseList | None = None
        self._task: asyncio.Task[None] | None = None
        self._take(read_releases(config))

    def set(self, releases: ReleaseList | None) -> None:
        """Use this list instead of the file's (None: follow the file again). Raises as `resolve_releases`."""
        self._take(releases or read_releases(self._config))
        self._fixed = releases

    @property
    def facts(self) -> list[dict[str, Any]]:
        """The current releases, for people."""
        return self._facts

    @property
    def started(self) -> bool:
        """Whether it follows."""
        return self._task is not None

    def start(self) -> None:
        """Follow from now on. Call it inside the event loop; calling it again does nothing."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        failed = ""  # the last failure, so that one that lasts is logged once
        while True:
            await asyncio.sleep(self._config.follow_seconds)
            try:
                await self._take_up()
                failed = ""
            except (RegradError, OSError) as error:
                if str(error) != failed:
                    logger.warning("the releases cannot be used, the last good ones stay: %s", error)
                failed = str(error)

    async def _take_up(self) -> None:
        fixed = self._fixed
        found = await asyncio.to_thread(
            lambda: resolve_releases(self._config, fixed or read_releases(self._config)),
        )
        known = {release.key for release in self.releases}
        if new := [release for release in found[0] if release.key not in known]:
            await self._prepare(new)
        if self._fixed is fixed:  # else another list was set meanwhile
            self.releases, self._facts = found

    def _take(self, wanted: ReleaseList) -> None:
        self.releases, self._facts = resolve_releases(self._config, wanted)
