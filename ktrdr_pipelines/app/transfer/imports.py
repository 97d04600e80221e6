"""Import CSV files of other programs into the store of imported bars.

That is a store of its own below the data folder (``StoreLayout.imported``): its bars fill no gap,
are never adjusted, and are read where the gateway's store has none. A file is imported as a whole:
its good rows, or, with ``strict``, none if it has a bad one.

Not here: reading the rows of a file (``app.transfer.csv_bars``), reading imported bars
(``app.reading``).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ktrdr_pipelines.app.transfer.csv_bars import BadRow, ParsedBars, parse_csv
from ktrdr_pipelines.app.transfer.mapping import CsvShape, FileRule, read_mapping, timeframe_of
from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.domain.bars import BAR_SCHEMA, merge_bars, moment, timestamps
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, Series, identity_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError, StoreError, UnknownSymbolError, UsageError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.files import disk_errors, kind_of, locked
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import open_ledger
from ktrdr_pipelines.store.maintenance.imported_renames import import_lock
from ktrdr_pipelines.store.maintenance.rename_journal import refuse_moving

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace

_NO_CONTRACT: Final = 0
"""The contract id of imported bars: their files do not say which contract they are of."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What is imported, and how.

    Attributes:
        source: a folder of files, or one file.
        zone: the time zone of times without an offset; None if none was stated.
        mapping: the mapping file.
        strict: whether nothing of a file with a bad row is imported.
        replace: whether bars replace those that were imported before with other values.
    """

    source: Path
    zone: str | None = None
    mapping: Path | None = None
    strict: bool = False
    replace: bool = False


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """What was imported of one file.

    Attributes:
        name: the file, relative to the folder.
        symbol, timeframe: the series, as far as the name states one.
        rows: how many rows it has.
        added, changed, unchanged: how many bars are new, replaced others, or were there already.
        first, last: the timestamps of the first and the last bar that was read.
        bad: the rows that are not imported.
        repeated: how many rows were left out that repeat another one.
        was_sorted: whether the rows came in order.
        ignored: the columns that are not read.
        without: the columns that the file lacks; their values are null.
        error: why nothing of it was imported.
    """

    name: str
    symbol: str = ""
    timeframe: Timeframe | None = None
    rows: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    first: datetime | None = None
    last: datetime | None = None
    bad: tuple[BadRow, ...] = ()
    repeated: int = 0
    was_sorted: bool = True
    ignored: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    error: KtrdrError | None = None

    @property
    def is_complete(self) -> bool:
        """Whether each row of the file is a bar of the store now."""
        return self.error is None and not self.bad


@dataclass(frozen=True, slots=True)
class _Found:
    """A file, and the series that its name states."""

    path: Path
    name: str
    shape: CsvShape
    series: Series | None
    outcome: ImportedFile


def import_files(workspace: "Workspace", options: ImportOptions) -> list[ImportedFile]:
    """Import files; one that cannot be imported does not keep the others from it.

    Args:
        workspace: the store, and the universe that names the symbols.
        options: which files, and how they are read.

    Raises:
        UsageError: the mapping file or the zone is wrong, or there is no file to import.
        StoreError: the store of imported bars cannot be used.
    """
    rules = read_mapping(options.mapping, options.zone)
    found = list(_found(workspace, options, rules))
    if not found:
        raise UsageError(
            f"cannot import {options.source}",
            reason="it has no file named like AAPL_1h.csv",
            hint="Name the folder of the files, or state other names in a mapping file (--mapping)",
        )
    imported = []
    for one in _once_each(found):
        outcome = one.outcome
        if one.series is not None and outcome.error is None:
            try:
                outcome = _import(workspace, one, options)
            except KtrdrError as error:
                outcome = replace(outcome, error=error)
        imported.append(outcome)
    return imported


def _found(
    workspace: "Workspace", options: ImportOptions, rules: Sequence[FileRule]
) -> Iterator[_Found]:
    """Yield the files of the folder that a rule is about, and CSV files with other names."""
    symbols = {key.upper(): key for key in workspace.universe.instruments}
    unknown: list[str] = []
    found: list[_Found] = []
    for path, name in _files(options.source):
        outcome = ImportedFile(name)
        named = [(rule.shape, states) for rule in rules if (states := rule.named(name))]
        if not named:
            if path.suffix.lower() == ".csv":
                found.append(_Found(path, name, CsvShape(), None, _unnamed(outcome)))
            continue
        shape, (symbol, kind) = named[0]
        timeframe = timeframe_of(kind)
        if timeframe is None:
            found.append(_Found(path, name, shape, None, _unnamed(outcome, kind)))
            continue
        key = symbols.get(symbol.upper())
        outcome = replace(outcome, symbol=key or symbol, timeframe=timeframe)
        if key is None:
            unknown.append(symbol)
            found.append(_Found(path, name, shape, None, outcome))
        else:
            series = Series(workspace.universe.instrument(key), timeframe)
            found.append(_Found(path, name, shape, series, outcome))
    missing = ",".join(dict.fromkeys(unknown))
    for one in found:
        if one.series is None and one.outcome.error is None:
            error = UnknownSymbolError(
                f"cannot import {one.name}",
                reason=f"{one.outcome.symbol} is not in the universe",
                hint=f"`ktrdr universe add {missing}` adds what is missing; then import again",
            )
            yield replace(one, outcome=replace(one.outcome, error=error))
        else:
            yield one


def _unnamed(outcome: ImportedFile, timeframe: str = "") -> ImportedFile:
    reason = "its name does not state symbol and timeframe, as AAPL_1h.csv does"
    if timeframe:
        reason = f"its name states the timeframe {timeframe!r}, which is none of "
        reason += ", ".join(Timeframe)
    error = UsageError(
        f"cannot import {outcome.name}",
        reason=reason,
        hint="Rename it, or state what it is in a mapping file (--mapping)",
    )
    return replace(outcome, error=error)


def _files(source: Path) -> list[tuple[Path, str]]:
    """Return the files of a folder and those below it, or one file, with their names.

    Raises:
        UsageError: there is no such file or folder.
    """
    with disk_errors(source):
        if source.is_file():
            return [(source, source.name)]
        if not source.is_dir():
            raise UsageError(
                f"cannot import {source}",
                reason="there is no such folder",
                hint="Name the folder of the CSV files, or one file",
            )
        return [
            (path, path.relative_to(source).as_posix())
            for path in sorted(_all_below(source))
            if not path.name.startswith(".")
        ]


def _all_below(folder: Path) -> Iterator[Path]:
    """Yield all that is no folder below a folder and its links, links to nothing included.

    Raises:
        OSError: a folder cannot be read, whose files would be missed.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = Path(parent).resolve()
        if real in seen:  # a link to a folder above or beside it
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(parent, name) for name in names)


