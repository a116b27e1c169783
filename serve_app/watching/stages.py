"""The stages of an answer, by the names that metrics, logs and traces share."""

from __future__ import annotations

from serve_app.messages import Reply


def milliseconds_by_stage(reply: Reply) -> dict[str, float]:
    """How long each stage took that the answer went through, and `total`."""
    answered, stages = reply.answered, {}
    if reply.retrieved is not None:
        stages["retrieve"] = reply.retrieved.milliseconds
    if answered.uses:
        stages["load"] = answered.load_milliseconds
    stages["queue"] = answered.queue_milliseconds
    stages["prefill"] = answered.prefill_milliseconds
    stages["decode"] = answered.decode_milliseconds
    stages["total"] = reply.total_milliseconds
    return stages


def milliseconds_to_first_token(reply: Reply) -> float:
    """The stages before the first token, added up."""
    return sum(took for stage, took in milliseconds_by_stage(reply).items() if stage not in ("decode", "total"))
