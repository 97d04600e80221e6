"""The budget over real processes and the real clock."""

import asyncio
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ktrdr_pipelines.clock import boot_id, boot_time_s
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import MESSAGE, PacedRequest, Pacing, Rule, Scope
from tests.ib.paced import bars, hold, send

QUICK = Pacing(
    rules=(
        Rule("identical", 1, 0.1, Scope.IDENTICAL),
        Rule("same contract", 4, 0.1, Scope.CONTRACT, small_only=True),
        Rule("window", 30, 0.4, small_only=True, weighted=True),
        Rule("messages", 12, 0.1, historical_only=False),
    ),
    most_open=5,
    concurrency=3,
)


def test_four_processes_never_break_a_rule(tmp_path: Path) -> None:
    """Some hundred requests and cancels of four processes keep every rule when they are written."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        found = pool.starmap(_work, [(tmp_path, number) for number in range(4)], chunksize=1)
    sent = sorted((record for part in found for record in part), key=lambda record: record[0])
    assert len(sent) == 4 * 75 + 4 * 25
    assert _broken(sent) == []


Sent = tuple[float, float, PacedRequest]


def _work(folder: Path, number: int) -> list[Sent]:
    """Send 75 requests and 25 cancels from five tasks at once.

    Give the time at which each was written, the time of its response, and the request.
    """
    chance = random.Random(number)

    async def task(rate_limiter: RateLimiter) -> list[Sent]:
        sent: list[Sent] = []
        cancels = [None] * 5
        for _ in range(15):
            request = bars(
                chance.randrange(40),
                contract=str(chance.randrange(6)),
                small=chance.random() < 0.5,
                weight=chance.choice([1, 1, 2]),
                tail=chance.random() < 0.2,
            )
            at: list[float] = []
            note = partial(_note, at)
            async with rate_limiter.permit(request, hold_s=60, write=note) as permit:
                await asyncio.sleep(0.005)
                sent.append((at[0], boot_time_s(), request))
                permit.release()
            if chance.random() < 1 / 3 and cancels:
                cancels.pop()
                await rate_limiter.message(note)
                sent.append((at[1], at[1], MESSAGE))
        while cancels:
            cancels.pop()
            await rate_limiter.message(partial(_note, at := []))
            sent.append((at[0], at[0], MESSAGE))
        return sent

    async def run() -> list[Sent]:
        rate_limiter = RateLimiter(folder, pacing=QUICK)
        try:
            parts = await asyncio.gather(*(task(rate_limiter) for _ in range(5)))
            return [one for part in parts for one in part]
        finally:
            rate_limiter.close()

    return asyncio.run(run())


def _note(at: list[float]) -> None:
    """Write down when a message is written, as a socket would see it."""
    at.append(boot_time_s())


def _broken(sent: list[Sent]) -> list[str]:
    """Restate the rules of QUICK and find what breaks them."""
    return [name for one in sent for name in _broken_by(one, sent)]


def _broken_by(one: Sent, sent: list[Sent]) -> Iterator[str]:
    at, _, request = one
    if sum(at - 0.1 + 1e-6 < timestamp <= at for timestamp, _, _ in sent) > 12:
        yield "messages"
    if request == MESSAGE:
        return
    sent = [other for other in sent if other[2] != MESSAGE]
    recent = [other for timestamp, _, other in sent if at - 0.1 + 1e-6 < timestamp <= at]
    lately = [
        other for timestamp, _, other in sent if at - 0.4 + 1e-6 < timestamp <= at and other.small
    ]
    is_open = [other for timestamp, answered, other in sent if timestamp <= at < answered]
    if sum(other.identical == request.identical for other in recent) > 1:
        yield "identical"
    twins = [other for other in recent if other.small and other.contract == request.contract]
    if request.small and len(twins) > 4:
        yield "same contract"
    if request.small and sum(other.weight for other in lately) > 30:
        yield "window"
    if len(is_open) > 5:
        yield "open"
    if sum(not other.small for other in is_open) > 3:
        yield "in flight"


def test_a_killed_process_leaves_its_places_taken_and_the_record_whole(tmp_path: Path) -> None:
    """After SIGKILL others go on, and the dead one's requests still count."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_hold_and_wait, args=(tmp_path, child)
    )
    process.start()
    timestamp = parent.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    process.close()
    parent.close()
    child.close()

    async def run() -> float:
        rate_limiter = RateLimiter(tmp_path, pacing=QUICK)
        try:
            return await send(rate_limiter, bars("new"))
        finally:
            rate_limiter.close()

    assert asyncio.run(run()) >= timestamp + 0.5


def _hold_and_wait(folder: Path, pipe: Any) -> None:
    """Take every place for half a second, say when, and wait to be killed."""

    async def run() -> float:
        rate_limiter = RateLimiter(folder, pacing=QUICK)
        return max([await hold(rate_limiter, bars(end), hold_s=0.5) for end in range(3)])

    pipe.send(asyncio.run(run()))
    signal.pause()


def test_the_clock_is_shared_and_goes_on() -> None:
    """Boot and clock are the same in every process, and the clock rises."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before = boot_time_s()
        boot, elsewhere = pool.apply(_clock)
        assert boot == boot_id()
        assert before <= elsewhere <= boot_time_s()


def _clock() -> tuple[str, float]:
    return boot_id(), boot_time_s()
