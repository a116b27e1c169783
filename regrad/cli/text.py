"""Text for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text in which characters that a terminal would act on are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