def _once_each(found: Sequence[_Found]) -> Iterator[_Found]:
    """Yield files; several of one series are refused, as it is not known which one counts."""
    names: dict[Series, list[str]] = {}
    for one in found:
        if one.series is not None:
            names.setdefault(one.series, []).append(one.name)
    for one in found:
        same = names.get(one.series, []) if one.series is not None else []
        if len(same) > 1:
            error = UsageError(
                f"cannot import {one.name}",
                reason=f"several files are of {one.series}: {', '.join(same)}",
                hint="Import them one after the other, each by its own name",
            )
            yield replace(one, outcome=replace(one.outcome, error=error))
        else:
            yield one


def _import(workspace: "Workspace", found: _Found, options: ImportOptions) -> ImportedFile:
    """Import one file.

    Raises:
        UsageError: the file as a whole cannot be read, or it has bars with other values than those
            that were imported before.
        StoreError: its bars cannot be saved.
    """
    series = found.series
    assert series is not None  # noqa: S101  (the caller has checked)
    parsed = _parsed(workspace, found, series)
    keys = timestamps(parsed.bars)
    outcome = replace(
        found.outcome,
        rows=parsed.rows,
        bad=parsed.bad,
        repeated=parsed.repeated,
        was_sorted=parsed.was_sorted,
        ignored=parsed.ignored,
        without=parsed.without,
        first=moment(int(keys[0])) if len(keys) else None,
        last=moment(int(keys[-1])) if len(keys) else None,
    )
    if parsed.bad and options.strict:
        error = UsageError(
            f"cannot import {found.name}",
            reason=f"{len(parsed.bad)} of {parsed.rows} rows are no bars",
            hint="Correct them, or import the others without --strict",
        )
        return replace(outcome, error=error)
    if not len(keys):
        return outcome
    layout = create_store(workspace.layout.imported, Origin.IMPORT)
    # What is found to be the same, or new, is so until it is saved.
    lock = import_lock(layout, series.symbol, series.timeframe)
    with locked(lock, f"imports of {series}"), closing(open_ledger(layout)) as ledger:
        _refuse_moved(workspace.layout, series.symbol)
        store = BarStore(layout, ledger, clock=workspace.clock.real_now)
        held = store.read_raw(series).select(BAR_SCHEMA.names)
        merge = merge_bars(held, parsed.bars)
        changed = merge.revised
        if changed.num_rows and not options.replace:
            error = UsageError(
                f"cannot import {found.name}",
                reason=f"{changed.num_rows} bars were imported before with other values, the first "
                f"of {changed['ts'][0].as_py():%Y-%m-%dT%H:%M:%SZ}",
                hint="Add --replace if these values are the right ones; the older are kept as "
                "revisions",
            )
            return replace(outcome, error=error)
        identity = identity_of(series, contract_id=_NO_CONTRACT, origin=Origin.IMPORT)
        if merge.added or changed.num_rows:
            saved = store.save(series, identity, parsed.bars, Coverage())
            added, revised = saved.added, saved.revised
        else:
            added = revised = 0
    return replace(outcome, added=added, changed=revised, unchanged=len(keys) - added - revised)


