"""What all processes remember of one gateway: concurrency, breaker, refusals, and what it accepts.

Concurrency and breaker hold for one run of the machine. Refusals (``Block``) and absences
(``Absence``) last by the wall clock; the bar sizes that the gateway accepts, and learned widths,
outlast runs of the machine.

Not here: requests and pauses (``ib.pacing.shared_state``), which also begins the transactions.
"""

import json
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    Absence,
    Admission,
    Breaker,
    BreakerState,
    Depth,
    admission,
    failed,
    seen_absent,
    succeeded,
)
from ktrdr_pipelines.ib.pacing.concurrency import Concurrency, Sample, answered, troubled
from ktrdr_pipelines.limits import IbLimitsRegistry

LONGEST_BLOCK_S = IbLimitsRegistry.TRY_AGAIN_S.value["blocked"].longest_s
"""Longest time that a refusal counts."""

EVERY_BOOT = ""
"""The boot name of rows in the memory table that stay valid when the machine restarts."""

BREAKER = "breaker"
"""Name of the row of the circuit breaker."""

_CONCURRENCY, _ABSENCE, _SIZE = "flight", "absence", "bar size "
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
        text = self._text(database, BREAKER)
        return Breaker() if text is None else self.breaker_in(text)

    def breaker_in(self, text: str) -> Breaker:
        """Return the breaker that a text of the record stands for."""
        return self._read(BREAKER, text, _breaker)

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
        self._save(database, BREAKER, json.dumps(asdict(Breaker())))
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
            self._save(database, BREAKER, json.dumps(asdict(after)))

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
