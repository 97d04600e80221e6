"""What the ledger records of gateways: heads, probes, contracts, schedules, request widths.

Losing these tables costs a few requests, but no bar; only revisions (old values of bars that a
response replaced) are lost with them.

Not here: statements and requests (``store.ledger.statements``, ``store.ledger.request_audit``).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import pyarrow as pa

from ktrdr_pipelines.domain.bars import VALUES, micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    ScheduleSource,
    SharedDay,
    agreed_days,
)
from ktrdr_pipelines.domain.calendars.registry import calendar_named, is_calendar
from ktrdr_pipelines.domain.calendars.session_extension import LateBar
from ktrdr_pipelines.domain.instruments import HeldVenue, Origin
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows

_CONTRACT: Final = ("contract_id", "what_to_show", "gateway")
_OF_CONTRACT: Final = "WHERE contract_id = ? AND what_to_show = ? AND gateway = ?"
_DATES: Final = {"first": "first_date", "end": "end_date"}


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


_PROBES = Rows("probes", ProbeRecord, keys=_CONTRACT)
_EMPTY_RANGES = Rows("silences", EmptyRange, keys=_CONTRACT, names=_DATES)


class ProbesTable(Table):
    """How far back probing found data, by contract, what_to_show and gateway."""

    def record(
        self, contract_id: int, what_to_show: str, gateway: str, *, record: ProbeRecord
    ) -> None:
        """Record the result of probing, replacing the earlier one."""
        with self._database.writing() as connection:
            _PROBES.insert(connection, [record], contract_id, what_to_show, gateway)

    def of(self, contract_id: int, what_to_show: str, gateway: str) -> ProbeRecord | None:
        """Return the last result of probing, or None."""
        with self._database.reading() as connection:
            found = _PROBES.select(connection, _OF_CONTRACT, (contract_id, what_to_show, gateway))
        return found[0] if found else None


class EmptyRangesTable(Table):
    """Session dates in which probing found no bar, by contract, what_to_show and gateway."""

    def record(
        self, contract_id: int, what_to_show: str, gateway: str, *, record: EmptyRange
    ) -> None:
        """Record an empty range."""
        with self._database.writing() as connection:
            _EMPTY_RANGES.insert(connection, [record], contract_id, what_to_show, gateway)

    def of(self, contract_id: int, what_to_show: str, gateway: str) -> list[EmptyRange]:
        """Return the empty ranges of one contract, oldest first."""
        with self._database.reading() as connection:
            return _EMPTY_RANGES.select(
                connection,
                f"{_OF_CONTRACT} ORDER BY first_date, end_date",
                (contract_id, what_to_show, gateway),
            )

    def all(self, gateway: str) -> dict[tuple[int, str], tuple[EmptyRange, ...]]:
        """Return a gateway's empty ranges by contract id and what_to_show, oldest first."""
        found: dict[tuple[int, str], list[EmptyRange]] = defaultdict(list)
        with self._database.reading() as connection:
            for (contract_id, what, _), record in _EMPTY_RANGES.select_keyed(
                connection, "WHERE gateway = ? ORDER BY first_date, end_date", (gateway,)
            ):
                found[contract_id, what].append(record)
        return {key: tuple(records) for key, records in found.items()}


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


_HEADS = Rows("ranges", HeadRecord, keys=_CONTRACT)
_REVISIONS = Rows("revisions", Revision, keys=("series",))


