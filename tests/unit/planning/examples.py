"""A profile with round numbers."""

from __future__ import annotations

from regrad.planning.profile import (
    Bank,
    Candidate,
    Curve,
    Machine,
    Memory,
    Observed,
    ObservedServer,
    Profile,
    StagePoint,
    Stages,
    Workload,
)

MACHINE = Machine(cores=2, memory_bytes=1 << 34)
BANK = Bank(codec="float32", record_bytes=1000, passages=400)
OWN = Candidate(at_once=2, most_grouped=32, rows=32, cache_bytes=BANK.bytes)
EMBEDDED_OWN = OWN.model_copy(update={"embedded": True})

# By users: answers a second, and milliseconds of all processors for an answer.
_LOADS = {1: (25.0, 40.0), 4: (40.0, 32.0), 16: (80.0, 20.0), 64: (125.0, 12.8)}


def observed(users: int, step: float = 0.0) -> Observed:
    """A load on the server: 4 ms of its processor's time are the retriever's and the loader's, a quarter the gateway's.

    A step of the generator is shared by a quarter of the users.
    """
    rate, milliseconds = _LOADS.get(users, (30.0, 36.0))
    processor = 1e-3 * milliseconds
    parts = {"retriever": 0.002, "bank_loader": 0.002, "gateway": 0.25 * processor}
    parts["generator"] = step / max(1, users / 4)
    parts["rest"] = processor - sum(parts.values())
    return Observed(users=users, answers=100, rate=rate, p50=users / rate, rows=min(32, users), processor=parts)


def constant(each: float, at_most: int = 64) -> Curve:
    """So many seconds for each request, whatever the batch."""
    return Curve(points=tuple(StagePoint(batch=n, seconds=n * each, busy=n * each) for n in (1, at_most)))


def profile_of(step: float = 0.0) -> Profile:
    """Searching and loading take 1 ms each (5 ms from disk); `step` is the time of a decoding step of any rows."""
    step_curve = Curve(points=tuple(StagePoint(batch=n, seconds=step, busy=step) for n in (1, 64)))
    return Profile(
        machine=MACHINE,
        fingerprint="0123456789abcdef",
        bank=BANK,
        workload=Workload(method="regrad", k=3, max_new_tokens=20, prompt_tokens=30, answer_tokens=2, atoms=3),
        stages=Stages(
            retrieve=constant(0.001),
            load={"memory": constant(0.001), "disk": constant(0.005)},
            prefill=constant(0.0),
            decode=step_curve,
        ),
        memory=Memory(process=100, model=1000, token=2),
        configuration=OWN,
        observed=tuple(observed(users, step) for users in _LOADS),
    )


def with_embedded(profile: Profile, share: float) -> Profile:
    """With the same server embedded: it takes this share of the other's time for all that it does.

    What retriever and loader computed is then computed in the gateway.
    """

    def of(one: Observed) -> Observed:
        spent = {role: share * seconds for role, seconds in one.processor.items()}
        spent["gateway"] += spent.pop("retriever") + spent.pop("bank_loader")
        return one.model_copy(update={"rate": one.rate / share, "p50": one.p50 * share, "processor": spent})

    own = profile.configuration.model_copy(update={"embedded": True})
    return profile.model_copy(
        update={"other": ObservedServer(configuration=own, observed=tuple(map(of, profile.observed)))}
    )
