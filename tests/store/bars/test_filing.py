"""Files that other programs changed: removed bars are missing again, and nothing else is."""

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.bars import with_basis
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_file import has_footer, read_bars, read_footer
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.maintenance.repair import repair
from tests.support.older_files import make_older
from tests.support.rewriting import Rewrite, by_arrow, by_duckdb, by_pandas, where

FIRST, END = date(2024, 6, 3), date(2024, 7, 1)
GONE = (date(2024, 6, 12), date(2024, 6, 13), date(2024, 6, 25))
DAY = timedelta(days=1)

# Every program alters the schema in its own way; whether the footer stays decides what is believed.
rewriting = pytest.mark.parametrize("rewrite", [by_arrow, by_duckdb])


def _not_on(*days: date) -> str:
    return " AND ".join(f"session_date <> DATE '{day}'" for day in days)


def _month(make: Any, store: BarStore, timeframe: Timeframe, key: str = "XNYS.RTH") -> Series:
    """Save a whole month, all of it covered."""
    series: Series = make.series(timeframe, "EURUSD" if key == "FX" else "AAPL", key)
    ends = make.true_ends(series, FIRST, END)
    covered = Coverage(IntervalSet([_whole(series)]))
    store.save(series, make.identity(series), make.bars(series, ends), covered)
    return series


def _whole(series: Series, first: date = FIRST, end: date = END) -> Interval:
    calendar = calendar_named(series.instrument.calendar)
    return interval_between(calendar, series.timeframe, first, end)


def _path(store: BarStore, series: Series) -> Path:
    (path,) = store.layout.bar_files(series.symbol, series.timeframe)
    return path


@pytest.mark.parametrize(
    ("rewrite", "key", "timeframe"),
    [
        (by_arrow, "XNYS.RTH", Timeframe.M5),
        (by_arrow, "XNYS.ETH", Timeframe.H1),
        (by_arrow, "FX", Timeframe.D1),
        (by_pandas, "XNYS.RTH", Timeframe.H1),
        (by_pandas, "XNYS.ETH", Timeframe.D1),
        (by_pandas, "FX", Timeframe.M5),
        (by_duckdb, "XNYS.RTH", Timeframe.D1),
        (by_duckdb, "XNYS.ETH", Timeframe.M5),
        (by_duckdb, "FX", Timeframe.H1),
    ],
)
def test_removed_days_are_uncovered_and_nothing_else(
    store: BarStore, make: Any, rewrite: Rewrite, key: str, timeframe: Timeframe
) -> None:
    """With the footer kept or lost, exactly the removed days are no longer covered."""
    series = _month(make, store, timeframe, key)
    before = store.read(series)
    rewrite(_path(store, series), where(_not_on(*GONE)))
    gone = IntervalSet(_whole(series, day, day + DAY) for day in GONE)
    assert store.coverage(series).bars == IntervalSet([_whole(series)]) - gone
    left = before.filter(pc.invert(pc.is_in(before["session_date"], pa.array(GONE))))
    assert store.read(series).equals(left)
    assert store.rows(series) == left.num_rows
    assert not set(GONE) & set(store.rows_per_session(series))
    assert store.identity(series) == make.identity(series)


@rewriting
def test_a_removed_week_is_uncovered(store: BarStore, make: Any, rewrite: Rewrite) -> None:
    """A weekly bar stands for the seven days from its Monday."""
    series = _month(make, store, Timeframe.W1)
    rewrite(_path(store, series), where("ts <> TIMESTAMPTZ '2024-06-10 00:00:00Z'"))
    week = _whole(series, date(2024, 6, 10), date(2024, 6, 17))
    assert store.coverage(series).bars == IntervalSet([_whole(series)]) - IntervalSet([week])


