"""Estimates of a load, made without a request, and what the load then costs."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth, Trial, WidthSample
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.estimates import (
    ASSUMED_BAR_BYTES,
    Estimate,
    Rates,
    estimate,
    measured_rates,
    size_text,
    time_text,
)
from ktrdr_pipelines.store.ledger.ledger import Ledger, RequestRecord
from tests.support.fake_gateway import series_of, stock, utc
from tests.support.loading import World

MakeWorld = Callable[..., World]
SPRING = date(2024, 2, 1), date(2024, 6, 29)
NOW = utc(2024, 7, 1)


def estimated(world: World, rates: Rates | None = None) -> Estimate:
    """Return the estimate of what the world's series lacks."""
    missing = [(world.series, IntervalSet([world.wanted]))]
    return estimate(missing, Calendars(), rates=rates or Rates(), now=world.harness.gateway.time)


@pytest.mark.parametrize(
    ("calendar", "timeframe"),
    [
        ("XNYS.RTH", Timeframe.M1),
        ("FX", Timeframe.M5),
        ("XNYS.ETH", Timeframe.M15),
        ("XNYS.RTH", Timeframe.M30),
        ("FX", Timeframe.H1),
        ("XNYS.RTH", Timeframe.H1),
        ("XNYS.ETH", Timeframe.H4),
        ("XNYS.RTH", Timeframe.D1),
        ("FX", Timeframe.D1),
        ("FX", Timeframe.W1),
    ],
)
def test_a_load_costs_what_was_estimated(
    world: MakeWorld, calendar: str, timeframe: Timeframe
) -> None:
    """In a market without empty responses, requests and bars are exact.

    The fake gateway's grid is that of UTC, the calendar's that of the local clock: for 4h they
    differ by a bar in some sessions.
    """
    made = world(calendar, timeframe, *SPRING)
    before = estimated(made)
    assert made.harness.gateway.opened == 0
    report = made.load()
    assert report.is_complete
    assert before.requests == report.requests
    apart = abs(before.bars - report.added)
    assert apart <= (report.added // 4 if timeframe is Timeframe.H4 else 0)


def test_nothing_missing_costs_nothing() -> None:
    """The estimate of a series without gaps has zeros, and no basis."""
    series = series_of(stock(), Timeframe.M1)
    free = estimate([(series, IntervalSet())], Calendars(), rates=Rates(), now=NOW)
    assert (free.requests, free.bars, free.size_bytes, free.seconds) == (0, 0, 0, 0.0)
    assert free.basis == ""


def test_future_sessions_cost_nothing() -> None:
    """They are not due."""
    series = series_of(stock(), Timeframe.H1)
    calendar = calendar_named("XNYS.RTH")
    both = interval_between(calendar, Timeframe.H1, date(2024, 6, 24), date(2024, 7, 20))
    past = interval_between(calendar, Timeframe.H1, date(2024, 6, 24), date(2024, 6, 29))
    costs = [
        estimate([(series, IntervalSet([part]))], Calendars(), rates=Rates(), now=NOW)
        for part in (both, past)
    ]
    assert costs[0].bars == costs[1].bars == 5 * 7


def test_a_whole_universe_is_the_sum_of_its_series() -> None:
    """Five hundred symbols of twenty years cost the same each."""
    calendar = calendar_named("XNYS.RTH")
    wanted = interval_between(calendar, Timeframe.M1, date(2004, 6, 1), date(2024, 6, 1))
    series = [Series(stock(f"S{number}"), Timeframe.M1) for number in range(500)]
    whole = estimate(
        [(one, IntervalSet([wanted])) for one in series], Calendars(), rates=Rates(), now=NOW
    )
    one = whole.parts[0]
    assert one.requests == len(calendar.sessions(date(2004, 6, 1), date(2024, 6, 1)))
    assert one.bars > one.requests * 385
    assert whole.requests == 500 * one.requests
    assert whole.bars == 500 * one.bars
    assert whole.seconds == pytest.approx(500 * one.seconds)
    assert "days" in whole.summary
    assert f"{whole.requests:,} requests" in whole.summary


def record(at: datetime, took_s: float, rows: int, series: str = "AAPL|1m") -> RequestRecord:
    """Return the record of a request."""
    return RequestRecord(
        series=series,
        contract_id=1,
        what_to_show="TRADES",
        gateway="real:1",
        login="login 1",
        asked_end=NOW,
        duration="1 D",
        sent_at=at,
        took_s=took_s,
        outcome="bars",
        rows=rows,
    )


def test_seconds_are_measured_from_earlier_requests(tmp_path: Path) -> None:
    """Concurrent requests share their time; failures and other gateways do not count."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number in range(10):
        ledger.requests.record(record(NOW + timedelta(seconds=2 * (number // 5)), 2.0, 390))
        ledger.requests.record(replace(record(NOW, 90.0, 0), outcome="GatewayTimeoutError"))
        ledger.requests.record(replace(record(NOW, 90.0, 390), gateway="other:1"))
    for _ in range(4):
        ledger.requests.record(record(NOW + timedelta(hours=1), 50.0, 7, "AAPL|1h"))
    rates = measured_rates(ledger, "real:1")
    assert dict(rates.request_s) == {Timeframe.M1: pytest.approx(4.0 / 10)}
    assert rates.seconds(Timeframe.M1, 100, 39_000) == pytest.approx(40.0)
    assert rates.seconds(Timeframe.H1, 6, 0) == pytest.approx(0.6)
    basis = rates.basis([Timeframe.M1, Timeframe.H1])
    assert "measured for 1m from 10 responses" in basis
    assert "assumed for 1h" in basis


def test_requests_with_and_without_an_end_are_measured_apart(tmp_path: Path) -> None:
    """Tails have an empty end, which is faster, also where no rate is measured."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number in range(10):
        at = NOW - timedelta(hours=2) + timedelta(seconds=10 * number)
        ledger.requests.record(record(at, 3.0, 390))
        at += timedelta(hours=1)
        ledger.requests.record(replace(record(at, 0.1, 5), asked_end=None))
    rates = measured_rates(ledger, "real:1")
    assert rates.request_s[Timeframe.M1] == pytest.approx(3.0)
    assert rates.now_request_s[Timeframe.M1] == pytest.approx(0.1)
    now = utc(2024, 6, 28, 16, 0, 30)
    calendar = calendar_named("XNYS.RTH")
    one = series_of(stock(), Timeframe.M1)
    wanted = interval_between(calendar, Timeframe.M1, date(2024, 6, 26), date(2024, 6, 29))
    missing = [(one, IntervalSet([wanted]))]
    for tails, up_to_now, seconds in ((set(), 0, 9.0), ({one}, 1, 6.1)):
        cost = estimate(missing, Calendars(), rates=rates, now=now, tails=tails)
        assert (cost.requests, cost.parts[0].up_to_now) == (3, up_to_now)
        assert cost.seconds == pytest.approx(seconds)
        latency_s = {(each.ends_now, each.is_measured): each.seconds for each in cost.latencies}
        assert latency_s == {(False, True): pytest.approx(3.0), (True, True): pytest.approx(0.1)}
    assumed = Rates()
    latencies = [assumed.latency_s(Timeframe.M1, ends_now=each)[0] for each in (True, False)]
    assert latencies[0] < latencies[1]


def test_timeframes_that_were_requested_at_once_share_the_time(tmp_path: Path) -> None:
    """Sixty seconds of three timeframes together are sixty, not three times sixty."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number in range(20):
        for name in ("1m", "5m", "1h"):
            at = NOW + timedelta(seconds=3 * number)
            ledger.requests.record(record(at, 3.0, 390, f"AAPL|{name}"))
    rates = measured_rates(ledger, "real:1")
    kinds = (Timeframe.M1, Timeframe.M5, Timeframe.H1)
    assert [rates.request_s[one] for one in kinds] == [pytest.approx(1.0)] * 3
    assert sum(rates.seconds(one, 20, 0) for one in kinds) == pytest.approx(60.0)


def test_a_measured_rate_is_never_zero(tmp_path: Path) -> None:
    """Even if responses took no time by a coarse clock."""
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for number in range(9):
        ledger.requests.record(record(NOW + timedelta(seconds=number), 0.0, 390))
    assert measured_rates(ledger, "real:1").seconds(Timeframe.M1, 10**9, 0) > 0


def test_a_file_of_a_few_bars_is_not_measured(world: MakeWorld) -> None:
    """The size of a small file is mostly that of its footer."""
    made = world("XNYS.RTH", Timeframe.W1, *SPRING)
    made.load()
    rates = measured_rates(made.harness.ledger, made.harness.gateway.gateway)
    for timeframe in Timeframe:
        assert rates.size(timeframe, 1000) == 1000 * ASSUMED_BAR_BYTES


def test_conservative_pacing_sends_what_a_window_allows_at_once(tmp_path: Path) -> None:
    """58 requests take as long as their responses, each further window ten minutes more."""
    rates = measured_rates(Ledger(tmp_path / "ledger.sqlite"), "real:1", conservative=True)
    usual = measured_rates(Ledger(tmp_path / "ledger.sqlite"), "real:1")
    assert rates.seconds(Timeframe.M1, 58, 0) == usual.seconds(Timeframe.M1, 58, 0)
    assert rates.seconds(Timeframe.M1, 59, 0) == 600.0
    assert rates.seconds(Timeframe.M1, 58 * 12, 0) == 11 * 600.0
    assert rates.basis([Timeframe.M1]) == "IB_PACING=conservative: 58 requests in 10 min"


def test_the_requests_of_several_series_share_the_window(tmp_path: Path) -> None:
    """Two series that would each take one window take two together."""
    wanted = interval_between(
        calendar_named("XNYS.RTH"), Timeframe.M1, date(2024, 4, 1), date(2024, 6, 1)
    )
    rates = measured_rates(Ledger(tmp_path / "ledger.sqlite"), "real:1", conservative=True)
    missing = [(series_of(stock(name), Timeframe.M1), IntervalSet([wanted])) for name in "AB"]
    found = estimate(missing, Calendars(), rates=rates, now=NOW)
    assert [part.requests <= 58 for part in found.parts] == [True, True]
    assert found.requests > 58
    assert found.seconds == 600.0


def test_bytes_are_measured_where_bars_are_held(world: MakeWorld) -> None:
    """Without bars on disk the assumed size counts."""
    made = world("XNYS.RTH", Timeframe.H1, *SPRING)
    gateway = made.harness.gateway.gateway
    empty = measured_rates(made.harness.ledger, gateway)
    assert empty.size(Timeframe.H1, 1000) == 1000 * ASSUMED_BAR_BYTES
    made.load()
    rates = measured_rates(made.harness.ledger, gateway)
    rows = made.harness.store.rows(made.series)
    folder = made.harness.layout.series_folder(made.series.symbol, made.series.timeframe)
    assert rates.size(Timeframe.H1, rows) == sum(one.stat().st_size for one in folder.iterdir())


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 s"), (120, "2 min"), (7200, "2 h"), (864_000, "10.0 days")]
)
def test_times_have_readable_units(seconds: float, text: str) -> None:
    """Seconds, minutes, hours, days."""
    assert time_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 B"), (24_000, "24 kB"), (5e6, "5 MB"), (2.5e9, "2.5 GB")]
)
def test_sizes_have_readable_units(size: float, text: str) -> None:
    """Bytes to gigabytes."""
    assert size_text(size) == text


def test_an_estimate_has_the_learned_width_of_requests(world: MakeWorld) -> None:
    """Requests and seconds are those of the width; the text has the rates of all widths."""
    made = world("XNYS.RTH", Timeframe.M1, date(2024, 3, 4), date(2024, 4, 1))
    trials = {
        width: Trial(samples=(WidthSample(bars, took_s, 4),), why=why)
        for width, bars, took_s, why in (
            (1, 390, 0.65, "slower"),
            (5, 1_950, 0.5, ""),
            (10, 3_900, 2.0, ""),
        )
    }
    at_s = utc(2024, 3, 30).timestamp()
    learned = LearnedWidth(5, at_s, at_s, trials)
    found = estimated(made, Rates(widths={"1m STK 6.5h TRADES": learned}))
    assert (found.requests, found.bars) == (4, 19 * 390)
    assert found.seconds == pytest.approx(19 * 390 / 3_900 / 4)
    (width,) = found.widths
    assert str(width) == (
        "1m STK 6.5h TRADES: width 5 sessions, learned 2024-03-30: 3,900 bars/s each in flight; "
        "1: 600, 10: 1,950 (undecided)"
    )
    other = Rates(widths={"1m CASH 24h MIDPOINT": learned})
    assert (estimated(made, other).requests, estimated(made, other).widths) == (19, ())
