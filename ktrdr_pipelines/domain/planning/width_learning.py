"""Learn how many sessions one request should hold: the width that brings the most bars a second.

A *width* is a number of sessions a request. It is learned for a gateway and a *kind* of series (bar
size, type of instrument, hours of a session, what a bar is made of), from the safe plan's width one
step at a time, upwards and then downwards. A few requests, *probes*, have the width of the next
step while all others keep the best known one, so that both are compared under the same load. What
counts is bars a second of the gateway: the seconds from sending to the response, less those that
requests wait there in a queue. The wait is the same for all widths, so that a wide request would
look better in a long queue than it is: it is what responses to the best width take longer on
average than where fewer requests are in flight. While nothing is known of fewer, no wider one is
preferred during the first hundred responses, in which the number in flight is found.

Whether wider is better differs between gateways. Published for a real one: ``1 D`` of 1m took 0.6 s
and ``5 D`` 8.3 s, ``6 D`` timed out (ib_insync #268, grade C as in ``limits``); another returned
17,970 bars in 5.4 s (LEAN IB PR #62).

Not here: cutting chunks (``domain.planning.chunks``), the run's side (``sync.engine``), where it is
remembered (``ib.pacing.learned_widths``).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol, Self

import numpy as np

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry

STEPS: Final = (1, 2, 5, 10, 20, 50, 100, 200)
"""The widths that are compared, in sessions: in days, the widest lies within the table of steps."""

MOST_REQUEST_S: Final = 5.0
"""Seconds that a request may take and still be widened: what a killed process has in flight, and
loses, is about that much for each request."""

VALID_S: Final = IbLimitsRegistry.LEARNED_WIDTH_S.value
"""Seconds that a learned width is remembered; then learning begins at the safe plan's width."""

_SAMPLES = 16
_PROBES_A_ROUND = 24
_PROBES_AT_FIRST, _PROBES_AT_ONCE = 1, 4
"""Open probes until the first has a response, which may be a timeout, and then."""

_PROBE_LOST_S = 600.0
"""Seconds after which a probe without an outcome, of a killed process, no longer counts as open."""

_SHORTEST_S = 0.001
_RETRY_S, _RETRY_FACTOR = 3_600.0, 8.0
_FAILURES = 2
"""Timeouts in a row at the best width after which it is stepped down."""

_CACHED = 0.25
"""A response in less than this share of the typical time came from a cache."""

_SERVED = 0.05
"""Share of the seconds of responses that are not spent in a queue, at least."""

_LOAD_RESPONSES, _LOAD_MEMORY, _LOAD_AGE = 6, 24, 200
"""Fewest responses from which the mean time under a load is trusted, how many it covers, and after
how many others it no longer holds."""

_UNQUEUED = 0.6
"""Share of the seconds under a load that a response under less takes where nothing waits."""

_ENOUGH_RESPONSES = 100
"""Responses after which the number in flight has been found, so that few requests wait."""

_TRIMMED = 0.25
"""Share of the samples that is left out at either end: a response out of a cache, and a hiccup."""

_ALIKE = 1.25
"""Factor up to which a number of sessions counts for the step below it."""

_PLAUSIBLE = 0.5
"""Share of the best width's seconds that a response to a wider request takes at least."""

_LOAD_STEP = 1.5
"""Factor by which the numbers in flight of one load differ at most."""

_HALF = 2
"""How many loads lower fewer than half as many requests are in flight."""

_FEWEST = 3
"""Fewest responses of the best width before another is compared with it."""

_CLEARLY_WORSE = 0.67
_DECISIONS = ((3, _CLEARLY_WORSE, math.inf), (8, 0.9, 1.12), (_SAMPLES, 1.05, 1.05))
"""From so many probes on, a gain up to the second value rejects a width, one above the third
accepts it. Clear differences need few probes, small ones many: samples differ by 30 percent."""

