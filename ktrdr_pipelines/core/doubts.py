"""From silence to proof: when "no data" may be believed.

Not here: what bars prove (``core.settle``), asking (``ib.source``).

A stretch is settled as empty only when two requests left it without bars, the later one no wider
than the stretch, and "no data" for several sessions counts only after the newest of them was
asked alone: a request that reaches past the gateway's oldest bar may be answered with nothing
though there are bars (grade C). An open session is never settled as empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ktrdr_pipelines.core.gaps import is_closed
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.plan import Chunk, Doubt, Need, halved
from ktrdr_pipelines.core.sessions import Span, expected_spans

MOST_ROUNDS = 4
"""How often a stretch may be left as it is before it is given up for this run."""


@dataclass(frozen=True, slots=True)
class Doubts:
    """The open doubts of one series, and what was just proved empty."""

    open: tuple[Doubt, ...] = ()
    empty: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)
    given_up: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)


def after_no_data(need: Need, doubts: Doubts, chunk: Chunk) -> Doubts:
    """Take in that the gateway has no data for a chunk."""
    silent = _closed_gaps(need, chunk.stamps)
    if not silent:
        return replace(doubts, empty=IntervalSet())
    known = [doubt for doubt in doubts.open if _concerns(doubt, silent)]
    if not known:
        fresh = _runs(need, silent, probed=chunk.sessions == 1)
        return replace(doubts, open=(*doubts.open, *fresh), empty=IntervalSet())
    others = tuple(doubt for doubt in doubts.open if doubt not in known)
    rest = [_rest(need, doubt, silent) for doubt in known]
    proved = IntervalSet(doubt.interval for doubt in known) & silent
    return replace(doubts, open=(*others, *(d for d in rest if d)), empty=proved)


def after_answer(need: Need, doubts: Doubts, chunk: Chunk) -> Doubts:
    """Take in that a chunk was answered with bars; ``need`` already knows what they settled."""
    silent = _closed_gaps(need, chunk.stamps)
    kept: list[Doubt] = []
    rounds = 1
    left = silent.hull
    for doubt in doubts.open:
        if not doubt.interval.overlaps(chunk.stamps):
            kept.append(doubt)
        elif not doubt.probed:
            older = halved(need, doubt)
            kept.extend([older] if older else [])
        else:
            shrank = left is None or left.length < doubt.interval.length
            rounds = max(rounds, doubt.rounds + (0 if shrank else 1))
    unheld = silent - IntervalSet(doubt.interval for doubt in kept)
    if rounds > MOST_ROUNDS:
        given_up = doubts.given_up | unheld
        return Doubts(tuple(kept), IntervalSet(), given_up)
    fresh = _runs(need, unheld, probed=True, rounds=rounds)
    return Doubts((*kept, *fresh), IntervalSet(), doubts.given_up)


def _concerns(doubt: Doubt, silent: IntervalSet) -> bool:
    return bool(silent.clip(doubt.interval))


def _rest(need: Need, doubt: Doubt, silent: IntervalSet) -> Doubt | None:
    """Give what of a doubt stays open after a part of it was said to be empty again.

    What is left lies before a session that was asked alone, so it counts as probed.
    """
    left = (_closed_gaps(need, doubt.interval) - silent).hull
    return replace(doubt, interval=left, probed=True) if left else None


def _closed_gaps(need: Need, stamps: Interval) -> IntervalSet:
    """Give the gaps inside a stretch whose sessions have closed."""
    gaps = need.gaps(stamps)
    spans = expected_spans(need.calendar, need.timeframe, stamps)
    closed = (span.stamps for span in spans if is_closed(span, need.timeframe, need.now))
    return gaps & IntervalSet(closed)


def _runs(need: Need, gaps: IntervalSet, *, probed: bool, rounds: int = 1) -> list[Doubt]:
    """Make one doubt of each run of gaps with no settled stretch of a session between them."""
    hull = gaps.hull
    if hull is None:
        return []
    spans = expected_spans(need.calendar, need.timeframe, hull)
    return [Doubt(run, probed, rounds) for run in _joined(spans, gaps)]


def _joined(spans: Sequence[Span], gaps: IntervalSet) -> list[Interval]:
    """Join gaps that are neighbours but for closed time."""
    neighbours = {(a.stamps.end, b.stamps.start) for a, b in pairwise(spans)}
    runs: list[Interval] = []
    for gap in gaps:
        if runs and (runs[-1].end, gap.start) in neighbours:
            runs[-1] = Interval(runs[-1].start, gap.end)
        else:
            runs.append(gap)
    return runs
