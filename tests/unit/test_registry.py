"""A registry names what it has when it is asked for something else."""

from __future__ import annotations

import pytest

from regrad.errors import BankError
from regrad.registry import Registry
from regrad.text import hint, nearest_name
from tests.tools.refusals import refused


def test_an_unknown_name_is_the_registrys_own_error_with_the_nearest_and_all_names() -> None:
    codecs = Registry("codec", BankError, {"int8": 8, "float32": 32})
    with refused(BankError, "unknown_name", name="Int_8", near="int8") as found:
        codecs["Int_8"]
    assert str(found.value) == "unknown codec 'Int_8'; did you mean 'int8'? There are int8, float32"
    with refused(BankError, "unknown_name", name="zstd", near=""):
        codecs.check("zstd")


def test_entries_are_found_and_asking_whether_there_is_one_raises_nothing() -> None:
    codecs = Registry("codec", BankError, {"int8": 8})
    assert codecs["int8"] == 8 and list(codecs) == ["int8"]
    assert "int4" not in codecs and codecs.get("int4") is None


def test_a_decorator_adds_an_entry_and_refuses_a_name_that_is_taken() -> None:
    makers: Registry[object] = Registry("maker", BankError)

    @makers.register("one")
    def one() -> int:
        return 1

    assert makers["one"] is one
    with pytest.raises(ValueError, match="there is a maker 'one' already"):
        makers.register("one")(one)


def test_a_name_that_is_like_no_other_has_no_nearest_one() -> None:
    assert nearest_name("xyz", ["sum", "mean"]) == ""


def test_a_hint_names_the_nearest_or_says_nothing() -> None:
    assert hint("summ", ["sum", "mean"]) == "; did you mean 'sum'?"
    assert hint("xyz", ["sum", "mean"]) == ""
