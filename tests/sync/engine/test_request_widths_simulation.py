"""The width of requests against modelled gateways: what is found, and what finding it costs.

A year of minutes of 20 stocks is requested by a fake clock, six requests at a time, through the
queue that a series run uses. The oracle knows the gateway, and keeps to the best allowed width.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.chunks import Chunk, Need, plan
from ktrdr_pipelines.domain.planning.width_learning import STEPS, kind_of, started, step_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.pacing.learned_widths import text_of
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.engine.request_widths import SeriesWidths, WidthLearner, Widths
from tests.support.fake_gateway import stock
from tests.support.width_memory import Memory

BARS = 390
TIMEOUT_S = 30.0
CONCURRENCY = 6
NOW = datetime(2026, 1, 5, tzinfo=UTC)
CALENDAR = calendar_named("XNYS.RTH")
YEAR = date(2025, 1, 1), date(2025, 12, 31)


@dataclass(frozen=True)
class Gateway:
    """A gateway whose responses take ``overhead_s`` and ``bar_s`` a bar to the power of ``growth``.

    From ``refused_from`` sessions on it refuses a duration, from ``timeout_from`` on it does not
    respond; it returns ``most_returned`` sessions at most, and a share ``cached`` at once.
    """

    overhead_s: float = 0.3
    bar_s: float = 0.0003
    growth: float = 1.0
    refused_from: int = 10_000
    timeout_from: int = 10_000
    most_returned: int = 10_000
    noise: float = 0.0
    cached: float = 0.0

    def mean_s(self, sessions: int) -> float:
        """Return the seconds of a response without noise; those of a timeout from its width on."""
        if sessions >= self.timeout_from:
            return TIMEOUT_S
        returned = min(sessions, self.most_returned)
        return self.overhead_s + BARS * self.bar_s * returned**self.growth

    def took_s(self, sessions: int, chance: random.Random) -> float:
        """Return the seconds of one response."""
        if chance.random() < self.cached:
            return 0.002
        return self.mean_s(sessions) * max(chance.gauss(1.0, self.noise), 0.05)

    def oracle_s(self, sessions: int) -> float:
        """Return the least seconds of one place for so many sessions at one allowed width."""
        allowed = [
            width
            for width in STEPS
            if width < min(self.refused_from, self.timeout_from)
            and width <= self.most_returned
            and (self.mean_s(width) <= 5.0 or width == 1)
        ]
        return min(self.mean_s(width) / width for width in allowed) * sessions * (1 - self.cached)


# Published: 1 D of 1m in 0.6 s, 5 D in 8.3 s, 6 D a timeout.
PUBLISHED = Gateway(overhead_s=0.0, bar_s=0.6 / BARS, growth=1.632, timeout_from=6)


class Run:
    """The loads of some symbols in one process; ``spent_s`` are the seconds of its requests."""

    def __init__(
        self, gateway: Gateway, memory: Memory, ledger: Ledger, *, symbols: range, seed: int
    ) -> None:
        self.gateway, self.chance = gateway, random.Random(seed)
        self.now_s = 0.0
        self.started = NOW
        learner = WidthLearner(memory, timeout_s=TIMEOUT_S, clock=self.clock)
        self.learner, self.widths = learner, Widths(ledger, "fake:1", self.clock, learner)
        self.spent_s, self.requests, self.lost_s = 0.0, 0, 0.0
        self.sessions = 0
        wanted = IntervalSet([interval_between(CALENDAR, Timeframe.M1, *YEAR)])
        self.covered: dict[int, IntervalSet] = dict.fromkeys(symbols, IntervalSet())
        self.wanted = wanted
        self.series: deque[tuple[int, SeriesWidths, deque[Chunk]]] = deque()
        for number in symbols:
            of_series = self.widths.of(Series(stock(f"S{number}"), Timeframe.M1), CALENDAR)
            assert of_series is not None
            queue = deque(plan(self.need(number, of_series)))
            self.sessions += sum(chunk.sessions for chunk in queue)
            self.series.append((number, of_series, queue))

    def clock(self) -> datetime:
        return self.started + timedelta(seconds=self.now_s)

    def need(self, symbol: int, widths: SeriesWidths, within: Interval | None = None) -> Need:
        return Need(
            CALENDAR,
            Timeframe.M1,
            self.wanted if within is None else self.wanted.clip(within),
            self.covered[symbol],
            NOW,
            most_days=1,
            most_sessions=self.widths.most(Timeframe.M1),
            width=widths.best,
        )

    def start(self, at_once: int, waits_s: float = 0.0) -> tuple[float, Callable[[], None]] | None:
        """Send the next request, which waits in a queue first.

        Returns: its seconds without the wait, and what to do then; None without a request.
        """
        for _ in range(len(self.series)):
            symbol, widths, queue = self.series[0]
            self.series.rotate(-1)
            while queue:
                chunk, _ = widths.take(
                    queue,
                    lambda within, symbol=symbol, widths=widths: self.need(symbol, widths, within),
                    concurrency=CONCURRENCY,
                )
                if chunk is not None:
                    return self.send(symbol, widths, queue, chunk, at_once, waits_s)
        return None

    def send(
        self,
        symbol: int,
        widths: SeriesWidths,
        queue: deque[Chunk],
        chunk: Chunk,
        at_once: int,
        waits_s: float,
    ) -> tuple[float, Callable[[], None]]:
        gateway, sessions = self.gateway, chunk.sessions
        is_refused = sessions >= gateway.refused_from
        is_late = not is_refused and sessions >= gateway.timeout_from
        took_s = 0.05 if is_refused else gateway.took_s(sessions, self.chance)
        took_s = TIMEOUT_S if is_late else took_s
        need = self.need(symbol, widths, chunk.interval)
        self.requests += 1

        def respond() -> None:
            nonlocal need
            self.spent_s += took_s
            if is_refused or is_late:
                self.lost_s += took_s
                if not widths.failed(chunk, is_refused=is_refused):
                    refused = chunk.duration if is_refused else ""
                    assert self.widths.narrow(Timeframe.M1, sessions, refused=refused)
                queue.extendleft(reversed(plan(self.need(symbol, widths, chunk.interval))))
            else:
                left = need.grid.spans_in(chunk.interval)
                after_s = waits_s + took_s
                while left:
                    returned = left[-gateway.most_returned :]
                    left = left[: -len(returned)]
                    starts = np.array([micros(one.interval.start) for one in returned])
                    ts = (starts[:, None] + np.arange(BARS) * 60_000_000).ravel()
                    bars = pa.table({"ts": pa.array(ts, pa.timestamp("us", tz="UTC"))})
                    widths.received(chunk, bars, need, took_s=after_s, at_once=at_once)
                    if left:
                        after_s = gateway.took_s(len(left), self.chance)
                        self.spent_s += after_s
                        self.requests += 1
                covered = self.need(symbol, widths, chunk.interval).gaps()
                assert not covered & self.covered[symbol]
                self.covered[symbol] |= covered
            widths.done(chunk)

        return took_s, respond


def drive(*runs: Run, places: Sequence[int] = (CONCURRENCY,), workers: int = 100) -> None:
    """Run processes that share the places of a gateway until all have loaded everything.

    The number of places changes with each response. Requests beyond the gateway's workers wait.
    """
    numbers, open_requests, most = count(), [], cycle(places)
    free_at_s = [0.0] * workers
    turns = deque(runs)
    now_s = max(run.now_s for run in runs)
    while True:
        at_most = next(most)
        while len(open_requests) < at_most:
            for _ in range(len(turns)):
                run = turns[0]
                turns.rotate(-1)
                run.now_s = now_s
                waits_s = max(free_at_s[0] - now_s, 0.0)
                sent = run.start(len(open_requests) // len(runs) + 1, waits_s)
                if sent is not None:
                    took_s, respond = sent
                    ends_s = now_s + waits_s + took_s
                    heapq.heapreplace(free_at_s, ends_s)
                    heapq.heappush(open_requests, (ends_s, next(numbers), run, respond))
                    break
            else:
                break
        if not open_requests:
            break
        now_s, _, run, respond = heapq.heappop(open_requests)
        run.now_s = now_s
        respond()
    for run in runs:
        run.learner.share()
        assert all(not run.need(n, w).gaps() for n, w, _ in run.series)  # nothing is lost


def share_of_oracle(*runs: Run) -> float:
    """Return what was spent as a multiple of the oracle's seconds."""
    return sum(run.spent_s for run in runs) / sum(
        run.gateway.oracle_s(run.sessions) for run in runs
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return an empty ledger."""
    return Ledger(tmp_path / "ledger.sqlite")


NOISY = 0.3
MODELS = {
    # 20 sessions bring 11 % more than 10, which a few noisy responses may not show.
    "wider is better up to the bound in seconds": (Gateway(), {10, 20}),
    "no difference": (Gateway(overhead_s=0.0), {1, 2, 5, 10, 20}),
    "wider is worse as published": (PUBLISHED, {1}),
    "timeout at 6": (replace(PUBLISHED, growth=1.0, overhead_s=1.0), {5}),
    "timeout at 40": (Gateway(bar_s=0.0001, timeout_from=40), {20}),
    "refusal at 6": (Gateway(refused_from=6), {5}),
    "short responses": (Gateway(most_returned=3), {2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("cached", [0.0, 0.1])
@pytest.mark.parametrize("model", MODELS)
def test_a_year_of_minutes_costs_little_more_than_the_oracles(
    ledger: Ledger, model: str, cached: float
) -> None:
    """Noise of 30 percent and some responses out of a cache lead to no other width.

    A timeout of the one probe that finds it costs its deadline besides, and how many responses come
    out of the cache is chance, which the oracle's mean has not.
    """
    gateway, expected = MODELS[model]
    memory = Memory()
    run = Run(
        replace(gateway, noise=NOISY, cached=cached), memory, ledger, symbols=range(20), seed=7
    )
    drive(run)
    assert memory.width in expected
    assert run.lost_s <= TIMEOUT_S
    lost = run.lost_s / gateway.oracle_s(run.sessions)
    assert share_of_oracle(run) - lost <= (1.2 if cached else 1.15 if lost else 1.1)


@pytest.mark.parametrize("model", ["wider is worse as published", "timeout at 6"])
def test_few_requests_show_that_wider_is_worse(ledger: Ledger, model: str) -> None:
    """Of two symbols, too, nothing is lost, and few requests are of another width."""
    gateway, expected = MODELS[model]
    memory = Memory()
    run = Run(replace(gateway, noise=NOISY), memory, ledger, symbols=range(2), seed=3)
    drive(run)
    assert memory.width <= max(expected)
    assert run.lost_s <= 2 * TIMEOUT_S
    (known,) = memory.known().values()
    assert sum(trial.sent for width, trial in known.trials.items() if width > known.width) <= 24


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("model", ["wider is worse as published", "timeout at 40"])
def test_a_queue_makes_no_width_look_better_than_it_is(
    ledger: Ledger, model: str, seed: int
) -> None:
    """All requests wait in it, for longer than a narrow one takes; what each then takes decides."""
    gateway, expected = MODELS[model]
    memory = Memory()
    run = Run(replace(gateway, noise=0.1), memory, ledger, symbols=range(12), seed=seed)
    drive(run, places=[4] * 12 + [9] * 24, workers=4)
    assert memory.width in expected
    lost = run.lost_s / gateway.oracle_s(run.sessions)
    assert share_of_oracle(run) - lost <= 1.3


@pytest.mark.slow
def test_two_processes_learn_one_width(ledger: Ledger) -> None:
    """Together they send hardly more probes than one does."""
    memory = Memory()
    gateway = Gateway(noise=NOISY)
    runs = [Run(gateway, memory, ledger, symbols=range(n, n + 10), seed=n) for n in (0, 10)]
    drive(*runs)
    assert memory.width in {10, 20}
    assert share_of_oracle(*runs) <= 1.1


def test_after_a_week_the_width_is_learned_anew(ledger: Ledger) -> None:
    """A gateway that was fast with wide requests has become as slow as the published one."""
    memory = Memory()
    drive(Run(Gateway(), memory, ledger, symbols=range(2), seed=1))
    assert memory.width >= 10
    later = Run(PUBLISHED, memory, ledger, symbols=range(3), seed=1)
    later.started += timedelta(days=7, hours=1)
    (_, widths, _) = later.series[0]
    assert widths.best is None
    drive(later)
    assert memory.width == 1
    assert share_of_oracle(later) <= 1.1


def test_within_a_week_a_width_that_no_longer_works_is_left(ledger: Ledger) -> None:
    """Timeouts step it down, without a lost session."""
    memory = Memory()
    drive(Run(Gateway(), memory, ledger, symbols=range(2), seed=1))
    later = Run(Gateway(timeout_from=6), memory, ledger, symbols=range(2), seed=1)
    later.started += timedelta(days=1)
    drive(later)
    assert memory.width == 5


def test_a_session_that_has_just_opened_makes_no_response_short(ledger: Ledger) -> None:
    """The first response has no bar of it yet; a later one has."""
    series = Series(stock("S0"), Timeframe.M1)
    now = datetime(2025, 12, 31, 14, 50, tzinfo=UTC)
    memory = Memory()
    learner = WidthLearner(memory, timeout_s=TIMEOUT_S, clock=lambda: now)
    kind = kind_of(series, CALENDAR)
    memory.texts[kind] = text_of(replace(started(kind, now.timestamp()), width=5))
    widths = Widths(ledger, "fake:1", lambda: now, learner).of(series, CALENDAR)
    assert widths is not None
    wanted = IntervalSet([interval_between(CALENDAR, Timeframe.M1, date(2025, 12, 1), YEAR[1])])
    wanted |= IntervalSet([Interval(now - timedelta(hours=1), now)])

    def need(within: Interval | None = None) -> Need:
        part = wanted if within is None else wanted.clip(within)
        return Need(CALENDAR, Timeframe.M1, part, IntervalSet(), now, most_days=1, width=5)

    def bars(*starts: datetime) -> pa.Table:
        return pa.table({"ts": pa.array(starts, pa.timestamp("us", tz="UTC"))})

    chunk, _ = widths.take(deque(plan(need())), need, concurrency=CONCURRENCY)
    assert chunk is not None
    spans = [one.interval for one in need().grid.spans_in(chunk.interval)]
    assert (len(spans), chunk.interval.end < spans[-1].end) == (5, True)
    before = bars(*(one.start for one in spans[:-1]))
    widths.received(chunk, before, need(chunk.interval), took_s=1.0, at_once=1)
    widths.received(chunk, bars(spans[-1].start), need(spans[-1]), took_s=1.0, at_once=1)
    widths.done(chunk)
    learner.share()
    assert memory.width == 5


@pytest.mark.parametrize(
    ("timeframe", "sessions", "step"),
    [
        *((Timeframe.M1, 1, 1), (Timeframe.M1, 2, 2), (Timeframe.M1, 3, None)),
        *((Timeframe.M5, 5, 5), (Timeframe.M5, 7, 5), (Timeframe.M5, 8, None)),
        *((Timeframe.H1, 22, 20), (Timeframe.H1, 30, 20), (Timeframe.H1, 31, None)),
    ],
)
def test_requests_of_the_safe_plan_are_measured(
    timeframe: Timeframe, sessions: int, step: int | None
) -> None:
    """A week has seven sessions where a market never closes; they count as five do."""
    assert step_of(timeframe, sessions) == step
