"""Discovering where the data of instruments begin: by their head timestamp, else by probing.

Not here: the search, and what is remembered and for how long (``sync.discovery.head_timestamps``).
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import monday_of
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.planning.jobs import LoadOptions
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.sync.discovery.contracts import known_contract, learn_identity
from ktrdr_pipelines.sync.discovery.head_timestamps import Search
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester, Requests


class HowFound(StrEnum):
    """How the start of an instrument's data is known."""

    HEAD = "head timestamp"
    PROBED = "found by probing"
    HELD = "oldest bar held"
    UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class EarliestData:
    """Where the data of one instrument begin, for its what_to_show.

    ``oldest`` is the session date of the head timestamp, or of the oldest bar found; ``head`` is
    the head timestamp itself. ``contradicted``: an older bar is held, so the head timestamp is
    wrong. ``empty`` are ranges of session dates ``[first, end)`` that probing found to have no bar.
    ``error`` is why the requests failed; the other fields are then what was known before.
    """

    instrument: Instrument
    how: HowFound = HowFound.UNKNOWN
    oldest: date | None = None
    head: datetime | None = None
    asked_at: datetime | None = None
    contradicted: bool = False
    empty: tuple[tuple[date, date], ...] = ()
    error: KtrdrError | None = None


class Discovery:
    """Finds where data begin; one head request a day at most for a contract and what_to_show."""

    def __init__(self, requests: Requests, store: BarStore) -> None:
        self._requests, self._store = requests, store
        self._ranges, self._policy = requests.heads, requests.source_session.retry_policy

    async def ask(self, instrument: Instrument, *, refresh: bool = False) -> EarliestData:
        """Return the start of an instrument's data, with requests if it is not freshly known.

        Args:
            instrument: the instrument.
            refresh: make the requests even if the start is freshly known.

        Raises:
            GatewayError: a request failed.
            ForeignIdentityError: the store holds something else under this symbol.
        """
        session, series = self._requests.source_session, _any_series(instrument)
        contract_id = known_contract(self._store, series)
        if contract_id is None:
            contract_id = (await learn_identity(session, self._store, series)).contract_id
        ranges = self._ranges
        if refresh or not ranges.is_fresh(instrument, contract_id, self._policy.clock()):
            head = await ranges.request_head(session, instrument, contract_id)
            ranges.record_head(instrument, contract_id, head, self._policy.clock())
        found = self._known(instrument, contract_id)
        if found.how is not HowFound.HEAD and (
            refresh or not ranges.is_probed(instrument, contract_id, self._policy.market_clock())
        ):
            await self._probe(instrument, contract_id)
            found = self._known(instrument, contract_id)
        return found

    def known(self, instrument: Instrument) -> EarliestData:
        """Return what is known of the start of an instrument's data, without any request."""
        contract_id = known_contract(self._store, _any_series(instrument))
        return self._known(instrument, contract_id)

    def _known(self, instrument: Instrument, contract_id: int | None) -> EarliestData:
        held = self._oldest_held(instrument)
        if contract_id is None:
            return EarliestData(instrument, HowFound.HELD if held else HowFound.UNKNOWN, held)
        ranges = self._ranges
        record = ranges.record(instrument, contract_id)
        probe = ranges.probe(instrument, contract_id)
        empty = ranges.empty_ranges(instrument, contract_id, self._policy.market_clock())
        intervals = tuple((one.first, one.end) for one in empty)
        head = record.head if record else None
        day = calendar_named(instrument.calendar).day_of(head) if head else None
        contradicted = bool(day and held and held < day)
        if day and not contradicted:
            asked_at = record.asked_at if record else None
            return EarliestData(instrument, HowFound.HEAD, day, head, asked_at, empty=intervals)
        days = [one for one in (held, probe.oldest if probe else None) if one]
        how = HowFound.PROBED if probe else HowFound.HELD if held else HowFound.UNKNOWN
        return EarliestData(
            instrument,
            how,
            min(days, default=None),
            head,
            probe.asked_at if probe else record.asked_at if record else None,
            contradicted=contradicted,
            empty=intervals,
        )

    async def _probe(self, instrument: Instrument, contract_id: int) -> None:
        """Search for the oldest bar, starting from the oldest that is held, else from now."""
        calendar = calendar_named(instrument.calendar)
        daily = Series(instrument, Timeframe.D1)
        requester = self._requests.of(daily, contract_id, LoadOptions())

        async def ask(timeframe: Timeframe, end: date, duration: str) -> date | None:
            return await oldest_day(requester, timeframe, calendar.day_starts_at(end), duration)

        newest = self._oldest_held(instrument) or await oldest_day(
            requester, Timeframe.D1, None, "1 M"
        )
        if newest is None:
            return
        search = Search(ask, instrument.start, newest)
        oldest = await search.run()
        self._ranges.record_search(
            instrument,
            contract_id,
            search,
            oldest,
            at=self._policy.market_clock(),
            requests=requester.requests,
        )

    def _oldest_held(self, instrument: Instrument) -> date | None:
        """Return the session date of the oldest bar of any timeframe but 1w."""
        store = self._store
        days = (
            next(iter(store.rows_per_session(Series(instrument, kind))), None)
            for kind in Timeframe
            if kind is not Timeframe.W1
        )
        return min((day for day in days if day is not None), default=None)


async def oldest_day(
    requester: BarRequester, timeframe: Timeframe, ends_at: datetime | None, duration: str
) -> date | None:
    """Return the session date of the oldest bar of a request, None if there is no bar.

    For a weekly bar, which does not show on which day its data begin, it is the Friday.

    Raises:
        GatewayError: after all retries, or if a retry cannot help.
    """
    received = await requester.bars_of(timeframe, ends_at, duration)
    if received.with_bars is None:
        requester.record(received, "no bars")
        return None
    day: date = received.with_bars.bars["session_date"][0].as_py()
    if timeframe is Timeframe.W1:
        day = monday_of(day) + timedelta(days=4)
    requester.record(received, f"bars from {day}")
    return day


def _any_series(instrument: Instrument) -> Series:
    return Series(instrument, instrument.timeframes[0])
