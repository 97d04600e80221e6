"""The parts of a store that reading needs, each made when it is first used.

Not here: what is read with them (``app.reading.bar_tables``).
"""

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa

from ktrdr_pipelines.app.reading.read_options import parse_symbol, unknown_symbol
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.settings import effective_settings
from ktrdr_pipelines.store.bars.bar_file import corrupt
from ktrdr_pipelines.store.bars.column_reader import BarSelection, ColumnReader
from ktrdr_pipelines.store.bars.filing import BarFiles
from ktrdr_pipelines.store.bars.price_bases import PriceBases
from ktrdr_pipelines.store.layout import StoreLayout, open_store, store_origin
from ktrdr_pipelines.store.ledger.ledger import Ledger, open_ledger

if TYPE_CHECKING:
    from ktrdr_pipelines.app.reading.imported_bars import OriginName
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.calendars.registry import Calendars
    from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
    from ktrdr_pipelines.domain.instruments import Instrument
    from ktrdr_pipelines.gaps.index import SeriesGaps
    from ktrdr_pipelines.store.bars.bar_store import BarStore


class ImportedParts:
    """The reader of the store of imported bars, with the calendars of the store above it.

    Args:
        layout: the store of imported bars.
        above: the parts of the store that it belongs to.
    """

    def __init__(self, layout: StoreLayout, above: "StoreParts") -> None:
        self.layout, self._above = layout, above
        ledger = open_ledger(layout)
        files = BarFiles(layout, ledger, system_now)
        self._reader = ColumnReader(layout, ledger, files, PriceBases(layout, ledger))

    def read(
        self, symbols: Sequence[str], timeframe: Timeframe, wanted: BarSelection
    ) -> list[pa.Table]:
        """Return bars as ``ColumnReader.read``."""
        return self._reader.read(symbols, timeframe, wanted)

    def calendars(self, symbols: Sequence[str]) -> "list[SessionCalendar | None]":
        """Return the calendar of each symbol."""
        return self._above.calendars(symbols)


