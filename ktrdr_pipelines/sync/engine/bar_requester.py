"""Requesting bars of one series, with an audit of every request, and fetching its chunks.

A contract that has not lately returned bars is not alive: its empty responses prove nothing. A
chunk is requested a second time where the first response cannot be evaluated.

Not here: retries (``sync.engine.source_session``), what a response means
(``sync.engine.chunk_run``).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.chunks import Chunk
from ktrdr_pipelines.domain.planning.evaluation import EvaluationContext, answered_now
from ktrdr_pipelines.domain.planning.jobs import LoadOptions, RequestedBy
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.planning.responses import BarRequest, BarSource, NoData, Response
from ktrdr_pipelines.domain.plausibility import reconciled
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayTimeoutError, RequestExpiredError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.discovery.head_timestamps import RangeDiscovery
from ktrdr_pipelines.sync.engine.audited_requests import RequestAudit, RequestSubject
from ktrdr_pipelines.sync.engine.request_widths import Widths
from ktrdr_pipelines.sync.engine.source_session import SourceSession

_ALIVE_FOR = timedelta(days=7)
_ALIVE_DURATION = "1 M"
_ALIVE_SPAN = timedelta(days=28)


@dataclass(frozen=True, slots=True)
class ReceivedResponse:
    """A response, and the audit of its request.

    ``sent_at`` is when the request was sent, by the earlier of the gateway's clock and this
    machine's: the response proves nothing about later times. ``requested_at`` is the same by this
    machine's clock alone. ``took_s`` are the seconds from then to the response.
    """

    response: Response | NoData
    audit: RequestAudit
    sent_at: datetime
    requested_at: datetime
    took_s: float = 0.0

    @property
    def with_bars(self) -> Response | None:
        """The response if it has bars."""
        return self.response if isinstance(self.response, Response) else None


class ConcurrencyShare:
    """What one series has of the concurrency of a run; made by ``SharedConcurrency.join``.

    ``demand`` is how many of its chunks could be requested at once now.
    """

    def __init__(self, shared: "SharedConcurrency") -> None:
        self._shared = shared
        self.demand = 0

    @property
    def most(self) -> int:
        """How many requests of the series may be open at once: none while others need all."""
        return self._shared.left_for(self)

    def need(self, demand: int) -> None:
        """State the demand, which series that wait for a share may have more of if it falls."""
        before, self.demand = self.demand, demand
        if demand < before:
            self._shared.wake()

    async def admitted(self) -> None:
        """Wait until at least one request of the series may be open."""
        while self.most < 1:
            await self._shared.changed()

    def leave(self) -> None:
        """Give up the share."""
        self._shared.leave(self)


class SharedConcurrency:
    """Shares the concurrency among the series of a run: those that began first have it first.

    So one series is finished after the other, and its responses are saved together: a file is
    written as a whole, and with all series at once each write would have few bars for each.

    Args:
        concurrency: returns how many requests for bars are worth having open at once.
    """

    _SPARE = 2  # so that a request is ready whenever the rate limiter has a permit

    def __init__(self, concurrency: Callable[[], int]) -> None:
        self._concurrency = concurrency
        self._shares: list[ConcurrencyShare] = []
        self._changed = asyncio.Event()

    def join(self) -> ConcurrencyShare:
        """Return the share of one more series, behind those of all others."""
        share = ConcurrencyShare(self)
        self._shares.append(share)
        return share

    def leave(self, share: ConcurrencyShare) -> None:
        """Remove a share."""
        self._shares.remove(share)
        self.wake()

    def left_for(self, share: ConcurrencyShare) -> int:
        """Return what the series before one leave of the concurrency."""
        before = self._shares[: self._shares.index(share)]
        left = self._concurrency() + self._SPARE - sum(one.demand for one in before)
        return max(left, 0)

    def wake(self) -> None:
        """Let those that wait for a share look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait until a demand has fallen."""
        await self._changed.wait()


class Requests:
    """The requests of one run: the session, and what they have shown of the gateway.

    Args:
        source_session: sends them.
        ledger: keeps the audit.
        heads: the head timestamps.
        widths: how wide requests may be.
        progress: receives waits and notes.
    """

    def __init__(
        self,
        source_session: SourceSession,
        ledger: Ledger,
        *,
        heads: RangeDiscovery,
        widths: Widths,
        progress: Progress,
    ) -> None:
        self.source_session, self.ledger = source_session, ledger
        self.heads, self.widths, self.progress = heads, widths, progress
        self.concurrency = SharedConcurrency(lambda: source_session.concurrency)
        # Whether contracts are alive, by contract id and what_to_show.
        self.alive: dict[tuple[int, str], bool] = {}
        self.checking_life = asyncio.Lock()

    def of(self, series: Series, contract_id: int, options: LoadOptions) -> "BarRequester":
        """Return what requests the bars of one series."""
        return BarRequester(self, series, contract_id, options)


class BarRequester:
    """Requests the bars of one series and records each request, its response and what it proved.

    ``requests`` counts how often requests were sent, ``rows`` the rows of their responses. Made by
    ``Requests.of``.
    """

    def __init__(
        self, run: Requests, series: Series, contract_id: int, options: LoadOptions
    ) -> None:
        self.source_session, self.widths = run.source_session, run.widths
        self.concurrency = run.concurrency
        self.contract_id, self.options = contract_id, options
        self._run, self._series = run, series
        self._contract = contract_id, series.instrument.what_to_show.value
        self._clock = run.source_session.retry_policy.clock
        self._sent: dict[BarRequest, datetime] = {}
        self.requests = 0
        self.rows = 0

    @property
    def series(self) -> Series:
        """The series whose bars are requested."""
        return self._series

    async def bars(
        self,
        ends_at: datetime,
        duration: str,
        *,
        is_wide: bool = False,
        is_trial: bool = False,
    ) -> ReceivedResponse:
        """Request bars of the series; one of several sessions is not retried after a timeout.

        ``is_trial`` is as in ``BarRequest``.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        request = self._request(self._series, ends_at, duration)
        return await self._send(replace(request, is_trial=is_trial), is_wide=is_wide)

    async def bars_up_to_now(
        self, duration: str, until: datetime, *, is_wide: bool = False
    ) -> ReceivedResponse | None:
        """Request bars with an empty end, which means now; None if it means another time already.

        It does from ``until`` on, by the later of the two clocks. None too if the same was
        requested so recently that IB's rule would make it wait: with an end it is another request.
        Raises as ``bars``.
        """
        source_session = self.source_session
        ahead = max(source_session.market_now() - source_session.gateway_now(), timedelta(0))
        request = replace(self._request(self._series, None, duration), not_after=until - ahead)
        if source_session.gateway_now() >= until - ahead or self._is_too_soon(request):
            return None
        try:
            received = await self._send(request, is_wide=is_wide)
        except RequestExpiredError:
            return None
        if max(source_session.market_now(), source_session.gateway_now()) < until:
            return received
        self.record(received, "nothing: received when now meant another time")
        return None

    async def head(self) -> datetime | None:
        """Return the contract's head timestamp, requesting it unless it is freshly known."""
        instrument = self._series.instrument
        return await self._run.heads.head(
            self.source_session, instrument, self.contract_id, self.note
        )

    def mark_alive(self) -> None:
        """Record that the contract is alive: it returned bars."""
        self._run.alive[self._contract] = True

    async def is_alive(self) -> bool:
        """Return whether the contract has lately returned bars, requesting some if necessary.

        The newest month is requested, and if it is empty the oldest one: an instrument that has
        ended has no new bars but old ones. A run checks a contract at most once.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        async with self._run.checking_life:
            if self._contract not in self._run.alive:
                self._run.alive[self._contract] = await self._check_life()
        return self._run.alive[self._contract]

    async def _check_life(self) -> bool:
        source = await self.source_session.source()
        last = self._run.ledger.requests.last_answered(*self._contract, source.gateway)
        if last is not None and self._clock() - last < _ALIVE_FOR:
            return True
        if await self._answers(None):
            return True
        oldest = await self.head()
        return oldest is not None and await self._answers(oldest + _ALIVE_SPAN)

    async def _answers(self, ends_at: datetime | None) -> bool:
        """Return whether there are daily bars in the month up to a moment, None for now."""
        received = await self.bars_of(Timeframe.D1, ends_at, _ALIVE_DURATION)
        self.record(
            received, "alive" if isinstance(received.response, Response) else "no recent bars"
        )
        return isinstance(received.response, Response)

    async def bars_of(
        self, timeframe: Timeframe, ends_at: datetime | None, duration: str
    ) -> ReceivedResponse:
        """Request bars of the instrument, whatever the timeframe of the series; raises as ``bars``.

        ``ends_at`` None means now.
        """
        series = Series(self._series.instrument, timeframe)
        return await self._send(self._request(series, ends_at, duration))

    def note(self, text: str) -> None:
        """Report a note about the series to the user."""
        self._run.progress.noted(self._series, text)

    def record(self, received: ReceivedResponse, proved: str) -> None:
        """Record a response in the audit, with what it proved."""
        response = received.response
        rows = response.bars.num_rows if isinstance(response, Response) else 0
        self.rows += rows
        outcome = "bars" if rows else "no data"
        received.audit.ended(outcome, rows=rows, proved=proved)

    def _request(self, series: Series, ends_at: datetime | None, duration: str) -> BarRequest:
        probes = self.options.requested_by is RequestedBy.PERSON
        return BarRequest(series, ends_at, duration, tail=self.options.tail, probes=probes)

    async def _send(self, request: BarRequest, *, is_wide: bool = False) -> ReceivedResponse:
        sent_at, requested_at = self.source_session.now(), self._clock()

        def note_sent(sent: Callable[[], None]) -> Callable[[], None]:
            def note() -> None:
                nonlocal sent_at, requested_at
                sent_at, requested_at = self.source_session.now(), self._clock()
                sent()

            return note

        async def call(source: BarSource) -> ReceivedResponse:
            if self._is_too_soon(request):
                rule_s = IbLimitsRegistry.IDENTICAL_S.value
                self.note(
                    f"{request} is sent once more and has to wait: IB accepts identical requests "
                    f"only every {rule_s:.0f} s"
                )
            self._sent[request] = self._clock()
            audit = RequestAudit(
                self._run.ledger,
                source,
                RequestSubject(
                    request.series,
                    self.contract_id,
                    request.series.instrument.what_to_show.value,
                    request.ends_at,
                    request.duration,
                ),
                self._clock,
                clock_offset_s=self.source_session.retry_policy.clock_offset_s,
            )
            try:
                with audit.under_way():
                    response = await source.bars(request, sent=note_sent(audit.sent))
                    took_s = (self._clock() - requested_at).total_seconds()
                    return ReceivedResponse(response, audit, sent_at, requested_at, took_s)
            finally:
                self.requests += audit.sent_times

        return await self.source_session.ask(
            call, but_after=(GatewayTimeoutError,) if is_wide else ()
        )

    def _is_too_soon(self, request: BarRequest) -> bool:
        """Return whether the same was requested so recently that IB's rule makes it wait."""
        before, rule_s = self._sent.get(request), IbLimitsRegistry.IDENTICAL_S.value
        return before is not None and (self._clock() - before).total_seconds() < rule_s


