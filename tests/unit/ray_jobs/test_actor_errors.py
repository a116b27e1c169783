"""An error comes out of an actor as the error that went in."""

from __future__ import annotations

import errno

import pytest

from ray_jobs.corpus_blocks import decode_error, encode_error
from regrad.bank.io.transfer import BadAtom
from regrad.errors import (
    BankConflict,
    BankError,
    CorpusError,
    FingerprintMismatch,
    PromptTooLong,
    RegradError,
    StorageError,
)


@pytest.mark.parametrize(
    "error",
    [
        CorpusError("file.jsonl line 3: not JSON: {"),
        CorpusError("file.jsonl line 3: not JSON: {", code="not_json", path="file.jsonl", line=3),
        PromptTooLong("5000 tokens, and the context is 4096"),
        CorpusError("a lone surrogate \ud800 and a NUL \0 in a text"),
        FingerprintMismatch("aaaa", "bbbb"),
        BankConflict("s3://bucket/bank", 7),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_class_its_text_and_its_fields(error: RegradError) -> None:
    found = decode_error(encode_error(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)
    assert encode_error(error).isascii(), "it passes through Arrow, which takes no lone surrogate"


def test_an_error_of_the_system_becomes_one_of_storage() -> None:
    found = decode_error(encode_error(OSError(errno.ENOSPC, "No space left on device", "/bank/shard")))
    assert type(found) is StorageError
    assert str(found) == "No space left on device (/bank/shard)"


def test_an_error_of_another_module_arrives_as_the_class_it_is_derived_from() -> None:
    found = decode_error(encode_error(BadAtom("passage p: the atom is not finite")))
    assert type(found) is BankError
    assert str(found) == "passage p: the atom is not finite"
