"""The cost of reading bars as frames, beside what pyarrow needs for the same files."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from ktrdr_pipelines.app.reading.bar_reader import Store
from tests.support.costs import Cost, costs
from tests.support.readable import ReadableStore

MOST = 1.15
"""The read of a symbol-year of minutes over pyarrow's own read of the file to pandas."""

MOST_OF_MANY = 1.15
"""The read of 200 small files as one frame over pyarrow's own reads of them."""

ROUNDS = 60
"""Reads of each kind in turn, of which the fastest counts: it is the least disturbed one."""

COLUMNS = ["ts", "open", "high", "low", "close", "volume"]
SESSIONS = 250
SYMBOLS = [f"S{number:03}" for number in range(200)]
UNIVERSE = "defaults: {timeframes: [1m, 1d], start: 2023-01-01}\nsymbols:\n" + "".join(
    f"  {symbol}: {{}}\n" for symbol in ["AAPL", *SYMBOLS]
)

Reads = dict[str, Callable[[], object]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Yield a store with a year of minutes of one symbol, and of days of 200 symbols."""
    root = tmp_path_factory.mktemp("reading") / "data"
    with closing(ReadableStore(root, universe=UNIVERSE)) as readable:
        readable.fill("AAPL", "1m", "2023-01-02", "2024-01-01")
        for symbol in SYMBOLS:
            readable.fill(symbol, "1d", "2023-01-02", "2024-01-01")
        yield readable.open()


def report(found: dict[str, Cost], base: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Print the costs, and the ratios to one of them."""
    with capsys.disabled():
        for name, cost in found.items():
            times = cost.wall_ms / found[base].wall_ms, cost.cpu_ms / found[base].cpu_ms
            print(  # noqa: T201
                f"\n{name:>24}: {cost.wall_ms:8.2f} ms ({times[0]:5.2f}), "
                f"processors {cost.cpu_ms:8.2f} ms ({times[1]:5.2f})",
                end="",
            )
        print()  # noqa: T201


@pytest.mark.slow
def test_a_year_of_minutes_is_read_as_fast_as_by_pyarrow(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To pandas; ArcticDB, where it is installed, and a CSV file beside it."""
    path = store.path / "bars" / "symbol=AAPL" / "timeframe=1m" / "2023.parquet"
    frame = store.read_bars("AAPL", "1m")
    assert len(frame) > 97_000
    text = tmp_path / "bars.csv"
    csv.write_csv(pa.Table.from_pandas(frame.reset_index(), preserve_index=False), text)
    reads: Reads = {
        "pyarrow": lambda: pq.read_table(path, columns=COLUMNS).to_pandas(),
        "read_bars": lambda: store.read_bars("AAPL", "1m"),
        "read_bars, close": lambda: store.read_bars("AAPL", "1m", columns=["close"]),
        "read_bars, last 500": lambda: store.read_bars("AAPL", "1m", last=500),
        "read_bars, arrow": lambda: store.read_bars("AAPL", "1m", engine="arrow"),
    }
    found = costs(reads | _arctic(frame, tmp_path), ROUNDS)
    found |= costs({"CSV by pandas": lambda: pd.read_csv(text, parse_dates=["ts"])}, rounds=2)
    report(found, "pyarrow", capsys)
    assert found["read_bars"].over(found["pyarrow"]) <= MOST


@pytest.mark.slow
def test_many_symbols_are_read_as_fast_as_by_pyarrow(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """A year of days of 200 symbols as one frame, and a column of them as a matrix."""
    folder = store.path / "bars"
    paths = [folder / f"symbol={one}" / "timeframe=1d" / "all.parquet" for one in SYMBOLS]

    def closes() -> pd.DataFrame:
        frame = store.read_bars(SYMBOLS, "1d", columns=["close"])
        return frame.pivot_table(index="ts", columns="symbol", values="close", observed=False)

    found = costs(
        {
            "pyarrow, 200 files": lambda: pd.concat(
                [pq.read_table(path, columns=COLUMNS).to_pandas() for path in paths],
                keys=SYMBOLS,
            ),
            "read_bars, 200 symbols": lambda: store.read_bars(SYMBOLS, "1d"),
            "closes as a matrix": closes,
        },
        rounds=8,
    )
    report(found, "pyarrow, 200 files", capsys)
    assert closes().shape == (SESSIONS, len(SYMBOLS))
    assert found["read_bars, 200 symbols"].over(found["pyarrow, 200 files"]) <= MOST_OF_MANY


def _arctic(frame: pd.DataFrame, folder: Path) -> Reads:
    """Return a read of the same frame from ArcticDB on LMDB, where that is installed."""
    try:
        from arcticdb import Arctic  # noqa: PLC0415  (it is no dependency)
    except ImportError:
        return {}
    library = Arctic(f"lmdb://{folder / 'arctic'}").create_library("bars")
    library.write("AAPL", frame)
    return {"ArcticDB, LMDB": lambda: library.read("AAPL").data}
