"""The rate limiter over tasks and processes: exact and fair."""

import asyncio
import multiprocessing
import os
import random
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.clock import boot_id, boot_time_s
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.rate_limiter import CANCEL_HOLD_S, RateLimiter
from ktrdr_pipelines.ib.pacing.rules import MESSAGE, PacedRequest, Pacing, Rule, Scope, pacing_of
from ktrdr_pipelines.ib.pacing.shared_file import RecordBusyError
from tests.ib.pacing_support import FakeClock, bars, hold, send


async def a_moment() -> None:
    """Let other tasks begin."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_an_identical_request_waits(rate_limiter: Any) -> None:
    """Two identical requests are 15 s and a margin apart."""

    async def run() -> tuple[float, float]:
        one = rate_limiter()
        return await send(one, bars(1)), await send(one, bars(1))

    first, second = asyncio.run(run())
    assert second - first == pytest.approx(15.75)


def test_other_requests_do_not_wait(rate_limiter: Any, clock: FakeClock) -> None:
    """Chunks of one series follow each other without a pause."""

    async def run() -> None:
        one = rate_limiter()
        for end in range(20):
            await send(one, bars(end))

    asyncio.run(run())
    assert clock.now == 5000.0


def test_processes_share_one_budget(rate_limiter: Any) -> None:
    """A request of one process delays an identical one of another."""

    async def run() -> float:
        await send(rate_limiter(), bars(1))
        return await send(rate_limiter(), bars(1))

    assert asyncio.run(run()) == pytest.approx(5015.75)


def test_permits_of_a_dead_process_stay_taken_until_their_deadline(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """The gateway may still work on the requests of a killed process."""

    async def run() -> float:
        dead = rate_limiter()
        for end in range(6):
            await hold(dead, bars(end), hold_s=30)
        dead.close()
        return await send(rate_limiter(), bars("new"))

    assert asyncio.run(run()) == pytest.approx(5030.0, abs=0.3)


def test_queue_entries_of_a_dead_process_expire(rate_limiter: Any, clock: FakeClock) -> None:
    """Queue entries of a dead process expire after seconds."""

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
        clock.now += 16
        return await send(rate_limiter(), bars(1)) - clock.now

    assert asyncio.run(run()) == 0.0


def test_a_released_permit_goes_to_the_next_request(rate_limiter: Any, clock: FakeClock) -> None:
    """A waiting request is sent as soon as a permit is released, without polling."""

    async def run() -> None:
        one = rate_limiter()
        async with asyncio.TaskGroup() as tasks:
            for end in range(30):
                tasks.create_task(send(one, bars(end)))

    asyncio.run(run())
    assert clock.now == 5000.0


def test_a_waiting_request_is_written_before_the_response_is_read(rate_limiter: Any) -> None:
    """It has the permit at the next step of the loop: a gateway of one worker hardly idles."""
    done: list[str] = []

    async def run() -> None:
        one = rate_limiter(pacing=Pacing(pacing_of().rules, most_open=47, concurrency=1))
        async with asyncio.TaskGroup() as tasks:
            async with one.permit(bars("first"), hold_s=45) as permit:
                tasks.create_task(send_next(one))
                await a_moment()
                permit.answered()
            done.append("response read")

    async def send_next(one: RateLimiter) -> None:
        async with one.permit(bars("next"), hold_s=45, write=lambda: done.append("written")):
            pass

    asyncio.run(run())
    assert done == ["written", "response read"]


def test_a_response_tells_how_many_were_in_flight(rate_limiter: Any) -> None:
    """Of all processes; one that waited does not count the one for whose permit it waited."""
    pacing = Pacing(pacing_of().rules, most_open=47, concurrency=3)

    async def run() -> list[int]:
        first, second = rate_limiter(pacing=pacing), rate_limiter(pacing=pacing)
        async with AsyncExitStack() as held:
            for number in range(2):
                await held.enter_async_context(first.permit(bars(number), hold_s=4500))
            async with asyncio.TaskGroup() as tasks:
                sent = [tasks.create_task(respond(second, number)) for number in range(2, 5)]
            return [one.result() for one in sent]

    async def respond(one: RateLimiter, number: int) -> int:
        async with one.permit(replace(bars(number), size="1 min, 1 D"), hold_s=45) as permit:
            await a_moment()
            return permit.answered()

    assert asyncio.run(run()) == [3, 3, 3]


def test_a_cancelled_request_keeps_its_permit_for_a_while(rate_limiter: Any) -> None:
    """Its permit is released after CANCEL_HOLD_S."""

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


def test_a_lost_request_has_no_permit_any_more(rate_limiter: Any) -> None:
    """The connection has ended: the gateway reads nothing more that was sent through it.

    The rules count it from now, not from its deadline.
    """
    pacing = Pacing(pacing_of().rules, most_open=47, concurrency=1)

    async def run() -> list[float]:
        one = rate_limiter(pacing=pacing)
        async with one.permit(bars("old"), hold_s=45) as permit:
            permit.cut()
            return [await send(one, bars(name)) for name in ("new", "old")]

    (identical,) = (rule for rule in pacing.rules if rule.scope is Scope.IDENTICAL)
    assert asyncio.run(run()) == pytest.approx([5000, 5000 + identical.window_s], abs=0.2)


def test_a_request_that_gives_up_leaves_the_queue(rate_limiter: Any, clock: FakeClock) -> None:
    """A request that stops waiting delays no other."""

    async def run() -> float:
        one = rate_limiter()
        await send(one, bars(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await send(one, bars(1))
        clock.now = 5016.0
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5016.0


def test_tails_go_before_backfills(rate_limiter: Any) -> None:
    """The newest tail gets the next free permit."""
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
    """Thirty waiting requests of one process do not delay another's for all of them."""
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


