"""Recorded bars through simulator, socket, loader and store equal the recording.

The recordings lie beside the project on some machines only; without them these tests skip.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import CONFIRM_AFTER, STATEMENT_DAYS
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.server import SimulatorServer, open_market, running_simulator
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.runner import Job
from tests.support.recordings import RECORDED

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="no recorded bars on this machine")

UNIVERSE = """
defaults: {timeframes: [1d, 1h], start: 1998-01-01}
windows: {1m: 2014-01, yearly: 1998}
symbols:
  AAPL: {}
  SPY: {}
  AAPL.ETH: {timeframes: [1m]}
  SPY.ETH: {timeframes: [1m]}
  EURUSD: {timeframes: [1m, 1h], start: 2007-01-01}
  ESZ3: {sec_type: FUT, symbol: ES, exchange: CME, last_trade_date: "20131220", timeframes: [1m]}
"""
SLOW = pytest.mark.slow
CASES = [
    ("AAPL", "1d", date(1998, 1, 1), date(2021, 4, 1)),
    ("SPY", "1d", date(1998, 1, 1), date(2021, 4, 1)),
    pytest.param("AAPL", "1h", date(1998, 1, 1), date(2021, 4, 1), marks=SLOW),
    pytest.param("SPY", "1h", date(1998, 1, 1), date(2021, 4, 1), marks=SLOW),
    pytest.param("AAPL.ETH", "1m", date(2014, 6, 5), date(2014, 6, 10), marks=SLOW),
    pytest.param("SPY.ETH", "1m", date(2013, 10, 4), date(2013, 10, 12), marks=SLOW),
    pytest.param("SPY.ETH", "1m", date(2023, 8, 3), date(2023, 8, 4), marks=SLOW),
    pytest.param("EURUSD", "1h", date(2007, 1, 1), date(2019, 1, 1), marks=SLOW),
    pytest.param("EURUSD", "1m", date(2014, 5, 1), date(2014, 5, 16), marks=SLOW),
    pytest.param("EURUSD", "1m", date(2018, 4, 3), date(2018, 4, 5), marks=SLOW),
]
MOST_LOADS = STATEMENT_DAYS + 3
"""Statements of so many days, a second one on the first, and sparse sessions requested again."""


@pytest.fixture(scope="module")
def gateway() -> Iterator[SimulatorServer]:
    """Replay the recordings as a gateway."""
    with running_simulator(market=open_market(RECORDED, seed=1)) as server:
        yield server


@pytest.fixture
def settings(tmp_path: Path, gateway: SimulatorServer) -> Settings:
    """Return settings of the replaying gateway and of an empty store with a universe."""
    layout = create_store(tmp_path / "data")
    layout.universe.write_text(UNIVERSE, encoding="utf-8")
    return Settings(ib_port=gateway.port, ktrdr_data=layout.root, ktrdr_state=tmp_path / "state")


def layout_of(settings: Settings) -> StoreLayout:
    """Return the store of the settings."""
    assert settings.ktrdr_data is not None
    return StoreLayout(settings.ktrdr_data)


def series_named(settings: Settings, symbol: str, timeframe: str) -> Series:
    """Return a series of the universe."""
    universe, _ = universe_file(layout_of(settings)).read()
    return Series(universe.instrument(symbol), Timeframe(timeframe))


def job(series: Series, first: date, end: date) -> Job:
    """Return a job for session dates of a series."""
    calendar = calendar_named(series.instrument.calendar)
    interval = interval_between(calendar, series.timeframe, first, end)
    return Job(series, wanted=IntervalSet([interval]))


def load(
    settings: Settings, jobs: Sequence[Job], clock: Callable[[], datetime] = system_now
) -> list[SeriesReport]:
    """Load jobs as the command line does."""
    workspace = Workspace(settings, layout_of(settings), real=clock)
    return asyncio.run(workspace.load_manager().run(jobs))


def load_until_confirmed(settings: Settings, gateway: SimulatorServer, wanted: Job) -> None:
    """Load until complete: on the first day, and whenever more can be confirmed.

    Where a recording begins or has gaps, statements of one moment cannot confirm empty ranges.
    Each load has a request budget of its own: the gateway's clock advances between them, and real
    time, by which the budget keeps the rule of identical requests, does not.
    """
    passed = timedelta()

    def clock() -> datetime:
        return system_now() + passed

    assert settings.ktrdr_state is not None
    for number in range(MOST_LOADS):
        state = settings.ktrdr_state / str(number)
        [report] = load(settings.model_copy(update={"ktrdr_state": state}), [wanted], clock)
        assert report.failures == ()
        if report.is_complete:
            return
        assert report.unexplained == report.unconfirmed
        now = clock()
        step = max(report.confirmed_at or now, now + CONFIRM_AFTER) - now + timedelta(minutes=1)
        passed += step
        gateway.clock.set(gateway.clock.now() + step)
    raise AssertionError(report.summary)


def recorded(series: Series, first: date, end: date) -> pa.Table:
    """Return the recorded bars of session dates, in the store's columns."""
    folder = RECORDED / series.symbol.removesuffix(".ETH")
    table = pq.read_table(folder / f"{series.timeframe}.parquet")
    calendar = calendar_named(series.instrument.calendar)
    interval = interval_between(calendar, series.timeframe, first, end)
    ts = table["ts"].cast(pa.timestamp("us")).cast(pa.int64()).combine_chunks()
    keys = pa.array(ts, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    volume = table["volume"]
    if series.instrument.calendar == "FX":
        volume = pa.nulls(table.num_rows, pa.float64())
    table = table.set_column(0, "ts", keys).set_column(5, "volume", volume)
    inside = pc.and_(pc.greater_equal(keys, interval.start), pc.less(keys, interval.end))
    return table.filter(inside)


def stored(settings: Settings, series: Series, first: date, end: date) -> pa.Table:
    """Return the stored bars of session dates, in the recording's columns."""
    layout = layout_of(settings)
    calendar = calendar_named(series.instrument.calendar)
    interval = interval_between(calendar, series.timeframe, first, end)
    bars = BarStore(layout, Ledger(layout.ledger)).read(series, interval)
    return bars.select(["ts", "open", "high", "low", "close", "volume"])


def assert_same(left: pa.Table, right: pa.Table) -> None:
    """Compare bit by bit."""
    assert left.num_rows == right.num_rows > 0
    for name in ("ts", "open", "high", "low", "close", "volume"):
        assert left[name].to_pylist() == right[name].to_pylist(), name


@pytest.mark.parametrize(("symbol", "timeframe", "first", "end"), CASES)
def test_stored_bars_equal_the_recording_bit_for_bit(
    settings: Settings,
    gateway: SimulatorServer,
    symbol: str,
    timeframe: str,
    first: date,
    end: date,
) -> None:
    """Every recorded bar of the range is stored unchanged, and no other bar."""
    series = series_named(settings, symbol, timeframe)
    load_until_confirmed(settings, gateway, job(series, first, end))
    assert_same(stored(settings, series, first, end), recorded(series, first, end))


@pytest.mark.slow
def test_an_expired_future_is_stored_bit_for_bit(
    settings: Settings, gateway: SimulatorServer
) -> None:
    """It has days of 2013 with their late halt, and the last day with the time after it."""
    series = series_named(settings, "ESZ3", "1m")
    for first, end in (
        (date(2013, 10, 7), date(2013, 10, 16)),
        (date(2013, 10, 28), date(2013, 11, 1)),
        (date(2013, 12, 20), date(2014, 2, 1)),
    ):
        load_until_confirmed(settings, gateway, job(series, first, end))
        assert_same(stored(settings, series, first, end), recorded(series, first, end))


def test_daily_bars_of_23_years_take_at_most_24_requests(
    settings: Settings, gateway: SimulatorServer
) -> None:
    """AAPL 1d from 1998 to 2021 needs one request a year at most."""
    series = series_named(settings, "AAPL", "1d")
    before = len(gateway.requests)
    [report] = load(settings, [job(series, date(1998, 1, 1), date(2021, 4, 1))])
    requests = [request for request in gateway.requests[before:] if request.kind == "history"]
    assert report.rows >= 5849
    assert 0 < len(requests) <= 24


@pytest.mark.slow
def test_a_dagster_run_leaves_the_same_files(settings: Settings, tmp_path: Path) -> None:
    """A ranged Dagster run writes files with the same rows and coverage."""
    series = series_named(settings, "AAPL", "1h")
    load(settings, [job(series, date(2019, 1, 1), date(2021, 1, 1))])
    other = create_store(tmp_path / "dagster")
    other.universe.write_text(UNIVERSE, encoding="utf-8")
    through = settings.model_copy(update={"ktrdr_data": other.root})
    defs = build_defs(through)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("symbols_1h", ["AAPL"])
        result = dg.materialize(
            list(defs.assets or []),
            selection=[dg.AssetKey(["bars", "1h"])],
            resources=defs.resources,
            instance=instance,
            tags={
                "dagster/asset_partition_range_start": "AAPL|2019",
                "dagster/asset_partition_range_end": "AAPL|2020",
            },
        )
        assert result.success
    one, two = layout_of(settings), layout_of(through)
    ledgers = [BarStore(layout, Ledger(layout.ledger)) for layout in (one, two)]
    assert ledgers[0].coverage(series).bars == ledgers[1].coverage(series).bars
    files = [layout.bar_files("AAPL", Timeframe.H1) for layout in (one, two)]
    assert [one.relative(path) for path in files[0]] == [two.relative(path) for path in files[1]]
    for left, right in zip(*files, strict=True):
        assert pq.read_table(left).equals(pq.read_table(right))
