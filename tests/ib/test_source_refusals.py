"""What the source makes of error frames: a typed error at once, or a notice."""

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

HMDS = "Historical Market Data Service error message:"


def refusing(code: int, text: str) -> Any:
    """Answer requests for bars with an error frame."""
    return lambda talk, fields: talk.error(fields[1], code, text)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (321, "Error validating request.-'bM' : cause - Invalid duration", RequestRejectedError),
        (162, f"{HMDS}Historical data request pacing violation", PacingError),
        (162, f"{HMDS}No market data permissions for ISLAND STK.", EntitlementError),
        (
            162,
            f"{HMDS}Trading TWS session is connected from a different IP address",
            EntitlementError,
        ),
        (162, f"{HMDS}Time length exceed max.", RequestRejectedError),
        (162, f"{HMDS}No historical market data for EUR/CASH@FXSUBPIP", RequestRejectedError),
        (162, f"{HMDS}API historical data query cancelled: 3", QueryDroppedError),
        (162, f"{HMDS}something never seen before", BadAnswerError),
        (200, "The contract description specified for AAPL is ambiguous.", ContractAmbiguousError),
        (322, "Only 50 simultaneous API historical data requests allowed.", PacingError),
        (366, "No historical data query found for ticker id:3", QueryDroppedError),
        (10314, "End Date/Time: The date, time, or time-zone entered is invalid.", None),
    ],
)
def test_an_error_frame_fails_its_request_at_once(
    bench: Any, minute_request: BarRequest, code: int, text: str, *, kind: Any
) -> None:
    """Every error that names a request ends it before the deadline, ib_async's warnings too."""
    with pytest.raises(kind or RequestRejectedError) as caught:
        bench(lambda source: source.bars(minute_request), bars=refusing(code, text))
    assert caught.value.code == code
    assert "AAPL 1m, 1 D to now" in str(caught.value)


def test_an_error_after_the_end_changes_nothing(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """What the gateway says of an answered request is only noted."""

    def late_error(talk: Any, fields: list[str]) -> None:
        words.tell_bars(talk, fields)
        talk.error(fields[1], 162, "API historical data query cancelled: 1")

    async def ask(source: GatewaySource) -> Any:
        answer = await source.bars(minute_request)
        return answer, await source.health()

    answer, health = bench(ask, bars=late_error)
    assert isinstance(answer, Response)
    assert health.is_good


def test_an_error_before_the_end_wins(bench: Any, aapl: Instrument, words: Any) -> None:
    """Parts of an answer that an error follows cover nothing."""

    def parts_then_error(talk: Any, fields: list[str]) -> None:
        talk.send(*(text.format(id=fields[2]) for text in words.details))
        talk.error(fields[2], 162, f"{HMDS}Historical data request pacing violation")
        talk.send(52, 1, fields[2])

    with pytest.raises(PacingError):
        bench(lambda source: source.contract_id(aapl), contract=parts_then_error)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (2188, "Up-to-the-second historical data requires additional subscription for the API."),
        (2174, "Warning: You submitted request with date-time without explicit time zone."),
        (10167, "Requested market data is not subscribed. Displaying delayed market data."),
    ],
)
def test_a_notice_about_a_request_leaves_its_bars(
    bench: Any,
    minute_request: BarRequest,
    words: Any,
    caplog: pytest.LogCaptureFixture,
    *,
    code: int,
    text: str,
) -> None:
    """The bars follow a notice, and the notice is logged with what it concerns."""
    caplog.set_level(logging.INFO)

    def noting(talk: Any, fields: list[str]) -> None:
        talk.error(fields[1], code, text)
        words.tell_bars(talk, fields)

    assert bench(lambda source: source.bars(minute_request), bars=noting).bars.num_rows == 2
    assert f"AAPL 1m, 1 D to now: the gateway notes {code} {text}" in caplog.text
