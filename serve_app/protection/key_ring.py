"""The keys in force in one process: read from their file, and again when it changes."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Collection
from datetime import UTC, datetime

from regrad.errors import RegradError
from serve_app.protection.key_file import KEY, KeyRecord, KeyStore, key_hash

logger = logging.getLogger("ray.serve")

CHECK_SECONDS = 2.0
_WAIT_SECONDS = 1.0
_NOBODY = KeyRecord(id="0" * 12, name="nobody", hash="0" * 64, created=datetime.fromtimestamp(0, UTC), disabled=True)


class BadKey(Exception):
    """A key that opens nothing; the text says why, to who holds the key or does not."""


class KeyRing:
    """The keys of one file. Opening it raises `KeyFileError` or `StorageError` if the file cannot be used."""

    def __init__(self, uri: str, clock: Callable[[], float], now: Callable[[], float]) -> None:
        self._store, self._clock, self._now = KeyStore(uri), clock, now
        self._data = self._store.read()
        self._keys = {record.id: record for record in self._store.parse(self._data)}
        self._checked = clock()
        self._problem = ""
        self._reading: asyncio.Task[None] | None = None

    @property
    def ids(self) -> Collection[str]:
        """The ids of all keys."""
        return self._keys.keys()

    def check(self, key: str) -> KeyRecord:
        """The record of a key; raises `BadKey`.

        Ids that exist and ids that do not take the same steps, so that the time tells nothing about them, and only who
        has the whole key learns that it was revoked or is too old.
        """
        match = KEY.fullmatch(key)
        record = self._keys.get(match[1] if match else "", _NOBODY)
        if not hmac.compare_digest(key_hash(key), record.hash) or record is _NOBODY:
            raise BadKey("the API key is not one that this server knows")
        if record.disabled:
            raise BadKey("the API key was revoked")
        if record.expires is not None and record.expires.timestamp() <= self._now():
            raise BadKey(f"the API key expired on {record.expires.date()}")
        return record

    async def refresh(self) -> None:
        """Read the file again if that was not done in the last two seconds.

        A slow store is waited for one second; until it answers, and while the file cannot be used, the keys that were
        read last are in force.
        """
        if self._reading is None and self._clock() - self._checked >= CHECK_SECONDS:
            self._checked = self._clock()
            self._reading = asyncio.create_task(self._read_again())
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=max(0.0, self._checked + _WAIT_SECONDS - self._clock()))

    async def _read_again(self) -> None:
        try:
            data = await asyncio.to_thread(self._store.read)
            if data != self._data:
                self._keys = {record.id: record for record in self._store.parse(data)}
                self._data = data
                logger.info("the file of keys has changed: %d keys", len(self._keys))
            self._problem = ""
        except RegradError as error:
            if str(error) != self._problem:
                logger.error("the keys that were read last stay in force: %s", error)
            self._problem = str(error)
        finally:
            self._reading = None
