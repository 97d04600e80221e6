"""How many sessions one request to a gateway should have, and how many it may have.

Of backfills of intraday bars, each request has the width that brings most bars a second, as all
processes have learned it (``domain.planning.width_learning``); a few have the next step's. That is
bounded by what works at all.

A refusal for length states a rule: it is remembered at once, for a month. A request that times out
may have met a short fault of the gateway: what one run learns from it holds for that run only, and
for other runs, for a day, once a second run learns it again. A response to a wider request ends it.

Not here: how requests are cut (``domain.planning.chunks``), the table
(``store.ledger.gateway_records``), the memory of learned widths (``ib.pacing.learned_widths``).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

import pyarrow as pa

from ktrdr_pipelines.domain.bars import micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning import width_learning
from ktrdr_pipelines.domain.planning.chunks import (
    ALWAYS_COUNTED,
    BY_THE_YEAR,
    Chunk,
    Need,
    narrower,
    plan,
)
from ktrdr_pipelines.domain.planning.width_learning import (
    LearnedWidth,
    WidthBounds,
    WidthMemory,
    WidthSample,
    kind_of,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.gateway_records import WidthRecord
from ktrdr_pipelines.store.ledger.ledger import Ledger

REFUSED = 1_000
"""Number of runs that marks a refusal in the table: more than timeouts can ever reach."""

_REFUSED_FOR = timedelta(seconds=IbLimitsRegistry.REFUSED_WIDTH_S.value)
_ENOUGH_RUNS = 2
_READ_EVERY_S = 5.0
_SHARED_AT_ONCE = 8
_MOST_SHARE = 3
"""One in so many requests in flight may be a probe; the others have the best known width."""

_MANY = 4
"""So many times as many sessions as a probe has must be missing beside each other: what few
requests fill needs none."""

_VALID_FOR = timedelta(seconds=IbLimitsRegistry.WIDTH_CACHE_S.value)


class WidthLearner:
    """What one run knows of learned widths, and what its responses add to them.

    Most samples are kept for a few seconds before they are shared; probes and their outcomes are
    shared at once.

    Args:
        memory: where all processes remember them.
        timeout_s: the deadline of a request.
        clock: this machine's time.
    """

    def __init__(
        self, memory: WidthMemory, *, timeout_s: float, clock: Callable[[], datetime]
    ) -> None:
        self._memory, self._clock = memory, clock
        self.bounds = WidthBounds.of(timeout_s)
        self._known: dict[str, LearnedWidth] = {}
        self._read_at: float | None = None
        self._unshared: dict[str, list[tuple[int, WidthSample]]] = {}

    def known(self, kind: str) -> LearnedWidth:
        """Return what is known of a kind of series, read again after a few seconds."""
        now_s = self._now_s()
        if self._read_at is None or not 0 <= now_s - self._read_at < _READ_EVERY_S:
            for one in list(self._unshared):
                self._share(one)
            self._read_at, self._known = now_s, dict(self._memory.known())
        known = self._known.get(kind)
        if known is None or not known.is_valid(now_s):
            known = self._known[kind] = width_learning.started(kind, now_s)
        return known

    def probe(self, kind: str, most: int | None) -> int | None:
        """Return the width of a probe that may be sent now, if one is of use."""
        known = self.known(kind)
        return width_learning.may_probe(known, self._now_s(), self._bounded(most))

    def begin(self, kind: str, width: int, most: int | None) -> bool:
        """Record that a probe is sent; return False if another process has sent enough."""
        now_s, began = self._now_s(), False

        def change(known: LearnedWidth) -> LearnedWidth:
            nonlocal began
            began = width_learning.may_probe(known, now_s, self._bounded(most)) == width
            return width_learning.probed(known, width, now_s) if began else known

        self._change(kind, change)
        return began

    def measured(self, kind: str, width: int, sample: WidthSample) -> None:
        """Record a response to a request of some width, whole as far as one can tell."""
        unshared = self._unshared.setdefault(kind, [])
        unshared.append((width, sample))
        if width != self.known(kind).width or len(unshared) >= _SHARED_AT_ONCE:
            self._share(kind)

    def without_outcome(self, kind: str, width: int) -> None:
        """Record that a response says nothing about the width of its request."""
        if width != self.known(kind).width:
            now_s = self._now_s()
            self._change(kind, lambda known: width_learning.without_outcome(known, width, now_s))

    def failed(self, kind: str, width: int, why: str = "") -> bool:
        """Record a timeout, or ``why`` a width does not work; return whether it was a probe's."""
        now_s, was_wider = self._now_s(), False

        def change(known: LearnedWidth) -> LearnedWidth:
            nonlocal was_wider
            was_wider = width > known.width
            if why:
                return width_learning.refused(known, width, now_s, why)
            return width_learning.timed_out(known, width, now_s)

        self._change(kind, change)
        return was_wider

    def share(self) -> None:
        """Share all samples that are not shared yet."""
        for kind in list(self._unshared):
            self._share(kind)

    def _share(self, kind: str) -> None:
        samples, now_s = self._unshared.pop(kind, []), self._now_s()
        if not samples:
            return

        def change(known: LearnedWidth) -> LearnedWidth:
            for width, sample in samples:
                known = width_learning.measured(
                    known, width, sample, now_s=now_s, bounds=self.bounds
                )
            return known

        self._change(kind, change)

    def _change(self, kind: str, change: Callable[[LearnedWidth], LearnedWidth]) -> None:
        now_s = self._now_s()

        def changed(known: LearnedWidth | None) -> LearnedWidth:
            if known is None or not known.is_valid(now_s):
                known = width_learning.started(kind, now_s)
            return change(known)

        self._known[kind] = self._memory.update(kind, changed)

    def _bounded(self, most: int | None) -> WidthBounds:
        return WidthBounds(self.bounds.longest_s, most)

    def _now_s(self) -> float:
        return self._clock().timestamp()