def _refuse_moved(layout: StoreLayout, symbol: str) -> None:
    """Refuse bars of a symbol that has left the universe since it was looked up.

    Raises:
        StoreError: it has been renamed or retired, or is being so.
    """
    refuse_moving(layout, symbol)
    universe, _ = universe_file(layout).read()
    if symbol not in universe.instruments:
        raise StoreError(
            f"cannot save bars of {symbol}",
            reason="the symbol has left the universe since the import began",
            hint="Import the file again, under the name that the symbol has now",
        )


def _parsed(workspace: "Workspace", found: _Found, series: Series) -> ParsedBars:
    """Return the bars of a file.

    Raises:
        UsageError: it cannot be read as a whole; the error names file and line.
    """
    calendar = workspace.ledger.calendars().of(replace(series.instrument, end=None))
    if not found.path.is_file():
        raise UsageError(
            f"cannot import {found.name}",
            reason=f"it is {kind_of(found.path)}",
            hint="Only files, and links to files, are imported",
        )
    try:
        with disk_errors(found.path), found.path.open(encoding="utf-8-sig", newline="") as lines:
            return parse_csv(
                lines, found.shape, series.timeframe, calendar=calendar, now=workspace.now
            )
    except UsageError as error:
        what = f"cannot import {found.name}, {error.what}"
        raise UsageError(what, reason=error.reason, hint=error.hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"cannot import {found.name}", reason="it is not UTF-8 text", hint="Save it as UTF-8"
        ) from error


def try_refresh_views(workspace: "Workspace") -> KtrdrError | None:
    """Make the catalog know the imported files; return a failure, without which they are there."""
    from ktrdr_pipelines.store.catalog.catalog import refresh_views

    try:
        refresh_views(workspace.layout)
    except KtrdrError as error:
        return error
    return None
