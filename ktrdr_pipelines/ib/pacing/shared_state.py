"""What all processes have sent to one gateway, and its pauses: their one record of requests.

Each operation is one short transaction of the shared file, begun as a writer, so that decisions of
several processes follow one another. Times are seconds since the machine started; rows of another
start of the machine count as requests that were sent before it.

Not here: what is remembered of the gateway (``ib.pacing.gateway_memory``), the file, its schema and
damage (``ib.pacing.shared_file``), the table of requests (``ib.pacing.request_rows``), the rules
(``ib.pacing.rules``).
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    BreakerState,
    depth_of,
)
from ktrdr_pipelines.ib.pacing.concurrency import Sample
from ktrdr_pipelines.ib.pacing.gateway_memory import BREAKER, SharedMemory, Vitals
from ktrdr_pipelines.ib.pacing.request_rows import (
    CLOCK_GRAIN_S,
    RequestRows,
    adopt,
    insert,
    is_queued,
    prune,
)
from ktrdr_pipelines.ib.pacing.rules import (
    PacedRequest,
    Pacing,
    RequestKind,
    SendTime,
    Waiting,
    next_pause_s,
    send_time,
)
from ktrdr_pipelines.ib.pacing.shared_file import SharedFile
from ktrdr_pipelines.limits import IbLimitsRegistry

LONGEST_SLEEP_S = 10.0
"""Seconds that a waiting request may sleep before it checks again whether it may be sent."""

UNREPORTED_AFTER_S = LONGEST_SLEEP_S + 5.0
"""Seconds that a queue entry counts without being renewed; its process may be dead."""

PRUNE_S = 60.0
"""Seconds between two deletions of old rows by one process."""

_NEWEST = 2**62
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pause:
    """The last pause after a violation: its end and its length; ``length_s`` None is no pause."""

    until: float = 0.0
    length_s: float | None = None


def last_pause(database: sqlite3.Connection, boot: str) -> Pause:
    """Return the last pause of this run of the machine."""
    row = database.execute("SELECT until, length_s FROM pauses WHERE boot = ?", (boot,)).fetchone()
    return Pause() if row is None else Pause(row[0], row[1])


def set_pause(database: sqlite3.Connection, boot: str, *, until: float, length_s: float) -> None:
    """Replace the last pause."""
    database.execute("DELETE FROM pauses")
    database.execute("INSERT INTO pauses VALUES (?, ?, ?)", (boot, until, length_s))


def forget_future(
    database: sqlite3.Connection, boot: str, *, now: float, longest_wait_s: float
) -> None:
    """Forget everything of a run of the machine if any of it lies in the future.

    A system without names for its runs gives two of them the same name, and then the clock has
    restarted: a pause of the earlier run would last as long as the machine was up then. Requests
    get another name, so that they count as those of an earlier run.

    Args:
        database: the transaction.
        boot: the name of the run.
        now: the clock.
        longest_wait_s: how long a queue entry counts without being renewed.
    """
    latest = database.execute(
        "SELECT max(CASE state WHEN 'waiting' THEN until - ? ELSE at END)"
        " FROM requests WHERE boot = ?",
        (longest_wait_s, boot),
    ).fetchone()[0]
    pause, recorded = last_pause(database, boot), SharedMemory(boot).latest(database)
    begun = (latest or 0.0, pause.until - (pause.length_s or 0.0), recorded)
    if max(begun) > now + CLOCK_GRAIN_S:
        database.execute("UPDATE requests SET boot = ? WHERE boot = ?", (f"before {boot}", boot))
        for table in ("pauses", "memory"):
            database.execute(f"DELETE FROM {table} WHERE boot = ?", (boot,))  # noqa: S608


class Sending:
    """A message to be written once to the gateway's socket, when it has a permit.

    ``at`` is when it was written, ``number`` its row, once it has one.
    """

    def __init__(self, write: Callable[[], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self.at: float | None = None
        self.number: int | None = None

    def written_at(self) -> float:
        """Write the message unless it was written already; return the time after writing."""
        if self.at is None:
            self._write()
            self.at = self._clock()
        return self.at


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """The result of an attempt to send: the row's number, the send time, and whether it was sent.

    ``request`` is the request, ``is_paused`` is true where a pause after a violation delays it. The
    send time of a sent request is the time at which it was written. ``deadline`` is the time from
    which a sent request counts at the latest.
    """

    number: int
    send_time: SendTime
    sent: bool
    request: PacedRequest
    deadline: float = 0.0
    is_paused: bool = False


class SharedRecord:
    """One rate limiter's access to the shared record.

    Args:
        folder: where the file lies.
        boot: name of this run of the machine.
        owner: unique name of the rate limiter.
        pacing: the rules.
        clock: seconds since the machine started.
    """

    def __init__(
        self, folder: Path, *, boot: str, owner: str, pacing: Pacing, clock: Callable[[], float]
    ) -> None:
        self._file = SharedFile(folder, on_loss=self._start_over)
        self._boot, self._owner = boot, owner
        self._pacing, self._clock = pacing, clock
        self._memory = SharedMemory(boot)
        self._pacings: dict[tuple[RequestKind, bool, bool], Pacing] = {}
        self._pruned_at = -PRUNE_S
        self._is_begun = False
        self.concurrency = pacing.concurrency

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._file.close()

    @property
    def exists(self) -> bool:
        """Return whether anything was ever recorded; looking creates nothing."""
        return self._file.exists

    def lets_through(self) -> bool:
        """Return whether the circuit breaker is closed, as most of the time.

        Raises:
            RecordBusyError: the record cannot be read now.
        """
        if not self._is_begun:
            return False
        row = self._file.glance(
            "SELECT value FROM memory WHERE boot = ? AND name = ?", (self._boot, BREAKER)
        )
        return row is None or self._memory.breaker_in(str(row[0])).state is BreakerState.CLOSED

    def attempt(
        self, request: PacedRequest, number: int | None, sending: Sending, *, hold_s: float
    ) -> QueueEntry:
        """Send a request now if the rules allow it, else queue it until the earliest time.

        The message is written inside the transaction, and its time is taken after that: no process
        writes between another's decision and its message, so the rules hold at the socket however
        long a process is suspended. A request under the hard rules counts in a transaction of its
        own before: a process that is killed while it writes leaves no trace of the second one.

        Args:
            request: what is to be sent.
            number: the row of an earlier attempt, or None.
            sending: writes it; a message that an attempt wrote before it failed is recorded only.
            hold_s: how long the permit stays taken after sending if it is never released.

        Raises:
            RecordBusyError: another process is writing; try again in a moment.
        """
        number = number if sending.number is None else sending.number
        if sending.at is None and any(rule.weighted for rule in self._binding(request).rules):
            entry = self._attempt(request, number, sending, hold_s=hold_s, writes=False)
            if not entry.sent:
                return entry
            number = entry.number
        return self._attempt(request, number, sending, hold_s=hold_s, writes=True)

    def _attempt(
        self,
        request: PacedRequest,
        number: int | None,
        sending: Sending,
        *,
        hold_s: float,
        writes: bool,
    ) -> QueueEntry:
        with self._transaction() as database:
            now = self._clock()
            if now - self._pruned_at >= PRUNE_S:
                self._pruned_at = now
                horizon_s = self._pacing.horizon_s(small=True)
                prune(database, self._boot, now=now, horizon_s=horizon_s)
            # New, or its row was deleted: it joins the end of the queue.
            is_known = number is not None and is_queued(database, number, self._owner, request)
            mine = number if is_known and number is not None else 0
            chance = self._send_time(database, request, mine, now)
            is_message = request.kind is RequestKind.MESSAGE
            paused_until = 0.0 if is_message else last_pause(database, self._boot).until
            if paused_until > chance.at:
                chance = SendTime(paused_until, chance.has_permit, paused_until)
            sent = sending.at is not None or chance.is_now(now)
            if sent and writes:
                chance = SendTime(sending.written_at(), has_permit=True)
            counted = chance.at + hold_s if sent else None
            until = now + UNREPORTED_AFTER_S if counted is None else counted
            state = "waiting" if not sent else "done" if is_message else "open"
            if mine:
                database.execute(
                    "UPDATE requests SET state = ?, at = ?, until = ?, counted = ?"
                    " WHERE number = ?",
                    (state, chance.at, until, counted, mine),
                )
            else:
                mine = self._insert(database, request, state, (chance.at, until, counted))
        sending.number = mine
        is_paused = now < paused_until == chance.at
        return QueueEntry(
            mine, chance, sent, request, deadline=chance.at + hold_s, is_paused=is_paused
        )

    def release(self, entry: QueueEntry) -> None:
        """Release a permit: the gateway has responded to the request."""
        with self._transaction() as database:
            self._release(database, entry, self._clock())

    def answered(self, entry: QueueEntry) -> int:
        """Release a permit after a response with bars, and adapt the concurrency to its time.

        Returns: how many requests of its kind were open when it was sent, with it.
        """
        with self._transaction() as database:
            now = self._clock()
            sent_at = entry.send_time.at
            rows = RequestRows(database, self._boot, now)
            at_once = rows.open_at(sent_at, small=entry.request.small)
            sample = Sample(sent_at, now, rows.open_at((sent_at + now) / 2, small=False))
            self._release(database, entry, now)
            concurrency = self._memory.answered(database, entry.request.size, sample)
            if self._pacing.adapts:
                self.concurrency = concurrency.limit(now)
            return max(at_once, 1)

    def remember(self, act: Callable[[SharedMemory, sqlite3.Connection], T]) -> T:
        """Read or write what all processes remember of the gateway, in one transaction."""
        with self._transaction() as database:
            return act(self._memory, database)

    def vitals(self) -> Vitals:
        """Return the gateway's condition as all processes together know it."""
        with self._transaction() as database:
            now = self._clock()
            paused_until = last_pause(database, self._boot).until
            held = RequestRows(database, self._boot, now).open_requests().values()
            return replace(
                self._memory.vitals(database, now),
                paused_s=max(paused_until - now, 0.0),
                permits_taken=sum(one.total for one in held),
            )

    def lose(self, entry: QueueEntry) -> None:
        """Release a permit: the gateway has read the request by now, or never will."""
        with self._transaction() as database:
            now = self._clock()
            self._end(database, entry, state="done", until=now, counted=min(entry.deadline, now))

    def cancel(self, entry: QueueEntry, *, hold_s: float) -> None:
        """Keep a permit for so many more seconds at most; the request counts by its deadline."""
        with self._transaction() as database:
            until = self._clock() + hold_s
            self._end(database, entry, state="open", until=until, counted=entry.deadline)

    def withdraw(self, number: int) -> None:
        """Delete the queue entry of a request that was never sent."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM requests WHERE number = ? AND owner = ?", (number, self._owner)
            )

    def pause(self) -> float:
        """Pause all requests of all processes after a violation; return the seconds from now.

        Several error messages about the same burst make one pause.
        """
        with self._transaction() as database:
            now = self._clock()
            last = last_pause(database, self._boot)
            if last.length_s is not None and last.until > now:
                return last.until - now
            length_s = next_pause_s(last.length_s, now - last.until)
            set_pause(database, self._boot, until=now + length_s, length_s=length_s)
            return length_s

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction; the first one adopts the requests of earlier runs of the machine."""
        with self._file.transaction() as database:
            if not self._is_begun:
                forget_future(
                    database, self._boot, now=self._clock(), longest_wait_s=UNREPORTED_AFTER_S
                )
                adopt(database, self._boot, horizon_s=self._pacing.horizon_s(small=True))
            yield database
        self._is_begun = True  # not before: one that failed has adopted nothing

    def _release(self, database: sqlite3.Connection, entry: QueueEntry, now: float) -> None:
        """Count a request from its response on; one whose row was lost with the file, too."""
        self._end(database, entry, state="done", until=now, counted=now)
        self._memory.responded(database, depth_of(entry.request.kind))

    def _end(
        self,
        database: sqlite3.Connection,
        entry: QueueEntry,
        *,
        state: str,
        until: float,
        counted: float,
    ) -> None:
        """Set until when a request holds its permit, and from when it counts at the latest.

        A request whose row was lost with the file gets one again.
        """
        at = entry.send_time.at
        updated = database.execute(
            "UPDATE requests SET state = ?, until = min(until, ?), counted = ?"
            " WHERE number = ? AND owner = ? AND at = ?",
            (state, until, counted, entry.number, self._owner, at),
        )
        if not updated.rowcount:
            self._insert(database, entry.request, state, (at, until, counted))

    def _insert(
        self,
        database: sqlite3.Connection,
        request: PacedRequest,
        state: str,
        times: tuple[float, float, float | None],
    ) -> int:
        """Add a request with its times ``at``, ``until`` and ``counted``; return its number."""
        at, until, counted = times
        return insert(
            database,
            self._boot,
            self._owner,
            request,
            state=state,
            at=at,
            until=until,
            counted=counted,
        )

    def _send_time(
        self, database: sqlite3.Connection, request: PacedRequest, mine: int, now: float
    ) -> SendTime:
        rows = RequestRows(database, self._boot, now, excluded=mine)
        if self._pacing.adapts:
            self.concurrency = self._memory.concurrency(database).limit(now)
        me, held = Waiting(mine or _NEWEST, self._owner, now, request), rows.open_requests()

        def decide(others: Sequence[Waiting]) -> SendTime:
            return send_time(
                self._binding(request),
                me=me,
                sent=(),
                open_requests=held,
                others=others,
                now=now,
                recorded=rows,
            )

        alone = decide(())
        # The others can delay it only further: what is not due by itself need not know them.
        others = rows.waiting() if alone.is_now(now) else ()
        return decide(others) if others else alone

    def _binding(self, request: PacedRequest) -> Pacing:
        """Return the rules that bind a request, with the concurrency as it is now."""
        kind = (request.kind, request.small, request.tail)
        known = self._pacings.get(kind)
        if known is None or known.concurrency != self.concurrency:
            known = replace(self._pacing.binding(request), concurrency=self.concurrency)
            self._pacings[kind] = known
        return known

    def _start_over(self, database: sqlite3.Connection) -> None:
        """Begin after a loss of the record as if the budget had just been used up.

        Small requests wait a whole window; every request waits as long as an identical one would
        have to.
        """
        now = self._clock()
        everything = PacedRequest(
            RequestKind.BARS, "", "", weight=IbLimitsRegistry.WINDOW_MOST.value, small=True
        )
        self._insert(database, everything, "done", (now, now, now))
        cool_down_s = self._pacing.horizon_s(small=False)
        set_pause(database, self._boot, until=now + cool_down_s, length_s=cool_down_s)