_FEW_PROBES, _CLEARLY_BETTER = 2, 1.3
"""So few probes accept a width if the slowest of them is better by that factor: one response out of
a cache shows nothing."""


@dataclass(frozen=True, slots=True)
class WidthSample:
    """One response: its useful bars, its seconds from sending on, and the requests in flight."""

    bars: int
    took_s: float
    at_once: int = 1

    def bar_s(self, *, waited_s: float = 0.0) -> float:
        """Return the seconds a bar, without those that requests wait in a queue.

        One that waited less than others may have less than none: only their mean is of use.
        """
        return (max(self.took_s, _SHORTEST_S) - waited_s) / max(self.bars, 1)


@dataclass(frozen=True, slots=True)
class TimeUnderLoad:
    """The mean seconds of ``count`` responses under one load; ``last`` is the number of the last.

    Responses out of a cache are left out.
    """

    count: int
    mean_s: float
    last: int

    def after(self, took_s: float, last: int) -> Self:
        """Return the mean after one more response.

        So many in a row as no cache explains come from a gateway that has become that fast.
        """
        is_cached = self.count >= _FEWEST and took_s < self.mean_s * _CACHED
        if is_cached and last - self.last < _SAMPLES:
            return self
        before = TimeUnderLoad(0, took_s, last) if is_cached else self
        count = min(before.count + 1, _LOAD_MEMORY)
        mean_s = before.mean_s + (took_s - before.mean_s) / count
        return replace(self, count=count, mean_s=mean_s, last=last)


@dataclass(frozen=True, slots=True)
class Trial:
    """What requests of one width have shown.

    ``probes`` are the times at which open probes were sent, in seconds since 1970, ``sent`` counts
    those of this round. A width that was rejected is not tried again until ``retry_at``; ``why``
    says the reason and is empty for one that was not. ``failures`` are timeouts in a row.
    ``loads`` are mean times of responses by the load under which they were requested, ``responses``
    how many there were.
    """

    samples: tuple[WidthSample, ...] = ()
    probes: tuple[float, ...] = ()
    sent: int = 0
    retry_at: float = 0.0
    rejections: int = 0
    failures: int = 0
    why: str = ""
    loads: Mapping[int, "TimeUnderLoad"] = field(default_factory=dict)
    responses: int = 0

    @property
    def bars_per_s(self) -> float:
        """Bars a second of one request in flight; 0 if nothing was measured."""
        return 1 / _trimmed_mean(one.bar_s() for one in self.samples) if self.samples else 0.0

    @property
    def took_s(self) -> float:
        """Seconds of a response; 0 if nothing was measured."""
        return _trimmed_mean(one.took_s for one in self.samples) if self.samples else 0.0

    @property
    def at_once(self) -> float:
        """How many requests were typically in flight, of all processes."""
        return float(np.median([one.at_once for one in self.samples])) if self.samples else 0.0

    def shows_no_queue(self, load: int) -> bool:
        """Return whether responses took hardly longer under a load than under half of it.

        A single response under less shows that; in a queue it takes less than half of the time.
        """
        less = [one.mean_s for key, one in self.loads.items() if key <= load - _HALF]
        more = [
            one.mean_s for key, one in self.loads.items() if key >= load and one.count >= _FEWEST
        ]
        return bool(less and more) and max(less) >= _UNQUEUED * min(more)

    def wait_s(self, at_once: int) -> float | None:
        """Return the seconds that a request waits in the gateway's queue, on average.

        None if too little is known of responses with about so many requests in flight.
        """
        load = _load_of(at_once)
        own = self.loads.get(load)
        if own is None or own.count < _FEWEST or own.last < self.responses - _LOAD_AGE:
            return None
        return own.mean_s - min([own.mean_s, *self.less_than(load)])

    def less_than(self, load: int) -> list[float]:
        """Return the mean seconds of responses under lesser loads, where they can be trusted."""
        oldest = self.responses - _LOAD_AGE
        return [
            one.mean_s
            for key, one in self.loads.items()
            if key < load and one.count >= _LOAD_RESPONSES and one.last >= oldest
        ]

    def served_s(self, samples: Iterable[WidthSample]) -> list[float]:
        """Return the seconds a bar of samples, without the wait at this width under their load."""
        waits_s = {n: self.wait_s(n) for n in {one.at_once for one in samples}}
        return [
            one.bar_s(waited_s=waited_s)
            for one in samples
            if (waited_s := waits_s[one.at_once]) is not None
        ]

    def after(self, sample: WidthSample) -> Self:
        """Return the trial after one more response."""
        load, last = _load_of(sample.at_once), self.responses + 1
        own = self.loads.get(load, TimeUnderLoad(0, sample.took_s, last))
        loads = {**self.loads, load: own.after(sample.took_s, last)}
        samples = (*self.samples, sample)[-_SAMPLES:]
        return replace(self, samples=samples, failures=0, loads=loads, responses=last)

    def open_probes(self, now_s: float) -> int:
        """Return how many probes have no outcome yet."""
        return sum(0 <= now_s - at < _PROBE_LOST_S for at in self.probes)