class StoreParts:
    """The readers, universe and gap index of a store.

    Args:
        layout: the store.
        clock: returns real time.
    """

    def __init__(self, layout: StoreLayout, clock: Callable[[], datetime]) -> None:
        self._layout, self._clock = layout, clock
        self._opened: tuple[object, Workspace] | None = None
        self._imported: tuple[object, ImportedParts] | None = None
        self._imported_folder = str(layout.imported)

    @property
    def layout(self) -> StoreLayout:
        """The store's layout."""
        return self._layout

    @property
    def now(self) -> datetime:
        """The time of the market."""
        return self.workspace.now

    @property
    def workspace(self) -> "Workspace":
        """The workspace of the store; a new one after each edit of the universe."""
        from ktrdr_pipelines.app.workspace import Workspace

        try:
            status = self._layout.universe.stat()
            taken: object = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:  # reading the universe says what is wrong with it
            taken = None
        opened = self._opened
        if opened is None or opened[0] != taken:
            settings = effective_settings(flags={"ktrdr_data": self._layout.root})
            workspace = Workspace(settings, self._layout, real=self._clock)
            self._opened = opened = taken, workspace
        return opened[1]

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger; bars are read without the settings of a gateway, which may be wrong."""
        return open_ledger(self._layout)

    @cached_property
    def bases(self) -> PriceBases:
        """The price bases of all symbols."""
        return PriceBases(self._layout, self.ledger)

    @cached_property
    def reader(self) -> ColumnReader:
        """The reader of bar files."""
        files = BarFiles(self._layout, self.ledger, self._clock)
        return ColumnReader(self._layout, self.ledger, files, self.bases)

    def symbols_on_disk(self, timeframes: Collection[Timeframe] = tuple(Timeframe)) -> list[str]:
        """Return the symbols with bars of any of some timeframes, sorted."""
        return sorted({symbol for symbol, kind in self.series_on_disk() if kind in timeframes})

    def series_on_disk(self, origin: "OriginName | None" = None) -> list[tuple[str, Timeframe]]:
        """Return the series that have bars, of one origin alone or, without one, of any."""
        layouts = [] if origin == "import" else [self._layout]
        if origin != "gateway" and os.path.isdir(self._imported_folder):  # noqa: PTH112  (faster, and read on each read)
            layouts.append(StoreLayout(self._layout.imported))
        return list(
            dict.fromkeys(
                key for one in layouts for key in one.series_folders() if one.bar_files(*key)
            )
        )

    @property
    def origin(self) -> Origin:
        """The origin of the bars of the gateway; ``ib`` as long as there are none."""
        return store_origin(self._layout) or Origin.IB

    @property
    def imported(self) -> ImportedParts | None:
        """The reader of imported bars; None where there is no store of them.

        Raises:
            StoreError: it cannot be opened.
        """
        layout = StoreLayout(self._layout.imported)
        try:
            status = layout.marker.stat()
        except OSError:
            return None
        taken = (status.st_mtime_ns, status.st_size, status.st_ino)
        opened = self._imported
        if opened is None or opened[0] != taken:
            self._imported = opened = taken, ImportedParts(open_store(layout.root), self)
        return opened[1]

    def with_imported(self, symbols: Sequence[str], timeframe: Timeframe) -> list[str]:
        """Return those of some symbols that have imported bars of a timeframe."""
        if not os.path.isdir(self._imported_folder):  # noqa: PTH112  (no read should take longer)
            return []
        layout = StoreLayout(self._layout.imported)
        return [one for one in symbols if layout.series_folder(one, timeframe).is_dir()]

    def years_on_disk(self, symbol: str, timeframe: Timeframe) -> list[int]:
        """Return the years of the files of a series that is filed by year, imported ones too."""
        paths = self._layout.bar_files(symbol, timeframe)
        paths += StoreLayout(self._layout.imported).bar_files(symbol, timeframe)
        return sorted({int(path.stem) for path in paths if path.stem.isdecimal()})

    def has_unconfirmed(self, symbol: str, timeframe: Timeframe) -> bool:
        """Return whether bars of a series are on an unconfirmed price basis.

        Raises:
            CorruptFileError: a file of it cannot be read.
        """
        files = self.workspace.store.files.of_symbol(symbol, timeframe)
        return any(row.basis.unconfirmed for row in files.values())

    def require_symbols(self, symbols: Sequence[str]) -> None:
        """Refuse symbols that are neither on disk nor in the universe.

        Raises:
            UnknownSymbolError: one is neither.
            UsageError: one is no text.
        """
        for symbol in symbols:
            is_key = re.fullmatch(KEY_PATTERN, parse_symbol(symbol)) is not None
            if is_key and self._layout.symbol_folder(symbol).is_dir():
                continue
            self._layout.require_same()
            if is_key and StoreLayout(self._layout.imported).symbol_folder(symbol).is_dir():
                continue
            known = self.workspace.universe.instruments
            if not is_key or symbol not in known:
                raise unknown_symbol(symbol, {*known, *self.symbols_on_disk()})

    def read(
        self, symbols: Sequence[str], timeframe: Timeframe, wanted: BarSelection
    ) -> list[pa.Table]:
        """Return bars as ``ColumnReader.read``, and refuse symbols that are moved meanwhile.

        Raises:
            UnknownSymbolError: one has been renamed or retired since it was looked up.
            StoreError: one is being renamed or retired; also as ``ColumnReader.read``.
        """
        tables = self.reader.read(symbols, timeframe, wanted)
        moved = [
            symbol
            for symbol, table in zip(symbols, tables, strict=True)
            if not table.num_rows and not self._layout.symbol_folder(symbol).is_dir()
        ]
        if moved:
            # A move takes the folder away first, then edits the universe, then removes its journal.
            _refuse_moved(self._layout, moved)
            self.require_symbols(moved)
        return tables

    def instrument(self, symbol: str) -> "Instrument":
        """Return an instrument of the universe.

        Raises:
            UnknownSymbolError: there is none, though the symbol may have bars.
            UsageError: it is no text.
        """
        universe = self.workspace.universe
        if parse_symbol(symbol) not in universe.instruments:
            self.require_symbols([symbol])
        return universe.instrument(symbol)

    def calendars(self, symbols: Sequence[str]) -> "list[SessionCalendar | None]":
        """Return the calendar of each symbol; None for those that are not in the universe."""
        known, calendars = self.workspace.universe.instruments, self.workspace.ledger.calendars()
        return [
            calendars.of(replace(known[one], end=None)) if one in known else None for one in symbols
        ]

    def series_gaps(
        self, instruments: "Sequence[Instrument]", timeframe: Timeframe, now: datetime
    ) -> "tuple[list[SeriesGaps], Calendars]":
        """Return what each series of a timeframe holds and lacks, and the calendars.

        A file that is known to be damaged is an error of its series.
        """
        from ktrdr_pipelines.domain.instruments import Series

        index = self.workspace.gap_index()
        series = [Series(one, timeframe) for one in instruments]
        found = without_damaged(index.store, index.series_gaps(series, now))
        return found, index.calendars


def without_damaged(store: "BarStore", found: "Sequence[SeriesGaps]") -> "list[SeriesGaps]":
    """Return what series hold; an error where a file of one is known to be damaged.

    The gap index compares files with their records alone, and bytes can change in place.
    """
    from ktrdr_pipelines.gaps.index import SeriesGaps
    from ktrdr_pipelines.store.maintenance.file_checks import damaged_files

    layout = store.layout
    paths = {layout.root / name: why for name, why in damaged_files(store).items()}
    damaged = {path.parent: corrupt(path, why) for path, why in paths.items()}
    checked = []
    for one in found:
        folder = layout.series_folder(one.series.symbol, one.series.timeframe)
        error = damaged.get(folder)
        checked.append(one if error is None else SeriesGaps(one.series, error=error))
    return checked


def _refuse_moved(layout: StoreLayout, symbols: Sequence[str]) -> None:
    """Refuse symbols whose folders are gone because a move of them is unfinished.

    Raises:
        StoreError: there is such a move.
    """
    from ktrdr_pipelines.store.maintenance.rename_journal import pending_move

    move = pending_move(layout)
    if move is not None and move.symbol in symbols:
        raise StoreError(
            f"cannot read the bars of {move.symbol}",
            reason=f"the {move} is not finished",
            hint="Try again when it is; after an interruption `ktrdr repair` completes it",
        )
