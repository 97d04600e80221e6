"""Bars of several price bases: stored as they came, read on one basis."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.bars import (
    BAR_SCHEMA,
    STORED_SCHEMA,
    UNCONFIRMED,
    basis_of,
    empty_bars,
    with_basis,
)
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_store import BarStore, SaveResult, read_footer
from ktrdr_pipelines.store.bars.footer import Presumed
from ktrdr_pipelines.store.layout import store_version
from ktrdr_pipelines.store.ledger.basis_records import BasisCheck
from ktrdr_pipelines.store.ledger.ledger import series_key
from tests.support.older_files import make_older

OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def bars_of(make: Any, at: datetime, count: int, price: float, volume: float) -> pa.Table:
    """Return minutes with one price and one volume."""
    bars = make.run(make.series(), at, count, price)
    place = bars.schema.get_field_index("volume")
    return bars.set_column(place, bars.schema.field(place), pa.array(np.full(count, volume)))


def save(
    store: BarStore, make: Any, bars: pa.Table, *presumed: Presumed, series: Series | None = None
) -> SaveResult:
    """Save bars with their coverage."""
    series = series or make.series()
    coverage = make.covering(series, bars)
    result: SaveResult = store.save(
        series, make.identity(series), bars, coverage, presumed=presumed
    )
    return result


def record(store: BarStore, *adjustments: Adjustment) -> None:
    """Write all adjustments of AAPL."""
    store.bases.history.write("AAPL", adjustments)


@pytest.fixture
def rebased(store: BarStore, make: Any) -> BarStore:
    """Return a store with three minutes of basis 0, three of basis 1, and a split of 7:1."""
    save(store, make, bars_of(make, OPEN, 3, 101.3, 1000.0))
    record(store, make.split(1, 1 / 7))
    save(store, make, bars_of(make, OPEN + HOUR, 3, 14.5, 7000.0))
    return store


def test_bars_are_stored_as_they_came_and_read_on_todays_basis(
    rebased: BarStore, make: Any
) -> None:
    """Prices times the ratio and volumes times its inverse, bit for bit; counts as they are."""
    series = make.series()
    raw = rebased.read_raw(series)
    assert raw.schema.equals(STORED_SCHEMA)
    assert raw["close"].to_pylist() == [101.3] * 3 + [14.5] * 3
    assert raw["basis"].to_pylist() == [0] * 3 + [1] * 3
    read = rebased.read(series)
    assert read.schema.equals(BAR_SCHEMA)
    for name in ("open", "high", "low", "close", "average"):
        assert read[name].to_pylist() == [101.3 * (1 / 7)] * 3 + [14.5] * 3
    assert read["volume"].to_pylist() == [1000.0 * (1 / (1 / 7))] * 3 + [7000.0] * 3
    assert read["bar_count"].to_pylist() == [7] * 6
    late = Interval(OPEN + HOUR, OPEN + 2 * HOUR)
    assert rebased.read(series, late).equals(read.slice(3))
    assert rebased.bases.on_todays("AAPL", raw).equals(read)


def test_a_gap_filled_later_lies_on_the_new_basis_between_older_bars(
    rebased: BarStore, make: Any
) -> None:
    """The basis follows the request, not the session; the footer has the runs."""
    filled = OPEN - 30 * MINUTE
    save(rebased, make, bars_of(make, filled, 2, 14.4, 70.0))
    save(rebased, make, bars_of(make, OPEN + 3 * MINUTE, 2, 14.6, 70.0))
    (path,) = rebased.layout.bar_files("AAPL", Timeframe.M1)
    instant = timedelta(microseconds=1)
    assert read_footer(path).basis.intervals == (
        (Interval(filled, filled + MINUTE + instant), 1),
        (Interval(OPEN, OPEN + 2 * MINUTE + instant), 0),
        (Interval(OPEN + 3 * MINUTE, OPEN + HOUR + 2 * MINUTE + instant), 1),
    )
    closes = rebased.read(make.series())["close"].to_pylist()
    assert closes == [14.4] * 2 + [101.3 * (1 / 7)] * 3 + [14.6] * 2 + [14.5] * 3


def test_all_timeframes_of_a_symbol_share_its_adjustments(rebased: BarStore, make: Any) -> None:
    """Another symbol has none."""
    days = make.series(Timeframe.D1)
    bars = with_basis(make.bars(days, [datetime(2024, 6, 3, tzinfo=UTC)], 70.0), 0)
    save(rebased, make, bars, series=days)
    assert rebased.read(days)["close"].to_pylist() == [10.0]
    other = make.series(symbol="MSFT")
    save(rebased, make, make.run(other, OPEN, 1, 70.0), series=other)
    assert rebased.read(other)["close"].to_pylist() == [70.0]


def test_a_manual_adjustment_applies_before_its_date(store: BarStore, make: Any) -> None:
    """To the bars that the store has by then; removed, it applies to none."""
    days = make.series(Timeframe.D1)
    first = datetime(2024, 6, 3, tzinfo=UTC)
    save(store, make, make.run(days, first, 4, 2.0), series=days)
    manual = replace(make.split(1, 100.0, date(2024, 6, 5)), kind=AdjustmentKind.MANUAL)
    record(store, manual)
    assert store.read(days)["close"].to_pylist() == [200.0, 200.0, 2.0, 2.0]
    save(store, make, make.run(days, first, 1, 3.0), series=days)
    assert store.read(days)["close"].to_pylist() == [3.0, 200.0, 2.0, 2.0]
    record(store, replace(manual, removed_at=OPEN))
    assert store.read(days)["close"].to_pylist() == [3.0, 2.0, 2.0, 2.0]


# --- requested again ---------------------------------------------------------------------------


def test_bars_on_the_new_basis_are_no_revision_up_to_rounding(rebased: BarStore, make: Any) -> None:
    """They replace the old ones, and their factor is 1."""
    again = bars_of(make, OPEN, 3, 14.47, 7003.0)  # 101.3 / 7 is 14.4714
    result = save(rebased, make, again)
    assert (result.added, result.revised) == (0, 0)
    assert len(result.files) == 1
    series = make.series()
    assert rebased.ledger.revisions.of(series_key(series)) == []
    assert basis_of(rebased.read_raw(series)).tolist() == [1] * 6
    assert rebased.read(series)["close"].to_pylist() == [14.47] * 3 + [14.5] * 3
    assert save(rebased, make, again).files == ()


@pytest.mark.parametrize("ratio", [0.25, 1 / 7, 20.0, 100.0, 1 / 50, 1.05])
def test_rounding_of_both_bases_is_no_revision(store: BarStore, make: Any, ratio: float) -> None:
    """The old price was rounded to a cent before it is multiplied, the new one after it."""
    rng = np.random.default_rng(4)
    true = rng.uniform(5, 500, 500)
    series = make.series()
    at = [OPEN - 30 * DAY + n * MINUTE for n in range(500)]
    bars = [make.bars(series, at).select(["ts", "session_date"]) for _ in range(2)]
    tables = []
    for table, factor in zip(bars, (1.0, ratio), strict=True):
        price = pa.array(np.round(true * factor, 2))
        volume = pa.array(np.round(1e6 * true / factor))
        columns = [price, price, price, price, volume, price, pa.array([9] * 500, pa.int32())]
        tables.append(pa.Table.from_arrays([*table.columns, *columns], schema=BAR_SCHEMA))
    save(store, make, tables[0])
    record(store, make.split(1, ratio))
    assert save(store, make, tables[1]).revised == 0
    assert store.read(series).equals(tables[1])


@pytest.mark.parametrize(
    ("price", "volume"),
    [(14.49, 7000.0), (14.47, 7500.0), (101.3, 1000.0)],
    ids=["another price", "another volume", "the same numbers on another basis"],
)
def test_other_values_on_another_basis_are_revisions(
    rebased: BarStore, make: Any, price: float, volume: float
) -> None:
    """The ledger keeps the old values as they were stored."""
    result = save(rebased, make, bars_of(make, OPEN, 3, price, volume))
    assert result.revised == 3
    revisions = rebased.ledger.revisions.of(series_key(make.series()))
    assert {(old.close, old.volume) for old in revisions} == {(101.3, 1000.0)}


# --- unconfirmed -------------------------------------------------------------------------------


def unconfirmed(bars: pa.Table) -> pa.Table:
    """Return bars on an unconfirmed basis."""
    return with_basis(bars, UNCONFIRMED)


def test_bars_on_an_unconfirmed_basis_are_stored_and_not_read(rebased: BarStore, make: Any) -> None:
    """Until the same bars come on a known one, whichever it was: that is no revision."""
    series = make.series()
    late = OPEN + 2 * HOUR
    new = unconfirmed(bars_of(make, late, 2, 14.5, 70.0))
    rebased.save(series, make.identity(series), new, Coverage())
    assert rebased.read(series).num_rows == 6
    assert rebased.read_raw(series).num_rows == 8
    spans, count = rebased.unconfirmed("AAPL", Timeframe.M1)
    assert (spans.bounds, count) == (Interval(late, late + MINUTE + timedelta(0, 0, 1)), 2)
    result = save(rebased, make, bars_of(make, late, 1, 14.5, 70.0))
    assert (result.added, result.revised) == (0, 0)
    result = save(rebased, make, bars_of(make, late + MINUTE, 1, 14.5 / 7, 490.0))
    assert (result.added, result.revised) == (0, 0)
    assert rebased.read(series)["close"].to_pylist()[-2:] == [14.5, 14.5 / 7]


def test_bars_on_an_unconfirmed_basis_never_replace_others(rebased: BarStore, make: Any) -> None:
    """Neither values nor coverage of held bars change; unconfirmed ones are replaced."""
    series = make.series()
    before, coverage = rebased.read(series), rebased.coverage(series)
    for at, count in ((OPEN, 3), (OPEN + HOUR, 3)):
        new = unconfirmed(bars_of(make, at, count, 1.0, 1.0))
        result = rebased.save(series, make.identity(series), new, Coverage())
        assert (result.added, result.revised, result.files) == (0, 0, ())
    assert rebased.read(series).equals(before)
    assert rebased.coverage(series) == coverage
    assert rebased.ledger.revisions.of(series_key(series)) == []


# --- presumed ----------------------------------------------------------------------------------

NOON = datetime(2024, 6, 3, 12, 10, tzinfo=UTC)
"""When bars are requested; `Make.split` finds a re-basing that began after midnight."""


def presumed(at: datetime, count: int, fetched_at: datetime = NOON) -> Presumed:
    """Return that the basis of some minutes is presumed."""
    return Presumed(Interval(at, at + count * MINUTE), fetched_at, fetched_at)


def presumed_of(store: BarStore) -> list[Presumed]:
    """Return what the files of AAPL 1m presume."""
    paths = store.layout.bar_files("AAPL", Timeframe.M1)
    return [one for path in paths for one in read_footer(path).basis.presumed]


def test_bars_saved_after_a_later_rebasing_are_unconfirmed_if_presumed(
    store: BarStore, make: Any
) -> None:
    """They were requested when it was not known; those that were compared are what they were."""
    save(store, make, bars_of(make, OPEN - HOUR, 2, 8.0, 9.0))
    record(store, make.split(1, 0.25))
    late, series = OPEN + HOUR, make.series()
    save(store, make, with_basis(bars_of(make, OPEN, 2, 2.0, 9.0), 0), presumed(OPEN, 2))
    save(store, make, with_basis(bars_of(make, late, 2, 8.0, 9.0), 0))
    assert basis_of(store.read_raw(series)).tolist() == [0, 0, UNCONFIRMED, UNCONFIRMED, 0, 0]
    assert store.read(series)["close"].to_pylist() == [2.0] * 4
    assert not store.coverage(series).bars.clip(Interval(OPEN, late))
    assert presumed_of(store) == []
    long_ago = presumed(late + HOUR, 2, NOON - 20 * HOUR)
    save(store, make, with_basis(bars_of(make, late + HOUR, 2, 8.0, 9.0), 0), long_ago)
    assert store.read(series).num_rows == 6
    assert presumed_of(store) == [long_ago]


def test_what_is_confirmed_is_no_longer_presumed(store: BarStore, make: Any) -> None:
    """By a request that was sent later; the file says when that was."""
    save(store, make, bars_of(make, OPEN, 3, 8.0, 9.0), presumed(OPEN, 3))
    store.ledger.basis_checks.change("AAPL", lambda _: BasisCheck(0, confirmed_at=NOON - MINUTE))
    save(store, make, bars_of(make, OPEN + HOUR, 3, 8.0, 9.0))
    assert presumed_of(store) == [presumed(OPEN, 3)]
    store.ledger.basis_checks.change("AAPL", lambda _: BasisCheck(1, confirmed_at=NOON + MINUTE))
    save(store, make, bars_of(make, OPEN + 2 * HOUR, 3, 8.0, 9.0))
    assert presumed_of(store) == [presumed(OPEN, 3)], "the check is of another basis"
    store.ledger.basis_checks.change("AAPL", lambda _: BasisCheck(0, confirmed_at=NOON + MINUTE))
    save(store, make, bars_of(make, OPEN + 3 * HOUR, 3, 8.0, 9.0))
    assert presumed_of(store) == []
    (path,) = store.layout.bar_files("AAPL", Timeframe.M1)
    assert read_footer(path).basis.confirmed_at == NOON + MINUTE


def test_presumed_neighbours_of_one_hour_become_one(store: BarStore, make: Any) -> None:
    """But not across bars that were there before: those are not doubted with them."""
    day_before, hour_later = OPEN - DAY, NOON + HOUR
    save(store, make, bars_of(make, day_before, 2, 8.0, 9.0), presumed(day_before, 2))
    save(store, make, bars_of(make, OPEN, 2, 8.0, 9.0), presumed(OPEN, 2, NOON + MINUTE))
    whole = Presumed(Interval(day_before, OPEN + 2 * MINUTE), NOON + MINUTE, NOON)
    assert presumed_of(store) == [whole]
    save(store, make, bars_of(make, OPEN + HOUR, 2, 8.0, 9.0))
    other = presumed(OPEN + 2 * HOUR, 2)
    save(store, make, bars_of(make, OPEN + 2 * HOUR, 2, 8.0, 9.0), other)
    assert presumed_of(store) == [whole, other]
    last = presumed(OPEN + 2 * HOUR + 2 * MINUTE, 2, hour_later)
    save(store, make, bars_of(make, OPEN + 2 * HOUR + 2 * MINUTE, 2, 8.0, 9.0), last)
    assert presumed_of(store) == [whole, other, last]


# --- files -------------------------------------------------------------------------------------


def test_a_file_of_version_1_is_on_basis_0_and_stays_until_it_is_written(
    store: BarStore, make: Any
) -> None:
    """Reads change neither it nor the marker; the first save makes both of version 2."""
    save(store, make, bars_of(make, OPEN, 3, 8.0, 9.0))
    (path,) = store.layout.bar_files("AAPL", Timeframe.M1)
    make_older(store.layout, path)
    marker = store.layout.marker
    marker.write_text(marker.read_text().replace('"format_version": 2', '"format_version": 1'))
    content = path.read_bytes(), marker.read_bytes()
    series = make.series()
    assert store.read_raw(series)["basis"].to_pylist() == [0] * 3
    assert store.read(series).num_rows == store.rows(series) == 3
    assert store.unconfirmed("AAPL", Timeframe.M1) == (IntervalSet(), 0)
    assert (path.read_bytes(), marker.read_bytes()) == content
    assert store_version(store.layout) == 1
    save(store, make, bars_of(make, OPEN + HOUR, 3, 8.0, 9.0))
    assert store_version(store.layout) == 2
    assert read_footer(path).schema_version == 2
    assert store.read_raw(series)["basis"].to_pylist() == [0] * 6


def rewritten(store: BarStore, *, drop: str = "", keeps_footer: bool = True) -> None:
    """Rewrite the file of AAPL 1m as another program does."""
    (path,) = store.layout.bar_files("AAPL", Timeframe.M1)
    with pq.ParquetFile(path) as file:
        metadata, table = file.metadata.metadata, file.read()
    table = table.drop_columns([drop]) if drop else table
    pq.write_table(table.replace_schema_metadata(metadata if keeps_footer else None), path)


@pytest.mark.parametrize("keeps_footer", [True, False])
@pytest.mark.parametrize("drop", ["", "basis"])
def test_a_file_that_another_program_rewrote_keeps_the_basis_of_its_bars(
    rebased: BarStore, make: Any, drop: str, *, keeps_footer: bool
) -> None:
    """By the footer, or by the ledger where that is gone too; the next save writes the column."""
    series = make.series()
    before, raw = rebased.read(series), rebased.read_raw(series)
    rewritten(rebased, drop=drop, keeps_footer=keeps_footer)
    assert rebased.read(series).equals(before)
    assert rebased.read_raw(series).equals(raw)
    save(rebased, make, bars_of(make, OPEN + 2 * HOUR, 1, 14.5, 70.0))
    assert rebased.read(series).slice(0, 6).equals(before)
    (path,) = rebased.layout.bar_files("AAPL", Timeframe.M1)
    assert pq.read_schema(path).names == STORED_SCHEMA.names


@pytest.mark.parametrize("is_sealed", [True, False])
def test_a_basis_that_another_program_changed_is_damage(
    rebased: BarStore, make: Any, *, is_sealed: bool
) -> None:
    """The digest shows it; without one the footer has the basis of each bar."""
    (path,) = rebased.layout.bar_files("AAPL", Timeframe.M1)
    with pq.ParquetFile(path) as file:
        metadata, table = file.metadata.metadata, file.read()
    if not is_sealed:
        fields = json.loads(metadata[b"ktrdr"])
        del fields["seal"], fields["digests"]
        metadata = {b"ktrdr": json.dumps(fields).encode()}
        rebased.ledger.files.remove([rebased.layout.relative(path)])
    place = table.schema.get_field_index("basis")
    table = table.set_column(place, table.schema.field(place), pa.array([0] * 6, pa.int16()))
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(CorruptFileError, match=r"2024\.parquet.*ktrdr repair"):
        rebased.coverage(make.series())
    with pytest.raises(CorruptFileError):
        save(rebased, make, bars_of(make, OPEN + 2 * HOUR, 1, 14.5, 70.0))


def test_nothing_to_save_needs_no_adjustments(store: BarStore, make: Any) -> None:
    """An empty save of a new symbol writes nothing."""
    series = make.series()
    assert store.save(series, make.identity(series), empty_bars(), Coverage()).files == ()
