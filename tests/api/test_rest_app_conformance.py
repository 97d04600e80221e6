"""The API does what its OpenAPI document says, whatever is sent to it."""

import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "100"))


@pytest.fixture(scope="module")
def api(filled: Any) -> Any:
    """Return the document of a server over a store with bars."""
    return schemathesis.openapi.from_url(f"{filled.base_url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
def test_a_request_is_answered_as_documented(case: Any) -> None:
    """Valid ones are accepted, invalid ones refused, and each answer has its documented form."""
    case.call_and_validate()
