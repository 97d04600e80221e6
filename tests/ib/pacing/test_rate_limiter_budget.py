"""The hard limits at the gateway: what arrives there, whatever happens on the way."""

import asyncio
import multiprocessing
import os
import random
import selectors
import signal
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import PacedRequest, pacing_of
from ktrdr_pipelines.ib.pacing.shared_file import FILE
from tests.ib.pacing_support import FakeClock, bars, hold, send

HARD = pacing_of(conservative=True)
HOLD_S = 45.0

Arrival = tuple[float, PacedRequest]


class _Impatient(selectors.DefaultSelector):
    """A selector that does not wait: it lets the time of its loop pass."""

    now = 5000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.now += timeout
        return super().select(0)


class SimulatedTime(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when every task waits."""

    def __init__(self) -> None:
        self.selector = _Impatient()
        super().__init__(self.selector)

    def time(self) -> float:
        """Return the simulated time."""
        return self.selector.now


def broken(arrivals: Iterable[Arrival], scale: float = 1.0) -> list[str]:
    """Return IB's rules, restated here, that requests break in the order of their arrival."""
    found = []
    arrivals = sorted(arrivals, key=lambda one: one[0])
    for at, request in arrivals:

        def within(length_s: float, until: float = at) -> list[PacedRequest]:
            since = until - length_s * scale + 1e-6
            return [other for moment, other in arrivals if since < moment <= until]

        if sum(other.weight for other in within(600.0)) > 60:
            found.append("window")
        if sum(other.contract == request.contract for other in within(2.0)) > 5:
            found.append("same contract")
        if sum(other.identical == request.identical for other in within(15.0)) > 1:
            found.append("identical")
    return found


@dataclass
class SlowWay:
    """The way to a gateway: requests arrive some time after they were sent.

    Some get no response until their deadline, some are cancelled, and for some the process dies.
    """

    chance: random.Random
    latest_s: float
    arrivals: list[Arrival]

    async def ask(self, rate_limiter: RateLimiter, request: PacedRequest) -> None:
        """Send a request, and wait for its response."""
        loop = asyncio.get_running_loop()
        way_s = self.chance.uniform(0, self.latest_s)
        fate = self.chance.random()

        def write() -> None:
            # A gateway that hangs reads a request late, but not after its deadline.
            on_way_s = self.chance.uniform(0, HOLD_S) if fate < 0.1 else way_s
            loop.call_later(on_way_s, lambda: self.arrivals.append((loop.time(), request)))

        async with rate_limiter.permit(request, hold_s=HOLD_S, write=write) as permit:
            if fate < 0.05:
                permit.abandon()
            elif fate < 0.1:
                await asyncio.sleep(30.0)  # the timeout of the request, whose permit stays taken
            elif fate < 0.15:
                permit._let_go = lambda _: None  # its process was killed
            else:
                await asyncio.sleep(way_s + self.chance.uniform(0, 2))
                permit.answered()


@pytest.mark.parametrize(("processes", "latest_s"), [(1, 0.4), (4, 0.0), (4, 12.0)])
def test_no_rule_is_broken_at_the_gateway(tmp_path: Path, latest_s: float, processes: int) -> None:
    """For any delays on the way, timeouts, cancels and deaths of processes."""
    loop = SimulatedTime()
    way = SlowWay(random.Random(round(latest_s * 10) + processes), latest_s, [])
    limiters = [
        RateLimiter(tmp_path, pacing=HARD, clock=loop.time, boot="boot") for _ in range(processes)
    ]

    async def task(one: RateLimiter, count: int) -> None:
        for number in range(count):
            request = bars(
                way.chance.randrange(100),
                contract=str(way.chance.randrange(12)),
                weight=way.chance.choice([1, 1, 1, 2]),
                tail=way.chance.random() < 0.15,
                size="1 min, 1 D",
            )
            await way.ask(one, request)
            if number % 5 == 0:
                await asyncio.sleep(way.chance.uniform(0, 60))

    async def run() -> None:
        await asyncio.gather(*(task(limiters[n % processes], 10) for n in range(12)))
        await asyncio.sleep(HOLD_S)

    with closing(loop):
        loop.run_until_complete(run())
    for one in limiters:
        one.close()
    assert len(way.arrivals) == 120
    assert broken(way.arrivals) == []


def test_the_next_in_the_queue_polls_when_the_first_waits_for_time(tmp_path: Path) -> None:
    """Another process sends what the first waits to send; that does not hold up the second."""
    loop = SimulatedTime()
    one_at_once = replace(pacing_of(), concurrency=1, adapts=False)
    mine, other = (
        RateLimiter(tmp_path, pacing=one_at_once, clock=loop.time, boot="boot") for _ in range(2)
    )
    sent: dict[str, float] = {}

    async def ask(limiter: RateLimiter, name: str, request: PacedRequest, took_s: float) -> None:
        async with limiter.permit(request, hold_s=HOLD_S) as permit:
            sent[name] = loop.time() - 5000.0
            await asyncio.sleep(took_s)
            permit.answered()

    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(other, "earlier", bars("earlier"), 1.0))
            await asyncio.sleep(0.1)
            tasks.create_task(ask(mine, "first", bars("same"), 1.0))
            tasks.create_task(ask(mine, "second", bars("another"), 1.0))
            tasks.create_task(ask(other, "same", bars("same", tail=True), 1.0))

    with closing(loop):
        loop.run_until_complete(run())
    mine.close()
    other.close()
    assert sent["same"] == pytest.approx(1.0, abs=0.2)
    assert sent["second"] == pytest.approx(2.0, abs=0.3)
    assert sent["first"] >= 2.0 + 15.0


