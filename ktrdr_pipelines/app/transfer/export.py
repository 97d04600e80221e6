"""Export bars to files of other programs: CSV, Parquet or Arrow, one file a series.

A file holds exactly what ``read_bars`` returns: the same bars, columns, types and nulls, and floats
to the last digit. Series are written year by year, so that no series has to fit into memory, and
each file appears as a whole or not at all.

Not here: reading bars (``app.reading``), the names that select series (``app.selection``).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ktrdr_pipelines.app.reading.frames import frame_of
from ktrdr_pipelines.app.reading.imported_bars import OriginName, bars_by_origin, parse_origin
from ktrdr_pipelines.app.reading.read_options import (
    DEFAULT_COLUMNS,
    ORIGIN,
    Period,
    bar_columns,
    parse_columns,
    parse_period,
    parse_zone,
)
from ktrdr_pipelines.app.reading.store_parts import StoreParts
from ktrdr_pipelines.app.selection import ALL, EVERY, chosen_series, timeframes_named
from ktrdr_pipelines.domain.bars import UNCONFIRMED, basis_of, moment, timestamps
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError, StoreError, UsageError
from ktrdr_pipelines.store.bars.bar_file import BarBounds
from ktrdr_pipelines.store.bars.column_reader import BarSelection
from ktrdr_pipelines.store.files import kind_of, write_atomically

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.store.layout import StoreLayout

Key = tuple[str, Timeframe]

_ATTEMPTS: Final = 5
"""How often a series is written whose price basis changes meanwhile, which is found once a day."""

_KTRDR_COLUMNS: Final = ("session_date", *DEFAULT_COLUMNS)
_PLAIN_LEAST, _PLAIN_MOST = 1e-4, 1e10
"""Between these Arrow writes a float as ``repr`` does, but for a ``.0`` that it leaves out."""


_ALL: Final = Period()


class ExportFormat(StrEnum):
    """A format of files; the value is their suffix, too."""

    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        folder: where the files are written.
        kind: their format.
        period: which bars.
        columns: the columns after ``ts``.
        zone: the time zone of instants.
        is_ktrdr: whether CSV is written as the original did: ``date,open,high,low,close,volume``.
        raw: bars as stored; else on today's price basis.
        overwrite: whether files that exist are replaced.
        origin: the only one that is wanted; None for all.
    """

    folder: Path
    kind: ExportFormat = ExportFormat.CSV
    period: Period = _ALL
    columns: tuple[str, ...] = DEFAULT_COLUMNS
    zone: str = "UTC"
    is_ktrdr: bool = False
    raw: bool = False
    overwrite: bool = False
    origin: OriginName | None = None

    @property
    def is_on_basis(self) -> bool:
        """Whether prices depend on the price basis: not as stored, nor as they were imported."""
        return not self.raw and self.origin != "import"

    def path(self, key: Key) -> Path:
        """Return the file of a series; symbols have no character that a path could not have."""
        return self.folder / f"{key[0]}_{key[1]}.{self.kind}"


