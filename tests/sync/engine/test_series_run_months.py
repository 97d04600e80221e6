"""Months of updates: ranges that are covered or were attempted are rarely requested again."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import midnight
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Mode, RequestedBy
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError, GatewayTimeoutError
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import (
    FakeGateway,
    TrueBars,
    dense_keys,
    fx,
    series_of,
    start_of,
    stock,
    true_bars_of,
    true_daily_bars,
    utc,
)
from tests.support.loading import Harness

START, LAST = date(2024, 3, 1), date(2024, 12, 31)
FIRST_EVENING = utc(2024, 5, 1, 22)
DAYS = 120


def thin(keys: np.ndarray) -> np.ndarray:
    """Return timestamps without most bars, and without every bar of some sessions."""
    days = calendar_named("XNYS.RTH").days_of(keys)
    empty = {np.datetime64(day) for day in ("2024-04-11", "2024-05-15", "2024-07-10")}
    chance = np.random.default_rng(3)
    return keys[(chance.random(len(keys)) < 0.6) & ~np.isin(days, list(empty))]


@dataclass
class Months:
    """A store, five series, and counts of the requests whose intervals were known already."""

    harness: Harness
    series: list[Series]
    sent: Counter[str] = field(default_factory=Counter)
    known: dict[Series, IntervalSet] = field(default_factory=dict)

    def evening(self, *modes: Mode) -> None:
        """Load once as sensors do, and count which requests repeat known intervals."""
        for mode in modes:
            for series in self.series:
                self.known[series] = self._known(series)
            before = self.harness.request_count
            self.harness.run(
                *(Job(one, mode, requested_by=RequestedBy.SENSOR) for one in self.series)
            )
            for request in self.harness.gateway.requests[before:]:
                self.sent["again" if self._was_known(request) else "new"] += 1

    def _known(self, series: Series) -> IntervalSet:
        """Return the intervals that were covered or attempted."""
        coverage = self.harness.store.coverage(series)
        attempts = self.harness.ledger.attempts.of(series_key(series))
        return (
            coverage.bars
            | IntervalSet(proof.interval for proof in coverage.empty)
            | IntervalSet(attempt.interval for attempt in attempts)
        )

    def _was_known(self, request: BarRequest) -> bool:
        known = self.known.get(request.series)
        end = request.ends_at or self.harness.gateway.time
        calendar = calendar_named(request.series.instrument.calendar)
        start = start_of(request, end)
        if not request.series.timeframe.is_intraday:
            last = calendar.day_of(end - timedelta(seconds=1))
            start, end = midnight(calendar.day_of(start)), midnight(last + timedelta(days=1))
        spans = session_grid(calendar, request.series.timeframe).spans_in(Interval(start, end))
        return known is None or all(known.covers(span.interval) for span in spans)


@pytest.fixture
def months(folders: Iterator[Path]) -> Months:
    """Make a store of liquid and thin instruments, empty, at the first evening."""
    apple, small = replace(stock("AAPL"), start=START), replace(stock("THIN"), start=START)
    euro = replace(fx(), start=START)
    series = [
        series_of(apple, Timeframe.M1),
        series_of(apple, Timeframe.H1),
        series_of(apple, Timeframe.D1),
        series_of(small, Timeframe.H1),
        series_of(euro, Timeframe.H1),
    ]
    true_bars: dict[tuple[str, Timeframe], TrueBars] = {}
    for one in series:
        calendar = one.instrument.calendar
        keys = dense_keys(calendar, one.timeframe, START - timedelta(days=30), LAST)
        keys = thin(keys) if one.symbol == "THIN" else keys
        true_bars[one.symbol, one.timeframe] = true_bars_of(
            keys, one.timeframe, calendar_named(calendar)
        )
    for one in series:
        life = LAST, LAST + timedelta(days=9)
        bars = true_bars[one.symbol, one.timeframe].bars
        daily = true_daily_bars(bars, one.timeframe, one.instrument.calendar, life)
        true_bars.setdefault((one.symbol, Timeframe.D1), daily)
    gateway = FakeGateway(true_bars, FIRST_EVENING)
    gateway.contract_ids = {"AAPL": 1, "THIN": 2, "EURUSD": 3}
    return Months(Harness(create_store(next(folders)), gateway, retries=0), series)


def failing_at_random(seed: int) -> Callable[..., object]:
    """Return a mutation that lets one request in forty time out."""
    chance = np.random.default_rng(seed)
    return lambda _, bars: GatewayTimeoutError("bars") if chance.random() < 1 / 40 else bars


@pytest.mark.slow
def test_covered_ranges_are_rarely_requested_again(months: Months) -> None:
    """In 120 days of tails and gap filling, less than 1 % a month is requested again."""
    for _ in range(DAYS):
        months.evening(Mode.TAIL, Mode.FULL)
        months.harness.gateway.time += timedelta(days=1)
    total = months.sent.total()
    assert total > 350
    assert 0 < months.sent["again"] * 30 / DAYS < months.sent["new"] / 100, months.sent
    for series in months.series:
        calendar = calendar_named(series.instrument.calendar)
        opened = calendar.sessions(START, START + timedelta(days=1))[0].opens_at
        end = months.harness.gateway.time - timedelta(days=1)
        start = opened if series.timeframe.is_intraday else midnight(START)
        months.harness.check_complete(series, Interval(start, _day(series, end)))


@pytest.mark.slow
def test_failures_do_not_lead_to_endless_requests(months: Months) -> None:
    """One request in forty fails; failed ranges are requested again when due, until all is stored.

    Two sessions without a bar among full ones take statements on two more days each.
    """
    months.harness.gateway.mutate = failing_at_random(11)  # type: ignore[assignment]
    for _ in range(40):
        _evening_of(months)
        months.harness.gateway.time += timedelta(days=1)
    total = months.sent.total()
    assert months.sent["again"] < total * 2 / 40 + 2 * 2 * 2, months.sent
    months.harness.gateway.mutate = None
    _evening_of(months)
    for series in months.series:
        assert months.harness.ledger.attempts.of(series_key(series)) == []


def _evening_of(months: Months) -> None:
    try:
        months.evening(Mode.FULL)
    except GatewayError:
        pytest.fail("a request that timed out ended the run")


def _day(series: Series, end: datetime) -> datetime:
    """Return the end of the last session that has closed, by bar timestamp."""
    calendar = calendar_named(series.instrument.calendar)
    closed = [
        session
        for session in calendar.sessions(end.date() - timedelta(days=7), end.date())
        if session.closes_at < end - timedelta(hours=1)
    ]
    last = closed[-1]
    return last.closes_at if series.timeframe.is_intraday else midnight(last.day + timedelta(1))
