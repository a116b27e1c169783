"""How many replicas the generator needs: by its questions, since one call between deployments carries several."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

QUESTIONS = "questions"
"""What a replica counts for this (`record_autoscaling_stats`, which Serve asks for)."""


def replicas_for_questions(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """So many that each has `target_ongoing_requests` questions; Serve adds the limits and delays of the deployment.

    Serve's own policy counts calls. A micro-batch of 32 questions is one, so a few full batches would look like a
    replica that has hardly anything to do. Calls that wait for a replica have no count of their own, hence the maximum.
    """
    questions = sum((context.aggregated_metrics or {}).get(QUESTIONS, {}).values())
    return max(questions, context.total_num_requests) / context.config.target_ongoing_requests, {}
