"""The statements of one run: recorded as responses come, and judged for every series alike.

Statements are of a symbol, in real time, so that a daily response speaks for minutes too. Not here:
what statements prove (``domain.planning.empty_ranges``), the table (``store.ledger.statements``),
what is requested to confirm them (``sync.engine.confirmation``).
"""

import asyncio
import uuid
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta

import numpy as np

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.session_grid import interval_arrays, is_covered, span_arrays
from ktrdr_pipelines.domain.calendars.sessions import (
    SessionCalendar,
    Span,
    expected_spans,
    monday_of,
)
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
from ktrdr_pipelines.store.ledger.ledger import HeadRecord, Ledger

_DAY = timedelta(days=1)
_INSTANT = timedelta(microseconds=1)


@dataclass(slots=True)
class SymbolEvidence:
    """What is known of one symbol: its statements, and when its series last returned bars.

    ``lock`` is held while something is confirmed, so that the series of a symbol share requests.
    """

    statements: list[Statement]
    bars_at: dict[Timeframe, datetime] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class Open:
    """A session that is missing as a whole, what is said of it, and what that amounts to."""

    span: Span
    verdict: Verdict
    statements: tuple[Statement, ...]


class Evidence:
    """The statements of one run over one store and one gateway.

    Args:
        store: bars that may contradict, and the ledger that keeps statements.
        gateway: whose statements they are, as ``host:port``.
        clock: this machine's time, for the record.
    """

    def __init__(self, store: BarStore, gateway: str, clock: Callable[[], datetime]) -> None:
        self._store, self._gateway, self._clock = store, gateway, clock
        self._symbols: dict[str, SymbolEvidence] = {}

    @property
    def _ledger(self) -> Ledger:
        return self._store.ledger

    def of(self, symbol: str) -> SymbolEvidence:
        """Return what is known of a symbol; read from the ledger when first asked for."""
        if symbol not in self._symbols:
            self._symbols[symbol] = SymbolEvidence(self._ledger.statements(symbol))
        return self._symbols[symbol]

    # --- taking in -----------------------------------------------------------------------------

    def record(self, symbol: str, statements: Iterable[Statement]) -> None:
        """Take in statements and keep them."""
        new = list(statements)
        if new:
            self.of(symbol).statements.extend(new)
            self._ledger.record_statements(symbol, self._gateway, new, self._clock())

    def saw_bars(self, series: Series, at: datetime) -> None:
        """Take in that a series returned bars: a control of its earlier responses without bars."""
        known = self.of(series.symbol)
        known.bars_at[series.timeframe] = at
        for position, one in enumerate(known.statements):
            is_due = one.kind is StatementKind.EMPTY and not one.controlled
            if is_due and one.timeframe == series.timeframe and at - one.said_at <= CONFIRM_AFTER:
                known.statements[position] = replace(one, controlled=True)
                self._ledger.record_statements(
                    series.symbol, self._gateway, [known.statements[position]], self._clock()
                )

    def refute(
        self, symbol: str, sessions: Iterable[Interval], moments: np.ndarray | None = None
    ) -> bool:
        """Take in bars: responses without bars for where they lie are refuted.

        One that is refuted voids every response without bars of the gateway that came within a
        day of it, and the proofs that rest on those.

        Args:
            symbol: whose bars.
            sessions: sessions that have bars, in real time.
            moments: the starts of intraday bars, rising microseconds since 1970 UTC.

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
        refuted = [
            one.said_at
            for one in empty
            if any(one.interval.covers(session) for session in traded)
            or (moments is not None and _holds_any(one.interval, moments))
        ]
        voided = [self.void_around(at) for at in refuted]
        return any(voided)

    def void_around(self, at: datetime) -> bool:
        """Void the responses without bars that the gateway gave within a day of a moment."""
        start, end = at - VOIDED_WITHIN, at + VOIDED_WITHIN
        voided = self._ledger.void_empty_responses(self._gateway, start, end, self._clock())
        for known in self._symbols.values():
            known.statements = [
                one
                for one in known.statements
                if one.kind not in WITHOUT_BARS or not start <= one.said_at <= end
            ]
        for symbol, intervals in voided.items():
            self._retract(symbol, intervals)
        return bool(voided)

    def _retract(self, symbol: str, intervals: Iterable[Interval]) -> None:
        """Take back the proofs of a symbol that rest on void statements."""
        whole = list(intervals)
        for timeframe in self._store.layout.timeframes_of(symbol):
            self._store.retract_voidable(symbol, timeframe, whole)

    # --- judging -------------------------------------------------------------------------------

    def open_sessions(
        self,
        series: Series,
        calendar: SessionCalendar,
        gaps: IntervalSet,
        *,
        now: datetime,
        empty: IntervalSet,
        empty_before: IntervalSet,
        closed: frozenset[date] = frozenset(),
        head: HeadRecord | None = None,
    ) -> list[Open]:
        """Judge the sessions that are missing as a whole, oldest first.

        Args:
            series: which series.
            calendar: its sessions.
            gaps: what is missing of it, on the stamp axis; sessions that have closed.
            now: the gateway's clock; statements that are too old do not count.
            empty: what this run has proved to be empty.
            empty_before: what earlier runs have; their proofs may have expired.
            closed: session dates that the contract's own schedule or hours call closed.
            head: what the gateway said of the start of the contract's data.
        """
        bounds = gaps.bounds
        if bounds is None:
            return []
        whole = [
            span
            for span in expected_spans(calendar, series.timeframe, bounds)
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
        said = {id(span): _said_of(counting, calendar, span, closed) for span in whole}
        if head is not None and head.head is not None:
            for span in whole:
                if span.closes_at <= head.head:
                    before = Interval(span.opens_at, span.closes_at)
                    kind = StatementKind.HEAD
                    said[id(span)].append(Statement(before, kind, "", head.asked_at, "head"))
        held = self._held_days(series, calendar, whole)
        known_empty = empty | empty_before
        around = self._neighbourhood(series, calendar, whole, empty=known_empty, said=said)
        found = []
        for position, span in enumerate(whole):
            verdict = judge(
                said[id(span)],
                contradicted=bool(held & _days_of(calendar, span)),
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
        """Judge what is missing of sessions that have bars, oldest first.

        Only responses to requests for the missing part count, and those that begin at its end:
        bars on both sides would have covered it. In an instrument that trades in every session
        held bars speak against a part without any, as they do against an empty session.

        Args:
            series: which series; those of whole days and weeks have no parts.
            calendar: its sessions.
            parts: what is missing, on the stamp axis; sessions that have closed.
            now: the gateway's clock; statements that are too old do not count.
            empty_before: what earlier runs have proved to be empty.
        """
        if not series.timeframe.is_intraday:
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
        spans = [expected_spans(calendar, series.timeframe, part)[0] for part in parts]
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
                # the first session of a contract and its last may be short
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
        """Say of each missing session what its neighbours are like, and how long its run is.

        Flat bars are no trades: where a gateway fills intervals by them, every session is full.
        """
        spans = span_arrays(calendar, series.timeframe)
        rows = self._store.traded_per_session(series)
        if not any(rows.values()):
            rows = self._store.rows_per_session(series)
        days = np.array(list(rows), "datetime64[D]")
        have = have_bars(spans, days, np.array(list(rows.values()), np.int64))
        known_empty = is_covered(spans.spans, interval_arrays(empty)) & (have == 0)
        missing = np.zeros(len(spans), dtype=bool)
        positions = [
            int(np.searchsorted(spans.spans.starts, micros(one.interval.start))) for one in whole
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
        """Return the session dates that bars of other timeframes speak for.

        A weekly bar does not say on which day it traded: it speaks for a week of which this
        series holds no bar at all.
        """
        days = {day for span in whole for day in _days_of(calendar, span)}
        own = {monday_of(day) for day in self._store.rows_per_session(series)}
        found: set[date] = set()
        for timeframe in self._store.layout.timeframes_of(series.symbol):
            other = Series(series.instrument, timeframe)
            if timeframe is series.timeframe:
                continue
            if timeframe is not Timeframe.W1:
                found |= self._store.traded_days(other, days)
                continue
            weeks = {monday_of(day) for day in days} - own
            dates = [day for day in self._store.rows_per_session(other) if monday_of(day) in weeks]
            traded = {monday_of(day) for day in self._store.traded_days(other, dates)}
            found |= {day for day in days if monday_of(day) in traded}
        return found

    # --- where data begin ----------------------------------------------------------------------

    def beginning(
        self,
        instrument: Instrument,
        calendar: SessionCalendar,
        head: datetime | None,
        *,
        unsaved: date | None = None,
    ) -> date | None:
        """Return where the data of an instrument begin, by all that is known of its symbol.

        ``unsaved`` is the oldest session date of bars that are not on disk yet.
        """
        held = [
            day
            for timeframe in self._store.layout.timeframes_of(instrument.symbol)
            for day in list(self._store.rows_per_session(Series(instrument, timeframe)))[:1]
        ]
        oldest = min((day for day in (*held, unsaved) if day is not None), default=None)
        return beginning_of(self.of(instrument.symbol).statements, calendar, head, oldest)


def beginning_of(
    statements: Iterable[Statement],
    calendar: SessionCalendar,
    head: datetime | None,
    oldest: date | None,
) -> date | None:
    """Return where data begin; ``oldest`` is the oldest session date of which bars are held."""
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
    """Whether bars came from before where a response began: it had been cut short.

    Args:
        one: a statement.
        calendar: the sessions of its series.
        days: the session dates that are held, rising.
    """
    if one.kind is not StatementKind.BEGINS:
        return False
    position = bisect_left(days, calendar.day_of(one.interval.start))
    return position < len(days) and days[position] < calendar.day_of(one.interval.end)


def _said_of(
    statements: Iterable[Statement], calendar: SessionCalendar, span: Span, closed: frozenset[date]
) -> list[Statement]:
    """Return what statements say of a span, and what the contract's own schedule does."""
    around = Interval(span.opens_at, span.closes_at)
    said = [
        one
        for one in statements
        if one.interval.covers(around)
        or (one.kind is StatementKind.TRADED and one.interval.overlaps(around))
    ]
    days = _days_of(calendar, span)
    if days and days <= closed:
        at = max((one.said_at for one in said), default=span.closes_at)
        said.append(Statement(around, StatementKind.CLOSED, "", at, "schedule"))
    return said


