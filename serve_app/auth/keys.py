"""API keys: the file that holds their hashes, and the ring that a server checks them against."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError, model_validator

from regrad.errors import RegradError, StorageError
from regrad.locking import exclusive
from regrad.settings import Settings
from regrad.storage import Storage

logger = logging.getLogger("ray.serve")

KEY = re.compile(r"rg_([0-9a-f]{12})_[0-9a-f]{64}")
_MAX_BYTES = 16 * 1024 * 1024
_LOCK_SECONDS = 10.0


class KeyFileError(RegradError):
    """The file of API keys is missing, damaged or locked by another command; the text says which and what to do."""

    area = "key_file"


class NoKeyFile(KeyFileError):
    """There is no file of API keys where one is expected."""

    area = "key_file.not_found"


class KeyRecord(Settings):
    """What is kept of a key. The server's limits apply where the key has none."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(min_length=1, max_length=80)]
    hash: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    disabled: bool = False

    @model_validator(mode="after")
    def _readable(self) -> KeyRecord:
        if not self.name.isprintable() or not self.name.strip():
            raise ValueError("a name is one line of visible characters")
        return self


class _KeyFile(Settings):
    format: Literal[1] = 1
    keys: tuple[KeyRecord, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> _KeyFile:
        if len({record.id for record in self.keys}) < len(self.keys):
            raise ValueError("an id occurs twice")
        return self


def key_hash(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_key(
    name: str,
    created: datetime,
    expires: datetime | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[str, KeyRecord]:
    """A new key, which only its owner keeps, and its record; raises `KeyFileError` for values that cannot be kept."""
    key_id = secrets.token_hex(6)
    key = f"rg_{key_id}_{secrets.token_hex(32)}"
    try:
        record = KeyRecord(
            id=key_id,
            name=name,
            hash=key_hash(key),
            created=created,
            expires=expires,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
        )
    except ValidationError as error:
        raise KeyFileError(f"such a key cannot be made: {_first(error)}", code="bad_key") from error
    return key, record


class KeyStore:
    """A file of keys. Reading needs no lock; changes take `<file>.lock`, so that two at once both happen."""

    def __init__(self, uri: str) -> None:
        folder, _, self._name = uri.rpartition("/")
        if not self._name:
            raise KeyFileError(f"{uri!r} names no file of keys", code="not_a_file", uri=uri)
        self.uri = uri
        self._storage = Storage(folder or "/")

    def read(self) -> bytes:
        """The file's bytes; raises `NoKeyFile` if there is none, `StorageError` if the store refuses."""
        try:
            return self._storage.read(self._name, 0, _MAX_BYTES + 1)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise NoKeyFile(
                    f"there is no file of keys at {self.uri}; make one with `regrad keys create`", uri=self.uri
                ) from None
            raise

    def parse(self, data: bytes) -> tuple[KeyRecord, ...]:
        """The records in a file's bytes; raises `KeyFileError` saying what is wrong (and never a hash)."""
        if len(data) > _MAX_BYTES:
            raise KeyFileError(
                f"the file of keys at {self.uri} is larger than {_MAX_BYTES} bytes", code="too_large", uri=self.uri
            )
        try:
            return _KeyFile.model_validate_json(data).keys
        except ValidationError as error:
            # `from None`: the error's context would show the values, hashes among them, in a traceback.
            raise KeyFileError(
                f"the file of keys at {self.uri} is damaged: {_first(error)}", code="damaged", uri=self.uri
            ) from None

    def records(self) -> tuple[KeyRecord, ...]:
        """All records, the oldest first."""
        return self.parse(self.read())

    def add(self, record: KeyRecord) -> None:
        """Add a record; the file is made if there is none."""
        self._change(lambda records: (*records, record))

    def revoke(self, key_id: str) -> KeyRecord:
        """Disable a key; raises `KeyFileError` if there is none of this id."""
        found = next((record for record in self.records() if record.id == key_id), None)
        if found is None:
            raise KeyFileError(
                f"the file of keys at {self.uri} has no key {key_id!r:.80}; see `regrad keys list`",
                code="unknown_key",
                uri=self.uri,
                key_id=key_id,
            )
        revoked = found.model_copy(update={"disabled": True})
        self._change(lambda records: tuple(revoked if record.id == key_id else record for record in records))
        return revoked

    def _change(self, edit: Callable[[tuple[KeyRecord, ...]], tuple[KeyRecord, ...]]) -> None:
        with _private(), exclusive(Storage(self.uri), self._busy, wait=_LOCK_SECONDS):
            try:
                records = self.records()
            except NoKeyFile:
                records = ()
            text = _KeyFile(keys=edit(records)).model_dump_json(indent=1, exclude_none=True)
            self._storage.write(self._name, text.encode() + b"\n")

    def _busy(self, holder: str) -> KeyFileError:
        return KeyFileError(
            f"another command is changing the keys at {self.uri}; try again when it has ended (it is {holder})",
            code="locked",
            uri=self.uri,
            holder=holder,
        )


@contextmanager
def _private() -> Iterator[None]:
    """Files that this process creates inside the block can be read by its user only."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _first(error: ValidationError) -> str:
    """The first problem, without the value that was found: it could be a hash, or a key in the wrong place."""
    details = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, details["loc"]))
    return f"{where}: {details['msg']}" if where else details["msg"]


CHECK_SECONDS = 2.0
_WAIT_SECONDS = 1.0
_UNKNOWN = KeyRecord(id="0" * 12, name="unknown", hash="0" * 64, created=datetime.fromtimestamp(0, UTC), disabled=True)


class BadKey(Exception):
    """A key that is not accepted; the text is for the client, and says why only if the whole key is right."""


class KeyRing:
    """The keys of one file. Opening it raises `KeyFileError` or `StorageError` if the file cannot be used."""

    def __init__(self, uri: str, clock: Callable[[], float], now: Callable[[], float]) -> None:
        self._store = KeyStore(uri)
        self._clock = clock
        self._now = now
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

        Ids that exist and ids that do not take the same steps, so that timing reveals nothing about them, and only a
        client with the whole key learns that it was revoked or has expired.
        """
        match = KEY.fullmatch(key)
        record = self._keys.get(match[1] if match else "", _UNKNOWN)
        if not hmac.compare_digest(key_hash(key), record.hash) or record is _UNKNOWN:
            raise BadKey("this server does not know the API key")
        if record.disabled:
            raise BadKey("the API key was revoked")
        if record.expires is not None and record.expires.timestamp() <= self._now():
            raise BadKey(f"the API key expired on {record.expires.date()}")
        return record

    async def refresh(self) -> None:
        """Read the file again unless that was done in the last two seconds.

        It waits for a slow store for one second; until the store answers, and while the file cannot be used, the keys
        that were read last are valid.
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
                logger.error("the keys that were read last stay valid: %s", error)
            self._problem = str(error)
        finally:
            self._reading = None
