"""How fast a large store is read, queried, planned and watched, and what Dagster adds to that.

Each figure is a ratio of two figures of one run, or processor time. The large store has 500 symbols
in 8 timeframes over 20 years (``tests.benchmarks.stores``), a small one 40 symbols over 3 years.
"""

import atexit
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cache
from tempfile import TemporaryDirectory

import duckdb
import pyarrow.parquet as pq

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.catalog.catalog import connect_catalog
from tests.benchmarks import services
from tests.benchmarks.measuring import Benchmark, Target, cost_of_command
from tests.benchmarks.stores import LargeStore, Shape, closed_offset_s, large_store
from tests.support.costs import costs

_LARGE, _SMALL = Shape(500), Shape(40, years=3)
_FIVE = Shape(5)
_HUGE = Shape(2_000)
_PARTITIONS, _SMALL_PARTITIONS = 300, 20
"""Of minutes, at most: a run of a backfill may hold fewer."""

_ROUNDS = 40
_COLUMNS = ["ts", "open", "high", "low", "close", "volume"]
_KTRDR = [sys.executable, "-m", "ktrdr_pipelines.cli.main"]
_BARE = [sys.executable, "-c", "import duckdb, pandas, pyarrow.parquet"]
_BARE_TEXT = "of an interpreter that imports pandas and duckdb"
_PLAN_S = 900.0
"""The bound of a plan: some versions took minutes."""


def benchmarks(*, small: bool) -> list[Benchmark]:
    """Return the benchmarks of the store; the small form takes a minute or two."""
    if small:
        return [
            _reads(_SMALL),
            _queries(_SMALL),
            _command("plan", _behind(_SMALL), "ktrdr plan", 4, accepted=(0, 3)),
            _command("status", _SMALL, "ktrdr status", 1.5),
            _ticks(_SMALL),
            _complete_partitions(_SMALL_PARTITIONS),
        ]
    return [
        _reads(_LARGE),
        _queries(_LARGE),
        _command("plan", _behind(_LARGE), "ktrdr plan", 4, accepted=(0, 3)),
        _command("status-5", _FIVE, "ktrdr status", 0.5),
        _command("status", _LARGE, "ktrdr status", 1.5),
        _ticks(_LARGE),
        _huge_tick(),
        _complete_partitions(_PARTITIONS),
        *services.benchmarks(),
    ]


_STORES = ExitStack()
atexit.register(_STORES.close)


@cache
def _store(shape: Shape) -> LargeStore:
    """Return a store of a shape, which all benchmarks of this process share."""
    return _STORES.enter_context(large_store(shape))


def _behind(shape: Shape) -> Shape:
    """Return the shape of a store that lacks its last session."""
    return Shape(shape.symbols, years=shape.years, behind=1)


def _reads(shape: Shape) -> Benchmark:
    """Return the benchmark of reading a year of minutes of one symbol to pandas, and its size."""
    read = Target(
        "read",
        "read_bars, a symbol-year of 1m to pandas: of pyarrow's read of the file",
        1.15,
        more_is_better=False,
    )
    series = Target(
        "series",
        "series(), the same",
        None,
        more_is_better=False,
    )
    size = Target("bytes", "bytes a bar, 1m, random walks", 13.8, more_is_better=False)
    beside = (
        [
            Target(
                "read-arctic",
                "read_bars, of ArcticDB's time on LMDB",
                1.0,
                more_is_better=False,
                is_compared=False,
            ),
            Target(
                "series-arctic",
                "series(), of ArcticDB's time on LMDB",
                3.0,
                more_is_better=False,
                is_compared=False,
            ),
        ]
        if _has_arctic()
        else []
    )

    def measure() -> Mapping[str, float]:
        store = _store(shape)
        symbol, year = store.shape.names[0], store.shape.end.year - 1
        path, reader = store.path(symbol, Timeframe.M1, year), store.reader
        span = f"{year}-01-01", f"{year + 1}-01-01"
        sql = f"SELECT {', '.join(_COLUMNS)} FROM series('{symbol}', '1m') WHERE ts >= ? AND ts < ?"  # noqa: S608
        with connect_catalog(store.layout) as catalog, TemporaryDirectory() as folder:
            reads: dict[str, Callable[[], object]] = {
                "pyarrow": lambda: pq.read_table(path, columns=_COLUMNS).to_pandas(),
                "read": lambda: reader.read_bars(symbol, "1m", *span),
                "series": lambda: catalog.execute(sql, span).df(),
            }
            frame = reader.read_bars(symbol, "1m", *span)
            if len(catalog.execute(sql, span).df()) != len(frame):
                raise RuntimeError("series() and read_bars return different bars")
            if beside:
                from arcticdb import Arctic  # noqa: PLC0415  (it is no dependency)

                library = Arctic(f"lmdb://{folder}/arctic").create_library("bars")
                library.write(symbol, frame)
                reads["arctic"] = lambda: library.read(symbol).data
            found = costs(reads, _ROUNDS)
        ratios = {
            f"{name}{suffix}": found[name].over(found[base])
            for name in ("read", "series")
            for suffix, base in (("", "pyarrow"), ("-arctic", "arctic"))
            if base in found
        }
        return {**ratios, size.key: path.stat().st_size / len(frame)}

    return Benchmark([*beside, read, series, size], measure)


