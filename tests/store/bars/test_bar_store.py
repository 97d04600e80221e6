"""Bars, coverage and identity are saved together and read back unchanged."""

import tempfile
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, empty_bars, with_basis
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ForeignIdentityError
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_bars, read_footer
from ktrdr_pipelines.store.layout import StoreLayout, create_store, store_origin
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from tests.support.examples import examples

OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)

MINUTE = timedelta(minutes=1)


def test_what_is_saved_is_read(store: BarStore, make: Any) -> None:
    """Bars, coverage, identity and counts are read as they were saved."""
    series = make.series()
    bars = make.run(series, OPEN, 390)
    result = make.save(store, series, bars)
    path = store.layout.bars / "symbol=AAPL" / "timeframe=1m" / "2024.parquet"
    assert (result.added, result.revised, result.files) == (390, 0, (path,))
    assert store.read(series).equals(bars)
    assert store.read(series).schema.equals(BAR_SCHEMA, check_metadata=True)
    assert store.coverage(series) == make.covering(series, bars)
    assert store.identity(series) == make.identity(series)
    assert store.rows_per_session(series) == {date(2024, 6, 3): 390}
    assert store.series_on_disk() == [("AAPL", Timeframe.M1)]
    assert read_bars(path).equals(with_basis(bars, 0))
    assert read_footer(path).rows == 390


def test_a_series_without_files_is_empty(store: BarStore, make: Any) -> None:
    """It has no bars, coverage or identity."""
    series = make.series()
    assert store.read(series).num_rows == 0
    assert store.coverage(series) == Coverage()
    assert store.identity(series) is None
    assert store.rows(series) == 0
    assert store.rows(series, Interval(OPEN, OPEN + MINUTE)) == 0
    assert store.series_on_disk() == []


def test_a_newer_bar_replaces_and_the_older_is_kept(
    store: BarStore, make: Any, clock: datetime
) -> None:
    """Bars that differ are revised, and the ledger keeps their old values."""
    series = make.series()
    make.save(store, series, make.run(series, OPEN, 10, 1.0))
    result = make.save(store, series, make.run(series, OPEN + 8 * MINUTE, 4, 2.0))
    assert (result.added, result.revised) == (2, 2)
    assert store.read(series)["close"].to_pylist() == [1.0] * 8 + [2.0] * 4
    revisions = store.ledger.revisions.of(series_key(series))
    assert [(old.ts, old.close) for old in revisions] == [
        (OPEN + 8 * MINUTE, 1.0),
        (OPEN + 9 * MINUTE, 1.0),
    ]
    assert {old.replaced_at for old in revisions} == {clock}


def test_saving_the_same_again_writes_nothing(store: BarStore, make: Any) -> None:
    """A file that would not change is not rewritten."""
    series = make.series()
    bars = make.run(series, OPEN, 10)
    (path,) = make.save(store, series, bars).files
    before = path.stat()
    result = make.save(store, series, bars)
    assert (result.added, result.revised, result.files) == (0, 0, ())
    assert path.stat().st_ino == before.st_ino
    assert store.ledger.revisions.of(series_key(series)) == []


def test_equal_bars_at_other_times_are_other_bars(store: BarStore, make: Any) -> None:
    """A quiet market repeats values; no bar is dropped as a duplicate."""
    series = make.series(Timeframe.M5, "EURUSD", "FX")
    start = datetime(2024, 6, 3, 4, tzinfo=UTC)
    make.save(store, series, make.run(series, start, 3, 1.1))
    make.save(store, series, make.run(series, start + timedelta(minutes=15), 3, 1.1))
    assert store.rows(series) == 6


