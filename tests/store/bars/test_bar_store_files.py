"""Damaged and misplaced files, full disks and kept locks."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, DiskError, StoreError
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_bars, read_footer
from ktrdr_pipelines.store.files import locked
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.maintenance.repair import repair

OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)


def _junk(path: Path) -> None:
    path.write_bytes(b"this is not Parquet" * 50)


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _foreign(path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), path)


def _footless(path: Path) -> None:
    pq.write_table(BAR_SCHEMA.empty_table(), path)


def _bad_footer(path: Path) -> None:
    _with_footer(path, json.dumps({"schema_version": 1, "rows": "many"}))


def _wrong_count(path: Path) -> None:
    footer = json.loads(pq.read_metadata(path).metadata[b"ktrdr"])
    _with_footer(path, json.dumps({**footer, "rows": 3}))


def _wild_coverage(path: Path) -> None:
    footer = json.loads(pq.read_metadata(path).metadata[b"ktrdr"])
    _with_footer(path, json.dumps({**footer, "coverage": {"bars": [[0, 10**40]], "empty": []}}))


def _with_footer(path: Path, text: str) -> None:
    with pq.ParquetFile(path) as file:
        bars = file.read()
    bars = bars.replace_schema_metadata(None)
    with pq.ParquetWriter(path, bars.schema, store_schema=False) as writer:
        writer.write_table(bars)
        writer.add_key_value_metadata({"ktrdr": text})


@pytest.mark.parametrize(
    "damage", [_junk, _nothing, _half, _foreign, _bad_footer, _wrong_count, _wild_coverage]
)
def test_a_damaged_file_is_named(store: BarStore, make: Any, damage: Any) -> None:
    """Reading names the file and hints at repair; saving changes nothing."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    damage(path)
    left = path.read_bytes()
    for use in (read_bars, read_footer):
        with pytest.raises(CorruptFileError, match=r"2024\.parquet.*ktrdr repair"):
            use(path)
    with pytest.raises(CorruptFileError):
        store.coverage(series)
    with pytest.raises(CorruptFileError):
        make.save(store, series, make.run(series, OPEN, 20))
    assert path.read_bytes() == left


def test_a_lost_footer_that_the_ledger_does_not_have_is_named(store: BarStore, make: Any) -> None:
    """Without footer and without ledger nothing identifies the bars: reading names the file."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    _footless(path)
    store.ledger.files.remove([store.layout.relative(path)])
    left = path.read_bytes()
    for use in (read_bars, read_footer):
        with pytest.raises(CorruptFileError, match=r"2024\.parquet.*footer.*ktrdr repair"):
            use(path)
    with pytest.raises(CorruptFileError):
        store.coverage(series)
    with pytest.raises(CorruptFileError):
        make.save(store, series, make.run(series, OPEN, 20))
    assert path.read_bytes() == left


@pytest.mark.parametrize(
    ("copy", "why"),
    [
        ("symbol=AAPL/timeframe=1m/2024 (copy).parquet", "named so"),
        ("symbol=AAPL/timeframe=1m/all.parquet", "named so"),
        ("symbol=AAPL/timeframe=1m/2023.parquet", "2024-06-03"),
        ("symbol=MSFT/timeframe=1m/2024.parquet", "holds AAPL 1m.*folder is that of MSFT 1m"),
        ("symbol=AAPL/timeframe=5m/2024.parquet", "holds AAPL 1m.*folder is that of AAPL 5m"),
    ],
)
def test_a_copy_in_the_wrong_place_is_named(
    store: BarStore, make: Any, copy: str, why: str
) -> None:
    """Its bars are not counted twice or for another series; repair quarantines it."""
    held = make.series()
    (path,) = make.save(store, held, make.run(held, OPEN, 10)).files
    target = store.layout.bars / copy
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)
    symbol, timeframe = (part.partition("=")[2] for part in Path(copy).parts[:2])
    series = make.series(Timeframe(timeframe), symbol)
    for use in (store.coverage, store.rows, store.rows_per_session, store.identity):
        with pytest.raises(CorruptFileError, match=rf"{why}.*ktrdr repair"):
            use(series)
    with pytest.raises(CorruptFileError, match=why):
        store.coverage_of(symbol, Timeframe(timeframe))
    with pytest.raises(CorruptFileError, match=why):
        make.save(store, series, make.run(series, OPEN, 20))
    (moved,) = repair(store.layout).quarantined
    assert moved.was == target
    assert store.rows(held) == 10
    assert store.coverage(series) == (store.coverage(held) if series == held else Coverage())


def test_damaged_pages_are_found_when_read(store: BarStore, make: Any) -> None:
    """A valid footer over damaged pages is an error."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 390)).files
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    assert read_footer(path).rows == 390
    with pytest.raises(CorruptFileError):
        read_bars(path)