@dataclass(frozen=True, slots=True)
class ExportedSeries:
    """What was exported of a series.

    Attributes:
        symbol, timeframe: the series.
        path: its file; None if there was no bar to write, or it failed.
        bars: how many bars the file has.
        first, last: the timestamps of the first and the last one.
        left_out: how many bars of the period are not in it, as their price basis is unconfirmed.
        error: why it could not be exported.
    """

    symbol: str
    timeframe: Timeframe
    path: Path | None = None
    bars: int = 0
    first: datetime | None = None
    last: datetime | None = None
    left_out: int = 0
    error: KtrdrError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the file has all bars of the series and period that are on disk."""
        return self.path is not None and not self.left_out


def export_options(  # noqa: PLR0913  (each is an option of the command)
    folder: Path,
    kind: str = "csv",
    *,
    start: str | None = None,
    end: str | None = None,
    columns: Sequence[str] | None = None,
    zone: str | None = None,
    layout: str | None = None,
    raw: bool = False,
    overwrite: bool = False,
    origin: str | None = None,
) -> ExportOptions:
    """Return the options of an export that a user typed.

    Raises:
        UsageError: one has an invalid value, or two exclude each other.
    """
    if kind not in list(ExportFormat):
        allowed = f"Allowed are {', '.join(ExportFormat)}"
        raise UsageError(f"--format {kind}", reason="no such format", hint=allowed)
    default = (*DEFAULT_COLUMNS, "basis") if raw else DEFAULT_COLUMNS
    known = (*bar_columns(raw=raw), ORIGIN)
    wanted = parse_columns(columns, allowed=known, default=default)
    name = parse_zone(zone)
    if layout is not None:
        _refuse_in_layout(layout, kind, has_columns=columns is not None, zone=name)
        wanted = _KTRDR_COLUMNS
    return ExportOptions(
        folder.expanduser().absolute(),
        ExportFormat(kind),
        parse_period(start, end),
        wanted,
        name,
        layout is not None,
        raw,
        overwrite,
        parse_origin(origin),
    )


def _refuse_in_layout(layout: str, kind: str, *, has_columns: bool, zone: str) -> None:
    if layout != "ktrdr":
        raise UsageError(f"--layout {layout}", reason="no such layout", hint="Allowed is ktrdr")
    for option, is_other in (
        (f"--format {kind}", kind != ExportFormat.CSV),
        ("--columns", has_columns),
        (f"--timezone {zone}", zone != "UTC"),
    ):
        if is_other:
            raise UsageError(
                f"--layout ktrdr with {option}",
                reason="it is CSV with the columns date,open,high,low,close,volume in UTC",
                hint=f"Leave out {option.split()[0]}, or --layout",
            )


def exported_keys(
    workspace: "Workspace",
    parts: StoreParts,
    symbols: str,
    timeframes: str | None,
    *,
    origin: OriginName | None = None,
) -> list[Key]:
    """Return the named series; without timeframes, those on disk of an origin, or of any.

    Symbols that have left the universe can be named, too, as long as they have bars.

    Raises:
        UsageError: a name is unknown or empty, or a symbol that is named has no bars.
    """
    if timeframes is not None and {ALL, EVERY} & {one.strip() for one in timeframes.split(",")}:
        timeframes = None
    known, names = workspace.universe.instruments, [one.strip() for one in symbols.split(",")]
    on_disk = set(parts.series_on_disk(origin))
    have_bars = {one for one, _ in on_disk}
    gone = [name for name in names if name not in known and name in have_bars]
    others = ",".join(name for name in names if name not in gone)
    chosen = list(gone)
    if others or not gone:
        series = chosen_series(workspace.universe, workspace.store, others, timeframes)
        chosen += [one.symbol for one in series]
    kinds = Timeframe if timeframes is None else timeframes_named(timeframes)
    keys = [
        (name, kind)
        for name in dict.fromkeys(chosen)
        for kind in kinds
        if timeframes is not None or (name, kind) in on_disk
    ]
    without = [] if timeframes is not None else [one for one in names if one in known]
    without = [one for one in dict.fromkeys(without) if one not in have_bars]
    if without or not keys:
        raise UsageError(
            f"cannot export {', '.join(without) or symbols}",
            reason="it has no bars on disk",
            hint="`ktrdr load` loads some, `ktrdr status` lists the series that have bars",
        )
    return keys


def export_series(
    parts: StoreParts, keys: Iterable[Key], options: ExportOptions
) -> list[ExportedSeries]:
    """Write the bars of series to files; a series that fails does not keep the others from it.

    Args:
        parts: the store.
        keys: the series.
        options: what is written, and how.

    Raises:
        UsageError: a file exists and is not to be replaced, or the folder is one of the store's;
            nothing has been written.
    """
    wanted = list(keys)
    _refuse_folder(parts.layout, options.folder)
    _refuse_existing([options.path(key) for key in wanted], options)
    exported = []
    for key in wanted:
        try:
            one = _export(parts, key, options)
        except KtrdrError as error:
            one = ExportedSeries(*key, error=error)
        exported.append(one)
    return exported


def _refuse_folder(layout: "StoreLayout", folder: Path) -> None:
    """Refuse a folder in which the store keeps its own files."""
    inside = Path(folder.resolve())
    root = layout.root.resolve()
    own = {one.name for one in layout.own_folders}
    if inside == root or (root in inside.parents and inside.relative_to(root).parts[0] in own):
        raise UsageError(
            f"--out {folder}",
            reason="the store keeps its own files there",
            hint="Name a folder outside of the store, or a new one such as "
            f"{layout.root / 'export'}",
        )


def _refuse_existing(paths: Sequence[Path], options: ExportOptions) -> None:
    existing = [path for path in paths if kind_of(path)]
    if existing and not options.overwrite:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise UsageError(
            f"cannot export to {options.folder}",
            reason=f"{existing[0].name}{more} exist already",
            hint="Add --overwrite to replace them, or name another folder",
        )


def _export(parts: StoreParts, key: Key, options: ExportOptions) -> ExportedSeries:
    symbol, timeframe = key
    parts.require_symbols([symbol])
    for _ in range(_ATTEMPTS):
        known = parts.bases.of(symbol) if options.is_on_basis else None
        written = _Written()
        tables = _shown(_tables(parts, key, options), timeframe, options)
        try:
            write_atomically(
                options.path(key),
                lambda file, tables=tables, written=written: _write(  # type: ignore[misc]
                    file, tables, written, options=options, timeframe=timeframe
                ),
                lambda written=written, known=known: _check(  # type: ignore[misc]
                    written, is_same=known is None or parts.bases.of(symbol) == known
                ),
            )
        except _NothingWrittenError:
            break
        except _OtherBasisError:
            continue
        first, last = (moment(one) for one in written.bounds)
        left_out = _left_out(parts, key, options)
        return ExportedSeries(*key, options.path(key), written.bars, first, last, left_out=left_out)
    else:
        raise StoreError(
            f"cannot export {symbol} {timeframe}",
            reason="its price basis changed while it was read",
            hint="Run this again when no load of it is running",
        )
    return ExportedSeries(*key, left_out=_left_out(parts, key, options))


class _NothingWrittenError(Exception):
    """There is no bar to write."""


class _OtherBasisError(Exception):
    """The bars that were written may be on different price bases."""


@dataclass(slots=True)
class _Written:
    """How many bars are in a file, and the timestamps of the first and the last one."""

    bars: int = 0
    bounds: tuple[int, int] = (0, 0)

    def add(self, table: pa.Table) -> None:
        """Count more bars, which follow the others."""
        if table.num_rows:
            keys = timestamps(table)
            self.bounds = (self.bounds[0] if self.bars else int(keys[0]), int(keys[-1]))
            self.bars += table.num_rows


def _check(written: _Written, *, is_same: bool) -> None:
    if not written.bars:
        raise _NothingWrittenError
    if not is_same:
        raise _OtherBasisError


def _bounds(parts: StoreParts, key: Key, options: ExportOptions) -> Iterator[BarBounds]:
    """Yield the bounds of the bars that are read at a time, oldest first."""
    symbol, timeframe = key
    bounds = options.period.bounds(timeframe)
    if not timeframe.is_yearly_filed:
        yield bounds
        return
    for year in parts.years_on_disk(symbol, timeframe):
        first, until = date(year, 1, 1), date(year + 1, 1, 1)
        yield replace(
            bounds,
            first=max(first, bounds.first or first),
            until=min(until, bounds.until or until),
        )


def _tables(parts: StoreParts, key: Key, options: ExportOptions) -> Iterator[pa.Table]:
    """Yield the bars of a series in order; at least one table."""
    symbol, timeframe = key
    for bounds in [*_bounds(parts, key, options)] or [options.period.bounds(timeframe)]:
        wanted = BarSelection(("ts", *options.columns), bounds, raw=options.raw)
        yield from bars_by_origin(parts, [symbol], timeframe, wanted, origin=options.origin)


def _left_out(parts: StoreParts, key: Key, options: ExportOptions) -> int:
    """Return how many bars of the period are on an unconfirmed price basis."""
    symbol, timeframe = key
    if not options.is_on_basis or not parts.has_unconfirmed(symbol, timeframe):
        return 0
    found = 0
    for bounds in _bounds(parts, key, options):
        (bars,) = parts.read([symbol], timeframe, BarSelection(("basis",), bounds, raw=True))
        found += int(np.count_nonzero(basis_of(bars) == UNCONFIRMED))
    return found


def _shown(
    tables: Iterable[pa.Table], timeframe: Timeframe, options: ExportOptions
) -> Iterator[pa.Table]:
    """Yield tables with their instants in the time zone of the options."""
    for table in tables:
        yield frame_of(
            [table],
            symbols=None,
            engine="arrow",
            zone=options.zone,
            shift_ts=timeframe.is_intraday,
        )


def _write(
    file: BinaryIO,
    tables: Iterator[pa.Table],
    written: _Written,
    *,
    options: ExportOptions,
    timeframe: Timeframe,
) -> None:
    first = next(tables)
    if options.kind is ExportFormat.CSV:
        texts = _ktrdr_texts if options.is_ktrdr else _texts
        has_header = False
        for table in _counted(first, tables, written):
            rows = texts(table, timeframe)
            if not has_header:
                file.write(f"{','.join(rows.column_names)}\n".encode())
                has_header = True
            style = pa_csv.WriteOptions(include_header=False, quoting_style="none")
            pa_csv.write_csv(rows, file, style)
        return
    if options.kind is ExportFormat.PARQUET:
        opened = pq.ParquetWriter(file, first.schema, compression="zstd")
    else:
        compressed = pa.ipc.IpcWriteOptions(compression="zstd")
        opened = pa.ipc.new_file(file, first.schema, options=compressed)
    with closing(opened) as writer:
        for table in _counted(first, tables, written):
            writer.write_table(table)


def _counted(first: pa.Table, others: Iterator[pa.Table], written: _Written) -> Iterator[pa.Table]:
    written.add(first)
    yield first
    for table in others:
        written.add(table)
        yield table


def _texts(table: pa.Table, timeframe: Timeframe) -> pa.Table:
    """Return all values as text: instants with their offset, floats to the last digit."""
    columns = []
    for field in table.schema:
        column = table[field.name]
        if field.name == "ts" and not timeframe.is_intraday:
            column = column.cast(pa.date32())
        if pa.types.is_timestamp(column.type):
            columns.append(_instant_texts(column))
        elif pa.types.is_floating(column.type):
            columns.append(_float_texts(column))
        else:
            columns.append(column.cast(pa.string()))
    return pa.table(columns, names=table.column_names)


def _ktrdr_texts(table: pa.Table, timeframe: Timeframe) -> pa.Table:
    """Return all values as the original wrote them.

    Days and weeks have the date that the gateway states, at midnight; a volume that is not
    available is -1, as the gateway states it.

    Source: ``LocalDataLoader.save`` of https://github.com/kpiteira/ktrdr, which is ``to_csv`` of
    pandas with ``date_format="%Y-%m-%dT%H:%M:%SZ"``.
    """
    at = table["ts"]
    if not timeframe.is_intraday:
        at = table["session_date"].cast(pa.timestamp("us")).cast(at.type)
    volume = pc.fill_null(table["volume"], -1.0)
    values = [_instant_texts(at), *(_float_texts(table[one]) for one in DEFAULT_COLUMNS[:-1])]
    return pa.table([*values, _float_texts(volume)], names=["date", *DEFAULT_COLUMNS])


def _instant_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return instants in ISO form with their offset, which is Z for UTC."""
    zone = column.type.tz
    seconds = pa.timestamp("s", tz=zone)
    whole = column.cast(seconds, safe=False)
    if not whole.cast(column.type).equals(column):
        return pa.chunked_array(
            [[None if one is None else one.isoformat() for one in column.to_pylist()]], pa.string()
        )
    if zone == "UTC":
        return pc.strftime(whole, "%Y-%m-%dT%H:%M:%SZ")
    texts = pc.strftime(whole, "%Y-%m-%dT%H:%M:%S%z")
    return pc.replace_substring_regex(texts, r"([+-]\d\d)(\d\d)$", r"\1:\2")


def _float_texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return floats as ``repr`` writes them, which reads back as the same float; null is empty."""
    size = pc.abs(column)
    is_plain = pc.or_(
        pc.equal(size, 0.0), pc.and_(pc.less(size, _PLAIN_MOST), pc.less(_PLAIN_LEAST, size))
    )
    if pc.all(is_plain, min_count=0).as_py():
        return pc.replace_substring_regex(column.cast(pa.string()), r"^(-?\d+)$", r"\1.0")
    texts = [None if one is None else repr(one) for one in column.to_pylist()]
    return pa.chunked_array([texts], pa.string())
