"""What all processes remember of a gateway: its width, its usual times, its breaker, its refusals.

Each function works inside a transaction of the shared record. Widths and the breaker count for
this run of the machine; refusals (``Block``) for as long as they say, by the wall clock. Not here:
the decisions (``core.inflight``, ``core.breaker``), the requests (``ib.pacer_record``).
"""

import json
import sqlite3
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ktrdr_pipelines.core.breaker import (
    Admission,
    Breaker,
    BreakerState,
    Depth,
    admission,
    failed,
    succeeded,
)
from ktrdr_pipelines.core.inflight import Flight, Pace, Sample, answered, pace_after, troubled

LONGEST_BLOCK_S = 86_400.0
"""Seconds that any refusal is believed."""

EVERY_BOOT = ""
"""The name under which the table of memories keeps what no restart of the machine changes."""

_FLIGHT, _BREAKER, _SIZE = "flight", "breaker", "bar size "
S = TypeVar("S", Flight, Breaker)


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

    places: int
    answered_at: float
    breaker: Breaker
    paused_s: float = 0.0


class PacerMemory:
    """Reads and writes what is remembered, for one run of the machine."""

    def __init__(self, boot: str) -> None:
        self._boot = boot

    def flight(self, database: sqlite3.Connection) -> Flight:
        """Give the width of bars in flight."""
        return self._value(database, _FLIGHT, Flight)

    def latest(self, database: sqlite3.Connection) -> float:
        """Give the latest time at which anything of this was noted, 0 where nothing is."""
        flight = self.flight(database)
        breaker = self._value(database, _BREAKER, Breaker)
        return max(flight.seen_at, flight.cut_at, breaker.failed_at)

    def vitals(self, database: sqlite3.Connection, now: float) -> Vitals:
        """Say how the gateway is."""
        flight = self.flight(database)
        breaker = self._value(database, _BREAKER, Breaker)
        return Vitals(flight.places(now), flight.seen_at, breaker)

    def answered(self, database: sqlite3.Connection, size: str, sample: Sample) -> Flight:
        """Take in bars that came, and give the width from now on."""
        name, flight = f"pace {size}", self.flight(database)
        known = self._text(database, name)
        before = None if known is None else Pace(**json.loads(known))
        pace = pace_after(before, sample, ratio=flight.ratio)
        self._save(database, name, json.dumps(asdict(pace)))
        flight = answered(flight, sample, pace.idle_s)
        self._save(database, _FLIGHT, json.dumps(asdict(flight)))
        return flight

    def troubled(self, database: sqlite3.Connection, *, sent_at: float, now: float) -> None:
        """Take in a failure that may come from asking too much."""
        flight = troubled(self.flight(database), sent_at=sent_at, at=now)
        self._save(database, _FLIGHT, json.dumps(asdict(flight)))

    def admission(self, database: sqlite3.Connection, now: float, *, probe_s: float) -> Admission:
        """Decide whether the gateway may be asked at all."""
        before = self._value(database, _BREAKER, Breaker)
        chance = admission(before, now, probe_s=probe_s)
        self._save_breaker(database, before, chance.breaker)
        return chance

    def failed(
        self, database: sqlite3.Connection, *, sent_at: float, now: float, depth: Depth, came: str
    ) -> Breaker:
        """Take in a sign that the gateway is ill, and give the breaker from now on."""
        before = self._value(database, _BREAKER, Breaker)
        after = failed(before, sent_at=sent_at, now=now, depth=depth, came=came)
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
