"""Assumptions about real gateways, taken from what others published, each with its requests.

The first five matter most. A test fails where the gateway differs from what the product relies on;
where the product relies on nothing, it only reports what was returned.
"""

import time
from collections import Counter
from datetime import UTC, datetime

import pytest
from ib_async.contract import Contract

from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.ib.protocol.times import written_moment
from tests.live.conftest import Bars, Client, Live

pytestmark = pytest.mark.live

BITCOIN = Contract(secType="CRYPTO", symbol="BTC", exchange="PAXOS", currency="USD")
GOLD = Contract(secType="FUT", symbol="GC", exchange="COMEX", currency="USD")
APPLE = Contract(
    secType="STK", symbol="AAPL", exchange="SMART", primaryExchange="NASDAQ", currency="USD"
)
THIN = Contract(secType="STK", symbol="T", exchange="SMART", primaryExchange="NYSE", currency="USD")
MORNING = datetime(2024, 6, 6, 14, tzinfo=UTC)
"""Half an hour after an open in New York, on a Thursday."""


def end_of(day: datetime) -> str:
    """Return an end as it is written in UTC."""
    return f"{day:%Y%m%d-%H:%M:%S}"


def test_hours_of_coins(live: Live) -> None:
    """Seen as 20260507:1601-20260508:1600;20260509:CLOSED; the zone was not shown."""
    [coin] = live.run(lambda client: client.details(BITCOIN))
    live.note(
        "hours of BTC",
        "sessions from 16:01 to 16:00 with closed days, or round the clock",
        f"{coin.zone}: {coin.trading_hours}",
    )
    assert coin.trading_hours


def test_schedule_of_coins(live: Live) -> None:
    """Its sessions may be those of the details or of UTC days, or the request is refused."""

    async def request(client: Client) -> str:
        try:
            fields = await client.raw(BITCOIN, "1 day", "14 D", what="SCHEDULE", use_rth=False)
        except GatewayError as error:
            return str(error)
        return f"zone {fields[4]}, {fields[5]} sessions: {', '.join(fields[6:12])} ..."

    live.note("schedule of BTC", "sessions like those of the details", live.run(request))


def test_daily_bars_of_coins(live: Live) -> None:
    """It is open whether weekends have bars, and of which day."""
    bars = live.run(
        lambda client: client.bars(BITCOIN, "1 day", "14 D", what="AGGTRADES", use_rth=False)
    )
    hours = live.run(
        lambda client: client.bars(BITCOIN, "1 hour", "7 D", what="AGGTRADES", use_rth=False)
    )
    moments = [datetime.fromtimestamp(int(text), UTC) for text in hours.timestamps]
    weekend = sum(one.weekday() >= 5 for one in moments)
    seen = f"{', '.join(bars.timestamps)}; {weekend} of {len(moments)} hours on weekends"
    live.note("daily bars of BTC", "one a session, dated by its close", seen)
    assert bars.rows


def test_last_trade_dates_of_gold(live: Live) -> None:
    """They are written in the zone of the login, such as 20260225 19:30:00 Europe/Zurich."""
    found = live.run(lambda client: client.details(GOLD))
    seen = "; ".join(
        f"{one.local_symbol} {one.written_date} means {one.last_trade_date}, expires {one.expires}"
        for one in found[:5]
    )
    live.note("last trade dates of GC", "a zone that is known; expires on the date meant", seen)
    assert found
    assert not {one.unknown_zone for one in found} - {""}
    assert all(one.expires in {"", one.last_trade_date} for one in found)


@pytest.mark.parametrize("text", ["1 week", "1W"])
def test_weekly_bars(live: Live, text: str) -> None:
    """Refusals list 1W; 1 week was accepted in 2017. One of the two must be accepted."""
    end = end_of(MORNING)
    error = live.refusal(lambda client: client.bars(APPLE, text, "8 W", end=end))
    live.note(f"bar size {text!r}", "accepted", error or "accepted")
    if error is not None:
        other = "1W" if text == "1 week" else "1 week"
        assert live.refusal(lambda client: client.bars(APPLE, other, "8 W", end=end)) is None