@rewriting
def test_removed_minutes_uncover_their_session(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """In a file without digests, one removed bar uncovers its whole session."""
    series = _month(make, store, Timeframe.M1)
    make_older(store.layout, _path(store, series))
    rewrite(_path(store, series), where("ts <> TIMESTAMPTZ '2024-06-12 15:00:00Z'"))
    day = IntervalSet([_whole(series, GONE[0], GONE[0] + DAY)])
    assert store.coverage(series).bars == IntervalSet([_whole(series)]) - day
    assert store.rows_per_session(series)[GONE[0]] == 389


@rewriting
def test_minutes_removed_from_a_file_with_digests_are_damage(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """The remaining bars of the session cannot be checked: the file is refused."""
    series = _month(make, store, Timeframe.M1)
    rewrite(_path(store, series), where("ts <> TIMESTAMPTZ '2024-06-12 15:00:00Z'"))
    with pytest.raises(CorruptFileError, match=r"bars of 2024-06-12 are gone.*ktrdr repair"):
        store.coverage(series)


@rewriting
def test_the_next_save_writes_the_true_coverage(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """Filled days are covered, others stay missing, and the footer agrees."""
    series = _month(make, store, Timeframe.M5)
    before, path = store.read(series), _path(store, series)
    rewrite(path, where(_not_on(*GONE)))
    for number, day in enumerate(GONE, start=1):
        ends = make.true_ends(series, day, day + DAY)
        part = Coverage(IntervalSet([_whole(series, day, day + DAY)]))
        store.save(series, make.identity(series), make.bars(series, ends), part)
        left = IntervalSet(_whole(series, day, day + DAY) for day in GONE[number:])
        assert store.coverage(series).bars == IntervalSet([_whole(series)]) - left
        assert read_footer(path).coverage == store.coverage(series)
    assert store.read(series).equals(before)


@rewriting
def test_a_save_recounts_a_changed_file(store: BarStore, make: Any, rewrite: Rewrite) -> None:
    """Even if nothing has read the file since it was changed."""
    series = _month(make, store, Timeframe.M5)
    rewrite(_path(store, series), where(_not_on(*GONE)))
    july = make.true_ends(series, END, date(2024, 7, 3))
    later = Coverage(IntervalSet([_whole(series, END, date(2024, 7, 3))]))
    store.save(series, make.identity(series), make.bars(series, july), later)
    gone = IntervalSet(_whole(series, day, day + DAY) for day in GONE)
    assert store.coverage(series).bars == (
        IntervalSet([_whole(series, FIRST, date(2024, 7, 3))]) - gone
    )
    assert read_footer(_path(store, series)).coverage == store.coverage(series)


def test_a_file_that_is_gone_covers_nothing(store: BarStore, make: Any) -> None:
    """All of it is missing."""
    series = _month(make, store, Timeframe.M5)
    _path(store, series).unlink()
    assert store.coverage(series) == Coverage()
    assert store.rows(series) == 0


@rewriting
def test_a_file_without_bars_covers_no_session(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """Only the time between sessions may stay covered."""
    series = _month(make, store, Timeframe.H1)
    rewrite(_path(store, series), where("false"))
    calendar = calendar_named("XNYS.RTH")
    covered = store.coverage(series).bars
    for session in calendar.sessions(FIRST, END):
        assert not covered.clip(Interval(session.opens_at, session.closes_at))


@rewriting
def test_a_proof_of_emptiness_outlives_a_recount(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """Removed bars refute no interval that had none."""
    series = _month(make, store, Timeframe.H1)
    proof = make.empty(*_ends(_whole(series, END, date(2024, 7, 5))), store._clock())
    store.save(series, make.identity(series), make.bars(series, []), proof)
    rewrite(_path(store, series), where(_not_on(*GONE)))
    assert store.coverage(series).empty == tuple(
        Emptiness(one.interval, one.proved_at) for one in proof.empty
    )


def _ends(interval: Interval) -> tuple[Any, Any]:
    return interval.start, interval.end


@rewriting
def test_the_result_of_a_recount_is_recorded(store: BarStore, make: Any, rewrite: Rewrite) -> None:
    """The file index has it, so that the file is read once."""
    series = _month(make, store, Timeframe.M5)
    path = _path(store, series)
    rewrite(path, where(_not_on(*GONE)))
    found = store.coverage(series)
    (row,) = store.ledger.files.of("AAPL|5m").values()
    assert row.coverage == found
    assert row.fingerprint.mtime_ns == path.stat().st_mtime_ns


def test_bars_that_were_never_written_are_refused(store: BarStore, make: Any) -> None:
    """A session with more bars than were written cannot be trusted, with a footer or without."""
    series = _month(make, store, Timeframe.M5)
    path = _path(store, series)
    bars = pq.read_table(path, partitioning=None)
    invented = bars.slice(0, 1).set_column(
        0, bars.schema.field("ts"), pc.add(bars["ts"].slice(0, 1), pa.scalar(DAY / 1440))
    )
    for schema in (bars.schema, bars.schema.remove_metadata()):
        mixed = pa.concat_tables([bars.slice(0, 1), invented, bars.slice(3)]).cast(schema)
        pq.write_table(mixed.replace_schema_metadata(schema.metadata), path)
        assert has_footer(path) is (schema.metadata is not None)
        with pytest.raises(CorruptFileError, match="bars of 2024-06-03 are gone"):
            store.coverage(series)
    more = pa.concat_tables([bars.slice(0, 1), invented, bars.slice(1)])
    pq.write_table(more, path)
    with pytest.raises(CorruptFileError, match=r"2024\.parquet.*written.*ktrdr repair"):
        store.coverage(series)


def test_bars_of_another_day_are_refused(store: BarStore, make: Any) -> None:
    """Fewer bars in all, but more on one day than were written: an error that names the day."""
    series = _month(make, store, Timeframe.M5)
    path = _path(store, series)
    bars = read_bars(path).slice(100)
    extra = make.run(series, calendar_named("XNYS.RTH").sessions(END, END + DAY)[0].opens_at, 3)
    pq.write_table(pa.concat_tables([bars, with_basis(extra, 0)]), path)
    with pytest.raises(CorruptFileError, match="3 bars of 2024-07-01, 0 were written"):
        store.coverage(series)


def test_bars_out_of_order_are_refused(store: BarStore, make: Any) -> None:
    """Readers rely on the order."""
    series = _month(make, store, Timeframe.M5)
    path = _path(store, series)
    bars = pq.read_table(path, partitioning=None)
    pq.write_table(bars.take(list(range(bars.num_rows - 1, -1, -1))), path)
    with pytest.raises(CorruptFileError, match="not in order"):
        store.coverage(series)


def test_timestamps_without_a_zone_are_refused(store: BarStore, make: Any) -> None:
    """Their zone is not guessed."""
    series = _month(make, store, Timeframe.M5)
    path = _path(store, series)
    frame = pd.read_parquet(path, engine="pyarrow", partitioning=None)
    frame["ts"] = frame["ts"].dt.tz_localize(None)
    frame.to_parquet(path)
    with pytest.raises(CorruptFileError, match="columns"):
        store.coverage(series)


@rewriting
def test_without_its_calendar_no_removed_day_is_covered(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """For a symbol outside the universe, the bars around a removed day bound it."""
    series = _month(make, store, Timeframe.M5)
    rewrite(_path(store, series), where(_not_on(*GONE)))
    covered = store.coverage_of("AAPL", Timeframe.M5).bars
    gone = IntervalSet(_whole(series, day, day + DAY) for day in GONE)
    assert not covered & gone
    assert covered == covered & store.coverage(series).bars
    for session in calendar_named("XNYS.RTH").sessions(FIRST, END):
        inside = Interval(session.opens_at, session.closes_at)
        assert covered.covers(inside) is (session.day not in GONE)


@rewriting
def test_without_its_calendar_a_short_pause_hides_nothing(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """A removed day is missing although it began before the last 4h bar of the day before ended.

    Spot currencies pause from 17:00 to 17:15 in New York, and the bar before that began at 16:00.
    """
    series = _month(make, store, Timeframe.H4, "FX")
    rewrite(_path(store, series), where(_not_on(*GONE)))
    covered = store.coverage_of("EURUSD", Timeframe.H4).bars
    for session in calendar_named("FX").sessions(FIRST, END):
        inside = Interval(session.opens_at, session.closes_at)
        assert session.day not in GONE or not covered.clip(inside)


@rewriting
def test_repair_corrects_the_footer(
    layout: StoreLayout, store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """It keeps every remaining bar and quarantines nothing."""
    series = _month(make, store, Timeframe.M5)
    path = _path(store, series)
    rewrite(path, where(_not_on(*GONE)))
    bars = store.read(series)
    report = repair(layout, [series.instrument])
    assert (report.quarantined, report.fixed) == ((), (path,))
    gone = IntervalSet(_whole(series, day, day + DAY) for day in GONE)
    assert read_footer(path).coverage.bars == IntervalSet([_whole(series)]) - gone
    assert read_bars(path).equals(with_basis(bars, 0))
    assert store.coverage(series) == read_footer(path).coverage
    assert repair(layout, [series.instrument]).fixed == ()
