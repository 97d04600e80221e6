"""Requesting bars of one series, with an audit of every request.

The audit has a row for every time a request for historical data was sent to the gateway, however it
ended: bars, schedules and head timestamps, which IB's limits count too. ``LifeSigns`` tells whether
a contract has lately returned bars; if it has not, its empty responses prove nothing. Not here:
retries (``sync.engine.source_session``), the evaluation of responses
(``domain.planning.evaluation``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import TypeVar

from ktrdr_pipelines.domain.calendars.sessions import monday_of
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.chunks import Chunk
from ktrdr_pipelines.domain.planning.jobs import LoadOptions, RequestedBy
from ktrdr_pipelines.domain.planning.responses import (
    BarRequest,
    BarSource,
    NoData,
    OnSent,
    Response,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    GatewayError,
    GatewayTimeoutError,
    OutageError,
    RequestExpiredError,
)
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.ledger import Ledger, RequestRecord, series_key
from ktrdr_pipelines.sync.engine.source_session import SourceSession

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RequestSubject:
    """What a request is about, as the audit records it.

    A head timestamp has no timeframe and no duration: ``series`` is any one of the instrument.
    ``ends_at`` None means now.
    """

    series: Series
    contract_id: int
    what_to_show: str
    ends_at: datetime | None = None
    duration: str = ""


class RequestAudit:
    """One request to one source, and its rows in the audit.

    ``clock`` gives real time; market time was ``clock_offset_s`` ahead of it.
    """

    def __init__(
        self,
        ledger: Ledger,
        source: BarSource,
        about: RequestSubject,
        clock: Callable[[], datetime],
        *,
        clock_offset_s: float = 0.0,
    ) -> None:
        self._ledger, self._source, self._about, self._clock = ledger, source, about, clock
        self._offset_s = clock_offset_s
        self._begun_at = self._over_at = clock()
        self._sent_at: list[datetime] = []

    @property
    def sent_times(self) -> int:
        """How often the request was sent: never, once, or more often after outages."""
        return len(self._sent_at)

    def sent(self) -> None:
        """Record that the request is sent to the gateway now."""
        self._sent_at.append(self._clock())

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Hold while the request is open; records failures, and leaves responses to ``ended``."""
        try:
            yield
        except GatewayError as error:
            self._over_at = self._clock()
            self.ended(type(error).__name__, code=error.code)
            raise
        except asyncio.CancelledError:
            self._over_at = self._clock()
            self.ended("cancelled")
            raise
        self._over_at = self._clock()

    def ended(
        self, outcome: str, *, code: int | None = None, rows: int = 0, proved: str = ""
    ) -> None:
        """Write a row for each time the request was sent; all but the last met an outage."""
        for at, again_at in pairwise(self._sent_at):
            self._ledger.requests.record(self._row(at, again_at, OutageError.__name__))
        if self._sent_at:
            begun_at = self._begun_at if self.sent_times == 1 else self._sent_at[-1]
            last = self._row(begun_at, self._over_at, outcome)
            self._ledger.requests.record(replace(last, code=code, rows=rows, proved=proved))

    def _row(self, sent_at: datetime, over_at: datetime, outcome: str) -> RequestRecord:
        about = self._about
        return RequestRecord(
            series=series_key(about.series),
            contract_id=about.contract_id,
            what_to_show=about.what_to_show,
            gateway=self._source.gateway,
            login=self._source.login,
            asked_end=about.ends_at,
            duration=about.duration,
            sent_at=sent_at,
            took_s=(over_at - sent_at).total_seconds(),
            outcome=outcome,
            clock_offset_s=self._offset_s,
        )


async def audited(
    audit: RequestAudit,
    ask: Callable[[OnSent], Awaitable[T]],
    outcome: str,
    told: Callable[[T], str],
) -> T:
    """Make a request that is not for bars, and record it in the audit.

    Args:
        audit: the audit of the request.
        ask: makes the request; calls its argument each time it is sent.
        outcome: the outcome to record for a response.
        told: returns what a response proved, in words.

    Raises:
        GatewayError: the request failed; it is recorded too.
    """
    with audit.under_way():
        response = await ask(audit.sent)
    audit.ended(outcome, proved=told(response))
    return response


