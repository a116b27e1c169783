"""What can be set of an index and of searching it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from regrad.models.config import ModelPath
from regrad.settings import Location, Settings, WorkersConfig, invalid

IndexField = Literal["contents", "title", "text"]

Language = Literal[
    "en", "ar", "bn", "da", "de", "es", "fa", "fi", "fr", "hi", "hu", "id", "it",
    "ja", "ko", "nl", "no", "pl", "pt", "ru", "sv", "te", "th", "tr", "uk", "zh",
]  # fmt: skip
"""The languages that Anserini has an analyser of: how a text is split into words, which are left out, how they end."""

PART_PASSAGES = 1000
"""How many passages are encoded at once, if no setting says otherwise."""


class EncoderConfig(Settings):
    """A text encoder that sentence-transformers loads (MiniLM, E5, BGE), or DPR's pair.

    Of DPR, `path` is the encoder of contexts and `question_path` that of questions, as transformers saves them.
    """

    path: ModelPath
    question_path: ModelPath | None = Field(
        None, description="another encoder for questions, of the same dimensions; null: the same"
    )
    question_prefix: str | None = Field(None, description="prepended to a question; null: the model's own")
    passage_prefix: str | None = Field(None, description="prepended to a passage; null: the model's own")
    normalise: bool = Field(True, description="scale vectors to length 1, so that the inner product is the cosine")
    max_tokens: int | None = Field(None, ge=1, description="longer texts are truncated; null: the model's own limit")
    batch_size: int = Field(64, ge=1)


class DenseConfig(Settings):
    """How a dense index is made."""

    encoder: EncoderConfig
    vectors: Literal["auto", "flat", "hnsw", "ivf-pq"] = Field(
        "auto", description="how vectors are searched; auto: chosen by the number of vectors"
    )
    part_passages: int = Field(
        PART_PASSAGES,
        ge=1,
        description="passages that a worker encodes at once; a job that was killed keeps whole parts",
    )


class FusionConfig(Settings):
    """How the rankings of several indexes are joined.

    `rrf` is reciprocal rank fusion (Cormack et al., 2009): a passage's score is the sum of weight / (constant + rank)
    over the indexes that find it. `scores` adds the scores, each index's scaled to 0 to 1 for each question.
    """

    method: Literal["rrf", "scores"] = "rrf"
    weights: tuple[float, ...] | None = Field(
        None, description="one weight per index, in their order; null: equal weights"
    )
    constant: float = Field(60.0, gt=0, description="rrf's constant: the larger, the less the first ranks stand out")
    depth: int = Field(100, ge=1, description="passages to ask each index for, at least k")


class FuseConfig(FusionConfig):
    """Several indexes of one corpus, searched as one."""

    indexes: tuple[Location, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights is not None and len(self.weights) != len(self.indexes):
            raise invalid(
                "not_one_weight_each",
                f"weights: one for each of the {len(self.indexes)} indexes, found {len(self.weights)}",
            )
        if self.weights is not None and (min(self.weights) < 0 or max(self.weights) == 0):
            raise invalid("no_weight", "weights: none below 0, and not all 0")
        return self


class RerankConfig(Settings):
    """An index whose first passages a cross-encoder reorders (sentence-transformers' CrossEncoder)."""

    index: Location
    model: ModelPath = Field(description="a cross-encoder: scores a question and a passage together")
    depth: int = Field(50, ge=1, description="passages per question to rerank, at least k")
    max_tokens: int = Field(
        512, ge=8, description="limit for question and passage together; longer passages are truncated"
    )
    batch_size: int = Field(32, ge=1)
    temperature: float | None = Field(
        None,
        gt=0,
        description="of a model that `regrad retriever` has trained: what divided its scores, which are logits then; "
        "null: scores as the model's own settings say",
    )


class IndexConfig(Settings):
    """`regrad index`: an index of a corpus, lexical (Lucene's BM25) or, with `dense`, of an encoder's vectors.

    With `fuse` or `rerank` it is made of indexes that exist, and there is no `corpus`.
    """

    corpus: Location | None = None
    output: Location
    dense: DenseConfig | None = None
    fuse: FuseConfig | None = None
    rerank: RerankConfig | None = None
    fields: tuple[IndexField, ...] = Field(
        ("contents", "title"),
        description="what can be searched: contents (title and text as one), the title alone, the text alone",
    )
    language: Language = Field(
        "en",
        description="lexical index: the language of passages and questions, for stop words and endings",
    )
    threads: int = Field(2, ge=1, description="lexical index: Lucene's threads per shard")
    shards: int = Field(1, ge=1, description="lexical index: parts that are built in parallel and searched as one")
    cluster: WorkersConfig = Field(
        WorkersConfig(), description="dense: replicas of the encoder; lexical: shards built at a time"
    )

    @field_validator("language", mode="before")
    @classmethod
    def _norwegian(cls, value: object) -> object:
        return "no" if value is False else value  # what YAML makes of `language: no`

    @model_validator(mode="after")
    def _some_fields(self) -> Self:
        if "contents" not in self.fields:
            raise invalid("contents_missing", f"fields: 'contents' must be among them, found {list(self.fields)}")
        if sum(given is not None for given in (self.corpus, self.fuse, self.rerank)) != 1:
            raise invalid(
                "not_one_source", "an index is of a 'corpus', or 'fuse's or 'rerank's others: give one of the three"
            )
        if self.corpus is None and self.dense is not None:
            raise invalid(
                "dense_without_corpus",
                "'dense' makes an index of a corpus, 'fuse' and 'rerank' take one: make it first",
            )
        if self.shards > 1 and (self.corpus is None or self.dense is not None):
            raise invalid("shards_of_no_corpus", "shards: only a lexical index of a corpus has them")
        self.cluster.check_one_gpu("an encoder is on one GPU")
        if self.language != "en" and (self.corpus is None or self.dense is not None):
            raise invalid(
                "language_of_no_text", "language: only a lexical index of a corpus has one, an encoder brings its own"
            )
        return self


class Bm25SearchConfig(Settings):
    """How a lexical index is searched: BM25's two parameters, and how much each field of the index counts.

    The defaults find the most on real questions (docs/benchmarks.md). The papers' search, Elasticsearch's `best_fields`
    over title and text, is `contents: 0, title: 1, text: 1, combine: best, tie: 0.5`.
    """

    k1: float = Field(1.2, ge=0)
    b: float = Field(0.75, ge=0, le=1)
    contents: float = Field(1.0, ge=0, description="weight of title and text as one field")
    title: float = Field(0.5, ge=0, description="weight of the title alone")
    text: float = Field(0.0, ge=0, description="weight of the text alone; the index must have this field")
    combine: Literal["sum", "best"] = Field(
        "sum", description="a passage's score: the sum over the fields, or the best field's"
    )
    tie: float = Field(0.5, ge=0, le=1, description="with best: weight of the other fields' scores")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.weights:
            raise invalid("no_weight", "contents, title and text are all 0: nothing would be searched")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """The fields that are searched, and how much each counts."""
        named = {"contents": self.contents, "title": self.title, "text": self.text}
        return {name: weight for name, weight in named.items() if weight > 0}


class DenseSearchConfig(Settings):
    """How an index of vectors is searched."""

    encoder: str = Field("", description="where the index's encoder is now, if it has been moved")
    question_encoder: str = Field("", description="the same of the questions', if they have one of their own")
    probes: int = Field(64, ge=1, description="approximate search: cells (ivf-pq) or neighbours (hnsw) to visit")


class RetrieverConfig(Settings):
    """How an index is searched: a section for each kind of index that has settings, of that kind's name.

    A fused index hands the sections on to those that it joins. One for a kind that is not searched is refused.
    """

    bm25: Bm25SearchConfig = Bm25SearchConfig()
    dense: DenseSearchConfig = DenseSearchConfig()

    @property
    def given(self) -> frozenset[str]:
        """The kinds of index whose section is not its defaults."""
        plain = RetrieverConfig.model_construct()
        return frozenset(kind for kind in type(self).model_fields if getattr(self, kind) != getattr(plain, kind))

    def only(self, kinds: Collection[str]) -> RetrieverConfig:
        """The sections of these kinds alone."""
        return RetrieverConfig(**{kind: getattr(self, kind) for kind in self.given if kind in kinds})


class OneByOneConfig(Settings):
    """How answers that were decoded with one passage each are weighed."""

    temperature: float | None = Field(
        None,
        gt=0,
        description="divides the retrieval scores before the softmax over passages; null: that with which the index's "
        "question encoder or selector was trained, or 1",
    )
    per_token: bool = Field(False, description="divide the log-likelihood of an answer by its number of tokens")
