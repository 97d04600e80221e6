"""Documents of the gateway: its connection, its health, its configuration, its requests.

The names of the fields are those of the original system's REST API.
"""

from datetime import datetime

from pydantic import Field

from ktrdr_pipelines.app.views.documents import Document, ErrorDocument, ResultDocument


class ConnectionDocument(Document):
    """The connection that the service keeps; ``client_id`` and ``connection_time`` while it is up.

    ``connected`` tells whether the gateway responded at the last check, ``checked_at`` when that
    was.
    """

    connected: bool
    host: str
    port: int
    client_id: int | None = None
    connection_time: datetime | None = None
    checked_at: datetime | None = None


class ConnectionMetrics(Document):
    """What happened to the connections of the service since it started.

    ``uptime_seconds`` is how long the present connection has been up; 0 without one.
    """

    total_connections: int = 0
    failed_connections: int = 0
    last_connect_time: datetime | None = None
    last_disconnect_time: datetime | None = None
    uptime_seconds: float = 0.0


class DataMetrics(Document):
    """The requests that all programs of this store sent and kept a record of (90 days).

    A request is successful if the gateway responded to it, even without bars; refused, unanswered
    and cancelled ones failed. ``success_rate`` is in percent; 0 without requests.
    """

    total_requests: int = 0
    successful_requests: int = 0
    failed_requests: int = 0
    total_bars_fetched: int = 0
    success_rate: float = 0.0


class IbStatus(Document):
    """The state of the gateway's connection and of the requests to it."""

    connection: ConnectionDocument
    connection_metrics: ConnectionMetrics
    data_metrics: DataMetrics
    ib_available: bool


class IbHealth(Document):
    """Whether the gateway responds and data come in.

    ``connection_ok``: a round trip succeeded at the last check. ``data_fetching_ok``: the last
    request for data did not fail, or there was none. ``healthy``: both.
    """

    healthy: bool
    connection_ok: bool
    data_fetching_ok: bool
    last_successful_request: datetime | None = None
    error_message: str | None = None
    checked_at: datetime | None = None
    round_trip_ms: float | None = None
    last_answer_age_s: float | None = None
    concurrency: int | None = None
    breaker: str | None = None
    troubles: tuple[str, ...] = ()
    error: ErrorDocument | None = None


class HealthDocument(ResultDocument):
    """The check of a gateway step by step; null for steps that were not reached.

    ``good``: it responds and reports no problem.
    """

    gateway: str
    good: bool
    tcp: bool | None
    handshake: bool | None
    connect_ms: float | None = None
    round_trip_ms: float | None = None
    clock_offset_s: float | None = None
    origin: str | None = None
    client_id: int | None = None
    server_version: int | None = None
    last_answer_age_s: float | None = None
    concurrency: int | None = None
    breaker: str | None = None
    paused_s: float | None = None
    farms: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()
    error: ErrorDocument | None = None

    @property
    def responds(self) -> bool:
        """Whether a round trip succeeded."""
        return self.error is None and self.round_trip_ms is not None


class CheckDocument(Document):
    """One check of the set-up of a gateway; ``hint`` is empty if nothing has to be done."""

    name: str
    verdict: str
    finding: str
    hint: str


class DoctorDocument(ResultDocument):
    """The checks of the set-up of a gateway; ``good``: nothing is wrong."""

    gateway: str
    good: bool
    checks: tuple[CheckDocument, ...]


class ClientIdRange(Document):
    """The client ids of an operation, both ends included."""

    min: int
    max: int


class RateLimitDocument(Document):
    """The rules that requests obey (``limits.IbLimitsRegistry``); times in seconds."""

    pacing: str
    max_requests: int
    period_s: float
    max_identical_s: float
    concurrency: int


class IbConfig(Document):
    """The configuration of the gateway.

    ``sources`` tells for each setting where its value came from: ``flag``, ``environment``,
    ``file`` or ``default``.
    """

    host: str
    port: int
    client_id_range: ClientIdRange
    timeout: float
    readonly: bool
    rate_limit: RateLimitDocument
    sources: dict[str, str] = Field(default_factory=dict)


class IbConfigUpdate(Document):
    """What an update changed; a changed host or port applies to the next connection."""

    previous_config: IbConfig
    new_config: IbConfig
    reconnect_required: bool


class IbCleanup(Document):
    """What a cleanup closed: connections that no load uses, and the client ids that they held."""

    connections_closed: int
    client_ids: tuple[int, ...] = ()
    message: str


class DataRange(Document):
    """The data held of a series, by bar timestamps; ``cached`` is true for a known beginning.

    ``earliest_available`` is the oldest data that the gateway has, as far as it is known.
    """

    earliest_date: datetime
    latest_date: datetime
    total_days: int
    cached: bool
    earliest_available: datetime | None = None


class SymbolRanges(Document):
    """The ranges of a symbol by timeframe; null where the store holds no bar."""

    symbol: str
    ranges: dict[str, DataRange | None]


class DataRanges(Document):
    """The ranges of several symbols."""

    symbols: tuple[SymbolRanges, ...]
    requested_timeframes: tuple[str, ...]
    cache_stats: dict[str, int]


class DiscoveredSymbol(Document):
    """The contract of a symbol as the gateway described it."""

    symbol: str
    instrument_type: str
    exchange: str
    currency: str
    description: str
    con_id: int | None = None
    discovered_at: datetime | None = None


class DiscoveredSymbols(Document):
    """All contracts that the store knows."""

    symbols: tuple[DiscoveredSymbol, ...]
    total: int
