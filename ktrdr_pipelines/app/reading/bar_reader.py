"""Read bars of a local store as frames: ``open_store`` and the ``Store`` that it returns.

Reads go by path and need neither a gateway nor the catalog, and they work while loads run: each
file is read in one version, and bars are put on today's price basis as queries do.

Every frame has ``ts``, the start of the bar: the index of a pandas frame, the first column of the
others. It is an instant, shown in ``tz``; bars of days and weeks have a date in its place, midnight
UTC of the session date or of the Monday, which no ``tz`` moves. With several symbols the next
column is ``symbol``, a category (pandas, polars) or dictionary (Arrow), and rows are sorted by
symbol, in the order asked for, then by ``ts``.

| column | unit and type in pandas |
| --- | --- |
| ``session_date`` | the trading day, ``datetime64[ms]`` |
| ``open``, ``high``, ``low``, ``close``, ``average`` | price in the currency, float64 |
| ``volume`` | shares or contracts, float64; NaN where IB has none |
| ``bar_count`` | trades, ``Int32``; missing where IB has none |
| ``closes_at`` | when the bar is complete, an instant; it may be late, never early |
| ``origin`` | ``ib``, ``simulated`` or ``import``, a category; always the last column |
| ``basis`` | only raw: the number of the last adjustment that the prices include, -1 unconfirmed |

Not here: loading bars (``sync.loader``, ``app.workspace``).
"""

from collections.abc import Callable, Iterable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa

from ktrdr_pipelines.app.reading.bar_tables import joined_timeframes
from ktrdr_pipelines.app.reading.frames import frame_of
from ktrdr_pipelines.app.reading.imported_bars import (
    OriginName,
    bars_by_origin,
    parse_origin,
    refuse_incomplete,
)
from ktrdr_pipelines.app.reading.read_options import (
    CLOSES_AT,
    DEFAULT_COLUMNS,
    ORIGIN,
    EngineName,
    When,
    bar_columns,
    listed,
    parse_columns,
    parse_count,
    parse_engine,
    parse_period,
    parse_symbols,
    parse_timeframe,
    parse_zone,
    refuse_together,
)
from ktrdr_pipelines.app.reading.store_parts import StoreParts
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.settings import data_folder, load_settings
from ktrdr_pipelines.store.bars.column_reader import BarSelection
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.layout import open_store as open_layout

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from ktrdr_pipelines.app.reading.readiness import Readiness


def open_store(path: str | Path | None = None) -> "Store":
    """Open a store for reading.

    Args:
        path: the data folder; None for that of the settings: ``KTRDR_DATA``, else ``data`` beside
            ``workspace.yaml``.

    Raises:
        NoStoreError: the folder is not a store, or one of a newer version.
        CorruptFileError: its marker cannot be read.
        SettingsError: a setting is wrong.
    """
    folder = data_folder(load_settings()) if path is None else Path(path).expanduser()
    return Store(open_layout(folder))


