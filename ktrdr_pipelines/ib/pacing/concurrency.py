"""How many requests for longer bars may be in flight: responses raise it, trouble halves it.

While responses take about as long as they do from an idle gateway, every round of responses adds
one request; where they take much longer, or something fails, the number is halved. Between the two
it stays: there the gateway is busy and nothing queues for long. Times are seconds of any one clock.

Not here: the record that all processes share (``ib.pacing.shared_state``).
"""

from dataclasses import dataclass, replace

from ktrdr_pipelines.limits import IbLimitsRegistry

FLAT_RATIO = 1.5
"""Below this multiple of an idle gateway's time a response is quick: more requests fit."""

SLOW_RATIO = 2.5
"""From this multiple on responses queue at the gateway: fewer requests would get as much done."""

REST_S = 600.0
"""Seconds without a response after which nothing is known and the concurrency starts over."""

_SMOOTHING = 0.2
_FOLLOWING, _DRIFTING = 0.1, 0.01
_IDLE_RATIO = 1.2
_BEGINNING = 10
_SHORTEST_S = 0.001


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The number of requests that may be in flight (``width``), and what it is derived from.

    ``ratio`` is how long recent responses took, as a multiple of what an idle gateway needs;
    ``cut_at`` is when the width was last halved, ``seen_at`` when the last response arrived.
    """

    width: float = float(IbLimitsRegistry.CONCURRENCY.value)
    ratio: float = 1.0
    cut_at: float = 0.0
    seen_at: float = 0.0

    def limit(self, now: float) -> int:
        """Return how many requests may be in flight."""
        return int(rested(self, now).width)


@dataclass(frozen=True, slots=True)
class Sample:
    """One response: when its request was sent, when it arrived, and how many were open, with it."""

    sent_at: float
    at: float
    open_now: int

    @property
    def took_s(self) -> float:
        """How long the gateway took, at least a millisecond."""
        return max(self.at - self.sent_at, _SHORTEST_S)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that responses of a size take: from an idle gateway, and usually; how many so far."""

    idle_s: float
    usual_s: float
    answers: int = 1


def rested(concurrency: Concurrency, now: float) -> Concurrency:
    """Return the concurrency, or the initial one if the last response is over ``REST_S`` ago."""
    is_recent = now - max(concurrency.seen_at, concurrency.cut_at) <= REST_S
    return concurrency if is_recent else Concurrency(seen_at=concurrency.seen_at)


def answered(concurrency: Concurrency, sample: Sample, idle_s: float) -> Concurrency:
    """Return the concurrency after a response.

    Args:
        concurrency: the concurrency so far.
        sample: the response; one to a request from before the last cut does not count.
        idle_s: how long an idle gateway takes for such a response.
    """
    concurrency = replace(rested(concurrency, sample.at), seen_at=sample.at)
    if sample.sent_at < concurrency.cut_at:
        return concurrency
    step = (sample.took_s / max(idle_s, _SHORTEST_S) - concurrency.ratio) * _SMOOTHING
    concurrency = replace(concurrency, ratio=concurrency.ratio + step)
    if concurrency.ratio >= SLOW_RATIO:
        return _halved(concurrency, sample.at)
    is_used = sample.open_now >= int(concurrency.width)
    if concurrency.ratio >= FLAT_RATIO or not is_used:
        return concurrency
    most = float(IbLimitsRegistry.CONCURRENCY_RANGE.value[1])
    return replace(concurrency, width=min(concurrency.width + 1 / concurrency.width, most))


def troubled(concurrency: Concurrency, *, sent_at: float, at: float) -> Concurrency:
    """Return the concurrency after a failure that may come from overload; one burst counts once."""
    concurrency = rested(concurrency, at)
    return concurrency if sent_at < concurrency.cut_at else _halved(concurrency, at)


def pace_after(pace: Pace | None, sample: Sample, *, ratio: float) -> Pace:
    """Return the times of a size after one more response.

    The idle time follows the usual one down, and follows responses that were alone at the gateway
    both ways. It follows the usual one up only for the first responses, and slightly while nothing
    queues: otherwise a busy gateway would gradually be taken for an idle one.
    """
    if pace is None:
        return Pace(sample.took_s, sample.took_s)
    usual_s = pace.usual_s + (sample.took_s - pace.usual_s) * _FOLLOWING
    if sample.open_now <= 1:
        idle_s = pace.idle_s + (sample.took_s - pace.idle_s) * _FOLLOWING
    elif usual_s < pace.idle_s:
        idle_s = usual_s
    else:
        is_new, is_idle = pace.answers < _BEGINNING, ratio < _IDLE_RATIO
        share = _FOLLOWING if is_new else _DRIFTING if is_idle else 0.0
        idle_s = pace.idle_s + (usual_s - pace.idle_s) * share
    return Pace(idle_s, usual_s, pace.answers + 1)


def _halved(concurrency: Concurrency, at: float) -> Concurrency:
    least = float(IbLimitsRegistry.CONCURRENCY_RANGE.value[0])
    return replace(
        concurrency, width=max(concurrency.width / 2, least), ratio=FLAT_RATIO, cut_at=at
    )
