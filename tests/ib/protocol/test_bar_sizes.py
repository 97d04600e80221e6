"""Bar size strings: a refusal of one leads to the next, and what works is remembered."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from ib_async.contract import Contract

from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import BarSizeRefusedError, RequestRejectedError, RequestTooLongError
from ktrdr_pipelines.ib.protocol.bar_sizes import BarSizes
from ktrdr_pipelines.ib.protocol.requests import HistoryQuery
from tests.ib.paced import bars, send

LISTED = (
    "1 secs, 5 secs, 10 secs, 15 secs, 30 secs, 1 min, 2 mins, 3 mins, 5 mins, 10 mins, 15 mins, "
    "20 mins, 30 mins, 1 hour, 2 hours, 3 hours, 4 hours, 8 hours, 1 day, 1W, 1M"
)
INVALID = "Historical data bar size setting is invalid."
REFUSED = (321, f"Error validating request.-'bK' : cause - {INVALID} Legal ones are: {LISTED}")
"""From https://github.com/wboayue/rust-ibapi/pull/245 (2025-05-13)."""

SPANISH = "Mensaje de error de los servicios de datos de mercado históricos:"
"""From https://github.com/wrighter/ib-scripts/issues/1 (2022-08-21)."""

REFUSED_IN_OTHER_WORDS = [
    REFUSED,
    (321, f"Error validating request.-'bK' : cause - {INVALID}"),
    (162, f"Historical Market Data Service error message:{INVALID}"),
    (162, f"{SPANISH}{INVALID} Legal ones are: {LISTED}"),
    (321, f"Fehler bei der Prüfung der Anfrage.-'bK' : Grund - ungültig. Erlaubt sind: {LISTED}"),
    (321, f"验证请求时出错.-'bK' : 合法的是\uff1a{LISTED}"),
]


def weeks(aapl: Instrument, duration: str = "1 Y") -> BarRequest:
    """Make a request for weekly bars up to now."""
    return BarRequest(Series(aapl, Timeframe.W1), None, duration)


def sizes_of(gateway: Any) -> list[str]:
    """Give the bar size strings of the requests for bars, in their order."""
    return [fields[16] for fields in gateway.what(20)]


def accepting(words: Any, *accepted: str, refusal: tuple[int, str] = REFUSED) -> Any:
    """Answer with bars where the bar size is one of these strings, and refuse others."""

    def bars(talk: Any, fields: list[str]) -> None:
        if fields[16] not in accepted:
            talk.error(fields[1], *refusal)
        elif fields[16].casefold().endswith(("day", "d", "week", "w", "wk")):
            talk.raw(words.history(fields[1], words.bar("20251219"), words.bar("20251226")))
        else:
            talk.raw(words.history(fields[1], words.bar(words.first)))

    return bars


@pytest.mark.parametrize("refusal", REFUSED_IN_OTHER_WORDS)
def test_a_week_is_requested_by_the_other_string_after_a_refusal(
    bench: Any, aapl: Instrument, words: Any, refusal: Any
) -> None:
    """Refusals list 1W, whatever their code and the language around the list."""
    bars = accepting(words, "1W", refusal=refusal)
    answer = bench(lambda source: source.bars(weeks(aapl)), bars=bars)
    assert answer.bars.num_rows == 2
    assert sizes_of(bench.gateway) == ["1 week", "1W"]


def test_what_the_gateway_accepts_is_remembered(bench: Any, aapl: Instrument, words: Any) -> None:
    """A connection and all later ones begin with the string that worked."""

    async def ask(source: Any) -> None:
        await source.bars(weeks(aapl))
        await source.bars(weeks(aapl, "2 Y"))
        async with bench.source() as later:
            await later.bars(weeks(aapl, "3 Y"))

    bench(ask, bars=accepting(words, "1W"))
    assert sizes_of(bench.gateway) == ["1 week", "1W", "1W", "1W"]


