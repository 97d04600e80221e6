"""IbDataLoader: bars by symbol as frames, over the same path as commands and assets."""

import asyncio
import signal
import threading
from collections.abc import Callable
from datetime import date, datetime

import pandas as pd
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import micros, timestamps
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.errors import (
    EntitlementError,
    ForeignIdentityError,
    UnknownSymbolError,
    UsageError,
)
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.sync.loader import IbDataLoader
from tests.support.fake_gateway import utc
from tests.support.loading import MakeHarness, World
from tests.support.splitting import split_market

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
FIRST, END = date(2024, 6, 3), date(2024, 6, 15)


def loader_of(made: World) -> IbDataLoader:
    """Return a loader over the store and the gateway of a world."""
    instrument = made.series.instrument
    universe = Universe({instrument.symbol: instrument})
    return IbDataLoader(made.harness.manager(), made.harness.store, universe)


def keys_in(frame: pd.DataFrame) -> list[int]:
    """Return the timestamps of a frame in microseconds."""
    index = pd.DatetimeIndex(frame.index)
    return [round(one.timestamp() * 1_000_000) for one in index]


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1])
def test_a_range_is_loaded_once_and_returned_whole(world: MakeWorld, timeframe: Timeframe) -> None:
    """The frame has every bar of the range with its values; a second call requests nothing."""
    made = world(RTH, timeframe, FIRST, END)
    frame = loader_of(made).load_data_range("AAPL", str(timeframe), FIRST, END)
    made.check_complete()
    stored = made.harness.store.read(made.series, made.wanted)
    assert keys_in(frame) == timestamps(stored).tolist()
    assert frame["close"].tolist() == stored["close"].to_pylist()
    assert frame.attrs["missing"] == []
    requests = made.harness.request_count
    again = loader_of(made).load_data_range("AAPL", str(timeframe), "2024-06-03", "2024-06-15")
    pd.testing.assert_frame_equal(again, frame)
    assert made.harness.request_count == requests


def test_a_range_may_be_bounded_by_instants(world: MakeWorld) -> None:
    """An instant bounds the frame to the bar; without a zone it is refused."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    start, end = utc(2024, 6, 4, 15), utc(2024, 6, 4, 18)
    loader = loader_of(made)
    with pytest.raises(UsageError, match="without a zone"):
        loader.load_data_range("AAPL", "1h", start.replace(tzinfo=None), end)
    frame = loader.load_data_range("AAPL", "1h", start, end.isoformat())
    assert keys_in(frame) == [micros(utc(2024, 6, 4, hour)) for hour in (15, 16, 17)]


def test_years_are_loaded_newest_first(world: MakeWorld) -> None:
    """A progressive load returns the whole range, and begins with the newest year."""
    made = world(RTH, Timeframe.D1, date(2021, 3, 1), date(2024, 3, 1))
    ends: list[datetime] = []

    def mutate(request: BarRequest, bars: object) -> object:
        if request.ends_at is not None:
            ends.append(request.ends_at)
        return bars

    made.harness.gateway.mutate = mutate
    frame = loader_of(made).load_progressive("AAPL", "1d", "2021-03-01", "2024-03-01")
    made.check_complete()
    assert keys_in(frame) == timestamps(made.harness.store.read(made.series, made.wanted)).tolist()
    assert [end.year for end in ends] == sorted((end.year for end in ends), reverse=True)
    assert len({end.year for end in ends}) >= 3


def test_missing_ranges_are_reported(world: MakeWorld) -> None:
    """A refused range is listed as missing; an error of the whole series is raised."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    made.harness.gateway.mutate = lambda *_: EntitlementError("no permission")
    frame = loader_of(made).load_data_range("AAPL", "1h", FIRST, END)
    assert len(frame) == 0
    assert frame.attrs["missing"]
    report = loader_of(made).load_report("AAPL", "1h", FIRST, END)
    assert report.failures
    assert not report.is_complete
    made.harness.gateway.contract_ids["AAPL"] = 1
    assert loader_of(made).load_report("AAPL", "1h", FIRST, END).error is not None
    with pytest.raises(ForeignIdentityError):
        loader_of(made).load_data_range("AAPL", "1h", FIRST, END)


def test_loads_work_inside_a_running_event_loop(world: MakeWorld) -> None:
    """A load works in a notebook, whose cells run in an event loop."""
    made = world(RTH, Timeframe.D1, FIRST, END)

    async def cell() -> pd.DataFrame:
        return loader_of(made).load_data_range("AAPL", "1d", FIRST, END)

    assert len(asyncio.run(cell())) == 10


