"""Several processes on one store: killed, racing, reading while another writes."""

import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

import duckdb
import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog, rebuild_catalog
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger

pytestmark = pytest.mark.on_disk

ROOT = Path(__file__).parents[3]
START = datetime(2023, 12, 31, 21, tzinfo=UTC)


def _start(mode: str, layout: StoreLayout, number: int) -> subprocess.Popen[str]:
    module = ["-m", "tests.store.bars.store_processes"]
    command = [sys.executable, *module, mode, str(layout.root), str(number)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _end(process: subprocess.Popen[str]) -> list[str]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return output.split()


def test_a_killed_writer_leaves_valid_files(layout: StoreLayout) -> None:
    """Whenever a writer is killed, each file's coverage is exactly that of its bars."""
    (rows,) = _end(_start("kill", layout, 25))
    assert int(rows) > 12, "no writer completed a save before it was killed"


def test_writers_of_several_processes_lose_nothing(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Three processes save into the same two files; every bar is kept."""
    _end(_start("save", layout, 3))
    series = make.series(Timeframe.M5, "EURUSD", "FX")
    expected = make.run(series, START, 90 * 12)
    bars = store.read(series)
    assert bars["ts"].to_pylist() == expected["ts"].to_pylist()
    assert bars["close"].to_pylist() == [float(n // 12 + 1) for n in range(90 * 12)]
    assert store.coverage(series) == make.covering(series, expected)
    assert [path.name for path in store.layout.bar_files("EURUSD", Timeframe.M5)] == [
        "2023.parquet",
        "2024.parquet",
    ]


def test_no_interval_is_claimed_twice(layout: StoreLayout) -> None:
    """Processes that want the same intervals divide them, in a new ledger too."""
    granted = _end(_start("claim", layout, 3))
    assert sorted(map(int, granted)) == list(range(200))


def test_a_ledger_survives_a_fork(layout: StoreLayout) -> None:
    """A child opens a connection of its own and does not use the parent's."""
    assert _end(_start("inherit", layout, 0)) == ["1"]


@pytest.mark.slow
def test_a_reader_sees_whole_files_while_bars_are_rewritten(
    layout: StoreLayout, store: BarStore, ledger: Ledger, make: Any
) -> None:
    """Forty saves and rebuilds under a looping reader: no wrong row and no error."""
    series = make.series()
    first = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
    make.save(store, series, make.run(series, first, 500, 0.0))
    rebuild_catalog(layout, [series.instrument], first)
    sql = (
        "SELECT count(*), min(close), max(close), min(open), max(volume), max(closes_at), "
        "count(DISTINCT ts) FROM {} WHERE symbol = 'AAPL'"
    )
    sources = cycle(["series('AAPL', '1m')", "bars_1m", "bars"])
    seen: list[float] = []
    with _start("rewrite", layout, 40) as writer:
        for _ in writer.stdout or ():
            answer = query_catalog(layout, sql.format(next(sources))).to_pylist()[0].values()
            rows, low, high, low_open, high_volume, closes_at, distinct = answer
            assert low == high == low_open == high_volume
            assert rows == distinct == max(500, 499 + int(low))
            assert closes_at == first + timedelta(minutes=rows)
            seen.append(low)
        assert _end(writer) == []
    assert len(seen) == 40
    assert seen == sorted(seen)
    assert len(set(seen)) > 4


@pytest.mark.slow
def test_duckdb_never_reads_half_of_a_rewritten_file(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Any DuckDB shell: it opens a file twice, and fails where that is not the same version."""
    series = make.series()
    make.save(store, series, make.run(series, datetime(2024, 6, 3, 13, 30, tzinfo=UTC), 500, 0.0))
    (path,) = layout.bar_files("AAPL", Timeframe.M1)
    aggregates = "count(*), count(DISTINCT ts), min(close), max(close)"
    wrong, answers = [], 0
    with _start("refile", layout, 1500) as writer, duckdb.connect() as connection:
        while writer.poll() is None:
            with suppress(duckdb.Error):
                bars = connection.read_parquet(path.as_posix()).filter("volume >= 0")
                (row,) = bars.aggregate(aggregates).fetchall()
                answers += 1
                rows, distinct, low, high = row
                if not (rows == distinct == 500 + low and low == high):
                    wrong.append(row)
        assert _end(writer) == []
    assert wrong == []
    assert answers > 100
