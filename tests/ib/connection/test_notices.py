"""What a person is told of how a gateway answers: zones that are not known, other languages."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, Response
from ktrdr_pipelines.errors import (
    BadAnswerError,
    ContractAmbiguousError,
    ContractUnclearError,
    ContractUnknownError,
    GatewayError,
    PacingError,
    RequestRejectedError,
    RequestTooLongError,
    UnknownZoneError,
)
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, error_for, is_english
from ktrdr_pipelines.ib.source import GatewaySource
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy

SPANISH = "Mensaje de error de los servicios de datos de mercado hist\u00f3ricos:"
"""Grade L: https://github.com/wrighter/ib-scripts/issues/1"""
GERMAN = "Es wurde keine Wertpapierdefinition zu der Anfrage gefunden"
"""Grade L: https://github.com/pst-group/pysystemtrade/issues/1270"""
END = datetime(2026, 1, 6, tzinfo=UTC)
ENGLISH = "Historical Market Data Service error message:"


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (162, f"{SPANISH}invalid step: 1", RequestTooLongError),
        (162, f"{SPANISH}Historical data request pacing violation", PacingError),
        (162, f"{SPANISH}No historical market data for EUR/CASH@FXSUBPIP Last 300", None),
        (162, f"{SPANISH}otra cosa", BadAnswerError),
        (162, f"{SPANISH}HMDS query timed out: AAPL@SMART Trades", BadAnswerError),
        (162, f"{ENGLISH}HMDS query timed out: AAPL@SMART Trades", BadAnswerError),
        (162, f"{ENGLISH}Query failed: AAPL@SMART Trades", BadAnswerError),
        (162, f"{ENGLISH}HMDS is busy: AAPL@SMART Trades", BadAnswerError),
        (200, GERMAN, ContractUnclearError),
        (200, "Die Kontraktbeschreibung f\u00fcr AAPL ist mehrdeutig", ContractUnclearError),
        (200, "No security definition has been found for the request", ContractUnknownError),
        (200, "The contract description specified for AAPL is ambiguous.", ContractAmbiguousError),
        (200, "Invalid destination or exchange selected for the order", ContractUnclearError),
        (321, "Fehler beim Pr\u00fcfen der Anfrage.-'bK' : Grund - unbekannt", None),
    ],
)
def test_a_text_in_another_language_is_not_taken_for_something_else(
    code: int, text: str, kind: type[GatewayError] | None
) -> None:
    """IB's own words behind the translation count; else the code alone."""
    error = error_for(ErrorFrame(7, code, text), "AAPL 1d")
    assert type(error) is (kind or RequestRejectedError)


@pytest.mark.parametrize(
    "text",
    [
        f"{SPANISH}HMDS query returned no data: T@SMART Trades",
        "Servicio de datos hist\u00f3ricos:La consulta no devolvi\u00f3 datos: T@SMART Trades",
        "\\xc0\\xfa\\xca\\xb7\\xca\\xfd\\xbe\\xdd: EUR.USD@IDEALPRO Midpoint",
    ],
)
def test_no_data_is_known_by_its_form(bench: Any, minute_request: BarRequest, text: str) -> None:
    """The query stands at its end in every language."""
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.error(fields[1], 162, text),
    )
    assert isinstance(answer, NoData)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (162, f"{ENGLISH}HMDS query returned no data: AAPL@SMART Trades"),
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
def test_english_texts_are_known_as_such(code: int, text: str) -> None:
    """A code that tells nothing of the language is not judged."""
    assert is_english(ErrorFrame(-1, code, text))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (162, f"{SPANISH}HMDS query returned no data: AAPL@SMART Trades"),
        (200, GERMAN),
        (2104, "Verbindung zum Marktdatenserver OK:usfarm"),
        (2106, "La conexi\u00f3n de datos hist\u00f3ricos es correcta:ushmds"),
        (1100, "Se ha perdido la conexi\u00f3n entre IBKR y Trader Workstation."),
    ],
)
def test_other_languages_are_known_as_such(code: int, text: str) -> None:
    """Some of these texts come at every login."""
    assert not is_english(ErrorFrame(-1, code, text))