@dataclass(frozen=True, slots=True)
class LearnedWidth:
    """What is known of one kind of series at one gateway: the best width, and all trials.

    ``since`` is when learning began and ``learned_at`` when the width was last found to be the
    best, both in seconds since 1970.
    """

    width: int
    since: float
    learned_at: float
    trials: Mapping[int, Trial] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial of the best width."""
        return self.trials.get(self.width, Trial())

    @property
    def responses(self) -> int:
        """How many responses there were, of any width."""
        return sum(trial.responses for trial in self.trials.values())

    def knows_wait(self, at_once: int) -> bool:
        """Return whether it is known how long requests wait, with so many in flight."""
        load = _load_of(at_once)
        # A wait shows most beside the seconds of the narrowest requests.
        narrowest = self.trials[min(self.trials)]
        return not load or bool(self.best.less_than(load)) or narrowest.shows_no_queue(load)

    def planned(self, timeframe: Timeframe) -> int | None:
        """Return the width that requests are planned with; None for the safe plan's."""
        return None if self.width == safe_width(timeframe) else self.width

    @property
    def rates(self) -> dict[int, float]:
        """Bars a second of one request in flight, by each width that was measured."""
        return {
            width: trial.bars_per_s for width, trial in sorted(self.trials.items()) if trial.samples
        }

    @property
    def undecided(self) -> tuple[int, ...]:
        """The measured widths that too few responses compare with the best one yet."""
        return tuple(
            width for width in self.rates if width != self.width and not self.trials[width].why
        )

    @property
    def learned_on(self) -> datetime:
        """When the width was last found to be the best."""
        return datetime.fromtimestamp(self.learned_at, UTC)

    def is_valid(self, now_s: float) -> bool:
        """Return whether it is not too old; one from the future was recorded by a wrong clock."""
        return 0 <= now_s - self.since < VALID_S


class WidthMemory(Protocol):
    """Where learned widths are remembered, for all processes that use the same gateway."""

    def known(self) -> Mapping[str, LearnedWidth]:
        """Return what is remembered, by kind; reading creates nothing."""
        ...

    def update(
        self, kind: str, change: Callable[[LearnedWidth | None], LearnedWidth]
    ) -> LearnedWidth:
        """Replace what is remembered of a kind, as one step among all processes; return it."""
        ...

    def close(self) -> None:
        """Close what is open; the next use opens it again."""
        ...