class Store:
    """The bars of a store, for reading. It may be shared by threads, kept open, and pickled.

    Args:
        layout: the store.
        clock: returns real time.
    """

    def __init__(self, layout: StoreLayout, *, clock: Callable[[], datetime] = system_now) -> None:
        self._layout, self._clock = layout, clock
        self._parts = StoreParts(layout, clock)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs to read the store; what was opened stays behind."""
        return {"path": self.path, "clock": self._clock}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(open_layout(state["path"]), clock=state["clock"])  # type: ignore[misc]

    @property
    def path(self) -> Path:
        """The data folder."""
        return self._layout.root

    @overload
    def read_bars(
        self,
        symbols: str | Iterable[str],
        timeframe: str,
        start: When | None = None,
        end: When | None = None,
        *,
        last: int | None = None,
        columns: str | Iterable[str] | None = None,
        engine: Literal["pandas"] = "pandas",
        tz: str | tzinfo | None = None,
        warmup: int | None = None,
        raw: bool = False,
        require_complete: bool = False,
        origin: OriginName | None = None,
    ) -> "pd.DataFrame": ...

    @overload
    def read_bars(
        self,
        symbols: str | Iterable[str],
        timeframe: str,
        start: When | None = None,
        end: When | None = None,
        *,
        last: int | None = None,
        columns: str | Iterable[str] | None = None,
        engine: Literal["polars"],
        tz: str | tzinfo | None = None,
        warmup: int | None = None,
        raw: bool = False,
        require_complete: bool = False,
        origin: OriginName | None = None,
    ) -> "pl.DataFrame": ...

    @overload
    def read_bars(
        self,
        symbols: str | Iterable[str],
        timeframe: str,
        start: When | None = None,
        end: When | None = None,
        *,
        last: int | None = None,
        columns: str | Iterable[str] | None = None,
        engine: Literal["arrow"],
        tz: str | tzinfo | None = None,
        warmup: int | None = None,
        raw: bool = False,
        require_complete: bool = False,
        origin: OriginName | None = None,
    ) -> pa.Table: ...

    def read_bars(  # noqa: PLR0913  (each is an option of its own, and has a default)
        self,
        symbols: str | Iterable[str],
        timeframe: str,
        start: When | None = None,
        end: When | None = None,
        *,
        last: int | None = None,
        columns: str | Iterable[str] | None = None,
        engine: EngineName = "pandas",
        tz: str | tzinfo | None = None,
        warmup: int | None = None,
        raw: bool = False,
        require_complete: bool = False,
        origin: OriginName | None = None,
    ) -> Any:
        """Return bars that are on disk; nothing is requested from a gateway.

        Without bars the frame is empty, with the same columns and types.

        Args:
            symbols: one symbol, or several; each of the universe, or with bars on disk.
            timeframe: 1m, 5m, 15m, 30m, 1h, 4h, 1d or 1w.
            start: the first session date, as text or a date, or an aware instant; None for all.
                Instants are compared with ``ts``.
            end: the first session date, or instant, that is not read any more; None for all.
            last: only so many newest bars before the end, of each symbol; not with ``start``.
            columns: of those named above; None for open, high, low, close and volume.
            engine: ``pandas``, ``polars`` or ``arrow``.
            tz: the time zone in which instants are shown; UTC for None.
            warmup: so many more bars before the start, of each symbol, or as many as there are.
            raw: bars as stored, with ``basis``. Else they are on one price basis, today's, and
                those on an unconfirmed one are left out.
            require_complete: raise if a bar of the period is missing; see ``is_ready``. An open
                start is then that of the universe (with ``last`` or ``warmup`` the first bar that
                is returned), an open end the close of the newest session that is over, or the
                newest bar if that is later. Imported bars are not read then.
            origin: ``gateway`` or ``import`` for bars of one origin alone. Left out, imported bars
                are read where the gateway's store has none; then, and if it is one of ``columns``,
                the last column is ``origin``.

        Raises:
            UsageError: an argument is wrong; ``UnknownSymbolError`` for a symbol.
            IncompleteError: bars are missing, with ``require_complete``.
            CorruptFileError: a file is damaged.
            StoreError: a newer version wrote a file, or adjustments of a symbol have been lost.
        """
        names, are_several = parse_symbols(symbols)
        kind, period = parse_timeframe(timeframe), parse_period(start, end)
        newest, before = parse_count("last", last), parse_count("warmup", warmup)
        refuse_together(newest, before, start)
        default = (*DEFAULT_COLUMNS, "basis") if raw else DEFAULT_COLUMNS
        allowed = (*bar_columns(raw=raw), ORIGIN)
        wanted = parse_columns(columns, allowed=allowed, default=default)
        maker, zone, only = parse_engine(engine), parse_zone(tz), parse_origin(origin)
        if require_complete:
            refuse_incomplete(only, wanted)
        self._parts.require_symbols(names)
        selection = BarSelection(
            ("ts", *wanted), period.bounds(kind), last=newest, before=before or 0, raw=raw
        )
        if require_complete:
            from ktrdr_pipelines.app.reading.readiness import complete_tables

            tables = complete_tables(self._parts, names, kind, selection, period=period)
        else:
            tables = bars_by_origin(self._parts, names, kind, selection, origin=only)
        return frame_of(
            tables,
            symbols=names if are_several else None,
            engine=maker,
            zone=zone,
            shift_ts=kind.is_intraday,
        )

    def symbols(self, timeframe: str | None = None) -> list[str]:
        """Return the symbols with bars, imported ones too, of a timeframe or of any, sorted.

        Symbols that have left the universe are among them.

        Raises:
            UsageError: there is no such timeframe.
        """
        kinds = list(Timeframe) if timeframe is None else [parse_timeframe(timeframe)]
        return self._parts.symbols_on_disk(kinds)

    def coverage(self, symbol: str, timeframe: str) -> "pd.DataFrame":
        """Return the intervals of bar timestamps that responses of the gateway have covered.

        Returns: a pandas frame, one row an interval, sorted by ``starts``: ``verdict`` (``bars`` or
            ``empty``: confirmed to have none), ``starts`` and ``ends`` (UTC, the end exclusive),
            ``proved_at`` (UTC) and ``kind`` of what confirmed an empty one.

        Raises:
            UsageError: there is no such symbol or timeframe.
            StoreError: a file cannot be read.
        """
        from ktrdr_pipelines.app.reading.readiness import coverage_frame

        kind = parse_timeframe(timeframe)
        self._parts.require_symbols([symbol])
        return coverage_frame(self._parts.workspace.store.coverage_of(symbol, kind))

    def gaps(self, symbol: str | None = None, timeframe: str | None = None) -> "pd.DataFrame":
        """Return what is missing of the series of the universe, and why, as ``ktrdr gaps``.

        Args:
            symbol: of the universe; None for all.
            timeframe: None for all that the universe wants of a symbol.

        Returns: a pandas frame, one row a gap: ``symbol``, ``timeframe``, ``reason``, ``starts``
            and ``ends`` (bar timestamps, UTC, the end exclusive), ``sessions`` and ``bars`` (how
            many are expected in it), ``next_try_at`` (UTC) and ``detail``. A series whose files
            cannot be read is a row with the reason ``error``.

        Raises:
            UsageError: the symbol is not in the universe, or there is no such timeframe.
            StoreError: the ledger cannot be read.
        """
        from ktrdr_pipelines.app.reading.readiness import found_gaps

        kind = None if timeframe is None else parse_timeframe(timeframe)
        return found_gaps(self._parts, symbol, kind)

    def is_ready(
        self, symbol: str, timeframe: str, start: When | None = None, end: When | None = None
    ) -> "Readiness":
        """Return whether the bars of a period are complete; the result is true if they are.

        Complete means that each bar that is expected is on disk, or is confirmed not to exist.
        ``missing`` of the result says which are not, and why: a reason of ``ktrdr gaps``,
        ``before_start`` (the universe wants bars from a later date on), ``not_closed`` (their
        session is not over, or in the future) or ``unknown_sessions`` (the calendar ends before).
        What the user has acknowledged as missing counts as confirmed.

        Args:
            symbol: of the universe: without its calendar nothing is known to be complete.
            timeframe: the timeframe.
            start: as for ``read_bars``; None for the start that the universe gives.
            end: as for ``read_bars``; None for the close of the newest session that is over, or of
                the next one if the start lies after that.

        Raises:
            UsageError: an argument is wrong, or the symbol is not in the universe.
            StoreError: the series, or the ledger, cannot be read.
        """
        from ktrdr_pipelines.app.reading.readiness import readiness_of

        kind, period = parse_timeframe(timeframe), parse_period(start, end)
        (found,) = readiness_of(self._parts, [symbol], kind, [period], now=self._parts.now)
        return found

    @overload
    def join_timeframes(
        self,
        symbol: str,
        base: str = "5m",
        others: str | Iterable[str] = ("1h", "1d"),
        *,
        start: When | None = None,
        end: When | None = None,
        columns: str | Iterable[str] | None = None,
        engine: Literal["pandas"] = "pandas",
        tz: str | tzinfo | None = None,
    ) -> "pd.DataFrame": ...

    @overload
    def join_timeframes(
        self,
        symbol: str,
        base: str = "5m",
        others: str | Iterable[str] = ("1h", "1d"),
        *,
        start: When | None = None,
        end: When | None = None,
        columns: str | Iterable[str] | None = None,
        engine: Literal["polars"],
        tz: str | tzinfo | None = None,
    ) -> "pl.DataFrame": ...

    @overload
    def join_timeframes(
        self,
        symbol: str,
        base: str = "5m",
        others: str | Iterable[str] = ("1h", "1d"),
        *,
        start: When | None = None,
        end: When | None = None,
        columns: str | Iterable[str] | None = None,
        engine: Literal["arrow"],
        tz: str | tzinfo | None = None,
    ) -> pa.Table: ...

    def join_timeframes(
        self,
        symbol: str,
        base: str = "5m",
        others: str | Iterable[str] = ("1h", "1d"),
        *,
        start: When | None = None,
        end: When | None = None,
        columns: str | Iterable[str] | None = None,
        engine: EngineName = "pandas",
        tz: str | tzinfo | None = None,
    ) -> Any:
        """Return bars, each with the newest bar of other timeframes that is complete at its close.

        Nothing looks ahead: a row has what was known when its base bar closed, at ``closes_at``.
        If that is also the close of an hour or session, the bar of the hour or day is included.
        Bars that are missing on disk leave the one before them in place: ``closes_at_1d`` says of
        when it is.

        Args:
            symbol: of the universe, or with bars on disk.
            base: the timeframe of the rows.
            others: the timeframes to join, shorter or longer.
            start, end: of the base bars, as for ``read_bars``.
            columns: of each timeframe, as for ``read_bars``; None for open, high, low, close and
                volume. ``closes_at`` always follows them.
            engine, tz: as for ``read_bars``.

        Returns: the columns of the base, then those of each other timeframe with its name as a
            suffix, such as ``close_1h``, missing where no bar is complete yet. All are on one price
            basis.

        Raises: as ``read_bars``.
        """
        kinds = [parse_timeframe(base), *_others(base, others)]
        period = parse_period(start, end)
        allowed = [one for one in bar_columns(raw=False) if one != CLOSES_AT]
        wanted = parse_columns(
            None if columns is None else [one for one in listed(columns) if one != CLOSES_AT],
            allowed=allowed,
            default=DEFAULT_COLUMNS,
        )
        maker, zone = parse_engine(engine), parse_zone(tz)
        self._parts.require_symbols([symbol])
        joined = joined_timeframes(self._parts, symbol, kinds, period, columns=wanted)
        return frame_of(
            [joined], symbols=None, engine=maker, zone=zone, shift_ts=kinds[0].is_intraday
        )

    @overload
    def resample(
        self,
        symbol: str,
        target: str,
        start: When | None = None,
        end: When | None = None,
        *,
        from_: str = "1m",
        columns: str | Iterable[str] | None = None,
        engine: Literal["pandas"] = "pandas",
        tz: str | tzinfo | None = None,
    ) -> "pd.DataFrame": ...

    @overload
    def resample(
        self,
        symbol: str,
        target: str,
        start: When | None = None,
        end: When | None = None,
        *,
        from_: str = "1m",
        columns: str | Iterable[str] | None = None,
        engine: Literal["polars"],
        tz: str | tzinfo | None = None,
    ) -> "pl.DataFrame": ...

    @overload
    def resample(
        self,
        symbol: str,
        target: str,
        start: When | None = None,
        end: When | None = None,
        *,
        from_: str = "1m",
        columns: str | Iterable[str] | None = None,
        engine: Literal["arrow"],
        tz: str | tzinfo | None = None,
    ) -> pa.Table: ...

    def resample(
        self,
        symbol: str,
        target: str,
        start: When | None = None,
        end: When | None = None,
        *,
        from_: str = "1m",
        columns: str | Iterable[str] | None = None,
        engine: EngineName = "pandas",
        tz: str | tzinfo | None = None,
    ) -> Any:
        """Return longer bars made of shorter ones, within sessions.

        Bars are grouped from the open of each session, and anew after each break, never across
        sessions; the last group of a session ends at its close, early on half days. A day (``1d``)
        is a session, a week (``1w``) the sessions from Monday on. The first open, the highest high,
        the lowest low, the last close, the sum of volume and bar_count, the average weighted by
        volume; volume, average and bar_count are missing where that of a bar is. Nothing is
        interpolated: a group without bars has no row, and one of which bars are missing is made of
        those that exist, and has ``complete`` false.

        Args:
            symbol: of the universe: groups begin where its sessions do.
            target: minutes or hours, such as ``10m`` or ``2h``, ``1d`` or ``1w``.
            start, end: as for ``read_bars``, of the start of the groups; no group is cut.
            from_: the timeframe of the shorter bars.
            columns: as for ``read_bars``, and ``complete``; None for open, high, low, close, volume
                and ``complete``.
            engine, tz: as for ``read_bars``.

        Raises:
            UsageError: as ``read_bars``; also where the symbol is not in the universe, the target
                is not a multiple of ``from_``, or bars do not fit into the groups: those of an hour
                begin at full hours, also in sessions that do not.
            StoreError: as ``read_bars``.
        """
        from ktrdr_pipelines.app.reading.bar_tables import resampled_bars
        from ktrdr_pipelines.app.reading.resampling import COMPLETE, parse_target

        source, period = parse_timeframe(from_), parse_period(start, end)
        made = parse_target(target, source)
        wanted = parse_columns(
            columns,
            allowed=(*bar_columns(raw=False), COMPLETE),
            default=(*DEFAULT_COLUMNS, COMPLETE),
        )
        maker, zone = parse_engine(engine), parse_zone(tz)
        longer = resampled_bars(self._parts, symbol, (source, made), period)
        return frame_of(
            [longer.select(["ts", *wanted])],
            symbols=None,
            engine=maker,
            zone=zone,
            shift_ts=made.is_intraday,
        )


def _others(base: str, others: str | Iterable[str]) -> list[Timeframe]:
    kinds = [parse_timeframe(one) for one in listed(others)]
    if base in kinds or len({*kinds}) < len(kinds):
        raise UsageError(
            f"joining {', '.join(kinds)} to {base}",
            reason="a timeframe is named twice",
            hint="Name each once",
        )
    return kinds
