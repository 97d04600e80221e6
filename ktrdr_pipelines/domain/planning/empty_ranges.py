"""Evidence: which statements of a gateway remove a session from what is expected.

A *statement* is what one response says of an interval without bars. Removing expectation takes two
statements from different requests, and three on three days where the store's own data contradict
them (DESIGN.md, "Evidence"). Everything here is pure: the caller collects statements
(``store.evidence``), keeps them (``store.ledger.statements``) and acts on the verdict.

Intervals are in real time, from the start of a session day to the start of another, so that a
statement of one timeframe speaks for every timeframe of its instrument.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.limits import IbLimitsRegistry

CONFIRM_AFTER = timedelta(seconds=IbLimitsRegistry.CONFIRM_AFTER_S.value)
"""Time between two statements of which one is a response without bars."""

VOIDED_WITHIN = timedelta(seconds=IbLimitsRegistry.VOIDED_WITHIN_S.value)
"""Distance from a refuted response within which others without bars are void."""

COUNTS_FOR = timedelta(days=IbLimitsRegistry.STATEMENT_COUNTS_DAYS.value)
"""Age to which a statement that a session is empty counts: proofs that expire need new ones."""

STATEMENT_DAYS = 3
"""Days on which a contradicted range must be stated to be empty."""

SHORT_RUN = 5
"""Sessions from which on an empty run is a halt and no lapse beside full neighbours: a week."""

NEIGHBOURS = 20
"""Sessions on either side that say whether an instrument trades in every session."""

_FULL_SHARE = 0.5
"""Share of the expected bars from which on a session counts as full."""

_MOST_AROUND = 200
"""Sessions on either side among which neighbours are looked for."""

_FEWEST_KNOWN = 5
"""Sessions with bars from which on neighbours say that an instrument trades in every session."""

_FEW_EMPTY = 0.05
"""Share of empty sessions among the neighbours of an instrument that trades in every session."""


class StatementKind(StrEnum):
    """What a response says of an interval.

    ``around``: bars on both sides of it and none inside. ``empty``: no bars at all came for it.
    ``older``: bars came that are all older, though it was requested to its end.
    ``begins``: bars that were requested from before it begin at its end. ``closed``: the
    contract's own schedule or hours call it closed. ``head``: it lies before the head timestamp,
    the start that the gateway names of the contract's data. ``traded`` speaks against emptiness:
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
    """What one response says of an interval of real time.

    ``said_at`` is the gateway's clock; ``request`` names the request, so that statements of one
    request count once. ``controlled`` says of a response without bars that a request of the same
    series returned bars after it, within ``CONFIRM_AFTER``. ``reaches_past`` says that its request
    reached past the oldest bar that was known: some gateways return nothing to such a request
    (grade C), so bars inside do not refute it.
    """

    interval: Interval
    kind: StatementKind
    timeframe: str
    said_at: datetime
    request: str
    controlled: bool = False
    reaches_past: bool = False


WITHOUT_BARS = frozenset({StatementKind.EMPTY, StatementKind.OLDER})
"""Statements that no bars came from some moment on: another one must come later to confirm them."""

MANY = 12
"""Responses without any bar, and nothing else, that prove what statements of other kinds prove by
two: a gateway that leaves 60 % of its requests without bars by chance answers so many in a row
with none twice in 1,000 times."""

_POSITIVE = frozenset(
    {
        StatementKind.AROUND,
        StatementKind.BEGINS,
        StatementKind.CLOSED,
        StatementKind.HEAD,
    }
)
"""Statements that need no other one to come later."""


class Proof(StrEnum):
    """How far a range is proved to be empty."""

    NONE = "none"
    UNCONFIRMED = "unconfirmed"
    CONTRADICTED = "contradicted"
    CONFIRMED = "confirmed"
    DISPUTED = "disputed"


_PROVED: Final = {False: Proof.CONFIRMED, True: Proof.DISPUTED}
"""What a proof is called, by whether held data contradict it."""


class Neighbours(StrEnum):
    """What the sessions around a range are like.

    ``full``: the instrument trades in every one of them. ``thin``: some are empty too, or hold few
    bars. ``unknown``: too few are known to say.
    """

    FULL = "full"
    THIN = "thin"
    UNKNOWN = "unknown"


class Verdict(NamedTuple):
    """What the statements about a range amount to.

    ``next_at`` is the earliest moment, by the gateway's clock, at which another statement can
    cover an open verdict. ``is_voidable`` says that the proof rests on a response without bars.
    """

    proof: Proof
    next_at: datetime | None = None
    is_voidable: bool = False

    @property
    def is_proved(self) -> bool:
        """Whether expectation is removed."""
        return self.proof in {Proof.CONFIRMED, Proof.DISPUTED}


