"""The statements of one run: recorded as responses arrive, judged by one rule for every series.

Statements are about a symbol, in real time, so that a daily response counts for minutes too.

Not here: what statements prove (``domain.planning.empty_ranges``), the table
(``store.ledger.statements``), the requests that confirm them (``sync.engine.confirmation``).
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import micros, moment, timestamps, without_flat
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, monday_of
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import (
    CONFIRM_AFTER,
    COUNTS_FOR,
    SHORT_RUN,
    VOIDED_WITHIN,
    WITHOUT_BARS,
    Neighbours,
    Statement,
    StatementKind,
    Verdict,
    beginning,
    judge,
    neighbours_of,
)
from ktrdr_pipelines.domain.planning.sparse_sessions import have_bars, may_be_sparse
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.ledger import Ledger

_DAY = timedelta(days=1)
_INSTANT = timedelta(microseconds=1)


@dataclass(slots=True)
class SymbolEvidence:
    """The statements about one symbol, and when each of its series last returned bars.

    ``lock`` is held during a confirmation, so that the series of a symbol share requests.
    """

    statements: list[Statement]
    bars_at: dict[Timeframe, datetime] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Open:
    """A missing session or part of one, the verdict on it, and the statements about it."""

    span: Span
    verdict: Verdict
    statements: tuple[Statement, ...]


class Evidence:
    """The statements of one run over one store and one gateway.

    Args:
        store: the bars that may contradict, and the ledger that stores statements.
        gateway: the gateway that makes the statements, as ``host:port``.
        clock: this machine's time, at which statements are recorded.
    """

    def __init__(self, store: BarStore, gateway: str, clock: Callable[[], datetime]) -> None:
        self._store, self._gateway, self._clock = store, gateway, clock
        self._symbols: dict[str, SymbolEvidence] = {}

    @property
    def _ledger(self) -> Ledger:
        return self._store.ledger

    def of(self, symbol: str) -> SymbolEvidence:
        """Return the evidence of a symbol; it is read from the ledger on first use."""
        if symbol not in self._symbols:
            self._symbols[symbol] = SymbolEvidence(self._ledger.statements.of(symbol))
        return self._symbols[symbol]

    # --- recording -----------------------------------------------------------------------------

    def record(self, symbol: str, statements: Iterable[Statement]) -> None:
        """Add statements about a symbol, and store them in the ledger."""
        new = list(statements)
        if new:
            self.of(symbol).statements.extend(new)
            self._ledger.statements.record(symbol, self._gateway, new, self._clock())

    def saw_bars(self, symbol: str, timeframe: Timeframe, at: datetime) -> None:
        """Record that a series returned bars, a control of its earlier empty responses."""
        known = self.of(symbol)
        known.bars_at[timeframe] = at
        for position, one in enumerate(known.statements):
            is_due = one.kind is StatementKind.EMPTY and not one.controlled
            if is_due and one.timeframe == timeframe and at - one.said_at <= CONFIRM_AFTER:
                known.statements[position] = replace(one, controlled=True)
                self._ledger.statements.record(
                    symbol, self._gateway, [known.statements[position]], self._clock()
                )

    def refute(
        self, symbol: str, sessions: Iterable[Interval], moments: np.ndarray | None = None
    ) -> bool:
        """Refute empty responses by bars that lie in the ranges they stated to be empty.

        A refuted response voids every empty response of the gateway within a day of it, and the
        proofs that rest on those.

        Args:
            symbol: the symbol of the bars.
            sessions: sessions that have bars, in real time.
            moments: the starts of intraday bars, ascending, in microseconds since 1970 UTC.

        Returns: whether anything was voided.
        """
        empty = [
            one
            for one in self.of(symbol).statements
            if one.kind in WITHOUT_BARS and not one.reaches_past
        ]
        if not empty:
            return False
        traded = list(sessions)
        refuted = []
        for one in empty:
            is_refuted = any(one.interval.covers(session) for session in traded)
            if not is_refuted and moments is not None:
                bounds = [micros(one.interval.start), micros(one.interval.end)]
                low, high = np.searchsorted(moments, bounds)
                is_refuted = bool(low < high)
            if is_refuted:
                refuted.append(one.said_at)
        voided = [self.void_around(at) for at in refuted]
        return any(voided)

    def refute_by_bars(self, series: Series, calendar: SessionCalendar, bars: pa.Table) -> bool:
        """Refute empty responses by received bars of a series; flat bars refute none.

        Returns: whether anything was voided.
        """
        if not any(one.kind in WITHOUT_BARS for one in self.of(series.symbol).statements):
            return False
        moments = timestamps(without_flat(bars))
        if not len(moments):
            return False
        timeframe = series.timeframe
        around = Interval(moment(moments[0]), moment(moments[-1] + 1))
        keys = set() if timeframe.is_intraday else set(moments.tolist())
        sessions = [
            span.open_interval
            for span in session_grid(calendar, timeframe).spans_in(around)
            if micros(span.interval.start) in keys
        ]
        return self.refute(series.symbol, sessions, moments if timeframe.is_intraday else None)

    def void_around(self, at: datetime) -> bool:
        """Void the gateway's empty responses within a day of a moment; return whether any were."""
        start, end = at - VOIDED_WITHIN, at + VOIDED_WITHIN
        voided = self._ledger.statements.void_empty(self._gateway, start, end, self._clock())
        for known in self._symbols.values():
            known.statements = [
                one
                for one in known.statements
                if one.kind not in WITHOUT_BARS or not start <= one.said_at <= end
            ]
        # Proofs that rest on void statements are removed with them.
        for symbol, intervals in voided.items():
            for timeframe in self._store.layout.timeframes_of(symbol):
                self._store.retract_voidable(symbol, timeframe, intervals)
        return bool(voided)

    # --- judging -------------------------------------------------------------------------------

    def has_any(self, series: Series, contract_id: int) -> bool:
        """Return whether there is any statement about a symbol or its contract's beginning."""
        if self.of(series.symbol).statements:
            return True
        what = series.instrument.what_to_show.value
        head = self._ledger.heads.of(contract_id, what, self._gateway)
        return head is not None and head.head is not None

    def open_sessions(
        self,
        series: Series,
        calendar: SessionCalendar,
        gaps: IntervalSet,
        *,
        now: datetime,
        empty: IntervalSet,
        empty_before: IntervalSet,
        contract_id: int,
        closed: frozenset[date] = frozenset(),
    ) -> list[Open]:
        """Judge the sessions that are missing as a whole, oldest first.

        Args:
            series: the series.
            calendar: its sessions.
            gaps: its missing intervals, by bar timestamp; only sessions that have closed.
            now: the gateway's clock; statements that are too old do not count.
            empty: what this run has proved empty.
            empty_before: what earlier runs have proved empty; their proofs may have expired.
            contract_id: the contract, whose head timestamp is a statement.
            closed: session dates that the contract's own schedule or hours call closed.
        """
        bounds = gaps.bounds
        if bounds is None:
            return []
        whole = [
            span
            for span in session_grid(calendar, series.timeframe).spans_in(bounds)
            if gaps.covers(span.interval)
        ]
        if not whole:
            return []
        days = list(self._store.rows_per_session(series))
        counting = [
            one
            for one in self.of(series.symbol).statements
            if (now - one.said_at < COUNTS_FOR or one.kind is StatementKind.TRADED)
            and not _is_refuted_beginning(one, calendar, days)
        ]
        said = {id(span): _statements_about(counting, calendar, span, closed) for span in whole}
        head = self._ledger.heads.of(
            contract_id, series.instrument.what_to_show.value, self._gateway
        )
        if head is not None and head.head is not None:
            for span in whole:
                if span.closes_at <= head.head:
                    before = span.open_interval
                    kind = StatementKind.HEAD
                    said[id(span)].append(Statement(before, kind, "", head.asked_at, "head"))
        held = self._held_days(series, calendar, whole)
        known_empty = empty | empty_before
        around = self._neighbourhood(series, calendar, whole, empty=known_empty, said=said)
        found = []
        for position, span in enumerate(whole):
            verdict = judge(
                said[id(span)],
                contradicted=bool(held)
                and not held.isdisjoint(calendar.days_meeting(span.open_interval)),
                neighbours=around[position][0],
                short_run=around[position][1] < SHORT_RUN,
                was_proved=empty_before.covers(span.interval),
            )
            found.append(Open(span, verdict, tuple(said[id(span)])))
        return found

    def open_pieces(
        self,
        series: Series,
        calendar: SessionCalendar,
        parts: IntervalSet,
        *,
        now: datetime,
        empty_before: IntervalSet,
    ) -> list[Open]:
        """Judge the missing parts of sessions that have bars, oldest first.

        Only responses to requests for the missing part count, and those that begin at its end:
        bars on both sides would have covered it. For an instrument that trades in every session,
        held bars contradict a part without any, as they contradict an empty session.

        Args:
            series: the series; days and weeks have no parts.
            calendar: its sessions.
            parts: the missing parts, by bar timestamp; only sessions that have closed.
            now: the gateway's clock; statements that are too old do not count.
            empty_before: what earlier runs have proved empty.
        """
        if not series.timeframe.is_intraday or not parts:
            return []
        kinds = {*WITHOUT_BARS, StatementKind.BEGINS}
        days = list(self._store.rows_per_session(series))
        known = [
            one
            for one in self.of(series.symbol).statements
            if one.kind in kinds
            and one.timeframe == series.timeframe
            and now - one.said_at < COUNTS_FOR
            and not _is_refuted_beginning(one, calendar, days)
        ]
        spans = [session_grid(calendar, series.timeframe).spans_in(part)[0] for part in parts]
        around = self._neighbourhood(
            series, calendar, spans, empty=empty_before, said={id(one): () for one in spans}
        )
        found = []
        for part, span, (neighbours, _) in zip(parts, spans, around, strict=True):
            said = tuple(one for one in known if one.interval.covers(part))
            begins = any(one.kind is StatementKind.BEGINS for one in said)
            is_end = not may_be_sparse(series.instrument, calendar.day_of(span.opens_at))
            verdict = judge(
                said,
                contradicted=False,
                # the first and the last session of a contract may be short
                neighbours=Neighbours.THIN if begins or is_end else neighbours,
                short_run=True,
                was_proved=empty_before.covers(part),
                is_part=True,
            )
            found.append(Open(Span(part, part.start, part.end), verdict, said))
        return found

    def _neighbourhood(
        self,
        series: Series,
        calendar: SessionCalendar,
        whole: Sequence[Span],
        *,
        empty: IntervalSet,
        said: Mapping[int, Sequence[Statement]],
    ) -> list[tuple[Neighbours, int]]:
        """Return for each missing session the state of its neighbours and the length of its run.

        Flat bars are no trades: a gateway that fills quiet time with them makes every session full.
        """
        spans = session_grid(calendar, series.timeframe)
        rows = self._store.traded_per_session(series)
        if not any(rows.values()):
            rows = self._store.rows_per_session(series)
        days = np.array(list(rows), "datetime64[D]")
        have = have_bars(spans, days, np.array(list(rows.values()), np.int64))
        known_empty = empty.covers_each(spans.starts, spans.ends) & (have == 0)
        missing = np.zeros(len(spans), dtype=bool)
        positions = [
            int(np.searchsorted(spans.starts, micros(one.interval.start))) for one in whole
        ]
        for position, span in zip(positions, whole, strict=True):
            missing[position] = True
            known_empty[position] = any(one.kind is StatementKind.AROUND for one in said[id(span)])
        return [
            (
                neighbours_of(spans.bars, have, known_empty, position),
                _run_length(missing | known_empty, position),
            )
            for position in positions
        ]

    def _held_days(
        self, series: Series, calendar: SessionCalendar, whole: Sequence[Span]
    ) -> set[date]:
        """Return the session dates for which bars of other timeframes show trades.

        A weekly bar does not say on which day it traded: it counts for a week in which this series
        has no bar at all.
        """
        others = [
            timeframe
            for timeframe in self._store.layout.timeframes_of(series.symbol)
            if timeframe is not series.timeframe
        ]
        if not others:
            return set()
        days = {day for span in whole for day in calendar.days_meeting(span.open_interval)}
        own = {monday_of(day) for day in self._store.rows_per_session(series)}
        found: set[date] = set()
        for timeframe in others:
            other = Series(series.instrument, timeframe)
            if timeframe is not Timeframe.W1:
                found |= self._store.traded_days(other, days)
                continue
            weeks = {monday_of(day) for day in days} - own
            dates = [day for day in self._store.rows_per_session(other) if monday_of(day) in weeks]
            traded = {monday_of(day) for day in self._store.traded_days(other, dates)}
            found |= {day for day in days if monday_of(day) in traded}
        return found

    def held_days(self, series: Series) -> list[date]:
        """Return the session dates with bars on disk, ascending."""
        return sorted(self._store.rows_per_session(series))

    def traded(self, symbol: str) -> list[Interval]:
        """Return the sessions, in real time, that daily bars with volume show to have traded."""
        return [
            one.interval for one in self.of(symbol).statements if one.kind is StatementKind.TRADED
        ]

    # --- where data begin ----------------------------------------------------------------------

    def beginning(
        self,
        instrument: Instrument,
        contract_id: int,
        calendar: SessionCalendar,
        *,
        unsaved: date | None = None,
    ) -> date | None:
        """Return the session date at which the data of a contract begin, or None if not proved.

        ``unsaved`` is the oldest session date of bars that are not on disk yet.
        """
        record = self._ledger.heads.of(contract_id, instrument.what_to_show.value, self._gateway)
        if record is None or record.head is None:
            return None  # see ``domain.planning.empty_ranges.beginning``
        held = [
            day
            for timeframe in self._store.layout.timeframes_of(instrument.symbol)
            for day in list(self._store.rows_per_session(Series(instrument, timeframe)))[:1]
        ]
        oldest = min((day for day in (*held, unsaved) if day is not None), default=None)
        statements = self.of(instrument.symbol).statements
        return beginning_of(statements, calendar, record.head, oldest)

    def is_beginning_seen(self, symbol: str, oldest: datetime | None) -> bool:
        """Return whether a response to a request from before the oldest bar began at that bar.

        ``oldest`` is when the oldest session with bars opens; if older bars have been received
        since, that response had been cut short.
        """
        return oldest is not None and any(
            one.kind is StatementKind.BEGINS and one.interval.end <= oldest
            for one in self.of(symbol).statements
        )


