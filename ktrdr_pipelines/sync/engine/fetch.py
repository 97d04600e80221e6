"""Fetching a chunk: its request, and a second one where the first response cannot be evaluated.

Not here: sending one request (``sync.engine.bar_requester``), what the response means
(``sync.engine.chunk_run``).
"""

from dataclasses import dataclass, replace
from datetime import datetime

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.chunks import Chunk
from ktrdr_pipelines.domain.planning.evaluation import EvaluationContext, answered_now
from ktrdr_pipelines.domain.planning.reports import Progress
from ktrdr_pipelines.domain.planning.responses import NoData, Response
from ktrdr_pipelines.domain.plausibility import reconciled
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester, ReceivedResponse


@dataclass(frozen=True, slots=True)
class Fetched:
    """The response to a chunk, and the chunk that it is evidence for.

    ``response`` is None where no row of two responses was a bar. ``sent_at`` is when the request
    was sent: the response says nothing about bars that became due later.
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
        progress: is told of the requests.
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

    async def fetch(self, chunk: Chunk, calendar: SessionCalendar) -> Fetched:
        """Fetch a chunk; what a response proved is left to the caller to record.

        Its end is left empty if the chunk allows that: gateways respond many times faster then. If
        that response is unclear, the chunk is requested with its end.

        Args:
            chunk: what is requested.
            calendar: the sessions of the series.

        Raises:
            GatewayError: after all retries, or if a retry cannot help.
        """
        received, fetched_chunk = await self._received(chunk, calendar)
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
        self, chunk: Chunk, calendar: SessionCalendar
    ) -> tuple[ReceivedResponse, Chunk]:
        """Request a chunk; return the response and the chunk that it is evidence for."""
        with_end, is_wide = replace(chunk, now_until=None), chunk.sessions > 1
        received = None
        if chunk.now_until is not None:
            received = await self.requester.bars_up_to_now(
                chunk.duration, chunk.now_until, is_wide=is_wide
            )
        if received is None:
            received = await self.requester.bars(chunk.ends_at, chunk.duration, is_wide=is_wide)
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