def real_interval(calendar: SessionCalendar, span: Span) -> Interval:
    """Return the session days of a span in real time, from the start of the first."""
    return days_interval(
        calendar, calendar.day_of(span.opens_at), calendar.day_of(span.closes_at - _INSTANT)
    )


def days_interval(calendar: SessionCalendar, first: date, last: date) -> Interval:
    """Return session days ``[first, last]`` in real time."""
    return Interval(calendar.day_starts_at(first), calendar.day_starts_at(last + _DAY))


def runs_of(calendar: SessionCalendar, spans: Iterable[Span]) -> Iterator[Interval]:
    """Join spans between which no session lies into intervals of real time."""
    run: Interval | None = None
    for span in spans:
        part = real_interval(calendar, span)
        between = None
        if run is not None and part.start > run.end:
            between = calendar.sessions_meeting(Interval(run.end, part.start))
        if run is None:
            run = part
        elif between:
            yield run
            run = part
        else:
            run = Interval(run.start, max(run.end, part.end))
    if run is not None:
        yield run


def new_request() -> str:
    """Name a request, so that what it says counts once."""
    return uuid.uuid4().hex[:16]


def _holds_any(interval: Interval, moments: np.ndarray) -> bool:
    low, high = np.searchsorted(moments, [micros(interval.start), micros(interval.end)])
    return bool(low < high)


def _days_of(calendar: SessionCalendar, span: Span) -> set[date]:
    inside = Interval(span.opens_at, span.closes_at)
    return {one.day for one in calendar.sessions_meeting(inside)}


def _run_length(empty: np.ndarray, position: int) -> int:
    """Return how many sessions in a row are empty around a place, counted up to a week."""
    low = high = position
    while low > 0 and empty[low - 1] and high - low < SHORT_RUN:
        low -= 1
    while high + 1 < len(empty) and empty[high + 1] and high - low < SHORT_RUN:
        high += 1
    return high - low + 1