class Widths:
    """The most sessions (1w: weeks) of a request that works, by timeframe.

    Args:
        ledger: where widths are remembered.
        gateway: the gateway that they hold for.
        clock: this machine's time.
        learner: the widths that bring most bars a second; None to keep to the safe plan.
    """

    def __init__(
        self,
        ledger: Ledger,
        gateway: str,
        clock: Callable[[], datetime],
        learner: WidthLearner | None = None,
    ) -> None:
        self._ledger, self._gateway, self._clock = ledger, gateway, clock
        self.learner = learner
        self._before = ledger.widths.of(gateway)
        self._most = {
            timeframe: record.most
            for timeframe, record in self._before.items()
            if record.runs >= _ENOUGH_RUNS and clock() - record.learned_at < _valid_for(record)
        }
        self._unrecorded: set[Timeframe] = set()

    def __repr__(self) -> str:
        known = ", ".join(f"{timeframe} {most}" for timeframe, most in self._most.items())
        return f"Widths({known or 'as planned'})"

    def of(self, series: Series, calendar: SessionCalendar) -> "SeriesWidths | None":
        """Return the widths of a backfill of a series; None where nothing is learned for it.

        Days and weeks are requested by the year as it is.
        """
        if self.learner is None or not series.timeframe.is_intraday:
            return None
        return SeriesWidths(self, self.learner, kind_of(series, calendar))

    def most(self, timeframe: Timeframe) -> int | None:
        """Return the most sessions of one request, or None if no limit is known."""
        return self._most.get(timeframe)

    def narrow(self, timeframe: Timeframe, sessions: int, *, refused: str = "") -> bool:
        """Record that a request for so many sessions failed; return whether a narrower one exists.

        Several requests that were open at once narrow the width once. ``refused`` is the duration
        that the gateway called too long, empty after a timeout. After a refusal, days and weeks are
        requested by the year before fewer of them are: a gateway whose table of durations refuses
        more than a few days allows a year, and two days at a time 20 years take 2,500 requests.
        """
        fewer = narrower(timeframe, sessions)
        if fewer is None:
            return False
        known = self._most.get(timeframe)
        if known in {None, BY_THE_YEAR} and _is_counted(timeframe, sessions, refused):
            most = BY_THE_YEAR
        elif known is None or sessions <= known:
            most = fewer
        else:
            most = known
        self._most[timeframe] = most
        if refused:
            record = WidthRecord(most, REFUSED, self._clock())
            self._ledger.widths.record(self._gateway, timeframe, record)
            self._before[timeframe] = record
        else:
            self._unrecorded.add(timeframe)
        return True

    def answered(self, timeframe: Timeframe, sessions: int) -> None:
        """Record a response to so many sessions at once, which confirms or refutes a width."""
        before, most = self._before.get(timeframe), self._most.get(timeframe)
        if timeframe in self._unrecorded and most is not None and sessions <= most:
            self._unrecorded.discard(timeframe)
            runs = 1 if before is None else before.runs + 1
            record = WidthRecord(most, runs, self._clock())
            self._ledger.widths.record(self._gateway, timeframe, record)
        elif most is None and before is not None and sessions > before.most:
            del self._before[timeframe]
            self._ledger.widths.remove(self._gateway, timeframe)