REQUESTS_OF_A_LOAD = 300


def test_a_long_load_uses_nearly_all_of_the_budget_and_a_tail_is_sent_at_once(
    tmp_path: Path,
) -> None:
    """300 requests take 58 a window; each tail that comes meanwhile waits for two minutes at most.

    The third of three tails that come together waits for a request that was lent.
    """
    loop = SimulatedTime()
    limiters = [RateLimiter(tmp_path, pacing=HARD, clock=loop.time, boot="boot") for _ in range(4)]
    waited: list[float] = []
    sent: list[Arrival] = []

    async def ask(one: RateLimiter, request: PacedRequest) -> float:
        begun = loop.time()
        async with one.permit(request, hold_s=HOLD_S) as permit:
            sent.append((loop.time(), request))
            await asyncio.sleep(0.5)
            permit.answered()
        return permit.sent_at_s - begun

    async def tails() -> None:
        for number in range(3):
            await asyncio.sleep(800.0)
            both = (bars(number, contract=f"tail {number} {n}", tail=True) for n in range(3))
            waited.extend(
                await asyncio.gather(*(ask(limiters[n], one) for n, one in enumerate(both)))
            )

    async def run() -> float:
        queue = list(range(REQUESTS_OF_A_LOAD))

        async def backfills(one: RateLimiter) -> None:
            while queue:
                number = queue.pop()
                await ask(one, bars(number, contract=str(number)))

        await asyncio.gather(tails(), *(backfills(limiters[n % 4]) for n in range(8)))
        return loop.time() - 5000.0

    with closing(loop):
        took_s = loop.run_until_complete(run())
    for one in limiters:
        one.close()
    assert broken(sent) == []
    ideal_s = (REQUESTS_OF_A_LOAD + 9 - 1) // 60 * 600
    assert took_s <= 1.05 * ideal_s
    waited.sort()
    assert waited[5] < 1.0
    assert waited[-1] <= 151.0


REQUESTS = 76


