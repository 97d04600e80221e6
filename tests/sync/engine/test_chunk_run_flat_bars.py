"""Flat bars for intervals without a trade, and days that begin with their first trade."""

from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import ktrdr_pipelines
from ktrdr_pipelines.domain.bars import is_flat, micros, rows_per_session, timestamps, without_flat
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.planning.jobs import Bounds, Mode
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import Job
from tests.support.fake_gateway import TrueBars, thinned, true_keys, utc
from tests.support.loading import Harness, World

MakeWorld = Callable[..., World]
ETH = "XNYS.ETH"
SPRING = date(2024, 3, 1), date(2024, 6, 1)
SWITCH = date(2024, 4, 15)
CUT = date(2024, 4, 25)
SHARE = 0.7
"""The share of intervals that have no trade."""


def filled(keys: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Return the timestamps between the first and the last trade of each session."""
    days = calendar_named(ETH).days_of(dense)
    traded = np.isin(dense, keys)
    kept = np.zeros(len(dense), dtype=bool)
    for day in np.unique(days):
        inside = np.flatnonzero(traded & (days == day))
        if len(inside):
            kept[inside[0] : inside[-1] + 1] = True
    return dense[kept]


def with_flat(bars: pa.Table, traded: np.ndarray) -> pa.Table:
    """Return bars of which those at timestamps without a trade are flat."""
    flat = ~np.isin(timestamps(bars), traded)
    close = bars["close"]
    for name in ("open", "high", "low", "average"):
        place = bars.schema.get_field_index(name)
        column = pc.if_else(pa.array(flat), close, bars[name])
        bars = bars.set_column(place, bars.schema.field(name), column)
    for name, zero in (("volume", 0.0), ("bar_count", pa.scalar(0, pa.int32()))):
        place = bars.schema.get_field_index(name)
        column = pc.if_else(pa.array(flat), zero, bars[name])
        bars = bars.set_column(place, bars.schema.field(name), column)
    return bars


class Market:
    """A thin stock in extended hours; some of its sessions are filled with flat bars."""

    def __init__(
        self,
        make: MakeWorld,
        is_filled: Callable[[np.ndarray], np.ndarray],
        *,
        timeframe: Timeframe = Timeframe.M5,
        traded: np.ndarray | None = None,
    ) -> None:
        calendar = calendar_named(ETH)
        dense = true_keys(calendar, timeframe, date(2024, 1, 20), date(2024, 6, 21))
        self.traded = thinned(dense, SHARE) if traded is None else traded
        chosen = is_filled(calendar.days_of(dense))
        every = np.union1d(self.traded, filled(self.traded, dense[chosen]))
        self.made = make(ETH, timeframe, *SPRING, keys=every, now=utc(2024, 6, 3))
        key = (self.made.series.symbol, timeframe)
        true_bars = self.made.harness.gateway.true_bars
        true = true_bars[key]
        true_bars[key] = TrueBars(with_flat(true.bars, self.traded), true.opens, true.closes)

    def cut(self, day: date, after_hours: int) -> None:
        """Omit the end of one session from the responses."""
        harness, calendar = self.made.harness, calendar_named(ETH)
        [session] = calendar.sessions(day, day + timedelta(days=1))
        low = micros(session.opens_at + timedelta(hours=after_hours))
        high = micros(session.closes_at) - 300_000_000

        def lacking(_: BarRequest, bars: pa.Table) -> pa.Table:
            keys = timestamps(bars)
            return bars.filter(pa.array((keys < low) | (keys >= high)))

        harness.gateway.mutate = lacking


def always(days: np.ndarray) -> np.ndarray:
    """Fill every session."""
    return np.ones(len(days), dtype=bool)


def never(days: np.ndarray) -> np.ndarray:
    """Fill none."""
    return np.zeros(len(days), dtype=bool)


def before(days: np.ndarray) -> np.ndarray:
    """Fill the sessions before a switch."""
    return np.asarray(days < np.datetime64(SWITCH))


def since(days: np.ndarray) -> np.ndarray:
    """Fill the sessions from a switch on."""
    return ~before(days)


def but_the_newest(days: np.ndarray) -> np.ndarray:
    """Fill all sessions but the newest few."""
    return np.asarray(days < np.datetime64("2024-05-24"))


def but_the_oldest(days: np.ndarray) -> np.ndarray:
    """Fill all sessions but the oldest few."""
    return np.asarray(days >= np.datetime64("2024-03-08"))


WAYS = [always, never, before, since, but_the_newest, but_the_oldest]


def sparse_of(harness: Harness, report: SeriesReport) -> tuple[set[date], set[date]]:
    """Return the sparse sessions of the load's report, and those of the gap index."""
    calendar = calendar_named(ETH)
    index = GapIndex(harness.store, harness.ledger.calendars(), harness.gateway.gateway)
    [found] = index.series_gaps([report.series], harness.gateway.time)
    sparse = [gap for gap in found.gaps if gap.reason == "sparse"]
    return (
        {calendar.day_of(one.start) for one in report.sparse},
        {calendar.day_of(gap.interval.start) for gap in sparse},
    )


@pytest.mark.parametrize("way", WAYS)
def test_a_thin_stock_is_loaded_with_its_flat_bars(
    world: MakeWorld, way: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Whichever sessions are filled, every bar is kept, and none is implausible or sparse."""
    market = Market(world, way)
    report = market.made.load_until_confirmed()
    assert not report.unexplained
    market.made.check_complete()
    assert sparse_of(market.made.harness, report) == (set(), set())
    assert market.made.harness.ledger.findings.of("AAPL|5m") == []
    stored = market.made.harness.store.read(market.made.series)
    assert is_flat(stored).any() == (way is not never)


@pytest.mark.parametrize("way", [always, before, since])
def test_a_truncated_session_among_filled_ones_is_sparse(
    world: MakeWorld, way: Callable[[np.ndarray], np.ndarray]
) -> None:
    """It is found whether all neighbours are filled, or only the older or the newer ones."""
    market = Market(world, way)
    day = CUT if way is not before else date(2024, 4, 4)
    market.cut(day, 4)
    report = market.made.load()
    assert sparse_of(market.made.harness, report) == ({day}, {day})
    market.made.harness.gateway.mutate = None
    market.made.harness.gateway.time += timedelta(minutes=20)
    report = market.made.load_until_confirmed()
    assert report.is_complete
    market.made.check_complete()


def test_a_truncated_session_is_sparse_right_after_the_switch(world: MakeWorld) -> None:
    """Most of its neighbours are not filled: the numbers of traded bars are compared."""
    calendar = calendar_named(ETH)
    dense = true_keys(calendar, Timeframe.M5, date(2024, 1, 20), date(2024, 6, 21))
    market = Market(world, since, traded=thinned(dense, 0.3))
    market.cut(date(2024, 4, 16), 11)
    report = market.made.load()
    found = sparse_of(market.made.harness, report)
    assert found == ({date(2024, 4, 16)}, {date(2024, 4, 16)})


def test_a_ledger_without_counts_of_flat_bars_counts_them(world: MakeWorld) -> None:
    """A ledger that is rebuilt from the files has no counts until the store is read."""
    market = Market(world, before)
    report = market.made.load_until_confirmed()
    harness = market.made.harness
    harness.ledger.close()
    harness.layout.ledger.unlink()
    harness.ledger = Ledger(harness.layout.ledger)
    assert sparse_of(harness, report) == (set(), set())
    stored = harness.store.read(market.made.series)
    traded = rows_per_session(stored.filter(pa.array(~is_flat(stored))))
    assert harness.store.traded_per_session(market.made.series) == traded


FIRST_TRADES = [5.25, 5.0, 5.1, 8.0, 1.0, 7.5, 0.0, 3.0]
"""Hours after the open of extended hours at which days begin: 09:15, 09:00, 09:06, 12:00 ..."""


@pytest.mark.parametrize("way", [always, never])
def test_days_that_begin_with_their_first_trade_are_complete(
    world: MakeWorld, way: Callable[[np.ndarray], np.ndarray]
) -> None:
    """The time before the first trade is explained by the bars on both sides."""
    calendar = calendar_named(ETH)
    dense = true_keys(calendar, Timeframe.M5, date(2024, 1, 20), date(2024, 6, 21))
    place = np.searchsorted(calendar.opens, dense, side="right") - 1
    hours = np.array(FIRST_TRADES)[place % len(FIRST_TRADES)]
    late = dense[dense - calendar.opens[place] >= hours * 3_600_000_000]
    market = Market(world, way, traded=thinned(late, 0.2))
    report = market.made.load_until_confirmed()
    assert report.is_complete
    market.made.check_complete()
    assert sparse_of(market.made.harness, report) == (set(), set())


@pytest.mark.parametrize("way", [always, never])
def test_tails_cover_nothing_of_a_day_before_its_first_trade(
    world: MakeWorld, way: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Later tails load and cover the whole session."""
    calendar = calendar_named(ETH)
    dense = true_keys(calendar, Timeframe.M5, date(2024, 1, 20), date(2024, 6, 21))
    place = np.searchsorted(calendar.opens, dense, side="right") - 1
    late = dense[dense - calendar.opens[place] >= 5.25 * 3_600_000_000]
    market = Market(world, way, traded=thinned(late, 0.2))
    harness, series = market.made.harness, market.made.series

    def tail(now: datetime) -> SeriesReport:
        harness.gateway.time = now
        return harness.run(Job(series, Mode.TAIL, Bounds(start=market.made.wanted.start)))[0]

    harness.gateway.time = utc(2024, 5, 22, 2)
    harness.run(Job(series, Mode.FULL, Bounds(start=market.made.wanted.start)))
    for hour in (9, 11, 13, 14, 18, 22):
        report = tail(utc(2024, 5, 22, hour, 2))
        covered = harness.store.coverage(series).bars.bounds
        assert covered is not None
        assert covered.end <= harness.gateway.time
        if hour < 13:
            assert covered.end <= utc(2024, 5, 22, 8)
        market.made.check()
    for now in (utc(2024, 5, 23, 1), utc(2024, 5, 23, 18), utc(2024, 5, 24, 18)):
        report = tail(now)
    left = report.unexplained.clip(market.made.wanted)
    assert not [one for one in left if one.end <= utc(2024, 5, 23)]
    market.made.check()


def test_a_flat_bar_refutes_no_response_without_bars(world: MakeWorld) -> None:
    """A response without the flat bars that another one has was no false statement."""
    market = Market(world, never)
    harness, series = market.made.harness, market.made.series
    day = date(2024, 5, 2)
    [session] = calendar_named(ETH).sessions(day, day + timedelta(days=1))
    low, high = micros(session.opens_at), micros(session.closes_at)

    def empty(request: BarRequest, bars: pa.Table) -> pa.Table | NoData:
        keys = timestamps(bars)
        left = bars.filter(pa.array((keys < low) | (keys >= high)))
        return left if left.num_rows else NoData(request, "no data")

    harness.gateway.mutate = empty
    market.made.load()
    before_flat = harness.ledger.statements.all()

    def flat(_: BarRequest, bars: pa.Table) -> pa.Table:
        keys = timestamps(bars)
        return with_flat(bars, keys[(keys < low) | (keys >= high)])

    harness.gateway.mutate = flat
    harness.gateway.time += timedelta(minutes=20)
    market.made.load()
    assert before_flat
    assert not any(one.voided_at for one in harness.ledger.statements.all())
    assert harness.store.rows_per_session(series)[day]


def test_the_documented_filter_leaves_out_flat_bars(world: MakeWorld) -> None:
    """In SQL and pandas it keeps a bar of unknown volume, and one that counts a trade."""
    text = (Path(ktrdr_pipelines.__file__).parent / "docs" / "bars.md").read_text("utf-8")
    market = Market(world, before)
    market.made.load()
    bars = market.made.harness.store.read(market.made.series)
    count = bars.num_rows
    odd = {"volume": [None, *([0.0] * 2)], "bar_count": [None, 3, None]}
    for name, values in odd.items():
        place = bars.schema.get_field_index(name)
        kind = bars.schema.field(name)
        column = pa.chunked_array(
            [pa.array(values, kind.type), bars[name].slice(3).combine_chunks()]
        )
        bars = bars.set_column(place, kind, column)
    kept = timestamps(without_flat(bars)).tolist()
    assert 0 < len(kept) < count
    where = text.split("WHERE ", 1)[1].split(";", 1)[0]
    with duckdb.connect() as connection:
        connection.register("held", bars)
        rows = connection.execute(f"SELECT epoch_us(ts) FROM held WHERE {where}").fetchall()  # noqa: S608
    assert [row[0] for row in rows] == kept
    names = {"bars": bars.to_pandas()}
    exec(text.split("```python\n", 1)[1].split("```", 1)[0], names)  # noqa: S102  (our own page)
    assert len(names["traded"]) == len(kept)


def test_flat_bars_after_the_close_extend_no_session(world: MakeWorld) -> None:
    """They are kept, but are no evidence of trading after hours."""
    made = world("XNYS.RTH", Timeframe.M5, *SPRING)
    calendar = calendar_named("XNYS.RTH")

    def longer(_: BarRequest, bars: pa.Table) -> pa.Table:
        keys = timestamps(bars)
        ends = keys[np.isin(keys + 300_000_000, calendar.closes)]
        more = bars.filter(pa.array(np.isin(keys, ends)))
        place = more.schema.get_field_index("ts")
        late = pc.add(more["ts"], timedelta(minutes=5))
        more = with_flat(more.set_column(place, more.schema.field("ts"), late), np.array([0]))
        return pa.concat_tables([bars, more]).sort_by("ts") if len(ends) else bars

    made.harness.gateway.mutate = longer
    report = made.load()
    assert report.is_complete
    assert made.harness.ledger.late_bars.all() == {}
    assert is_flat(made.harness.store.read(made.series)).sum() > 50
