"""What was measured of a server's stages on one machine, as JSON: from it plans are made without measuring again."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from regrad.errors import PlanningError
from regrad.settings import Settings, invalid
from regrad.storage import Storage

ROLES = ("gateway", "retriever", "bank_loader", "generator")
"""The deployments of a server, as its settings name them."""
EMBEDDED = ("retriever", "bank_loader")
"""Those that an embedded server has in the gateways' processes."""


class StagePoint(Settings):
    """One measurement of a stage: so many requests (or active rows) at once took so long.

    `seconds` are those of the clock, `busy` those of the processor, or of the GPU where it does the work.
    """

    batch: int = Field(ge=1)
    seconds: float = Field(ge=0)
    busy: float = Field(ge=0)


class Curve(Settings):
    """A stage over batch sizes, the smallest first."""

    points: tuple[StagePoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rising(self) -> Curve:
        batches = [point.batch for point in self.points]
        if batches != sorted(set(batches)):
            raise invalid("not_rising", "batch sizes must rise")
        return self

    def seconds(self, batch: float) -> float:
        """Of the clock, for a batch."""
        return interpolated([(point.batch, point.seconds) for point in self.points], batch)

    def busy(self, batch: float) -> float:
        """Of the processor, for a batch."""
        return interpolated([(point.batch, point.busy) for point in self.points], batch)


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Straight between two neighbouring points (x, y); the first y before them, the last slope (never down) behind."""
    if at <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (x, y), (next_x, next_y) in pairwise(points):
        if at <= next_x:
            return y + (next_y - y) * (at - x) / (next_x - x)
    (x, y), (next_x, next_y) = points[-2:]
    return next_y + max(0.0, (next_y - y) / (next_x - x)) * (at - next_x)


class Machine(Settings):
    """What a server may use. `gpu_bytes` is the memory of each GPU."""

    cores: int = Field(ge=1)
    gpus: int = Field(0, ge=0)
    memory_bytes: int = Field(ge=1)
    gpu_bytes: int = Field(0, ge=0)


class Workload(Settings):
    """What was asked, and what a question is on average. `alone`: its answers are too long for micro-batches."""

    method: str
    k: int = Field(ge=1)
    max_new_tokens: int = Field(ge=1)
    prompt_tokens: float = Field(ge=0)
    answer_tokens: float = Field(ge=1)
    atoms: int = Field(ge=0, description="atoms loaded per question")
    alone: bool = False


class Stages(Settings):
    """The curves of the stages, without a server. `load` is for one question's atoms, by the tier that has them.

    `decode` is one step of so many rows; `prefill` reads so many prompts and gives their first tokens.
    """

    retrieve: Curve | None = None
    load: dict[str, Curve] = Field({})
    online: Curve | None = None
    prefill: Curve
    decode: Curve


class Candidate(Settings):
    """A configuration of a server, in what the search changes: replicas, batches, caches, and what is embedded.

    An `embedded` one has a retriever and a bank loader in the process of each gateway, so as many of each.
    """

    gateway: int = Field(1, ge=1)
    retriever: int = Field(1, ge=1)
    bank_loader: int = Field(1, ge=1)
    generator: int = Field(1, ge=1)
    at_once: int = Field(ge=1, description="micro-batches of a gateway that retrieve at a time (`groups.at_once`)")
    most_grouped: int = Field(ge=1, description="requests in a micro-batch (`groups.max_size`)")
    rows: int = Field(ge=1, description="requests that are decoded together (`batch.max_size`)")
    cache_bytes: int = Field(ge=0, description="atoms in the memory of a bank loader (`tiers.memory_bytes`)")
    embedded: bool = Field(False, description="retriever and bank loader in the gateways' processes")

    @model_validator(mode="after")
    def _one_each(self) -> Candidate:
        if self.embedded and {self.retriever, self.bank_loader} != {self.gateway}:
            raise invalid("embedded_apart", "an embedded server has a retriever and a bank loader for each gateway")
        return self

    def replicas(self, role: str) -> int:
        """Of one of `ROLES`."""
        return int(getattr(self, role))

    @property
    def deployments(self) -> tuple[str, ...]:
        """Those of `ROLES` whose replicas are processes of their own."""
        return tuple(role for role in ROLES if not (self.embedded and role in EMBEDDED))

    @property
    def processes(self) -> int:
        """The replicas of all deployments."""
        return sum(self.replicas(role) for role in self.deployments)


class Observed(Settings):
    """A load on a real server: so many users, each of whom asks again when the answer is there.

    `processor` is what each deployment computed for an answer, in seconds; `rest` all other processes of the server,
    `asking` the users themselves.
    """

    users: int = Field(ge=1)
    answers: int = Field(ge=1)
    errors: int = Field(0, ge=0)
    rate: float = Field(gt=0, description="answers a second")
    p50: float = Field(gt=0, description="median latency in seconds")
    rows: float = Field(ge=1, description="mean number of requests decoded together, over the answers")
    processor: dict[str, Annotated[float, Field(ge=0)]]


class GpuPart(Settings):
    """Of a base that is split over several GPUs, the bytes on one of them: weights, and one token's keys and values."""

    model: int = Field(ge=1)
    token: int = Field(ge=0)


class Memory(Settings):
    """Bytes of a process without model, index and atoms, of the model, and of the keys and values of one token.

    `index` is what an open index takes by itself, with its search engine's process, but without the pages of its files:
    all that have it open share those. `parts` are those of a base over several GPUs.
    """

    process: int = Field(ge=0)
    index: int = Field(0, ge=0)
    model: int = Field(ge=1)
    token: int = Field(ge=0)
    parts: tuple[GpuPart, ...] = ()


class Bank(Settings):
    """Whose atoms are loaded, and how large they are."""

    codec: str
    record_bytes: int = Field(ge=1)
    passages: int = Field(ge=0)

    @property
    def bytes(self) -> int:
        """Of all atoms."""
        return self.record_bytes * self.passages


def _rising_users(loads: tuple[Observed, ...]) -> tuple[Observed, ...]:
    users = [item.users for item in loads]
    if users != sorted(set(users)):
        raise invalid("not_rising", "the numbers of users must rise")
    return loads


Loads = Annotated[
    tuple[Observed, ...], Field(min_length=1, description="the fewest users first"), AfterValidator(_rising_users)
]


class ObservedServer(Settings):
    """What the server of a configuration did under load."""

    configuration: Candidate
    observed: Loads


class Profile(Settings):
    """All that was measured: on which machine, of which model and bank, by which server configurations.

    `observed` is what the server of `configuration` did under load, the one that was given, and `other` the same server
    with `embedded` the other way, if it was measured; `generator_on_gpu` says where the model ran.
    """

    format: Literal[1] = 1
    made: str = ""
    hardware: dict[str, str | int] = Field({})
    machine: Machine
    fingerprint: str
    bank: Bank
    workload: Workload
    generator_on_gpu: bool = False
    generator_gpus: int = Field(1, ge=1, description="GPUs that its base was split over, if it ran on GPUs")
    stages: Stages
    memory: Memory
    configuration: Candidate
    observed: Loads
    other: ObservedServer | None = None

    @model_validator(mode="after")
    def _unlike(self) -> Profile:
        if self.other is not None and self.other.configuration.embedded == self.configuration.embedded:
            raise invalid("embedded_apart", "one of the two servers is embedded and the other is not")
        return self

    @property
    def servers(self) -> dict[bool, ObservedServer]:
        """The servers that were observed, by whether they are embedded."""
        given = ObservedServer(configuration=self.configuration, observed=self.observed)
        return {one.configuration.embedded: one for one in (given, self.other) if one is not None}


def read_profile(uri: str) -> Profile:
    """Raises `PlanningError` if there is no profile, or it is damaged."""
    folder, _, name = uri.rpartition("/")
    storage = Storage(folder)
    if not storage.exists(name):
        text = f"there is no profile at {uri}; leave `profile` out, and one is measured"
        raise PlanningError(text, code="no_profile", uri=uri)
    try:
        return Profile.model_validate_json(storage.read(name))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PlanningError(
            f"the profile at {uri} cannot be used: {where}: {first['msg']}; measure it again without `profile`",
            code="bad_profile",
            uri=uri,
            key=where,
        ) from error


def write_profile(uri: str, profile: Profile) -> None:
    """Whole or not at all."""
    folder, _, name = uri.rpartition("/")
    Storage(folder).write(name, (profile.model_dump_json(indent=1) + "\n").encode())


def check_profile(
    profile: Profile, fingerprint: str, bank: Bank, method: str, k: int, embedded: bool, gpus: int
) -> None:
    """Raise `PlanningError` if a profile is of another model, bank, kind of question or server than is planned from.

    `gpus` are those that a generator has, 0 on the processor.
    """
    facts = (
        ("MetaInit", profile.fingerprint, fingerprint),
        ("codec", profile.bank.codec, bank.codec),
        ("bytes an atom", profile.bank.record_bytes, bank.record_bytes),
        ("method", profile.workload.method, method),
        ("passages a question (k)", profile.workload.k, k),
        ("GPUs of a generator", profile.generator_gpus if profile.generator_on_gpu else 0, gpus),
        ("`embedded`", embedded if embedded in profile.servers else not embedded, embedded),
    )
    for what, found, expected in facts:
        if found != expected:
            raise PlanningError(
                f"the profile is of another server: its {what} is {found}, that of the settings is {expected}; measure "
                "one for these settings by leaving `profile` out, or give the one that belongs to them",
                code="other_profile",
                what=what,
                expected=expected,
                found=found,
            )