def test_null_stays_null(store: BarStore, make: Any) -> None:
    """A value that the gateway does not have is null; a later value is a revision."""
    series = make.series()
    bars = make.run(series, OPEN, 2)
    nothing = pa.nulls(2, pa.float64())
    unknown = bars.set_column(6, "volume", nothing).set_column(7, "average", nothing)
    unknown = unknown.set_column(8, "bar_count", pa.nulls(2, pa.int32())).cast(BAR_SCHEMA)
    make.save(store, series, unknown)
    assert store.read(series)["bar_count"].null_count == 2
    assert make.save(store, series, unknown).revised == 0
    assert make.save(store, series, bars).revised == 2
    assert store.read(series).equals(bars)
    assert store.ledger.revisions.of(series_key(series))[0].volume is None


def test_bars_need_not_come_in_order(store: BarStore, make: Any) -> None:
    """Bars are stored sorted; of two with one timestamp the last given stays."""
    series = make.series()
    late, early = OPEN + MINUTE, OPEN
    bars = pa.concat_tables([make.bars(series, [late, early], 1.0), make.bars(series, [late], 2.0)])
    make.save(store, series, bars)
    assert store.read(series)["ts"].to_pylist() == [early, late]
    assert store.read(series)["close"].to_pylist() == [1.0, 2.0]


def test_saving_a_part_never_shortens_history(store: BarStore, make: Any) -> None:
    """A save in the middle changes nothing before and after it."""
    series = make.series(Timeframe.D1)
    first = datetime(2020, 1, 1, tzinfo=UTC)
    make.save(store, series, make.run(series, first, 1000, 1.0))
    make.save(store, series, make.run(series, first + timedelta(days=500), 3, 2.0))
    closes = store.read(series)["close"].to_pylist()
    assert closes == [1.0] * 500 + [2.0] * 3 + [1.0] * 497
    whole = Interval(first, first + timedelta(days=1000))
    assert store.coverage(series).bars.covers(whole)


def test_minutes_are_filed_by_the_year_of_their_session(store: BarStore, make: Any) -> None:
    """The evening of 31 December in New York opens the FX session of the next year."""
    series = make.series(Timeframe.M5, "EURUSD", "FX")
    bars = make.run(series, datetime(2024, 12, 31, 20, tzinfo=UTC), 72)
    result = make.save(store, series, bars)
    assert [path.name for path in result.files] == ["2024.parquet", "2025.parquet"]
    old, new = (read_bars(path) for path in result.files)
    turn = datetime(2024, 12, 31, 22, tzinfo=UTC)
    assert pc.max(old["ts"]).as_py() == turn - timedelta(minutes=5)
    assert pc.min(new["ts"]).as_py() == turn
    assert set(new["session_date"].to_pylist()) == {date(2025, 1, 1)}
    for path in result.files:
        assert read_footer(path).coverage == make.covering(series, read_bars(path))
    assert store.coverage(series) == make.covering(series, bars)
    assert store.read(series).equals(bars)


def test_coverage_is_cut_where_a_year_ends(store: BarStore, make: Any) -> None:
    """No file covers what another file holds, even where there are no bars."""
    series = make.series()
    start, end = datetime(2022, 6, 1, tzinfo=UTC), datetime(2024, 6, 1, tzinfo=UTC)
    proved = make.empty(start, end, datetime(2024, 6, 2, tzinfo=UTC))
    result = store.save(series, make.identity(series), empty_bars(), proved)
    bounds = [read_footer(path).coverage.empty[0].interval for path in result.files]
    new_years = [datetime(year, 1, 1, 5, tzinfo=UTC) for year in (2023, 2024)]
    assert [part.start for part in bounds] == [start, *new_years]
    assert [part.end for part in bounds] == [*new_years, end]
    assert store.coverage(series) == proved


def test_a_proof_of_emptiness_is_kept_without_bars(store: BarStore, make: Any) -> None:
    """A file without bars holds the proof; bars that are saved later replace it."""
    series = make.series(Timeframe.H1)
    day = timedelta(days=1)
    proved = make.empty(OPEN - day, OPEN + day, OPEN + 2 * day)
    result = store.save(series, make.identity(series), empty_bars(), proved)
    assert (result.added, len(result.files)) == (0, 1)
    assert store.rows(series) == 0
    assert store.coverage(series) == proved
    bars = make.run(series, OPEN, 1)
    make.save(store, series, bars)
    assert store.coverage(series).bars == make.covering(series, bars).bars
    assert len(store.coverage(series).empty) == 2