def _queries(shape: Shape) -> Benchmark:
    """Return the benchmark of queries of a day of one symbol through the views of all symbols."""
    times = {
        "bars": Target(
            "query-bars",
            "a day of one symbol and timeframe through bars",
            50,
            more_is_better=False,
            unit="ms",
            is_compared=False,
        ),
        "bars_1m": Target(
            "query-minutes",
            "the same through bars_1m",
            30,
            more_is_better=False,
            unit="ms",
            is_compared=False,
        ),
    }
    ratios = {
        "bars": Target(
            "query-bars-files",
            "through bars, of a query of the symbol's files",
            None,
            more_is_better=False,
        ),
        "bars_1m": Target(
            "query-minutes-files", "through bars_1m, of the same", None, more_is_better=False
        ),
    }

    def measure() -> Mapping[str, float]:
        store = _store(shape)
        symbol = store.shape.names[len(store.shape.names) // 3]
        day = f"{store.shape.first.year + 1}-03"
        what = "SELECT count(*), max(close), sum(volume) FROM"
        when = f"ts >= '{day}-08 00:00:00Z' AND ts < '{day}-09 00:00:00Z'"
        files = str(store.layout.series_folder(symbol, Timeframe.M1) / "*.parquet")
        where = f"symbol = '{symbol}' AND timeframe = '1m' AND {when}"
        with connect_catalog(store.layout) as catalog, closing(duckdb.connect()) as plain:
            plain.execute("SET TimeZone = 'UTC'")
            queries = {
                name: lambda name=name: catalog.execute(f"{what} {name} WHERE {where}").fetchall()
                for name in times
            }
            queries["files"] = lambda: plain.execute(f"{what} '{files}' WHERE {when}").fetchall()
            results = {name: query() for name, query in queries.items()}
            if results["bars"][0][0] == 0 or len({str(one) for one in results.values()}) != 1:
                raise RuntimeError(f"queries of the same bars returned {results}")
            found = costs(queries, _ROUNDS // 4)
        return {
            **{target.key: found[name].cpu_ms for name, target in times.items()},
            **{one.key: found[name].over(found["files"]) for name, one in ratios.items()},
        }

    return Benchmark([*times.values(), *ratios.values()], measure)


def _command(
    key: str, shape: Shape, what: str, reach_s: float, *, accepted: Sequence[int] = (0,)
) -> Benchmark:
    """Return the benchmark of the processor time of a command."""
    text = f"{what}, {shape.symbols} symbols"
    own = Target(key, text, reach_s, more_is_better=False, unit="s", is_compared=False)
    ratio = Target(f"{key}-bare", f"the same, {_BARE_TEXT}", None, more_is_better=False)
    command = [*_KTRDR, key.partition("-")[0]]

    def measure() -> Mapping[str, float]:
        store = _store(shape)
        cpu_s = min(
            cost_of_command(command, store.environment, longest_s=_PLAN_S, accepted=accepted).cpu_s
            for _ in range(2)
        )
        bare_s = min(cost_of_command(_BARE, {}).cpu_s for _ in range(2))
        return {own.key: cpu_s, ratio.key: cpu_s / bare_s}

    return Benchmark([own, ratio], measure)


def _action(store: LargeStore, name: str) -> dict[str, float]:
    """Run an action in a process of its own while markets are closed; return what it measured."""
    command = [sys.executable, "-m", "tests.benchmarks.store_actions", name]
    offset = {"KTRDR_CLOCK_OFFSET_S": str(closed_offset_s())}
    found = cost_of_command(command, {**store.environment, **offset})
    measured: dict[str, float] = json.loads(found.output.splitlines()[-1])
    return measured


def _ticks(shape: Shape) -> Benchmark:
    """Return the benchmark of ticks of the gap sensor, in a new process and later."""
    number = f"{shape.symbols} x {len(shape.timeframes)}"
    cold = Target(
        "tick-cold",
        f"gap-sensor tick, {number}, cold",
        1.0,
        more_is_better=False,
        unit="s",
        is_compared=False,
    )
    warm = Target(
        "tick-warm", "the same, warm", 0.25, more_is_better=False, unit="s", is_compared=False
    )
    colder = Target(
        "tick-cold-read",
        "cold, of reading the file index and all file sizes",
        None,
        more_is_better=False,
    )
    warmer = Target("tick-warm-read", "warm, of the same", None, more_is_better=False)

    def measure() -> Mapping[str, float]:
        found = _action(_store(shape), "ticks")
        return {
            cold.key: found["cold_s"],
            warm.key: found["warm_s"],
            colder.key: found["cold_s"] / found["read_s"],
            warmer.key: found["warm_s"] / found["read_s"],
        }

    return Benchmark([cold, warm, colder, warmer], measure)


def _huge_tick() -> Benchmark:
    """Return the benchmark of a cold tick over 2,000 symbols."""
    cold = Target(
        "tick-cold-2000",
        "gap-sensor tick, 2,000 x 8, cold",
        4.0,
        more_is_better=False,
        unit="s",
        is_compared=False,
    )

    def measure() -> Mapping[str, float]:
        with large_store(_HUGE) as store:
            return {cold.key: _action(store, "ticks")["cold_s"]}

    return Benchmark([cold], measure)


def _complete_partitions(symbols: int) -> Benchmark:
    """Return the benchmark of a run over partitions of minutes whose bars are all on disk."""
    each = Target(
        "partition",
        "Dagster: a partition of 1m complete on disk, in a run of a backfill",
        50,
        more_is_better=False,
        unit="ms",
        is_compared=False,
    )
    ratio = Target("partition-bare", f"the same, {_BARE_TEXT}", None, more_is_better=False)
    shape = Shape(symbols, (Timeframe.M1,), years=1)

    def measure() -> Mapping[str, float]:
        found = _action(_store(shape), "partitions")
        bare = min(cost_of_command(_BARE, {}).cpu_s for _ in range(2))
        each_s = found["cpu_s"] / found["partitions"]
        return {each.key: each_s * 1000, ratio.key: each_s / bare}

    return Benchmark([each, ratio], measure)


def _has_arctic() -> bool:
    return importlib.util.find_spec("arcticdb") is not None
