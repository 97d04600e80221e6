"""What all processes know of one gateway: requests, pauses, concurrency, breaker, refusals.

Each operation is one short transaction of the shared file, begun as a writer, so that decisions of
several processes follow one another. Times are seconds since the machine started; rows of another
start of the machine do not count, except refusals (``Block``) and absences (``Absence``), which
last by the wall clock, the bar sizes that the gateway accepts, and learned widths.

Not here: the file itself, its schema and damage (``ib.pacing.shared_file``), the table of requests
(``ib.pacing.request_rows``), the rules (``ib.pacing.rules``).
"""

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    Absence,
    Admission,
    Breaker,
    BreakerState,
    Depth,
    admission,
    depth_of,
    failed,
    seen_absent,
    succeeded,
)
from ktrdr_pipelines.ib.pacing.concurrency import Concurrency, Sample, answered, troubled
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

LONGEST_BLOCK_S = IbLimitsRegistry.TRY_AGAIN_S.value["blocked"].longest_s
"""Longest time that a refusal counts."""

EVERY_BOOT = ""
"""The boot name of rows in the memory table that stay valid when the machine restarts."""

_CONCURRENCY, _BREAKER, _ABSENCE, _SIZE = "flight", "breaker", "absence", "bar size "
_WIDTH = "width "
_BREAKER_FIELDS = frozenset(field.name for field in fields(Breaker))
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Block:
    """A refusal for lack of a permission: of what, the gateway's reason, and until when it counts.

    ``until`` is seconds since 1970.
    """

    entitlement: str
    reason: str
    code: int | None
    until: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """The gateway's condition as all processes together know it.

    ``answered_at`` is the shared clock's time of the last response with bars, 0 if there was none;
    ``paused_s`` is what is left of a pause after a pacing violation; ``permits_taken`` counts the
    requests that hold a permit.
    """

    concurrency: int
    answered_at: float
    breaker: Breaker
    paused_s: float = 0.0
    permits_taken: int = 0


def _breaker(text: str) -> Breaker:
    known: dict[str, Any] = json.loads(text)
    values = {name: value for name, value in known.items() if name in _BREAKER_FIELDS}
    made = {"state": BreakerState, "depth": Depth}
    for one in made.keys() & values.keys():
        values[one] = made[one](values[one])
    return Breaker(**values)


