"""The interface to a source of bars: requests, responses, and the ``BarSource`` protocol.

Not here: the source that requests bars of a gateway (``ib.source``), what a response proves
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

    ``ends_at`` is real time, None for "now"; ``duration`` is in IB's notation (``5 D``). ``tail``:
    the request is for the newest bars and goes before backfills. ``probes``: it is sent although a
    permission was found missing before. From ``not_after`` on, by the gateway's clock, it would
    mean something else and must not be sent. ``is_trial``: it is wider than what is known to
    work, so that a timeout shows nothing of the gateway.
    """

    series: Series
    ends_at: datetime | None
    duration: str
    tail: bool = False
    probes: bool = False
    not_after: datetime | None = field(default=None, compare=False)
    is_trial: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        end = "now" if self.ends_at is None else f"{self.ends_at:%Y-%m-%d %H:%M:%SZ}"
        return f"{self.series}, {self.duration} to {end}"


@dataclass(frozen=True, slots=True)
class Response:
    """Bars that a gateway returned: at least one, sorted, unique by timestamp, values unchanged.

    ``impossible`` are intervals of timestamps in which the response had a row that is no bar and
    was left out; nothing there is covered. ``implausible`` are the timestamps, int64 microseconds,
    of bars whose values can hardly be what was traded.

    ``reach`` is the interval of real time that the gateway states to have answered, or None where
    it states nothing usable. ``lacks_newest``: the gateway withholds the newest bars (2188 and the
    like), so that the absence of bars after the last one means nothing. ``at_once`` is how many
    requests were in flight when it was requested, with it, of all processes.
    """

    request: BarRequest
    bars: pa.Table
    reach: Interval | None
    lacks_newest: bool = False
    impossible: IntervalSet = field(default_factory=IntervalSet)
    implausible: tuple[int, ...] = ()
    at_once: int = 1


@dataclass(frozen=True, slots=True)
class NoData:
    """A response that reports no data for a request."""

    request: BarRequest
    message: str


OnSent = Callable[[], None]
"""Called whenever a request is sent to the gateway: never, once, or again after an outage."""


def ignore_sent() -> None:
    """Ignore that a request is sent: the default of ``OnSent`` parameters."""


class BarSource(Protocol):
    """A source of bars; every call ends before a deadline, with a value or a GatewayError.

    ``sent`` is called for every request for historical data that a call sends to the gateway.
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
        """The name of the gateway's login in the audit, such as ``login 1``."""
        ...

    @property
    def concurrency(self) -> int:
        """How many requests for bars are worth having open at once now."""
        ...

    def now(self) -> datetime:
        """Return the time by the gateway's clock."""
        ...

    async def contract_id(self, instrument: Instrument) -> int:
        """Return the gateway's id of the instrument's contract."""
        ...

    async def bars(self, request: BarRequest, *, sent: OnSent = ignore_sent) -> Response | NoData:
        """Request bars."""
        ...

    async def hours(self, instrument: Instrument) -> list[LearnedDay]:
        """Return the sessions of the next days from the contract's details."""
        ...

    async def schedule(
        self, instrument: Instrument, ends_at: datetime, days: int, *, sent: OnSent = ignore_sent
    ) -> list[LearnedDay]:
        """Return the sessions of so many days before a moment, oldest first."""
        ...

    async def head(self, instrument: Instrument, *, sent: OnSent = ignore_sent) -> datetime | None:
        """Return the start of the oldest data, or None if the gateway has no head timestamp."""
        ...
