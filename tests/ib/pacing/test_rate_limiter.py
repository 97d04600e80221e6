"""The budget over tasks under a clock that is set: exact and fair."""

import asyncio
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.clock import boot_id, boot_time_s
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import CANCEL_HOLD_S, RateLimiter
from ktrdr_pipelines.ib.pacing.rules import MESSAGE, PacedRequest, Pacing, Rule, Scope, pacing_of
from ktrdr_pipelines.ib.pacing.shared_file import RecordBusyError
from tests.ib.paced import Time, bars, hold, send


async def a_moment() -> None:
    """Let other tasks begin, before much time passes."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_identical_request_waits(rate_limiter: Any) -> None:
    """Fifteen seconds and a margin lie between two identical requests."""

    async def run() -> tuple[float, float]:
        one = rate_limiter()
        return await send(one, bars(1)), await send(one, bars(1))

    first, second = asyncio.run(run())
    assert second - first == pytest.approx(15.75)


def test_other_requests_do_not_wait(rate_limiter: Any, time: Time) -> None:
    """Chunks of one series go out one after another without a pause."""

    async def run() -> None:
        one = rate_limiter()
        for end in range(20):
            await send(one, bars(end))

    asyncio.run(run())
    assert time.now == 5000.0


def test_processes_share_one_budget(rate_limiter: Any) -> None:
    """What one process sent makes another wait."""

    async def run() -> float:
        await send(rate_limiter(), bars(1))
        return await send(rate_limiter(), bars(1))

    assert asyncio.run(run()) == pytest.approx(5015.75)


def test_places_of_a_dead_process_stay_taken_until_their_deadline(
    rate_limiter: Any, time: Time
) -> None:
    """The gateway may still be working on what a killed process asked."""

    async def run() -> float:
        dead = rate_limiter()
        for end in range(6):
            await hold(dead, bars(end), hold_s=30)
        dead.close()
        return await send(rate_limiter(), bars("new"))

    assert asyncio.run(run()) == pytest.approx(5030.0, abs=0.3)


def test_the_line_of_a_dead_process_is_soon_forgotten(rate_limiter: Any, time: Time) -> None:
    """Requests that waited when their process died stop others for seconds only."""

    async def run() -> float:
        dead = rate_limiter()
        await hold(dead, bars(1), hold_s=1)
        waiting = [asyncio.create_task(hold(dead, bars(1))) for _ in range(50)]
        await a_moment()
        dead.close()
        dead._record.withdraw = lambda _: None
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        time.now += 16
        return await send(rate_limiter(), bars(1)) - time.now

    assert asyncio.run(run()) == 0.0


def test_an_answer_gives_its_place_to_the_next(rate_limiter: Any, time: Time) -> None:
    """A waiting request goes as soon as one of six is answered, without polling."""

    async def run() -> None:
        one = rate_limiter()
        async with asyncio.TaskGroup() as tasks:
            for end in range(30):
                tasks.create_task(send(one, bars(end)))

    asyncio.run(run())
    assert time.now == 5000.0


def test_a_cancelled_request_keeps_its_place_for_a_moment(rate_limiter: Any) -> None:
    """Cancelling gives a place back soon, not at once and not at the deadline only."""

    async def run() -> float:
        one = rate_limiter(pacing=Pacing(pacing_of().rules, most_open=47, concurrency=1))
        task = asyncio.create_task(hang(one))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await send(one, bars("new"))

    async def hang(one: RateLimiter) -> None:
        async with one.permit(bars("old"), hold_s=45):
            await asyncio.Event().wait()

    assert asyncio.run(run()) == pytest.approx(5000 + CANCEL_HOLD_S, abs=0.2)


def test_a_waiter_that_gives_up_leaves_the_line(rate_limiter: Any, time: Time) -> None:
    """It neither sends nor holds anyone up."""

    async def run() -> float:
        one = rate_limiter()
        await send(one, bars(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await send(one, bars(1))
        time.now = 5016.0
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5016.0


def test_tails_go_before_backfills(rate_limiter: Any) -> None:
    """A tail that comes last of all gets the next free place."""
    order: list[str] = []

    async def run() -> None:
        one, other = rate_limiter(), rate_limiter()
        for end in range(6):
            await hold(one, bars(end), hold_s=30 if end == 0 else 600)
        async with asyncio.TaskGroup() as tasks:
            for end in range(10, 20):
                tasks.create_task(note(one, bars(end), "backfill"))
            await a_moment()
            tasks.create_task(note(other, bars("now", tail=True), "tail"))

    async def note(one: RateLimiter, request: PacedRequest, name: str) -> None:
        async with one.permit(request, hold_s=45) as permit:
            order.append(name)
            permit.release()

    asyncio.run(run())
    assert len(order) == 11
    assert order[0] == "tail"


def test_a_process_that_comes_late_is_served_in_turn(rate_limiter: Any) -> None:
    """Thirty waiting requests of one process do not make another wait for all of them."""
    order: list[str] = []

    async def run() -> None:
        busy, late = rate_limiter(), rate_limiter()
        for end in range(6):
            await hold(busy, bars(end), hold_s=30 if end == 0 else 600)
        async with asyncio.TaskGroup() as tasks:
            for end in range(10, 40):
                tasks.create_task(note(busy, bars(end), "busy"))
            await a_moment()
            tasks.create_task(note(late, bars("x"), "late"))

    async def note(one: RateLimiter, request: PacedRequest, name: str) -> None:
        async with one.permit(request, hold_s=45) as permit:
            order.append(name)
            await asyncio.sleep(0)
            permit.release()

    asyncio.run(run())
    assert order.index("late") <= 6


def test_a_violation_pauses_every_process(rate_limiter: Any, time: Time) -> None:
    """The pause is in the shared record; several complaints about one burst make one pause."""

    async def run() -> tuple[float, float, float]:
        one, other = rate_limiter(), rate_limiter()
        first, again = one.pause_after_violation(), other.pause_after_violation()
        return first, again, await send(rate_limiter(), bars(1))

    assert asyncio.run(run()) == (60.0, 60.0, 5060.0)


def test_another_violation_after_the_pause_doubles_it(rate_limiter: Any, time: Time) -> None:
    """It grows to ten minutes and starts again after a quiet while."""
    one = rate_limiter()
    pauses = []
    for _ in range(6):
        pauses.append(one.pause_after_violation())
        time.now += pauses[-1] + 1
    time.now += 3600
    pauses.append(one.pause_after_violation())
    assert pauses == [60, 120, 240, 480, 600, 600, 60]


def test_a_request_is_stamped_after_it_is_written(
    rate_limiter: Any, time: Time, tmp_path: Path
) -> None:
    """A process that stands still between its turn and the socket keeps later ones waiting."""
    steps = iter([0.0, 3.0])

    def halting() -> float:
        time.now += next(steps, 0.0)
        return time.now

    one = RateLimiter(tmp_path, clock=halting, sleep=time.sleep, boot="boot")
    assert asyncio.run(send(one, bars(1))) == 5003.0
    one.close()
    assert asyncio.run(send(rate_limiter(), bars(1))) == pytest.approx(5018.75)


def test_a_burst_of_cancels_is_spread_over_all_processes(rate_limiter: Any, time: Time) -> None:
    """No 1.1 s hold more messages than the rate allows, and none is sent later than it must be."""
    make_entry: list[float] = []

    async def run() -> None:
        two = rate_limiter(), rate_limiter()
        sends = (two[n % 2].message(lambda: make_entry.append(time.now)) for n in range(100))
        await asyncio.gather(*sends)

    asyncio.run(run())
    assert [at - 5000 for at in make_entry] == pytest.approx([0] * 47 + [1.1] * 47 + [2.2] * 6)


def test_requests_and_messages_share_one_rate(rate_limiter: Any, time: Time) -> None:
    """What requests have used up is missing for a cancel, and the other way round."""

    async def run() -> list[float]:
        one, interval = rate_limiter(), []
        for n in range(30):
            interval.append(await send(one, bars(n)))
            await one.message(lambda: interval.append(time.now))
        return interval

    interval = asyncio.run(run())
    assert [timestamp - 5000 for timestamp in interval[46:48]] == pytest.approx([0, 1.1])


def test_a_cancel_waits_for_no_request_and_no_pause(rate_limiter: Any, time: Time) -> None:
    """A hundred requests that wait for a place or for the end of a pause do not hold it up."""
    make_entry: list[float] = []

    async def run() -> None:
        one = rate_limiter()
        for end in range(6):
            await hold(one, bars(end))
        line = [asyncio.create_task(hold(one, bars(100 + n, tail=True))) for n in range(100)]
        await a_moment()
        one.pause_after_violation()
        begun = time.now
        await one.message(lambda: make_entry.append(time.now - begun))
        for task in line:
            task.cancel()
        await asyncio.gather(*line, return_exceptions=True)

    asyncio.run(run())
    assert make_entry == [0]


def test_a_cancel_whose_time_has_just_come_does_not_join_the_line(
    rate_limiter: Any, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no place, so it does not sleep until one is given back."""
    make_entry: list[float] = []

    async def run() -> None:
        one = rate_limiter()
        for _ in range(47):
            await one.message(lambda: None)
        attempt, begun = one._record.attempt, time.now

        def slow(*given: Any, **named: Any) -> Any:
            entry = attempt(*given, **named)
            time.now = max(time.now, entry.send_time.at)  # the turn comes while the process is busy
            return entry

        monkeypatch.setattr(one._record, "attempt", slow)
        await one.message(lambda: make_entry.append(time.now - begun))

    asyncio.run(run())
    assert make_entry == pytest.approx([1.1])