_ALIVE_FOR = timedelta(days=7)
_ALIVE_DURATION = "1 M"
_ALIVE_SPAN = timedelta(days=28)


@dataclass(frozen=True, slots=True)
class ReceivedResponse:
    """A response, and the audit of its request.

    ``sent_at`` is when the request was sent, by the earlier of the gateway's clock and this
    machine's: the response says nothing about later moments. ``ends_now``: the request had an
    empty end.
    """

    response: Response | NoData
    audit: RequestAudit
    sent_at: datetime
    ends_now: bool = False


class BarRequester:
    """Requests the bars of one series and records each request, its response and what it proved.

    ``requests`` counts how often requests were sent, ``rows`` the rows of their responses.
    """

    def __init__(
        self,
        source_session: SourceSession,
        ledger: Ledger,
        series: Series,
        *,
        contract_id: int,
        options: LoadOptions,
        note: Callable[[str], None],
    ) -> None:
        self._source_session, self._clock = source_session, source_session.retry_policy.clock
        self._ledger = ledger
        self._series = series
        self._contract_id = contract_id
        self._options = options
        self._note = note
        self._sent: dict[BarRequest, datetime] = {}
        self.requests = 0
        self.rows = 0

    async def chunk(self, chunk: Chunk) -> ReceivedResponse:
        """Request a chunk; one of several sessions is not retried as it is after a timeout.

        Its end is left empty if the chunk allows that: gateways respond many times faster then.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        is_wide = chunk.sessions > 1
        if chunk.now_until is not None:
            received = await self._up_to_now(chunk, chunk.now_until, is_wide=is_wide)
            if received is not None:
                return received
        request = self._request(self._series, chunk.ends_at, chunk.duration)
        return await self._send(request, is_wide=is_wide)

    async def _up_to_now(
        self, chunk: Chunk, until: datetime, *, is_wide: bool
    ) -> ReceivedResponse | None:
        """Request a chunk with an empty end; None if that does not mean the chunk (any more).

        It does not from ``until`` on, by the later of the two clocks. None too if the same was
        requested so recently that IB's rule would make it wait: with an end it is another request.
        """
        source_session = self._source_session
        ahead = max(source_session.market_now() - source_session.gateway_now(), timedelta(0))
        request = replace(
            self._request(self._series, None, chunk.duration), not_after=until - ahead
        )
        if source_session.gateway_now() >= until - ahead or self._is_too_soon(request):
            return None
        try:
            received = await self._send(request, is_wide=is_wide)
        except RequestExpiredError:
            return None
        if max(source_session.market_now(), source_session.gateway_now()) < until:
            return received
        self.record(received, "nothing: it came when now meant another time")
        return None

    @property
    def contract(self) -> tuple[int, str]:
        """Contract id and what_to_show, to which a sign of life belongs."""
        return self._contract_id, self._series.instrument.what_to_show.value

    async def is_alive(self, head: Callable[[], Awaitable[datetime | None]]) -> bool:
        """Return whether the contract has lately returned bars, requesting some if necessary.

        The newest month is requested, and if it is empty the oldest one: an instrument that has
        ended has no new bars but old ones.

        Args:
            head: returns the start of the gateway's data, or None.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        source = await self._source_session.source()
        last = self._ledger.requests.last_answered(*self.contract, source.gateway)
        if last is not None and self._clock() - last < _ALIVE_FOR:
            return True
        if await self._answers(None):
            return True
        oldest = await head()
        return oldest is not None and await self._answers(oldest + _ALIVE_SPAN)

    async def _answers(self, ends_at: datetime | None) -> bool:
        """Return whether there are daily bars in the month up to a moment, None for now."""
        daily = Series(self._series.instrument, Timeframe.D1)
        received = await self._send(self._request(daily, ends_at, _ALIVE_DURATION))
        self.record(
            received, "alive" if isinstance(received.response, Response) else "no sign of life"
        )
        return isinstance(received.response, Response)

    async def daily(self, ends_at: datetime, duration: str) -> ReceivedResponse:
        """Request daily bars of the instrument, whatever the timeframe of the series.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        return await self.of(Series(self._series.instrument, Timeframe.D1), ends_at, duration)

    async def of(self, series: Series, ends_at: datetime, duration: str) -> ReceivedResponse:
        """Request bars of a series of the instrument; errors as ``daily``."""
        return await self._send(self._request(series, ends_at, duration))

    async def oldest(
        self, timeframe: Timeframe, ends_at: datetime | None, duration: str
    ) -> date | None:
        """Return the session date of the oldest bar of a request, None if there is no bar.

        For a weekly bar, which does not show on which day its data begin, it is the Friday.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        series = Series(self._series.instrument, timeframe)
        received = await self._send(self._request(series, ends_at, duration))
        if not isinstance(received.response, Response):
            self.record(received, "a silent probe")
            return None
        day: date = received.response.bars["session_date"][0].as_py()
        if timeframe is Timeframe.W1:
            day = monday_of(day) + timedelta(days=4)
        self.record(received, f"bars from {day}")
        return day

    def record(self, received: ReceivedResponse, proved: str) -> None:
        """Record a response in the audit, with what it proved."""
        response = received.response
        rows = response.bars.num_rows if isinstance(response, Response) else 0
        self.rows += rows
        outcome = "bars" if rows else "no data"
        received.audit.ended(outcome, rows=rows, proved=proved)

    def _request(self, series: Series, ends_at: datetime | None, duration: str) -> BarRequest:
        probes = self._options.requested_by is RequestedBy.PERSON
        return BarRequest(series, ends_at, duration, tail=self._options.tail, probes=probes)

    async def _send(self, request: BarRequest, *, is_wide: bool = False) -> ReceivedResponse:
        sent_at = self._source_session.now()

        def note_sent(sent: Callable[[], None]) -> Callable[[], None]:
            def note() -> None:
                nonlocal sent_at
                sent_at = self._source_session.now()
                sent()

            return note

        async def call(source: BarSource) -> ReceivedResponse:
            if self._is_too_soon(request):
                rule_s = IbLimitsRegistry.IDENTICAL_S.value
                self._note(
                    f"{request} is sent once more and has to wait: IB accepts identical requests "
                    f"only every {rule_s:.0f} s"
                )
            self._sent[request] = self._clock()
            audit = RequestAudit(
                self._ledger,
                source,
                RequestSubject(
                    request.series,
                    self._contract_id,
                    request.series.instrument.what_to_show.value,
                    request.ends_at,
                    request.duration,
                ),
                self._clock,
                clock_offset_s=self._source_session.retry_policy.clock_offset_s,
            )
            try:
                with audit.under_way():
                    response = await source.bars(request, sent=note_sent(audit.sent))
                    return ReceivedResponse(
                        response, audit, sent_at, ends_now=request.ends_at is None
                    )
            finally:
                self.requests += audit.sent_times

        return await self._source_session.ask(
            call, but_after=(GatewayTimeoutError,) if is_wide else ()
        )

    def _is_too_soon(self, request: BarRequest) -> bool:
        """Return whether the same was requested so recently that IB's rule makes it wait."""
        before, rule_s = self._sent.get(request), IbLimitsRegistry.IDENTICAL_S.value
        return before is not None and (self._clock() - before).total_seconds() < rule_s


class LifeSigns:
    """Which contracts have lately returned bars, as one run knows; each is checked at most once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], bool] = {}
        self._requesting = asyncio.Lock()

    def saw(self, requester: BarRequester) -> None:
        """Record that a contract returned bars."""
        self._known[requester.contract] = True

    async def are_there(
        self, requester: BarRequester, head: Callable[[], Awaitable[datetime | None]]
    ) -> bool:
        """Return whether a contract has lately returned bars, requesting some once if necessary.

        ``head`` returns the start of the gateway's data, or None.

        Raises:
            GatewayError: the request failed.
        """
        async with self._requesting:
            if requester.contract not in self._known:
                self._known[requester.contract] = await requester.is_alive(head)
        return self._known[requester.contract]
