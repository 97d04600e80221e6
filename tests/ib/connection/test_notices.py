"""Notices for the user about a gateway: unknown time zones, and other languages."""

from datetime import UTC, datetime
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, Response
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ContractUnclearError,
    GatewayError,
    PacingError,
    RequestRejectedError,
    RequestTooLongError,
    UnknownZoneError,
)
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, error_for, is_english
from ktrdr_pipelines.ib.source import GatewaySource
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from tests.ib.scripted_gateway import HMDS, SPANISH_HMDS

GERMAN = "Es wurde keine Wertpapierdefinition zu der Anfrage gefunden"
"""Grade L: https://github.com/pst-group/pysystemtrade/issues/1270"""
END = datetime(2026, 1, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (162, f"{SPANISH_HMDS}invalid step: 1", RequestTooLongError),
        (162, f"{SPANISH_HMDS}Historical data request pacing violation", PacingError),
        (162, f"{SPANISH_HMDS}No historical market data for EUR/CASH@FXSUBPIP Last 300", None),
        (162, f"{SPANISH_HMDS}otra cosa", BadAnswerError),
        (162, f"{SPANISH_HMDS}HMDS query timed out: AAPL@SMART Trades", BadAnswerError),
        (162, f"{HMDS}HMDS query timed out: AAPL@SMART Trades", BadAnswerError),
        (162, f"{HMDS}Query failed: AAPL@SMART Trades", BadAnswerError),
        (162, f"{HMDS}HMDS is busy: AAPL@SMART Trades", BadAnswerError),
        (200, GERMAN, ContractUnclearError),
        (200, "Die Kontraktbeschreibung f\u00fcr AAPL ist mehrdeutig", ContractUnclearError),
        (200, "Invalid destination or exchange selected for the order", ContractUnclearError),
        (321, "Fehler beim Pr\u00fcfen der Anfrage.-'bK' : Grund - unbekannt", None),
    ],
)
def test_a_text_in_another_language_is_classified_by_its_english_part_or_code(
    code: int, text: str, kind: type[GatewayError] | None
) -> None:
    """IB's English words after the translated text count, or else the code alone."""
    error = error_for(ErrorFrame(7, code, text), "AAPL 1d")
    assert type(error) is (kind or RequestRejectedError)


@pytest.mark.parametrize(
    "text",
    [
        f"{SPANISH_HMDS}HMDS query returned no data: T@SMART Trades",
        "Servicio de datos hist\u00f3ricos:La consulta no devolvi\u00f3 datos: T@SMART Trades",
        "\\xc0\\xfa\\xca\\xb7\\xca\\xfd\\xbe\\xdd: EUR.USD@IDEALPRO Midpoint",
    ],
)
def test_no_data_is_recognized_by_the_query_at_its_end(
    harness: Any, minute_request: BarRequest, text: str
) -> None:
    """The query stands at the end of the text in every language."""
    answer = harness(
        lambda source: source.bars(minute_request),
        bars=lambda client, fields: client.error(fields[1], 162, text),
    )
    assert isinstance(answer, NoData)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (162, f"{HMDS}HMDS query returned no data: AAPL@SMART Trades"),
        (165, "Historical Market Data Service query message:HMDS connection was successful."),
        (200, "No security definition has been found for the request"),
        (200, "The contract description specified for AAPL is ambiguous."),
        (200, "Invalid destination exchange specified"),
        (200, "Invalid contract id"),
        (200, "Strike price expected"),
        (162, "Historical data request for greater than 86400 seconds rejected."),
        (321, "Error validating request.-'bK' : cause - Invalid duration"),
        (322, "Error processing request.-'b1' : cause - Duplicate ticker ID"),
        (354, "Requested market data is not subscribed."),
        (1100, "Connectivity between IBKR and Trader Workstation has been lost."),
        (1102, "Connectivity restored - data maintained."),
        (2103, "Market data farm connection is broken:usfarm"),
        (2104, "Market data farm connection is OK:usfarm"),
        (2107, "HMDS data farm connection is inactive but should be available upon demand."),
        (2158, "Sec-def data farm connection is OK:secdefnj"),
        (9999, "was auch immer"),
        (162, ""),
        (200, " "),
    ],
)
def test_english_texts_are_recognized(code: int, text: str) -> None:
    """A code whose texts do not show the language counts as English."""
    assert is_english(ErrorFrame(-1, code, text))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (162, f"{SPANISH_HMDS}HMDS query returned no data: AAPL@SMART Trades"),
        (200, GERMAN),
        (2104, "Verbindung zum Marktdatenserver OK:usfarm"),
        (2106, "La conexi\u00f3n de datos hist\u00f3ricos es correcta:ushmds"),
        (1100, "Se ha perdido la conexi\u00f3n entre IBKR y Trader Workstation."),
    ],
)
def test_other_languages_are_recognized(code: int, text: str) -> None:
    """Every login gets some of these texts."""
    assert not is_english(ErrorFrame(-1, code, text))


