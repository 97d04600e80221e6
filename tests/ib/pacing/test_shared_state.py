"""The shared record: of another boot, removed, broken or busy."""

import asyncio
import sqlite3
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES, BreakerState
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import Pacing, Rule, Scope
from ktrdr_pipelines.ib.pacing.shared_file import LOCK_WAIT_S
from ktrdr_pipelines.ib.pacing.shared_state import Sending
from tests.ib.pacing_support import FakeClock, bars, hold, send


def test_rows_of_another_boot_do_not_count(rate_limiter: Any) -> None:
    """Requests, permits and pauses of another boot do not count."""

    async def run() -> float:
        before = rate_limiter(boot="yesterday")
        for end in range(6):
            await hold(before, bars(end))
        before.pause_after_violation()
        return await send(rate_limiter(boot="today"), bars(1))

    assert asyncio.run(run()) == 5000.0


def test_rows_in_the_future_are_of_an_earlier_boot(rate_limiter: Any, clock: FakeClock) -> None:
    """If two boots have one name, rows in the future are of the earlier one."""

    async def run() -> float:
        before = rate_limiter()
        for end in range(6):
            await hold(before, bars(end))
        waiting = asyncio.create_task(hold(before, bars(1)))
        await asyncio.sleep(0)
        before.pause_after_violation()
        for _ in range(MOST_FAILURES):
            clock.now += 1
            before.note_trouble(failure="silence")
        before._record.withdraw = lambda _: None
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        clock.now = 30.0
        after = rate_limiter()
        assert after.vitals().breaker.state is BreakerState.CLOSED
        await after.admit("bars", probe_s=45)
        return await send(after, bars(1))

    assert asyncio.run(run()) == 30.0


@pytest.mark.parametrize("mark", ["pause", "breaker", "width", "line"])
def test_any_row_in_the_future_shows_an_earlier_boot(
    rate_limiter: Any, clock: FakeClock, mark: str
) -> None:
    """A pause, a breaker, a concurrency or a queue entry alone shows it."""
    before = rate_limiter()
    if mark == "pause":
        before.pause_after_violation()
    elif mark == "line":
        for _ in range(2):
            unsent = Sending(lambda: None, clock)
            before._record.attempt(bars(1), None, unsent, hold_s=45)
        before.remember(lambda _, database: database.execute("DELETE FROM requests WHERE number=1"))
    else:
        before.note_trouble(failure="silence" if mark == "breaker" else None)
    clock.now = 30.0
    after = rate_limiter()
    assert after.vitals().paused_s == 0.0
    assert after.remember(lambda memory, database: memory.latest(database)) == 0.0
    assert asyncio.run(send(after, bars(1))) == 30.0


def remove(folder: Path) -> None:
    """Remove the record and its side files."""
    for path in folder.glob("pacer.sqlite*"):
        path.unlink()


def test_a_removed_record_is_recreated(rate_limiter: Any, tmp_path: Path) -> None:
    """A process that has it open makes a new one, with a new budget."""

    async def run() -> float:
        one = rate_limiter()
        await send(one, bars(1))
        remove(tmp_path)
        return await send(one, bars(1))

    assert asyncio.run(run()) == 5000.0
    assert (tmp_path / "pacer.sqlite").exists()


@pytest.mark.parametrize("used", [False, True])
def test_a_broken_record_is_quarantined_and_starts_with_a_cool_down(
    rate_limiter: Any, tmp_path: Path, used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """All requests wait for the longest window that binds them."""

    async def run() -> tuple[float, float]:
        one = rate_limiter()
        if used:
            await send(one, bars(1))
            one.close()
        remove(tmp_path)
        (tmp_path / "pacer.sqlite").write_bytes(b"this is no database" * 1000)
        first = await send(one, bars(1))
        return first, await send(rate_limiter(), bars(2, contract="2", small=True))

    first, small = asyncio.run(run())
    assert first == pytest.approx(5015.75)
    assert small == pytest.approx(5600.6)
    assert (tmp_path / "pacer.sqlite.broken").read_bytes().startswith(b"this is no database")
    assert "is broken" in caplog.text


def test_a_record_of_a_newer_version_is_refused(rate_limiter: Any, tmp_path: Path) -> None:
    """An older program does not bypass a record that it cannot read."""
    with sqlite3.connect(tmp_path / "pacer.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(DiskError, match="newer version"):
        asyncio.run(send(rate_limiter(), bars(1)))


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    """The error names KTRDR_STATE."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="KTRDR_STATE"):
        asyncio.run(send(RateLimiter(tmp_path / "file" / "state"), bars(1)))


def test_a_record_that_another_process_holds_is_waited_for(
    rate_limiter: Any, tmp_path: Path
) -> None:
    """A transaction of another process delays a request."""

    async def run() -> float:
        one = rate_limiter()
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


def test_a_permit_is_released_while_another_process_writes(
    rate_limiter: Any, tmp_path: Path
) -> None:
    """Releasing a permit waits for the other process's transaction."""

    async def run() -> float:
        rule = Rule("identical", 1, 0.1, Scope.IDENTICAL)
        one = rate_limiter(pacing=Pacing(rules=(rule,), most_open=1, concurrency=1))
        async with one.permit(bars(1), hold_s=45) as permit:
            other = sqlite3.connect(
                tmp_path / "pacer.sqlite", isolation_level=None, check_same_thread=False
            )
            other.execute("BEGIN IMMEDIATE")
            over = threading.Timer(5 * LOCK_WAIT_S, lambda: other.execute("ROLLBACK"))
            over.start()
            permit.answered()
            over.join()
            other.close()
        return await send(one, bars(2)) - permit.sent_at_s

    assert asyncio.run(run()) == 0.0


ADAPTING = Pacing(
    rules=(Rule("identical", 1, 0.1, Scope.IDENTICAL),), most_open=50, concurrency=6, adapts=True
)
"""Rules that delay nothing here; the number of requests in flight adapts."""


def test_responses_that_arrive_together_all_count(rate_limiter: Any, clock: FakeClock) -> None:
    """Requests that were open at once widen the width, though ever fewer are open as they end."""

    async def run() -> tuple[int, int]:
        one = rate_limiter(pacing=ADAPTING)
        before = one.vitals().concurrency
        for turn in range(2):  # the first response of a size is what the others are compared with
            async with AsyncExitStack() as stack:
                permits = [
                    await stack.enter_async_context(
                        one.permit(bars(f"{turn}, {number}", size="1 D"), hold_s=45)
                    )
                    for number in range(before)
                ]
                clock.now += 1.0
                for permit in permits:
                    permit.answered()
                    clock.now += 0.001
        return before, one.vitals().concurrency

    before, after = asyncio.run(run())
    assert after > before


def test_few_requests_at_once_do_not_widen(rate_limiter: Any, clock: FakeClock) -> None:
    """However many follow one another: those that ended before count for nothing."""

    async def run() -> tuple[int, int]:
        one = rate_limiter(pacing=ADAPTING)
        before = one.vitals().concurrency
        for number in range(100):
            async with one.permit(bars(number, size="1 D"), hold_s=45) as permit:
                clock.now += 1.0
                permit.answered()
        return before, one.vitals().concurrency

    before, after = asyncio.run(run())
    assert after == before