def test_seconds_are_trading_seconds(live: Live) -> None:
    """7200 S across an open holds 24 bars of 5 minutes where seconds count trading."""
    opened = MORNING.replace(hour=15, minute=0)
    bars = live.run(lambda client: client.bars(APPLE, "5 mins", "7200 S", end=end_of(opened)))
    live.note(
        "7200 S across an open", "24 bars", f"{len(bars.rows)} bars from {bars.timestamps[:1]}"
    )
    assert len(bars.rows) == 24


def test_minutes_of_extended_hours(live: Live) -> None:
    """Untraded minutes may come as flat bars of volume 0; a day begins with its first trade."""
    end = end_of(MORNING.replace(hour=0))
    bars = live.run(lambda client: client.bars(THIN, "1 min", "1 D", end=end, use_rth=False))
    flat = [row for row in bars.rows if float(row[5]) == 0 and int(row[7]) == 0]
    first = datetime.fromtimestamp(int(bars.timestamps[0]), UTC)
    live.note(
        "minutes of T in extended hours",
        "flat bars of volume 0 and count 0, or none where nothing was traded",
        f"{len(bars.rows)} bars, {len(flat)} of them flat and empty, the first {first:%H:%M}Z",
    )
    assert all(len(set(row[1:5])) == 1 for row in flat)


@pytest.mark.parametrize(("duration", "size"), [("86401 S", "1 hour"), ("366 D", "1 day")])
def test_durations_that_are_too_long(live: Live, duration: str, size: str) -> None:
    """Beyond 86400 S and 365 D a request is refused by 321."""
    error = live.refusal(lambda client: client.bars(APPLE, size, duration, end=end_of(MORNING)))
    live.note(f"{duration} of {size}", "refused by 321", error or "accepted")
    assert error is not None
    assert error.code == 321


def test_the_range_that_is_stated(live: Live) -> None:
    """It ends at the requested end and begins so many calendar days before, in a known zone."""
    end = MORNING
    bars = live.run(lambda client: client.bars(APPLE, "1 day", "8 D", end=end_of(end)))
    live.note(
        "range of 8 D",
        "8 calendar days up to the end, 8 sessions",
        f"{bars.start} to {bars.end}, {len(bars.rows)} bars",
    )
    start, stated = written_moment(bars.start), written_moment(bars.end)
    assert start is not None
    assert stated is not None
    assert stated.earliest() == end
    assert len(bars.rows) == 8


def test_an_end_before_the_first_trade(live: Live) -> None:
    """The response is error 162, or bars of the session before."""
    end = end_of(MORNING.replace(hour=8, minute=30))

    async def request(client: Client) -> str:
        try:
            bars = await client.bars(THIN, "1 min", "1 D", end=end, use_rth=False)
        except GatewayError as error:
            return str(error)
        days = Counter(
            f"{datetime.fromtimestamp(int(one), UTC):%Y-%m-%d}" for one in bars.timestamps
        )
        return ", ".join(f"{count} bars of {day}" for day, count in days.items())

    live.note("an end before the first trade", "162, or the session before", live.run(request))


def test_an_empty_end_is_fast(live: Live) -> None:
    """It was published as some thirty times faster than a request with an end."""

    async def request(client: Client) -> tuple[float, float]:
        async def took_s(end: str, duration: str) -> float:
            begun = time.monotonic()
            bars: Bars = await client.bars(APPLE, "1 min", duration, end=end)
            assert bars.rows
            return time.monotonic() - begun

        return await took_s("", "1 D"), await took_s(end_of(MORNING), "2 D")

    without, with_end = live.run(request)
    live.note(
        "an empty end", "faster than an end", f"{without:.2f} s without, {with_end:.2f} s with one"
    )


def test_the_language_of_the_gateway_is_english(live: Live) -> None:
    """Texts of other languages cannot always be recognized."""

    async def request(client: Client) -> str:
        await client.bars(APPLE, "1 day", "3 D")
        return client.connection.notices.foreign_text

    text = live.run(request)
    live.note("language", "English", text or "English")
    assert not text
