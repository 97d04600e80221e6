"""List ranges explained in spite of held data or by the user, and acknowledge missing sessions.

``explained_ranges`` lists the ranges with their statements; ``acknowledge`` records the user's
explanation of a session that is missing as a whole. Neither uses the gateway.

Not here: what statements prove (``domain.planning.empty_ranges``), how a proof is stored
(``store.bars.bar_store``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import Span, session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, monday_of
from ktrdr_pipelines.domain.coverage import Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Identity, Series, identity_of
from ktrdr_pipelines.domain.planning.empty_ranges import Statement
from ktrdr_pipelines.domain.planning.gaps import first_interval_of, is_closed
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import store_origin
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.sync.discovery.contracts import known_contract

_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ExplainedRange:
    """A disputed or acknowledged range of a series, and the statements about it."""

    series: Series
    proof: Emptiness
    statements: tuple[Statement, ...] = ()


def explained_ranges(
    ledger: Ledger, calendars: Calendars, found: Iterable[SeriesGaps]
) -> list[ExplainedRange]:
    """Return the disputed and acknowledged ranges of some series, oldest first in each.

    Raises:
        StoreError: the ledger cannot be read.
    """
    statements: dict[str, list[Statement]] = {}
    ranges = []
    for one in found:
        series = one.series
        if one.disputed and series.symbol not in statements:
            statements[series.symbol] = ledger.statements.of(series.symbol)
        for proof in one.disputed:
            spans = session_grid(calendars.of(series.instrument), series.timeframe).spans_in(
                proof.interval
            )
            concerned = tuple(
                statement
                for statement in statements[series.symbol]
                if any(
                    statement.interval.start < span.closes_at
                    and span.opens_at < statement.interval.end
                    for span in spans
                )
            )
            ranges.append(ExplainedRange(series, proof, concerned))
    return ranges


def acknowledge(
    index: GapIndex, series: Series, day: date, *, note: str, now: datetime
) -> Emptiness:
    """Record the user's explanation of why a session has no bars, and return the proof.

    A second acknowledgement of a date replaces the note. The proof expires like any other.

    Args:
        index: the gap index of the store.
        series: the series that lacks the session.
        day: the session date; for weekly bars any session date of the week.
        note: why there are no bars.
        now: market time.

    Raises:
        UsageError: there is nothing to acknowledge on that date; the error gives the reason.
        StoreError: the files or the ledger cannot be used.
    """
    what = f"cannot acknowledge {series} {day}"
    calendar = index.calendars.of(series.instrument)
    span = _session(what, series, calendar, day)
    if not is_closed(span, now):
        raise UsageError(
            what,
            reason=f"its session is not over: it closes at {span.closes_at:%Y-%m-%d %H:%MZ}",
            hint="Sessions can be acknowledged half an hour after their close",
        )
    (found,) = index.series_gaps([series], now)
    if found.error is not None:
        raise found.error
    _refuse_held(what, index.store, series, day)
    is_again = any(
        one.kind is ProofKind.ACKNOWLEDGED and one.interval.covers(span.interval)
        for one in found.disputed
    )
    if not is_again and not found.missing.covers(span.interval):
        raise UsageError(what, reason=_not_missing(found, span), hint=_SEE_GAPS)
    proof = Emptiness(
        span.interval,
        now.replace(minute=0, second=0, microsecond=0),
        ProofKind.ACKNOWLEDGED,
        " ".join(note.split()),
    )
    if not index.store.acknowledge_empty(series, _identity(what, index.store, series), proof):
        raise UsageError(what, reason="bars of that session were saved meanwhile", hint=_SEE_GAPS)
    _clear_attempts(index, series, span, now)
    return proof


_SEE_GAPS = "`ktrdr gaps` lists what is missing"


def _session(what: str, series: Series, calendar: SessionCalendar, day: date) -> Span:
    """Return the session or the week of a date."""
    if not calendar.sessions(day, day + _DAY):
        is_unknown = calendar.known is None
        raise UsageError(
            what,
            reason="the gateway has not stated its sessions yet"
            if is_unknown
            else f"{day} is not a session date of the calendar {series.instrument.calendar}",
            hint="`ktrdr load` requests them first" if is_unknown else _SEE_GAPS,
        )
    interval = first_interval_of(calendar, series.timeframe, day)
    return session_grid(calendar, series.timeframe).spans_in(interval)[0]


def _refuse_held(what: str, store: BarStore, series: Series, day: date) -> None:
    held = monday_of(day) if series.timeframe is Timeframe.W1 else day
    if rows := store.rows_per_session(series).get(held, 0):
        raise UsageError(
            what,
            reason="1 bar of that date is held"
            if rows == 1
            else f"{rows:,} bars of that date are held",
            hint="Only a session without any bar can be acknowledged; "
            f"`ktrdr load {series.symbol} {series.timeframe}` requests its missing bars",
        )


def _not_missing(found: SeriesGaps, span: Span) -> str:
    for one in found.disputed:
        if one.interval.covers(span.interval):
            return f"the session is not missing: it is {one.kind} already"
    if found.missing.clip(span.interval):
        return "only a part of the session is missing"
    if found.expected_from is not None and span.interval.end <= found.expected_from:
        return "the session is not missing: nothing is expected before the start of the data"
    return "the session is not missing"


def _identity(what: str, store: BarStore, series: Series) -> Identity:
    """Return the identity of a series' files, or of those to be written if there are none yet."""
    held = store.identity(series)
    if held is not None:
        return held
    origin, contract_id = store_origin(store.layout), known_contract(store, series)
    if origin is None or contract_id is None:
        raise UsageError(
            what,
            reason="the series has no file yet, and its contract is not known",
            hint=f"`ktrdr load {series.symbol} {series.timeframe}` looks it up",
        )
    return identity_of(series, contract_id=contract_id, origin=origin)


def _clear_attempts(index: GapIndex, series: Series, span: Span, now: datetime) -> None:
    """Delete the attempts in whose ranges nothing is missing any more.

    One attempt can cover several sessions that were acknowledged one after the other.
    """
    (found,) = index.series_gaps([series], now)
    ledger, key = index.store.ledger, series_key(series)
    ledger.attempts.clear(key, span.interval)
    for attempt in ledger.attempts.of(key):
        meets = not attempt.is_series_wide and attempt.interval.overlaps(span.interval)
        if meets and not found.missing.clip(attempt.interval):
            ledger.attempts.clear(key, attempt.interval)