def kind_of(series: Series, calendar: SessionCalendar) -> str:
    """Return the kind of a series, among which a width is shared, such as ``1m STK 6.5h TRADES``.

    The hours are those of a typical session by the calendar: stocks in regular and in extended
    hours, currencies and futures differ in bars a session by a factor of up to four.
    """
    hours = 0.0
    if len(calendar.opens):
        typical_us = float(np.median(calendar.closes[-250:] - calendar.opens[-250:]))
        hours = round(typical_us / 1_800_000_000) / 2
    instrument = series.instrument
    what = f"{instrument.sec_type} {hours:g}h {instrument.what_to_show}"
    return f"{series.timeframe} {what}"


def timeframe_of(kind: str) -> Timeframe:
    """Return the timeframe of a kind of series."""
    return Timeframe(kind.split(maxsplit=1)[0])


def safe_width(timeframe: Timeframe) -> int:
    """Return the widest step within the safe plan of an intraday timeframe."""
    days = IbLimitsRegistry.SAFE_DAYS.value[timeframe.value]
    sessions = days if days == 1 else days * 5 // 7
    return max(step for step in STEPS if step <= sessions)


def step_of(timeframe: Timeframe, sessions: int) -> int | None:
    """Return the step that requests of so many sessions count for, None between two of them.

    The safe plan counts days: 30 of them have 20 to 22 sessions, or 30 of a market that never
    closes, and a week has 5 to 7.
    """
    safe = safe_width(timeframe)
    if safe <= sessions <= IbLimitsRegistry.SAFE_DAYS.value[timeframe.value]:
        return safe
    step = max(step for step in STEPS if step <= max(sessions, 1))
    return step if sessions <= step * _ALIKE else None


def started(kind: str, now_s: float) -> LearnedWidth:
    """Return what is known before anything was measured: the safe plan's width."""
    return LearnedWidth(safe_width(timeframe_of(kind)), now_s, now_s)


@dataclass(frozen=True, slots=True)
class WidthBounds:
    """What bounds the widths that may be tried.

    ``longest_s`` is how long a wider request may take, ``most`` how many sessions one may have
    where the gateway has refused more.
    """

    longest_s: float
    most: int | None = None

    @classmethod
    def of(cls, timeout_s: float) -> Self:
        """Return the bounds for a deadline of requests: a third of it, at most a few seconds."""
        return cls(min(timeout_s / 3, MOST_REQUEST_S))


def candidate(known: LearnedWidth, now_s: float, bounds: WidthBounds) -> int | None:
    """Return the width to compare with the best one next; None if nothing is to be tried now.

    First the next step up, if a request of it would end in time at the rate at which seconds have
    grown so far (at least in proportion), then the next step down.
    """
    best = known.best
    if len(best.samples) < _FEWEST:
        return None
    position = STEPS.index(known.width)
    if position + 1 < len(STEPS):
        wider = STEPS[position + 1]
        is_allowed = bounds.most is None or wider <= bounds.most
        is_quick = _expected_s(known, wider) <= bounds.longest_s
        if is_allowed and is_quick and _may_try(known, wider, now_s):
            return wider
    if position and _may_try(known, STEPS[position - 1], now_s):
        return STEPS[position - 1]
    return None


def may_probe(known: LearnedWidth, now_s: float, bounds: WidthBounds) -> int | None:
    """Return the width of a probe that may be sent now; None where there are enough."""
    width = candidate(known, now_s, bounds)
    if width is None:
        return None
    trial = _round_of(known, width)
    most = _PROBES_AT_ONCE if trial.samples else _PROBES_AT_FIRST
    return width if trial.open_probes(now_s) < most else None


def probed(known: LearnedWidth, width: int, now_s: float) -> LearnedWidth:
    """Return what is known after a probe was sent."""
    trial = _round_of(known, width)
    recent = tuple(at for at in trial.probes if 0 <= now_s - at < _PROBE_LOST_S)
    return _with(known, width, replace(trial, probes=(*recent, now_s), sent=trial.sent + 1))


def without_outcome(known: LearnedWidth, width: int, now_s: float) -> LearnedWidth:
    """Return what is known after a probe whose response says nothing about its width."""
    return _judged(_with(known, width, _closed(known, width)), width, now_s, None)


