"""Which step needs which: settings name the places that others make, with `{seed}`, `{set}` and `{model}` in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from regrad.settings import Settings

_OPEN = {r"\{seed\}": r"\d+", r"\{set\}": ".+", r"\{model\}": ".+"}


def makes(settings: Any) -> str:
    """Where the result of a step with these settings goes."""
    place: str = settings.output if hasattr(settings, "output") else settings.bank.uri
    return place


def needs(settings: Settings, places: Sequence[str]) -> bool:
    """Whether the settings name one of these places, or something in it, as anything but their own result."""
    own = makes(settings)
    named = {text for text in _texts(settings.model_dump(mode="json")) if text != own}
    return any(_within(text, place) for text in named for place in places)


def _within(text: str, place: str) -> bool:
    """Whether the text is the place or something in it, for some name or number in the place of each `{...}`."""
    parts, above = text.split("/"), place.split("/")
    return len(parts) >= len(above) and all(
        re.fullmatch(_pattern(part), one) for part, one in zip(parts, above, strict=False)
    )


def _pattern(part: str) -> str:
    pattern = re.escape(part)
    for name, any_of in _OPEN.items():
        pattern = pattern.replace(name, any_of)
    return pattern


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