def test_a_violation_pauses_every_process(rate_limiter: Any, clock: FakeClock) -> None:
    """Several errors about one burst make one pause, which all processes share."""

    async def run() -> tuple[float, float, float]:
        one, other = rate_limiter(), rate_limiter()
        first, again = one.pause_after_violation(), other.pause_after_violation()
        return first, again, await send(rate_limiter(), bars(1))

    assert asyncio.run(run()) == (60.0, 60.0, 5060.0)


def test_another_violation_after_the_pause_doubles_it(rate_limiter: Any, clock: FakeClock) -> None:
    """The pause grows to ten minutes, and starts over after a while without violations."""
    one = rate_limiter()
    pauses = []
    for _ in range(6):
        pauses.append(one.pause_after_violation())
        clock.now += pauses[-1] + 1
    clock.now += 3600
    pauses.append(one.pause_after_violation())
    assert pauses == [60, 120, 240, 480, 600, 600, 60]


def test_a_request_is_timed_after_it_is_written(
    rate_limiter: Any, clock: FakeClock, tmp_path: Path
) -> None:
    """A process that is suspended before it writes delays later requests accordingly."""
    steps = iter([0.0, 3.0])

    def halting() -> float:
        clock.now += next(steps, 0.0)
        return clock.now

    one = RateLimiter(tmp_path, clock=halting, sleep=clock.sleep, boot="boot")
    assert asyncio.run(send(one, bars(1))) == 5003.0
    one.close()
    assert asyncio.run(send(rate_limiter(), bars(1))) == pytest.approx(5018.75)


