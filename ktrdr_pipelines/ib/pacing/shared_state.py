"""What all processes share about one gateway: the record of requests, pauses and widths.

The file behind the rate limiter: opening, transactions, and what follows when it is lost.

A file that is missing is made anew: there was no request, or somebody removed it on purpose. A
file that cannot be read is quarantined, and its successor is told so, for it must not forget
silently what was asked.

What all processes remember of a gateway: its width, its usual times, its breaker, its refusals.

Each function works inside a transaction of the shared record. Widths and the breaker count for
this run of the machine; refusals (``Block``) for as long as they say, by the wall clock.

The rows of the shared record as values: who waits, what is open, what was sent.

Pauses in the record of the budget, and what of the record is dropped.

Functions work inside a transaction of the record.

The requests of every process to one gateway: what was sent, what is open, who waits.

Each operation is one short transaction, begun as a writer, so that decisions of several processes
follow one another. Stamps are seconds since the machine started; rows of another start of the
machine count for nothing.
"""

import errno
import json
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from ktrdr_pipelines.domain.account_numbers import without_accounts
from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    Admission,
    Breaker,
    BreakerState,
    Depth,
    admission,
    depth_of,
    failed,
    succeeded,
)
from ktrdr_pipelines.ib.pacing.concurrency import (
    Concurrency,
    Pace,
    Sample,
    answered,
    pace_after,
    troubled,
)
from ktrdr_pipelines.ib.pacing.rules import (
    PacedRequest,
    Pacing,
    RequestKind,
    SendTime,
    SentRequest,
    Waiting,
    next_pause_s,
    send_time,
)
from ktrdr_pipelines.ib.private_files import (
    FILE_MODE,
    make_private_database,
    make_private_file,
    make_private_folder,
)
from ktrdr_pipelines.limits import IbLimitsRegistry

FILE = "pacer.sqlite"
LOCK_WAIT_S = 0.05
"""How long one attempt waits for another process's transaction before it gives way."""

_VERSION = 4
"""Version of the tables. 4 has those of 3; texts of earlier ones may name accounts."""

_SETUP_WAIT_S = 30.0
_BROKEN_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    boot TEXT NOT NULL,
    owner TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'open', 'done')),
    at REAL NOT NULL,
    until REAL NOT NULL,
    kind TEXT NOT NULL,
    contract TEXT NOT NULL,
    identical TEXT NOT NULL,
    weight INTEGER NOT NULL,
    small INTEGER NOT NULL,
    tail INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS requests_at ON requests (state, at);
