"""Following the releases: the gateway's list is replaced as a whole, and only by one that holds together."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from regrad.config import ServeConfig
from regrad.errors import RegradError
from serve_app.api.errors import UnknownRelease
from serve_app.messages import Ask, Release
from serve_app.releases import ReleaseList, choose, read_releases, resolve_all

logger = logging.getLogger("ray.serve")


class Follower:
    """The releases in force, looked up every `follow_seconds`. A wrong list is logged, and the last good one stays."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._fixed: ReleaseList | None = None
        self._task: asyncio.Task[None] | None = None
        self._take(read_releases(config))

    def set(self, releases: ReleaseList | None) -> None:
        """Use this list whatever the file says (None: follow the file again). Raises as `resolve_all`."""
        self._take(releases or read_releases(self._config))
        self._fixed = releases

    def pick(self, ask: Ask) -> Release:
        """The release of one request. Raises `UnknownRelease` if it names one that is not there."""
        if ask.release is None:
            return choose(self._releases, ask.request_id)
        for release in self._releases:
            if release.name == ask.release:
                return release
        names = ", ".join(release.name for release in self._releases)
        raise UnknownRelease(f"there is no release {ask.release!r}; the releases are {names}")

    @property
    def facts(self) -> list[dict[str, Any]]:
        """The releases in force, for people."""
        return self._facts

    @property
    def started(self) -> bool:
        """Whether it follows."""
        return self._task is not None

    def start(self) -> None:
        """Follow from now on. Call it inside the event loop; again does nothing."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        failed = ""
        while True:
            await asyncio.sleep(self._config.follow_seconds)
            try:
                await asyncio.to_thread(lambda: self._take(self._fixed or read_releases(self._config)))
                failed = ""
            except (RegradError, OSError) as error:
                if str(error) != failed:
                    logger.warning("the releases cannot be taken up, the last good ones stay: %s", error)
                failed = str(error)

    def _take(self, wanted: ReleaseList) -> None:
        self._releases, self._facts = resolve_all(self._config, wanted)
