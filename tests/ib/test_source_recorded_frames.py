"""Published frames of live gateways, read to the right values.

The moments in text form are those of formatDate 1; the product requests epoch seconds and reads
both.
"""

import asyncio
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, Origin, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import RequestRejectedError
from ktrdr_pipelines.ib.connection.accounts import AccountFilter, origin_of
from ktrdr_pipelines.ib.protocol.bar_messages import bars_of, history_of, reach_of
from ktrdr_pipelines.ib.protocol.contract_messages import candidate_of
from ktrdr_pipelines.ib.protocol.error_codes import ErrorFrame, error_for
from ktrdr_pipelines.ib.protocol.schedule_messages import details_days
from tests.support.recorded_frames import (
    BAR_SIZE_REFUSED,
    BOND,
    EURUSD_HOURS,
    MES_DETAILS,
    TESLA_DAYS,
    TESLA_DETAILS,
)


def at(text: str) -> datetime:
    """Return a moment in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def instrument_of(
    instrument: Instrument, calendar: str, what: WhatToShow, sec_type: SecType
) -> Instrument:
    """Return an instrument of a calendar."""
    return replace(
        instrument, calendar=calendar, what_to_show=what, sec_type=sec_type, use_rth=False
    )


def test_a_complete_response_of_daily_bars(aapl: Instrument) -> None:
    """8 D to a Sunday are 8 sessions, of which three lie before the stated start."""
    history = history_of(BOND.split(","))
    pair = instrument_of(aapl, "XNYS.RTH", WhatToShow.MIDPOINT, SecType.CASH)
    found = bars_of(history, Series(pair, Timeframe.D1))
    days = found.bars["session_date"].to_pylist()
    assert (days[0], days[-1], len(days)) == (date(2025, 4, 2), date(2025, 4, 11), 8)
    assert found.bars["close"].to_pylist()[-1] == 99.90522
    for name in ("volume", "average", "bar_count"):
        assert found.bars[name].null_count == 8
    assert reach_of(history) == Interval(at("2025-04-05T21:56"), at("2025-04-13T21:56"))


def test_hours_of_a_currency_begin_at_a_quarter_past(aapl: Instrument) -> None:
    """Moments in text form name their zone."""
    history = history_of(EURUSD_HOURS.replace(",718,", ",3,").split(","))
    found = bars_of(
        history, Series(instrument_of(aapl, "FX", WhatToShow.MIDPOINT, SecType.CASH), Timeframe.H1)
    )
    assert [f"{one:%Y-%m-%d %H:%M}" for one in found.bars["ts"].to_pylist()] == [
        "2022-12-29 22:15",
        "2022-12-29 23:00",
        "2022-12-30 00:00",
    ]
    assert found.bars["session_date"].to_pylist() == [date(2022, 12, 30)] * 3
    reach = reach_of(history)
    assert reach is not None
    assert found.bars["ts"].to_pylist()[0] < reach.start


def test_volume_in_lots_is_kept(aapl: Instrument) -> None:
    """Older gateways send hundreds of shares; without a zone there is no range."""
    history = history_of(TESLA_DAYS.split("|"))
    found = bars_of(history, Series(aapl, Timeframe.D1))
    assert found.bars["volume"].to_pylist() == [948837.22, 810998.27]
    assert found.bars["bar_count"].to_pylist() == [324891, 277547]
    assert found.implausible == ()
    assert reach_of(history) is None


def test_flat_bars_of_untraded_minutes_are_bars(aapl: Instrument) -> None:
    """https://github.com/ib-api-reloaded/ib_async/issues/23: SPY outside regular hours."""
    timestamp = int(at("2024-06-07T23:39").timestamp())
    rows = [
        *(str(timestamp), "537.13", "537.13", "537.13", "537.13", "0.0", "537.13", "0"),
        *(str(timestamp + 240), "537.13", "537.15", "537.13", "537.15", "200", "537.14", "1"),
    ]
    found = bars_of(
        history_of(["17", "1", "", "", "2", *rows]),
        Series(replace(aapl, calendar="XNYS.ETH", use_rth=False), Timeframe.M1),
    )
    assert found.bars["volume"].to_pylist() == [0.0, 200.0]
    assert found.bars["bar_count"].to_pylist() == [0, 1]
    assert found.implausible == ()


def test_details_of_a_stock(aapl: Instrument) -> None:
    """Closed days, all hours and regular ones; the lists contain commas."""
    found = candidate_of(TESLA_DETAILS.split("|"), 178)
    assert (found.contract_id, found.primary_exchange, found.zone) == (
        76792991,
        "NASDAQ",
        "US/Eastern",
    )
    assert (found.last_trade_date, found.expires) == ("", "")
    days = details_days(aapl, found)
    assert [one.day for one in days if not one.parts] == [
        date(2022, 12, 31),
        date(2023, 1, 1),
        date(2023, 1, 2),
    ]
    assert days[0].parts == (Interval(at("2022-12-29T14:30"), at("2022-12-29T21:00")),)
    extended = details_days(replace(aapl, use_rth=False, calendar="XNYS.ETH"), found)
    assert extended[0].parts == (Interval(at("2022-12-29T09:00"), at("2022-12-30T01:00")),)


