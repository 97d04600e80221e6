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
  "7203": {exchange: TSEJ}
  "700": {primary_exchange: SEHK}
  BHP: {exchange: ASX}
  SAP: {exchange: IBIS}
  ERIC.B: {primary_exchange: SFB}
  BP.: {primary_exchange: LSE}
  FDAXH24: {sec_type: FUT, symbol: DAX, exchange: EUREX, last_trade_date: "20240315"}
  INTC: {end: 2024-02-01}
  MSFT.ETH: {calendar: GATEWAY}
"""
KEYS = {"ESZ23": "ESZ2023", "CLG24": "CLG2024", "FDAXH24": "FDAXH2024"}
MARKET = SyntheticMarket(1)


class Loading:
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
        """Return a series of the universe."""
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
    """Run a gateway whose clock is in June 2024."""
    with running_simulator(market=MARKET, now=NOW) as server:
        yield server


@pytest.fixture
def loading(tmp_path: Path, gateway: SimulatorServer) -> Loading:
    """Make an empty store beside the gateway."""
    return Loading(tmp_path, gateway)


def truth(series: Series, first: date, end: date) -> PricedBars:
    """Return the bars of the market, read without the gateway."""
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


def check_stored(loading: Loading, series: Series, first: date, end: date) -> None:
    """Check that the store holds exactly the market's bars."""
    true, stored = truth(series, first, end), loading.store.read(series)
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
    ("7203", "1m", date(2024, 5, 30), date(2024, 6, 5)),
    pytest.param("7203", "1h", date(2024, 5, 2), date(2024, 6, 5), marks=pytest.mark.slow),
    pytest.param("7203", "1d", date(2023, 1, 4), date(2024, 6, 5), marks=pytest.mark.slow),
    pytest.param("700", "1m", date(2024, 2, 8), date(2024, 2, 15), marks=pytest.mark.slow),
    pytest.param("BHP", "1m", date(2024, 4, 4), date(2024, 4, 10), marks=pytest.mark.slow),
    ("BHP", "1d", date(2023, 1, 3), date(2024, 6, 5)),
    ("SAP", "1m", date(2024, 3, 27), date(2024, 4, 4)),
    pytest.param("SAP", "1d", date(2023, 1, 3), date(2024, 6, 5), marks=pytest.mark.slow),
    pytest.param("ERIC.B", "1d", date(2023, 1, 3), date(2024, 6, 5), marks=pytest.mark.slow),
    pytest.param("BP.", "1d", date(2023, 1, 3), date(2024, 6, 5), marks=pytest.mark.slow),
    pytest.param("FDAXH24", "1m", date(2024, 3, 12), date(2024, 3, 19), marks=pytest.mark.slow),
    ("FDAXH24", "1d", date(2023, 3, 1), date(2024, 6, 4)),
]


@pytest.mark.parametrize(("symbol", "timeframe", "first", "end"), CASES)
def test_stored_bars_equal_the_markets(
    loading: Loading, symbol: str, timeframe: str, first: date, end: date
) -> None:
    """Every bar of the range is stored unchanged, and a second load sends no request."""
    series = loading.series(symbol, timeframe)
    report = loading.load(series, first, end)
    assert report.failures == ()
    assert report.is_complete, report.summary
    check_stored(loading, series, first, end)
    before = len(loading.gateway.requests)
    again = loading.load(series, first, end)
    assert (again.requests, again.is_complete) == (0, True)
    assert len(loading.gateway.requests) == before


def test_an_expired_future_is_complete_to_its_last_day(loading: Loading) -> None:
    """The hours after its end are confirmed empty, and later windows are ended."""
    series = loading.series("ESZ23", "1h")
    calendar = Calendars().of(series.instrument)
    report = loading.load(series, date(2023, 12, 1), date(2024, 6, 1))
    assert report.is_complete
    [last] = calendar.sessions(date(2023, 12, 15), date(2023, 12, 16))
    hours = Interval(last.opens_at, last.closes_at)
    assert loading.store.coverage(series).covered(NOW).covers(hours)
    windows = {
        "spring": (date(2024, 1, 1), date(2024, 4, 1)),
        "december": (date(2023, 12, 1), date(2024, 1, 1)),
    }
    index = Workspace(loading.settings, loading.layout).gap_index()
    facts = after_load(index.windows(series, windows, report.now or NOW), report)
    assert facts["spring"].state is WindowState.ENDED
    assert facts["december"].state is WindowState.COMPLETE
    assert facts["december"].rows == len(truth(series, date(2023, 12, 1), date(2024, 1, 1)))


def test_hours_that_only_the_gateway_knows_come_from_its_schedule(loading: Loading) -> None:
    """Its schedule is requested, then exactly its sessions are loaded."""
    series = loading.series("MSFT.ETH", "1h")
    assert series.instrument.calendar == "GATEWAY:America/New_York"
    first, end = date(2024, 3, 1), date(2024, 6, 5)
    before = len(loading.gateway.requests)
    assert loading.load(series, first, end).is_complete
    schedules = [one for one in loading.gateway.requests[before:] if "SCHEDULE" in str(one)]
    assert len(schedules) == 1
    index = Ledger(loading.layout.ledger).calendars()
    result = index.of(series.instrument).sessions(first, end)
    known = calendar_named("XNYS.ETH").sessions(first, end)
    assert result == known
    stored, true = loading.store.read(series), truth(series, first, end)
    assert (timestamps(stored) // 1_000_000).tolist() == true.start.tolist()
    before = len(loading.gateway.requests)
    assert loading.load(series, first, end).is_complete
    assert len(loading.gateway.requests) == before


def test_hours_in_details_of_a_future_are_remembered(loading: Loading) -> None:
    """The calendar has the sessions of the coming days that contract details state."""
    series = loading.series("CLN24", "1d")
    loading.load(series, date(2024, 5, 1), date(2024, 6, 4))
    index = Ledger(loading.layout.ledger).calendars()
    library = calendar_named(series.instrument.calendar)
    week = (date(2024, 6, 5), date(2024, 6, 11))
    assert index.of(series.instrument).sessions(*week) == library.sessions(*week)


def test_nothing_is_requested_after_the_end_of_an_instrument(loading: Loading) -> None:
    """An end in the universe limits the load, although the gateway has later bars."""
    series = loading.series("INTC", "1d")
    report = loading.load(series, date(2023, 6, 1), date(2024, 6, 5))
    assert report.is_complete
    calendar = Calendars().of(series.instrument)
    assert calendar.known is not None
    assert calendar.known[1] == date(2024, 1, 31)
    before = len(loading.gateway.requests)
    assert loading.load(series, date(2024, 2, 1), date(2024, 6, 5)).is_complete
    assert len(loading.gateway.requests) == before
