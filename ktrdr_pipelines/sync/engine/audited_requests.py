"""The audit: a row for every time that a request for historical data was sent.

Bars, schedules and head timestamps are recorded, which IB's limits count alike.

Not here: the table (``store.ledger.request_audit``), sending (``sync.engine.bar_requester``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.responses import BarSource, OnSent
from ktrdr_pipelines.errors import GatewayError, OutageError
from ktrdr_pipelines.store.ledger.ledger import Ledger, RequestRecord, series_key

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
        """Record a failure of the open request; a response is recorded by ``ended``."""
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
        """Write a row for each time the request was sent; all but the last met an outage.

        That of a response with bars is queued, until its bars are saved or the next chunks are
        claimed. What else proves something is written at once.
        """
        for at, again_at in pairwise(self._sent_at):
            self._ledger.requests.record(self._row(at, again_at, OutageError.__name__))
        if self._sent_at:
            begun_at = self._begun_at if self.sent_times == 1 else self._sent_at[-1]
            last = self._row(begun_at, self._over_at, outcome, code=code, rows=rows, proved=proved)
            if rows:
                self._ledger.requests.queue(last)
            else:
                self._ledger.requests.record(last)

    def _row(
        self,
        sent_at: datetime,
        over_at: datetime,
        outcome: str,
        *,
        code: int | None = None,
        rows: int = 0,
        proved: str = "",
    ) -> RequestRecord:
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
            code=code,
            rows=rows,
            proved=proved,
            clock_offset_s=self._offset_s,
        )


async def audited(
    audit: RequestAudit,
    ask: Callable[[OnSent], Awaitable[T]],
    outcome: str,
    proved: Callable[[T], str],
) -> T:
    """Make a request that is not for bars, and record it in the audit.

    Args:
        audit: the audit of the request.
        ask: makes the request; calls its argument each time it is sent.
        outcome: the outcome to record for a response.
        proved: describes what a response proved.

    Raises:
        GatewayError: the request failed; it is recorded too.
    """
    with audit.under_way():
        response = await ask(audit.sent)
    audit.ended(outcome, proved=proved(response))
    return response