@pytest.mark.slow
@pytest.mark.parametrize(("is_killed", "scale"), [(False, 1 / 20), (True, 1 / 40)])
def test_four_processes_share_the_window_exactly(
    tmp_path: Path, *, is_killed: bool, scale: float
) -> None:
    """76 requests take one window; one process may be killed while it writes a request."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe(duplex=False)
    workers = [
        context.Process(
            target=_load, args=(tmp_path, number, child, scale, is_killed and number == 0)
        )
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    child.close()
    arrivals: list[Arrival] = []
    begun: list[float] = []
    with suppress(EOFError):
        while True:
            name, at, request = parent.recv()
            (arrivals if name == "arrived" else begun).append((at, request))  # type: ignore[arg-type]
    for worker in workers:
        worker.join(60)
        worker.close()
    parent.close()
    assert len(arrivals) == (REQUESTS if not is_killed else 1 + REQUESTS * 3 // 4)
    assert broken(arrivals, scale) == []
    if not is_killed:
        last = max(at for at, _ in arrivals)
        first = min(at for at, _ in arrivals)
        assert last - first <= 1.05 * 600 * scale


def _load(folder: Path, number: int, pipe: Any, scale: float, is_killed: bool) -> None:
    """Send a quarter of the requests from five tasks, and tell when each arrived."""
    chance = random.Random(number)

    async def ask(one: RateLimiter, request: PacedRequest) -> None:
        def write() -> None:
            if is_killed:
                pipe.send(("arrived", boot_time_s(), request))
                os.kill(os.getpid(), signal.SIGKILL)

        async with one.permit(request, hold_s=HOLD_S * scale, write=write) as permit:
            await asyncio.sleep(chance.uniform(0, 0.03))
            pipe.send(("arrived", boot_time_s(), request))
            await asyncio.sleep(chance.uniform(0, 0.03))
            permit.answered()

    async def run() -> None:
        one = RateLimiter(folder, pacing=HARD.scaled(scale))
        queue = [bars(n, contract=f"{number} {n}", size="1 D") for n in range(REQUESTS // 4)]

        async def task() -> None:
            while queue:
                await ask(one, queue.pop())

        await asyncio.gather(*(task() for _ in range(5)))
        one.close()

    asyncio.run(run())


def window_of(clock: FakeClock, make: Callable[..., RateLimiter], **other: Any) -> RateLimiter:
    """Return a rate limiter that has used up the window for tails."""
    one = make(pacing=HARD, **other)
    for n in range(60):
        asyncio.run(send(one, bars(n, contract=str(n), tail=True)))
        clock.now += 0.1
    return one


def test_requests_of_an_earlier_boot_count_from_the_start_of_this_one(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """The gateway may run elsewhere and remember them; nothing says how long the machine was off.

    Ten minutes after the start they are forgotten.
    """
    window_of(clock, rate_limiter, boot="yesterday")
    clock.now = 30.0
    today = rate_limiter(pacing=HARD, boot="today")
    assert asyncio.run(send(today, bars("x", tail=True))) == pytest.approx(600.6)


def test_a_first_transaction_that_fails_does_not_free_the_window(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """It adopts nothing; the next one does."""

    def fail(*_: object) -> None:
        raise OSError("no space")

    window_of(clock, rate_limiter, boot="yesterday")
    clock.now = 30.0
    today = rate_limiter(pacing=HARD, boot="today")
    with pytest.raises(OSError, match="no space"):
        today.remember(fail)
    assert asyncio.run(send(today, bars("x", tail=True))) == pytest.approx(600.6)


def test_a_clock_that_restarts_under_one_name_does_not_free_the_window(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """A system without names for its boots is treated alike."""
    window_of(clock, rate_limiter)
    clock.now = 30.0
    again = rate_limiter(pacing=HARD)
    assert asyncio.run(send(again, bars("x", tail=True))) == pytest.approx(600.6)


def remove(folder: Path) -> None:
    """Remove the record and its side files."""
    for path in folder.glob(f"{FILE}*"):
        path.unlink()


def test_requests_in_flight_count_after_the_record_was_removed(
    rate_limiter: Any, clock: FakeClock, tmp_path: Path
) -> None:
    """Their responses are recorded in the new file, under whatever number it has given away."""

    async def run() -> float:
        one, other = rate_limiter(pacing=HARD), rate_limiter(pacing=HARD)
        async with one.permit(bars(1), hold_s=45) as permit:
            one.close()
            other.close()
            remove(tmp_path)
            # It gets the number that the request in flight had.
            await hold(other, bars(2, contract="2"), hold_s=45)
            clock.now += 5
            permit.answered()
        assert other.vitals().permits_taken == 1
        return await send(other, bars(1))

    assert asyncio.run(run()) == pytest.approx(5005 + 15.75)


def test_a_cancelled_request_counts_after_the_record_was_removed(
    rate_limiter: Any, tmp_path: Path
) -> None:
    """It counts from its deadline on, at which the gateway may have read it, in the new file."""

    async def run() -> float:
        one = rate_limiter(pacing=HARD)
        async with one.permit(bars(1), hold_s=1000) as permit:
            one.close()
            remove(tmp_path)
            permit.abandon()
        return await send(one, bars(1))

    assert asyncio.run(run()) == pytest.approx(6000 + 15.75)


def test_a_withdrawal_after_the_record_was_removed_leaves_other_requests(
    rate_limiter: Any, tmp_path: Path
) -> None:
    """The new file has given the number of the withdrawn request to one of another process."""

    async def run() -> None:
        one, other = rate_limiter(pacing=HARD), rate_limiter(pacing=HARD)
        async with one.permit(bars(1), hold_s=45) as permit:
            one.close()
            other.close()
            remove(tmp_path)
            await hold(other, bars(2, contract="2"), hold_s=45)
            permit.withdraw()
        assert other.vitals().permits_taken == 1

    asyncio.run(run())


def test_a_failed_write_leaves_no_trace_in_the_window(rate_limiter: Any) -> None:
    """The request was counted before it was written, and is withdrawn."""

    def fail() -> None:
        raise OSError("gone")

    async def run() -> float:
        one = rate_limiter(pacing=HARD)
        for _ in range(70):
            with pytest.raises(OSError, match="gone"):
                async with one.permit(bars(1, tail=True), hold_s=45, write=fail):
                    raise AssertionError("entered")
        return await send(one, bars(1, tail=True))

    assert asyncio.run(run()) == 5000.0


VERSION_4 = """
CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, owner TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'open', 'done')),
    at REAL NOT NULL, until REAL NOT NULL, kind TEXT NOT NULL, contract TEXT NOT NULL,
    identical TEXT NOT NULL, weight INTEGER NOT NULL, small INTEGER NOT NULL, tail INTEGER NOT NULL
);
CREATE INDEX requests_at ON requests (state, at);
CREATE TABLE pauses (boot TEXT NOT NULL, until REAL NOT NULL, length_s REAL NOT NULL);
CREATE TABLE memory (
    boot TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (boot, name)
);
CREATE TABLE blocks (
    entitlement TEXT PRIMARY KEY, reason TEXT NOT NULL, code INTEGER, until REAL NOT NULL
);
PRAGMA user_version = 4;
PRAGMA journal_mode = WAL;
"""
INSERT_4 = (
    "INSERT INTO requests (boot, owner, state, at, until, kind, contract, identical, weight, small,"
    " tail) VALUES ('boot', 'old', ?, ?, ?, 'bars', ?, ?, 1, 0, 1)"
)


def test_a_record_of_version_4_goes_on(rate_limiter: Any, clock: FakeClock, tmp_path: Path) -> None:
    """Its requests count from their deadlines; so do those of a process that still writes it."""
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as old:
        old.executescript(VERSION_4)
        for n in range(59):
            old.execute(INSERT_4, ("done", 4990.0, 5035.0, str(n), str(n)))
        old.execute("INSERT INTO memory VALUES ('boot', 'flight', '{\"width\": 9.0}')")
        one = rate_limiter(pacing=HARD)
        assert one.vitals().permits_taken == 0
        # A process of the earlier version queues a request, and sends it.
        old.execute(INSERT_4, ("waiting", 5000.0, 5015.0, "old", "old"))
        old.execute("UPDATE requests SET state = 'open', until = 5045.0 WHERE identical = 'old'")
        assert one.vitals().permits_taken == 1
        assert asyncio.run(send(one, bars(1, contract="new", tail=True))) == pytest.approx(5635.6)
        assert old.execute("PRAGMA user_version").fetchone() == (5,)


def test_an_attempt_reads_as_much_for_any_number_of_recent_rows(
    rate_limiter: Any, clock: FakeClock
) -> None:
    """SQLite does about the same number of steps with a hundred rows and with ten thousand."""
    steps: list[int] = []

    async def run(rows: int) -> int:
        one = rate_limiter(boot=f"boot {rows}")
        await send(one, bars(0, size="1 D"))
        with one._record._file.transaction() as database:
            database.executemany(
                "INSERT INTO requests (boot, owner, state, at, until, counted, kind, contract,"
                " identical, weight, small, tail)"
                " VALUES (?, 'x', 'done', ?, ?, ?, 'bars', '1', ?, 1, 0, 0)",
                [
                    (f"boot {rows}", at, at, at, f"{at}")
                    for at in (clock.now - 2 - 590 * n / rows for n in range(rows))
                ],
            )
        one._record._pruned_at = clock.now
        connection = one._record._file._database
        connection.set_progress_handler(lambda: steps.append(1), 1)
        async with one.permit(bars(1, size="1 D"), hold_s=45) as permit:
            permit.answered()
        connection.set_progress_handler(None, 1)
        count = len(steps)
        steps.clear()
        return count

    few, many = asyncio.run(run(100)), asyncio.run(run(10_000))
    assert many <= 1.3 * few


def test_small_requests_read_only_small_ones(rate_limiter: Any, clock: FakeClock) -> None:
    """Head timestamps among thousands of longer bars are counted without reading those."""
    one = rate_limiter()

    async def run() -> float:
        for n in range(60):
            await send(one, replace(bars(n, contract=str(n), tail=True), small=True))
            await send(one, bars(n, contract=str(n)))
        return await send(one, replace(bars("x", tail=True), small=True))

    assert asyncio.run(run()) >= 5600.6