def test_the_language_is_reported_once(harness: Any, aapl: Instrument, replies: Any) -> None:
    """Several texts in the language make one notice."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        for farm in ("usfarm", "eufarm", "hfarm"):
            client.error(-1, 2104, f"Verbindung zum Marktdatenserver OK:{farm}")

    notices: list[str] = []

    async def ask(source: GatewaySource) -> None:
        source.notices.listen(notices.append)
        with pytest.raises(ContractUnclearError, match="language to English"):
            await source.contract_id(aapl)

    harness(ask, start=start, contract=lambda client, fields: client.error(fields[2], 200, GERMAN))
    assert len(notices) == 1
    assert "2104 Verbindung zum Marktdatenserver OK:usfarm" in notices[0]
    assert "language" in notices[0]


@pytest.mark.parametrize(
    ("reach", "zone"),
    [
        (("20260104 16:00:00 CST", "20260105 16:00:00 CST"), "'CST'"),
        (("20260104  16:00:00", "20260105  16:00:00"), "no time zone"),
        (("20260104 16:00:00 China Standard Time", "20260105-16:00:00"), "China Standard"),
    ],
)
def test_an_unknown_zone_of_responses_is_reported_once(
    harness: Any, minute_request: BarRequest, replies: Any, *, reach: tuple[str, str], zone: str
) -> None:
    """The bars are kept, and the stated range is ignored."""
    notices: list[str] = []

    async def ask(source: GatewaySource) -> list[Response | NoData]:
        source.notices.listen(notices.append)
        return [await source.bars(minute_request) for _ in range(3)]

    answers = harness(
        ask,
        bars=lambda client, fields: client.raw(
            replies.history(fields[1], replies.bar(replies.first), reach=reach)
        ),
    )
    assert [answer.reach for answer in answers] == [None] * 3
    assert all(answer.bars.num_rows == 1 for answer in answers)
    assert len(notices) == 1
    assert zone in notices[0]
    assert "the range that responses state" in notices[0]


@pytest.mark.parametrize("zone", ["GB", "GB-Eire", "MET", "Japan", "Hongkong", "EST5EDT", "PRC"])
def test_old_zone_names_keep_the_reach(response_of: Any, replies: Any, zone: str) -> None:
    """The range in a zone with an old name is read."""
    reach = (f"20260104 16:00:00 {zone}", f"20260105 16:00:00 {zone}")
    answer = response_of(replies.bar(replies.first), reach=reach)
    assert answer.reach is not None
    assert (answer.reach.end - answer.reach.start).days == 1


def hours_in(zone: str, replies: Any) -> Any:
    """Return a handler that sends the details of AAPL with hours in a zone."""
    hours = "20260105:0930-20260105:1600"
    return replies.details_with({25: zone, 26: hours, 27: hours})


def test_hours_in_an_unknown_zone_are_empty_and_reported_once(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """They are empty, and cost neither a request nor a retry."""
    notices: list[str] = []

    async def ask(source: GatewaySource) -> list[Any]:
        source.notices.listen(notices.append)
        return [await source.hours(aapl) for _ in range(2)]

    assert harness(ask, contract=hours_in("CST", replies)) == [[], []]
    assert len(notices) == 1
    assert "trading hours" in notices[0]
    [days] = harness(lambda source: source.hours(aapl), contract=hours_in("EST5EDT", replies))
    assert f"{days.parts[0].start:%H:%M}" == "14:30"


def test_a_schedule_in_an_unknown_zone_is_not_requested_again(
    harness: Any, aapl: Instrument
) -> None:
    """The same request would return the same: the error is not retried."""

    def respond(client: Any, fields: list[str]) -> None:
        day = ("20260105-09:30:00", "20260105-16:00:00", "20260105")
        client.send(106, fields[1], "20260101-00:00:00", "20260106-00:00:00", "CST", 1, *day)

    with pytest.raises(UnknownZoneError) as caught:
        harness(lambda source: source.schedule(aapl, END, 5), bars=respond)
    assert RetryPolicy(max_retries=3).delay_after(caught.value, 1) is None
    assert "America/New_York" in caught.value.hint


def test_a_head_in_an_unknown_zone_is_none_and_reported_once(
    harness: Any, aapl: Instrument
) -> None:
    """It is None, without another request."""
    notices: list[str] = []

    async def ask(source: GatewaySource) -> list[Any]:
        source.notices.listen(notices.append)
        return [await source.head(aapl) for _ in range(2)]

    def respond(client: Any, fields: list[str]) -> None:
        client.send(88, fields[1], "19801212 14:30:00 CST")

    assert harness(ask, head=respond) == [None, None]
    assert len(notices) == 1
    assert "head timestamps" in notices[0]


def test_an_unknown_refusal_reduces_the_concurrency(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """It may mean too many requests, so the concurrency is halved."""

    def respond(client: Any, fields: list[str]) -> None:
        received.append(fields[1])
        if len(received) == 1:
            client.error(fields[1], 162, f"{SPANISH_HMDS}otra cosa")
        else:
            replies.send_bars(client, fields)

    async def ask(source: GatewaySource) -> tuple[int, int]:
        before = source.concurrency
        with pytest.raises(BadAnswerError, match="language to English"):
            await source.bars(minute_request)
        await source.bars(minute_request)
        return before, source.concurrency

    received: list[str] = []
    before, after = harness(ask, bars=respond)
    assert after < before
