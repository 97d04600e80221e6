"""Where the data of a contract begin: the head timestamp, or a search by small requests (probing).

What a probe proves: bars show that the data are at least as old. An empty response for a year shows
only that this year has no bar, and not even that by itself, since a request that reaches past the
gateway's oldest bar may return nothing (grade C). So an interval counts as empty only if its newest
month, its newest week and its first days, requested alone, are empty too.

An empty interval proves nothing about older data: a hole of a year or more inside a history looks
the same. The search therefore looks beyond every empty interval, at growing distances, and reports
its result as the oldest bar found. Only intervals that were probed themselves excuse a gap.

Not here: which of both is used for an instrument (``sync.discovery.earliest_data``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.ledger import EmptyRange, HeadRecord, Ledger, ProbeRecord
from ktrdr_pipelines.sync.engine.audited_requests import RequestAudit, RequestSubject, audited
from ktrdr_pipelines.sync.engine.source_session import SourceSession

_YEAR, _MONTH, _WEEK = (
    (Timeframe.W1, "1 Y"),
    (Timeframe.D1, "1 M"),
    (Timeframe.D1, "1 W"),
)
"""Requests back from the end of a year or month, in durations that IB's conservative table
allows."""

_FIRST_DAYS = timedelta(days=10)
"""Length of the part at the start of a year or month that is requested alone: a request for a year
or month back from the end may begin a few days late, with the first whole week or after the date of
the end."""

Ask = Callable[[Timeframe, date, str], Awaitable[date | None]]
"""Requests bars that end before a session date, and returns the date of the oldest, or None."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A calendar year or month, as session dates ``[first, end)``."""

    first: date
    end: date

    @property
    def is_year(self) -> bool:
        """Whether it is longer than a month."""
        return (self.end - self.first).days > 31

    def __str__(self) -> str:
        return f"{self.first:%Y}" if self.is_year else f"{self.first:%Y-%m}"


def year_of(day: date) -> Cell:
    """Return the calendar year of a date."""
    return Cell(date(day.year, 1, 1), date(day.year + 1, 1, 1))


def month_of(day: date) -> Cell:
    """Return the calendar month of a date."""
    first = day.replace(day=1)
    return Cell(first, (first + timedelta(days=31)).replace(day=1))


async def oldest_in(ask: Ask, cell: Cell) -> date | None:
    """Return the oldest date with a bar that requests for an interval find, None if it is empty.

    The date may be older than the interval, because requests reach back further.
    """
    widths = (_YEAR, _MONTH, _WEEK) if cell.is_year else (_MONTH, _WEEK)
    found = None
    for timeframe, duration in widths:
        found = await ask(timeframe, cell.end, duration)
        if found is not None:
            break
    is_near_start = found is not None and cell.first < found <= cell.first + _FIRST_DAYS
    if found is not None and (cell.is_year or not is_near_start):
        return found
    first = await ask(Timeframe.D1, cell.first + _FIRST_DAYS, _MONTH[1])
    return found if first is None else first


@dataclass(slots=True)
class Search:
    """A search for the oldest bar between a date that is wanted and one that is known to have bars.

    The number of probes grows with the logarithm of the years, once for each hole in the history.
    ``floor`` is the date that is wanted, ``oldest`` the oldest date known to have bars. ``empty``
    maps each probed interval to whether it has no bar.
    """

    ask: Ask
    floor: date
    oldest: date
    empty: dict[Cell, bool] = field(default_factory=dict)
    probes: int = 0

    async def run(self) -> date:
        """Return the date of the oldest bar found."""
        year: int | None = self.oldest.year
        while year is not None:
            year = await self._beyond(await self._bisect_years(year))
        return await self._bisect_months()

    async def _bisect_years(self, newest: int) -> int:
        """Return the oldest year with bars, assuming that there is no hole."""
        low, high = self.floor.year - 1, newest
        while high - low > 1:
            middle = (low + high) // 2
            found = await self._probe(year_of(date(middle, 1, 1)))
            if found is None:
                low = middle
            else:
                high = max(min(middle, found.year), low + 1)
        return high

    async def _beyond(self, year: int) -> int | None:
        """Return a year with bars beyond the empty year before ``year``; None down to the floor.

        The years are probed at growing distances.
        """
        for one in _further(year - 1, self.floor.year):
            found = await self._probe(year_of(date(one, 1, 1)))
            if found is not None:
                return max(min(one, found.year), self.floor.year)
        return None

    async def _bisect_months(self) -> date:
        """Return the date of the first bar, by the first month with bars in the oldest year."""
        if self.oldest < self.floor:
            return self.oldest
        year, low, high = self.oldest.year, 0, self.oldest.month
        while high - low > 1:
            middle = (low + high) // 2
            found = await self._probe(month_of(date(year, middle, 1)))
            if found is None:
                low = middle
            else:
                high = max(middle if found.year == year else 1, low + 1)
        await self._probe(month_of(date(year, high, 1)))
        return self.oldest

    async def _probe(self, cell: Cell) -> date | None:
        """Return what ``oldest_in`` finds, None without a request if known to be empty."""
        if self.empty.get(cell):
            return None
        self.probes += 1
        found = await oldest_in(self.ask, cell)
        self.empty[cell] = found is None
        if found is not None:
            self.oldest = min(self.oldest, found)
        return found


