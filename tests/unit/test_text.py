"""What messages are made of."""

import pytest

from regrad.text import first_line, in_one_line, milliseconds, readable_duration


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


def test_a_duration_is_shown_in_the_unit_that_has_few_digits() -> None:
    shown = [readable_duration(seconds) for seconds in (0.4, 89.4, 90, 5399, 5400, 100_000)]
    assert shown == ["0 s", "89 s", "2 min", "90 min", "1.5 h", "27.8 h"]
    assert [milliseconds(seconds) for seconds in (0.0234, 1.5)] == ["23 ms", "1500 ms"]
