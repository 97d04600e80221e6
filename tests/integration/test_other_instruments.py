"""Futures, indices and coins through sockets, from a simulated gateway."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.domain.bars import timestamps
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.windows import WindowState, after_load
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.durations import SIZE_BY_TEXT, Window
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import Job

NOW = datetime(2024, 6, 5, 12, 0, tzinfo=UTC)
UNIVERSE = """
symbols:
  ESZ23: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: "20231215", use_rth: false}
  CLN24: {sec_type: FUT, symbol: CL, exchange: NYMEX, last_trade_date: "20240620"}
  CLG24: {sec_type: FUT, symbol: CL, exchange: NYMEX, last_trade_date: "20240122"}
  SPX: {sec_type: IND, exchange: CBOE}
  BTC: {sec_type: CRYPTO}
  RY: {primary_exchange: TSE}
  VOD: {primary_exchange: LSE}
  INTC: {end: 2024-02-01}
  MSFT.ETH: {calendar: GATEWAY}
"""
KEYS = {"ESZ23": "ESZ2023", "CLG24": "CLG2024"}
MARKET = SyntheticMarket(1)


class Bench:
    """An empty store with its universe, and a gateway."""

    def __init__(self, folder: Path, gateway: SimulatorServer) -> None:
        self.gateway = gateway
        self.layout = create_store(folder / "data")
        self.layout.universe.write_text(UNIVERSE, encoding="utf-8")
        self.store = BarStore(self.layout, Ledger(self.layout.ledger))
        self.settings = Settings(
            ib_port=gateway.port, ktrdr_data=self.layout.root, ktrdr_state=folder / "state"
        )

    def series(self, symbol: str, timeframe: str) -> Series:
        """Give a series of the universe."""
        universe, problem = universe_file(self.layout).read()
        assert problem is None
        return Series(universe.instrument(symbol), Timeframe(timeframe))

    def load(self, series: Series, first: date, end: date) -> SeriesReport:
        """Load session dates as the command line does."""
        calendar = Calendars().of(series.instrument)
        wanted = IntervalSet([interval_between(calendar, series.timeframe, first, end)])
        manager = Workspace(self.settings, self.layout).load_manager()
        return asyncio.run(manager.run([Job(series, wanted=wanted)]))[0]


@pytest.fixture(scope="module")
def gateway() -> Iterator[SimulatorServer]:
    """Run a gateway whose clock stands in June 2024."""
    with running_simulator(market=MARKET, now=NOW) as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, gateway: SimulatorServer) -> Bench:
    """Make an empty store beside the gateway."""
    return Bench(tmp_path, gateway)


def truth(series: Series, first: date, end: date) -> PricedBars:
    """Give what the market did, asked past every wire."""
    instrument = series.instrument
    [found] = [
        each
        for each in MARKET.instruments()
        if each.key == KEYS.get(series.symbol, each.key)
        and (each.symbol, each.sec_type.value) == (instrument.ib_symbol, instrument.sec_type.value)
        and instrument.exchange in {each.exchange, "SMART", each.primary_exchange}
        and each.currency == instrument.currency
    ]
    bounds = interval_between(Calendars().of(instrument), series.timeframe, first, end)
    start, end_s = (int(moment.timestamp()) for moment in (bounds.start, bounds.end))
    around = Window(start - 7 * 86_400, min(end_s + 86_400, int(NOW.timestamp())))
    size = SIZE_BY_TEXT[series.timeframe.ib_bar_size]
    query = BarQuery(What(instrument.what_to_show.value), size, instrument.use_rth, around)
    bars = MARKET.bars(found, query)
    inside = (bars.start >= start) & (bars.start < end_s)
    names = ("start", "open", "high", "low", "close")
    return PricedBars(*(getattr(bars, name)[inside] for name in names))


def check_stored(bench: Bench, series: Series, first: date, end: date) -> None:
    """See that the store holds exactly the market's bars."""
    true, stored = truth(series, first, end), bench.store.read(series)
    assert len(true) > 0
    assert (timestamps(stored) // 1_000_000).tolist() == true.start.tolist()
    for name in ("open", "high", "low", "close"):
        assert np.array_equal(stored[name].to_numpy(), getattr(true, name)), name


CASES = [
    pytest.param("ESZ23", "1m", date(2023, 12, 11), date(2023, 12, 19), marks=pytest.mark.slow),
    ("ESZ23", "1h", date(2023, 10, 2), date(2024, 3, 1)),
    ("ESZ23", "1d", date(2023, 1, 3), date(2024, 6, 4)),
    ("CLG24", "1h", date(2024, 1, 2), date(2024, 3, 1)),
    ("SPX", "1h", date(2024, 3, 1), date(2024, 6, 5)),
    ("SPX", "1d", date(2020, 1, 2), date(2024, 6, 5)),
    ("BTC", "1m", date(2024, 6, 1), date(2024, 6, 4)),
    ("BTC", "1h", date(2024, 3, 1), date(2024, 6, 5)),
    ("RY", "1h", date(2024, 3, 1), date(2024, 6, 5)),
    ("VOD", "1h", date(2023, 12, 1), date(2024, 4, 5)),
    ("VOD", "1d", date(2020, 1, 2), date(2024, 6, 5)),
]


@pytest.mark.parametrize(("symbol", "timeframe", "first", "end"), CASES)
def test_stored_bars_equal_the_markets(
    bench: Bench, symbol: str, timeframe: str, first: date, end: date
) -> None:
    """Every bar of the span is in the store, unaltered, and asking again asks nothing."""
    series = bench.series(symbol, timeframe)
    report = bench.load(series, first, end)
    assert report.failures == ()
    assert report.is_complete, report.summary
    check_stored(bench, series, first, end)
    before = len(bench.gateway.requests)
    again = bench.load(series, first, end)
    assert (again.requests, again.is_complete) == (0, True)
    assert len(bench.gateway.requests) == before


def test_an_expired_future_is_complete_to_its_last_day(bench: Bench) -> None:
    """The hours after its end on the last day are proved silent, all later days are ended."""
    series = bench.series("ESZ23", "1h")
    calendar = Calendars().of(series.instrument)
    report = bench.load(series, date(2023, 12, 1), date(2024, 6, 1))
    assert report.is_complete
    [last] = calendar.sessions(date(2023, 12, 15), date(2023, 12, 16))
    hours = Interval(last.opens_at, last.closes_at)
    assert bench.store.coverage(series).covered(NOW).covers(hours)
    windows = {
        "spring": (date(2024, 1, 1), date(2024, 4, 1)),
        "december": (date(2023, 12, 1), date(2024, 1, 1)),
    }
    index = Workspace(bench.settings, bench.layout).gap_index()
    facts = after_load(index.windows(series, windows, report.now or NOW), report)
    assert facts["spring"].state is WindowState.ENDED
    assert facts["december"].state is WindowState.COMPLETE
    assert facts["december"].rows == len(truth(series, date(2023, 12, 1), date(2024, 1, 1)))


def test_hours_that_only_the_gateway_knows_come_from_its_schedule(bench: Bench) -> None:
    """Its schedule is asked for over the socket, then exactly its sessions are loaded."""
    series = bench.series("MSFT.ETH", "1h")
    assert series.instrument.calendar == "GATEWAY:America/New_York"
    first, end = date(2024, 3, 1), date(2024, 6, 5)
    before = len(bench.gateway.requests)
    assert bench.load(series, first, end).is_complete
    schedules = [one for one in bench.gateway.requests[before:] if "SCHEDULE" in str(one)]
    assert len(schedules) == 1
    index = Ledger(bench.layout.ledger).calendars()
    told = index.of(series.instrument).sessions(first, end)
    known = calendar_named("XNYS.ETH").sessions(first, end)
    assert told == known
    stored, true = bench.store.read(series), truth(series, first, end)
    assert (timestamps(stored) // 1_000_000).tolist() == true.start.tolist()
    before = len(bench.gateway.requests)
    assert bench.load(series, first, end).is_complete
    assert len(bench.gateway.requests) == before


def test_hours_in_details_of_a_future_are_remembered(bench: Bench) -> None:
    """A contract that is looked up tells its next days, and they are in the calendar's words."""
    series = bench.series("CLN24", "1d")
    bench.load(series, date(2024, 5, 1), date(2024, 6, 4))
    index = Ledger(bench.layout.ledger).calendars()
    library = calendar_named(series.instrument.calendar)
    week = (date(2024, 6, 5), date(2024, 6, 11))
    assert index.of(series.instrument).sessions(*week) == library.sessions(*week)


def test_of_an_ended_instrument_nothing_later_is_asked(bench: Bench) -> None:
    """What a person declared ended is complete with what it had, though the gateway has more."""
    series = bench.series("INTC", "1d")
    report = bench.load(series, date(2023, 6, 1), date(2024, 6, 5))
    assert report.is_complete
    calendar = Calendars().of(series.instrument)
    assert calendar.known is not None
    assert calendar.known[1] == date(2024, 1, 31)
    before = len(bench.gateway.requests)
    assert bench.load(series, date(2024, 2, 1), date(2024, 6, 5)).is_complete
    assert len(bench.gateway.requests) == before
