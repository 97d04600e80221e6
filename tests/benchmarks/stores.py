"""Large stores, made quickly: one symbol is written, and its files are linked for all others.

The bars are random walks with the digits of stocks, saved by the product's own writer. A linked
file holds the identity of the symbol that was written, while the file index of the ledger names the
symbol in whose folder it lies: benchmarks of what reads the index, or bars by the paths of files,
may use such a store. What checks the footer of each file may not.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.app.reading.bar_reader import Store
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.bars import BAR_SCHEMA
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import parse_universe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import identity_to_json
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from tests.support.fake_gateway import true_keys

UNUSED_PORT = 1
"""A port on which no gateway listens."""

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Shape:
    """What a large store holds.

    Complete are the session dates from ``first`` to the last session that closed ``behind``
    sessions before now.
    """

    symbols: int
    timeframes: Sequence[Timeframe] = tuple(Timeframe)
    years: int = 20
    behind: int = 0
    is_filled: bool = True
    """Without bars, none are wanted: the universe says ``backfill: manual``."""

    @property
    def names(self) -> list[str]:
        """The symbols, in order."""
        return [f"S{number:04}" for number in range(self.symbols)]

    @property
    def first(self) -> date:
        """The first session date that is wanted."""
        return date(_now().year - self.years, 1, 1)

    @property
    def end(self) -> date:
        """The first session date that is not complete."""
        closed = closed_sessions()
        return closed[-1 - self.behind] + _DAY

    @property
    def universe(self) -> str:
        """The text of the universe file."""
        names = ", ".join(one.value for one in self.timeframes)
        entries = "".join(f"  {symbol}: {{}}\n" for symbol in self.names)
        manual = "" if self.is_filled else ", backfill: manual"
        return (
            f"defaults: {{timeframes: [{names}], start: {self.first}{manual}}}\n"
            f"windows: {{1m: {self.first.year}, yearly: {self.first.year}}}\n"
            f"symbols:\n{entries}"
        )


@dataclass(frozen=True)
class LargeStore:
    """A store, its shape, and the folder that is its state folder as well."""

    layout: StoreLayout
    shape: Shape

    @property
    def environment(self) -> dict[str, str]:
        """The settings that name it, and a gateway that is away, as environment variables."""
        return {
            "KTRDR_DATA": str(self.layout.root),
            "KTRDR_STATE": str(self.layout.root.parent / "state"),
            "IB_HOST": "127.0.0.1",
            "IB_PORT": str(UNUSED_PORT),
        }

    @property
    def settings(self) -> Settings:
        """The same as settings."""
        return Settings.model_validate({name.lower(): v for name, v in self.environment.items()})

    @cached_property
    def reader(self) -> Store:
        """The store as a program opens it."""
        return Store(self.layout)

    def path(self, symbol: str, timeframe: Timeframe, year: int) -> Path:
        """Return the file of a year of a timeframe that has one file a year."""
        return self.layout.series_folder(symbol, timeframe) / f"{year}.parquet"


@cache
def closed_sessions() -> list[date]:
    """Return the dates of the last sessions in New York whose bars are all final."""
    now = _now()
    sessions = calendar_named("XNYS.RTH").sessions(now.date() - 60 * _DAY, now.date() + _DAY)
    return [one.day for one in sessions if one.closes_at < now - timedelta(hours=2)]


def closed_offset_s() -> float:
    """Return the seconds from now back to the night after the last of these sessions.

    While a session is open there is more to compute, so that figures would depend on the hour.
    """
    night = datetime.combine(closed_sessions()[-1], time(23, 30), UTC)
    return min((night - _now()).total_seconds(), 0.0)


@contextmanager
def large_store(shape: Shape) -> Iterator[LargeStore]:
    """Make a store of a shape in a temporary folder, with its catalog, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        layout = create_store(Path(folder) / "data", Origin.SIMULATED)
        layout.universe.write_text(shape.universe, "utf-8")
        store = LargeStore(layout, shape)
        if shape.is_filled:
            _fill(layout, shape)
        Workspace(store.settings, layout).renew_catalog()
        yield store


def _fill(layout: StoreLayout, shape: Shape) -> None:
    """Write one symbol and link its files for the others."""
    universe = parse_universe(shape.universe, "universe.yaml")
    first, *others = [universe.instrument(symbol) for symbol in shape.names]
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        for timeframe in shape.timeframes:
            source = Series(first, timeframe)
            _save(store, source, shape)
            for instrument in others:
                _link(store, source, Series(instrument, timeframe))


def _save(store: BarStore, series: Series, shape: Shape) -> None:
    """Save and cover all bars of a series; its head timestamp is not known."""
    calendar = calendar_named(series.instrument.calendar)
    keys = true_keys(calendar, series.timeframe, shape.first, shape.end)
    bars = walk(keys, calendar, is_intraday=series.timeframe.is_intraday)
    interval = interval_between(calendar, series.timeframe, shape.first, shape.end)
    identity = identity_of(series, contract_id=1, origin=Origin.SIMULATED)
    store.save(series, identity, bars, Coverage(IntervalSet([interval])))


def _link(store: BarStore, source: Series, series: Series) -> None:
    """Link the files of one series as those of another, and enter them into the file index."""
    layout, rows = store.layout, {}
    identity = identity_of(series, contract_id=1 + int(series.symbol[1:]), origin=Origin.SIMULATED)
    folder = layout.series_folder(series.symbol, series.timeframe)
    folder.mkdir(parents=True)
    for path, row in store.files.of(source).items():
        (folder / path.name).hardlink_to(path)
        rows[layout.relative(folder / path.name)] = replace(
            row, identity_json=identity_to_json(identity)
        )
    store.ledger.files.record(series_key(series), rows)


def walk(keys: np.ndarray, calendar: SessionCalendar, *, is_intraday: bool) -> pa.Table:
    """Return a random walk in cents at timestamps, with the digits of volumes and averages of IB.

    Args:
        keys: microseconds since 1970 UTC.
        calendar: gives the session dates of intraday bars.
        is_intraday: whether the bars are shorter than a day.
    """
    rng = np.random.default_rng(1)
    count = len(keys)
    close = 10_000 + np.cumsum(rng.integers(-4, 5, count))
    close = np.abs(close - 2_000) + 2_000
    open_ = np.concatenate((close[:1], close[:-1])) + rng.integers(-1, 2, count)
    high = np.maximum(open_, close) + rng.integers(0, 4, count)
    low = np.minimum(open_, close) - rng.integers(0, 4, count)
    volume = np.ceil(np.exp(rng.normal(7, 1, count)))
    average = np.round(low + (high - low) * rng.uniform(0, 1, count), 2) / 100
    days = calendar.days_of(keys) if is_intraday else keys.astype("datetime64[us]")
    return pa.Table.from_arrays(
        [
            pa.array(keys, BAR_SCHEMA.field("ts").type),
            pa.array(days.astype("datetime64[D]"), pa.date32()),
            *(pa.array(one / 100) for one in (open_, high, low, close)),
            pa.array(volume),
            pa.array(average),
            pa.array(np.ceil(volume / 60), pa.int32()),
        ],
        schema=BAR_SCHEMA,
    )


def _now() -> datetime:
    return datetime.now(tz=UTC)
