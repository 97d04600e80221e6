"""Re-bases a symbol again and again while other processes query it.

Not a test module: ``python rebasing_processes.py MODE FOLDER NUMBER``. The true close of every bar
is 1,024 on the first basis. Each split halves it: bars that are fetched later come at 512, at 256,
and so on, and all bars must be read at the price of one number of splits.
"""

import os
import sys
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog.catalog import query_catalog
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.store.conftest import Make

make = Make()
SERIES = make.series(Timeframe.M1)
FIRST = datetime(2023, 12, 29, 14, 30, tzinfo=UTC)
YEARS = (FIRST, FIRST + timedelta(days=7))
"""Two sessions in files of two years."""

BARS = 30
"""The minutes of each session."""

PRICE, SPLITS = 1024.0, 8
DONE = "done"

QUERIES = (
    "SELECT DISTINCT close FROM series('AAPL', '1m')",
    "SELECT DISTINCT close FROM bars WHERE symbol = 'AAPL'",
    """SELECT DISTINCT a.close
    FROM bars_1m AS a JOIN bars_1m AS b ON a.ts = b.ts - INTERVAL 1 MINUTE
    WHERE a.volume > 0 AND b.close < 5000""",
)


def rebase(layout: StoreLayout, number: int) -> None:
    """Split the symbol, then fetch its bars again on the new basis, newest first."""
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        for split in range(1, number + 1):
            known = len(store.bases.history.of("AAPL"))
            assert make.rebase(store, make.split(known + 1, 0.5, date(2024, 1, 5)))
            for first in reversed(YEARS):
                for start in (20, 10):  # the first ten stay on the bases of before
                    at = first + timedelta(minutes=start)
                    make.save(store, SERIES, make.run(SERIES, at, 10, PRICE / 2**split))
    (layout.root / DONE).touch()


def query(layout: StoreLayout, _number: int) -> None:
    """Query until the last split is done; every answer has one price, and never an older one."""
    last, answers = PRICE, 0
    while True:
        was_done = (layout.root / DONE).exists()
        for sql in QUERIES:
            (close,) = query_catalog(layout, sql)["close"].to_pylist()
            assert close <= last, sql
            last, answers = close, answers + 1
        if was_done:
            break
    print(answers, last)  # noqa: T201


def read(layout: StoreLayout, _number: int) -> None:
    """Read through the bar store; as ``query``."""
    last, answers = PRICE, 0
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        while True:
            was_done = (layout.root / DONE).exists()
            (close,) = set(store.read(SERIES)["close"].to_pylist())
            assert close <= last
            last, answers = close, answers + 1
            if was_done:
                break
    print(answers, last)  # noqa: T201


def shell(layout: StoreLayout, _number: int) -> None:
    """Query with DuckDB alone, opening the catalog each time, or keeping it open for a while.

    A catalog that is older than the bars fails, and so may a query under which a file is replaced;
    neither mixes.
    """
    answers = failures = 0
    while True:
        was_done = (layout.root / DONE).exists()
        with closing(duckdb.connect(str(layout.catalog), read_only=True)) as connection:
            for _ in range(3):
                for sql in QUERIES:
                    try:
                        rows = connection.execute(sql).fetchall()
                    except duckdb.Error:
                        failures += 1
                        continue
                    assert len(rows) == 1, (sql, rows)
                    answers += 1
        if was_done:
            break
    print(answers, failures)  # noqa: T201


MODES = {"rebase": rebase, "query": query, "read": read, "shell": shell}

if __name__ == "__main__":
    mode, folder, count = sys.argv[1:]
    MODES[mode](open_store(Path(folder)), int(count))
    sys.stdout.flush()
    os._exit(0)
