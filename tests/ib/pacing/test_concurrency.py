"""The number of requests in flight, against gateways whose latency grows with load."""

import asyncio
import heapq
import statistics
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.docs.pictures.loaded_gateway import (
    Adaptive,
    Fixed,
    LoadedGateway,
    simulate,
    throughput,
)
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.concurrency import (
    MOST,
    REST_S,
    Concurrency,
    Sample,
    rested,
    troubled,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import Pacing, pacing_of
from ktrdr_pipelines.ib.pacing.shared_state import SharedRecord
from ktrdr_pipelines.ib.source import open_source
from ktrdr_pipelines.limits import IbLimitsRegistry


def share(gateway: LoadedGateway, *, seconds: float = 300.0) -> float:
    """Return the throughput of a cold start, as a share of the best fixed width's."""
    widths = {min(max(gateway.workers + more, 1), MOST) for more in (0, 1)}
    best = max(throughput(simulate(gateway, Fixed(one), seconds=seconds)) for one in widths)
    return throughput(simulate(gateway, Adaptive(), seconds=seconds)) / best


@pytest.mark.parametrize(
    ("workers", "noise", "load"),
    [
        (1, 0.0, 0.1),
        (1, 0.3, 0.3),
        (2, 0.3, 0.0),
        (2, 0.0, 0.3),
        (3, 0.0, 0.1),
        (3, 0.3, 0.3),
        (6, 0.3, 0.1),
        (6, 0.0, 0.3),
        (12, 0.3, 0.0),
        (12, 0.0, 0.1),
        (24, 0.3, 0.3),
    ],
)
def test_a_cold_start_is_near_the_best(workers: int, noise: float, load: float) -> None:
    """Five minutes from a cold start bring nearly what the best fixed width does."""
    least = 0.95 if workers in {3, 6, 12} else 0.92
    assert share(LoadedGateway(workers, noise, load)) >= least


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(1.0,), (0.5, 1.0, 3.0)])
@pytest.mark.parametrize("load", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("workers", [1, 2, 3, 6, 12, 24])
def test_every_gateway_is_used_near_its_best(
    workers: int, noise: float, load: float, sizes: tuple[float, ...]
) -> None:
    """Over five seeds, of requests of one size and of several; single runs stay close to it."""
    shares = [share(LoadedGateway(workers, noise, load, sizes, seed=seed)) for seed in range(5)]
    strict = 0.95 if workers in {3, 6, 12} else 0.90
    # Requests of several sizes behind a queue differ little, so their sizes are learned slower.
    allowed = 0.03 if len(sizes) > 1 or load > 0.1 else 0.0
    assert statistics.mean(shares) >= strict - allowed
    assert min(shares) >= strict - 0.16


@pytest.mark.parametrize("batch", [50, 300])
def test_sizes_may_follow_one_another_in_batches(batch: int) -> None:
    """One timeframe after the other: a size that comes back is known, and so is the queue."""
    shares = []
    for seed in range(4):
        gateway = LoadedGateway(12, 0.45, 0.1, (0.3, 1.0, 5.0), batch=batch, seed=seed)
        shares.append(throughput(simulate(gateway, Adaptive(), seconds=900)) / 12)
    assert statistics.mean(shares) >= 0.88
    assert min(shares) >= 0.8


@pytest.mark.parametrize(("workers", "noise"), [(44, 0.3), (200, 0.0)])
def test_great_capacities_are_used_up_to_the_bound(workers: int, noise: float) -> None:
    """Never more than 45 are in flight, and nearly all of those."""
    progress = simulate(LoadedGateway(workers, noise), Adaptive(), seconds=300)
    assert max(each.limit for each in progress) <= 45
    assert throughput(progress, 100) >= 0.95 * min(workers, 45)


@pytest.mark.parametrize(("workers", "noise"), [(1, 0.0), (4, 0.3), (8, 0.0), (12, 0.3)])
def test_requests_do_not_queue_for_long(workers: int, noise: float) -> None:
    """Where a queue costs no throughput it stays short: its latency is wasted."""
    progress = simulate(LoadedGateway(workers, noise), Adaptive(), seconds=600)
    late = [each.limit for each in progress if each.at > 150]
    assert 0.9 * workers <= statistics.mean(late) <= 1.7 * workers


@pytest.mark.parametrize(
    ("first", "then", "within_s"), [(12, 3, 60), (3, 12, 120), (24, 6, 150), (6, 24, 120)]
)
def test_a_change_of_capacity_is_followed(first: int, then: int, within_s: int) -> None:
    """The width follows a capacity that grows or falls, with noise and a slow-down."""
    gateway = LoadedGateway(first, 0.3, 0.1, changes=((150.0, then),), seed=2)
    progress = simulate(gateway, Adaptive(), seconds=450)
    assert throughput(progress, 0, 150) >= 0.9 * first
    assert throughput(progress, 150 + within_s, 450) >= 0.92 * then


def test_a_lasting_slowdown_is_no_queue() -> None:
    """Where every request takes longer whatever the width, the width recovers."""
    limiter = Adaptive()
    simulate(LoadedGateway(8, 0.3), limiter, seconds=120)
    slow = LoadedGateway(8, 0.3, sizes=(4.0,))
    progress = simulate(slow, limiter, begin=121.0, seconds=2000)
    assert throughput(progress, 1121) >= 0.9 * 8


@pytest.mark.parametrize("cached", [0.3, 0.7])
@pytest.mark.parametrize("workers", [1, 3, 12])
def test_cached_responses_count_for_nothing(workers: int, cached: float) -> None:
    """Responses at once, also the first ones, do not pass for those of an idle gateway."""
    gateway = LoadedGateway(workers, 0.3, 0.1, cached=cached, seed=2)
    progress = simulate(gateway, Adaptive(), seconds=300)
    assert throughput(progress) >= 0.93 * workers


@dataclass
class Interrupted(Adaptive):
    """Learns from a gateway that sends nothing for some seconds, once."""

    begin: float = 0.0
    seconds: float = 0.0

    def _seen_at(self, at: float) -> float:
        return at + self.seconds if at > self.begin else at

    def limit(self, now: float) -> int:
        """Return how many requests may be in flight."""
        return super().limit(self._seen_at(now))

    def take(self, size: str, sample: Sample) -> None:
        """Learn from a response, which comes later by the interruption if that was before it."""
        sent_at, at = self._seen_at(sample.sent_at), self._seen_at(sample.at)
        super().take(size, Sample(sent_at, at, sample.at_once))


def interrupted_share(workers: int, *, begin: float, seconds: float) -> float:
    """Return the throughput of a cold start up to 80 requests a worker, without the interruption.

    It is a share of the best, and a mean over seeds, of a gateway whose requests take 0.3 s.
    """
    shares = []
    for seed in range(12):
        gateway = LoadedGateway(workers, 0.3, 0.1, sizes=(0.3,), seed=seed)
        limiters = Fixed(workers), Interrupted(begin=begin, seconds=seconds)
        best, mine = (
            simulate(gateway, each, seconds=100)[80 * workers - 1].at for each in limiters
        )
        shares.append(best / mine)
    return statistics.mean(shares)


@pytest.mark.parametrize("seconds", [1.0, 10.0])
@pytest.mark.parametrize("workers", [1, 3, 6, 12])
def test_an_interruption_is_no_queue(workers: int, seconds: float) -> None:
    """What was in flight while a gateway or the machine stood still says nothing of the width."""
    usual = interrupted_share(workers, begin=1000.0, seconds=0.0)
    assert interrupted_share(workers, begin=12.0, seconds=seconds) >= usual - 0.03


@pytest.mark.parametrize(
    ("workers", "seconds", "least"), [(3, 1.0, 0.68), (3, 5.0, 0.68), (6, 1.0, 0.85), (6, 5.0, 0.9)]
)
def test_a_cold_gateway_is_found_out(workers: int, seconds: float, least: float) -> None:
    """Where the first responses take seconds more, later ones show that those were no idle ones."""
    assert interrupted_share(workers, begin=0.1, seconds=seconds) >= least


def test_after_a_rest_an_interruption_is_no_queue_either() -> None:
    """Nothing of the time before decides how often the gateway may stand still."""
    limiter = Adaptive()
    simulate(LoadedGateway(6, 0.3), limiter, seconds=120)
    known = limiter.concurrency
    stalled = replace(known, stalled_round=known.rounds)
    fresh = rested(stalled, known.seen_at + REST_S + 1)
    assert fresh.rounds - fresh.stalled_round == Concurrency().rounds - Concurrency().stalled_round


def test_an_interruption_does_not_prolong_trials() -> None:
    """How long a greater width is tried follows from the other responses alone."""
    limiter = Interrupted(begin=12.0, seconds=60.0)
    simulate(LoadedGateway(6, 0.3), limiter, seconds=15)
    assert limiter.concurrency.stalled_at > 72.0
    assert limiter.concurrency.longest_s < 10.0


def test_interruptions_one_after_another_are_a_slow_gateway() -> None:
    """One that takes four times as long as before is no gateway that stands still all the time."""
    limiter = Adaptive()
    simulate(LoadedGateway(1), limiter, seconds=60)
    usual = limiter.concurrency.latencies[1][1]
    simulate(LoadedGateway(1, sizes=(4.0,)), limiter, begin=61.0, seconds=120)
    assert max(mean for _, mean, _ in limiter.concurrency.latencies.values()) > usual + 1.0


def test_a_slow_beginning_does_not_hold_the_width_down() -> None:
    """First responses that take twenty times as long do not make all others pass for cached."""
    limiter = Adaptive()
    simulate(LoadedGateway(6, sizes=(20.0,)), limiter, seconds=25)
    progress = simulate(LoadedGateway(20), limiter, begin=26.0, seconds=400)
    assert throughput(progress, 226) >= 0.9 * 20


@pytest.mark.parametrize(
    ("workers", "load", "least"), [(4, 0.1, 0.93), (12, 0.1, 0.92), (12, 0.3, 0.9), (24, 0.0, 0.92)]
)
def test_half_a_minute_from_a_cold_start_is_not_lost(
    workers: int, load: float, least: float
) -> None:
    """Neither by growing slowly nor by going far beyond what the gateway can serve."""
    progress = simulate(LoadedGateway(workers, 0.0, load), Adaptive(), seconds=40)
    assert progress[-1].served_s / progress[-1].at >= least * workers


def test_a_greater_width_that_serves_fewer_is_given_up_early() -> None:
    """It does not last the whole round, of which each response takes longer."""
    limiter = Adaptive(Concurrency(width=16))
    progress = simulate(LoadedGateway(16, 0.0, 1.0), limiter, seconds=60)
    limits = [each.limit for each in progress]
    greater = max(limits)
    assert greater > 16
    assert limits.index(16, limits.index(greater)) - limits.index(greater) < greater


def test_a_size_that_is_rare_does_not_hide_a_queue() -> None:
    """All responses of the usual size take longer behind a queue, and that is no trait of it."""
    limiter = Adaptive(Concurrency(width=6))
    simulate(LoadedGateway(6), limiter, seconds=10)
    limiter.take("rare", Sample(9.0, 12.0, 6))
    limiter.take("rare", Sample(9.0, 12.0, 6))
    usual = limiter.concurrency.firsts["size 0"][0]
    simulate(LoadedGateway(3), limiter, begin=13.0, seconds=15)
    assert limiter.concurrency.firsts["size 0"][0] == pytest.approx(usual, abs=0.05)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_width_recovers_from_a_time_of_very_slow_responses(seed: int) -> None:
    """A gateway that was nearly stuck for minutes is used again when it responds at once."""
    limiter = Adaptive()
    simulate(LoadedGateway(12, 0.3, seed=seed), limiter, seconds=120)
    simulate(LoadedGateway(2, 0.3, sizes=(60.0,), seed=seed), limiter, begin=121.0, seconds=3000)
    assert limiter.limit(3121.0) <= 4
    progress = simulate(LoadedGateway(12, 0.3, seed=seed), limiter, begin=3122.0, seconds=900)
    assert throughput(progress, 3722) >= 0.9 * 12


def test_an_unused_width_does_not_grow() -> None:
    """Quick responses to few requests say nothing about many."""
    progress = simulate(LoadedGateway(24, 0.3), Adaptive(), seconds=300, demand=4)
    assert {each.limit for each in progress} == {IbLimitsRegistry.CONCURRENCY.value}


def test_a_burst_of_failures_halves_the_width_once() -> None:
    """Forty concurrent failures halve it once, and it grows again by one a round at most."""
    concurrency = Concurrency(width=40, seen_at=100)
    for number in range(40):
        concurrency = troubled(concurrency, sent_at=90, at=101 + number / 100)
    assert concurrency.width == 20
    limiter = Adaptive(concurrency)
    progress = simulate(LoadedGateway(45), limiter, begin=102.0, seconds=5.5)
    assert 20 <= max(each.limit for each in progress) <= 20 + 6
    assert troubled(concurrency, sent_at=102, at=103).width == 10


def test_the_width_never_falls_below_one() -> None:
    """One request may always be in flight."""
    concurrency = Concurrency(seen_at=100)
    for number in range(10):
        concurrency = troubled(concurrency, sent_at=100 + number, at=100.5 + number)
    assert concurrency.limit(111) == 1


def test_after_a_long_rest_the_width_is_checked_anew() -> None:
    """It is the start of another search that trusts no old latency."""
    limiter = Adaptive()
    simulate(LoadedGateway(12), limiter, seconds=120)
    before = limiter.concurrency
    fresh = rested(before, before.seen_at + REST_S + 1)
    assert (fresh.width, fresh.latencies) == (before.width, {})
    assert rested(before, before.seen_at + REST_S) == before
    progress = simulate(LoadedGateway(3), limiter, begin=1000.0, seconds=120)
    assert throughput(progress, 1030) >= 0.95 * 3


def test_a_record_of_an_earlier_version_is_read() -> None:
    """Only its width counts; so does one that no version wrote, within the bounds."""
    earlier = '{"width": 12.5, "ratio": 1.3, "cut_at": 3.0, "seen_at": 7.5}'
    assert Concurrency.read(earlier) == Concurrency(width=12, cut_at=3.0, seen_at=7.5)
    assert Concurrency.read('{"width": 1000}').width == 45


@pytest.mark.parametrize(
    ("text", "width"),
    [
        ("", 6),
        ("[1]", 6),
        ('{"width": Infinity}', 6),
        ('{"width": 9, "latencies": {"9": [3]}}', 6),
        ('{"width": 9, "level": "0.1"}', 6),
        ('{"width": 9, "recent": {"1 D": "3"}}', 6),
        ('{"width": 9, "recent": [3]}', 6),
        ('{"width": 9, "latencies": {"60": [9, 0.1, 3]}}', 9),
        ('{"width": 9, "latencies": {"9": [0, 0.1, 3]}}', 9),
        ('{"width": 9, "firsts": {"1 D": [NaN, 3]}}', 9),
        ('{"width": 9, "total": NaN}', 9),
    ],
)
def test_a_record_that_cannot_be_used_is_forgotten(text: str, width: int) -> None:
    """A response is taken after it, as after no record at all."""
    known = Concurrency.read(text)
    assert known == Concurrency(width=width)
    limiter = Adaptive(known)
    simulate(LoadedGateway(6), limiter, seconds=20)
    assert 3 <= limiter.concurrency.width <= 20


def test_a_record_stays_the_same_when_it_is_read() -> None:
    """And it stays small, whatever there was to learn."""
    limiter = Adaptive()
    simulate(LoadedGateway(6, 0.3, sizes=(0.5, 1.0, 2.0)), limiter, seconds=300)
    for number in range(100):
        limiter.take(f"another size {number}", Sample(300.0, 301.0 + number / 100, 1))
    text = limiter.concurrency.as_json()
    assert Concurrency.read(text).as_json() == text
    assert len(text) < 4_000


@dataclass
class SharedLimiter:
    """Processes that share one record; they take turns."""

    records: list[SharedRecord]
    responses: int = 0

    def limit(self, now: float) -> int:
        """Return how many requests may be in flight, of all processes together."""
        record = self.records[self.responses % len(self.records)]
        return record.remember(lambda memory, database: memory.concurrency(database).limit(now))

    def take(self, size: str, sample: Sample) -> None:
        """Learn from a response in the process whose request it was."""
        self.responses += 1
        record = self.records[self.responses % len(self.records)]
        record.remember(lambda memory, database: memory.answered(database, size, sample))


def shared_record(folder: Path, boot: str, owner: str) -> SharedRecord:
    """Return one process's access to a record."""
    return SharedRecord(folder, boot=boot, owner=owner, pacing=pacing_of(), clock=lambda: 1000.0)


def test_processes_learn_together_and_a_restart_remembers(tmp_path: Path) -> None:
    """Two that start at once learn one width, which the next start of the machine begins with."""
    records = [shared_record(tmp_path, "one boot", owner) for owner in ("a", "b")]
    try:
        progress = simulate(LoadedGateway(12, 0.3, 0.1), SharedLimiter(records), seconds=40)
    finally:
        for record in records:
            record.close()
    assert throughput(progress) >= 0.8 * 12
    for boot, latencies in (("one boot", True), ("another boot", False)):
        record = shared_record(tmp_path, boot, "c")
        try:
            known = record.remember(lambda memory, database: memory.concurrency(database))
        finally:
            record.close()
        assert abs(known.width - 12) <= 3
        assert bool(known.latencies) is latencies


WORKERS, SERVICE_S = 3, 0.03


class Busy:
    """Sends bars as a gateway with a few workers does, and counts open requests at each arrival."""

    def __init__(self, send_bars: Any) -> None:
        self._send_bars = send_bars
        self._free_at = [0.0] * WORKERS
        self._open = 0
        self.open_counts: list[int] = []

    def __call__(self, client: Any, fields: list[str]) -> None:
        self._open += 1
        self.open_counts.append(self._open)
        now = time.monotonic()
        done_at = max(heapq.heappop(self._free_at), now) + SERVICE_S
        heapq.heappush(self._free_at, done_at)
        client.later(done_at - now, lambda: self._answer(client, fields))

    def _answer(self, client: Any, fields: list[str]) -> None:
        self._open -= 1
        self._send_bars(client, fields)


def different(request: BarRequest, count: int, first_minute: int) -> list[BarRequest]:
    """Return requests that differ by their ends, which lie after the returned bars."""
    start = datetime(2026, 1, 5, 15, tzinfo=UTC)
    minutes = range(first_minute, first_minute + count)
    return [replace(request, ends_at=start + timedelta(minutes=one)) for one in minutes]


async def ask_all(config: GatewayConfig, requests: list[BarRequest], pacing: Pacing) -> list[Any]:
    """Send all requests at once from one client with a rate limiter of its own."""
    rate_limiter = RateLimiter(config.folder, pacing=pacing.scaled(0))
    try:
        async with open_source(config, rate_limiter=rate_limiter) as source:
            answers = await asyncio.gather(*(source.bars(request) for request in requests))
            return [*answers, source.concurrency]
    finally:
        rate_limiter.close()


def test_two_clients_share_one_concurrency(
    config: GatewayConfig, gateways: Any, replies: Any, minute_request: BarRequest, tmp_path: Path
) -> None:
    """Both share one concurrency near the number of workers, and lose no time by finding it."""

    async def run(config: GatewayConfig, pacing: Pacing) -> Any:
        return await asyncio.gather(
            ask_all(config, different(minute_request, 80, 0), pacing),
            ask_all(config, different(minute_request, 80, 100), pacing),
        )

    took_s, open_counts = [], []
    for number, pacing in enumerate((pacing_of(concurrency=WORKERS), pacing_of())):
        busy = Busy(replies.send_bars)
        mine = replace(
            config, port=gateways(bars=busy).port, timeout_s=60, state_dir=tmp_path / str(number)
        )
        begun_s = time.monotonic()
        (*one, concurrency), (*other, _) = asyncio.run(run(mine, pacing))
        took_s.append(time.monotonic() - begun_s)
        open_counts.append(busy.open_counts)
        assert all(isinstance(answer, Response) for answer in [*one, *other])
    (known_s, adapted_s), (known, adapted) = took_s, open_counts
    assert max(known) == WORKERS
    assert statistics.median(adapted) >= WORKERS - 1
    assert WORKERS <= max(adapted) <= 6 * WORKERS
    assert 1 <= concurrency <= 4 * WORKERS
    # About 0.6 of it, which rises beside other programs.
    assert adapted_s <= 4 * known_s


def test_conservative_pacing_has_a_fixed_concurrency(config: GatewayConfig) -> None:
    """IB_PACING=conservative does not adapt the concurrency."""
    pacing = pacing_of(conservative=True)
    assert (pacing.adapts, pacing.concurrency) == (False, 6)
    assert pacing_of().adapts