class SharedMemory:
    """What all processes remember of the gateway; every method runs inside a transaction.

    Concurrency and breaker count for one run of the machine (``boot``), refusals and absences by
    the wall clock.
    """

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._last: dict[str, tuple[str, Any]] = {}

    def concurrency(self, database: sqlite3.Connection) -> Concurrency:
        """Return the concurrency of requests for bars.

        After a restart of the machine it is the width of before without its latencies: the first
        rounds of responses confirm or correct it, so it counts however old it is.
        """
        row = database.execute(
            "SELECT value FROM memory WHERE name = ? AND boot IN (?, ?) ORDER BY boot = ? LIMIT 1",
            (_CONCURRENCY, self._boot, EVERY_BOOT, EVERY_BOOT),
        ).fetchone()
        if row is None:
            return Concurrency()
        return self._read(_CONCURRENCY, str(row[0]), Concurrency.read)

    def breaker(self, database: sqlite3.Connection) -> Breaker:
        """Return the state of the circuit breaker."""
        text = self._text(database, _BREAKER)
        return Breaker() if text is None else self.breaker_in(text)

    def breaker_in(self, text: str) -> Breaker:
        """Return the breaker that a text of the record stands for."""
        return self._read(_BREAKER, text, _breaker)

    def latest(self, database: sqlite3.Connection) -> float:
        """Return the latest time that concurrency or breaker hold, 0 if nothing was recorded."""
        concurrency = self.concurrency(database)
        breaker = self.breaker(database)
        return max(concurrency.seen_at, concurrency.cut_at, breaker.failed_at)

    def vitals(self, database: sqlite3.Connection, now: float) -> Vitals:
        """Return the gateway's condition, without the pause."""
        concurrency = self.concurrency(database)
        breaker = self.breaker(database)
        return Vitals(concurrency.limit(now), concurrency.seen_at, breaker)

    def answered(self, database: sqlite3.Connection, size: str, sample: Sample) -> Concurrency:
        """Record a response with bars; return the concurrency from now on.

        Args:
            database: the transaction.
            size: of the request, as in ``PacedRequest.size``.
            sample: when it was sent and answered, and how many requests were open.
        """
        before = self.concurrency(database)
        after = answered(before, size, sample)
        self._save_concurrency(database, before, after)
        return after

    def troubled(self, database: sqlite3.Connection, *, sent_at: float, now: float) -> None:
        """Record a failure that may come from too many requests in flight."""
        before = self.concurrency(database)
        self._save_concurrency(database, before, troubled(before, sent_at=sent_at, at=now))

    def admission(self, database: sqlite3.Connection, now: float, *, probe_s: float) -> Admission:
        """Decide whether the circuit breaker lets a request through, and record the decision."""
        before = self.breaker(database)
        chance = admission(before, now, probe_s=probe_s)
        self._save_breaker(database, before, chance.breaker)
        return chance

    def failed(
        self, database: sqlite3.Connection, *, sent_at: float, now: float, depth: Depth, reason: str
    ) -> Breaker:
        """Record a failure of the gateway; return the breaker from now on."""
        before = self.breaker(database)
        after = failed(before, sent_at=sent_at, now=now, depth=depth, reason=reason)
        self._save_breaker(database, before, after)
        return after

    def responded(self, database: sqlite3.Connection, depth: Depth) -> None:
        """Record that the gateway responded at a depth, whatever the response."""
        before = self.breaker(database)
        self._save_breaker(database, before, succeeded(before, depth))

    def reset(self, database: sqlite3.Connection) -> None:
        """Close the circuit breaker and forget every refusal."""
        self._save(database, _BREAKER, json.dumps(asdict(Breaker())))
        database.execute("DELETE FROM blocks")

    def absence(self, database: sqlite3.Connection) -> Absence | None:
        """Return the last absence of the gateway; None without one that can be read."""
        text = self._text(database, _ABSENCE, EVERY_BOOT)
        if text is None:
            return None
        try:
            known = json.loads(text)
            ended_at = known.get("ended_at")
            return Absence(
                datetime.fromisoformat(known["since"]).astimezone(UTC),
                datetime.fromisoformat(known["seen_at"]).astimezone(UTC),
                str(known["text"]),
                None if ended_at is None else datetime.fromisoformat(ended_at).astimezone(UTC),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def absent(self, database: sqlite3.Connection, at: datetime, text: str) -> None:
        """Record that a run could not reach the gateway."""
        self._save_absence(database, seen_absent(self.absence(database), at, text))

    def recovered(self, database: sqlite3.Connection, at: datetime) -> None:
        """Record that runs can reach the gateway again; this closes the circuit breaker."""
        self.responded(database, Depth.DATA)
        known = self.absence(database)
        if known is not None and known.ended_at is None:
            self._save_absence(database, replace(known, ended_at=at))

    def block(self, database: sqlite3.Connection, block: Block) -> None:
        """Record a refusal."""
        database.execute(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)",
            (block.entitlement, block.reason, block.code, block.until),
        )

    def allow(self, database: sqlite3.Connection, entitlement: str) -> None:
        """Forget a refusal."""
        database.execute("DELETE FROM blocks WHERE entitlement = ?", (entitlement,))

    def blocks(self, database: sqlite3.Connection, wall_s: float) -> list[Block]:
        """Return the refusals that count; one that lasts too long was recorded by a wrong clock."""
        rows = database.execute(
            "SELECT * FROM blocks WHERE until > ? AND until <= ?",
            (wall_s, wall_s + LONGEST_BLOCK_S),
        ).fetchall()
        return [Block(*row) for row in rows]

    def bar_sizes(self, database: sqlite3.Connection) -> dict[str, str]:
        """Return the bar size strings that the gateway is known to accept, by timeframe.

        They belong to the gateway's software and outlast this run of the machine.
        """
        return self._texts(database, _SIZE)

    def learn_bar_size(self, database: sqlite3.Connection, timeframe: str, size: str) -> None:
        """Record the bar size string that the gateway accepts for a timeframe."""
        self._save(database, f"{_SIZE}{timeframe}", size, EVERY_BOOT)

    def widths(self, database: sqlite3.Connection) -> dict[str, str]:
        """Return what is known of the best width of a request, as text by kind of series."""
        return self._texts(database, _WIDTH)

    def learn_width(self, database: sqlite3.Connection, kind: str, text: str) -> None:
        """Record what is known of the best width of a request for a kind of series."""
        self._save(database, f"{_WIDTH}{kind}", text, EVERY_BOOT)

    def _save_absence(self, database: sqlite3.Connection, absence: Absence) -> None:
        known = {name: value for name, value in asdict(absence).items() if value is not None}
        value = json.dumps(known, default=datetime.isoformat)
        self._save(database, _ABSENCE, value, EVERY_BOOT)

    def _save_breaker(self, database: sqlite3.Connection, before: Breaker, after: Breaker) -> None:
        if after != before:
            self._save(database, _BREAKER, json.dumps(asdict(after)))

    def _save_concurrency(
        self, database: sqlite3.Connection, before: Concurrency, after: Concurrency
    ) -> None:
        text = after.as_json()
        self._save(database, _CONCURRENCY, text)
        self._last[_CONCURRENCY] = text, after
        if after.width != before.width:
            width = Concurrency(width=after.limit(after.since)).as_json()
            self._save(database, _CONCURRENCY, width, EVERY_BOOT)

    def _read(self, name: str, text: str, reader: Callable[[str], S]) -> S:
        """Return the value of a text; one that was read or written last is not read again."""
        last = self._last.get(name)
        if last is None or last[0] != text:
            last = self._last[name] = text, reader(text)
        value: S = last[1]
        return value

    def _text(self, database: sqlite3.Connection, name: str, boot: str | None = None) -> str | None:
        row = database.execute(
            "SELECT value FROM memory WHERE boot = ? AND name = ?",
            (self._boot if boot is None else boot, name),
        ).fetchone()
        return None if row is None else str(row[0])

    @staticmethod
    def _texts(database: sqlite3.Connection, prefix: str) -> dict[str, str]:
        """Return the values of every boot whose names begin with a prefix, without the prefix."""
        rows = database.execute(
            "SELECT name, value FROM memory WHERE boot = ? AND name LIKE ?",
            (EVERY_BOOT, f"{prefix}%"),
        ).fetchall()
        return {str(name).removeprefix(prefix): str(value) for name, value in rows}

    def _save(
        self, database: sqlite3.Connection, name: str, value: str, boot: str | None = None
    ) -> None:
        database.execute(
            "INSERT OR REPLACE INTO memory VALUES (?, ?, ?)",
            (self._boot if boot is None else boot, name, value),
        )


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


