"""What messages are made of."""

import pytest

from regrad.text import first_line, in_one_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  \n  after blank lines \nmore"), "after blank lines"),
        (TimeoutError(), "TimeoutError"),
        (ValueError(" \n "), "ValueError"),
    ],
)
def test_the_first_line_of_an_error_is_its_class_if_it_says_nothing(error: Exception, expected: str) -> None:
    assert first_line(error) == expected


def test_an_error_in_one_line_is_cut_and_is_its_class_if_it_says_nothing() -> None:
    assert in_one_line(ValueError("one\n\n  two three")) == "one two three"
    assert in_one_line(ValueError("one\n\n  two three"), 7) == "one two"
    assert in_one_line(AssertionError()) == "AssertionError"