def test_nothing_to_save_makes_no_file(store: BarStore, make: Any) -> None:
    """Without bars and proofs nothing is written."""
    series = make.series()
    result = store.save(series, make.identity(series), empty_bars(), Coverage())
    assert result.files == ()
    assert store.series_on_disk() == []


def test_reading_and_counting_an_interval_agree(store: BarStore, make: Any) -> None:
    """The count is the number of bars that are read, over the turn of a year too."""
    series = make.series(Timeframe.M5)
    start = datetime(2023, 12, 29, 14, 30, tzinfo=UTC)
    bars = make.bars(series, [start + n * timedelta(hours=1) for n in range(200)])
    make.save(store, series, bars)
    for first, last in [(0, 200), (3, 100), (0, 1), (199, 200), (50, 51)]:
        wanted = Interval(start + timedelta(hours=first), start + timedelta(hours=last))
        read = store.read(series, wanted)
        assert read.equals(bars.slice(first, last - first).combine_chunks())
        assert store.rows(series, wanted) == last - first
    year = Interval(datetime(2023, 1, 1, 5, tzinfo=UTC), datetime(2024, 1, 1, 5, tzinfo=UTC))
    assert store.rows(series, year) == store.read(series, year).num_rows


def test_another_contract_is_refused(store: BarStore, make: Any) -> None:
    """A series holds one instrument; the error names both, and nothing changes."""
    series = make.series()
    bars = make.run(series, OPEN, 5)
    make.save(store, series, bars)
    other = make.identity(series, contract_id=1)
    later = make.run(series, OPEN + timedelta(days=400), 5)
    with pytest.raises(ForeignIdentityError, match=r"contract id 1,.*265598.*universe"):
        store.save(series, other, later, make.covering(series, later))
    assert store.read(series).equals(bars)


def test_another_origin_is_refused(store: BarStore, make: Any) -> None:
    """Simulated bars never come into a store of real ones."""
    series, other = make.series(), make.series(symbol="MSFT")
    make.save(store, series, make.run(series, OPEN, 5))
    assert store_origin(store.layout) is Origin.IB
    simulated = make.identity(other, origin=Origin.SIMULATED)
    bars = make.run(other, OPEN, 5)
    with pytest.raises(ForeignIdentityError, match="simulated"):
        store.save(other, simulated, bars, make.covering(other, bars))
    assert store.series_on_disk() == [("AAPL", Timeframe.M1)]


def test_an_identity_of_another_series_is_refused(store: BarStore, make: Any) -> None:
    """Bars cannot be saved under a symbol that is not theirs."""
    series, other = make.series(), make.series(symbol="MSFT")
    with pytest.raises(ForeignIdentityError, match=r"cannot save AAPL 1m.*MSFT 1m"):
        store.save(series, make.identity(other), make.run(series, OPEN, 1), Coverage())


def test_the_file_index_follows_a_changed_file(
    store: BarStore, layout: StoreLayout, make: Any
) -> None:
    """A file that another program replaced is recounted."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    earlier = path.read_bytes()
    make.save(store, series, make.run(series, OPEN, 20))
    path.write_bytes(earlier)
    assert store.rows(series) == 10
    assert store.coverage(series) == make.covering(series, make.run(series, OPEN, 10))
    path.unlink()
    assert store.rows(series) == 0
    assert store.coverage(series) == Coverage()


def test_the_file_index_has_coverage_and_counts(store: BarStore, make: Any) -> None:
    """So that no file has to be opened for them."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    row = store.ledger.files.of(series_key(series))[store.layout.relative(path)]
    assert row.rows == 10
    assert row.coverage == read_footer(path).coverage
    assert row.rows_per_session == {date(2024, 6, 3): 10}


