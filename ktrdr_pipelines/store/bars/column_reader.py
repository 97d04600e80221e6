"""Read some columns of some bars of series by path, as fast as their files can be read.

It returns what ``BarStore.read`` and ``read_raw`` return, and refuses what they refuse, without
knowing the universe: a series is a symbol and a timeframe. A file that is as the ledger has
recorded needs no look at its footer; of any other file the footer is read and checked.

Not here: reading one file (``store.bars.bar_file``), multiplying (``store.bars.price_bases``),
frames of pandas and others (``app.reading``).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.domain.adjustments import depend_on_dates
from ktrdr_pipelines.domain.bars import STORED_SCHEMA, UNCONFIRMED, basis_of, moment, timestamps
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.store.bars.adjustment_history import Adjustments
from ktrdr_pipelines.store.bars.bar_file import (
    ALL_BARS,
    BarBounds,
    Known,
    OpenedBarFile,
    corrupt,
    opened,
)
from ktrdr_pipelines.store.bars.filing import BarFiles, misfiled, replaced
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.bars.price_bases import PriceBases
from ktrdr_pipelines.store.layout import StoreLayout, store_origin
from ktrdr_pipelines.store.ledger.file_index import (
    FileVersion,
    Fingerprint,
    IndexedFile,
    fingerprint,
    known_by,
)
from ktrdr_pipelines.store.ledger.ledger import Ledger

NEXT: Final = "next_ts"
"""The column with the timestamp of the next bar of the series; null for the newest."""

_ATTEMPTS: Final = 20
"""How often the files of a series are listed while they are moved away under the reader."""

_DAY: Final = timedelta(days=1)

_Versions = Mapping[str, FileVersion]


@dataclass(frozen=True, slots=True)
class BarSelection:
    """Which columns of which bars are read.

    Attributes:
        columns: names of ``BAR_SCHEMA``; of ``STORED_SCHEMA`` if ``raw``.
        bounds: which bars.
        last: only the newest of these; None for all.
        before: how many bars before the start of the bounds are read too.
        raw: bars as stored; else on today's price basis, without those on an unconfirmed one.
        with_next: whether to append ``NEXT``.
    """

    columns: tuple[str, ...]
    bounds: BarBounds = ALL_BARS
    last: int | None = None
    before: int = 0
    raw: bool = False
    with_next: bool = False

    @property
    def schema(self) -> pa.Schema:
        """The columns of the result."""
        fields = [STORED_SCHEMA.field(name) for name in self.columns]
        if self.with_next:
            fields.append(pa.field(NEXT, STORED_SCHEMA.field("ts").type))
        return pa.schema(fields)


class ColumnReader:
    """Reads columns of any series of a store; threads may share one.

    Args:
        layout: where the files lie.
        ledger: its index of the files and adjustments.
        files: check and record what the files hold.
        bases: the price bases of all symbols.
    """

    def __init__(
        self, layout: StoreLayout, ledger: Ledger, files: BarFiles, bases: PriceBases
    ) -> None:
        self._layout, self._ledger, self._files, self._bases = layout, ledger, files, bases

    def read(
        self, symbols: Sequence[str], timeframe: Timeframe, wanted: BarSelection
    ) -> list[pa.Table]:
        """Return the bars of each symbol, sorted by timestamp, in the columns of ``wanted``.

        Raises:
            CorruptFileError: bars or adjustments of a symbol cannot be read, or a file does not
                belong where it lies.
            StoreError: a newer version wrote a file, or adjustments of a symbol have been lost.
            StoreReplacedError: the store is not the one that was opened.
            DiskError: the system refused.
        """
        # Adjustments are read before bars, as by ``BarStore.read``, which says why.
        known = {} if wanted.raw else self._bases.of_each(symbols)
        keys = [f"{symbol}|{timeframe}" for symbol in symbols]
        versions = self._ledger.files.recorded_versions(keys)

        # Threads across files do not pay: large ones are decoded by several threads already.
        return [
            self._one(symbol, timeframe, wanted, (known.get(symbol, ()), versions))
            for symbol in symbols
        ]

    def _one(
        self,
        symbol: str,
        timeframe: Timeframe,
        wanted: BarSelection,
        known: tuple[Adjustments, _Versions],
    ) -> pa.Table:
        adjustments, versions = known
        while True:
            needs = dict.fromkeys(wanted.columns)
            if depend_on_dates(adjustments):
                needs["session_date"] = None
            bars = self._stored(symbol, timeframe, replace(wanted, columns=(*needs,)), versions)
            if wanted.raw:
                return bars.select(wanted.schema.names)
            highest = _highest(bars)
            if not adjustments and highest == 0:  # by far most often
                return bars.select(wanted.schema.names)
            if highest > len(adjustments):
                newer = self._bases.of(symbol)
                if len(newer) > len(adjustments):
                    adjustments = newer
                    continue
            todays = self._bases.on_todays(symbol, bars, adjustments, may_overwrite=True)
            return todays.select(wanted.schema.names)

    def _stored(
        self, symbol: str, timeframe: Timeframe, wanted: BarSelection, versions: _Versions
    ) -> pa.Table:
        """Return stored bars, ``basis`` among their columns; without unconfirmed ones if not raw.

        A file that is moved away between its listing and its opening (a rename or retirement of the
        symbol) makes the listing start again.
        """
        attempts = 0
        while True:
            try:
                return self._joined(symbol, timeframe, wanted, versions)
            except DiskError as error:
                attempts += 1
                if not isinstance(error.__cause__, FileNotFoundError) or attempts == _ATTEMPTS:
                    raise

    def _joined(
        self,
        symbol: str,
        timeframe: Timeframe,
        wanted: BarSelection,
        versions: _Versions,
    ) -> pa.Table:
        folder = f"bars/symbol={symbol}/timeframe={timeframe}"
        paths = self._as_recorded(folder, versions)
        rows: Mapping[str, IndexedFile] = {}
        if paths is None:
            paths = self._layout.bar_files(symbol, timeframe)
            if not paths:
                self._layout.require_same()
            rows = self._checked(symbol, timeframe, paths)
        parts: list[pa.Table] = []
        older = newer = 0
        for path in reversed([one for one in paths if _may_include(one, timeframe, wanted)]):
            with self._files.recording_damage(path), opened(path) as file:
                footer = None
                if not _is_of(versions.get(f"{folder}/{path.name}"), file.status):
                    rows = rows or self._files.recorded(symbol, timeframe)
                    row = rows.get(f"{folder}/{path.name}")
                    footer = self._footer(file, symbol, timeframe, known_by(row))
                bars, start = _bars_of(file, wanted, footer)
            if wanted.last is not None:
                bars = bars.slice(max(0, bars.num_rows - (wanted.last - newer)))
                newer += bars.num_rows
            elif wanted.before:
                taken = min(start, wanted.before - older)
                bars = bars.slice(start - taken)
                older += taken
            parts.append(bars)
            if newer == wanted.last or (wanted.before and older == wanted.before):
                break
        names = [*wanted.columns, *(["basis"] if "basis" not in wanted.columns else [])]
        schema = replace(wanted, columns=tuple(names)).schema
        if not parts:
            return schema.empty_table()
        if len(parts) == 1:
            return parts[0].select(schema.names)
        return pa.concat_tables([one.select(schema.names) for one in reversed(parts)])

    def _as_recorded(self, folder: str, versions: _Versions) -> list[Path] | None:
        """Return the files of a series, oldest first, if all are as the ledger has recorded them.

        Those need no other check. None where one is not, or there is none.
        """
        base, names = self._layout.root / folder, []
        identities = set()
        try:
            with os.scandir(base) as entries:
                for entry in entries:
                    if not entry.name.endswith(".parquet"):
                        continue
                    version = versions.get(f"{folder}/{entry.name}")
                    if not _is_of(version, entry.stat(follow_symlinks=False)):
                        return None
                    names.append(entry.name)
                    identities.add(version and version.identity_json)
        except OSError:  # the other way of listing says what is wrong
            return None
        return [base / name for name in sorted(names)] if len(identities) == 1 else None

    def _checked(
        self, symbol: str, timeframe: Timeframe, paths: Sequence[Path]
    ) -> Mapping[str, IndexedFile]:
        """Check files of which some are not as recorded, and return the recorded rows by name.

        Raises:
            CorruptFileError: one does not belong where it lies, or holds another instrument than
                the series.
        """
        rows = self._files.recorded(symbol, timeframe)
        held: dict[Path, Footer | IndexedFile] = {}
        for path in paths:
            row = rows.get(self._layout.relative(path))
            if row is not None and row.fingerprint == fingerprint(path):
                held[path] = row
                continue
            with self._files.recording_damage(path), opened(path) as file:
                held[path] = self._footer(file, symbol, timeframe, known_by(row))
        if len({one.identity for one in held.values()}) > 1:
            usual = self._files.prevailing(symbol, held.values())
            for path, one in held.items():
                if one.identity != usual:
                    raise corrupt(path, f"it holds {one.identity}, the series holds {usual}")
        return rows

    def _footer(
        self, file: OpenedBarFile, symbol: str, timeframe: Timeframe, known: Known | None
    ) -> Footer:
        """Return the footer of a file that is not as recorded, and refuse one of another series."""
        footer = file.footer(known)
        origin = store_origin(self._layout)
        wrong = misfiled(file.path, footer, symbol, timeframe, origin=origin)
        if wrong or (wrong := replaced(footer, known)):
            raise corrupt(file.path, wrong)
        return footer


def _bars_of(
    file: OpenedBarFile, wanted: BarSelection, footer: Footer | None
) -> tuple[pa.Table, int]:
    """Return bars of a file, and how many of them lie before the bounds."""
    bounds, start = wanted.bounds, 0
    if not wanted.with_next and not wanted.before:
        bars = file.bars(wanted.columns, bounds, footer=footer)
    else:
        # Bars outside of the bounds count, too: those before them, and the one after the last.
        up_to = ALL_BARS if wanted.with_next else replace(bounds, start=None, first=None)
        names = dict.fromkeys([*wanted.columns, "ts", "session_date"])
        bars = file.bars([*names], up_to, footer=footer)
        if wanted.with_next:
            bars = _with_next(bars)
        low, high = bounds.select(bars)
        if wanted.before:
            start = low
            low = 0
        bars = bars.slice(low, high - low)
    if not wanted.raw and pc.min(bars["basis"]).as_py() == UNCONFIRMED:
        is_known = basis_of(bars) != UNCONFIRMED
        start = int(np.count_nonzero(is_known[:start]))
        bars = bars.filter(pa.array(is_known))
    return bars, start


def _highest(bars: pa.Table) -> int:
    """Return the highest basis of bars, none of which is unconfirmed; 0 without bars."""
    return pc.max(bars["basis"]).as_py() or 0


def _with_next(bars: pa.Table) -> pa.Table:
    """Return bars with the timestamp of the next one."""
    keys = timestamps(bars)
    following = np.append(keys[1:], 0) if len(keys) else keys
    is_last = np.arange(len(keys)) == len(keys) - 1
    kind = STORED_SCHEMA.field("ts").type
    column = pa.array(following, pa.int64(), mask=is_last).cast(kind)
    return bars.append_column(pa.field(NEXT, kind), column)


def _is_of(recorded: FileVersion | None, status: os.stat_result) -> bool:
    """Return whether a file is the recorded version, which ktrdr wrote and has checked."""
    taken = Fingerprint(status.st_size, status.st_mtime_ns, status.st_ino)
    return recorded is not None and recorded.is_sealed and recorded.fingerprint == taken


def _may_include(path: Path, timeframe: Timeframe, wanted: BarSelection) -> bool:
    """Return whether a file may have bars that are wanted, by the year in its name.

    A session date is at most a day from the UTC date of its bars.
    """
    if not timeframe.is_yearly_filed or not path.stem.isdecimal():
        return True
    year, bounds = int(path.stem), wanted.bounds
    starts, ends = _days_around(bounds.start), _days_around(bounds.end)
    first = bounds.first or (starts and starts[0])
    last = bounds.until or (ends and ends[1])
    is_after = last is not None and year > last.year
    is_before = first is not None and year < first.year
    return not is_after and (bool(wanted.before) or not is_before)


def _days_around(bound: int | None) -> tuple[date, date] | None:
    """Return the oldest and the newest session date that a bar of a timestamp can have."""
    if bound is None:
        return None
    day = moment(bound).date()
    return day - _DAY, day + _DAY
