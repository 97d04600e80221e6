"""The API does what its OpenAPI document says, whatever is sent to it."""

import os
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from ktrdr_pipelines.api.access import AccessRules
from ktrdr_pipelines.api.envelopes import INVALID_RANGE
from ktrdr_pipelines.api.rest_app import build_app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "50"))
"""Generated requests of each method of a path."""

NO_SERVICES: Any = SimpleNamespace(system=SimpleNamespace(metrics=None))

schema = schemathesis.openapi.from_dict(build_app(NO_SERVICES, AccessRules()).openapi())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
def test_a_request_is_answered_as_documented(case: Any, filled: httpx.Client) -> None:
    """Valid ones are accepted, invalid ones refused, and each answer has its documented form.

    OpenAPI cannot say that a start lies before an end: such a request is valid for it, and refused.
    """
    response = case.call(base_url=str(filled.base_url))
    is_range = response.status_code == 422 and INVALID_RANGE in response.text
    excluded = [positive_data_acceptance] if is_range else []
    case.validate_response(response, excluded_checks=excluded)


def test_the_document_is_the_one_that_is_served(filled: httpx.Client) -> None:
    """So that the test above is about it."""
    assert filled.get("/openapi.json").json() == schema.raw_schema