def test_what_cannot_be_written_was_never_sent(rate_limiter: Any) -> None:
    """A connection that is gone when the turn comes leaves no trace in the budget."""

    def broken() -> None:
        raise OSError("gone")

    async def run() -> float:
        one = rate_limiter()
        with pytest.raises(OSError, match="gone"):
            async with one.permit(bars(1), hold_s=45, write=broken):
                raise AssertionError("entered")
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5000


def test_a_request_is_written_once_though_its_record_breaks(rate_limiter: Any, time: Time) -> None:
    """The second attempt notes what the first has written, and writes nothing."""
    make_entry: list[float] = []

    async def run() -> float:
        one = rate_limiter()
        attempt = one._record.attempt

        def breaking(*given: Any, **named: Any) -> Any:
            entry = attempt(*given, **named)
            one._record.withdraw(entry.number)
            one._record.attempt = attempt
            raise RecordBusyError

        one._record.attempt = breaking
        async with one.permit(
            bars(1), hold_s=45, write=lambda: make_entry.append(time.now)
        ) as permit:
            return permit.sent_at_s

    assert asyncio.run(run()) == 5000
    assert make_entry == [5000]
    assert asyncio.run(send(rate_limiter(), bars(1))) == pytest.approx(5015.75)


def test_conservative_requests_keep_the_safe_delay(tmp_path: Path, time: Time) -> None:
    """A conservative gateway is asked every ten seconds and a margin."""
    config = GatewayConfig(state_dir=tmp_path, conservative=True)
    assert RateLimiter.of(config)._record._pacing == pacing_of(conservative=True)

    async def run() -> list[float]:
        one = RateLimiter(
            tmp_path, pacing=pacing_of(conservative=True), clock=time, sleep=time.sleep, boot="b"
        )
        interval = [await send(one, bars(end)) for end in range(4)]
        one.close()
        return interval

    interval = asyncio.run(run())
    assert [b - a for a, b in pairwise(interval)] == pytest.approx([10.5, 10.5, 10.5])


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
