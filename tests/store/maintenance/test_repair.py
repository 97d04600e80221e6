"""Repair: everything but the bar files is rebuilt from them."""

import random
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.bars import bar_file
from ktrdr_pipelines.store.bars.bar_file import write_file
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_bars, read_footer
from ktrdr_pipelines.store.bars.footer import SCHEMA_VERSION, Footer
from ktrdr_pipelines.store.catalog.catalog import query_catalog
from ktrdr_pipelines.store.layout import StoreLayout, create_store, store_origin
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.store.ledger.request_audit import RequestRecord
from ktrdr_pipelines.store.maintenance.repair import repair

NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
YEAR = timedelta(days=365)


def _saved(store: BarStore, make: Any) -> tuple[Any, list[Path]]:
    """Save minutes of three years."""
    series = make.series()
    for years in range(3):
        make.save(store, series, make.run(series, OPEN - years * YEAR, 10, years + 1.0))
    return series, store.layout.bar_files("AAPL", Timeframe.M1)


def test_repair_of_a_valid_store_changes_no_file(store: BarStore, make: Any) -> None:
    """It changes no file, and builds the catalog."""
    series, paths = _saved(store, make)
    before = [path.stat() for path in paths]
    report = repair(store.layout, [series.instrument], NOW)
    assert report.files == 3
    assert (report.quarantined, report.leftovers, report.quarantined_ledger) == ((), (), None)
    assert [path.stat().st_ino for path in paths] == [info.st_ino for info in before]
    assert query_catalog(store.layout, "FROM bars").num_rows == 30
    assert repair(store.layout).files == 3