class HeadsTable(Table):
    """Head timestamps by contract, what_to_show and gateway."""

    def of(self, contract_id: int, what_to_show: str, gateway: str) -> HeadRecord | None:
        """Return the recorded head of a contract, or None where it was never requested."""
        with self._database.reading() as connection:
            found = _HEADS.select(connection, _OF_CONTRACT, (contract_id, what_to_show, gateway))
        return found[0] if found else None

    def all(self, gateway: str) -> dict[tuple[int, str], datetime]:
        """Return the known heads of a gateway by contract id and what_to_show."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT contract_id, what_to_show, head FROM ranges "
                "WHERE gateway = ? AND head IS NOT NULL",
                (gateway,),
            ).fetchall()
        return {(contract_id, what): moment(head) for contract_id, what, head in rows}

    def record(
        self,
        contract_id: int,
        what_to_show: str,
        gateway: str,
        *,
        head: datetime | None,
        asked_at: datetime,
    ) -> None:
        """Record a gateway's head timestamp; None where it has none."""
        record = HeadRecord(head, asked_at)
        with self._database.writing() as connection:
            _HEADS.insert(connection, [record], contract_id, what_to_show, gateway)


@dataclass(frozen=True, slots=True)
class PinnedContract:
    """The contract pinned to a symbol, how it was described then, and when that was."""

    contract_id: int
    description: str
    pinned_at: datetime


_CONTRACTS = Rows("instruments", PinnedContract, keys=("symbol", "origin"))


class ContractsTable(Table):
    """The contract pinned to each symbol, by the origin of its bars.

    A store has no origin before its first bars. Until then a contract is known if gateways of all
    origins returned the same one.
    """

    def of(self, symbol: str, origin: Origin | None) -> int | None:
        """Return the contract id of a symbol, or None before its first response."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT DISTINCT contract_id FROM instruments "
                "WHERE symbol = ? AND origin = ifnull(?, origin)",
                (symbol, origin),
            ).fetchall()
        return int(found[0][0]) if len(found) == 1 else None

    def all(self, origin: Origin | None) -> dict[str, int]:
        """Return the contract id of each symbol that has one."""
        with self._database.reading() as connection:
            return dict(
                connection.execute(
                    "SELECT symbol, min(contract_id) FROM instruments "
                    "WHERE origin = ifnull(?, origin) "
                    "GROUP BY symbol HAVING min(contract_id) = max(contract_id)",
                    (origin,),
                ).fetchall()
            )

    def pinned(self, origin: Origin | None) -> dict[str, PinnedContract]:
        """Return the contract of each symbol that has one, with its description."""
        known = self.all(origin)
        with self._database.reading() as connection:
            rows = _CONTRACTS.select_keyed(
                connection, "WHERE origin = ifnull(?, origin) ORDER BY symbol", (origin,)
            )
            return {symbol: row for (symbol, _), row in rows if symbol in known}

    def pin(  # noqa: PLR0917  (a row, in its order)
        self, symbol: str, origin: Origin, contract_id: int, description: str, at: datetime
    ) -> None:
        """Record the contract id of a symbol; a later call replaces it."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO instruments VALUES (?, ?, ?, ?, ?)",
                (symbol, origin, contract_id, description, micros(at)),
            )


_VENUES = Rows("venues", HeldVenue, keys=("symbol",))


class VenuesTable(Table):
    """The venue that the bars of each symbol were requested at.

    Contract ids do not tell it: a stock has one id at all exchanges of a country, and other bars at
    each. Losing the table costs the refusal of a change until the next load.
    """

    def record(self, symbol: str, venue: HeldVenue) -> None:
        """Record the venue of a symbol; a later call replaces it."""
        with self._database.writing() as connection:
            _VENUES.insert(connection, [venue], symbol)

    def of(self, symbol: str) -> HeldVenue | None:
        """Return the venue of a symbol, None where none is recorded."""
        with self._database.reading() as connection:
            found = _VENUES.select(connection, "WHERE symbol = ?", (symbol,))
        return found[0] if found else None

    def all(self) -> dict[str, HeldVenue]:
        """Return the venue of each symbol that has one."""
        with self._database.reading() as connection:
            return {symbol: row for (symbol,), row in _VENUES.select_keyed(connection, "")}


