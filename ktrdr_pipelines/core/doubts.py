"""From silence to proof: when "no data" may be believed.

Not here: what bars prove (``core.settle``), asking (``ib.source``).

A stretch is settled without bars only when two requests left it without any, the later one no
wider than the stretch. "No data" for several sessions counts only after the newest of them were
asked alone, one where older bars are known, else five: a request that reaches past the gateway's
oldest bar may be answered with nothing though there are bars (grade C), and one that gives only the
first bars of what is asked for looks as if nothing came behind them. An open session is never
settled without bars.
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

PROBES = 1
"""Sessions asked alone after "no data" where older bars are known: nothing reached past them."""

PROBES_BEFORE_ALL = 5
"""Sessions asked alone where no older bar is known: a week of silence for an instrument that is
traded at all, so a longer stretch may be believed."""


@dataclass(frozen=True, slots=True)
class Doubts:
    """The open doubts about one chunk, and what was just proved to hold no bars."""

    open: tuple[Doubt, ...] = ()
    silent: IntervalSet = IntervalSet()  # noqa: RUF009  (immutable)


def silent_before(need: Need) -> Doubts:
    """Begin in doubt about gaps that were silent before: each run of them is asked by itself."""
    gaps = need.gaps()
    spans = expected_spans(need.calendar, need.timeframe, gaps.hull) if gaps.hull else []
    return Doubts(tuple(Doubt(run) for run in _joined(spans, gaps)))


def after_no_data(need: Need, doubts: Doubts, chunk: Chunk, *, older_known: bool = False) -> Doubts:
    """Take in that the gateway has no bars for a chunk.

    Args:
        need: wants and facts.
        doubts: what is open.
        chunk: what was asked.
        older_known: the answer held bars, all of them older than the chunk.
    """
    silent = _closed_gaps(need, chunk.stamps)
    hull = silent.hull
    if hull is None:
        return Doubts(doubts.open)
    asked = next((doubt for doubt in doubts.open if doubt.interval.covers(hull)), None)
    if asked is None:
        fresh = silent - IntervalSet(doubt.interval for doubt in doubts.open)
        most = PROBES if older_known else PROBES_BEFORE_ALL
        return Doubts((*doubts.open, *_runs(need, fresh, probes=(PROBES, most))))
    others = tuple(doubt for doubt in doubts.open if doubt is not asked)
    probes = 0 if older_known else max(0, asked.probes - 1)
    left = (_closed_gaps(need, asked.interval) - silent).hull
    rest = (replace(asked, interval=left, probes=probes),) if left else ()
    return Doubts((*others, *rest), silent)


def after_answer(need: Need, doubts: Doubts, chunk: Chunk) -> Doubts:
    """Take in that a chunk was answered with bars; ``need`` already knows what they settled."""
    silent = _closed_gaps(need, chunk.stamps)
    kept: list[Doubt] = []
    rounds = 1
    left = silent.hull
    for doubt in doubts.open:
        if not doubt.interval.overlaps(chunk.stamps):
            kept.append(doubt)
        elif doubt.probes:
            older = halved(need, doubt)
            kept.extend([older] if older else [])
        else:
            shrank = left is None or left.length < doubt.interval.length
            rounds = max(rounds, doubt.rounds + (0 if shrank else 1))
    if rounds > MOST_ROUNDS:
        return Doubts(tuple(kept))
    unheld = silent - IntervalSet(doubt.interval for doubt in kept)
    runs = _runs(need, unheld, probes=(0, PROBES_BEFORE_ALL), rounds=rounds)
    return Doubts((*kept, *(_behind_all(need, run, chunk) for run in runs)))


def _behind_all(need: Need, doubt: Doubt, chunk: Chunk) -> Doubt:
    """Let the newest session be asked alone where no bar of the answer lies behind a doubt.

    An answer that holds only the first bars of what was asked for looks the same, and so does the
    next one to as wide a request.
    """
    spans = expected_spans(need.calendar, need.timeframe, doubt.interval)
    newest = expected_spans(need.calendar, need.timeframe, chunk.stamps)[-1]
    if len(spans) == 1 or spans[-1] != newest:
        return doubt
    return replace(doubt, probes=max(doubt.probes, PROBES))


def quiet_and_empty(
    need: Need, silent: IntervalSet, bars: IntervalSet
) -> tuple[IntervalSet, IntervalSet]:
    """Split what was proved silent: quiet parts of sessions that have bars, and empty sessions.

    Minutes without a trade are known for good; that a whole session has no bar may change.
    """
    hull = silent.hull
    if hull is None:
        return silent, silent
    spans = expected_spans(need.calendar, need.timeframe, hull)
    traded = IntervalSet(span.stamps for span in spans if bars.clip(span.stamps))
    return silent & traded, silent - traded


def _closed_gaps(need: Need, stamps: Interval) -> IntervalSet:
    """Give the gaps inside a stretch whose sessions have closed."""
    gaps = need.gaps(stamps)
    spans = expected_spans(need.calendar, need.timeframe, stamps)
    closed = (span.stamps for span in spans if is_closed(span, need.now))
    return gaps & IntervalSet(closed)


def _runs(
    need: Need, gaps: IntervalSet, *, probes: tuple[int, int], rounds: int = 1
) -> list[Doubt]:
    """Make one doubt of each run of gaps with no settled stretch of a session between them.

    ``probes`` are those of a run before which bars are known, and of any other.
    """
    hull = gaps.hull
    if hull is None:
        return []
    spans = expected_spans(need.calendar, need.timeframe, hull)
    return [Doubt(run, _probes(need, run, probes), rounds) for run in _joined(spans, gaps)]


def _probes(need: Need, run: Interval, probes: tuple[int, int]) -> int:
    """Say how many sessions of a run are asked alone; a run in one session is, as it is."""
    older_known = need.known_from is not None and need.known_from < run.start
    sessions = len(expected_spans(need.calendar, need.timeframe, run))
    return min(probes[0] if older_known else probes[1], sessions - 1)


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
