"""The report's sections: a study's title, the method that its rows are compared with, and what must be known of it."""

from __future__ import annotations

TITLES = {
    "methods": "Every method",
    "passages": "How many passages, and which",
    "merges": "How several gradients become one",
    "drift": "Documents injected step by step",
    "general": "General ability: people whom the base has memorised",
    "domains": "Another domain",
    "hard": "The harder labs, with starts that were trained on people alone",
    "notes": "More text than the context holds, with starts that were trained on such notes",
}
REFERENCES = {
    "methods": "regrad",
    "passages": "rag",
    "merges": "sum",
    "drift": "regrad",
    "general": "direct",
    "domains": "trained on people",
    "hard": "rag",
    "notes": "rag",
}
ABOUT = {
    "hard": (
        "A start takes in the kind of text that it was trained on, and these were trained on short passages about "
        "people: the rows of ReGrad say what an unprepared start gives on other text. Of `many` the next table has "
        "starts that were trained on such notes; of `long`, `conflict` and `unseen` none were, so no claim rests on "
        "them. There is no two-hop set, since the lab's base cannot read one (docs/benchmarks.md).",
    ),
    "notes": (
        "A person of `many` has five notes that BM25 cannot tell apart: up to k=5 the right one is there for about k "
        "of five questions, whatever the method. The starts were trained on five such notes at once.",
    ),
}
"""Paragraphs before a study's table."""
