"""How many requests for longer bars may be in flight, learned from how long responses take.

By Little's law, n requests in flight whose responses take r times as long as alone are n / r
requests served at a time. So the mean latency at each width is all that has to be known: up to the
gateway's capacity it stays flat; beyond it, it grows in proportion to the width, and faster if a
queue slows the gateway. ``_expected`` weighs all capacities and slow-downs by how well they explain
the latencies seen, and returns the throughput to be expected of each width; the best one is used.
Latencies of a width that is not in use lose weight, so that it is tried again before long.

Latencies are logarithms: their means are not moved by a few slow responses. Responses of one size
are compared with the first one of that size; no exact time of an idle gateway is needed, since
widths are compared with one another. Times are seconds of any one clock.

Not here: the record that all processes share (``ib.pacing.shared_state``).
"""

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ktrdr_pipelines.limits import IbLimitsRegistry

LEAST, MOST = IbLimitsRegistry.CONCURRENCY_RANGE.value
_FIRST_WIDTH = int(IbLimitsRegistry.CONCURRENCY.value)

REST_S = 600.0
"""Seconds without a response after which latencies no longer count; the width still does."""

RETRY_ROUNDS = 16
"""Rounds of responses after which one more request in flight is tried, whatever was seen."""

_UNPROVEN_ROUNDS = 2
"""Rounds after which less is tried if nothing is known of any lesser width."""

_FIRST_ROUNDS, _FIRST_LITTLE = 16, 0.7
"""Rounds from the beginning on in which less is also tried where little is known of all lesser
widths, fewer responses than this share of the width: a cold gateway hid their queue."""

_AGING_ROUNDS = 14.0
"""Rounds in which the weight of a width that is not in use falls to about a third."""

_GROWTH = 1.5
"""Most that the width grows at once: a queue of half a width costs little."""

_QUEUED_GROWTH = 1.2
"""Most that it grows at once where some of them already wait."""

_QUEUE_SHOWS = 0.05
"""Rise of the logarithm of the latency over that at lesser widths that shows that some wait."""

_EARLY = 4
"""Share of a round, one in so many, after which a greater width that serves fewer is given up."""

_MARGIN = 0.1
"""Share of its own throughput that one more request in flight must add to be worth its queue."""

_LEAST_GAIN = 0.01
"""Share of throughput that another width must promise."""

_ROUND_LEAST = 3
_MEMORY_ROUNDS = 6
_TRUSTED_ROUNDS = 4
"""Responses of a round at least; rounds that a mean covers; and from which it is trusted."""

_FALL = 0.5
"""Rise of the logarithm of the latency at a trusted width from which the capacity has changed."""

_CACHED, _FIRST_CACHED = 2.0, 3.5
"""A response this much faster (e-fold) than usual comes from a cache, and counts for nothing; one
this much slower shows that the first responses of its size did."""

_QUICK_LEAST, _QUICK_FACTOR = 20, 2.0
"""So many responses in a row that are as fast as cached ones, over so many times the usual
latency, come from a gateway that has become that fast: what was known of it no longer holds."""

_STALL, _STALL_ROUNDS = 2.0, 3
"""A gateway that sends nothing for so many times the usual latency was interrupted, or the machine
was: what was in flight counts for nothing. It counts where that is so again within so many rounds,
for then the gateway has become slow."""

_TRIAL_FACTOR = 1.3
"""How many times the longest latency a greater width is tried before responses are in."""

_YOUNG = 20
_SIZES_MOST = 32
_RECENT = 0.99
"""What each response leaves of the weight of those before it."""

_LEAST_VARIANCE, _FIRST_VARIANCE = 0.005, 0.05
_SYSTEMATIC = 0.05**2
"""Variance of means that more responses do not lower: they follow from the order of requests."""

_CLEARLY = 2.5
"""Standard errors by which two means clearly differ."""