CREATE TABLE IF NOT EXISTS pauses (boot TEXT NOT NULL, until REAL NOT NULL, length_s REAL NOT NULL);
CREATE TABLE IF NOT EXISTS memory (
    boot TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (boot, name)
);
CREATE TABLE IF NOT EXISTS blocks (
    entitlement TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    code INTEGER,
    until REAL NOT NULL
);
PRAGMA user_version = {_VERSION};
COMMIT;
"""
_MOVE = "Set KTRDR_STATE to a folder on a local disk that can be written."
_MAKE_ROOM = "Make room on that disk, or set KTRDR_STATE to a folder on another."
_log = logging.getLogger(__name__)


class RecordBusyError(Exception):
    """Another process is writing just now, or the file was just replaced; try again."""


class SharedFile:
    """One process's connection to the shared file.

    Args:
        folder: where the file lies; made when first needed.
        on_loss: told, inside a transaction of the successor, that a broken file was quarantined.
    """

    def __init__(self, folder: Path, *, on_loss: Callable[[sqlite3.Connection], None]) -> None:
        self.path = folder / FILE
        self._on_loss = on_loss
        self._database: sqlite3.Connection | None = None
        self._inode = 0

    def close(self) -> None:
        """Let go of the file; the next transaction opens it again."""
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run one transaction as the only writer.

        Raises:
            RecordBusyError: another process is writing, or the file has just been replaced.
            DiskError: the file cannot be used.
        """
        try:
            database = self._opened()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            finally:
                if database.in_transaction:
                    database.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            self._handle_damage(error)
            raise RecordBusyError from error

    def _handle_damage(self, error: sqlite3.DatabaseError) -> None:
        """Do what an error of the database calls for."""
        code = _code(error)
        if code in _BUSY_CODES:
            return
        self.close()
        if code not in _BROKEN_CODES:
            hint = _MAKE_ROOM if code == sqlite3.SQLITE_FULL else _MOVE
            raise self._disk_error(str(error), hint) from error
        try:
            self._replace_broken()
        except OSError as refusal:
            reason = f"it is broken and cannot be replaced: {refusal.strerror or refusal}"
            raise self._disk_error(reason, _hint(refusal)) from refusal

    def _opened(self) -> sqlite3.Connection:
        """Give a connection to the file that has the name now, not to one that had it."""
        if self._database is not None and self._inode != _inode(self.path):
            self.close()
        if self._database is None:
            self._database = self._open()
            self._inode = _inode(self.path)
        return self._database

    def _open(self) -> sqlite3.Connection:
        try:
            make_private_folder(self.path.parent)
            make_private_database(self.path)
        except OSError as error:
            raise self._disk_error(error.strerror or str(error), _hint(error)) from error
        database = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None)
        try:
            if not self._is_current(database):
                _set_up(database)
            database.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            database.close()
            raise
        return database

    def _is_current(self, database: sqlite3.Connection) -> bool:
        version = _version(database)
        if version > _VERSION:
            reason = f"made by a newer version of this program ({version})"
            raise self._disk_error(
                reason, "Update this program, or end the newer one and remove it."
            )
        return bool(version == _VERSION)

    def _replace_broken(self) -> None:
        """Put a successor that knows of the loss in the place of a broken file, once for all."""
        with FileLock(self.path.with_suffix(".lock"), timeout=_SETUP_WAIT_S, mode=FILE_MODE):
            if _is_sound(self.path):
                return
            aside, successor = (self.path.with_name(f"{FILE}.{end}") for end in ("broken", "new"))
            _log.warning("%s is broken; it is kept as %s", self.path, aside.name)
            successor.unlink(missing_ok=True)
            for path in (aside, successor):
                make_private_file(path)
            with closing(sqlite3.connect(successor, isolation_level=None)) as database:
                _set_up(database)
                self._on_loss(database)
            shutil.copyfile(self.path, aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(FILE + suffix).unlink(missing_ok=True)
            successor.replace(self.path)

    def _disk_error(self, reason: str, hint: str) -> DiskError:
        return DiskError(f"request record {self.path}", reason=reason, hint=hint)


def _hint(error: OSError) -> str:
    return _MAKE_ROOM if error.errno in {errno.ENOSPC, errno.EDQUOT} else _MOVE


def _set_up(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA busy_timeout = {round(_SETUP_WAIT_S * 1000)}")
    database.execute("PRAGMA journal_mode = WAL")
    if 0 < _version(database) < _VERSION:
        _remove_accounts(database)
    database.executescript(_SCHEMA)
    database.execute(f"PRAGMA busy_timeout = {round(LOCK_WAIT_S * 1000)}")


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _remove_accounts(database: sqlite3.Connection) -> None:
    """Take account numbers out of the texts of an earlier version, free pages included.

    The version is set afterwards: what is cut short here is done again.
    """
    database.execute("PRAGMA secure_delete = ON")
    database.create_function("without_accounts", 1, without_accounts, deterministic=True)
    database.execute("BEGIN IMMEDIATE")
    for table, column in (("blocks", "reason"), ("memory", "value")):
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
            database.execute(f"UPDATE {table} SET {column} = without_accounts({column})")  # noqa: S608
    database.execute("COMMIT")
    database.execute("VACUUM")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return -1


def _is_sound(path: Path) -> bool:
    with closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as database:
        try:
            return bool(database.execute("PRAGMA quick_check").fetchone()[0] == "ok")
        except sqlite3.DatabaseError as error:
            return _code(error) in _BUSY_CODES


def _code(error: sqlite3.Error) -> int:
    """Give the primary code of an error; 0 where Python itself complains."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


LONGEST_BLOCK_S = 86_400.0
"""Seconds that any refusal is believed."""

EVERY_BOOT = ""
"""The name under which the table of memories keeps what no restart of the machine changes."""

_CONCURRENCY, _BREAKER, _SIZE = "flight", "breaker", "bar size "
S = TypeVar("S", Concurrency, Breaker)


@dataclass(frozen=True, slots=True)
class Block:
    """A refusal for want of a permission: of what, in whose words, and until when it is believed.

    ``until`` is seconds since 1970.
    """

    entitlement: str
    reason: str
    code: int | None
    until: float


@dataclass(frozen=True, slots=True)
class Vitals:
    """How the gateway is, as all processes together know it.

    ``answered_at`` is the shared clock's time of the last bars, 0 where there were none;
    ``paused_s`` is what is left of a pause after a violation.
    """

    concurrency: int
    answered_at: float
    breaker: Breaker
    paused_s: float = 0.0


class SharedMemory:
    """Reads and writes what is remembered, for one run of the machine."""

    def __init__(self, boot: str) -> None:
        self._boot = boot

    def concurrency(self, database: sqlite3.Connection) -> Concurrency:
        """Give the width of bars in flight."""
        return self._value(database, _CONCURRENCY, Concurrency)

    def latest(self, database: sqlite3.Connection) -> float:
        """Give the latest time at which anything of this was noted, 0 where nothing is."""
        concurrency = self.concurrency(database)
        breaker = self._value(database, _BREAKER, Breaker)
        return max(concurrency.seen_at, concurrency.cut_at, breaker.failed_at)

    def vitals(self, database: sqlite3.Connection, now: float) -> Vitals:
        """Say how the gateway is."""
        concurrency = self.concurrency(database)
        breaker = self._value(database, _BREAKER, Breaker)
        return Vitals(concurrency.limit(now), concurrency.seen_at, breaker)

    def answered(self, database: sqlite3.Connection, size: str, sample: Sample) -> Concurrency:
        """Take in bars that came, and give the width from now on."""
        name, concurrency = f"pace {size}", self.concurrency(database)
        known = self._text(database, name)
        before = None if known is None else Pace(**json.loads(known))
        pace = pace_after(before, sample, ratio=concurrency.ratio)
        self._save(database, name, json.dumps(asdict(pace)))
        concurrency = answered(concurrency, sample, pace.idle_s)
        self._save(database, _CONCURRENCY, json.dumps(asdict(concurrency)))
        return concurrency

    def troubled(self, database: sqlite3.Connection, *, sent_at: float, now: float) -> None:
        """Take in a failure that may come from asking too much."""
        concurrency = troubled(self.concurrency(database), sent_at=sent_at, at=now)
        self._save(database, _CONCURRENCY, json.dumps(asdict(concurrency)))

    def admission(self, database: sqlite3.Connection, now: float, *, probe_s: float) -> Admission:
        """Decide whether the gateway may be asked at all."""
        before = self._value(database, _BREAKER, Breaker)
        chance = admission(before, now, probe_s=probe_s)
        self._save_breaker(database, before, chance.breaker)
        return chance

    def failed(
        self, database: sqlite3.Connection, *, sent_at: float, now: float, depth: Depth, reason: str
    ) -> Breaker:
        """Take in a sign that the gateway is ill, and give the breaker from now on."""
        before = self._value(database, _BREAKER, Breaker)
        after = failed(before, sent_at=sent_at, now=now, depth=depth, reason=reason)
        self._save_breaker(database, before, after)
        return after

    def lives(self, database: sqlite3.Connection, depth: Depth) -> None:
        """Take in that the gateway answered, whatever it said."""
        before = self._value(database, _BREAKER, Breaker)
        self._save_breaker(database, before, succeeded(before, depth))

    def forgive(self, database: sqlite3.Connection) -> None:
        """Begin anew: close the breaker and forget every refusal."""
        self._save(database, _BREAKER, json.dumps(asdict(Breaker())))
        database.execute("DELETE FROM blocks")

    def block(self, database: sqlite3.Connection, block: Block) -> None:
        """Remember a refusal."""
        database.execute(
            "INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)",
            (block.entitlement, block.reason, block.code, block.until),
        )

    def allow(self, database: sqlite3.Connection, entitlement: str) -> None:
        """Forget a refusal."""
        database.execute("DELETE FROM blocks WHERE entitlement = ?", (entitlement,))

    def blocks(self, database: sqlite3.Connection, wall_s: float) -> list[Block]:
        """Give the refusals that are believed; what lasts too long was noted by a wrong clock."""
        rows = database.execute(
            "SELECT * FROM blocks WHERE until > ? AND until <= ?",
            (wall_s, wall_s + LONGEST_BLOCK_S),
        ).fetchall()
        return [Block(*row) for row in rows]

    def bar_sizes(self, database: sqlite3.Connection) -> dict[str, str]:
        """Give the bar size strings that the gateway accepts, by timeframe, where it was learned.

        They belong to the gateway's software and outlast this run of the machine.
        """
        rows = database.execute(
            "SELECT name, value FROM memory WHERE boot = ? AND name LIKE ?",
            (EVERY_BOOT, f"{_SIZE}%"),
        ).fetchall()
        return {str(name).removeprefix(_SIZE): str(value) for name, value in rows}

    def learn_bar_size(self, database: sqlite3.Connection, timeframe: str, size: str) -> None:
        """Remember the bar size string that the gateway accepts for a timeframe."""
        database.execute(
            "INSERT OR REPLACE INTO memory VALUES (?, ?, ?)",
            (EVERY_BOOT, f"{_SIZE}{timeframe}", size),
        )

    def _save_breaker(self, database: sqlite3.Connection, before: Breaker, after: Breaker) -> None:
        if after != before:
            self._save(database, _BREAKER, json.dumps(asdict(after)))

    def _value(self, database: sqlite3.Connection, name: str, kind: type[S]) -> S:
        text = self._text(database, name)
        if text is None:
            return kind()
        known: dict[str, Any] = json.loads(text)
        values = {field.name: known[field.name] for field in fields(kind) if field.name in known}
        made = {"state": BreakerState, "depth": Depth}
        for one in made.keys() & values.keys():
            values[one] = made[one](values[one])
        return kind(**values)

    def _text(self, database: sqlite3.Connection, name: str) -> str | None:
        row = database.execute(
            "SELECT value FROM memory WHERE boot = ? AND name = ?", (self._boot, name)
        ).fetchone()
        return None if row is None else str(row[0])

    def _save(self, database: sqlite3.Connection, name: str, value: str) -> None:
        database.execute(
            "INSERT OR REPLACE INTO memory VALUES (?, ?, ?)", (self._boot, name, value)
        )


_COLUMNS = "number, owner, at, kind, contract, identical, weight, small, tail"
_NO_LISTENER = -1
_Row = tuple[int, str, float, str, str, str, int, int, int]


class RequestRows:
    """The requests of this run of the machine, all but one; read inside a transaction."""

    def __init__(self, database: sqlite3.Connection, boot: str, *, but: int = _NO_LISTENER) -> None:
        self._database = database
        self._boot, self._but = boot, but

    def waiting(self, now: float) -> list[Waiting]:
        """Give those who wait for their turn."""
        return [
            Waiting(number=row[0], owner=row[1], at=row[2], request=_request(row))
            for row in self._rows("state = 'waiting' AND until > ?", (now,))
        ]

    def held(self, now: float) -> dict[str, list[PacedRequest]]:
        """Give what is unanswered and holds a place, by owner."""
        held: dict[str, list[PacedRequest]] = {}
        for row in self._rows("state = 'open' AND until > ?", (now,)):
            held.setdefault(row[1], []).append(_request(row))
        return held

    def sent(self, pacing: Pacing, request: PacedRequest, now: float) -> list[SentRequest]:
        """Give what was sent and can still matter to a request."""
        recent = now - pacing.horizon_s(small=False)
        since = now - pacing.horizon_s(small=True) if request.small else recent
        where = "state <> 'waiting' AND at > ? AND (small OR at > ?)"
        return [SentRequest(row[2], _request(row)) for row in self._rows(where, (since, recent))]

    def _rows(self, where: str, values: tuple[float, ...]) -> list[_Row]:
        query = (
            f"SELECT {_COLUMNS} FROM requests "  # noqa: S608
            f"WHERE boot = ? AND number <> ? AND {where}"
        )
        return self._database.execute(query, (self._boot, self._but, *values)).fetchall()


def _request(row: _Row) -> PacedRequest:
    _, _, _, kind, contract, identical, weight, small, tail = row
    return PacedRequest(
        RequestKind(kind), contract, identical, weight=weight, small=bool(small), tail=bool(tail)
    )


CLOCK_GRAIN_S = 1.0
"""How far a stamp may lie in the future and still be of now: clocks of two processors differ."""


@dataclass(frozen=True, slots=True)
class Pause:
    """The last pause after a violation: when it ends, and how long it is; None is no pause."""

    until: float = 0.0
    length_s: float | None = None


def last_pause(database: sqlite3.Connection, boot: str) -> Pause:
    """Give the last pause of this run of the machine."""
    row = database.execute("SELECT until, length_s FROM pauses WHERE boot = ?", (boot,)).fetchone()
    return Pause() if row is None else Pause(row[0], row[1])


def set_pause(database: sqlite3.Connection, boot: str, *, until: float, length_s: float) -> None:
    """Put a pause in the place of the last one."""
    database.execute("DELETE FROM pauses")
    database.execute("INSERT INTO pauses VALUES (?, ?, ?)", (boot, until, length_s))


def prune(database: sqlite3.Connection, boot: str, *, now: float, horizon_s: float) -> None:
    """Drop what can matter to nobody: old, dead, or of another start of the machine."""
    for table in ("requests", "memory"):
        database.execute(
            f"DELETE FROM {table} WHERE boot NOT IN (?, ?)",  # noqa: S608
            (boot, EVERY_BOOT),
        )
    database.execute("DELETE FROM requests WHERE state = 'waiting' AND until < ?", (now,))
    database.execute(
        "DELETE FROM requests WHERE state <> 'waiting' AND (at > ? OR until < ? AND at < ?)",
        (now + CLOCK_GRAIN_S, now, now - horizon_s),
    )


def forget_future(
    database: sqlite3.Connection, boot: str, *, now: float, longest_wait_s: float
) -> None:
    """Forget everything of a run of the machine where anything of it lies in the future.

    A system that has no name for its runs gives two of them the same, and then the clock has begun
    anew: a pause of before would last as long as the machine was up then.

    Args:
        database: the record.
        boot: the name of the run.
        now: the clock.
        patience_s: how long a request stands in the line without looking again.
    """
    latest = database.execute(
        "SELECT max(CASE state WHEN 'waiting' THEN until - ? ELSE at END)"
        " FROM requests WHERE boot = ?",
        (longest_wait_s, boot),
    ).fetchone()[0]
    pause, recorded = last_pause(database, boot), SharedMemory(boot).latest(database)
    begun = (latest or 0.0, pause.until - (pause.length_s or 0.0), recorded)
    if max(begun) > now + CLOCK_GRAIN_S:
        for table in ("requests", "pauses", "memory"):
            database.execute(f"DELETE FROM {table} WHERE boot = ?", (boot,))  # noqa: S608


LONGEST_SLEEP_S = 10.0
"""How long a waiting request may sleep before it looks again whether its turn has come."""

UNREPORTED_AFTER_S = LONGEST_SLEEP_S + 5.0
"""How long one that does not look again still stands before others; its process may be dead."""

PRUNE_S = 5.0
"""How often one process drops rows that matter no more."""

_INSERT = (
    "INSERT INTO requests (boot, owner, state, at, until, kind, contract, identical, weight,"
    " small, tail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
T = TypeVar("T")


class Sending:
    """A message to be written once to the gateway's socket, when its turn has come."""

    def __init__(self, write: Callable[[], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self.at: float | None = None

    def written_at(self) -> float:
        """Write it, if it is not written yet, and return the time after it."""
        if self.at is None:
            self._write()
            self.at = self._clock()
        return self.at


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """What an attempt came to: the number of its row, its turn, and whether it was sent.

    ``is_paused`` says that what keeps it is a pause after a violation. The turn of what was sent
    is the time at which it was.
    """

    number: int
    send_time: SendTime
    sent: bool
    is_paused: bool = False


class SharedRecord:
    """One process's access to the shared record.

    Args:
        folder: where the file lies.
        boot: name of this run of the machine.
        owner: name of who asks through this object, unlike any other's.
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
        self._pruned_at = -PRUNE_S
        self._is_begun = False
        self.concurrency = pacing.concurrency

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        self._file.close()

    def attempt(
        self, request: PacedRequest, number: int | None, sending: Sending, *, hold_s: float
    ) -> QueueEntry:
        """Send now if the rules allow it, else stand in line until the earliest time.

        It is written inside the transaction, and its stamp is taken after that: no process writes
        between another's decision and its message, so the rules hold at the socket however long
        a process stands still.

        Args:
            request: what is to be sent.
            number: the row of an earlier attempt, or None.
            sending: writes it; what was written in an attempt that failed later is only noted.
            hold_s: how long the place stays taken after sending if it is never given back.

        Raises:
            RecordBusyError: another process is writing; try again in a moment.
        """
        with self._transaction() as database:
            now = self._clock()
            self._prune(database, now)
            mine = self._stand(database, request, number, now)
            chance = self._send_time(database, request, mine, now)
            sent = sending.at is not None or chance.is_now(now)
            if sent:
                chance = SendTime(sending.written_at(), has_permit=True)
            paused_until = last_pause(database, self._boot).until
            state = "open" if sent else "waiting"
            at = chance.at
            until = at + hold_s if sent else now + UNREPORTED_AFTER_S
            database.execute(
                "UPDATE requests SET state = ?, at = ?, until = ? WHERE number = ?",
                (state, at, until, mine),
            )
        return QueueEntry(mine, chance, sent, is_paused=now < paused_until == chance.at)

    def release(self, number: int) -> None:
        """Give a place back: the gateway has said something about the request."""
        with self._transaction() as database:
            self._release(database, number)

    def answered(self, number: int, size: str, sent_at: float) -> None:
        """Give a place back: bars came, and say how busy the gateway is."""
        with self._transaction() as database:
            now = self._clock()
            held = RequestRows(database, self._boot).held(now).values()
            metered = sum(request.is_metered for requests in held for request in requests)
            sample = Sample(sent_at, now, metered)
            self._release(database, number)
            concurrency = self._memory.answered(database, size, sample)
            if self._pacing.adapts:
                self.concurrency = concurrency.limit(now)

    def remember(self, act: Callable[[SharedMemory, sqlite3.Connection], T]) -> T:
        """Read or write what all processes remember of the gateway."""
        with self._transaction() as database:
            return act(self._memory, database)

    def vitals(self) -> Vitals:
        """Say how the gateway is, as all processes together know it."""
        with self._transaction() as database:
            now = self._clock()
            paused_until = last_pause(database, self._boot).until
            vitals = self._memory.vitals(database, now)
            return replace(vitals, paused_s=max(paused_until - now, 0.0))

    def shorten(self, number: int, *, hold_s: float) -> None:
        """Keep a place only a little longer: the request was cancelled."""
        with self._transaction() as database:
            database.execute(
                "UPDATE requests SET until = min(until, ?) WHERE number = ?",
                (self._clock() + hold_s, number),
            )

    def withdraw(self, number: int) -> None:
        """Take back a request that was never sent."""
        with self._transaction() as database:
            database.execute("DELETE FROM requests WHERE number = ?", (number,))

    def pause(self) -> float:
        """Pause all requests of all processes after a violation; give the seconds from now.

        Several complaints about the same burst make one pause.
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
        """Run a transaction; the first looks whether the record is of this run of the machine."""
        with self._file.transaction() as database:
            if not self._is_begun:
                forget_future(
                    database, self._boot, now=self._clock(), longest_wait_s=UNREPORTED_AFTER_S
                )
                self._is_begun = True
            yield database

    def _release(self, database: sqlite3.Connection, number: int) -> None:
        which = (number,)
        row = database.execute("SELECT kind FROM requests WHERE number = ?", which).fetchone()
        if row is not None:
            database.execute("UPDATE requests SET state = 'done' WHERE number = ?", which)
            self._memory.lives(database, depth_of(RequestKind(row[0])))

    def _stand(
        self, database: sqlite3.Connection, request: PacedRequest, number: int | None, now: float
    ) -> int:
        """Give the number of this request in the line, at its end if it has none (any more)."""
        row = database.execute("SELECT 1 FROM requests WHERE number = ?", (number,)).fetchone()
        if row is not None and number is not None:
            return number
        return self._insert(database, request, "waiting", now, until=now + UNREPORTED_AFTER_S)

    def _insert(
        self,
        database: sqlite3.Connection,
        request: PacedRequest,
        state: str,
        at: float,
        *,
        until: float,
    ) -> int:
        key = (request.kind.value, request.contract, request.identical)
        kind = (request.weight, request.small, request.tail)
        values = (self._boot, self._owner, state, at, until, *key, *kind)
        return int(database.execute(_INSERT, values).lastrowid or 0)

    def _send_time(
        self, database: sqlite3.Connection, request: PacedRequest, mine: int, now: float
    ) -> SendTime:
        rows = RequestRows(database, self._boot, but=mine)
        if self._pacing.adapts:
            self.concurrency = self._memory.concurrency(database).limit(now)
        chance = send_time(
            replace(self._pacing, concurrency=self.concurrency),
            me=Waiting(mine, self._owner, now, request),
            sent=rows.sent(self._pacing, request, now),
            open_requests=rows.held(now),
            others=rows.waiting(now),
            now=now,
        )
        if request.kind is RequestKind.MESSAGE:
            return chance
        paused_until = last_pause(database, self._boot).until
        return SendTime(max(chance.at, paused_until), chance.has_permit)

    def _prune(self, database: sqlite3.Connection, now: float) -> None:
        """Drop what can matter to nobody, now and then."""
        if now - self._pruned_at >= PRUNE_S:
            self._pruned_at = now
            horizon_s = self._pacing.horizon_s(small=True)
            prune(database, self._boot, now=now, horizon_s=horizon_s)

    def _start_over(self, database: sqlite3.Connection) -> None:
        """Begin after a loss as if the budget had just been used up.

        Small requests wait a whole window; everything waits as long as an identical request
        would have to.
        """
        now = self._clock()
        everything = PacedRequest(
            RequestKind.BARS, "", "", weight=IbLimitsRegistry.WINDOW_MOST.value, small=True
        )
        self._insert(database, everything, "done", now, until=now)
        cool_down_s = self._pacing.horizon_s(small=False)
        set_pause(database, self._boot, until=now + cool_down_s, length_s=cool_down_s)
