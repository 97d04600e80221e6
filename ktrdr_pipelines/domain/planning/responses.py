"""What the loading asks of a source of bars, and what it gets back.

Not here: how a gateway is asked (``ib.source``), what an answer proves
(``domain.planning.evaluation``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay
from ktrdr_pipelines.domain.instruments import Instrument, Origin, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet


@dataclass(frozen=True, slots=True)
class BarRequest:
    """One request for historical bars.

    ``ends_at`` is real time, None for "now"; ``duration`` is in IB's words (``5 D``); ``tail``
    says that it is for freshness and goes before backfills; ``probes`` that it is to be sent
    though a permission was found missing before. From ``not_after`` on, by the gateway's clock, it
    would mean something else and may not be sent.
    """

    series: Series
    ends_at: datetime | None
    duration: str
    tail: bool = False
    probes: bool = False
    not_after: datetime | None = field(default=None, compare=False)

    def __str__(self) -> str:
        end = "now" if self.ends_at is None else f"{self.ends_at:%Y-%m-%d %H:%M:%SZ}"
        return f"{self.series}, {self.duration} to {end}"


@dataclass(frozen=True, slots=True)
class Response:
    """Bars that a gateway gave: at least one, sorted, unique by stamp, as they came.

    ``impossible`` are places on the stamp axis in which a row stood that is no bar and was left
    out; nothing there is covered. ``implausible`` are the timestamps, int64 microseconds, of bars
    whose values can hardly be what was traded.

    ``reach`` is the interval of real time that the gateway says it answered, or None where it
    says nothing usable. ``lacks_newest`` says that it holds back the newest bars (2188 and
    the like), so that silence after the last bar means nothing.
    """

    request: BarRequest
    bars: pa.Table
    reach: Interval | None
    lacks_newest: bool = False
    impossible: IntervalSet = field(default_factory=IntervalSet)
    implausible: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class NoData:
    """The gateway said that it has no data for this request."""

    request: BarRequest
    message: str


OnSent = Callable[[], None]
"""Told whenever a question goes to the gateway: never, once, or again after an outage."""


def unheard() -> None:
    """Let a question go unheard."""


class BarSource(Protocol):
    """Where bars come from; every call ends before a deadline, with a value or a GatewayError.

    ``sent`` is told of every request for historical data that the call makes of the gateway.
    """

    @property
    def gateway(self) -> str:
        """Host and port, for messages and for telling gateways apart."""
        ...

    @property
    def origin(self) -> Origin:
        """Whether its bars are real or simulated."""
        ...

    @property
    def login(self) -> str:
        """The name of the gateway's login for the audit, such as ``login 1``."""
        ...

    @property
    def concurrency(self) -> int:
        """How many requests for bars it is worth to have open at once now."""
        ...

    def now(self) -> datetime:
        """Give the gateway's time."""
        ...

    async def contract_id(self, instrument: Instrument) -> int:
        """Give the gateway's id of the instrument's contract."""
        ...

    async def bars(self, request: BarRequest, *, sent: OnSent = unheard) -> Response | NoData:
        """Ask for bars."""
        ...

    async def hours(self, instrument: Instrument) -> list[LearnedDay]:
        """Give the sessions that the contract's details tell of the next days."""
        ...

    async def schedule(
        self, instrument: Instrument, ends_at: datetime, days: int, *, sent: OnSent = unheard
    ) -> list[LearnedDay]:
        """Give the sessions of so many days before a moment, oldest first."""
        ...

    async def head(self, instrument: Instrument, *, sent: OnSent = unheard) -> datetime | None:
        """Give the start of the oldest data, or None where the gateway cannot say."""
        ...
