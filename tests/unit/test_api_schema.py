"""schemathesis over the OpenAPI description: whatever it allows or forbids, the answer is one that it documents."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.unit.answering import StandIn, api_of

SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", api_of(StandIn()))


@SCHEMA.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_response_is_as_documented(case: Case) -> None:
    case.headers.pop("x-request-timeout", None)  # the least that the description allows ends in a rightful 504
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
