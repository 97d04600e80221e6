"""The ledger's schedules: what contracts told of session dates, and when they were asked.

What one contract told is named by ``core.calendars.learned_key``: calendar, a blank, symbol. Rows
of ledger version 6 without a symbol were shared by all symbols of a calendar though one contract
told them; they are kept and not read. ``schedule_votes`` holds what contracts that speak for others
told, ``symbol_calendars`` which symbols share a calendar, ``late_bars`` the newest bar after the
close of sessions. Losing the tables costs a few requests, and no bar.

Not here: what of it is believed (``core.schedules``, ``core.session_extension``).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.calendars import Calendars, calendar_named, is_calendar
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.core.schedules import LearnedDay, ScheduleSource, SharedDay, agreed_days
from ktrdr_pipelines.core.session_extension import LateBar
from ktrdr_pipelines.store.database import Database


@dataclass(frozen=True, slots=True)
class ScheduleAsk:
    """Session dates ``[first, end)`` that a gateway was asked about, whatever came."""

    first: date
    end: date
    asked_at: datetime


class SchedulesTable(Database):
    """What contracts told of session dates, the requests for it, and bars after the close."""

    def calendars(self) -> Calendars:
        """Return the book of calendars as the ledger stands now."""
        return Calendars(self.learned_days(), shared=self.shared_days(), late_bars=self.late_bars())

    def learned_days(self) -> dict[str, list[LearnedDay]]:
        """Return what every contract told, by ``learned_key``, oldest date first."""
        found: dict[str, list[LearnedDay]] = defaultdict(list)
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT calendar, symbol, session_date, parts FROM schedules WHERE symbol != '' "
                "ORDER BY session_date"
            ).fetchall()
        for calendar, symbol, day, parts in rows:
            found[f"{calendar} {symbol}"].append(_learned(day, parts))
        return dict(found)

    def learned_days_of(self, key: str) -> list[LearnedDay]:
        """Return what one contract told, oldest date first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT session_date, parts FROM schedules WHERE calendar = ? AND symbol = ? "
                "ORDER BY session_date",
                key.partition(" ")[::2],
            ).fetchall()
        return [_learned(day, parts) for day, parts in rows]

    def record_days(
        self, key: str, days: Iterable[LearnedDay], source: ScheduleSource, at: datetime
    ) -> None:
        """Keep what a contract told of session dates; what is told later replaces it."""
        calendar, _, symbol = key.partition(" ")
        rows = [
            (calendar, symbol, one.day.isoformat(), *_hours(one), source, micros(at))
            for one in days
        ]
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def forget_days(self, key: str, days: Iterable[date]) -> None:
        """Forget what a contract told of session dates."""
        calendar, _, symbol = key.partition(" ")
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM schedules WHERE calendar = ? AND symbol = ? AND session_date = ?",
                [(calendar, symbol, day.isoformat()) for day in days],
            )

    def schedule_asks(self, key: str) -> list[ScheduleAsk]:
        """Return every request for the schedule of a contract, oldest dates first."""
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

    # --- calendars that symbols share -----------------------------------------------------------

    def shared_days(self) -> dict[str, list[SharedDay]]:
        """Return the dates on which contracts agree that a calendar errs, oldest first."""
        votes: dict[str, dict[date, dict[str, LearnedDay]]] = {}
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT calendar, session_date, symbol, parts FROM schedule_votes"
            ).fetchall()
        for calendar, day, symbol, parts in rows:
            told = _learned(day, parts)
            votes.setdefault(calendar, {}).setdefault(told.day, {})[symbol] = told
        found = {
            calendar: agreed_days(calendar_named(calendar), by_day)
            for calendar, by_day in votes.items()
            if is_calendar(calendar)
        }
        return {calendar: days for calendar, days in found.items() if days}

    def votes(self, calendar: str) -> dict[date, dict[str, LearnedDay]]:
        """Return what contracts that speak for others told, by date and symbol."""
        found: dict[date, dict[str, LearnedDay]] = defaultdict(dict)
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT symbol, session_date, parts FROM schedule_votes WHERE calendar = ?",
                (calendar,),
            ).fetchall()
        for symbol, day, parts in rows:
            told = _learned(day, parts)
            found[told.day][symbol] = told
        return dict(found)

    def record_votes(
        self, calendar: str, symbol: str, days: Iterable[LearnedDay], at: datetime
    ) -> None:
        """Keep what a contract that speaks for others told; it replaces what it told before."""
        rows = [(calendar, symbol, one.day.isoformat(), _hours(one)[2], micros(at)) for one in days]
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO schedule_votes VALUES (?, ?, ?, ?, ?)", rows
            )

    def withdraw_votes(
        self, calendar: str, days: Iterable[date], *, symbol: str | None = None
    ) -> None:
        """Forget what contracts, or one of them, told of dates."""
        chosen, more = ("", ()) if symbol is None else (" AND symbol = ?", (symbol,))
        with self._writing() as connection:
            connection.executemany(
                f"DELETE FROM schedule_votes WHERE calendar = ? AND session_date = ?{chosen}",  # noqa: S608
                [(calendar, day.isoformat(), *more) for day in days],
            )

    def symbol_calendars(self) -> dict[str, str]:
        """Return the calendar of each symbol that was looked up."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT symbol, calendar FROM symbol_calendars"))

    def record_symbol_calendar(self, symbol: str, calendar: str) -> None:
        """Remember which calendar a symbol has."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO symbol_calendars VALUES (?, ?)", (symbol, calendar)
            )

    # --- bars after the close -------------------------------------------------------------------

    def late_bars(self) -> dict[str, dict[date, LateBar]]:
        """Return the newest bar after the close by symbol and session date."""
        found: dict[str, dict[date, LateBar]] = defaultdict(dict)
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT symbol, session_date, starts, ends FROM late_bars ORDER BY session_date"
            ).fetchall()
        for symbol, day, starts, ends in rows:
            found[symbol][date.fromisoformat(day)] = LateBar(starts, ends)
        return dict(found)

    def record_late_bars(self, symbol: str, late: Mapping[date, LateBar]) -> None:
        """Keep the newest bars after the close of sessions; one that is known later stays."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO late_bars VALUES (?, ?, ?, ?) "
                "ON CONFLICT (symbol, session_date) DO UPDATE "
                "SET starts = excluded.starts, ends = excluded.ends "
                "WHERE (excluded.starts, excluded.ends) > (starts, ends)",
                [(symbol, day.isoformat(), *bar) for day, bar in late.items()],
            )


def _learned(day: str, parts: str) -> LearnedDay:
    return LearnedDay(date.fromisoformat(day), tuple(map(_part, parts.split())))


def _hours(learned: LearnedDay) -> tuple[int | None, int | None, str]:
    """Give open, close and stretches as the table has them; a closed date has none."""
    if not learned.parts:
        return None, None, ""
    bounds = [(micros(part.start), micros(part.end)) for part in learned.parts]
    return bounds[0][0], bounds[-1][1], " ".join(f"{start}-{end}" for start, end in bounds)


def _part(text: str) -> Interval:
    start, end = text.split("-")
    return Interval(moment(int(start)), moment(int(end)))