def test_a_newer_file_is_refused_and_not_called_corrupt(store: BarStore, make: Any) -> None:
    """It needs a newer ktrdr, not a repair."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    footer = json.loads(pq.read_metadata(path).metadata[b"ktrdr"])
    _with_footer(path, json.dumps({**footer, "schema_version": 3}))
    with pytest.raises(StoreError, match=r"schema version 3.*newer ktrdr") as caught:
        read_footer(path)
    assert not isinstance(caught.value, CorruptFileError)


def test_a_file_that_is_gone_is_a_disk_error(tmp_path: Path) -> None:
    """The error has the system's reason and the path."""
    with pytest.raises(DiskError, match=r"2024\.parquet.*No such file"):
        read_bars(tmp_path / "2024.parquet")


@contextmanager
def _no_file_above(size: int) -> Iterator[None]:
    """Let the system refuse to write more, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _noisy(make: Any, series: Series, count: int) -> pa.Table:
    """Return bars that do not compress."""
    bars = make.run(series, OPEN, count)
    noise = np.random.default_rng(1)
    for position, name in enumerate(BAR_SCHEMA.names[2:8], start=2):
        bars = bars.set_column(position, name, pa.array(noise.random(count)))
    return bars.cast(BAR_SCHEMA)


def test_a_full_disk_leaves_the_older_file(store: BarStore, make: Any) -> None:
    """A save without room changes nothing, leaves no file, and gives a hint."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 10)).files
    before = path.read_bytes()
    with (
        _no_file_above(400_000),
        pytest.raises(DiskError, match=r"2024\.parquet.*too large.*Make room"),
    ):
        make.save(store, series, _noisy(make, series, 20_000))
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [path]
    assert store.rows(series) == 10
    assert make.save(store, series, make.run(series, OPEN, 20)).added == 10


def test_a_full_ledger_disk_is_an_error_of_the_store(store: BarStore, make: Any) -> None:
    """SQLite's error gets a hint, and the ledger works again afterwards."""
    series = make.series()
    interval = make.covering(series, make.run(series, OPEN, 1)).bars.bounds
    store.ledger.attempts.of("AAPL|1m")
    with _no_file_above(1), pytest.raises(DiskError, match=r"ledger\.sqlite.*ktrdr repair"):
        store.ledger.claims.acquire("AAPL|1m", [interval], "me", OPEN, 60)
    assert store.ledger.claims.acquire("AAPL|1m", [interval], "me", OPEN, 60) == [interval]


def test_a_folder_that_cannot_be_written_is_a_disk_error(store: BarStore, make: Any) -> None:
    """Where the series' folder cannot be made, the error names the path."""
    series = make.series()
    (store.layout.bars / "symbol=AAPL").write_text("in the way")
    with pytest.raises(DiskError, match=r"symbol=AAPL.*writable"):
        make.save(store, series, make.run(series, OPEN, 1))


def test_a_lock_that_is_kept_ends_in_an_error(tmp_path: Path) -> None:
    """The wait for a hanging process is limited."""
    path = tmp_path / "AAPL.1m.lock"
    with (
        locked(path, "AAPL 1m"),
        pytest.raises(StoreError, match=r"cannot lock AAPL 1m.*hangs"),
        locked(path, "AAPL 1m", timeout_s=0),
    ):
        pass


def test_bars_are_read_without_metadata(store: BarStore, make: Any) -> None:
    """The footer does not get into the schema of tables."""
    series = make.series()
    (path,) = make.save(store, series, make.run(series, OPEN, 1)).files
    assert read_bars(path).schema.metadata is None
    assert pq.read_metadata(path).row_group(0).column(0).compression == "LZ4"
    assert timedelta(0) == read_bars(path)["ts"][0].as_py().utcoffset()


def test_what_another_process_saves_is_seen_and_kept(store: BarStore, make: Any) -> None:
    """Coverage that was read, and a file that was written, count only while they are as they were.

    The other store stands for another process.
    """
    series, other = make.series(), BarStore(store.layout, Ledger(store.layout.ledger))
    day = timedelta(days=1)
    make.save(store, series, make.run(series, OPEN, 10))
    before = store.known_coverage(series)
    assert store.known_coverage(series) is before
    make.save(other, series, make.run(series, OPEN + day, 10))
    assert store.known_coverage(series) != before
    make.save(store, series, make.run(series, OPEN + 2 * day, 10))
    assert store.known_coverage(series) == other.coverage(series)
    assert (store.rows(series), store.read(series).num_rows) == (30, 30)
