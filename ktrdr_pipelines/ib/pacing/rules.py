"""The request rules of a gateway as data, and when they let a request be sent.

The rules say how often requests may be sent, how many may be open at once, and which requests they
bind. Times are seconds of any one clock.

A gateway counts requests when they arrive, which is after they were sent and before they have a
response. So a request for data counts from before it is sent until a window after its response, or
after its deadline where it has none. Two requests that are farther apart than a window by this
count are so at the gateway too, whatever the delays on the way: no limit needs a margin for them.

Not here: what was sent (``ib.pacing.shared_state``), waiting (``ib.pacing.rate_limiter``).

Source: https://interactivebrokers.github.io/tws-api/historical_limitations.html
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import floor, inf
from typing import NamedTuple, Protocol

from ktrdr_pipelines.limits import IbLimitsRegistry


class RequestKind(StrEnum):
    """What a request is for, as far as the budget distinguishes."""

    BARS = "bars"
    HEAD = "head"
    CONTRACT = "contract"
    MESSAGE = "message"


class Scope(StrEnum):
    """Which earlier requests a rule counts together with a new one."""

    GATEWAY = "gateway"
    CONTRACT = "contract"
    IDENTICAL = "identical"


@dataclass(frozen=True, slots=True)
class PacedRequest:
    """A request as the budget sees it.

    ``contract`` names contract, exchange and what_to_show; ``identical`` adds end, duration, bar
    size and hours. ``small`` requests obey the hard rules: bars of 30 s or less, and head
    timestamps. ``size`` groups requests whose responses take about equally long; empty: no group.
    """

    kind: RequestKind
    contract: str
    identical: str
    weight: int = 1
    small: bool = False
    tail: bool = False
    size: str = ""

    @property
    def is_historical(self) -> bool:
        """Return whether it counts among the gateway's open historical requests."""
        return self.kind is RequestKind.BARS or self.kind is RequestKind.HEAD

    @property
    def is_metered(self) -> bool:
        """Return whether it counts against the concurrency, as bars that are not small do."""
        return self.kind is RequestKind.BARS and not self.small


MESSAGE = PacedRequest(RequestKind.MESSAGE, "", "")
"""A message that requests no data (handshake, cancel, time): bound by the message rate only."""


class Counted(NamedTuple):
    """A request as a rule counts it: when the gateway counted it at the latest, and its weight.

    ``sent_at`` is the earliest time at which it can have. Both are equal where the time is known.
    """

    latest: float
    sent_at: float
    weight: int


@dataclass(frozen=True, slots=True)
class Rule:
    """At most ``most`` requests in any ``window_s`` seconds, among those of one scope.

    ``small_only``, ``historical_only`` and ``backfills_only`` limit the requests that it counts and
    binds; ``weighted`` rules count a request by its weight. ``lent`` more requests are allowed in
    the window if none was counted in the last ``window_s / lent`` seconds.
    """

    name: str
    most: int
    window_s: float
    scope: Scope = Scope.GATEWAY
    small_only: bool = False
    historical_only: bool = True
    weighted: bool = False
    backfills_only: bool = False
    lent: int = 0

    @property
    def is_by_arrival(self) -> bool:
        """Whether it counts a request until its response; the message rule counts what is sent."""
        return self.historical_only

    def binds(self, request: PacedRequest) -> bool:
        """Return whether a request is under this rule."""
        if self.historical_only and not request.is_historical:
            return False
        if self.backfills_only and request.tail:
            return False
        return request.small or not self.small_only

    def counts(self, earlier: PacedRequest, request: PacedRequest) -> bool:
        """Return whether an earlier request counts against a new one."""
        if not self.binds(earlier):
            return False
        if self.scope is Scope.CONTRACT:
            return earlier.contract == request.contract
        return self.scope is Scope.GATEWAY or earlier.identical == request.identical

    def weight(self, request: PacedRequest) -> int:
        """Return what a request counts for."""
        return request.weight if self.weighted else 1

    def free_at(self, counted: Sequence[Counted], weight: int) -> float:
        """Return the earliest time for a request of a weight; -inf if any time will do.

        Args:
            counted: what counts against it, latest first.
            weight: of the request.
        """
        return self._free_at([(one.latest, one.weight) for one in counted], weight)

    def free_at_best(self, counted: Sequence[Counted], weight: int) -> float:
        """Return the same if every response arrives at once: it is never earlier than this."""
        times = sorted(((one.sent_at, one.weight) for one in counted), reverse=True)
        return self._free_at(times, weight)

    def _free_at(self, times: Sequence[tuple[float, int]], weight: int) -> float:
        free_at = _last_but(self.most - weight, times) + self.window_s
        if not self.lent or free_at == -inf:
            return free_at
        apart = times[0][0] + self.window_s / self.lent
        lent_at = _last_but(self.most + self.lent - weight, times) + self.window_s
        return min(free_at, max(lent_at, apart))


