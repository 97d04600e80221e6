"""What the ledger records of gateways: heads, probes, contracts, schedules, request widths.

Losing these tables costs a few requests, but no bar; only revisions (old values of bars that a
response replaced) are lost with them.

Not here: statements and requests (``store.ledger.statements``, ``store.ledger.request_audit``).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import pyarrow as pa

from ktrdr_pipelines.domain.bars import VALUES, micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    ScheduleSource,
    SharedDay,
    agreed_days,
)
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named, is_calendar
from ktrdr_pipelines.domain.calendars.session_extension import LateBar
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.database import Database


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """The session date of the oldest bar that probing found, after how many requests, and when."""

    oldest: date
    requests: int
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class EmptyRange:
    """Session dates ``[first, end)`` in which probing found no bar, and when."""

    first: date
    end: date
    asked_at: datetime

    @property
    def expires_at(self) -> datetime:
        """When the record expires: after as long as a proof that old sessions are empty."""
        return self.asked_at + timedelta(days=IbLimitsRegistry.EMPTY_OLD_DAYS.value)

    def is_valid(self, now: datetime) -> bool:
        """Return whether the record has not expired."""
        return now < self.expires_at


class ProbesTable(Database):
    """How far back probing found data, and empty ranges: by contract, what_to_show and gateway."""

    def record_probe(
        self, contract_id: int, what_to_show: str, gateway: str, *, record: ProbeRecord
    ) -> None:
        """Record the result of probing, replacing the earlier one."""
        values = (record.oldest.isoformat(), record.requests, micros(record.asked_at))
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?, ?, ?)",
                (contract_id, what_to_show, gateway, *values),
            )

    def probe(self, contract_id: int, what_to_show: str, gateway: str) -> ProbeRecord | None:
        """Return the last result of probing, or None."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT oldest, requests, asked_at FROM probes "
                "WHERE contract_id = ? AND what_to_show = ? AND gateway = ?",
                (contract_id, what_to_show, gateway),
            ).fetchone()
        return None if row is None else ProbeRecord(_day(row[0]), row[1], moment(row[2]))

    def record_empty_range(
        self, contract_id: int, what_to_show: str, gateway: str, *, record: EmptyRange
    ) -> None:
        """Record an empty range."""
        days = (record.first.isoformat(), record.end.isoformat())
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO silences VALUES (?, ?, ?, ?, ?, ?)",
                (contract_id, what_to_show, gateway, *days, micros(record.asked_at)),
            )

    def empty_ranges_of(
        self, contract_id: int, what_to_show: str, gateway: str
    ) -> list[EmptyRange]:
        """Return the empty ranges of one contract, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT first_date, end_date, asked_at FROM silences "
                "WHERE contract_id = ? AND what_to_show = ? AND gateway = ? "
                "ORDER BY first_date, end_date",
                (contract_id, what_to_show, gateway),
            ).fetchall()
        return [EmptyRange(_day(first), _day(end), moment(at)) for first, end, at in rows]

    def empty_ranges(self, gateway: str) -> dict[tuple[int, str], tuple[EmptyRange, ...]]:
        """Return a gateway's empty ranges by contract id and what_to_show, oldest first."""
        found: dict[tuple[int, str], list[EmptyRange]] = defaultdict(list)
        with self._reading() as connection:
            for contract_id, what, first, end, asked_at in connection.execute(
                "SELECT contract_id, what_to_show, first_date, end_date, asked_at FROM silences "
                "WHERE gateway = ? ORDER BY first_date, end_date",
                (gateway,),
            ):
                record = EmptyRange(_day(first), _day(end), moment(asked_at))
                found[contract_id, what].append(record)
        return {key: tuple(records) for key, records in found.items()}


def _day(text: str) -> date:
    return date.fromisoformat(text)


@dataclass(frozen=True, slots=True)
class HeadRecord:
    """A gateway's head timestamp of a contract; ``head`` is None where the gateway has none."""

    head: datetime | None
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class Revision:
    """The old values of a bar that a newer, different response replaced."""

    ts: datetime
    replaced_at: datetime
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None
    average: float | None
    bar_count: int | None


