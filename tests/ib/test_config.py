"""The delays between attempts, and the configuration of a gateway."""

from pathlib import Path

import pytest

from ktrdr_pipelines.errors import (
    BadAnswerError,
    BarSizeRefusedError,
    ClientIdInUseError,
    ConnectionLostError,
    ContractAmbiguousError,
    ContractUnclearError,
    ContractUnknownError,
    EntitlementError,
    GatewayError,
    GatewayRestingError,
    GatewayTimeoutError,
    GatewayUnreachableError,
    OutageError,
    PacingError,
    RequestExpiredError,
    RequestRejectedError,
    RequestTooLongError,
    UnknownZoneError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.protocol.error_codes import NoDataError, QueryDroppedError
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, retry_delay_s


def delays(error: GatewayError, max_retries: int = 3) -> list[float | None]:
    """Return the delays after the first five attempts."""
    return [
        retry_delay_s(error, attempts, max_retries=max_retries, base_delay_s=2.0)
        for attempts in range(1, 6)
    ]


@pytest.mark.parametrize("error", [GatewayTimeoutError("x"), BadAnswerError("x")])
def test_delays_double_and_end(error: GatewayError) -> None:
    """Two, four and eight seconds, then no retry."""
    assert delays(error) == [2.0, 4.0, 8.0, None, None]


FIRST_WAITS: dict[type[GatewayError], float | None] = {
    GatewayUnreachableError: 2.0,
    GatewayRestingError: 2.0,
    GatewayTimeoutError: 2.0,
    ClientIdInUseError: 2.0,
    ConnectionLostError: 2.0,
    OutageError: 2.0,
    BadAnswerError: 2.0,
    QueryDroppedError: 2.0,
    PacingError: 60.0,
    EntitlementError: None,
    RequestExpiredError: None,
    RequestRejectedError: None,
    RequestTooLongError: None,
    BarSizeRefusedError: None,
    NoDataError: None,
    ContractUnknownError: None,
    ContractAmbiguousError: None,
    ContractUnclearError: None,
    UnknownZoneError: None,
}


@pytest.mark.parametrize(("kind", "wait_s"), FIRST_WAITS.items())
def test_each_class_has_its_first_delay(kind: type[GatewayError], wait_s: float | None) -> None:
    """Temporary errors are retried, each after its delay; permanent ones are not."""
    waits = [
        retry_delay_s(kind("x"), 1, max_retries=3, base_delay_s=2.0, jitter=jitter)
        for jitter in (0.0, 1.0)
    ]
    assert waits == ([None, None] if wait_s is None else [wait_s, wait_s * 1.5])


def test_no_class_of_gateway_errors_is_forgotten() -> None:
    """Every gateway error, wherever it is defined, is in the table above."""

    def below(kind: type[GatewayError]) -> set[type[GatewayError]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    defined = {one for one in below(GatewayError) if one.__module__.startswith("ktrdr_pipelines")}
    assert defined - {GatewayError} == set(FIRST_WAITS)


def test_delays_have_a_longest() -> None:
    """No ordinary error waits longer than a minute."""
    assert retry_delay_s(GatewayTimeoutError("x"), 9, max_retries=20, base_delay_s=2.0) == 60.0


def test_a_pacing_error_waits_as_long_as_the_gateway_pauses() -> None:
    """From one minute to ten."""
    assert delays(PacingError("x"), max_retries=5) == [60.0, 120.0, 240.0, 480.0, 600.0]


def test_an_id_in_use_waits_at_least_the_pause_between_ids() -> None:
    """Aggressive connecting would make the gateway refuse every client."""
    error = ClientIdInUseError("x")
    assert retry_delay_s(error, 1, max_retries=1, base_delay_s=0.0) == 1.5


@pytest.mark.parametrize("error", [EntitlementError("x"), RequestRejectedError("x")])
def test_a_permanent_error_is_not_retried(error: GatewayError) -> None:
    """A permanent error has no delay."""
    assert delays(error) == [None] * 5


def test_jitter_adds_up_to_half() -> None:
    """Requests that failed together are not retried together."""
    waits = [
        retry_delay_s(GatewayTimeoutError("x"), 1, max_retries=1, base_delay_s=2.0, jitter=jitter)
        for jitter in (0.0, 0.5, 1.0)
    ]
    assert waits == [2.0, 2.5, 3.0]


def test_an_open_breaker_delays_a_retry() -> None:
    """An error that names a time is retried no earlier."""
    error = GatewayRestingError("x")
    error.retry_in_s = 30.0
    assert retry_delay_s(error, 1, max_retries=1, base_delay_s=2.0) == 30.0


def test_the_loader_uses_the_same_delays() -> None:
    """RetryPolicy uses the same function."""
    retry_policy = RetryPolicy(max_retries=2, delay_s=2.0, jitter=lambda: 0.0)
    for error in (GatewayTimeoutError("x"), PacingError("x"), EntitlementError("x")):
        for attempts in (1, 2, 3):
            assert retry_policy.delay_after(error, attempts) == retry_delay_s(
                error, attempts, max_retries=2, base_delay_s=2.0
            )


def test_no_retries_means_none() -> None:
    """IB_MAX_RETRIES=0 gives up at once."""
    assert delays(GatewayTimeoutError("x"), max_retries=0)[0] is None


def test_the_configuration_comes_from_the_settings(tmp_path: Path) -> None:
    """Every field has its setting."""
    given = {
        "IB_HOST": "gate.example",
        "IB_PORT": "4001",
        "IB_TIMEOUT": "12.5",
        "IB_PACING": "conservative",
        "IB_MAX_RETRIES": "7",
        "IB_RETRY_DELAY": "0.5",
        "IB_CLIENT_ID_CLI": "301-310",
        "KTRDR_STATE": str(tmp_path),
    }
    config = GatewayConfig.from_settings(load_settings(given))
    assert (config.gateway, config.timeout_s, config.conservative) == (
        "gate.example:4001",
        12.5,
        True,
    )
    assert (config.max_retries, config.retry_delay_s) == (7, 0.5)
    assert config.client_id_ranges["cli"] == (301, 310)
    assert config.folder == tmp_path / "gate.example_4001"
