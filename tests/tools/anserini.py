"""A Lucene index as Anserini's own indexer makes it, without regrad: with neither a card nor a passage store."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from regrad.data.passages import Passage
from regrad.retrieval.java import anserini_jar, java_home


def index_with_anserini(records: Iterable[Mapping[str, str]], uri: str, *options: str) -> str:
    """Records of `id` and `contents`, indexed as pyserini's documentation says; returns `uri`."""
    with TemporaryDirectory() as corpus:
        Path(corpus, "docs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        java = [str(java_home() / "bin" / "java"), "-Xmx256m", "-cp", anserini_jar()]
        asked = ["-collection", "JsonCollection", "-input", corpus, "-index", uri, "-threads", "1", *options]
        generator = ["-generator", "DefaultLuceneDocumentGenerator"]
        subprocess.run(
            [*java, "io.anserini.index.IndexCollection", *generator, *asked], check=True, capture_output=True
        )
    return uri


def build_anserini_index(passages: Iterable[Passage], uri: str) -> int:
    """Passages with their texts, as pyserini's prebuilt indexes of Wikipedia have them."""
    records = [{"id": p.id, "contents": f'"{p.title}"\n{p.text}' if p.title else p.text} for p in passages]
    index_with_anserini(records, uri, "-storeRaw")
    return len(records)