class ReferencesTable(Database):
    """Head timestamps, the contract pinned to each symbol, and revisions of bars."""

    def head(self, contract_id: int, what_to_show: str, gateway: str) -> HeadRecord | None:
        """Return the recorded head of a contract, or None where it was never requested."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT head, asked_at FROM ranges "
                "WHERE contract_id = ? AND what_to_show = ? AND gateway = ?",
                (contract_id, what_to_show, gateway),
            ).fetchone()
        if row is None:
            return None
        return HeadRecord(None if row[0] is None else moment(row[0]), moment(row[1]))

    def heads(self, gateway: str) -> dict[tuple[int, str], datetime]:
        """Return the known heads of a gateway by contract id and what_to_show."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT contract_id, what_to_show, head FROM ranges "
                "WHERE gateway = ? AND head IS NOT NULL",
                (gateway,),
            ).fetchall()
        return {(contract_id, what): moment(head) for contract_id, what, head in rows}

    def record_head(
        self,
        contract_id: int,
        what_to_show: str,
        gateway: str,
        *,
        head: datetime | None,
        asked_at: datetime,
    ) -> None:
        """Record a gateway's head timestamp; None where it has none."""
        timestamp = None if head is None else micros(head)
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO ranges VALUES (?, ?, ?, ?, ?)",
                (contract_id, what_to_show, gateway, timestamp, micros(asked_at)),
            )

    def pinned_contract(self, symbol: str, origin: Origin) -> int | None:
        """Return the contract id of a symbol, or None before its first response."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT contract_id FROM instruments WHERE symbol = ? AND origin = ?",
                (symbol, origin),
            ).fetchone()
        return None if row is None else int(row[0])

    def pinned_contracts(self, origin: Origin) -> dict[str, int]:
        """Return the contract id of each symbol that has one."""
        with self._reading() as connection:
            return dict(
                connection.execute(
                    "SELECT symbol, contract_id FROM instruments WHERE origin = ?", (origin,)
                ).fetchall()
            )

    def pin_contract(  # noqa: PLR0917  (a row, in its order)
        self, symbol: str, origin: Origin, contract_id: int, description: str, at: datetime
    ) -> None:
        """Record the contract id of a symbol; a later call replaces it."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO instruments VALUES (?, ?, ?, ?, ?)",
                (symbol, origin, contract_id, description, micros(at)),
            )

    def record_revisions(self, series_key: str, replaced: pa.Table, at: datetime) -> None:
        """Record the old values of bars that a newer response replaced."""
        keys = timestamps(replaced).tolist()
        columns = [replaced[name].to_pylist() for name in VALUES]
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (series_key, key, micros(at), *values)
                    for key, *values in zip(keys, *columns, strict=True)
                ],
            )

    def revisions(self, series_key: str) -> list[Revision]:
        """Return the replaced bars of a series, oldest bar first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT ts, replaced_at, open, high, low, close, volume, average, bar_count "
                "FROM revisions WHERE series = ? ORDER BY ts, replaced_at",
                (series_key,),
            ).fetchall()
        return [Revision(moment(row[0]), moment(row[1]), *row[2:]) for row in rows]


@dataclass(frozen=True, slots=True)
class ScheduleAsk:
    """Session dates ``[first, end)`` whose schedule was requested, whatever the response."""

    first: date
    end: date
    asked_at: datetime


class SchedulesTable(Database):
    """Schedules of contracts, the requests for them, shared calendars, bars after the close.

    The schedule of one contract is named by ``domain.calendars.registry.learned_key``: calendar, a
    blank, symbol. Rows of ledger version 6 without a symbol were shared by all symbols of a
    calendar although one contract gave them; they are kept but not read. ``schedule_votes`` holds
    the schedules of contracts that count for others too, ``symbol_calendars`` which symbols share a
    calendar, ``late_bars`` the newest bar after the close of sessions.
    """

    def calendars(self) -> Calendars:
        """Return the calendars with what the ledger currently holds of schedules and late bars."""
        return Calendars(self.learned_days(), shared=self.shared_days(), late_bars=self.late_bars())

    def learned_days(self) -> dict[str, list[LearnedDay]]:
        """Return the schedule of every contract, by ``learned_key``, oldest date first."""
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
        """Return the schedule of one contract, oldest date first."""
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
        """Record session dates of a contract's schedule; later ones replace them."""
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
        """Delete session dates of a contract's schedule."""
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
        """Record a request for a schedule."""
        calendar, _, symbol = key.partition(" ")
        row = (calendar, symbol, ask.first.isoformat(), ask.end.isoformat(), micros(ask.asked_at))
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO schedule_asks VALUES (?, ?, ?, ?, ?)", row)

    # --- calendars that symbols share -----------------------------------------------------------

    def shared_days(self) -> dict[str, list[SharedDay]]:
        """Return the dates on which contracts agree that a calendar is wrong, oldest first."""
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
        """Return the schedules of contracts that count for others too, by date and symbol."""
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
        """Record the schedule of a contract that counts for others, replacing the earlier one."""
        rows = [(calendar, symbol, one.day.isoformat(), _hours(one)[2], micros(at)) for one in days]
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO schedule_votes VALUES (?, ?, ?, ?, ?)", rows
            )

    def withdraw_votes(
        self, calendar: str, days: Iterable[date], *, symbol: str | None = None
    ) -> None:
        """Delete the votes of all contracts, or of one, on dates."""
        chosen, more = ("", ()) if symbol is None else (" AND symbol = ?", (symbol,))
        with self._writing() as connection:
            connection.executemany(
                f"DELETE FROM schedule_votes WHERE calendar = ? AND session_date = ?{chosen}",  # noqa: S608
                [(calendar, day.isoformat(), *more) for day in days],
            )

    def symbol_calendars(self) -> dict[str, str]:
        """Return the calendar of each symbol for which one is recorded."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT symbol, calendar FROM symbol_calendars"))

    def record_symbol_calendar(self, symbol: str, calendar: str) -> None:
        """Record the calendar of a symbol."""
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
        """Record the newest bar after the close of sessions; a later recorded one is kept."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO late_bars VALUES (?, ?, ?, ?) "
                "ON CONFLICT (symbol, session_date) DO UPDATE "
                "SET starts = excluded.starts, ends = excluded.ends "
                "WHERE (excluded.starts, excluded.ends) > (starts, ends)",
                [(symbol, day.isoformat(), *bar) for day, bar in late.items()],
            )


