"""Judge the evidence for empty ranges: which statements of a gateway remove expectation.

A *statement* is what one response says about an interval without bars. Removing a session from
what is expected takes two statements from different requests, and three on three days where the
store's own data contradict them (DESIGN.md, "Evidence"). Intervals are in real time, from the start
of a session day to the start of another, so that a statement of one timeframe holds for every
timeframe of its instrument.

Not here: collecting statements (``store.evidence``), keeping them (``store.ledger.statements``).
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from ktrdr_pipelines.domain.calendars.session_grid import Span
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.coverage import ProofKind
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.limits import IbLimitsRegistry

CONFIRM_AFTER = timedelta(seconds=IbLimitsRegistry.CONFIRM_AFTER_S.value)
"""Least time between two statements of which one is a response without bars."""

VOIDED_WITHIN = timedelta(seconds=IbLimitsRegistry.VOIDED_WITHIN_S.value)
"""Time from a refuted response within which other responses without bars are void."""

COUNTS_FOR = timedelta(days=IbLimitsRegistry.STATEMENT_COUNTS_DAYS.value)
"""Age up to which a statement that a session is empty counts: expired proofs need new ones."""

_INSTANT = timedelta(microseconds=1)

STATEMENT_DAYS = 3
"""Number of days on which a contradicted range must be stated to be empty."""

SHORT_RUN = 5
"""Length in sessions from which an empty run beside full neighbours is a halt, not a lapse: a week.
"""

NEIGHBOURS = 20
"""Sessions on either side that show whether an instrument trades in every session."""

_FULL_SHARE = 0.5
"""Share of the expected bars from which a session counts as full."""

_MOST_AROUND = 200
"""Sessions on either side among which neighbours are looked for."""

_FEWEST_KNOWN = 5
"""Fewest sessions with bars that show that an instrument trades in every session."""

_FEW_EMPTY = 0.05
"""Share of empty sessions among the neighbours of an instrument that trades in every session."""


class StatementKind(StrEnum):
    """What a response says about an interval.

    ``around``: bars on both sides of it and none inside. ``empty``: the response has no bars at
    all. ``older``: all bars of the response are older, though it was requested to its end.
    ``begins``: bars that were requested from before it begin at its end. ``closed``: the
    contract's own schedule or hours call it closed. ``head``: it lies before the head timestamp,
    the start of the contract's data as stated by the gateway. ``traded`` contradicts emptiness:
    a daily bar with volume.
    """

    AROUND = "around"
    EMPTY = "empty"
    OLDER = "older"
    BEGINS = "begins"
    CLOSED = "closed"
    HEAD = "head"
    TRADED = "traded"


@dataclass(frozen=True, slots=True)
class Statement:
    """What one response says about an interval of real time.

    ``said_at`` is by the gateway's clock; ``request`` identifies the request, so that statements
    of one request count once. ``controlled``, of a response without bars: a request of the same
    series returned bars after it, within ``CONFIRM_AFTER``. ``reaches_past``: its request reached
    past the oldest bar that was known. Some gateways return nothing to such a request (grade C),
    so bars inside do not refute it.
    """

    interval: Interval
    kind: StatementKind
    timeframe: str
    said_at: datetime
    request: str
    controlled: bool = False
    reaches_past: bool = False


def _new_request() -> str:
    """Return a new id of a request, so that its statements count once."""
    return uuid.uuid4().hex[:16]


@dataclass(frozen=True, slots=True)
class ResponseStatements:
    """Makes the statements of one response.

    Args:
        timeframe: of the bars that were requested.
        said_at: when the response was received, by the gateway's clock.
    """

    timeframe: str
    said_at: datetime
    request: str = field(default_factory=_new_request)

    def around(self, calendar: SessionCalendar, spans: Iterable[Span]) -> list[Statement]:
        """Return that spans have bars on both sides and none inside."""
        return self._of_runs(calendar, spans, StatementKind.AROUND)

    def traded(self, calendar: SessionCalendar, spans: Iterable[Span]) -> list[Statement]:
        """Return that spans have daily bars with volume."""
        return self._of_runs(calendar, spans, StatementKind.TRADED)

    def begins(self, before: Interval | None) -> list[Statement]:
        """Return that bars were requested from the start of an interval and begin at its end."""
        return [self._of(before, StatementKind.BEGINS)] if before is not None else []

    def without_bars(
        self, parts: Iterable[Interval], *, oldest: datetime | None, controlled: bool
    ) -> list[Statement]:
        """Return that intervals have no bars.

        Args:
            parts: the intervals, in real time.
            oldest: when the oldest session with bars that is known opens, or None.
            controlled: the response has older bars, which are a control.
        """
        kind = StatementKind.OLDER if controlled else StatementKind.EMPTY
        return [
            Statement(
                part,
                kind,
                self.timeframe,
                self.said_at,
                self.request,
                controlled=controlled,
                reaches_past=oldest is None or part.start < oldest,
            )
            for part in parts
        ]

    def _of_runs(
        self, calendar: SessionCalendar, spans: Iterable[Span], kind: StatementKind
    ) -> list[Statement]:
        return [self._of(run, kind) for run in runs_of(calendar, spans)]

    def _of(self, interval: Interval, kind: StatementKind) -> Statement:
        return Statement(interval, kind, self.timeframe, self.said_at, self.request)


WITHOUT_BARS = frozenset({StatementKind.EMPTY, StatementKind.OLDER})
"""Kinds of statements by a response without newer bars: a later one must confirm them."""

MANY = 12
"""How many responses without any bar, on ``STATEMENT_DAYS`` days and without other statements,
prove as much as two statements of other kinds. A gateway that leaves 60 % of its requests without
bars by chance does so for this many in a row twice in 1,000 times; one that hides some dates for
hours does so for any number, but not on three days."""

_POSITIVE = frozenset(
    {
        StatementKind.AROUND,
        StatementKind.BEGINS,
        StatementKind.CLOSED,
        StatementKind.HEAD,
    }
)
"""Kinds of statements that need no later one to confirm them."""


class Proof(StrEnum):
    """How far a range is proved to be empty."""

    NONE = "none"
    UNCONFIRMED = "unconfirmed"
    CONTRADICTED = "contradicted"
    CONFIRMED = "confirmed"
    DISPUTED = "disputed"


_PROVED: Final = {False: Proof.CONFIRMED, True: Proof.DISPUTED}
"""The name of a proof, by whether held data contradict it."""


class Neighbours(StrEnum):
    """What the sessions around a range are like.

    ``full``: the instrument trades in every one of them. ``thin``: some are empty too, or hold few
    bars. ``unknown``: too few are known to say.
    """

    FULL = "full"
    THIN = "thin"
    UNKNOWN = "unknown"


class Verdict(NamedTuple):
    """What the statements about a range prove.

    ``next_at`` is the earliest moment, by the gateway's clock, at which another statement can
    complete an open proof. ``is_voidable``: the proof rests on a response without bars.
    """

    proof: Proof
    next_at: datetime | None = None
    is_voidable: bool = False

    @property
    def is_proved(self) -> bool:
        """Whether expectation is removed."""
        return self.proof in {Proof.CONFIRMED, Proof.DISPUTED}

    @property
    def proof_kind(self) -> ProofKind:
        """What the proof rests on, once expectation is removed."""
        if self.proof is Proof.DISPUTED:
            return ProofKind.DISPUTED
        return ProofKind.VOIDABLE if self.is_voidable else ProofKind.PLAIN


def judge(
    statements: Iterable[Statement],
    *,
    contradicted: bool,
    neighbours: "Neighbours",
    short_run: bool,
    was_proved: bool = False,
    is_part: bool = False,
) -> Verdict:
    """Return what the statements about one range prove.

    Args:
        statements: those whose interval covers the range, without void ones.
        contradicted: bars of the store, of any timeframe, lie in the range.
        neighbours: what the sessions around the range are like.
        short_run: fewer than ``SHORT_RUN`` sessions in a row are without bars.
        was_proved: the range was proved to be empty before, by a proof that has expired: one more
            statement renews it.
        is_part: the range is a part of a session that has bars.
    """
    said = sorted(statements, key=lambda one: one.said_at)
    kinds = {one.kind for one in said}
    contradicted = contradicted or StatementKind.TRADED in kinds
    full, thin = neighbours is Neighbours.FULL, neighbours is Neighbours.THIN
    around = {one.request for one in said if one.kind is StatementKind.AROUND}
    empty = [one for one in said if one.kind in WITHOUT_BARS]
    if empty or around:
        # Where a response begins proves little by itself: one that was cut short begins late too.
        # Beside another statement it counts.
        around |= {one.request for one in said if one.kind is StatementKind.BEGINS}
    positive = [one for one in said if one.kind in _POSITIVE]
    if not around and not empty and not positive:
        return Verdict(Proof.NONE)
    is_renewed = was_proved and bool(around or any(one.controlled for one in empty))
    if is_renewed:
        return Verdict(_PROVED[contradicted], is_voidable=not around)
    is_credible = is_part or _is_credible(said)
    if not contradicted:
        closed = {one.request for one in said if one.kind is StatementKind.CLOSED}
        by_calendar = bool(closed and around and len(closed | around) > 1)
        if by_calendar or (len(around) > 1 and not (full and short_run)):
            return Verdict(Proof.CONFIRMED)
        is_apart = is_credible and _are_apart(empty, positive)
        if (thin or (around and not full)) and is_apart:
            return Verdict(Proof.CONFIRMED, is_voidable=True)
    if contradicted or (full if around else not thin):
        return _judge_by_days(said, positive, is_credible=is_credible)
    return Verdict(Proof.UNCONFIRMED, _confirmable_at(said, is_credible=is_credible))


def _confirmable_at(said: Sequence[Statement], *, is_credible: bool) -> datetime:
    """Return when another statement can confirm a range, or count as one of many."""
    counting = [one for one in said if one.kind not in WITHOUT_BARS or one.controlled]
    if counting and is_credible:
        return counting[0].said_at + CONFIRM_AFTER
    last = said[-1].said_at
    today = {one.request for one in said if one.said_at.date() == last.date()}
    if is_credible or len(today) < MANY / STATEMENT_DAYS:
        return last + CONFIRM_AFTER
    return max(last + CONFIRM_AFTER, _day_after(last))


def _judge_by_days(
    said: Sequence[Statement], positive: Iterable[Statement], *, is_credible: bool
) -> Verdict:
    """Judge a range that held data contradict: it takes statements on three days."""
    days = stated_days(said)
    if len(days) < STATEMENT_DAYS or not is_credible:
        last = said[-1].said_at
        next_at = last + CONFIRM_AFTER
        if last.date() in days:
            # This day has its statement; the next one that counts is of another day.
            next_at = max(_day_after(last), next_at)
        return Verdict(Proof.CONTRADICTED, next_at)
    by_bars = stated_days(positive)
    return Verdict(Proof.DISPUTED, is_voidable=len(by_bars) < STATEMENT_DAYS)


def _day_after(moment: datetime) -> datetime:
    """Return the start of the next UTC date."""
    return datetime.combine(moment.date() + timedelta(days=1), time(), moment.tzinfo)


def _is_credible(said: Iterable[Statement]) -> bool:
    """Return whether a statement has bars or is the contract's own, or whether there are many.

    A gateway that has the data, and now and then returns none of it, never returns bars around a
    session that has some, or only older ones.
    """
    counting = [one for one in said if one.kind is not StatementKind.TRADED]
    if any(one.kind is not StatementKind.EMPTY for one in counting):
        return True
    dates = {one.said_at.date() for one in counting}
    return len({one.request for one in counting}) >= MANY and len(dates) >= STATEMENT_DAYS


def _are_apart(empty: Sequence[Statement], positive: Sequence[Statement]) -> bool:
    """Return whether a response without bars confirms another statement, far enough apart in time.

    Between two responses without bars there must be a control request that returned bars: the
    earlier one was followed by one, as was the later one.
    """
    for one in empty:
        if not one.controlled:
            continue
        for other in (*positive, *(two for two in empty if two.controlled)):
            if other.request != one.request and abs(other.said_at - one.said_at) >= CONFIRM_AFTER:
                return True
    return False


def stated_days(said: Iterable[Statement]) -> set[date]:
    """Return the UTC dates with a statement that had a control; bars in the response are one.

    Each request counts for one date.
    """
    dates = {
        one.request: one.said_at.date()
        for one in said
        if one.kind in {StatementKind.AROUND, StatementKind.BEGINS}
        or (one.kind in WITHOUT_BARS and one.controlled)
    }
    return set(dates.values())


def beginning(
    begins: Iterable[date],
    head: date | None,
    empty: Iterable[tuple[date, Statement]],
    oldest: date | None,
) -> date | None:
    """Return the session date at which the data of a contract begin, or None where not proved.

    The head timestamp is one statement; the other is a response that was requested from before it
    and begins at it. Some gateways return nothing to a request that reaches past their oldest bar
    (grade C): there responses without bars for the sessions right before the head replace it, on
    three days. Without a head only statements about each session count.

    Args:
        begins: session dates at which responses began that were requested from before.
        head: the date of the head timestamp.
        empty: responses without bars, with the first session date after their interval.
        oldest: the oldest session date of which bars of the contract are known, at any timeframe.
            An older bar refutes a beginning.
    """
    if head is None or (oldest is not None and oldest < head):
        return None
    if head in set(begins):
        return head
    before = stated_days(one for day, one in empty if day == head)
    return head if len(before) >= STATEMENT_DAYS else None


def neighbours_of(
    expected: np.ndarray, have: np.ndarray, known_empty: np.ndarray, position: int
) -> Neighbours:
    """Return what the sessions around one that has no bar are like.

    Only sessions of which something is known count: those with bars, and those that a response
    with bars on both sides, or a proof, calls empty. The run of empty sessions around the session
    itself counts once: a halt does not make its own neighbours thin.

    Args:
        expected: bars that each session can have, oldest first.
        have: bars that are held.
        known_empty: whether a session is stated to be empty by responses with bars around it.
        position: the index of the session.
    """
    low, high = max(0, position - _MOST_AROUND), position + _MOST_AROUND + 1
    has = have[low:high] > 0
    empty = known_empty[low:high] & ~has
    here = position - low
    known = np.flatnonzero(has | empty)
    known = known[known != here]
    at = int(np.searchsorted(known, here))
    near = np.concatenate([known[max(0, at - NEIGHBOURS) : at], known[at : at + NEIGHBOURS]])
    with_bars = near[has[near]]
    others = int(np.count_nonzero(empty[near])) - (_run_around(here, empty) - 1)
    if not len(with_bars):
        return Neighbours.UNKNOWN
    share = have[low:high][with_bars] / np.maximum(expected[low:high][with_bars], 1)
    if others > _FEW_EMPTY * len(near) or float(np.median(share)) < _FULL_SHARE:
        return Neighbours.THIN
    return Neighbours.FULL if len(with_bars) >= _FEWEST_KNOWN else Neighbours.UNKNOWN


def _run_around(position: int, known_empty: np.ndarray) -> int:
    """Return the number of sessions in the empty run around a session."""
    low = high = position
    while low > 0 and known_empty[low - 1]:
        low -= 1
    while high + 1 < len(known_empty) and known_empty[high + 1]:
        high += 1
    return high - low + 1


def _real_interval(calendar: SessionCalendar, span: Span) -> Interval:
    """Return the interval of a span's session days in real time."""
    first, last = calendar.day_of(span.opens_at), calendar.day_of(span.closes_at - _INSTANT)
    return Interval(calendar.day_starts_at(first), calendar.day_starts_at(last + timedelta(days=1)))


def runs_of(calendar: SessionCalendar, spans: Iterable[Span]) -> Iterator[Interval]:
    """Join spans without a session between them, and yield their intervals in real time."""
    run: Interval | None = None
    for span in spans:
        part = _real_interval(calendar, span)
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
