"""Error frames: a typed error at once, or a notice."""

import logging
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ContractAmbiguousError,
    EntitlementError,
    PacingError,
    RequestRejectedError,
)
from ktrdr_pipelines.ib.protocol.error_codes import QueryDroppedError
from ktrdr_pipelines.ib.source import GatewaySource
from tests.ib.scripted_gateway import HMDS


def refusing(code: int, text: str) -> Any:
    """Return a handler that sends an error."""
    return lambda client, fields: client.error(fields[1], code, text)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (321, "Error validating request.-'bM' : cause - Invalid duration", RequestRejectedError),
        (162, f"{HMDS}Historical data request pacing violation", PacingError),
        (162, f"{HMDS}No market data permissions for ISLAND STK.", EntitlementError),
        (162, f"{HMDS}something never seen before", BadAnswerError),
        (200, "The contract description specified for AAPL is ambiguous.", ContractAmbiguousError),
        (366, "No historical data query found for ticker id:3", QueryDroppedError),
        (10314, "End Date/Time: The date, time, or time-zone entered is invalid.", None),
    ],
)
def test_an_error_frame_fails_its_request_at_once(
    harness: Any, minute_request: BarRequest, code: int, text: str, *, kind: Any
) -> None:
    """An error that names a request ends it before the deadline, ib_async's warnings too."""
    with pytest.raises(kind or RequestRejectedError) as caught:
        harness(lambda source: source.bars(minute_request), bars=refusing(code, text))
    assert caught.value.code == code
    assert "AAPL 1m, 1 D to now" in str(caught.value)


def test_an_error_after_the_end_changes_nothing(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """An error for a completed request is logged only."""

    def late_error(client: Any, fields: list[str]) -> None:
        replies.send_bars(client, fields)
        client.error(fields[1], 162, "API historical data query cancelled: 1")

    async def ask(source: GatewaySource) -> Any:
        answer = await source.bars(minute_request)
        return answer, await source.health()

    answer, health = harness(ask, bars=late_error)
    assert isinstance(answer, Response)
    assert health.is_good


def test_an_error_before_the_end_fails_the_request(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """Parts of a response that an error follows cover nothing."""

    def parts_then_error(client: Any, fields: list[str]) -> None:
        client.send(*(text.format(id=fields[2]) for text in replies.details))
        client.error(fields[2], 162, f"{HMDS}Historical data request pacing violation")
        client.send(52, 1, fields[2])

    with pytest.raises(PacingError):
        harness(lambda source: source.contract_id(aapl), contract=parts_then_error)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (2188, "Up-to-the-second historical data requires additional subscription for the API."),
        (2174, "Warning: You submitted request with date-time without explicit time zone."),
        (10167, "Requested market data is not subscribed. Displaying delayed market data."),
    ],
)
def test_a_notice_about_a_request_leaves_its_bars(
    harness: Any,
    minute_request: BarRequest,
    replies: Any,
    caplog: pytest.LogCaptureFixture,
    *,
    code: int,
    text: str,
) -> None:
    """The bars follow, and the notice is logged with its request."""
    caplog.set_level(logging.INFO)

    def noting(client: Any, fields: list[str]) -> None:
        client.error(fields[1], code, text)
        replies.send_bars(client, fields)

    assert harness(lambda source: source.bars(minute_request), bars=noting).bars.num_rows == 2
    assert f"AAPL 1m, 1 D to now: the gateway notes {code} {text}" in caplog.text
