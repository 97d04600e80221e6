"""The budget over tasks and processes: exact, fair, and safe against what dies or breaks."""

import asyncio
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.core.pacing import PacedRequest, Pacing, RequestKind, Rule, Scope, pacing_of
from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.clock import boot_id, boot_time_s
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacer import Pacer
from ktrdr_pipelines.ib.pacer_file import LOCK_WAIT_S
from ktrdr_pipelines.ib.slot import CANCEL_HOLD_S


class Time:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


@pytest.fixture
def time() -> Time:
    """Give a clock."""
    return Time()


@pytest.fixture
def pacer(tmp_path: Path, time: Time) -> Any:
    """Make pacers of one gateway under one clock; each stands for a process of its own."""
    made = []

    def make(boot: str = "boot", pacing: Pacing | None = None) -> Pacer:
        made.append(Pacer(tmp_path, clock=time, sleep=time.sleep, boot=boot, pacing=pacing))
        return made[-1]

    yield make
    for one in made:
        one.close()


def bars(end: object, *, contract: str = "1", **other: Any) -> PacedRequest:
    """Make a request for minute bars."""
    return PacedRequest(RequestKind.BARS, contract, f"{contract}|{end}", **other)


async def send(pacer: Pacer, request: PacedRequest) -> float:
    """Send a request that is answered at once, and give its stamp."""
    async with pacer.slot(request, hold_s=45) as slot:
        slot.release()
    return slot.sent_at_s


async def a_moment() -> None:
    """Let other tasks begin, before much time passes."""
    for _ in range(5):
        await asyncio.sleep(0)


async def hold(pacer: Pacer, request: PacedRequest, hold_s: float = 45) -> float:
    """Send a request that is never answered."""
    async with pacer.slot(request, hold_s=hold_s) as slot:
        return slot.sent_at_s


def test_an_identical_request_waits(pacer: Any) -> None:
    """Fifteen seconds and a margin lie between two identical requests."""

    async def run() -> tuple[float, float]:
        one = pacer()
        return await send(one, bars(1)), await send(one, bars(1))

    first, second = asyncio.run(run())
    assert second - first == pytest.approx(15.75)


def test_other_requests_do_not_wait(pacer: Any, time: Time) -> None:
    """Chunks of one series go out one after another without a pause."""

    async def run() -> None:
        one = pacer()
        for end in range(20):
            await send(one, bars(end))

    asyncio.run(run())
    assert time.now == 5000.0


def test_processes_share_one_budget(pacer: Any) -> None:
    """What one process sent makes another wait."""

    async def run() -> float:
        await send(pacer(), bars(1))
        return await send(pacer(), bars(1))

    assert asyncio.run(run()) == pytest.approx(5015.75)


def test_places_of_a_dead_process_stay_taken_until_their_deadline(pacer: Any, time: Time) -> None:
    """The gateway may still be working on what a killed process asked."""

    async def run() -> float:
        dead = pacer()
        for end in range(6):
            await hold(dead, bars(end), hold_s=30)
        dead.close()
        return await send(pacer(), bars("new"))

    assert asyncio.run(run()) == pytest.approx(5030.0, abs=0.3)


def test_the_line_of_a_dead_process_is_soon_forgotten(pacer: Any, time: Time) -> None:
    """Requests that waited when their process died stop others for seconds only."""

    async def run() -> float:
        dead = pacer()
        await hold(dead, bars(1), hold_s=1)
        waiting = [asyncio.create_task(hold(dead, bars(1))) for _ in range(50)]
        await a_moment()
        dead.close()
        dead._record.withdraw = lambda _: None
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        time.now += 16
        return await send(pacer(), bars(1)) - time.now

    assert asyncio.run(run()) == 0.0