def test_the_language_is_told_once(bench: Any, aapl: Instrument, words: Any) -> None:
    """However many texts come in it."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        for farm in ("usfarm", "eufarm", "hfarm"):
            talk.error(-1, 2104, f"Verbindung zum Marktdatenserver OK:{farm}")

    told: list[str] = []

    async def series_gaps(source: GatewaySource) -> None:
        source.notices.listen(told.append)
        with pytest.raises(ContractUnclearError, match="language to English"):
            await source.contract_id(aapl)

    bench(
        series_gaps, start=start, contract=lambda talk, fields: talk.error(fields[2], 200, GERMAN)
    )
    assert len(told) == 1
    assert "2104 Verbindung zum Marktdatenserver OK:usfarm" in told[0]
    assert "language" in told[0]


@pytest.mark.parametrize(
    ("reach", "zone"),
    [
        (("20260104 16:00:00 CST", "20260105 16:00:00 CST"), "'CST'"),
        (("20260104  16:00:00", "20260105  16:00:00"), "no time zone"),
        (("20260104 16:00:00 China Standard Time", "20260105-16:00:00"), "China Standard"),
    ],
)
def test_an_unknown_zone_of_responses_is_told_once(
    bench: Any, minute_request: BarRequest, words: Any, *, reach: tuple[str, str], zone: str
) -> None:
    """The bars are kept, and what the gateway states beside them is not used."""
    told: list[str] = []

    async def series_gaps(source: GatewaySource) -> list[Response | NoData]:
        source.notices.listen(told.append)
        return [await source.bars(minute_request) for _ in range(3)]

    answers = bench(
        series_gaps,
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], words.bar(words.first), reach=reach)
        ),
    )
    assert [answer.reach for answer in answers] == [None] * 3
    assert all(answer.bars.num_rows == 1 for answer in answers)
    assert len(told) == 1
    assert zone in told[0]
    assert "the range that responses state" in told[0]


@pytest.mark.parametrize("zone", ["GB", "GB-Eire", "MET", "Japan", "Hongkong", "EST5EDT", "PRC"])
def test_old_zone_names_keep_the_reach(
    bench: Any, minute_request: BarRequest, words: Any, zone: str
) -> None:
    """A gateway in such a zone loses nothing."""
    reach = (f"20260104 16:00:00 {zone}", f"20260105 16:00:00 {zone}")
    answer = bench(
        lambda source: source.bars(minute_request),
        bars=lambda talk, fields: talk.raw(
            words.history(fields[1], words.bar(words.first), reach=reach)
        ),
    )
    assert answer.reach is not None
    assert (answer.reach.end - answer.reach.start).days == 1


@pytest.fixture
def with_zone(words: Any) -> Callable[[str], Any]:
    """Make a gateway's details of AAPL whose hours are told in a zone."""

    def make(zone: str) -> Any:
        def tell(talk: Any, fields: list[str]) -> None:
            texts = [text.format(id=fields[2]) for text in words.details]
            texts[25] = zone
            texts[26] = texts[27] = "20260105:0930-20260105:1600"
            talk.send(*texts)
            talk.send(52, 1, fields[2])

        return tell

    return make


def test_hours_in_an_unknown_zone_tell_nothing_and_are_told_once(
    bench: Any, aapl: Instrument, with_zone: Any
) -> None:
    """They cost no request, and no retry either."""
    told: list[str] = []

    async def series_gaps(source: GatewaySource) -> list[Any]:
        source.notices.listen(told.append)
        return [await source.hours(aapl) for _ in range(2)]

    assert bench(series_gaps, contract=with_zone("CST")) == [[], []]
    assert len(told) == 1
    assert "trading hours" in told[0]
    [days] = bench(lambda source: source.hours(aapl), contract=with_zone("EST5EDT"))
    assert f"{days.parts[0].start:%H:%M}" == "14:30"


def test_a_schedule_in_an_unknown_zone_is_not_requested_again(bench: Any, aapl: Instrument) -> None:
    """The same request would bring the same: it is an error without a retry."""

    def tell(talk: Any, fields: list[str]) -> None:
        day = ("20260105-09:30:00", "20260105-16:00:00", "20260105")
        talk.send(106, fields[1], "20260101-00:00:00", "20260106-00:00:00", "CST", 1, *day)

    with pytest.raises(UnknownZoneError) as caught:
        bench(lambda source: source.schedule(aapl, END, 5), bars=tell)
    assert RetryPolicy(max_retries=3).delay_after(caught.value, 1) is None
    assert "America/New_York" in caught.value.hint


def test_a_head_in_an_unknown_zone_is_not_known_and_told_once(bench: Any, aapl: Instrument) -> None:
    """As where the gateway cannot say; nothing is requested again for it."""
    told: list[str] = []

    async def series_gaps(source: GatewaySource) -> list[Any]:
        source.notices.listen(told.append)
        return [await source.head(aapl) for _ in range(2)]

    def tell(talk: Any, fields: list[str]) -> None:
        talk.send(88, fields[1], "19801212 14:30:00 CST")

    assert bench(series_gaps, head=tell) == [None, None]
    assert len(told) == 1
    assert "head timestamps" in told[0]


def test_a_refusal_in_words_not_known_makes_requests_fewer(
    bench: Any, minute_request: BarRequest, words: Any
) -> None:
    """It may be a complaint about too many of them."""

    def tell(talk: Any, fields: list[str]) -> None:
        what.append(fields[1])
        if len(what) == 1:
            talk.error(fields[1], 162, f"{SPANISH}otra cosa")
        else:
            words.tell_bars(talk, fields)

    async def series_gaps(source: GatewaySource) -> tuple[int, int]:
        before = source.concurrency
        with pytest.raises(BadAnswerError, match="language to English"):
            await source.bars(minute_request)
        await source.bars(minute_request)
        return before, source.concurrency

    what: list[str] = []
    before, after = bench(series_gaps, bars=tell)
    assert after < before
