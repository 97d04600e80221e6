"""Several loaders of one series: nothing is asked twice, whoever dies."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

from filelock import FileLock

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import Quiet, SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.claim_owners import CLAIM_S, claiming
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from ktrdr_pipelines.sync.runner import Job, LoadManager
from tests.support.fake_gateway import FakeGateway
from tests.support.loading import Bench, World, no_sleep

MakeWorld = Callable[..., World]
JUNE = date(2024, 6, 3), date(2024, 6, 29)


def test_two_loaders_at_once_ask_nothing_twice(world: MakeWorld) -> None:
    """Two loaders of a series share its chunks, and both end complete."""
    made = world("XNYS.RTH", Timeframe.M1, *JUNE)

    async def linger(_: BarRequest) -> None:
        for _turn in range(5):
            await asyncio.sleep(0)

    made.bench.gateway.before_answer = linger
    reports: list[SeriesReport] = []
    start = threading.Barrier(2)
    saved = threading.Semaphore(0)

    async def until_saved(_: float) -> None:
        await asyncio.to_thread(saved.acquire)

    class Telling(Quiet):
        def saved(self, series: Series) -> None:
            saved.release(2)

    def load() -> None:
        gateway = made.bench.gateway
        retry_policy = RetryPolicy(max_retries=1, delay_s=0, sleep=until_saved, clock=gateway.now)
        manager = LoadManager(
            made.bench.layout, gateway.open, gateway.gateway, retry_policy, Telling()
        )
        start.wait()
        job = Job(made.series, wanted=IntervalSet([made.wanted]))
        reports.extend(asyncio.run(manager.run([job])))
        saved.release(100)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.is_complete for report in reports] == [True, True]
    ends = [request.ends_at for request in made.bench.gateway.asked]
    assert len(ends) == len(set(ends)) == 19
    made.check_complete()


def test_what_another_saved_meanwhile_is_not_asked(world: MakeWorld) -> None:
    """A chunk that was planned, and that another run saved before its turn, is skipped."""
    made = world("XNYS.RTH", Timeframe.M1, *JUNE)
    other = Bench(made.bench.layout, FakeGateway(made.bench.gateway.truth, made.bench.gateway.time))
    oldest = Interval(made.wanted.start, made.wanted.start.replace(day=8))

    async def let_other_load(_: BarRequest) -> None:
        if not other.asked:
            await other.manager().run([Job(made.series, wanted=IntervalSet([oldest]))])

    made.bench.gateway.before_answer = let_other_load
    assert made.load().requests == 19 - 5
    assert other.asked == 5
    made.check_complete()


def _claim_and_wait(root: Path, series: Series, interval: Interval, ready: Path) -> None:
    layout = StoreLayout(root)
    ledger = Ledger(layout.ledger)
    with claiming(layout, ledger) as claimant:
        assert claimant.claim(series, interval, interval.end)
        ready.write_text("claimed")
        signal.pause()


def test_the_claims_of_a_killed_process_are_dropped_at_once(
    world: MakeWorld, folders: Iterator[Path]
) -> None:
    """A interval that a killed process had claimed is asked for without waiting."""
    made = world("XNYS.RTH", Timeframe.H1, *JUNE)
    ready = next(folders)
    context = multiprocessing.get_context("fork")
    args = (made.bench.layout.root, made.series, made.wanted, ready)
    process = context.Process(target=_claim_and_wait, args=args)
    process.start()
    never = threading.Event()
    while not ready.exists():
        assert process.is_alive(), "the claiming process has died"
        never.wait(0.02)
    clock = made.wanted.end
    made.bench.gateway.time = clock
    slept: list[float] = []

    async def kill_at_first_sleep(seconds: float) -> None:
        if not slept:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        slept.append(seconds)
        await no_sleep(seconds)

    gateway = made.bench.gateway
    retry_policy = RetryPolicy(
        max_retries=1, delay_s=0, sleep=kill_at_first_sleep, clock=gateway.now
    )
    manager = LoadManager(made.bench.layout, gateway.open, gateway.gateway, retry_policy)
    wanted = IntervalSet([made.wanted])
    (report,) = asyncio.run(manager.run([Job(made.series, wanted=wanted)]))
    assert report.is_complete
    assert len(slept) == 1
    made.check_complete()


def test_claims_and_locks_are_given_back_at_the_end(world: MakeWorld) -> None:
    """A finished load leaves no claim and no file of its owner."""
    made = world("XNYS.RTH", Timeframe.M1, *JUNE)
    made.load()
    key = series_key(made.series)
    assert made.bench.ledger.claims.live(key, made.bench.gateway.time) == []
    assert not list(made.bench.layout.locks.glob("owner-*"))


def test_what_killed_owners_left_is_cleared_away(world: MakeWorld) -> None:
    """Lock files of owners that died long ago go; those of the living and of the young stay."""
    made = world("XNYS.RTH", Timeframe.H1, *JUNE)
    locks = made.bench.layout.locks
    dead, living, young = (locks / f"owner-{name}.lock" for name in ("dead", "living", "young"))
    for path in (dead, living, young):
        path.touch()
    with FileLock(living):
        for path in (dead, living):
            os.utime(path, (1, 1))
        made.load()
        assert set(locks.glob("owner-*")) == {living, young}


def test_a_claim_outlives_the_longest_wait_for_a_turn() -> None:
    """A living owner that waits for its turn through a pause is not overtaken by a second one."""
    limits = IbLimitsRegistry
    longest_pause_s = limits.PACING_PAUSE_S.value.longest_s
    a_turn_each_s = limits.SAFE_DELAY_S.value * limits.MAX_OPEN_HISTORICAL.value
    assert 2 * (longest_pause_s + a_turn_each_s) < CLAIM_S
