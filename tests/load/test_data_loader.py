"""IbDataLoader: bars by symbol as frames, over the same path as commands and assets."""

import asyncio
from collections.abc import Callable
from datetime import date, datetime

import pandas as pd
import pytest

from ktrdr_pipelines.domain.bars import micros, timestamps
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
from tests.load.conftest import World
from tests.load.fakes import utc

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
FIRST, END = date(2024, 6, 3), date(2024, 6, 15)


def loader_of(made: World) -> IbDataLoader:
    """Give a loader over the store and the gateway of a world."""
    instrument = made.series.instrument
    universe = Universe({instrument.symbol: instrument})
    return IbDataLoader(made.bench.manager(), made.bench.store, universe)


def keys_in(frame: pd.DataFrame) -> list[int]:
    """Give the timestamps of a frame in microseconds."""
    index = pd.DatetimeIndex(frame.index)
    return [round(one.timestamp() * 1_000_000) for one in index]


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1])
def test_a_range_is_loaded_once_and_returned_whole(world: MakeWorld, timeframe: Timeframe) -> None:
    """The frame has every bar of the range with its values; a second call requests nothing."""
    made = world(RTH, timeframe, FIRST, END)
    frame = loader_of(made).load_data_range("AAPL", str(timeframe), FIRST, END)
    made.check_complete()
    stored = made.bench.store.read(made.series, made.wanted)
    assert keys_in(frame) == timestamps(stored).tolist()
    assert frame["close"].tolist() == stored["close"].to_pylist()
    assert frame.attrs["missing"] == []
    requests = made.bench.asked
    again = loader_of(made).load_data_range("AAPL", str(timeframe), "2024-06-03", "2024-06-15")
    pd.testing.assert_frame_equal(again, frame)
    assert made.bench.asked == requests


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
    """The progressive load has the bars of the whole range, and begins with the newest year."""
    made = world(RTH, Timeframe.D1, date(2021, 3, 1), date(2024, 3, 1))
    ends: list[datetime] = []

    def twist(request: BarRequest, bars: object) -> object:
        if request.ends_at is not None:
            ends.append(request.ends_at)
        return bars

    made.bench.gateway.twist = twist
    frame = loader_of(made).load_progressive("AAPL", "1d", "2021-03-01", "2024-03-01")
    made.check_complete()
    assert keys_in(frame) == timestamps(made.bench.store.read(made.series, made.wanted)).tolist()
    assert [end.year for end in ends] == sorted((end.year for end in ends), reverse=True)
    assert len({end.year for end in ends}) >= 3


def test_what_is_missing_is_said(world: MakeWorld) -> None:
    """A refused range is named as missing; what keeps a series from loading at all is raised."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    made.bench.gateway.twist = lambda *_: EntitlementError("no permission")
    frame = loader_of(made).load_data_range("AAPL", "1h", FIRST, END)
    assert len(frame) == 0
    assert frame.attrs["missing"]
    report = loader_of(made).load_report("AAPL", "1h", FIRST, END)
    assert report.failures
    assert not report.is_complete
    made.bench.gateway.contract_ids["AAPL"] = 1
    assert loader_of(made).load_report("AAPL", "1h", FIRST, END).error is not None
    with pytest.raises(ForeignIdentityError):
        loader_of(made).load_data_range("AAPL", "1h", FIRST, END)


def test_it_works_inside_a_running_event_loop(world: MakeWorld) -> None:
    """As in a notebook, whose cells run in a loop."""
    made = world(RTH, Timeframe.D1, FIRST, END)

    async def cell() -> pd.DataFrame:
        return loader_of(made).load_data_range("AAPL", "1d", FIRST, END)

    assert len(asyncio.run(cell())) == 10


def test_newer_bars_replace_older_ones_and_the_older_are_kept(world: MakeWorld) -> None:
    """A merge saves the newer values, keeps the older as a revision, and covers nothing."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    loader = loader_of(made)
    frame = loader.load_data_range("AAPL", "1h", FIRST, END)
    covered = made.bench.store.coverage(made.series)
    newer = frame.iloc[-3:].copy()
    newer.loc[newer.index[0], "volume"] += 1
    merged = loader.merge_and_save_data("AAPL", "1h", frame, newer)
    assert len(merged) == len(frame)
    assert merged["volume"].tolist()[-3] == frame["volume"].tolist()[-3] + 1
    stored = made.bench.store.read(made.series, made.wanted)
    assert stored["volume"].to_pylist() == merged["volume"].tolist()
    revisions = made.bench.ledger.revisions.of(series_key(made.series))
    assert [one.volume for one in revisions] == [frame["volume"].iloc[-3]]
    assert made.bench.store.coverage(made.series) == covered
    alone = loader.merge_and_save_data("AAPL", "1h", None, newer)
    assert keys_in(alone) == keys_in(newer)


def test_merged_bars_cover_nothing(world: MakeWorld) -> None:
    """A load requests what no response has covered, and finds the same bars."""
    whole, made = (world(RTH, Timeframe.H1, FIRST, END) for _ in range(2))
    frame = loader_of(whole).load_data_range("AAPL", "1h", FIRST, END)
    loader = loader_of(made)
    loader.load_data_range("AAPL", "1h", FIRST, date(2024, 6, 4))
    loader.merge_and_save_data("AAPL", "1h", None, frame)
    assert made.bench.store.rows(made.series) == len(frame)
    requests = made.bench.asked
    assert loader.load_report("AAPL", "1h", FIRST, END).is_complete
    assert made.bench.asked > requests
    made.check_complete()


def test_bars_of_another_source_never_mix_in(world: MakeWorld) -> None:
    """Frames of unknown source, of other series and of odd values are refused; nothing changes."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    loader = loader_of(made)
    frame = loader.load_data_range("AAPL", "1h", FIRST, END)
    before = made.bench.store.read(made.series)
    unknown = frame.copy()
    unknown.attrs = {}
    other = loader.load_data_range("AAPL", "1d", FIRST, END)
    odd = frame.copy()
    odd.loc[odd.index[0], "high"] = odd["low"].iloc[0] - 1
    no_columns = frame[["open", "close"]]
    for bad in (unknown, other, odd, no_columns):
        with pytest.raises(UsageError):
            loader.merge_and_save_data("AAPL", "1h", frame, bad)
    assert made.bench.store.read(made.series).equals(before)


def test_bad_arguments_are_refused_before_anything_is_requested(world: MakeWorld) -> None:
    """Symbols, timeframes and bounds are checked first, and each error says what is allowed."""
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
    assert made.bench.asked == 0