def test_a_remembered_string_that_is_refused_later_leads_to_the_others(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """A gateway of another version may take the documented string alone."""

    async def ask(source: Any) -> None:
        await source.bars(weeks(aapl))
        bench.gateway.script.bars = accepting(words, "1 week")
        await source.bars(weeks(aapl, "2 Y"))
        await source.bars(weeks(aapl, "3 Y"))
        async with bench.source() as later:
            await later.bars(weeks(aapl, "4 Y"))

    bench(ask, bars=accepting(words, "1W"))
    assert sizes_of(bench.gateway) == ["1 week", "1W", "1W", "1 week", "1 week", "1 week"]


def test_an_empty_response_shows_that_the_string_is_accepted(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Whether there are bars is another matter."""
    empty = (162, "Historical Market Data Service error message:HMDS query returned no data: A")

    def bars(talk: Any, fields: list[str]) -> None:
        talk.error(fields[1], *(REFUSED if fields[16] == "1 week" else empty))

    async def ask(source: Any) -> list[Any]:
        return [await source.bars(weeks(aapl, duration)) for duration in ("1 Y", "2 Y")]

    assert all(isinstance(one, NoData) for one in bench(ask, bars=bars))
    assert sizes_of(bench.gateway) == ["1 week", "1W", "1W"]


def test_where_every_string_is_refused_the_error_names_them_and_the_list(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Each is sent once a request: there is no loop."""
    with pytest.raises(BarSizeRefusedError) as caught:
        bench(lambda source: source.bars(weeks(aapl)), bars=accepting(words))
    assert sizes_of(bench.gateway) == ["1 week", "1W"]
    assert caught.value.code == 321
    assert f"'1 week' and '1W'; it lists {LISTED}" in caught.value.reason
    assert "remove 1w from the timeframes" in caught.value.hint
    assert not caught.value.retry


@pytest.mark.parametrize(
    ("timeframe", "listed", "accepted"),
    [
        (Timeframe.W1, "1s, 1m, 1h, 1d, 1wk, 1M", "1wk"),
        (Timeframe.M1, "1 secs, 1 minute, 2 minutes, 1 hour, 1M", "1 minute"),
        (Timeframe.H1, "30 mins, 60 mins, 120 mins, 1 day", "60 mins"),
        (Timeframe.D1, "30 mins, 60 mins, 24 hours, 1 d, 1W", "1 d"),
    ],
)
def test_a_string_of_the_gateways_own_list_is_used(
    bench: Any, aapl: Instrument, words: Any, timeframe: Timeframe, listed: str, accepted: str
) -> None:
    """What has the length of the timeframe is tried, though it is in no table."""
    refusal = (321, f"Error validating request.-'bK' : cause - Legal ones are: {listed}")
    bars = accepting(words, accepted, refusal=refusal)
    request = BarRequest(Series(aapl, timeframe), None, "5 D")
    assert bench(lambda source: source.bars(request), bars=bars).bars.num_rows >= 1
    assert sizes_of(bench.gateway) == [timeframe.ib_bar_size, accepted]


def test_requests_that_are_refused_together_fall_back_once_each(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """At the start several are on their way before anything is learned."""
    held: list[Any] = []

    def bars(talk: Any, fields: list[str]) -> None:
        if fields[16] == "1W":
            accepting(words, "1W")(talk, fields)
            return
        held.append(fields[1])
        if len(held) == 3:
            for number in held:
                talk.error(number, *REFUSED)

    async def ask(source: Any) -> Any:
        durations = ("1 Y", "2 Y", "3 Y")
        return await asyncio.gather(*(source.bars(weeks(aapl, one)) for one in durations))

    assert len(bench(ask, bars=bars)) == 3
    assert sorted(sizes_of(bench.gateway)) == ["1 week"] * 3 + ["1W"] * 3


def test_the_second_request_is_one_of_its_own_for_the_budget(
    bench: Any, aapl: Instrument, words: Any
) -> None:
    """Both are counted where sent requests are."""
    sent: list[int] = []

    async def ask(source: Any) -> Any:
        return await source.bars(weeks(aapl), sent=lambda: sent.append(1))

    bench(ask, bars=accepting(words, "1W"))
    assert len(sent) == 2


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (162, f"{SPANISH}invalid step: 1", RequestTooLongError),
        (321, f"Error : cause - Time length exceed max. Sizes: {LISTED}", RequestTooLongError),
        (321, "Error validating request.-'bM' : cause - Invalid duration", RequestRejectedError),
    ],
)
def test_another_refusal_attempts_no_other_string(
    bench: Any, aapl: Instrument, words: Any, *, code: int, text: str, kind: Any
) -> None:
    """A refusal for length, or for anything else, is what it is."""
    bars = accepting(words, "1W", refusal=(code, text))
    with pytest.raises(kind) as caught:
        bench(lambda source: source.bars(weeks(aapl)), bars=bars)
    assert type(caught.value) is kind
    assert sizes_of(bench.gateway) == ["1 week"]


def test_a_schedule_falls_back_as_daily_bars_do(bench: Any, aapl: Instrument, words: Any) -> None:
    """It is a request with a bar size, and what one learned the other uses."""

    def bars(talk: Any, fields: list[str]) -> None:
        if fields[16] != "1D":
            talk.error(fields[1], 321, f"cause - {INVALID}")
        elif fields[19] == "SCHEDULE":
            talk.send(
                *(106, fields[1], "20260105-09:30:00", "20260105-16:00:00", "US/Eastern", 1),
                *("20260105-09:30:00", "20260105-16:00:00", "20260105"),
            )
        else:
            accepting(words, "1D")(talk, fields)

    async def ask(source: Any) -> Any:
        days = await source.schedule(aapl, datetime(2026, 1, 6, tzinfo=UTC), 1)
        request = replace(weeks(aapl), series=Series(aapl, Timeframe.D1))
        return days, await source.bars(request)

    days, answer = bench(ask, bars=bars)
    assert len(days) == 1
    assert answer.bars.num_rows == 2
    assert sizes_of(bench.gateway) == ["1 day", "1D", "1D"]


def test_what_is_accepted_outlasts_a_restart_of_the_machine(rate_limiter: Any) -> None:
    """It belongs to the gateway's software; widths and pauses are of one run of the machine."""
    attempted: list[str] = []

    async def request(sized: HistoryQuery) -> str:
        attempted.append(sized.bar_size)
        if sized.bar_size != "1W":
            raise BarSizeRefusedError("bars", reason=REFUSED[1], code=321)
        return sized.bar_size

    async def after(boot: str) -> None:
        process = rate_limiter(boot)
        await send(process, bars("end"))
        query = HistoryQuery("bars", Contract(), "TRADES", use_rth=True, timeframe=Timeframe.W1)
        await BarSizes(process).accepted(query, request)

    asyncio.run(after("first"))
    asyncio.run(after("second"))
    assert attempted == ["1 week", "1W", "1W"]


def test_a_list_of_durations_is_none_of_bar_sizes(bench: Any, aapl: Instrument, words: Any) -> None:
    """A refusal of the duration is told as it is, and no other bar size is tried."""
    text = "cause - Historical data duration is wrong. Legal ones are: 86400 S, 365 D, 52 W, 68 Y"

    def bars(talk: Any, fields: list[str]) -> None:
        talk.error(fields[1], 321, f"Error validating request.-'bK' : {text}")

    with pytest.raises(RequestRejectedError) as caught:
        bench(lambda source: source.bars(weeks(aapl)), bars=bars)
    assert not isinstance(caught.value, BarSizeRefusedError)
    assert sizes_of(bench.gateway) == ["1 week"]