def test_newer_bars_replace_older_ones_and_the_older_are_kept(world: MakeWorld) -> None:
    """A merge saves the newer values, keeps the older as a revision, and covers nothing."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    loader = loader_of(made)
    frame = loader.load_data_range("AAPL", "1h", FIRST, END)
    covered = made.harness.store.coverage(made.series)
    newer = frame.iloc[-3:].copy()
    newer.loc[newer.index[0], "volume"] += 1
    merged = loader.merge_and_save_data("AAPL", "1h", frame, newer)
    assert len(merged) == len(frame)
    assert merged["volume"].tolist()[-3] == frame["volume"].tolist()[-3] + 1
    stored = made.harness.store.read(made.series, made.wanted)
    assert stored["volume"].to_pylist() == merged["volume"].tolist()
    revisions = made.harness.ledger.revisions.of(series_key(made.series))
    assert [one.volume for one in revisions] == [frame["volume"].iloc[-3]]
    assert made.harness.store.coverage(made.series) == covered
    alone = loader.merge_and_save_data("AAPL", "1h", None, newer)
    assert keys_in(alone) == keys_in(newer)


def test_merged_bars_cover_nothing(world: MakeWorld) -> None:
    """A load requests what no response has covered, and finds the same bars."""
    whole, made = (world(RTH, Timeframe.H1, FIRST, END) for _ in range(2))
    frame = loader_of(whole).load_data_range("AAPL", "1h", FIRST, END)
    loader = loader_of(made)
    loader.load_data_range("AAPL", "1h", FIRST, date(2024, 6, 4))
    loader.merge_and_save_data("AAPL", "1h", None, frame)
    assert made.harness.store.rows(made.series) == len(frame)
    requests = made.harness.request_count
    assert loader.load_report("AAPL", "1h", FIRST, END).is_complete
    assert made.harness.request_count > requests
    made.check_complete()


def test_bars_of_another_source_are_refused(world: MakeWorld) -> None:
    """Frames of unknown source, other series or invalid rows are refused on either side."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    loader = loader_of(made)
    frame = loader.load_data_range("AAPL", "1h", FIRST, END)
    before = made.harness.store.read(made.series)
    unknown, odd, no_zone, moved, newer = (frame.copy() for _ in range(5))
    unknown.attrs = {}
    odd.loc[odd.index[0], "high"] = odd["low"].iloc[0] - 1
    index = pd.DatetimeIndex(frame.index)
    no_zone.index = index.tz_convert("America/New_York").tz_localize(None).rename("ts")
    moved.index = (index + pd.Timedelta(minutes=7)).rename("ts")
    newer["volume"] += 1
    bad = (
        unknown,
        odd,
        no_zone,
        moved,
        loader.load_data_range("AAPL", "1d", FIRST, END),
        frame[["open", "close"]],
    )
    for one in bad:
        for pair in ((frame, one), (one, newer)):
            with pytest.raises(UsageError):
                loader.merge_and_save_data("AAPL", "1h", *pair)
    assert made.harness.store.read(made.series).equals(before)


@pytest.mark.parametrize("timeframe", ["1d", "1w"])
def test_days_and_weeks_are_merged_at_their_own_timestamps(
    world: MakeWorld, timeframe: str
) -> None:
    """A frame of days or weeks merges with itself; one whose bars are moved by a day is refused."""
    made = world(RTH, Timeframe(timeframe), date(2024, 5, 6), date(2024, 6, 15))
    loader = loader_of(made)
    frame = loader.load_data_range("AAPL", timeframe, "2024-05-06", "2024-06-15")
    merged = loader.merge_and_save_data("AAPL", timeframe, frame, frame)
    pd.testing.assert_frame_equal(merged, frame)
    moved = frame.copy()
    moved.index = (pd.DatetimeIndex(frame.index) + pd.Timedelta(days=1)).rename("ts")
    with pytest.raises(UsageError, match="timestamp, a date"):
        loader.merge_and_save_data("AAPL", timeframe, None, moved)


def test_implausible_bars_that_the_gateway_repeats_merge_unchanged(world: MakeWorld) -> None:
    """A bar that was returned twice is held and merges; with another odd value it is refused."""
    made = world(RTH, Timeframe.H1, FIRST, END)

    def mutate(_: BarRequest, bars: pa.Table) -> pa.Table:
        place = bars.schema.get_field_index("volume")
        volumes = [5e18, *bars["volume"].to_pylist()[1:]]
        return bars.set_column(place, bars.schema.field("volume"), pa.array(volumes))

    made.harness.gateway.mutate = mutate
    loader = loader_of(made)
    frame = loader.load_data_range("AAPL", "1h", FIRST, END)
    assert frame["volume"].max() == 5e18
    pd.testing.assert_frame_equal(loader.merge_and_save_data("AAPL", "1h", frame, frame), frame)
    odd = frame.copy()
    odd.loc[odd["volume"].idxmax(), "volume"] = 6e18
    with pytest.raises(UsageError, match="values that no bar has"):
        loader.merge_and_save_data("AAPL", "1h", frame, odd)


