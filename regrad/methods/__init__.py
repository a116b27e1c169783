"""A method is `(question, passages) -> (prompt, update)`: every one by name, and what opens its updates."""

from regrad.methods.banks import check_bank_covers
from regrad.methods.base import Method
from regrad.methods.fitting import check_fits
from regrad.methods.knowledge import Knowledge
from regrad.methods.names import METHODS, SERVED, get_method, method_of
from regrad.methods.opening import check_method, open_updates
from regrad.methods.updates import Asked, Made, Updates

__all__ = [
    "METHODS",
    "SERVED",
    "Asked",
    "Knowledge",
    "Made",
    "Method",
    "Updates",
    "check_bank_covers",
    "check_fits",
    "check_method",
    "get_method",
    "method_of",
    "open_updates",
]
