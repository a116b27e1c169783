"""What is known of the HTTP request at hand, for whoever counts and logs it when it is refused."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.api.errors import Problem


@dataclass
class Record:
    """One request: its id, the id of its key, the error that it was answered with, and whether that was counted."""

    request_id: str
    key_id: str | None = None
    problem: Problem | None = None
    counted: bool = False


record_at_hand: ContextVar[Record | None] = ContextVar("regrad_record", default=None)


def current_record() -> Record | None:
    """The record of the request at hand, from anywhere in its tasks; None outside of one."""
    return record_at_hand.get()