class RevisionsTable(Table):
    """The old values of bars that a newer, different response replaced."""

    def record(self, series_key: str, replaced: pa.Table, at: datetime) -> None:
        """Record the old values of bars, given in the columns of ``BAR_SCHEMA``."""
        keys = timestamps(replaced).tolist()
        columns = [replaced[name].to_pylist() for name in VALUES]
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (series_key, key, micros(at), *values)
                    for key, *values in zip(keys, *columns, strict=True)
                ],
            )

    def of(self, series_key: str) -> list[Revision]:
        """Return the replaced bars of a series, oldest bar first."""
        with self._database.reading() as connection:
            return _REVISIONS.select(
                connection, "WHERE series = ? ORDER BY ts, replaced_at", (series_key,)
            )


@dataclass(frozen=True, slots=True)
class ScheduleAsk:
    """Session dates ``[first, end)`` whose schedule was requested, whatever the response."""

    first: date
    end: date
    asked_at: datetime


_ASKS = Rows("schedule_asks", ScheduleAsk, keys=("calendar", "symbol"), names=_DATES)


class SchedulesTable(Table):
    """Schedules of contracts, and the requests for them.

    The schedule of one contract is named by ``domain.calendars.registry.learned_key``: calendar, a
    blank, symbol. Rows of ledger version 6 without a symbol were shared by all symbols of a
    calendar although one contract gave them; they are kept but not read.
    """

    def all(self) -> dict[str, list[LearnedDay]]:
        """Return the schedule of every contract, by ``learned_key``, oldest date first."""
        found: dict[str, list[LearnedDay]] = defaultdict(list)
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT calendar, symbol, session_date, parts FROM schedules WHERE symbol != '' "
                "ORDER BY session_date"
            ).fetchall()
        for calendar, symbol, day, parts in rows:
            found[f"{calendar} {symbol}"].append(_learned(day, parts))
        return dict(found)

    def of(self, key: str) -> list[LearnedDay]:
        """Return the schedule of one contract, oldest date first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT session_date, parts FROM schedules WHERE calendar = ? AND symbol = ? "
                "ORDER BY session_date",
                key.partition(" ")[::2],
            ).fetchall()
        return [_learned(day, parts) for day, parts in rows]

    def record(
        self, key: str, days: Iterable[LearnedDay], source: ScheduleSource, at: datetime
    ) -> None:
        """Record session dates of a contract's schedule; later ones replace them."""
        calendar, _, symbol = key.partition(" ")
        rows = [
            (calendar, symbol, one.day.isoformat(), *_hours(one), source, micros(at))
            for one in days
        ]
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO schedules VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows
            )

    def remove(self, key: str, days: Iterable[date]) -> None:
        """Delete session dates of a contract's schedule."""
        calendar, _, symbol = key.partition(" ")
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM schedules WHERE calendar = ? AND symbol = ? AND session_date = ?",
                [(calendar, symbol, day.isoformat()) for day in days],
            )

    def asks(self, key: str) -> list[ScheduleAsk]:
        """Return every request for the schedule of a contract, oldest dates first."""
        with self._database.reading() as connection:
            return _ASKS.select(
                connection,
                "WHERE calendar = ? AND symbol = ? ORDER BY first_date",
                key.partition(" ")[::2],
            )

    def record_ask(self, key: str, ask: ScheduleAsk) -> None:
        """Record a request for a schedule."""
        calendar, _, symbol = key.partition(" ")
        with self._database.writing() as connection:
            _ASKS.insert(connection, [ask], calendar, symbol)


