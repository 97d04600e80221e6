"""Bar size strings: after a refusal the next one is tried, and the accepted one is remembered."""

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
from tests.ib.pacing_support import bars, send
from tests.ib.scripted_gateway import HMDS, SPANISH_HMDS
from tests.support.recorded_frames import BAR_SIZE_REFUSED

LISTED = BAR_SIZE_REFUSED.rpartition("Legal ones are: ")[2]
INVALID = "Historical data bar size setting is invalid."
REFUSED = (321, BAR_SIZE_REFUSED)

REFUSALS = [
    REFUSED,
    (321, f"Error validating request.-'bK' : cause - {INVALID}"),
    (162, f"{HMDS}{INVALID}"),
    (162, f"{SPANISH_HMDS}{INVALID} Legal ones are: {LISTED}"),
    (321, f"Fehler bei der Prüfung der Anfrage.-'bK' : Grund - ungültig. Erlaubt sind: {LISTED}"),
    (321, f"验证请求时出错.-'bK' : 合法的是\uff1a{LISTED}"),
]


def weeks(aapl: Instrument, duration: str = "1 Y") -> BarRequest:
    """Return a request for weekly bars up to now."""
    return BarRequest(Series(aapl, Timeframe.W1), None, duration)


def sizes_of(gateway: Any) -> list[str]:
    """Return the bar size strings of the requests for bars, in order."""
    return [fields[16] for fields in gateway.frames(20)]


def accepting(replies: Any, *accepted: str, refusal: tuple[int, str] = REFUSED) -> Any:
    """Return a handler that sends bars for some bar size strings, and refuses others."""

    def bars(client: Any, fields: list[str]) -> None:
        if fields[16] not in accepted:
            client.error(fields[1], *refusal)
        elif fields[16].casefold().endswith(("day", "d", "week", "w", "wk")):
            client.raw(replies.history(fields[1], replies.bar("20251219"), replies.bar("20251226")))
        else:
            client.raw(replies.history(fields[1], replies.bar(replies.first)))

    return bars


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_week_is_requested_by_the_other_string_after_a_refusal(
    harness: Any, aapl: Instrument, replies: Any, refusal: Any
) -> None:
    """Refusals list 1W, whatever their code and the language around the list."""
    bars = accepting(replies, "1W", refusal=refusal)
    answer = harness(lambda source: source.bars(weeks(aapl)), bars=bars)
    assert answer.bars.num_rows == 2
    assert sizes_of(harness.gateway) == ["1 week", "1W"]


def test_the_accepted_string_is_remembered(harness: Any, aapl: Instrument, replies: Any) -> None:
    """The connection and all later ones begin with the accepted string."""

    async def ask(source: Any) -> None:
        await source.bars(weeks(aapl))
        await source.bars(weeks(aapl, "2 Y"))
        async with harness.source() as later:
            await later.bars(weeks(aapl, "3 Y"))

    harness(ask, bars=accepting(replies, "1W"))
    assert sizes_of(harness.gateway) == ["1 week", "1W", "1W", "1W"]