class SeriesWidths:
    """The widths of one backfill: takes chunks out of its queue as wide as they should be.

    Args:
        widths: how wide requests may be.
        learner: how wide they should be.
        kind: the kind of the series.
    """

    def __init__(self, widths: Widths, learner: WidthLearner, kind: str) -> None:
        self._widths, self._learner, self._kind = widths, learner, kind
        self._timeframe = width_learning.timeframe_of(kind)
        self._open: list[Chunk] = []
        self._unmeasured: set[Chunk] = set()
        self._probes: set[Chunk] = set()
        self._since_probe = 0
        # What responses of several sessions left without bars at their ends, with their width.
        self._left: list[tuple[Interval, int]] = []

    @property
    def best(self) -> int | None:
        """How many sessions a request should have by now; None for as many as is safe."""
        best = self._learner.known(self._kind).planned(self._timeframe)
        most = self._widths.most(self._timeframe)
        return best if best is None or most is None else min(best, most)

    def is_wide(self, chunk: Chunk) -> bool:
        """Return whether a taken chunk has more sessions than the safe plan's."""
        safe = width_learning.safe_width(self._timeframe)
        return (
            chunk.sessions > safe
            and width_learning.step_of(self._timeframe, chunk.sessions) != safe
        )

    def is_trial(self, chunk: Chunk) -> bool:
        """Return whether the first request of a taken chunk tries whether a wider one works."""
        if chunk not in self._probes or chunk not in self._unmeasured:
            return False
        return chunk.sessions > (self.best or width_learning.safe_width(self._timeframe))

    def take(
        self, queue: deque[Chunk], need: Callable[[Interval], Need], *, concurrency: int
    ) -> tuple[Chunk | None, int]:
        """Take the next chunk out of a queue, cut or joined with those after it as is best now.

        A few chunks become probes, which are one step wider or narrower, where many sessions are
        missing beside each other.

        Args:
            queue: the chunks that are left, newest first; not empty.
            need: returns what planning needs of an interval now.
            concurrency: how many requests for bars are worth having open.

        Returns:
            The chunk, None if nothing is missing any more, and by how many the number of planned
            requests has grown.
        """
        planned, probe = len(queue), self._probe(queue, concurrency)
        is_probe = probe is not None and self._begin_probe(queue, need, probe)
        if not is_probe:
            best = self.best
            joined = [queue[0]] if best is None else self._joined(queue, best)
            is_too_wide = self.is_wide(queue[0]) if best is None else queue[0].sessions > best
            if len(joined) > 1 or is_too_wide:
                _replace(queue, joined, _planned(joined, need, best))
        grown = len(queue) - planned
        if not queue:
            return None, grown
        chunk = queue.popleft()
        self._open.append(chunk)
        self._unmeasured.add(chunk)
        self._since_probe += 1
        if is_probe:
            self._probes.add(chunk)
            self._since_probe = 0
        return chunk, grown

    def received(
        self, chunk: Chunk, bars: pa.Table, need: Need, *, took_s: float, at_once: int
    ) -> None:
        """Record a response with bars to a taken chunk; of its first one, the time counts.

        A response that lacks whole sessions at its ends says nothing about its width: the
        instrument may be thinly traded, or its data may begin there. Where another response then
        has bars of those sessions, it was cut short. Neither does one to a chunk that begins or
        ends inside a session: one that is still open may have no bar yet.

        Args:
            chunk: the chunk, as it was taken.
            bars: the bars of the response that are of use, at least one.
            need: what planning needs of the chunk.
            took_s: seconds from sending to the response.
            at_once: how many requests were in flight, of all processes.
        """
        keys = timestamps(bars)
        for left, width in list(self._left):
            if keys.searchsorted(micros(left.start)) < keys.searchsorted(micros(left.end)):
                self._left.remove((left, width))
                self._learner.failed(self._kind, width, "short")
        if chunk not in self._unmeasured:
            return
        self._unmeasured.discard(chunk)
        spans, step = (
            need.grid.spans_in(chunk.interval),
            width_learning.step_of(self._timeframe, chunk.sessions),
        )
        if len(spans) != chunk.sessions or step is None:
            return
        whole = chunk.interval
        if spans[0].interval.start < whole.start or whole.end < spans[-1].interval.end:
            return
        first, last = moment(keys[0]), moment(keys[-1])
        older = [span.interval for span in spans if span.interval.end <= first]
        newer = [span.interval for span in spans if span.interval.start > last]
        if not older and not newer:
            self._probes.discard(chunk)
            sample = WidthSample(bars.num_rows, took_s, at_once)
            self._learner.measured(self._kind, step, sample)
        for one in (older, newer):
            if one:
                self._left.append((Interval(one[0].start, one[-1].end), step))

    def failed(self, chunk: Chunk, *, is_refused: bool) -> bool:
        """Record that the first request of a taken chunk timed out or was refused for its length.

        Returns: whether it was a probe wider than the best width, whose timeout means no more than
        that it was too wide.
        """
        if chunk not in self._unmeasured:
            return False
        self._unmeasured.discard(chunk)
        self._probes.discard(chunk)
        step = width_learning.step_of(self._timeframe, chunk.sessions)
        if step is None:
            return False
        was_wider = self._learner.failed(self._kind, step, "refused" if is_refused else "")
        return was_wider and not is_refused

    def done(self, chunk: Chunk) -> None:
        """Record that a taken chunk is no longer in flight, whatever its outcome."""
        self._open.remove(chunk)
        self._unmeasured.discard(chunk)
        if chunk in self._probes:
            self._probes.discard(chunk)
            self._learner.without_outcome(self._kind, chunk.sessions)

    def _begin_probe(
        self, queue: deque[Chunk], need: Callable[[Interval], Need], width: int
    ) -> bool:
        """Put a probe of a width at the head of a queue, if so many sessions lie beside each other.

        Returns: whether it is there.
        """
        joined = self._joined(queue, width)
        if sum(chunk.sessions for chunk in joined) < width:
            return False
        chunks = _planned(joined, need, width)
        most = self._widths.most(self._timeframe)
        if not chunks or chunks[0].sessions != width:
            return False
        if not self._learner.begin(self._kind, width, most):
            return False
        _replace(queue, joined, chunks)
        return True

    def _probe(self, queue: deque[Chunk], concurrency: int) -> int | None:
        """Return the width of a probe that may be sent now, None without one."""
        most_probes = max(concurrency // _MOST_SHARE, 1)
        if len(self._probes) >= most_probes or self._since_probe < _MOST_SHARE - 1:
            return None
        width = self._learner.probe(self._kind, self._widths.most(self._timeframe))
        if width is None:
            return None
        missing = 0
        for chunk in queue:
            missing += chunk.sessions
            if missing >= _MANY * width:
                return width
        return None

    def _joined(self, queue: deque[Chunk], width: int) -> list[Chunk]:
        """Return the first chunks of a queue that lie beside each other and fill a width."""
        joined = [queue[0]]
        sessions, newest = queue[0].sessions, queue[0].interval
        for older in islice(queue, 1, None):
            start = older.interval.start
            if sessions >= width or older.interval.end < joined[-1].interval.start:
                break
            if not start < joined[-1].interval.start or any(
                start < one.interval.start < newest.start for one in self._open
            ):
                break  # narrower parts of a failed chunk: an older one is in flight already
            joined.append(older)
            sessions += older.sessions
        return joined


def _planned(
    joined: list[Chunk], need: Callable[[Interval], Need], width: int | None
) -> list[Chunk]:
    """Return the chunks of a width for the range of some chunks."""
    within = Interval(joined[-1].interval.start, joined[0].interval.end)
    return plan(replace(need(within), width=width))


def _replace(queue: deque[Chunk], joined: list[Chunk], chunks: list[Chunk]) -> None:
    """Replace the first chunks of a queue."""
    for _ in joined:
        queue.popleft()
    queue.extendleft(reversed(chunks))


def _is_counted(timeframe: Timeframe, sessions: int, duration: str) -> bool:
    """Return whether a duration counts more days or weeks than every table of durations allows."""
    counted = ALWAYS_COUNTED.get(timeframe)
    return counted is not None and sessions > counted and duration.endswith((" D", " W"))


def _valid_for(record: WidthRecord) -> timedelta:
    return _REFUSED_FOR if record.runs >= REFUSED else _VALID_FOR
