"""When a request may be sent: the decision over what was sent before and who else waits.

Times are seconds of any one clock. Not here: the rules (``core.pacing``), the record that all
processes share, waiting and sleeping (``ib.pacer``).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from ktrdr_pipelines.core.pacing import PacedRequest, Pacing, RequestKind, Rule
from ktrdr_pipelines.limits import IbLimitsRegistry


@dataclass(frozen=True, slots=True)
class Hit:
    """A request that was sent at ``at``, or will be."""

    at: float
    request: PacedRequest


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for its turn: number in order of arrival, whose, and its time so far."""

    number: int
    owner: str
    at: float
    request: PacedRequest


@dataclass(frozen=True, slots=True)
class Turn:
    """The earliest time for a request, and whether there is a free place for it now."""

    at: float
    has_place: bool

    def is_now(self, now: float) -> bool:
        """Say whether it may be sent at once."""
        return self.has_place and self.at <= now


def earliest(rules: Iterable[Rule], hits: Sequence[Hit], request: PacedRequest) -> float:
    """Give the earliest time that breaks no rule, whatever the order of the hits.

    It is the latest, over all rules, of: the n-th last hit that counts, plus the window.
    """
    return max((_free_at(rule, hits, request) for rule in rules if rule.binds(request)), default=0)


def turn(
    pacing: Pacing,
    *,
    me: Waiting,
    sent: Sequence[Hit],
    open_requests: Mapping[str, Sequence[PacedRequest]],
    others: Sequence[Waiting],
    now: float,
) -> Turn:
    """Decide when a waiting request may go.

    Args:
        pacing: the rules.
        me: the request that asks.
        sent: what was sent within the horizon.
        open_requests: by owner, what is unanswered and holds a place.
        others: everyone else who waits.
        now: the clock.
    """
    ahead = _ahead(me, others, {owner: len(held) for owner, held in open_requests.items()})
    promised = [Hit(max(other.at, now), other.request) for other in ahead]
    at = max(now, earliest(pacing.rules, [*sent, *promised], me.request))
    due = [other.request for other in ahead if other.at <= now]
    held = [request for requests in open_requests.values() for request in requests]
    return Turn(at, _has_place(pacing, me.request, [*held, *due]))


def next_pause_s(last_s: float | None, since_s: float) -> float:
    """Give the next pause after a pacing violation: it doubles while violations stay close.

    Args:
        last_s: length of the last pause, None if there was none.
        since_s: seconds since that pause ended.
    """
    first_s, longest_s = IbLimitsRegistry.PACING_PAUSE_S.value
    if last_s is None or since_s > longest_s:
        return first_s
    return min(last_s * 2, longest_s)


def _free_at(rule: Rule, hits: Sequence[Hit], request: PacedRequest) -> float:
    room = rule.most - rule.weight(request)
    counted = (hit for hit in hits if rule.counts(hit.request, request))
    for hit in sorted(counted, key=lambda hit: hit.at, reverse=True):
        room -= rule.weight(hit.request)
        if room < 0:
            return hit.at + rule.window_s
    return -inf


def _ahead(me: Waiting, others: Sequence[Waiting], held: Mapping[str, int]) -> list[Waiting]:
    """Return those whose turn comes before mine.

    Messages that request no data go first, as nothing else may keep a cancel waiting; then tails,
    then owners with the least.
    """
    ranks = _ranks([me, *others], held)
    return [other for other in others if ranks[other.number] < ranks[me.number]]


def _ranks(waiting: Iterable[Waiting], held: Mapping[str, int]) -> dict[int, tuple[int, int, int]]:
    """Rank everyone who waits: an owner's second request comes after every owner's first."""
    taken: Counter[tuple[int, str]] = Counter()
    ranks: dict[int, tuple[int, int, int]] = {}
    for one in sorted(waiting, key=lambda one: one.number):
        lane = _lane(one.request)
        place = held.get(one.owner, 0) + taken[lane, one.owner]
        taken[lane, one.owner] += 1
        ranks[one.number] = (lane, place, one.number)
    return ranks


def _lane(request: PacedRequest) -> int:
    if request.kind is RequestKind.MESSAGE:
        return 0
    return 1 if request.tail else 2


def _has_place(pacing: Pacing, request: PacedRequest, taken: Sequence[PacedRequest]) -> bool:
    if not request.is_historical:
        return True
    if sum(other.is_historical for other in taken) >= pacing.most_open:
        return False
    metered = sum(other.is_metered for other in taken)
    return not request.is_metered or metered < pacing.in_flight
