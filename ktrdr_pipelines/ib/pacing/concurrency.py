"""How many requests for longer bars may be in flight: answers widen it, trouble halves it.

While answers take about as long as they do from an idle gateway, every round of answers adds one
place; where they take much longer, or something goes wrong, the places are halved. Between the
two the width stays: there the gateway is busy and nothing queues for long. Times are seconds of
any one clock. Not here: the record that all processes share (``ib.pacing.shared_state``).
"""

from dataclasses import dataclass, replace

from ktrdr_pipelines.limits import IbLimitsRegistry

FLAT_RATIO = 1.5
"""Below this multiple of the idle gateway's time an answer is quick, and there is room for more."""

SLOW_RATIO = 2.5
"""From this multiple on answers queue at the gateway: fewer requests would get as much done."""

REST_S = 600.0
"""After how long without an answer nothing is known any more and the width starts over."""

_SMOOTHING = 0.2
_FOLLOWING, _DRIFTING = 0.1, 0.01
_IDLE_RATIO = 1.2
_BEGINNING = 10
_SHORTEST_S = 0.001


@dataclass(frozen=True, slots=True)
class Concurrency:
    """The width, and what it rests on.

    ``ratio`` is how long answers take lately, as a multiple of what an idle gateway needs;
    ``cut_at`` is when the width was last halved, ``seen_at`` when the last answer came.
    """

    width: float = float(IbLimitsRegistry.CONCURRENCY.value)
    ratio: float = 1.0
    cut_at: float = 0.0
    seen_at: float = 0.0

    def limit(self, now: float) -> int:
        """Give how many requests may be in flight."""
        return int(rested(self, now).width)


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: when it was asked for and came, and how many were open (itself included)."""

    sent_at: float
    at: float
    open_now: int

    @property
    def took_s(self) -> float:
        """How long the gateway took, never quite nothing."""
        return max(self.at - self.sent_at, _SHORTEST_S)


@dataclass(frozen=True, slots=True)
class Pace:
    """How long answers of one size take: from an idle gateway, and usually; of so many answers."""

    idle_s: float
    usual_s: float
    answers: int = 1


def rested(concurrency: Concurrency, now: float) -> Concurrency:
    """Start over where the last answer is long ago."""
    is_recent = now - max(concurrency.seen_at, concurrency.cut_at) <= REST_S
    return concurrency if is_recent else Concurrency(seen_at=concurrency.seen_at)


def answered(concurrency: Concurrency, sample: Sample, idle_s: float) -> Concurrency:
    """Take in an answer.

    Args:
        flight: the width so far.
        sample: the answer; one that was asked for before the last cut tells nothing of now.
        idle_s: what an idle gateway needs for such an answer.
    """
    concurrency = replace(rested(concurrency, sample.at), seen_at=sample.at)
    if sample.sent_at < concurrency.cut_at:
        return concurrency
    step = (sample.took_s / max(idle_s, _SHORTEST_S) - concurrency.ratio) * _SMOOTHING
    concurrency = replace(concurrency, ratio=concurrency.ratio + step)
    if concurrency.ratio >= SLOW_RATIO:
        return _halved(concurrency, sample.at)
    is_used = sample.open_now >= int(concurrency.width)
    return (
        replace(concurrency, width=_wider(concurrency.width))
        if concurrency.ratio < FLAT_RATIO and is_used
        else concurrency
    )


def troubled(concurrency: Concurrency, *, sent_at: float, at: float) -> Concurrency:
    """Take in a failure that may come from asking too much; one burst of them counts once."""
    concurrency = rested(concurrency, at)
    return concurrency if sent_at < concurrency.cut_at else _halved(concurrency, at)


def pace_after(pace: Pace | None, sample: Sample, *, ratio: float) -> Pace:
    """Take in how long one more answer of a size took.

    The idle time follows the usual one down, and answers that were alone at the gateway both
    ways; up it follows at the beginning, and a little while nothing queues: else a busy gateway
    would come to pass for an idle one.
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


def _wider(width: float) -> float:
    return min(width + 1 / width, float(IbLimitsRegistry.CONCURRENCY_RANGE.value[1]))


def _halved(concurrency: Concurrency, at: float) -> Concurrency:
    least = float(IbLimitsRegistry.CONCURRENCY_RANGE.value[0])
    return replace(
        concurrency, width=max(concurrency.width / 2, least), ratio=FLAT_RATIO, cut_at=at
    )