def test_a_lost_ledger_loses_no_bar(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """A repair indexes the files and pins contracts again."""
    series, paths = _saved(store, make)
    bars, coverage = store.read(series), store.coverage(series)
    store.ledger.close()
    for path in layout.state.glob("ledger.sqlite*"):
        path.unlink()
    report = repair(layout, [series.instrument], NOW)
    assert report.files == len(paths)
    with closing(Ledger(layout.ledger)) as ledger:
        again = BarStore(layout, ledger)
        assert again.read(series).equals(bars)
        assert len(ledger.files.of(series_key(series))) == 3
        assert again.coverage(series) == coverage
        assert ledger.contracts.of("AAPL", Origin.IB) == 265598


def test_a_damaged_ledger_is_quarantined(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """Processes that have it open continue with the new one."""
    series, _ = _saved(store, make)
    coverage = store.coverage(series)
    for path in layout.state.glob("ledger.sqlite*"):
        path.unlink()
    layout.ledger.write_bytes(b"junk" * 5000)
    with pytest.raises(CorruptFileError):
        store.coverage(series)
    report = repair(layout, [series.instrument], NOW)
    assert report.quarantined_ledger == layout.quarantine / "state" / "ledger.sqlite"
    assert report.quarantined_ledger.read_bytes() == b"junk" * 5000
    assert store.coverage(series) == coverage
    assert store.rows(series) == 30


@pytest.mark.parametrize(
    "change", ["DROP TABLE mirror", "ALTER TABLE mirror RENAME COLUMN coverage TO covered"]
)
def test_a_ledger_with_other_tables_is_quarantined(
    layout: StoreLayout, store: BarStore, make: Any, change: str
) -> None:
    """A valid SQLite file without the ledger's tables is rebuilt too."""
    series, _ = _saved(store, make)
    coverage = store.coverage(series)
    with closing(sqlite3.connect(layout.ledger)) as connection:
        connection.execute(change)
    with pytest.raises(CorruptFileError, match=r"ledger\.sqlite.*ktrdr repair"):
        store.coverage(series)
    assert repair(layout, [series.instrument], NOW).quarantined_ledger is not None
    assert store.coverage(series) == coverage
    assert repair(layout, [series.instrument], NOW).quarantined_ledger is None


@pytest.mark.parametrize("content", [b"", b"junk" * 100])
def test_a_corrupt_file_is_quarantined_and_reported(
    layout: StoreLayout, store: BarStore, make: Any, content: bytes
) -> None:
    """It is moved, not deleted; the report names what to load; its coverage is gone."""
    series, (_, middle, _) = _saved(store, make)
    middle.write_bytes(content)
    report = repair(layout, [series.instrument], NOW)
    (item,) = report.quarantined
    assert item.was == middle
    assert item.now.read_bytes() == content
    assert item.load_again == "AAPL 1m, session dates of 2023"
    assert str(middle) in str(item)
    assert not middle.exists()
    assert store.rows(series) == 20
    assert OPEN in store.coverage(series).bars
    assert OPEN - YEAR not in store.coverage(series).bars
    assert query_catalog(layout, "FROM bars").num_rows == 20


def test_damage_below_a_good_footer_is_found(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Repair reads each page."""
    series, (first, *_) = _saved(store, make)
    data = bytearray(first.read_bytes())
    data[4:150] = bytes(146)
    first.write_bytes(data)
    assert read_footer(first).rows == 10
    (item,) = repair(layout, [series.instrument], NOW).quarantined
    assert item.was == first


def test_files_in_the_wrong_place_are_quarantined(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """A file of another series, of no series, or of an impossible name is foreign."""
    series, (first, *_) = _saved(store, make)
    wrong = [
        layout.series_folder("MSFT", Timeframe.M1) / "2024.parquet",
        layout.series_folder("AAPL", Timeframe.M1) / "all.parquet",
        layout.bars / "symbol=AAPL" / "timeframe=2m" / "2024.parquet",
        layout.bars / "lost.parquet",
    ]
    for path in wrong:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, path)
    report = repair(layout, [series.instrument], NOW)
    assert {item.was for item in report.quarantined} == set(wrong)
    assert all(item.now.exists() and not item.was.exists() for item in report.quarantined)
    assert store.series_on_disk() == [("AAPL", Timeframe.M1)]
    assert query_catalog(layout, "FROM bars").num_rows == 30


def test_the_identity_with_most_bars_prevails(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Of files that hold different contracts those with fewer bars are quarantined."""
    series, (first, *_) = _saved(store, make)
    bars, footer = read_bars(first), read_footer(first)
    other = make.identity(series, contract_id=1)
    foreign = Footer(other, footer.coverage, footer.rows, footer.rows_per_session)
    write_file(first, bars, foreign)
    (item,) = repair(layout, [series.instrument], NOW).quarantined
    assert item.was == first
    assert "contract id 1," in item.why
    assert store.identity(series) == make.identity(series)


def test_bars_out_of_order_are_quarantined(layout: StoreLayout, store: BarStore, make: Any) -> None:
    """No version writes such a file."""
    series, (first, *_) = _saved(store, make)
    bars, footer = read_bars(first), read_footer(first)
    write_file(first, bars.take(list(range(9, -1, -1))), footer)
    (item,) = repair(layout, [series.instrument], NOW).quarantined
    assert "not in order" in item.why


def test_the_same_name_is_quarantined_twice(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """No file in quarantine is replaced."""
    for content in (b"one", b"two", b"three"):
        path = layout.series_folder("AAPL", Timeframe.M1) / "2024.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        repair(layout, [make.instrument()], NOW)
    kept = sorted(layout.quarantine.rglob("2024.parquet*"))
    assert [path.read_bytes() for path in kept] == [b"one", b"two", b"three"]
    assert [path.name for path in kept] == ["2024.parquet", "2024.parquet.1", "2024.parquet.2"]


def test_leftovers_of_killed_writers_are_removed(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Unfinished bars, markers and catalogs are removed and reported."""
    _, (first, *_) = _saved(store, make)
    left = [
        first.with_name(".2024.parquet.1-aa.tmp"),
        layout.root / ".store.json.1-aa.tmp",
        layout.root / ".ktrdr.duckdb.1-aa.tmp",
        layout.root / ".ktrdr.duckdb.1-aa.tmp.wal",
    ]
    for path in left:
        path.write_bytes(b"half")
    report = repair(layout, [make.instrument()], NOW)
    assert set(report.leftovers) == set(left)
    assert not any(path.exists() for path in left)


def test_a_newer_file_stops_the_repair(
    layout: StoreLayout, store: BarStore, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a newer version is neither trusted nor moved."""
    _, (first, *_) = _saved(store, make)
    footer = read_footer(first)
    monkeypatch.setattr(bar_file, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    write_file(first, read_bars(first), footer)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer ktrdr"):
        repair(layout, [make.instrument()], NOW)
    assert first.exists()


def test_a_marker_without_origin_gets_that_of_the_files(
    layout: StoreLayout, store: BarStore, make: Any, tmp_path: Path
) -> None:
    """Files that were copied into a new store set its origin."""
    _saved(store, make)
    other = create_store(tmp_path / "other")
    shutil.copytree(layout.bars, other.bars, dirs_exist_ok=True)
    assert store_origin(other) is None
    assert repair(other, [make.instrument()], NOW).files == 3
    assert store_origin(other) is Origin.IB


def test_simulated_files_do_not_stay_in_a_real_store(
    layout: StoreLayout, store: BarStore, make: Any, tmp_path: Path
) -> None:
    """Files of another origin than the marker's are foreign, however many bars they have."""
    simulated = create_store(tmp_path / "simulated", Origin.SIMULATED)
    series = make.series(symbol="MSFT")
    identity = make.identity(series, origin=Origin.SIMULATED)
    with closing(Ledger(simulated.ledger)) as ledger:
        bars = make.run(series, OPEN, 10)
        BarStore(simulated, ledger).save(series, identity, bars, make.covering(series, bars))
    _saved(store, make)
    shutil.copytree(simulated.bars, layout.bars, dirs_exist_ok=True)
    (item,) = repair(layout, [make.instrument()], NOW).quarantined
    assert "origin simulated" in item.why
    assert store.series_on_disk() == [("AAPL", Timeframe.M1)]


def test_the_file_index_drops_removed_files(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Old rows of the audit are dropped too."""
    _, (first, *_) = _saved(store, make)
    first.unlink()
    old = RequestRecord(
        *("AAPL|1m", 1, "TRADES", "gateway", "hash", None, "1 D"),
        sent_at=NOW - timedelta(days=100),
        took_s=1.0,
        outcome="bars",
    )
    store.ledger.requests.record(old)
    report = repair(layout, [make.instrument()], NOW)
    assert report.forgotten == 1
    assert layout.relative(first) not in store.ledger.files.names()
    assert len(store.ledger.files.names()) == 2


LEDGER_DAMAGE = [
    "UPDATE mirror SET identity = CAST(x'ff' AS TEXT)",
    "UPDATE mirror SET identity = '{'",
    "UPDATE mirror SET coverage = '{\"bars\": [[1]]}'",
    "UPDATE mirror SET sessions = x'0001'",
    "UPDATE mirror SET seal = 'x'",
    "UPDATE mirror SET flat = x'0001'",
    "UPDATE mirror SET rows = 'many'",
    "INSERT INTO file_checks VALUES ('../../etc', 1, 1, 1, 9000000000000000000, 'x')",
    "INSERT INTO findings VALUES ('AAPL|1m', 1, 'no kind', 'x', 1)",
    "INSERT INTO late_bars VALUES ('MSFT', 'no date', 1, 2)",
    "INSERT INTO statements VALUES ('MSFT', 'x', 1, 2, 'no kind', '1m', 1, 'x', 0, 0, 1, NULL)",
]


@pytest.mark.parametrize("statement", LEDGER_DAMAGE)
def test_a_ledger_with_invalid_values_is_quarantined(
    layout: StoreLayout, store: BarStore, make: Any, statement: str
) -> None:
    """Once: the next repair has nothing to fix, and no bar is lost."""
    series, _ = _saved(store, make)
    store.ledger.close()
    with closing(sqlite3.connect(layout.ledger)) as connection:
        connection.execute(statement)
        connection.commit()
    report = repair(layout, [series.instrument], NOW)
    assert report.quarantined_ledger is not None
    assert report.quarantined == ()
    assert repair(layout, [series.instrument], NOW).quarantined_ledger is None
    assert store.rows(series) == 30


@pytest.mark.parametrize("count", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_changed_bits_in_the_ledger_never_stop_a_repair(
    layout: StoreLayout, store: BarStore, make: Any, count: int
) -> None:
    """The repair completes, no bar is lost, and the next one has nothing to fix."""
    series, _ = _saved(store, make)
    repair(layout, [series.instrument], NOW)
    store.ledger.close()
    with closing(sqlite3.connect(layout.ledger)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content, chosen = layout.ledger.read_bytes(), random.Random(3)
    used = [position for position, byte in enumerate(content) if byte]
    for _ in range(count):
        data = bytearray(content)
        for position in chosen.sample(used, 3):
            data[position] ^= 1 << chosen.randrange(8)
        for path in layout.state.glob("ledger.sqlite*"):
            path.unlink()
        layout.ledger.write_bytes(data)
        assert repair(layout, [series.instrument], NOW).quarantined == ()
        assert repair(layout, [series.instrument], NOW).quarantined_ledger is None
        assert store.rows(series) == 30


def test_files_quarantined_before_the_ledger_fails_are_reported(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """A repair that starts again still reports what to load again."""
    series, (first, *_) = _saved(store, make)
    last = make.series(symbol="MSFT")
    make.save(store, last, make.run(last, OPEN, 10))
    first.write_bytes(b"no Parquet")
    store.ledger.close()
    with closing(sqlite3.connect(layout.ledger)) as connection:
        connection.execute("INSERT INTO findings VALUES ('MSFT|1m', 1, 'no kind', 'x', 1)")
        connection.commit()
    report = repair(layout, [series.instrument, last.instrument], NOW)
    assert report.quarantined_ledger is not None
    assert [one.was for one in report.quarantined] == [first]
    assert report.files == 3
