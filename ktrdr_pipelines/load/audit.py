"""The audit of one question: a row for every time it was sent to the gateway, however it ended.

What counts are requests for historical data, which IB's limits count too: bars, schedules, head
timestamps. Not here: the table (``store.audit``), when and how often is asked (``load.keeper``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import TypeVar

from ktrdr_pipelines.core.answers import BarSource, OnSent
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.errors import GatewayError, OutageError
from ktrdr_pipelines.store.ledger import Ledger, RequestRecord, series_key

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class About:
    """What a question is about.

    A head timestamp is of no timeframe and has no duration: ``series`` is one that it is for.
    ``ends_at`` None is now.
    """

    series: Series
    contract_id: int
    what_to_show: str
    ends_at: datetime | None = None
    duration: str = ""


class Inquiry:
    """One question to one source, and its rows in the audit.

    ``clock`` gives real time; ``clock_offset_s`` is what market time was ahead of it.
    """

    def __init__(
        self,
        ledger: Ledger,
        source: BarSource,
        about: About,
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
        """How often it went to the gateway: never, once, or again after outages."""
        return len(self._sent_at)

    def sent(self) -> None:
        """Take in that it goes to the gateway now."""
        self._sent_at.append(self._clock())

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Hold while it is asked: a failure is written down, an answer is up to ``ended``."""
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
        """Write a row for each time it was sent; all but the last met an outage."""
        for at, again_at in pairwise(self._sent_at):
            self._ledger.record_request(self._row(at, again_at, OutageError.__name__))
        if self._sent_at:
            begun_at = self._begun_at if self.sent_times == 1 else self._sent_at[-1]
            last = self._row(begun_at, self._over_at, outcome)
            self._ledger.record_request(replace(last, code=code, rows=rows, proved=proved))

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
    inquiry: Inquiry, ask: Callable[[OnSent], Awaitable[T]], outcome: str, told: Callable[[T], str]
) -> T:
    """Ask what is not about bars, and write it into the audit.

    Args:
        inquiry: the question.
        ask: asks it, telling each sending.
        outcome: what an answer is called there.
        told: says what an answer proved.
    """
    with inquiry.under_way():
        answer = await ask(inquiry.sent)
    inquiry.ended(outcome, proved=told(answer))
    return answer
