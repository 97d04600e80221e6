"""What holds for every test."""

import signal

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no reason to fail: what must be fast is measured in ratios, in tests of its own.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive() -> None:
    """Let SIGINT arrive in the tests and in the processes that they start.

    A shell starts background jobs with SIGINT ignored, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