class VotesTable(Table):
    """The schedules of contracts that count for the other symbols of their calendar too."""

    def agreed(self) -> dict[str, list[SharedDay]]:
        """Return the dates on which contracts agree that a calendar is wrong, oldest first."""
        votes: dict[str, dict[date, dict[str, LearnedDay]]] = {}
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT calendar, session_date, symbol, parts FROM schedule_votes"
            ).fetchall()
        for calendar, day, symbol, parts in rows:
            learned = _learned(day, parts)
            votes.setdefault(calendar, {}).setdefault(learned.day, {})[symbol] = learned
        found = {
            calendar: agreed_days(calendar_named(calendar), by_day)
            for calendar, by_day in votes.items()
            if is_calendar(calendar)
        }
        return {calendar: days for calendar, days in found.items() if days}

    def of(self, calendar: str) -> dict[date, dict[str, LearnedDay]]:
        """Return the schedules of contracts that count for others too, by date and symbol."""
        found: dict[date, dict[str, LearnedDay]] = defaultdict(dict)
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT symbol, session_date, parts FROM schedule_votes WHERE calendar = ?",
                (calendar,),
            ).fetchall()
        for symbol, day, parts in rows:
            learned = _learned(day, parts)
            found[learned.day][symbol] = learned
        return dict(found)

    def record(self, calendar: str, symbol: str, days: Iterable[LearnedDay], at: datetime) -> None:
        """Record the schedule of a contract that counts for others, replacing the earlier one."""
        rows = [(calendar, symbol, one.day.isoformat(), _hours(one)[2], micros(at)) for one in days]
        with self._database.writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO schedule_votes VALUES (?, ?, ?, ?, ?)", rows
            )

    def withdraw(self, calendar: str, days: Iterable[date], *, symbol: str | None = None) -> None:
        """Delete the votes of all contracts, or of one, on dates."""
        chosen, more = ("", ()) if symbol is None else (" AND symbol = ?", (symbol,))
        with self._database.writing() as connection:
            connection.executemany(
                f"DELETE FROM schedule_votes WHERE calendar = ? AND session_date = ?{chosen}",  # noqa: S608
                [(calendar, day.isoformat(), *more) for day in days],
            )


class SymbolCalendarsTable(Table):
    """Which calendar each symbol shares."""

    def all(self) -> dict[str, str]:
        """Return the calendar of each symbol for which one is recorded."""
        with self._database.reading() as connection:
            return dict(connection.execute("SELECT symbol, calendar FROM symbol_calendars"))

    def record(self, symbol: str, calendar: str) -> None:
        """Record the calendar of a symbol."""
        with self._database.writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO symbol_calendars VALUES (?, ?)", (symbol, calendar)
            )


class LateBarsTable(Table):
    """The newest bar after the close of sessions."""

    def all(self) -> dict[str, dict[date, LateBar]]:
        """Return the newest bar after the close by symbol and session date."""
        found: dict[str, dict[date, LateBar]] = defaultdict(dict)
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT symbol, session_date, starts, ends FROM late_bars ORDER BY session_date"
            ).fetchall()
        for symbol, day, starts, ends in rows:
            found[symbol][date.fromisoformat(day)] = LateBar(starts, ends)
        return dict(found)

    def record(self, symbol: str, late: Mapping[date, LateBar]) -> None:
        """Record the newest bar after the close of sessions; a later recorded one is kept."""
        with self._database.writing() as connection:
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


_WIDTHS = Rows("widths", WidthRecord, keys=("gateway", "timeframe"))


class WidthsTable(Table):
    """The widest useful request, as runs have measured it, by gateway and timeframe.

    Losing the table costs one request that is too wide.
    """

    def of(self, gateway: str) -> dict[Timeframe, WidthRecord]:
        """Return the widths of a gateway by timeframe."""
        with self._database.reading() as connection:
            rows = _WIDTHS.select_keyed(connection, "WHERE gateway = ?", (gateway,))
            return {Timeframe(name): record for (_, name), record in rows}

    def record(self, gateway: str, timeframe: Timeframe, record: WidthRecord) -> None:
        """Record a width, replacing the earlier one."""
        with self._database.writing() as connection:
            _WIDTHS.insert(connection, [record], gateway, timeframe.value)

    def remove(self, gateway: str, timeframe: Timeframe) -> None:
        """Delete a width."""
        with self._database.writing() as connection:
            connection.execute(
                "DELETE FROM widths WHERE gateway = ? AND timeframe = ?", (gateway, timeframe.value)
            )