def test_a_burst_of_cancels_is_spread_over_all_processes(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """No 1.1 s hold more messages than the rate, and none is later than necessary."""
    written: list[float] = []

    async def run() -> None:
        two = rate_limiter(), rate_limiter()
        sends = (two[n % 2].message(lambda: written.append(clock.now)) for n in range(100))
        await asyncio.gather(*sends)

    asyncio.run(run())
    assert [at - 5000 for at in written] == pytest.approx([0] * 47 + [1.1] * 47 + [2.2] * 6)


def test_requests_and_messages_share_one_rate(rate_limiter: Any, clock: FakeClock) -> None:
    """Both use up the message rate."""

    async def run() -> list[float]:
        one, timestamps = rate_limiter(), []
        for n in range(30):
            timestamps.append(await send(one, bars(n)))
            await one.message(lambda: timestamps.append(clock.now))
        return timestamps

    timestamps = asyncio.run(run())
    assert [timestamp - 5000 for timestamp in timestamps[46:48]] == pytest.approx([0, 1.1])


def test_a_cancel_waits_for_no_request_and_no_pause(rate_limiter: Any, clock: FakeClock) -> None:
    """Neither waiting requests nor a pause delays it."""
    written: list[float] = []

    async def run() -> None:
        one = rate_limiter()
        for end in range(6):
            await hold(one, bars(end))
        waiting = [asyncio.create_task(hold(one, bars(100 + n, tail=True))) for n in range(100)]
        await a_moment()
        one.pause_after_violation()
        begun = clock.now
        await one.message(lambda: written.append(clock.now - begun))
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(run())
    assert written == [0]


def test_a_due_cancel_does_not_join_the_queue(
    rate_limiter: Any, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no permit, so it does not wait for a release."""
    written: list[float] = []

    async def run() -> None:
        one = rate_limiter()
        for _ in range(47):
            await one.message(lambda: None)
        attempt, begun = one._record.attempt, clock.now

        def slow(*given: Any, **named: Any) -> Any:
            entry = attempt(*given, **named)
            # The send time passes while the process is busy.
            clock.now = max(clock.now, entry.send_time.at)
            return entry

        monkeypatch.setattr(one._record, "attempt", slow)
        await one.message(lambda: written.append(clock.now - begun))

    asyncio.run(run())
    assert written == pytest.approx([1.1])


def test_a_request_that_cannot_be_written_does_not_count(rate_limiter: Any) -> None:
    """A request whose connection is gone leaves no trace in the budget."""

    def broken() -> None:
        raise OSError("gone")

    async def run() -> float:
        one = rate_limiter()
        with pytest.raises(OSError, match="gone"):
            async with one.permit(bars(1), hold_s=45, write=broken):
                raise AssertionError("entered")
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5000


def test_a_request_is_written_once_if_its_record_fails(rate_limiter: Any, clock: FakeClock) -> None:
    """The second attempt records what the first one wrote, and writes nothing."""
    written: list[float] = []

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
            bars(1), hold_s=45, write=lambda: written.append(clock.now)
        ) as permit:
            permit.release()
            return permit.sent_at_s

    assert asyncio.run(run()) == 5000
    assert written == [5000]
    assert asyncio.run(send(rate_limiter(), bars(1))) == pytest.approx(5015.76)


def test_conservative_requests_are_sent_as_the_window_allows(
    tmp_path: Path, clock: FakeClock
) -> None:
    """Neighbouring chunks follow each other as the rule for one contract allows, not evenly."""
    config = GatewayConfig(state_dir=tmp_path, conservative=True)
    assert RateLimiter.of(config)._record._pacing == pacing_of(conservative=True)

    async def run() -> list[float]:
        one = RateLimiter(
            tmp_path, pacing=pacing_of(conservative=True), clock=clock, sleep=clock.sleep, boot="b"
        )
        timestamps = [await send(one, bars(end)) for end in range(11)]
        one.close()
        return timestamps

    timestamps = asyncio.run(run())
    assert [at - 5000 for at in timestamps] == pytest.approx([0] * 5 + [2.002] * 5 + [4.004])


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
    """The requests and cancels of four processes keep every rule at the time of writing."""
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
    """Record when a message is written."""
    at.append(boot_time_s())


def _broken(sent: list[Sent]) -> list[str]:
    """Return the rules of QUICK, restated here, that requests break."""
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


def test_a_killed_process_leaves_a_valid_record(tmp_path: Path) -> None:
    """After SIGKILL others continue, and the requests of the dead process count."""
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
    """Take every permit for half a second, send the time, and wait to be killed."""

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