def measured(
    known: LearnedWidth, width: int, sample: WidthSample, *, now_s: float, bounds: WidthBounds
) -> LearnedWidth:
    """Return what is known after a response to a request of some width."""
    known = _with(known, width, _closed(known, width).after(sample))
    other = candidate(known, now_s, bounds) if width == known.width else width
    return known if other is None else _judged(known, other, now_s, bounds)


def timed_out(known: LearnedWidth, width: int, now_s: float) -> LearnedWidth:
    """Return what is known after a timeout: a probe is rejected, the best width stepped down.

    One timeout at the best width may be a hiccup of the gateway; two in a row are not.
    """
    trial = _closed(known, width)
    trial = replace(trial, failures=trial.failures + 1)
    known = _with(known, width, trial)
    if width == known.width and trial.failures < _FAILURES:
        return known
    return _rejected(known, width, now_s, "timeout")


def refused(known: LearnedWidth, width: int, now_s: float, why: str) -> LearnedWidth:
    """Return what is known after proof that a width does not work, such as a refusal of it."""
    return _rejected(_with(known, width, _closed(known, width)), width, now_s, why)


def _may_try(known: LearnedWidth, width: int, now_s: float) -> bool:
    trial = known.trials.get(width)
    return trial is None or not trial.why or now_s >= trial.retry_at


def _round_of(known: LearnedWidth, width: int) -> Trial:
    """Return the trial of a width, as it stands in this round: one that is retried begins anew."""
    trial = known.trials.get(width, Trial())
    return Trial(rejections=trial.rejections) if trial.why else trial


def _closed(known: LearnedWidth, width: int) -> Trial:
    """Return the trial of a width with one open probe less."""
    trial = known.trials.get(width, Trial())
    return replace(trial, probes=trial.probes[1:])


def _with(known: LearnedWidth, width: int, trial: Trial) -> LearnedWidth:
    return replace(known, trials={**known.trials, width: trial})


def _judged(
    known: LearnedWidth, width: int, now_s: float, bounds: WidthBounds | None
) -> LearnedWidth:
    """Compare a width that is being tried with the best one, and decide if there is enough."""
    trial = known.trials.get(width, Trial())
    if width == known.width or trial.why or width not in STEPS or not trial.sent:
        return known
    gain, verdict = _compared(known, width) if bounds is not None else (1.0, 0)
    if verdict < 0:
        # A small loss may have been chance, and is tried again sooner.
        return _rejected(known, width, now_s, "slower", is_clear=gain <= _CLEARLY_WORSE)
    if verdict > 0 and bounds is not None:
        if width > known.width and trial.took_s > bounds.longest_s:
            return _rejected(known, width, now_s, "too long", is_clear=True)
        return _accepted(known, width, now_s)
    may_wait = known.responses < _ENOUGH_RESPONSES and trial.responses >= _FEW_PROBES
    is_enough = trial.sent >= _PROBES_A_ROUND * (2 if may_wait else 1)
    if is_enough and not trial.open_probes(now_s):
        return _rejected(known, width, now_s, "unclear")
    return known


def _compared(known: LearnedWidth, width: int) -> tuple[float, int]:
    """Return the bars a second of a width, of the best one's, and what they show.

    That is 1 if it is better than the best one, -1 if it is worse, 0 if there are too few samples.
    """
    best, is_wider = known.best, width > known.width
    # A wider request that took much less time was served out of a cache.
    least_s = best.took_s * _PLAUSIBLE if is_wider else 0.0
    samples = [one for one in known.trials[width].samples if one.took_s >= least_s]
    bars_s, best_s = (best.served_s(each) for each in (samples, best.samples))
    count = len(bars_s)
    rows = [one for one in ((_FEW_PROBES, 0.0, math.inf), *_DECISIONS) if count >= one[0]]
    if not rows or not best_s:
        return 1.0, 0
    bar_s, best_bar_s = _mean_bar_s(bars_s, samples), _mean_bar_s(best_s, best.samples)
    gain, slowest = best_bar_s / bar_s, best_bar_s / max(bar_s, *bars_s)
    verdict = 0
    if gain <= max(worst for _, worst, _ in rows):
        verdict = -1
    elif slowest > _CLEARLY_BETTER or gain > min(good for _, _, good in rows):
        verdict = 1
    # The wider one seems to be better than it is while both wait in a queue.
    if is_wider == (verdict > 0) and known.responses < _ENOUGH_RESPONSES:
        loads = {one.at_once for one in (*samples, *best.samples)}
        verdict = verdict if all(map(known.knows_wait, loads)) else 0
    return gain, verdict