def _last_but(room: int, times: Sequence[tuple[float, int]]) -> float:
    """Return the time of the first request, latest first, that a room does not hold any more."""
    for at, weight in times:
        room -= weight
        if room < 0:
            return at
    return -inf


@dataclass(frozen=True, slots=True)
class Pacing:
    """All rules of one gateway: over time, and on what may be open at once.

    ``concurrency`` is for longer than small bars; where it ``adapts`` this is the initial value.
    """

    rules: tuple[Rule, ...]
    most_open: int
    concurrency: int
    adapts: bool = False

    def horizon_s(self, *, small: bool) -> float:
        """Return the seconds for which a request, small or not, can delay a later one."""
        return max(rule.window_s for rule in self.rules if small or not rule.small_only)

    def binding(self, request: PacedRequest) -> "Pacing":
        """Return the pacing with those rules only that bind a request."""
        return replace(self, rules=tuple(rule for rule in self.rules if rule.binds(request)))

    def scaled(self, factor: float) -> "Pacing":
        """Return the same rules with every window multiplied: time at another speed."""
        rules = tuple(replace(rule, window_s=rule.window_s * factor) for rule in self.rules)
        return replace(self, rules=rules)


def pacing_of(*, conservative: bool = False, concurrency: int | None = None) -> Pacing:
    """Return the rules of the registry.

    Limits on requests for data are used in full, as the time at which a gateway counts them is
    known to be before their responses; open requests, messages and identical requests keep a
    margin. ``conservative`` puts every request under the small-bar rules; otherwise the concurrency
    adapts to the gateway, unless it is given.
    """
    limits = IbLimitsRegistry
    most, reserve = limits.WINDOW_MOST.value, limits.WINDOW_RESERVE.value
    small, apart = not conservative, 1 + limits.CLOCK_DRIFT.value
    window_s = limits.WINDOW_S.value * apart
    rules = (
        Rule(
            "identical",
            1,
            limits.IDENTICAL_S.value * (1 + limits.MARGIN.value),
            Scope.IDENTICAL,
        ),
        Rule(
            "same contract",
            limits.SAME_CONTRACT_MOST.value,
            limits.SAME_CONTRACT_S.value * apart,
            Scope.CONTRACT,
            small_only=small,
        ),
        Rule("window", most, window_s, small_only=small, weighted=True),
        Rule(
            "backfills",
            most - reserve,
            window_s,
            small_only=small,
            weighted=True,
            backfills_only=True,
            lent=limits.WINDOW_LENT.value,
        ),
        Rule(
            "messages",
            _fewer(limits.MESSAGES_PER_S.value),
            1.0 + limits.MESSAGE_JITTER_S.value,
            historical_only=False,
        ),
    )
    return Pacing(
        rules=rules,
        most_open=_fewer(limits.MAX_OPEN_HISTORICAL.value),
        concurrency=concurrency or limits.CONCURRENCY.value,
        adapts=concurrency is None and not conservative,
    )


def weight_of(what_to_show: str) -> int:
    """Return what a request counts for under the window rule: BID_ASK counts twice."""
    return IbLimitsRegistry.BID_ASK_WEIGHT.value if what_to_show == "BID_ASK" else 1


def _fewer(most: int) -> int:
    return floor(most * (1 - IbLimitsRegistry.MARGIN.value))


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request that was sent at ``at``, or will be sent then.

    ``answered_at`` is when it had its response, or its deadline; None is at once.
    """

    at: float
    request: PacedRequest
    answered_at: float | None = None

    def counted(self, rule: Rule) -> Counted:
        """Return it as a rule counts it."""
        latest = self.at
        if rule.is_by_arrival and self.answered_at is not None:
            latest = self.answered_at
        return Counted(latest, self.at, rule.weight(self.request))


class Recorded(Protocol):
    """Sent requests that are kept elsewhere."""

    def counted(self, rule: Rule, request: PacedRequest, others: int) -> Sequence[Counted]:
        """Return what counts against a request, latest first: all that can delay it.

        Those that cannot may be returned together, as one of their weight.

        Args:
            rule: the rule.
            request: the request.
            others: how many requests count besides those that are kept here.
        """
        ...


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for a permit: number by arrival, its owner, and its time so far."""

    number: int
    owner: str
    at: float
    request: PacedRequest


class OpenRequests(NamedTuple):
    """How many requests hold a permit and have no response yet.

    ``historical`` of them are for historical data, ``metered`` of these count against the
    concurrency.
    """

    total: int = 0
    historical: int = 0
    metered: int = 0

    @classmethod
    def of(cls, requests: Sequence[PacedRequest]) -> "OpenRequests":
        """Return the counts of some requests."""
        return cls(
            len(requests),
            sum(one.is_historical for one in requests),
            sum(one.is_metered for one in requests),
        )