def test_a_remembered_string_that_is_refused_later_leads_to_the_others(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """A gateway of another version may accept the documented string only."""

    async def ask(source: Any) -> None:
        await source.bars(weeks(aapl))
        harness.gateway.script.bars = accepting(replies, "1 week")
        await source.bars(weeks(aapl, "2 Y"))
        await source.bars(weeks(aapl, "3 Y"))
        async with harness.source() as later:
            await later.bars(weeks(aapl, "4 Y"))

    harness(ask, bars=accepting(replies, "1W"))
    assert sizes_of(harness.gateway) == ["1 week", "1W", "1W", "1 week", "1 week", "1 week"]


def test_an_empty_response_shows_that_the_string_is_accepted(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """The string is remembered after a response without bars, too."""
    empty = (162, f"{HMDS}HMDS query returned no data: A")

    def bars(client: Any, fields: list[str]) -> None:
        client.error(fields[1], *(REFUSED if fields[16] == "1 week" else empty))

    async def ask(source: Any) -> list[Any]:
        return [await source.bars(weeks(aapl, duration)) for duration in ("1 Y", "2 Y")]

    assert all(isinstance(one, NoData) for one in harness(ask, bars=bars))
    assert sizes_of(harness.gateway) == ["1 week", "1W", "1W"]


def test_if_every_string_is_refused_the_error_names_them_and_the_list(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """A request sends each string once."""
    with pytest.raises(BarSizeRefusedError) as caught:
        harness(lambda source: source.bars(weeks(aapl)), bars=accepting(replies))
    assert sizes_of(harness.gateway) == ["1 week", "1W"]
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
    harness: Any, aapl: Instrument, replies: Any, timeframe: Timeframe, listed: str, accepted: str
) -> None:
    """A listed string of the timeframe's length is tried, although no table has it."""
    refusal = (321, f"Error validating request.-'bK' : cause - Legal ones are: {listed}")
    bars = accepting(replies, accepted, refusal=refusal)
    request = BarRequest(Series(aapl, timeframe), None, "5 D")
    assert harness(lambda source: source.bars(request), bars=bars).bars.num_rows >= 1
    assert sizes_of(harness.gateway) == [timeframe.ib_bar_size, accepted]


def test_requests_that_are_refused_together_fall_back_once_each(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """Several requests may be in flight before a string is learned."""
    held: list[Any] = []

    def bars(client: Any, fields: list[str]) -> None:
        if fields[16] == "1W":
            accepting(replies, "1W")(client, fields)
            return
        held.append(fields[1])
        if len(held) == 3:
            for number in held:
                client.error(number, *REFUSED)

    async def ask(source: Any) -> Any:
        durations = ("1 Y", "2 Y", "3 Y")
        return await asyncio.gather(*(source.bars(weeks(aapl, one)) for one in durations))

    assert len(harness(ask, bars=bars)) == 3
    assert sorted(sizes_of(harness.gateway)) == ["1 week"] * 3 + ["1W"] * 3


def test_the_second_request_is_one_of_its_own_for_the_budget(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """Both requests are counted as sent."""
    sent: list[int] = []

    async def ask(source: Any) -> Any:
        return await source.bars(weeks(aapl), sent=lambda: sent.append(1))

    harness(ask, bars=accepting(replies, "1W"))
    assert len(sent) == 2


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (162, f"{SPANISH_HMDS}invalid step: 1", RequestTooLongError),
        (321, f"Error : cause - Time length exceed max. Sizes: {LISTED}", RequestTooLongError),
        (321, "Error validating request.-'bM' : cause - Invalid duration", RequestRejectedError),
    ],
)
def test_another_refusal_tries_no_other_string(
    harness: Any, aapl: Instrument, replies: Any, *, code: int, text: str, kind: Any
) -> None:
    """A refusal for length or another cause is raised as it is."""
    bars = accepting(replies, "1W", refusal=(code, text))
    with pytest.raises(kind) as caught:
        harness(lambda source: source.bars(weeks(aapl)), bars=bars)
    assert type(caught.value) is kind
    assert sizes_of(harness.gateway) == ["1 week"]


def test_a_schedule_falls_back_as_daily_bars_do(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """A schedule has a bar size too, and shares the learned string with bars."""

    def bars(client: Any, fields: list[str]) -> None:
        if fields[16] != "1D":
            client.error(fields[1], 321, f"cause - {INVALID}")
        elif fields[19] == "SCHEDULE":
            client.send(
                *(106, fields[1], "20260105-09:30:00", "20260105-16:00:00", "US/Eastern", 1),
                *("20260105-09:30:00", "20260105-16:00:00", "20260105"),
            )
        else:
            accepting(replies, "1D")(client, fields)

    async def ask(source: Any) -> Any:
        days = await source.schedule(aapl, datetime(2026, 1, 6, tzinfo=UTC), 1)
        request = replace(weeks(aapl), series=Series(aapl, Timeframe.D1))
        return days, await source.bars(request)

    days, answer = harness(ask, bars=bars)
    assert len(days) == 1
    assert answer.bars.num_rows == 2
    assert sizes_of(harness.gateway) == ["1 day", "1D", "1D"]


def test_the_accepted_string_outlasts_a_restart_of_the_machine(rate_limiter: Any) -> None:
    """The accepted string depends on the gateway's software, not on the boot."""
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


def test_a_list_of_durations_is_none_of_bar_sizes(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """A refusal of the duration is raised as such, and no other bar size is tried."""
    text = "cause - Historical data duration is wrong. Legal ones are: 86400 S, 365 D, 52 W, 68 Y"

    def bars(client: Any, fields: list[str]) -> None:
        client.error(fields[1], 321, f"Error validating request.-'bK' : {text}")

    with pytest.raises(RequestRejectedError) as caught:
        harness(lambda source: source.bars(weeks(aapl)), bars=bars)
    assert not isinstance(caught.value, BarSizeRefusedError)
    assert sizes_of(harness.gateway) == ["1 week"]
