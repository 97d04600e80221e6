"""The request rules of a gateway as data, and when they let a request be sent.

The rules say how often requests may be sent, how many may be open at once, and which requests they
bind. Times are seconds of any one clock.

Not here: what was sent (``ib.pacing.shared_state``), waiting (``ib.pacing.rate_limiter``).

Source: https://interactivebrokers.github.io/tws-api/historical_limitations.html
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import floor, inf

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
        return self.kind in {RequestKind.BARS, RequestKind.HEAD}

    @property
    def is_metered(self) -> bool:
        """Return whether it counts against the concurrency, as bars that are not small do."""
        return self.kind is RequestKind.BARS and not self.small


MESSAGE = PacedRequest(RequestKind.MESSAGE, "", "")
"""A message that requests no data (handshake, cancel, time): bound by the message rate only."""


@dataclass(frozen=True, slots=True)
class Rule:
    """At most ``most`` requests in any ``window_s`` seconds, among those of one scope.

    ``small_only`` and ``historical_only`` limit the requests that it counts and binds; ``weighted``
    rules count a request by its weight.
    """

    name: str
    most: int
    window_s: float
    scope: Scope = Scope.GATEWAY
    small_only: bool = False
    historical_only: bool = True
    weighted: bool = False

    def binds(self, request: PacedRequest) -> bool:
        """Return whether a request is under this rule."""
        if self.historical_only and not request.is_historical:
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

    def scaled(self, factor: float) -> "Pacing":
        """Return the same rules with every window multiplied: time at another speed."""
        rules = tuple(replace(rule, window_s=rule.window_s * factor) for rule in self.rules)
        return replace(self, rules=rules)


def pacing_of(*, conservative: bool = False, concurrency: int | None = None) -> Pacing:
    """Return the rules of the registry, a margin below each limit.

    ``conservative`` puts every request under the small-bar rules and the safe delay; otherwise the
    concurrency adapts to the gateway, unless it is given.
    """
    limits = IbLimitsRegistry
    small = not conservative
    rules = [
        Rule("identical", 1, limits.IDENTICAL_S.value, Scope.IDENTICAL),
        Rule(
            "same contract",
            limits.SAME_CONTRACT_MOST.value,
            limits.SAME_CONTRACT_S.value,
            Scope.CONTRACT,
            small_only=small,
        ),
        Rule(
            "window",
            limits.WINDOW_MOST.value,
            limits.WINDOW_S.value,
            small_only=small,
            weighted=True,
        ),
        Rule(
            "messages",
            limits.MESSAGES_PER_S.value,
            1.0 + limits.MESSAGE_JITTER_S.value,
            historical_only=False,
        ),
    ]
    if conservative:
        rules.append(Rule("safe delay", 1, limits.SAFE_DELAY_S.value))
    return Pacing(
        rules=tuple(map(_with_margin, rules)),
        most_open=_fewer(limits.MAX_OPEN_HISTORICAL.value),
        concurrency=concurrency or limits.CONCURRENCY.value,
        adapts=concurrency is None and not conservative,
    )


def weight_of(what_to_show: str) -> int:
    """Return what a request counts for under the window rule: BID_ASK counts twice."""
    return IbLimitsRegistry.BID_ASK_WEIGHT.value if what_to_show == "BID_ASK" else 1


def _with_margin(rule: Rule) -> Rule:
    """Return a rule below a limit: fewer requests, or a longer window where it allows only one."""
    if rule.most > 1:
        return replace(rule, most=_fewer(rule.most))
    return replace(rule, window_s=rule.window_s * (1 + IbLimitsRegistry.MARGIN.value))


def _fewer(most: int) -> int:
    return floor(most * (1 - IbLimitsRegistry.MARGIN.value))


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request that was sent at ``at``, or will be sent then."""

    at: float
    request: PacedRequest


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for a permit: number by arrival, its owner, and its time so far."""

    number: int
    owner: str
    at: float
    request: PacedRequest


@dataclass(frozen=True, slots=True)
class SendTime:
    """The earliest time for a request, and whether a permit is free for it now."""

    at: float
    has_permit: bool

    def is_now(self, now: float) -> bool:
        """Return whether it may be sent at once."""
        return self.has_permit and self.at <= now


def earliest(rules: Iterable[Rule], sent: Sequence[SentRequest], request: PacedRequest) -> float:
    """Return the earliest time that breaks no rule, whatever the order of the sent requests.

    It is the latest, over all rules, of: the n-th last sent request that counts, plus the window.
    """
    return max((_free_at(rule, sent, request) for rule in rules if rule.binds(request)), default=0)


def send_time(
    pacing: Pacing,
    *,
    me: Waiting,
    sent: Sequence[SentRequest],
    open_requests: Mapping[str, Sequence[PacedRequest]],
    others: Sequence[Waiting],
    now: float,
) -> SendTime:
    """Return when a waiting request may be sent.

    Args:
        pacing: the rules.
        me: the request in question.
        sent: the requests sent within the horizon.
        open_requests: by owner, the requests that hold a permit and have no response yet.
        others: all other waiting requests.
        now: the clock.
    """
    ahead = _ahead(me, others, {owner: len(held) for owner, held in open_requests.items()})
    promised = [SentRequest(max(other.at, now), other.request) for other in ahead]
    at = max(now, earliest(pacing.rules, [*sent, *promised], me.request))
    due = [other.request for other in ahead if other.at <= now]
    held = [request for requests in open_requests.values() for request in requests]
    return SendTime(at, _has_permit(pacing, me.request, [*held, *due]))


def next_pause_s(last_s: float | None, since_s: float) -> float:
    """Return the next pause after a pacing violation: it doubles while violations stay close.

    Args:
        last_s: length of the last pause, None without one.
        since_s: seconds since that pause ended.
    """
    backoff = IbLimitsRegistry.PACING_PAUSE_S.value
    is_close = last_s is not None and since_s <= backoff.longest_s
    return backoff.after_s(last_s) if last_s is not None and is_close else backoff.first_s


def _free_at(rule: Rule, sent: Sequence[SentRequest], request: PacedRequest) -> float:
    room = rule.most - rule.weight(request)
    counted = (one for one in sent if rule.counts(one.request, request))
    for one in sorted(counted, key=lambda one: one.at, reverse=True):
        room -= rule.weight(one.request)
        if room < 0:
            return one.at + rule.window_s
    return -inf


def _ahead(me: Waiting, others: Sequence[Waiting], held: Mapping[str, int]) -> list[Waiting]:
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
        rank = held.get(one.owner, 0) + taken[lane, one.owner]
        taken[lane, one.owner] += 1
        ranks[one.number] = (lane, rank, one.number)
    return [other for other in others if ranks[other.number] < ranks[me.number]]


def _has_permit(pacing: Pacing, request: PacedRequest, taken: Sequence[PacedRequest]) -> bool:
    if not request.is_historical:
        return True
    if sum(other.is_historical for other in taken) >= pacing.most_open:
        return False
    metered = sum(other.is_metered for other in taken)
    return not request.is_metered or metered < pacing.concurrency