def test_leftovers_of_killed_writers_are_not_read(store: BarStore, make: Any) -> None:
    """An unfinished file beside the bars matches no glob."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    path.with_name(".2024.parquet.123-abcd.tmp").write_bytes(b"half a file")
    assert store.layout.bar_files("AAPL", Timeframe.M1) == [path]
    assert store.rows(series) == 10


def test_two_stores_over_one_folder_see_each_other(layout: StoreLayout, make: Any) -> None:
    """What one process saves, another reads at once."""
    series = make.series()
    one, two = (BarStore(layout, Ledger(layout.ledger)) for _ in range(2))
    make.save(one, series, make.run(series, OPEN, 5))
    assert two.rows(series) == 5
    make.save(two, series, make.run(series, OPEN + 5 * MINUTE, 5))
    assert one.rows(series) == 10
    one.ledger.close()
    two.ledger.close()


START = datetime(2023, 12, 31, 21, tzinfo=UTC)

"""Two hours before the FX year turns, so that saves fall on both sides."""

STEP = timedelta(minutes=5)

SLOTS = 36

SAVES = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.integers(1, 12),
        st.integers(0, 3),
        st.sets(st.integers(0, 11)),
    ),
    max_size=8,
)

"""Each: first slot, number of slots, value (0: proved empty), slots inside without a bar."""


def _slot(number: int) -> datetime:
    return START + number * STEP


@examples(40)
@given(saves=SAVES)
def test_saves_equal_a_dictionary(make: Any, saves: list[tuple[int, int, int, set[int]]]) -> None:
    """Bars and coverage are what a naive model says, in every file by itself and in all."""
    series = make.series(Timeframe.M5, "EURUSD", "FX")
    values: dict[datetime, float] = {}
    covered: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        layout = create_store(Path(folder))
        with closing(Ledger(layout.ledger)) as ledger:
            store = BarStore(layout, ledger)
            for number, (first, count, value, missing) in enumerate(saves):
                slots = range(first, first + count)
                interval = Interval(_slot(first), _slot(first + count))
                if value:
                    times = [_slot(one) for one in slots if one - first not in missing]
                    bars = make.bars(series, times, float(value))
                    coverage = Coverage(IntervalSet([interval]))
                    values |= dict.fromkeys(times, float(value))
                    covered |= dict.fromkeys(slots, "bars")
                else:
                    bars = make.bars(series, [])
                    proof = Emptiness(interval, START + timedelta(days=1, seconds=number))
                    coverage = Coverage(empty=(proof,))
                    covered |= {s: "empty" for s in slots if covered.get(s) != "bars"}
                store.save(series, make.identity(series), bars, coverage)
            _compare(store, series, values, covered)


def _compare(
    store: BarStore, series: Any, values: dict[datetime, float], covered: dict[int, str]
) -> None:
    read = store.read(series)
    assert dict(zip(read["ts"].to_pylist(), read["close"].to_pylist(), strict=True)) == values
    assert read["ts"].to_pylist() == sorted(values)
    assert store.rows(series) == len(values)
    coverage = store.coverage(series)
    assert _slots_of(coverage) == covered
    together: dict[int, str] = {}
    for path in store.layout.bar_files(series.symbol, series.timeframe):
        inside = _slots_of(read_footer(path).coverage)
        assert not together.keys() & inside.keys()
        together |= inside
        assert {_number(ts) for ts in read_bars(path)["ts"].to_pylist()} <= inside.keys()
    assert together == covered


def _slots_of(coverage: Coverage) -> dict[int, str]:
    empty = IntervalSet(proof.interval for proof in coverage.empty)
    assert not coverage.bars & empty
    return {
        number: "bars" if _slot(number) in coverage.bars else "empty"
        for number in range(2 * SLOTS)
        if _slot(number) in coverage.bars | empty
    }


def _number(ts: datetime) -> int:
    return int((ts - START) / STEP)
