"""Pauses in the record of the budget, and what of the record is dropped.

Functions work inside a transaction of the record. Not here: requests and turns
(``ib.pacer_record``), the width and the breaker (``ib.pacer_memory``).
"""

import sqlite3
from dataclasses import dataclass

from ktrdr_pipelines.ib.pacer_memory import EVERY_BOOT, PacerMemory

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
    database: sqlite3.Connection, boot: str, *, now: float, patience_s: float
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
        (patience_s, boot),
    ).fetchone()[0]
    pause, noted = last_pause(database, boot), PacerMemory(boot).latest(database)
    begun = (latest or 0.0, pause.until - (pause.length_s or 0.0), noted)
    if max(begun) > now + CLOCK_GRAIN_S:
        for table in ("requests", "pauses", "memory"):
            database.execute(f"DELETE FROM {table} WHERE boot = ?", (boot,))  # noqa: S608