def _learned(day: str, parts: str) -> LearnedDay:
    bounds = (part.split("-") for part in parts.split())
    return LearnedDay(
        date.fromisoformat(day),
        tuple(Interval(moment(int(start)), moment(int(end))) for start, end in bounds),
    )


def _hours(learned: LearnedDay) -> tuple[int | None, int | None, str]:
    """Return open, close and intervals as stored in the table; a closed date has none."""
    if not learned.parts:
        return None, None, ""
    bounds = [(micros(part.start), micros(part.end)) for part in learned.parts]
    return bounds[0][0], bounds[-1][1], " ".join(f"{start}-{end}" for start, end in bounds)


@dataclass(frozen=True, slots=True)
class WidthRecord:
    """The most sessions (1w: weeks) of a request, how many runs measured it, and when last."""

    most: int
    runs: int
    learned_at: datetime


class WidthsTable(Database):
    """The widest useful request, as runs have measured it, by gateway and timeframe.

    Losing the table costs one request that is too wide.
    """

    def widths(self, gateway: str) -> dict[Timeframe, WidthRecord]:
        """Return the widths of a gateway by timeframe."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT timeframe, most, runs, learned_at FROM widths WHERE gateway = ?", (gateway,)
            ).fetchall()
        return {
            Timeframe(name): WidthRecord(most, runs, moment(at)) for name, most, runs, at in rows
        }

    def record_width(self, gateway: str, timeframe: Timeframe, record: WidthRecord) -> None:
        """Record a width, replacing the earlier one."""
        values = (record.most, record.runs, micros(record.learned_at))
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO widths VALUES (?, ?, ?, ?, ?)",
                (gateway, timeframe.value, *values),
            )

    def forget_width(self, gateway: str, timeframe: Timeframe) -> None:
        """Delete a width."""
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM widths WHERE gateway = ? AND timeframe = ?", (gateway, timeframe.value)
            )
