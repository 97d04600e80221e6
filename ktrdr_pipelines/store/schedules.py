"""The ledger's schedules: what gateways told of session dates, and when they were asked.

Calendars are named by ``core.calendars.learned_key``: the calendar, and behind a blank the symbol
where it has one of its own. Losing the tables costs a few requests, and no bar. Not here: what of
it is believed (``core.schedules``).
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.core.schedules import LearnedDay, ScheduleSource
from ktrdr_pipelines.store.database import Database


@dataclass(frozen=True, slots=True)
class ScheduleAsk:
    """Session dates ``[first, end)`` that a gateway was asked about, whatever came."""

    first: date
    end: date
    asked_at: datetime


class SchedulesTable(Database):
    """Learned session dates by calendar, and the asking for them."""

    def learned_days(self) -> dict[str, list[LearnedDay]]:
        """Give what was learned of every calendar, oldest date first."""
        found: dict[str, list[LearnedDay]] = defaultdict(list)
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT calendar, symbol, session_date, parts FROM schedules ORDER BY session_date"
            ).fetchall()
        for calendar, symbol, day, parts in rows:
            learned = LearnedDay(date.fromisoformat(day), tuple(map(_part, parts.split())))
            found[f"{calendar} {symbol}".rstrip()].append(learned)
        return dict(found)

    def record_days(
        self, key: str, days: Iterable[LearnedDay], source: ScheduleSource, at: datetime
    ) -> None:
        """Keep what was told of session dates; what is told later replaces it."""
        calendar, _, symbol = key.partition(" ")
        rows = [
            (calendar, symbol, one.day.isoformat(), *_hours(one), source, micros(at))
            for one in days
        ]
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def schedule_asks(self, key: str) -> list[ScheduleAsk]:
        """Give every asking for a calendar, oldest dates first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT first_date, end_date, asked_at FROM schedule_asks "
                "WHERE calendar = ? AND symbol = ? ORDER BY first_date",
                key.partition(" ")[::2],
            ).fetchall()
        return [
            ScheduleAsk(date.fromisoformat(first), date.fromisoformat(end), moment(at))
            for first, end, at in rows
        ]

    def record_ask(self, key: str, ask: ScheduleAsk) -> None:
        """Remember that a gateway was asked."""
        calendar, _, symbol = key.partition(" ")
        row = (calendar, symbol, ask.first.isoformat(), ask.end.isoformat(), micros(ask.asked_at))
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO schedule_asks VALUES (?, ?, ?, ?, ?)", row)


def _hours(learned: LearnedDay) -> tuple[int | None, int | None, str]:
    """Give open, close and stretches as the table has them; a closed date has none."""
    if not learned.parts:
        return None, None, ""
    bounds = [(micros(part.start), micros(part.end)) for part in learned.parts]
    return bounds[0][0], bounds[-1][1], " ".join(f"{start}-{end}" for start, end in bounds)


def _part(text: str) -> Interval:
    start, end = text.split("-")
    return Interval(moment(int(start)), moment(int(end)))