def _further(year: int, floor: int) -> Iterator[int]:
    """Return the years that are one, two, four, eight... before a year, and the floor last."""
    step = 1
    while year - step > floor:
        yield year - step
        step *= 2
    if year > floor:
        yield floor


class RangeDiscovery:
    """Head timestamps by contract and what_to_show, remembered in the ledger for a day."""

    def __init__(self, ledger: Ledger, gateway: str) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._requesting = asyncio.Lock()
        self._failed: set[tuple[int, str]] = set()

    @property
    def gateway(self) -> str:
        """The gateway that the data are of, as ``host:port``."""
        return self._gateway

    def known_head(self, instrument: Instrument, contract_id: int) -> datetime | None:
        """Return the head timestamp that the gateway returned last, however long ago."""
        record = self.record(instrument, contract_id)
        return record.head if record else None

    def is_fresh(self, instrument: Instrument, contract_id: int, now: datetime) -> bool:
        """Return whether the head timestamp was requested within the last day."""
        record = self.record(instrument, contract_id)
        most = timedelta(seconds=IbLimitsRegistry.HEAD_CACHE_S.value)
        return record is not None and now - record.asked_at < most

    async def head(
        self,
        source_session: SourceSession,
        instrument: Instrument,
        contract_id: int,
        note: Callable[[str], None],
    ) -> datetime | None:
        """Return the head timestamp, requesting it unless it is fresh; None if not available.

        A failed request is noted and not repeated in this run, and leaves what was known: the head
        timestamp saves requests, but proves nothing that a bar request would not.
        """
        async with self._requesting:
            contract = (contract_id, instrument.what_to_show.value)
            is_fresh = self.is_fresh(instrument, contract_id, source_session.retry_policy.clock())
            if is_fresh or contract in self._failed:
                return self.known_head(instrument, contract_id)
            try:
                head = await self.request_head(source_session, instrument, contract_id)
            except GatewayError as error:
                self._failed.add(contract)
                note(f"head timestamp of {instrument} not available: {error}")
                return self.known_head(instrument, contract_id)
            self.record_head(instrument, contract_id, head, source_session.retry_policy.clock())
            return head

    async def request_head(
        self, source_session: SourceSession, instrument: Instrument, contract_id: int
    ) -> datetime | None:
        """Request the head timestamp, whatever is known; None if the gateway has none.

        Raises:
            GatewayError: the request failed.
        """
        series = Series(instrument, instrument.timeframes[0])
        about = RequestSubject(series, contract_id, instrument.what_to_show.value)

        async def request(source: BarSource) -> datetime | None:
            return await audited(
                RequestAudit(
                    self._ledger,
                    source,
                    about,
                    source_session.retry_policy.clock,
                    clock_offset_s=source_session.retry_policy.clock_offset_s,
                ),
                lambda sent: source.head(instrument, sent=sent),
                outcome="head",
                proved=lambda head: f"data begin {head:%Y-%m-%d %H:%MZ}" if head else "no head",
            )

        return await source_session.ask(request)

    def record_head(
        self, instrument: Instrument, contract_id: int, head: datetime | None, at: datetime
    ) -> None:
        """Record the head timestamp that the gateway returned, None if it has none."""
        what = instrument.what_to_show.value
        self._ledger.heads.record(contract_id, what, self._gateway, head=head, asked_at=at)

    def probe(self, instrument: Instrument, contract_id: int) -> ProbeRecord | None:
        """Return what probing found last, however long ago."""
        return self._ledger.probes.of(contract_id, instrument.what_to_show.value, self._gateway)

    def is_probed(self, instrument: Instrument, contract_id: int, now: datetime) -> bool:
        """Return whether the last result of probing is still valid."""
        record = self.probe(instrument, contract_id)
        most = timedelta(seconds=IbLimitsRegistry.PROBE_CACHE_S.value)
        return record is not None and now - record.asked_at < most

    def record_search(
        self,
        instrument: Instrument,
        contract_id: int,
        search: Search,
        oldest: date,
        *,
        at: datetime,
        requests: int,
    ) -> None:
        """Record what a search found: the oldest bar, and the empty intervals."""
        contract = (contract_id, instrument.what_to_show.value, self._gateway)
        self._ledger.probes.record(*contract, record=ProbeRecord(oldest, requests, at))
        for cell in (cell for cell, is_empty in search.empty.items() if is_empty):
            empty_range = EmptyRange(cell.first, cell.end, at)
            self._ledger.empty_ranges.record(*contract, record=empty_range)

    def empty_ranges(
        self, instrument: Instrument, contract_id: int, now: datetime
    ) -> list[EmptyRange]:
        """Return the intervals that probing found empty, as far as that is still valid."""
        what = instrument.what_to_show.value
        records = self._ledger.empty_ranges.of(contract_id, what, self._gateway)
        return [record for record in records if record.is_valid(now)]

    def record(self, instrument: Instrument, contract_id: int) -> HeadRecord | None:
        """Return the last response to a head request and its time, None if there was none."""
        return self._ledger.heads.of(contract_id, instrument.what_to_show.value, self._gateway)