_NONE_OPEN = OpenRequests()


@dataclass(frozen=True, slots=True)
class SendTime:
    """The earliest time for a request, and whether a permit is free for it now.

    ``check_at`` is when a request that waits should be decided again: responses that are still to
    come can make it due from then on.
    """

    at: float
    has_permit: bool
    check_at: float = field(default=-inf, compare=False)

    def is_now(self, now: float) -> bool:
        """Return whether it may be sent at once."""
        return self.has_permit and self.at <= now


def earliest(rules: Iterable[Rule], sent: Sequence[SentRequest], request: PacedRequest) -> float:
    """Return the earliest time that breaks no rule, whatever the order of the sent requests.

    It is the latest, over all rules, of: the n-th last sent request that counts, plus the window.
    """
    return _earliest(rules, sent, request)[0]


def send_time(
    pacing: Pacing,
    *,
    me: Waiting,
    sent: Sequence[SentRequest],
    open_requests: Mapping[str, OpenRequests],
    others: Sequence[Waiting],
    now: float,
    recorded: Recorded | None = None,
) -> SendTime:
    """Return when a waiting request may be sent.

    Args:
        pacing: the rules.
        me: the request in question.
        sent: the requests sent within the horizon, less those in ``recorded``.
        open_requests: by owner, the requests that hold a permit and have no response yet.
        others: all other waiting requests.
        now: the clock.
        recorded: further sent requests.
    """
    ahead = _ahead(me, others, open_requests) if others else []
    promised = [SentRequest(max(other.at, now), other.request) for other in ahead]
    at, at_best = _earliest(
        pacing.rules, [*sent, *promised], me.request, recorded=recorded, now=now
    )
    due = OpenRequests.of([other.request for other in ahead if other.at <= now])
    held = [*open_requests.values(), due]
    historical = sum(one.historical for one in held)
    metered = sum(one.metered for one in held)
    has_permit = _has_permit(pacing, me.request, historical=historical, metered=metered)
    return SendTime(max(now, at), has_permit, at_best)


def next_pause_s(last_s: float | None, since_s: float) -> float:
    """Return the next pause after a pacing violation: it doubles while violations stay close.

    Args:
        last_s: length of the last pause, None without one.
        since_s: seconds since that pause ended.
    """
    backoff = IbLimitsRegistry.PACING_PAUSE_S.value
    is_close = last_s is not None and since_s <= backoff.longest_s
    return backoff.after_s(last_s) if last_s is not None and is_close else backoff.first_s


def _earliest(
    rules: Iterable[Rule],
    sent: Sequence[SentRequest],
    request: PacedRequest,
    *,
    recorded: Recorded | None = None,
    now: float = -inf,
) -> tuple[float, float]:
    """Return the earliest time by the rules, and the earliest that it can become by responses.

    Times before ``now`` are not told apart.
    """
    at = at_best = -inf
    for rule in rules:
        if not rule.binds(request):
            continue
        counted = [one.counted(rule) for one in sent if rule.counts(one.request, request)]
        if recorded is not None:
            counted += recorded.counted(rule, request, len(counted))
        if not counted:
            continue
        counted.sort(reverse=True)
        weight = rule.weight(request)
        free_at = rule.free_at(counted, weight)
        at = max(at, free_at)
        if free_at > now:
            at_best = max(at_best, rule.free_at_best(counted, weight))
    return at, at_best


def _ahead(
    me: Waiting, others: Sequence[Waiting], held: Mapping[str, OpenRequests]
) -> list[Waiting]:
    """Return the waiting requests that go before mine.

    Messages that request no data go first, as nothing may delay a cancel; then tails; within each,
    the owners with the fewest open requests, and an owner's second request after every owner's
    first.
    """
    taken: Counter[tuple[int, str]] = Counter()
    ranks: dict[int, tuple[int, int, int]] = {}
    for one in sorted([me, *others], key=lambda one: one.number):
        is_message = one.request.kind is RequestKind.MESSAGE
        lane = 0 if is_message else 1 if one.request.tail else 2
        rank = held.get(one.owner, _NONE_OPEN).total + taken[lane, one.owner]
        taken[lane, one.owner] += 1
        ranks[one.number] = (lane, rank, one.number)
    return [other for other in others if ranks[other.number] < ranks[me.number]]


def _has_permit(pacing: Pacing, request: PacedRequest, *, historical: int, metered: int) -> bool:
    if not request.is_historical:
        return True
    if historical >= pacing.most_open:
        return False
    return not request.is_metered or metered < pacing.concurrency