def beginning_of(
    statements: Iterable[Statement],
    calendar: SessionCalendar,
    head: datetime | None,
    oldest: date | None,
) -> date | None:
    """Return the session date at which data begin; ``oldest`` is the oldest date with bars."""
    begins: list[date] = []
    empty: list[tuple[date, Statement]] = []
    for one in statements:
        if one.kind is StatementKind.BEGINS:
            begins.append(calendar.day_of(one.interval.end))
        elif one.kind in WITHOUT_BARS:
            after = calendar.sessions_meeting(
                Interval(one.interval.end, one.interval.end + 14 * _DAY)
            )
            if after:
                empty.append((after[0].day, one))
        elif one.kind is StatementKind.TRADED:
            day = calendar.day_of(one.interval.start)
            oldest = day if oldest is None else min(oldest, day)
    return beginning(begins, calendar.day_of(head) if head else None, empty, oldest)


def _is_refuted_beginning(one: Statement, calendar: SessionCalendar, days: Sequence[date]) -> bool:
    """Return whether bars are held from before the oldest bar of a response: it was cut short.

    Args:
        one: a statement.
        calendar: the sessions of its series.
        days: the session dates with bars, ascending.
    """
    if one.kind is not StatementKind.BEGINS:
        return False
    position = bisect_left(days, calendar.day_of(one.interval.start))
    return position < len(days) and days[position] < calendar.day_of(one.interval.end)


def _statements_about(
    statements: Iterable[Statement], calendar: SessionCalendar, span: Span, closed: frozenset[date]
) -> list[Statement]:
    """Return the statements about a span, including one of the contract's own schedule."""
    around = span.open_interval
    said = [
        one
        for one in statements
        if one.interval.covers(around)
        or (one.kind is StatementKind.TRADED and one.interval.overlaps(around))
    ]
    days = calendar.days_meeting(span.open_interval) if closed else None
    if days and days <= closed:
        at = max((one.said_at for one in said), default=span.closes_at)
        said.append(Statement(around, StatementKind.CLOSED, "", at, "schedule"))
    return said


def _run_length(empty: np.ndarray, position: int) -> int:
    """Return how many sessions in a row are empty around a position, counted up to a week."""
    low = high = position
    while low > 0 and empty[low - 1] and high - low < SHORT_RUN:
        low -= 1
    while high + 1 < len(empty) and empty[high + 1] and high - low < SHORT_RUN:
        high += 1
    return high - low + 1