def judge(
    statements: Iterable[Statement],
    *,
    contradicted: bool,
    neighbours: "Neighbours",
    short_run: bool,
    was_proved: bool = False,
    is_part: bool = False,
) -> Verdict:
    """Judge what statements about one range prove.

    Args:
        statements: those whose interval covers the range, void ones left out.
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
        # Where a response begins says little of what lies before by itself: one that was cut short
        # begins late too. Beside another statement it counts.
        around |= {one.request for one in said if one.kind is StatementKind.BEGINS}
    positive = [one for one in said if one.kind in _POSITIVE]
    if not around and not empty and not positive:
        return Verdict(Proof.NONE)
    is_renewed = was_proved and bool(around or any(one.controlled for one in empty))
    if is_renewed:
        return Verdict(_PROVED[contradicted], is_voidable=not around)
    is_heard = is_part or _is_heard(said)
    if not contradicted:
        told = {one.request for one in said if one.kind is StatementKind.CLOSED}
        by_calendar = bool(told and around and len(told | around) > 1)
        if by_calendar or (len(around) > 1 and not (full and short_run)):
            return Verdict(Proof.CONFIRMED)
        is_apart = is_heard and _are_apart(empty, positive)
        if (thin or (around and not full)) and is_apart:
            return Verdict(Proof.CONFIRMED, is_voidable=True)
    if contradicted or (full if around else not thin):
        return _judge_by_days(said, positive, is_heard=is_heard)
    counting = [one for one in said if one.kind not in WITHOUT_BARS or one.controlled]
    first = counting[0] if counting and is_heard else said[-1]
    return Verdict(Proof.UNCONFIRMED, first.said_at + CONFIRM_AFTER)


def _judge_by_days(
    said: Sequence[Statement], positive: Iterable[Statement], *, is_heard: bool
) -> Verdict:
    """Judge a range that held data contradict: it takes statements on three days."""
    days = stated_days(said)
    if len(days) < STATEMENT_DAYS or not is_heard:
        return Verdict(Proof.CONTRADICTED, _next_day(said, days))
    by_bars = stated_days(positive)
    return Verdict(Proof.DISPUTED, is_voidable=len(by_bars) < STATEMENT_DAYS)


def _is_heard(said: Iterable[Statement]) -> bool:
    """Whether some statement has bars, or is the contract's own; without, it takes many.

    A gateway that has the data, and now and then returns none of it, never returns bars around a
    session that has some, or only older ones.
    """
    kinds = {one.request: one.kind for one in said if one.kind is not StatementKind.TRADED}
    return len(kinds) >= MANY or any(kind is not StatementKind.EMPTY for kind in kinds.values())


def _are_apart(empty: Sequence[Statement], positive: Sequence[Statement]) -> bool:
    """Whether a response without bars confirms another statement, far enough from it in time.

    Of two responses without bars a control stands between them: the earlier one was followed by
    one, as was the later one.
    """
    for one in empty:
        if not one.controlled:
            continue
        for other in (*positive, *(two for two in empty if two.controlled)):
            if other.request != one.request and abs(other.said_at - one.said_at) >= CONFIRM_AFTER:
                return True
    return False


def stated_days(said: Iterable[Statement]) -> set[date]:
    """Return the UTC dates with a statement that had a control; bars in it are one.

    A request has one date.
    """
    dates = {
        one.request: one.said_at.date()
        for one in said
        if one.kind in {StatementKind.AROUND, StatementKind.BEGINS}
        or (one.kind in WITHOUT_BARS and one.controlled)
    }
    return set(dates.values())


def _next_day(said: Sequence[Statement], days: set[date]) -> datetime:
    """Return when the next statement counts for another day."""
    last = said[-1].said_at
    if last.date() not in days:
        return last + CONFIRM_AFTER
    tomorrow = datetime.combine(last.date() + timedelta(days=1), time(), tzinfo=last.tzinfo)
    return max(tomorrow, last + CONFIRM_AFTER)


def beginning(
    begins: Iterable[date],
    head: date | None,
    empty: Iterable[tuple[date, Statement]],
    oldest: date | None,
) -> date | None:
    """Return the session date at which the data of a contract begin, where that is proved.

    The head timestamp is one statement; the other is a response that was requested from before it
    and begins at it. Some gateways return nothing to a request that reaches past their oldest bar
    (grade C): there responses without bars for the sessions right before the head stand in, on
    three days. Without a head nothing but statements about each session counts.

    Args:
        begins: session dates at which responses began that were requested from before.
        head: the date of the head timestamp.
        empty: responses without bars, with the first session date behind their interval.
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
    """Say what the sessions around one that has no bar are like.

    Only sessions of which something is known are looked at: those with bars, and those that a
    response with bars on both sides, or a proof, calls empty. The run of empty sessions that the
    place lies in counts once: a halt does not make its own neighbours thin.

    Args:
        expected: bars that each session can have, oldest first.
        have: bars that are held.
        known_empty: whether a session is stated to be empty by responses with bars around it.
        place: the session.
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
    """Count the sessions of the empty run that a session lies in."""
    low = high = position
    while low > 0 and known_empty[low - 1]:
        low -= 1
    while high + 1 < len(known_empty) and known_empty[high + 1]:
        high += 1
    return high - low + 1