def _mean_bar_s(served_s: Sequence[float], samples: Sequence[WidthSample]) -> float:
    """Return the mean seconds a bar of samples, of which hardly all were spent in a queue."""
    return max(_trimmed_mean(served_s), _SERVED * _trimmed_mean(one.bar_s() for one in samples))


def _accepted(known: LearnedWidth, width: int, now_s: float) -> LearnedWidth:
    """Make a width the best; the one before it was slower, which is checked once more later."""
    before = known.best
    pause_s = min(_RETRY_S * _RETRY_FACTOR**before.rejections, VALID_S)
    before = replace(
        before,
        retry_at=now_s + pause_s,
        rejections=before.rejections + 1,
        why="slower",
        probes=(),
    )
    trials = {**known.trials, known.width: before, width: replace(known.trials[width], probes=())}
    return replace(known, width=width, learned_at=now_s, trials=trials)


def _rejected(
    known: LearnedWidth, width: int, now_s: float, why: str, *, is_clear: bool | None = None
) -> LearnedWidth:
    """Reject a width for the rest of the week, or for a while; from the best width step down."""
    trial = known.trials.get(width, Trial())
    if trial.why and now_s < trial.retry_at:
        return known  # one of several that failed at once
    pause_s = _RETRY_S * _RETRY_FACTOR**trial.rejections
    if is_clear or (is_clear is None and why not in {"timeout", "unclear"}):
        pause_s = VALID_S
    trial = replace(
        trial,
        probes=(),
        retry_at=now_s + min(pause_s, VALID_S),
        rejections=trial.rejections + 1,
        why=why,
    )
    is_best = width == known.width
    known = replace(_with(known, width, trial), learned_at=now_s)
    return _stepped_down(known, width) if is_best and width > STEPS[0] else known


def _stepped_down(known: LearnedWidth, width: int) -> LearnedWidth:
    """Return what is known with the next narrower width as the best, to be measured anew."""
    narrower = STEPS[max(STEPS.index(width) - 1, 0)]
    trial = Trial(rejections=known.trials.get(narrower, Trial()).rejections)
    return replace(_with(known, narrower, trial), width=narrower)


def _expected_s(known: LearnedWidth, width: int) -> float:
    """Return the seconds that a wider request is expected to take.

    They have grown by some power of the width from the step below the best one; a power below 1,
    where most of a request is overhead, is not relied on.
    """
    best, power = known.best, 1.0
    position = STEPS.index(known.width)
    before = known.trials.get(STEPS[position - 1]) if position else None
    if before is not None and before.samples and best.took_s > before.took_s > 0:
        growth = math.log(best.took_s / before.took_s)
        power = max(growth / math.log(known.width / STEPS[position - 1]), power)
    expected_s: float = best.took_s * (width / known.width) ** power
    return expected_s


def _load_of(at_once: int) -> int:
    """Return the number of a load, within which numbers in flight differ by a third or so."""
    return int(math.log(max(at_once, 1), _LOAD_STEP))


def _trimmed_mean(values: Iterable[float]) -> float:
    ordered = sorted(values)
    cut = int(len(ordered) * _TRIMMED)
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)