_LEVEL_SPREAD = 0.4
"""Standard deviation of the first response of a size, as a logarithm."""

_LEVEL_FOLLOWS = 0.05
"""Share of the difference by which the level follows what a round shows."""

_FREEDOM = 4.0
"""Degrees of freedom of Student's t distribution: single wrong means are outvoted."""

_SHORTEST_S = 0.001
_Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """One response: when its request was sent, when it arrived, and how many were open, with it.

    They are those that were open halfway: responses that arrive together, as those to requests that
    were sent together do, leave fewer and fewer open, and yet all of them were served at once.
    """

    sent_at: float
    at: float
    at_once: int

    @property
    def took_s(self) -> float:
        """How long the gateway took, at least a millisecond."""
        return max(self.at - self.sent_at, _SHORTEST_S)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The number of requests that may be in flight, and what it is derived from.

    Attributes:
        width: the number; ``since`` is when it began.
        fallback: the lesser number that holds again once ``longest_s`` has passed without enough
            responses to a greater width; 0 is none.
        ceiling: the most after trouble; every round of responses raises it by one.
        cut_at: when the last trouble was; ``seen_at`` when the last response arrived.
        count, total: responses of this round and the sum of their latencies.
        latencies: by width, how many responses count, their mean latency, and the last round.
        firsts: by size, the latency of an idle gateway, about, and how many responses there were.
        rounds: how many rounds there were since the beginning, or since the last rest.
        longest_s: about the longest time of recent responses.
        common: recent difference of all sizes from what was expected.
        variance: of latencies at one width.
        level: the latency of an idle gateway, relative to ``firsts``.
        quick: how many responses in a row were as fast as cached ones; ``quick_since`` is when the
            first of them arrived.
        recent: by size, how many of the last hundred responses or so were of it.
        stalled_at: when the gateway last responded after an interruption; ``stalled_round`` is the
            round of it.
    """

    width: int = _FIRST_WIDTH
    since: float = -1.0
    fallback: int = 0
    ceiling: int = MOST
    cut_at: float = 0.0
    seen_at: float = 0.0
    count: int = 0
    total: float = 0.0
    latencies: dict[int, tuple[float, float, int]] = field(default_factory=dict)
    firsts: dict[str, tuple[float, int]] = field(default_factory=dict)
    rounds: int = 0
    longest_s: float = 0.0
    common: float = 0.0
    variance: float = _FIRST_VARIANCE
    level: float = 0.0
    quick: int = 0
    quick_since: float = 0.0
    recent: dict[str, float] = field(default_factory=dict)
    stalled_at: float = -1.0
    stalled_round: int = -_STALL_ROUNDS

    @classmethod
    def read(cls, text: str) -> "Concurrency":
        """Return what ``as_json`` returned; fields that this version does not know are ignored.

        What cannot be read is as if nothing was known.
        """
        try:
            known: dict[str, Any] = json.loads(text)
            if known.keys() != _NAMES:
                known = {name: known[name] for name in _NAMES & known.keys()}
            known["width"] = min(max(int(known.get("width", _FIRST_WIDTH)), LEAST), MOST)
            known["latencies"] = {
                int(width): (count, mean, last)
                for width, (count, mean, last) in known.get("latencies", {}).items()
            }
            known["firsts"] = {
                size: (first, responses)
                for size, (first, responses) in known.get("firsts", {}).items()
            }
            known["recent"] = dict(known.get("recent", {}))
            return cls(**known) if _is_sound(known) else cls(width=known["width"])
        except (ValueError, TypeError, AttributeError, OverflowError):
            return cls()

    def as_json(self) -> str:
        """Return the concurrency as JSON."""
        return _ENCODE({name: getattr(self, name) for name in _NAMES})

    def limit(self, now: float) -> int:
        """Return how many requests may be in flight."""
        return self.fallback if now > self.expires_at else self.width

    @property
    def expires_at(self) -> float:
        """When a greater width is given up for lack of responses."""
        if not 0 < self.fallback < self.width:
            return math.inf
        return self.since + _TRIAL_FACTOR * self.longest_s


def _is_sound(known: dict[str, Any]) -> bool:
    """Return whether values of a record are numbers that can be computed with."""
    latencies, firsts, recent = known["latencies"], known["firsts"], known["recent"]
    numbers = [value for value in known.values() if not isinstance(value, dict)]
    numbers += recent.values()
    numbers += [
        number for values in (latencies, firsts) for one in values.values() for number in one
    ]
    counts = [count for count, _, _ in latencies.values()]
    return (
        all(map(math.isfinite, numbers))
        and all(LEAST <= width <= MOST for width in latencies)
        and all(count > 0 for count in counts)
        and all(weight > 0 for weight in recent.values())
    )


_NAMES = frozenset(each.name for each in fields(Concurrency))
_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def answered(concurrency: Concurrency, size: str, sample: Sample) -> Concurrency:
    """Return the concurrency after a response.

    A response counts for a width if its request was sent while that width held, and all of it was
    in use: few requests say nothing about many.

    Args:
        concurrency: the concurrency so far.
        size: of the request; responses of one size take about equally long.
        sample: the response.
    """
    one = rested(concurrency, sample.at)
    latency = math.log(sample.took_s)
    expected = _expected_latency(one)
    first, responses = one.firsts.get(size, (latency - expected, 0))
    surprise = latency - first - expected
    usual_s = math.exp(first + expected)
    if surprise < -_CACHED:
        one = _after_quick(one, sample.at, usual_s=usual_s)
        return one if one.quick else answered(one, size, sample)
    if surprise > _FIRST_CACHED and responses < _YOUNG:
        first, responses = latency - expected, 0
    if not responses:
        others = [each for each in one.firsts.items() if each[0] != size][1 - _SIZES_MOST :]
        return replace(one, firsts={**dict(others), size: (first, 1)}, seen_at=sample.at)
    if sample.sent_at < one.stalled_at:
        return replace(one, seen_at=sample.at)
    if _is_stalled(one, sample, usual_s=usual_s):
        return _after_stall(one, sample.at)
    common = one.common + (surprise - one.common) * 0.1
    latency -= first
    recent = {each: weight * _RECENT for each, weight in one.recent.items() if each in one.firsts}
    recent[size] = recent.get(size, 0.0) + 1.0
    # Sizes are compared with one another: while all are of one, a rise is that of the queue.
    of_others = 1.0 - recent[size] / sum(recent.values())
    first += of_others * (surprise - common) / min(responses + 1, _YOUNG)
    longest_s = max(sample.took_s, one.longest_s * 0.99)
    changes: dict[str, Any] = {
        "firsts": {**one.firsts, size: (first, responses + 1)},
        "common": common,
        "longest_s": longest_s,
        "recent": recent,
        "seen_at": sample.at,
        "quick": 0,
    }
    is_trial = 0 < one.fallback < one.width
    expires_at = one.since + _TRIAL_FACTOR * longest_s if is_trial else math.inf
    is_new = sample.sent_at >= max(one.since, one.cut_at)
    is_expired = sample.sent_at > expires_at
    if is_new and not is_expired and (one.width <= sample.at_once or sample.at >= expires_at):
        changes |= {"count": one.count + 1, "total": one.total + latency}
        if one.width in one.latencies:
            step = (min(surprise * surprise, 0.5) - one.variance) * 0.03
            changes["variance"] = one.variance + step
    one = replace(one, **changes)
    least = _ROUND_LEAST * min(len(one.firsts), 2)  # several sizes spread more than one
    if is_new and (is_expired or one.count >= max(one.width, least) or _is_worse(one)):
        return _decided(one, sample.at, is_cut_short=is_expired)
    return one


def troubled(concurrency: Concurrency, *, sent_at: float, at: float) -> Concurrency:
    """Return the concurrency after a failure that may come from overload; one burst counts once."""
    if sent_at < concurrency.cut_at:
        return concurrency
    width = max(concurrency.limit(at) // 2, LEAST)
    return replace(
        concurrency, width=width, since=at, fallback=0, ceiling=width, cut_at=at, count=0, total=0.0
    )


def rested(concurrency: Concurrency, now: float) -> Concurrency:
    """Return the concurrency; if the last response is over ``REST_S`` ago, without latencies."""
    if now - max(concurrency.seen_at, concurrency.cut_at) <= REST_S:
        return concurrency
    return replace(
        concurrency,
        latencies={},
        fallback=0,
        ceiling=MOST,
        count=0,
        total=0.0,
        rounds=0,
        stalled_round=-_STALL_ROUNDS,
    )


def _is_stalled(concurrency: Concurrency, sample: Sample, *, usual_s: float) -> bool:
    """Return whether a response shows that nothing arrived for long while it was in flight.

    Not before the first round of a width is over: its usual latency is not known until then.
    """
    idle_s = sample.at - max(concurrency.seen_at, sample.sent_at)
    is_rare = concurrency.rounds - concurrency.stalled_round >= _STALL_ROUNDS
    return concurrency.width in concurrency.latencies and is_rare and idle_s > _STALL * usual_s


def _after_stall(concurrency: Concurrency, at: float) -> Concurrency:
    """Return the concurrency after an interruption: the round begins again."""
    return replace(
        concurrency,
        since=at,
        count=0,
        total=0.0,
        seen_at=at,
        quick=0,
        stalled_at=at,
        stalled_round=concurrency.rounds,
    )


def _after_quick(concurrency: Concurrency, at: float, *, usual_s: float) -> Concurrency:
    """Return the concurrency after a response as fast as a cached one.

    If there were so many in a row that no cache explains them, it is the width without latencies.
    """
    quick = concurrency.quick + 1
    since = concurrency.quick_since if concurrency.quick else at
    if quick < _QUICK_LEAST or at - since < _QUICK_FACTOR * usual_s:
        return replace(concurrency, quick=quick, quick_since=since, seen_at=at)
    return Concurrency(
        width=concurrency.limit(at),
        since=at,
        ceiling=concurrency.ceiling,
        cut_at=concurrency.cut_at,
        seen_at=at,
    )


def _expected_latency(concurrency: Concurrency) -> float:
    """Return the mean latency at the width, or the nearest thing known."""
    for width in (concurrency.width, concurrency.fallback):
        if width in concurrency.latencies:
            return concurrency.latencies[width][1]
    return concurrency.total / concurrency.count if concurrency.count else concurrency.level


def _decided(concurrency: Concurrency, at: float, *, is_cut_short: bool) -> Concurrency:
    """Return the concurrency after a round of responses, whole or cut short."""
    width, rounds = concurrency.width, concurrency.rounds + 1
    latencies = {
        each: mean
        for each, mean in concurrency.latencies.items()
        if rounds - mean[2] <= 4 * _AGING_ROUNDS
    }
    latencies[width] = _mean_after(concurrency, latencies.get(width), rounds)
    if is_cut_short:  # only the first responses are in, and the queue had not grown yet
        latencies[width] = (min(latencies[width][0], 1.0), *latencies[width][1:])
    elif (change := _change(concurrency)) > 0:
        latencies = {width: (concurrency.count, concurrency.total / concurrency.count, rounds)}
    elif change < 0:
        latencies = {each: mean for each, mean in latencies.items() if each < width}
        latencies[width] = (concurrency.count, concurrency.total / concurrency.count, rounds)
    latencies, level = _without_disproved(latencies, width, concurrency)
    concurrency = replace(concurrency, level=level)
    expected, level = _expected(latencies, concurrency, rounds)
    ceiling = min(concurrency.ceiling + 1, MOST)
    growth = _QUEUED_GROWTH if _has_queue(latencies, width) else _GROWTH
    most = min(max(int(width * growth), width + 1), ceiling)
    worth = np.log(expected[:most]) - _MARGIN * np.log(_WIDTHS[:most])
    best = int(worth.argmax()) + 1
    if width <= most and worth[best - 1] < worth[width - 1] + _LEAST_GAIN:
        best = width
    above = max((mean[2] for each, mean in latencies.items() if each > width), default=0)
    if best == width < most and rounds - above >= RETRY_ROUNDS:
        best = width + 1
    elif best == width > LEAST and latencies[width][0] >= _UNPROVEN_ROUNDS * width:
        lesser = sum(known[0] for each, known in latencies.items() if each < width)
        if not lesser or (rounds <= _FIRST_ROUNDS and lesser < _FIRST_LITTLE * width):
            best = max(width * 2 // 3, LEAST)
    # One width alone cannot tell a slow gateway from a busy one.
    follow = _LEVEL_FOLLOWS if len(latencies) > 1 else 0.0
    return replace(
        concurrency,
        width=best,
        since=concurrency.since if best == width else at,
        fallback=width if best > width else 0,
        ceiling=ceiling,
        count=0,
        total=0.0,
        latencies=latencies,
        rounds=rounds,
        level=concurrency.level + (level - concurrency.level) * follow,
    )


def _without_disproved(
    latencies: dict[int, tuple[float, float, int]], width: int, concurrency: Concurrency
) -> tuple[dict[int, tuple[float, float, int]], float]:
    """Return the latencies and the level, less where a round at a width shows that they are wrong.

    Neither an idle gateway nor a lesser width takes longer: what says so comes from a time when the
    gateway was slower, as when it was cold.
    """
    variance = max(concurrency.variance, _LEAST_VARIANCE)
    count, mean, _ = latencies[width]
    most = mean + _CLEARLY * math.sqrt(variance / count + _SYSTEMATIC)
    kept = {
        each: known
        for each, known in latencies.items()
        if each >= width or known[1] <= most + _CLEARLY * math.sqrt(variance / known[0])
    }
    return kept, min(concurrency.level, most)


def _is_worse(concurrency: Concurrency) -> bool:
    """Return whether a greater width shows, before its round is over, that it serves fewer."""
    width, fallback, count = concurrency.width, concurrency.fallback, concurrency.count
    if not 0 < fallback < width or fallback not in concurrency.latencies:
        return False
    if count < max(width // _EARLY, _ROUND_LEAST):
        return False
    known, mean, _ = concurrency.latencies[fallback]
    variance = max(concurrency.variance, _LEAST_VARIANCE)
    error = math.sqrt(variance / count + variance / known)
    return concurrency.total / count - mean - math.log(width / fallback) > error


def _has_queue(latencies: dict[int, tuple[float, float, int]], width: int) -> bool:
    """Return whether latencies at a width are so much longer than at lesser ones that some wait."""
    lesser = [mean for each, mean in latencies.items() if each < width]
    count = sum(each[0] for each in lesser)
    if not count:
        return False
    usual = sum(each[0] * each[1] for each in lesser) / count
    return latencies[width][1] - usual >= _QUEUE_SHOWS


def _mean_after(
    concurrency: Concurrency, before: tuple[float, float, int] | None, rounds: int
) -> tuple[float, float, int]:
    """Return the mean of the width after this round."""
    width, count = concurrency.width, concurrency.count
    if before is None:
        if count:
            return (count, concurrency.total / count, rounds)
        behind = math.log(width / max(concurrency.fallback, 1))
        return (1.0, _expected_latency(concurrency) + behind, rounds)
    if not count:
        return (*before[:2], rounds)
    known = min(before[0] + count, _MEMORY_ROUNDS * max(width, 6))
    step = (concurrency.total / count - before[1]) * min(count / known, 1.0)
    return (known, before[1] + step, rounds)


def _change(concurrency: Concurrency) -> int:
    """Return 1 if a round took so much longer than before that the capacity has fallen.

    It is -1 if the round was so much quicker that the capacity has grown, else 0. A width of which
    nothing is known yet is compared with the next greater one, which takes no less.
    """
    width, latencies = concurrency.width, concurrency.latencies
    bound = min((each for each in latencies if each >= width), default=None)
    if bound is None:
        return 0
    known = latencies[bound]
    more = concurrency.total / concurrency.count - known[1]
    variance = max(concurrency.variance, _LEAST_VARIANCE)
    error = math.sqrt(variance / concurrency.count + variance / known[0] + _SYSTEMATIC)
    is_trusted = known[0] >= _TRUSTED_ROUNDS * max(width, _ROUND_LEAST)
    if is_trusted and more > max(_FALL, 3 * error):
        return 1
    is_older = bound == width and concurrency.rounds > known[2]
    return -1 if is_older and more < -_CLEARLY * error else 0


_CAPACITIES = np.array([*range(LEAST, MOST + 1), 1.4 * MOST, 2.0 * MOST], dtype=np.float64)
_SLOWDOWNS = np.array([0.0, 0.03, 0.1, 0.3, 1.0])
_SLOWDOWN_ODDS = np.array([0.3, 0.15, 0.25, 0.25, 0.05])
_WIDTHS = np.arange(1, MOST + 1, dtype=np.float64)
_CAPACITY = np.repeat(_CAPACITIES, len(_SLOWDOWNS))[:, None]
_SLOWDOWN = np.tile(_SLOWDOWNS, len(_CAPACITIES))[:, None]
_QUEUED = np.maximum(_WIDTHS - _CAPACITY, 0.0)
_LATENCY: _Matrix = np.log(np.maximum(_WIDTHS / _CAPACITY, 1.0) * (1.0 + _SLOWDOWN * _QUEUED))
"""The latency of each width, one row for each capacity and slow-down per waiting request."""

_SHARE: _Matrix = np.exp(np.log(_WIDTHS) - _LATENCY)
_SHARE /= _SHARE.max(axis=1, keepdims=True)
"""The throughput of each width as a share of the best, in the same rows."""

_ODDS: _Matrix = np.log(np.tile(_SLOWDOWN_ODDS, len(_CAPACITIES)) / _CAPACITY[:, 0])
"""Logarithm of the odds of each row before anything is known: great capacities are rare."""


def _expected(
    latencies: dict[int, tuple[float, float, int]], concurrency: Concurrency, rounds: int
) -> tuple[_Matrix, float]:
    """Return the expected share of the best throughput by width, and the level that fits best."""
    counts, logarithms, seen = np.array([*latencies.values()], dtype=np.float64).T
    variances = max(concurrency.variance, _LEAST_VARIANCE) / counts + _SYSTEMATIC
    weights = np.exp((seen - rounds) / _AGING_ROUNDS) / variances
    # One column a width; what remains is the level, which all widths share.
    apart = logarithms - concurrency.level - _LATENCY[:, np.array([*latencies]) - 1]
    prior = 1.0 / _LEVEL_SPREAD**2
    level = apart @ weights / (weights.sum() + prior)
    for _ in range(2):
        trusted = weights / (1.0 + (apart - level[:, None]) ** 2 * weights / _FREEDOM)
        level = (apart * trusted).sum(axis=1) / (trusted.sum(axis=1) + prior)
    misfit = (apart - level[:, None]) ** 2 * weights / _FREEDOM
    odds = _ODDS - 0.5 * ((_FREEDOM + 1.0) * np.log1p(misfit).sum(axis=1) + level**2 * prior)
    odds = np.exp(odds - odds.max())
    odds /= odds.sum()
    return odds @ _SHARE, float(concurrency.level + odds @ level)