@dataclass(frozen=True, slots=True)
class Fetched:
    """The response to a chunk, and the chunk that it is evidence for.

    ``response`` is None where no row of two responses was a bar. ``sent_at`` is when the request
    was sent: the response proves nothing about bars that became due later.
    """

    received: ReceivedResponse
    chunk: Chunk
    response: Response | NoData | None

    @property
    def with_bars(self) -> Response | None:
        """The response if it has bars."""
        return self.response if isinstance(self.response, Response) else None

    @property
    def rows(self) -> int:
        """How many bars the response has."""
        return self.response.bars.num_rows if isinstance(self.response, Response) else 0

    @property
    def sent_at(self) -> datetime:
        """When the request was sent, by the earlier of the gateway's clock and this machine's."""
        return self.received.sent_at


class Fetcher:
    """Fetches the chunks of one series.

    Args:
        requester: sends the requests.
        series: the series.
        progress: receives the number of planned and finished requests.
    """

    def __init__(self, requester: BarRequester, series: Series, progress: Progress) -> None:
        self.requester = requester
        self._series, self._progress = series, progress

    def planned(self, requests: int) -> None:
        """Report that so many more requests are planned."""
        self._progress.planned(self._series, requests)

    def done(self, rows: int = 0) -> None:
        """Report that one planned request is done, or not needed, and how many bars it returned."""
        self._progress.answered(self._series, rows)

    async def fetch(
        self, chunk: Chunk, calendar: SessionCalendar, *, is_trial: bool = False
    ) -> Fetched:
        """Fetch a chunk; what a response proved is left to the caller to record.

        Its end is left empty if the chunk allows that: gateways respond many times faster then. If
        that response is unclear, the chunk is requested with its end.

        Args:
            chunk: what is requested.
            calendar: the sessions of the series.
            is_trial: as in ``BarRequest``.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        received, fetched_chunk = await self._received(chunk, calendar, is_trial=is_trial)
        self.requester.widths.answered(self._series.timeframe, fetched_chunk.sessions)
        return Fetched(received, fetched_chunk, received.response)

    async def reconcile(self, chunk: Chunk, fetched: Fetched) -> Fetched:
        """Reconcile a response that has impossible or implausible rows with a second one.

        A response without any is returned as it is. Raises as ``fetch``.
        """
        first = fetched.with_bars
        if first is None or not (first.impossible or first.implausible):
            return fetched
        odd = f"{len(first.implausible)} implausible bars, rows at {len(first.impossible)} places"
        self.requester.record(fetched.received, f"{odd} are no bars: requested once more")
        again = await self._again(chunk)
        response = reconciled(first, again.with_bars, self._series.timeframe.length)
        return Fetched(again, replace(chunk, now_until=None), response)

    async def _received(
        self, chunk: Chunk, calendar: SessionCalendar, *, is_trial: bool
    ) -> tuple[ReceivedResponse, Chunk]:
        """Request a chunk; return the response and the chunk that it is evidence for."""
        with_end, is_wide = replace(chunk, now_until=None), chunk.sessions > 1
        received = None
        if chunk.now_until is not None:
            received = await self.requester.bars_up_to_now(
                chunk.duration, chunk.now_until, is_wide=is_wide
            )
        if received is None:
            received = await self.requester.bars(
                chunk.ends_at, chunk.duration, is_wide=is_wide, is_trial=is_trial
            )
            return received, with_end
        context = EvaluationContext(chunk, calendar, self._series.timeframe, received.sent_at)
        response = received.response
        if isinstance(response, Response):
            context = replace(context, holds_back=response.lacks_newest)
            stated = answered_now(context, response.bars, response.reach)
        else:
            stated = answered_now(context, None, None)
        if stated is not None:
            return received, stated
        self.requester.record(received, "nothing by itself: requested with its end")
        return await self._again(chunk), with_end

    async def _again(self, chunk: Chunk) -> ReceivedResponse:
        """Request a chunk once more, with its end."""
        self.planned(1)
        self.done()
        return await self.requester.bars(chunk.ends_at, chunk.duration, is_wide=chunk.sessions > 1)