LONGEST_SLEEP_S = 10.0
"""Seconds that a waiting request may sleep before it checks again whether it may be sent."""

UNREPORTED_AFTER_S = LONGEST_SLEEP_S + 5.0
"""Seconds that a queue entry counts without being renewed; its process may be dead."""

PRUNE_S = 60.0
"""Seconds between two deletions of old rows by one process."""

_NEWEST = 2**62
_THIS = "number = ? AND owner = ? AND at = ?"
T = TypeVar("T")


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
    send time of a sent request is the time at which it was written.
    """

    number: int
    send_time: SendTime
    sent: bool
    request: PacedRequest
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
            "SELECT value FROM memory WHERE boot = ? AND name = ?", (self._boot, _BREAKER)
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
                mine = insert(
                    database,
                    self._boot,
                    self._owner,
                    request,
                    state=state,
                    at=chance.at,
                    until=until,
                    counted=counted,
                )
        sending.number = mine
        is_paused = now < paused_until == chance.at
        return QueueEntry(mine, chance, sent, request, is_paused=is_paused)

    def release(self, entry: QueueEntry) -> None:
        """Release a permit: the gateway has responded to the request."""
        with self._transaction() as database:
            self._release(database, entry, self._clock())

    def answered(self, entry: QueueEntry) -> None:
        """Release a permit after a response with bars, and adapt the concurrency to its time."""
        with self._transaction() as database:
            now = self._clock()
            metered = RequestRows(database, self._boot, now).metered()
            sample = Sample(entry.send_time.at, now, metered)
            self._release(database, entry, now)
            concurrency = self._memory.answered(database, entry.request.size, sample)
            if self._pacing.adapts:
                self.concurrency = concurrency.limit(now)

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

    def shorten(self, entry: QueueEntry, *, hold_s: float, is_lost: bool) -> None:
        """Keep a permit for ``hold_s`` more seconds at most.

        ``is_lost``: the gateway has read it by now or never will; else by its deadline.
        """
        with self._transaction() as database:
            now = self._clock()
            counted = ", counted = min(counted, :now)" if is_lost else ""
            database.execute(
                f"UPDATE requests SET until = min(until, :at){counted}"  # noqa: S608
                " WHERE number = :number AND owner = :owner AND at = :sent_at",
                {
                    "at": now + hold_s,
                    "now": now,
                    "number": entry.number,
                    "owner": self._owner,
                    "sent_at": entry.send_time.at,
                },
            )

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
        at, request = entry.send_time.at, entry.request
        updated = database.execute(
            f"UPDATE requests SET state = 'done', counted = ? WHERE {_THIS}",  # noqa: S608
            (now, entry.number, self._owner, at),
        )
        if not updated.rowcount:
            insert(
                database,
                self._boot,
                self._owner,
                request,
                state="done",
                at=at,
                until=now,
                counted=now,
            )
        self._memory.responded(database, depth_of(request.kind))

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
        insert(
            database,
            self._boot,
            self._owner,
            everything,
            state="done",
            at=now,
            until=now,
            counted=now,
        )
        cool_down_s = self._pacing.horizon_s(small=False)
        set_pause(database, self._boot, until=now + cool_down_s, length_s=cool_down_s)