@pytest.mark.parametrize(
    ("calendar", "zone", "hours", "expected"),
    [
        # EURUSD, nautilus_trader's stubs (2022-12-06).
        (
            "FX",
            "US/Eastern",
            "20221205:1715-20221206:1700;20221210:CLOSED;20221211:1715-20221212:1700",
            [
                "2022-12-06 05 22:15-06 22:00",
                "2022-12-10 closed",
                "2022-12-12 11 22:15-12 22:00",
            ],
        ),
        # MES, ib_async issue 128: 12:15 on Christmas Eve, no segment on a full holiday.
        (
            "GLOBEX.EQUITY",
            "US/Central",
            MES_DETAILS.split(",")[26],
            [
                "2025-12-23 22 23:00-23 22:00",
                "2025-12-24 23 23:00-24 18:15",
                "2025-12-26 25 23:00-26 22:00",
                "2025-12-27 closed",
                "2025-12-29 28 23:00-29 22:00",
            ],
        ),
        # E4A, nautilus_trader's stubs (2024-07-20).
        (
            "GLOBEX.EQUITY",
            "US/Central",
            "20240720:CLOSED;20240721:1700-20240722:1500",
            ["2024-07-20 closed", "2024-07-22 21 22:00-22 20:00"],
        ),
        # SPX, a test with sampled strings (2026-05-14).
        (
            "XNYS.RTH",
            "US/Central",
            "20260514:0830-20260514:1500;20260516:CLOSED",
            ["2026-05-14 14 13:30-14 20:00", "2026-05-16 closed"],
        ),
        # BTC, an author's word (2026-05-07); the zone is a guess.
        (
            "CRYPTO",
            "America/New_York",
            "20260507:1601-20260508:1600;20260509:CLOSED",
            ["2026-05-08 07 20:01-08 20:00", "2026-05-09 closed"],
        ),
    ],
)
def test_trading_hours(
    aapl: Instrument, calendar: str, zone: str, hours: str, expected: list[str]
) -> None:
    """Each session has the date of its market."""
    known = candidate_of(TESLA_DETAILS.split("|"), 178)
    candidate = replace(known, zone=zone, trading_hours=hours)
    days = details_days(replace(aapl, calendar=calendar, use_rth=False), candidate)
    assert [
        f"{one.day} "
        + ("".join(f"{part.start:%d %H:%M}-{part.end:%d %H:%M}" for part in one.parts) or "closed")
        for one in days
    ] == expected


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (321, BAR_SIZE_REFUSED),
        # https://github.com/nautechsystems/nautilus_trader/issues/2616
        (10339, "Setting end date/time for continuous future security type is not allowed."),
        # https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/pull/260
        (10299, "Expected what to show is AGGTRADES, please use that instead of TRADES."),
        # https://github.com/atreyuxtrading/atreyu-backtrader-api/issues/6: an older wording.
        (
            10314,
            "End Date/Time: The date, time, or time-zone entered is invalid. The correct format is",
        ),
    ],
)
def test_refusals(code: int, text: str) -> None:
    """The same request would be refused again."""
    assert isinstance(error_for(ErrorFrame(1, code, text), "AAPL 1w"), RequestRejectedError)


@pytest.mark.parametrize(
    "greeting",
    [
        # https://github.com/wboayue/rust-ibapi/issues/233
        b"20250408 01:25:20 British Summer Time",
        # https://github.com/wboayue/rust-ibapi/pull/364: not UTF-8
        "20260107 09:00:00 中国标准时间".encode("gb2312"),
        b"20260107 09:00:00 China Standard Time",
    ],
)
def test_greetings_with_names_of_the_system(
    harness: Any, aapl: Instrument, greeting: bytes
) -> None:
    """The zone of the greeting is not needed."""

    def greet(client: Any) -> None:
        body = b"173\0" + greeting + b"\0"
        client.raw(len(body).to_bytes(4) + body)

    assert harness(lambda source: source.contract_id(aapl), greet=greet) == 265598


def test_a_list_of_accounts_ends_with_a_comma(harness: Any, aapl: Instrument) -> None:
    """https://github.com/wrighter/ib-scripts/issues/9: nothing follows it."""
    known = AccountFilter()
    account = "DU" + "0" * 7
    body = f"15\x001\x00{account},\x00".encode()
    known.cleaned(len(body).to_bytes(4) + body)
    assert known.announced == (account,)
    assert origin_of(known.announced) is Origin.IB
    assert origin_of(("SIM" + "0" * 7,)) is Origin.SIMULATED

    async def ask(source: Any) -> Origin:
        await asyncio.sleep(0)
        return source.origin

    assert harness(ask, account="SIM" + "0" * 7 + ",") is Origin.SIMULATED