def test_an_answer_gives_its_place_to_the_next(pacer: Any, time: Time) -> None:
    """A waiting request goes as soon as one of six is answered, without polling."""

    async def run() -> None:
        one = pacer()
        async with asyncio.TaskGroup() as tasks:
            for end in range(30):
                tasks.create_task(send(one, bars(end)))

    asyncio.run(run())
    assert time.now == 5000.0


def test_a_cancelled_request_keeps_its_place_for_a_moment(pacer: Any) -> None:
    """Cancelling gives a place back soon, not at once and not at the deadline only."""

    async def run() -> float:
        one = pacer(pacing=Pacing(pacing_of().rules, most_open=47, in_flight=1))
        task = asyncio.create_task(hang(one))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await send(one, bars("new"))

    async def hang(one: Pacer) -> None:
        async with one.slot(bars("old"), hold_s=45):
            await asyncio.Event().wait()

    assert asyncio.run(run()) == pytest.approx(5000 + CANCEL_HOLD_S, abs=0.2)


def test_a_waiter_that_gives_up_leaves_the_line(pacer: Any, time: Time) -> None:
    """It neither sends nor holds anyone up."""

    async def run() -> float:
        one = pacer()
        await send(one, bars(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await send(one, bars(1))
        time.now = 5016.0
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5016.0


def test_tails_go_before_backfills(pacer: Any) -> None:
    """A tail that comes last of all gets the next free place."""
    order: list[str] = []

    async def run() -> None:
        one, other = pacer(), pacer()
        for end in range(6):
            await hold(one, bars(end), hold_s=30 if end == 0 else 600)
        async with asyncio.TaskGroup() as tasks:
            for end in range(10, 20):
                tasks.create_task(note(one, bars(end), "backfill"))
            await a_moment()
            tasks.create_task(note(other, bars("now", tail=True), "tail"))

    async def note(one: Pacer, request: PacedRequest, name: str) -> None:
        async with one.slot(request, hold_s=45) as slot:
            order.append(name)
            slot.release()

    asyncio.run(run())
    assert len(order) == 11
    assert order[0] == "tail"


def test_a_process_that_comes_late_is_served_in_turn(pacer: Any) -> None:
    """Thirty waiting requests of one process do not make another wait for all of them."""
    order: list[str] = []

    async def run() -> None:
        busy, late = pacer(), pacer()
        for end in range(6):
            await hold(busy, bars(end), hold_s=30 if end == 0 else 600)
        async with asyncio.TaskGroup() as tasks:
            for end in range(10, 40):
                tasks.create_task(note(busy, bars(end), "busy"))
            await a_moment()
            tasks.create_task(note(late, bars("x"), "late"))

    async def note(one: Pacer, request: PacedRequest, name: str) -> None:
        async with one.slot(request, hold_s=45) as slot:
            order.append(name)
            await asyncio.sleep(0)
            slot.release()

    asyncio.run(run())
    assert order.index("late") <= 6


def test_a_violation_pauses_every_process(pacer: Any, time: Time) -> None:
    """The pause is in the shared record; several complaints about one burst make one pause."""

    async def run() -> tuple[float, float, float]:
        one, other = pacer(), pacer()
        first, again = one.pause_after_violation(), other.pause_after_violation()
        return first, again, await send(pacer(), bars(1))

    assert asyncio.run(run()) == (60.0, 60.0, 5060.0)


def test_another_violation_after_the_pause_doubles_it(pacer: Any, time: Time) -> None:
    """It grows to ten minutes and starts again after a quiet while."""
    one = pacer()
    pauses = []
    for _ in range(6):
        pauses.append(one.pause_after_violation())
        time.now += pauses[-1] + 1
    time.now += 3600
    pauses.append(one.pause_after_violation())
    assert pauses == [60, 120, 240, 480, 600, 600, 60]


def test_rows_of_another_start_of_the_machine_count_for_nothing(pacer: Any) -> None:
    """Stamps of another boot mean nothing: neither hits nor places nor pauses."""

    async def run() -> float:
        before = pacer(boot="yesterday")
        for end in range(6):
            await hold(before, bars(end))
        before.pause_after_violation()
        return await send(pacer(boot="today"), bars(1))

    assert asyncio.run(run()) == 5000.0


def remove(folder: Path) -> None:
    """Remove the record with all that belongs to it."""
    for path in folder.glob("pacer.sqlite*"):
        path.unlink()


def test_a_record_that_was_removed_is_made_anew(pacer: Any, tmp_path: Path) -> None:
    """Even while a process has it open; whoever removes it takes the budget into his hands."""

    async def run() -> float:
        one = pacer()
        await send(one, bars(1))
        remove(tmp_path)
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5000.0
    assert (tmp_path / "pacer.sqlite").exists()


@pytest.mark.parametrize("used", [False, True])
def test_a_broken_record_is_set_aside_and_starts_with_a_cool_down(
    pacer: Any, tmp_path: Path, used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What was forgotten breaks no rule: all wait for the longest memory that binds them."""

    async def run() -> tuple[float, float]:
        one = pacer()
        if used:
            await send(one, bars(1))
            one.close()
        remove(tmp_path)
        (tmp_path / "pacer.sqlite").write_bytes(b"this is no database" * 1000)
        first = await send(one, bars(1))
        return first, await send(pacer(), bars(2, contract="2", small=True))

    first, small = asyncio.run(run())
    assert first == pytest.approx(5015.75)
    assert small == pytest.approx(5600.0)
    assert (tmp_path / "pacer.sqlite.broken").read_bytes().startswith(b"this is no database")
    assert "is broken" in caplog.text


def test_a_record_of_a_newer_version_is_refused(pacer: Any, tmp_path: Path) -> None:
    """An older program does not work around a budget that it cannot read."""
    with sqlite3.connect(tmp_path / "pacer.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DiskError, match="newer version"):
        asyncio.run(send(pacer(), bars(1)))


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    """The state folder must be writable."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="KTRDR_STATE"):
        asyncio.run(send(Pacer(tmp_path / "file" / "state"), bars(1)))


def test_a_stamp_that_grew_old_is_taken_again(pacer: Any, time: Time, tmp_path: Path) -> None:
    """A process that stands still between stamp and sending is stamped when it really sends."""
    steps = iter([0.0, 3.0])

    def halting() -> float:
        time.now += next(steps, 0.0)
        return time.now

    one = Pacer(tmp_path, clock=halting, sleep=time.sleep, boot="boot")
    assert asyncio.run(send(one, bars(1))) == 5003.0
    one.close()
    assert asyncio.run(send(pacer(), bars(1))) == pytest.approx(5018.75)


def test_conservative_requests_keep_the_safe_delay(tmp_path: Path, time: Time) -> None:
    """A conservative gateway is asked every ten seconds and a margin."""
    config = GatewayConfig(state_dir=tmp_path, conservative=True)
    assert Pacer.of(config)._record._pacing == pacing_of(conservative=True)

    async def run() -> list[float]:
        one = Pacer(
            tmp_path, pacing=pacing_of(conservative=True), clock=time, sleep=time.sleep, boot="b"
        )
        stamps = [await send(one, bars(end)) for end in range(4)]
        one.close()
        return stamps

    stamps = asyncio.run(run())
    assert [b - a for a, b in pairwise(stamps)] == pytest.approx([10.5, 10.5, 10.5])


def test_a_record_that_another_process_holds_is_waited_for(pacer: Any, tmp_path: Path) -> None:
    """A writer elsewhere delays a request and fails nothing."""

    async def run() -> float:
        one = pacer()
        await send(one, bars(1))
        other = sqlite3.connect(tmp_path / "pacer.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(send(one, bars(2)))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not task.done()
        other.execute("ROLLBACK")
        other.close()
        return await task

    assert asyncio.run(run()) >= 5000.0


def test_a_place_is_given_back_though_another_process_is_writing(
    pacer: Any, tmp_path: Path
) -> None:
    """It waits out the other's transaction: a place that stays taken keeps everybody waiting."""

    async def run() -> float:
        rule = Rule("identical", 1, 0.1, Scope.IDENTICAL)
        one = pacer(pacing=Pacing(rules=(rule,), most_open=1, in_flight=1))
        async with one.slot(bars(1), hold_s=45) as slot:
            other = sqlite3.connect(
                tmp_path / "pacer.sqlite", isolation_level=None, check_same_thread=False
            )
            other.execute("BEGIN IMMEDIATE")
            over = threading.Timer(5 * LOCK_WAIT_S, lambda: other.execute("ROLLBACK"))
            over.start()
            slot.answered()
            over.join()
            other.close()
        return await send(one, bars(2)) - slot.sent_at_s

    assert asyncio.run(run()) == 0.0


QUICK = Pacing(
    rules=(
        Rule("identical", 1, 0.1, Scope.IDENTICAL),
        Rule("same contract", 4, 0.1, Scope.CONTRACT, small_only=True),
        Rule("window", 30, 0.4, small_only=True, weighted=True),
    ),
    most_open=5,
    in_flight=3,
)


def test_four_processes_never_break_a_rule(tmp_path: Path) -> None:
    """Some hundred requests of four processes keep every rule, by the stamps they were sent at."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        found = pool.starmap(_work, [(tmp_path, number) for number in range(4)], chunksize=1)
    sent = sorted((record for part in found for record in part), key=lambda record: record[0])
    assert len(sent) == 4 * 75
    assert _broken(sent) == []


Sent = tuple[float, float, PacedRequest]


def _work(folder: Path, number: int) -> list[Sent]:
    """Send 75 requests from five tasks at once, and give stamp, time of answer and request."""
    chance = random.Random(number)

    async def task(pacer: Pacer) -> list[Sent]:
        sent = []
        for _ in range(15):
            request = bars(
                chance.randrange(40),
                contract=str(chance.randrange(6)),
                small=chance.random() < 0.5,
                weight=chance.choice([1, 1, 2]),
                tail=chance.random() < 0.2,
            )
            async with pacer.slot(request, hold_s=5) as slot:
                await asyncio.sleep(0.005)
                sent.append((slot.sent_at_s, boot_time_s(), request))
                slot.release()
        return sent

    async def run() -> list[Sent]:
        pacer = Pacer(folder, pacing=QUICK)
        try:
            parts = await asyncio.gather(*(task(pacer) for _ in range(5)))
            return [one for part in parts for one in part]
        finally:
            pacer.close()

    return asyncio.run(run())


def _broken(sent: list[Sent]) -> list[str]:
    """Restate the rules of QUICK and find what breaks them."""
    return [name for one in sent for name in _broken_by(one, sent)]


def _broken_by(one: Sent, sent: list[Sent]) -> Iterator[str]:
    at, _, request = one
    recent = [other for stamp, _, other in sent if at - 0.1 + 1e-6 < stamp <= at]
    lately = [other for stamp, _, other in sent if at - 0.4 + 1e-6 < stamp <= at and other.small]
    is_open = [other for stamp, answered, other in sent if stamp <= at < answered]
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
    stamp = parent.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    process.close()
    parent.close()
    child.close()

    async def run() -> float:
        pacer = Pacer(tmp_path, pacing=QUICK)
        try:
            return await send(pacer, bars("new"))
        finally:
            pacer.close()

    assert asyncio.run(run()) >= stamp + 0.5


def _hold_and_wait(folder: Path, pipe: Any) -> None:
    """Take every place for half a second, say when, and wait to be killed."""

    async def run() -> float:
        pacer = Pacer(folder, pacing=QUICK)
        return max([await hold(pacer, bars(end), hold_s=0.5) for end in range(3)])

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
