"""The settings of `regrad try`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from regrad.bank.config import BuildConfig
from regrad.data.chunks import ChunkConfig
from regrad.data.corpus_maker import PASSAGES, CorpusConfig
from regrad.models.config import ModelPath
from regrad.retrieval.config import IndexConfig
from regrad.settings import Location, Settings
from serve_app.config import HttpConfig, ServeConfig

MODEL = "smollm2-135m"
START = Path(__file__).parents[2] / "starts" / f"{MODEL}-both"
"""A MetaInit for this model that comes with the package, trained with and without the passages in the prompt: the page
answers in both ways. That of the model's own name was trained without, for the study, and is in the sources alone."""


class TryConfig(Settings):
    """`regrad try`: all paths of the parts are set to places below `output`."""

    output: Location = "runs/try"
    model: ModelPath | None = Field(
        f"models/{MODEL}", description=f"where {MODEL} is; it is downloaded if missing. null: where the MetaInit says"
    )
    start: Location | None = Field(
        None, description="the MetaInit of `model`; null: the one that comes with the package"
    )
    chunks: ChunkConfig = ChunkConfig()
    most_banked: int = Field(
        500, ge=1, description="passages whose gradients are computed before serving; others are computed when needed"
    )
    build: BuildConfig
    serve: ServeConfig
    http: HttpConfig = HttpConfig()

    @property
    def meta_init(self) -> str:
        """Where the MetaInit is."""
        return self.start or str(START)

    def corpus(self, source: str) -> CorpusConfig:
        """Every passage of a folder."""
        return CorpusConfig(sources=(source,), output=f"{self.output}/corpus", max_tokens=self.chunks.max_tokens)

    @property
    def index(self) -> IndexConfig:
        """Of every passage."""
        return IndexConfig(corpus=f"{self.output}/corpus/{PASSAGES}", output=f"{self.output}/index")

    @property
    def bank(self) -> BuildConfig:
        """Of the first `most_banked` passages."""
        place = self.build.bank.model_copy(update={"uri": f"{self.output}/bank"})
        corpus = f"{self.output}/banked.jsonl"
        update = {"meta_init": self.meta_init, "model_path": self.model, "corpus": corpus, "bank": place}
        return self.build.model_copy(update=update)

    @property
    def server(self) -> ServeConfig:
        """What answers from them."""
        update = {"meta_init": self.meta_init, "model_path": self.model, "bank": f"{self.output}/bank"}
        return self.serve.model_copy(update=update | {"index": f"{self.output}/index"})