def test_missing_ranges_of_every_year_are_reported(world: MakeWorld) -> None:
    """They are those of several years, and of both frames of a merge."""
    made = world(RTH, Timeframe.H1, date(2023, 12, 1), date(2024, 2, 1))
    loader = loader_of(made)
    january = loader.load_data_range("AAPL", "1h", "2024-01-02", "2024-01-10")
    assert january.attrs["missing"] == []
    made.harness.gateway.mutate = lambda *_: EntitlementError("no permission")
    frame = loader.load_progressive("AAPL", "1h", "2023-12-01", "2024-02-01")
    years = {start[:4] for start, _ in frame.attrs["missing"]}
    assert years == {"2023", "2024"}
    merged = loader.merge_and_save_data("AAPL", "1h", frame, january)
    assert merged.attrs["missing"] == frame.attrs["missing"]


def test_an_interrupt_in_a_notebook_ends_the_load(world: MakeWorld) -> None:
    """An interrupt of the main thread cancels the load, which runs in a thread of its own."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    requested = threading.Event()

    async def never(_: BarRequest) -> None:
        requested.set()
        await asyncio.Event().wait()

    made.harness.gateway.before_response = never
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        assert requested.wait(30)
        signal.pthread_kill(main, signal.SIGINT)

    async def cell() -> pd.DataFrame:
        return loader_of(made).load_data_range("AAPL", "1h", FIRST, END)

    loop, helper = asyncio.new_event_loop(), threading.Thread(target=interrupt)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(cell())
    loop.close()
    helper.join()


def test_bad_arguments_are_refused_before_anything_is_requested(world: MakeWorld) -> None:
    """Symbols, timeframes and bounds are checked first, and each error states the reason."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    loader = loader_of(made)
    with pytest.raises(UnknownSymbolError):
        loader.load_data_range("AAPLE", "1h", FIRST, END)
    with pytest.raises(UsageError, match="no such timeframe"):
        loader.load_progressive("AAPL", "2h", FIRST, END)
    with pytest.raises(UsageError, match="reversed"):
        loader.load_report("AAPL", "1h", END, FIRST)
    with pytest.raises(UsageError, match="future"):
        loader.load_data_range("AAPL", "1h", FIRST, date(2031, 1, 1))
    with pytest.raises(UsageError, match="no bar of this timeframe begins"):
        loader.load_report("AAPL", "1w", "2024-06-04", "2024-06-06")
    assert made.harness.request_count == 0


def test_frames_after_a_split_store_nothing_that_was_multiplied(harness: MakeHarness) -> None:
    """Bars that are as the store returns them stay as they are; changed ones are refused."""
    now = utc(2024, 5, 28, 21)
    made = split_market(harness, [Timeframe.D1], now, first=date(2024, 4, 1), end=date(2024, 7, 1))
    made.run(Timeframe.D1, mode=Mode.FULL)
    series, store = made.series[Timeframe.D1], made.harness.store
    universe = Universe({"AAPL": series.instrument})
    loader = IbDataLoader(made.harness.manager(), store, universe)
    before = loader.load_data_range("AAPL", "1d", "2024-04-01", "2024-05-28")
    made.splits[utc(2024, 5, 29, 4)] = 1 / 4
    made.gateway.time = utc(2024, 5, 29, 21)
    made.run(Timeframe.D1)
    raw = store.read_raw(series)
    frame = loader.load_data_range("AAPL", "1d", "2024-04-01", "2024-05-29")
    assert frame["close"].iloc[0] == before["close"].iloc[0] / 4
    pd.testing.assert_frame_equal(loader.merge_and_save_data("AAPL", "1d", frame, frame), frame)
    assert store.read_raw(series).equals(raw)
    with pytest.raises(UsageError, match="not on today's basis"):
        loader.merge_and_save_data("AAPL", "1d", None, before)
    changed = frame.copy()
    changed.loc[changed.index[0], "volume"] += 1
    with pytest.raises(UsageError, match="older price basis"):
        loader.merge_and_save_data("AAPL", "1d", frame, changed)
    assert store.read_raw(series).equals(raw)
