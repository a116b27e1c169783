"""The settings of the serving application: `args` of `configs/serve/*.yaml`."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from regrad.bank.config import OnMissing, TiersConfig
from regrad.methods.policies import OnOverflow
from regrad.methods.prompt_only import PromptOnlyConfig
from regrad.methods.registry import MethodConfig
from regrad.methods.regrad import ReGradConfig, ReGradOnlineConfig
from regrad.models.config import ModelPath
from regrad.retrieval.config import RetrieverConfig
from regrad.settings import CustomResources, Location, Settings, invalid


class ReplicaConfig(Settings):
    """One deployment of the server: how many replicas, the resources and requests of each."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.25, ge=0)
    num_gpus: float = Field(0.0, ge=0, description="a share of one, or several, over which a generator's base is split")
    resources: CustomResources = Field({})
    max_ongoing_requests: int = Field(128, ge=1, description="requests that a replica works on at a time")
    max_queued_requests: int = Field(1024, ge=1, description="requests that wait for a replica; more are refused")
    target_ongoing_requests: float | None = Field(
        None, gt=0, description="questions per replica that autoscaling aims at; null: half of max_ongoing_requests"
    )
    upscale_delay_seconds: float = Field(10.0, ge=0)
    downscale_delay_seconds: float = Field(300.0, ge=0)
    drain_seconds: float = Field(30.0, ge=0, description="time for a stopping replica to finish its requests")
    health_check_seconds: float = Field(10.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> ReplicaConfig:
        if self.min_replicas > self.max_replicas:
            raise invalid("least_above_most", "min_replicas is above max_replicas")
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise invalid(
                "share_of_several_gpus",
                f"num_gpus: a replica has a share of one GPU, or whole ones, not {self.num_gpus:g}",
            )
        return self


class LimitsConfig(Settings):
    """What one request may ask for."""

    max_k: int = Field(10, ge=1)
    max_gamma: float = Field(10.0, gt=0)
    max_new_tokens: int = Field(64, ge=1)
    max_question_characters: int = Field(4096, ge=1)
    max_turns: int = Field(64, ge=0)
    max_turn_characters: int = Field(32768, ge=1)
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    request_seconds: float = Field(60.0, gt=0)
    max_in_flight: int = Field(128, ge=1, description="requests at a time in one gateway replica; more get 429")


class BatchConfig(Settings):
    """How many requests are decoded together, and how much memory their keys and values may take."""

    max_size: int = Field(32, ge=1, description="requests in the batch of one generator")
    max_cached_tokens: int = Field(1 << 18, ge=1, description="requests times the tokens of the longest")
    prefill_tokens: int = Field(2048, ge=1, description="prompt tokens read in one pass, between two decoding steps")
    draft_tokens: int = Field(0, ge=0, description="tokens drafted from prompt and passages, while few are decoded")
    prefix_bytes: int = Field(
        1 << 28, ge=0, description="bytes of what prompts begin with, kept for the next ones; 0: none"
    )


class GroupConfig(Settings):
    """Micro-batches: requests with short answers, several in one call between deployments (`serve_app/router.py`)."""

    max_new_tokens: int = Field(64, ge=0, description="requests for longer answers go alone; 0: all do")
    max_size: int = Field(32, ge=1, description="requests in one micro-batch")
    at_once: int = Field(2, ge=1, description="micro-batches that retrieve at a time; further requests gather")


_OFFERED: tuple[MethodConfig, ...] = (
    *(PromptOnlyConfig(name="direct"), PromptOnlyConfig(name="rag")),
    *(ReGradConfig(name="regrad"), ReGradConfig(name="regrad+icl"), ReGradOnlineConfig(name="regrad-online")),
)
OFFERED = tuple(method.name for method in _OFFERED)
"""What a server offers if its settings name no methods: those that need only a release."""


class ProtectionConfig(Settings):
    """Who may ask, how often, and from which web pages.

    With `keys` None anyone who reaches the port may ask. The two limits apply to keys without limits (None: no limit);
    each gateway replica counts for itself. `open_docs`: the OpenAPI pages need no key.
    """

    keys: Location | None = None
    requests_per_minute: int | None = Field(600, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    open_docs: bool = False
    cors_origins: tuple[str, ...] = ()

    @field_validator("cors_origins")
    @classmethod
    def _exact(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if not re.fullmatch(r"https?://[a-z0-9.\-\[\]:]+", origin):
                raise invalid(
                    "not_an_origin",
                    "an origin is the scheme, host and port of a web page, such as https://ask.example.org",
                )
        return origins


class ObservabilityConfig(Settings):
    """The request log and traces. Metrics are always exported.

    Each request is logged as one line of JSON, to a file or (None) to standard error, without its question unless
    `log_questions`. `tracing` is the OTLP endpoint that spans are sent to, such as http://collector:4318.
    """

    log_requests: bool = True
    log_questions: bool = False
    request_log: Location | None = None
    tracing: str | None = Field(None, pattern=r"^https?://[^\s/]+(/[^\s]*)?$")


class ServeConfig(Settings):
    """The serving application: `args` of `configs/serve/*.yaml`."""

    meta_init: Location
    model_path: ModelPath | None = None
    bank: Location
    bank_version: int | None = Field(None, ge=1, description="null: follow the newest")
    releases: Location | None = Field(None, description="a file that `regrad serve update` writes and servers follow")
    follow_seconds: float = Field(2.0, gt=0, description="seconds between checks for new versions")
    methods: tuple[MethodConfig, ...] = Field(
        _OFFERED,
        min_length=1,
        description="as in `regrad eval`, but MetaInit and gradients are the release's; a request that names no method "
        "gets `regrad`, or the first if that is not offered",
    )
    demonstrations: Location | None = Field(None, description="a file of solved questions, for methods that show some")
    on_missing: OnMissing = Field(
        "online", description="default of methods that apply gradients and do not set their own"
    )
    on_overflow: OnOverflow = Field(
        "drop",
        description="for a prompt that exceeds the context: drop its worst passages (the answer says so), or refuse it "
        "(fail)",
    )
    tiers: TiersConfig = TiersConfig()
    index: Location
    retrieval: RetrieverConfig = RetrieverConfig()
    limits: LimitsConfig = LimitsConfig()
    protection: ProtectionConfig = ProtectionConfig()
    watching: ObservabilityConfig = ObservabilityConfig()
    batch: BatchConfig = BatchConfig()
    groups: GroupConfig = GroupConfig()
    embedded: bool = Field(
        False,
        description="retriever and bank loader inside each gateway replica, instead of replicas that scale "
        "separately: for one machine, where a call between processes costs more than a search; `regrad plan` measures "
        "both",
    )
    retriever: ReplicaConfig = ReplicaConfig()
    bank_loader: ReplicaConfig = ReplicaConfig()
    generator: ReplicaConfig = ReplicaConfig(num_cpus=0.5)
    gateway: ReplicaConfig = ReplicaConfig(max_ongoing_requests=4096)

    @model_validator(mode="after")
    def _offerable(self) -> ServeConfig:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise invalid("repeated", f"methods has a name twice among {', '.join(names)}; give each its own name")
        for method in self.methods:
            named = method.artefacts
            if method.FOLLOWS_RELEASE and (named.meta_init or named.bank or named.bank_version):
                raise invalid(
                    "release_decides",
                    f"method {method.name!r} takes its MetaInit and bank from the release; leave them out",
                )
            if method.index or method.retrieval:
                raise invalid(
                    "server_decides", f"method {method.name!r} is asked with the server's `index`; leave its own out"
                )
            if method.one_by_one is not None and not method.info.retrieves:
                raise invalid(
                    "no_passages_to_read", f"method {method.name!r} reads no passages: leave its `one_by_one` out"
                )
            if method.demonstrations and self.demonstrations is None:
                raise invalid(
                    "demonstrations_missing",
                    f"method {method.name!r} shows solved questions: name their file as `demonstrations`",
                )
        return self


class HttpConfig(Settings):
    """Where the HTTP proxy listens."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
