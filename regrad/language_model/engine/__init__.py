"""Decoding of many requests at once, each under its own update, joining and leaving at every step."""

from regrad.language_model.engine.engine import Engine
from regrad.language_model.engine.loop import DecodingLoop
from regrad.language_model.engine.request import DecodingRequest, Finished

__all__ = ["DecodingLoop", "DecodingRequest", "Engine", "Finished"]
