"""Documents of the services: the gap filler, the system as a whole, and what commands serve.

Commands that run until they are stopped print their document, on one line, once they are ready.
"""

from datetime import date, datetime
from typing import Any

from ktrdr_pipelines.app.views.documents import Document, ErrorDocument, ResultDocument
from ktrdr_pipelines.app.views.ib_documents import IbStatus
from ktrdr_pipelines.app.views.load_documents import BacklogDocument, OperationDocument


class GapFillerStatus(Document):
    """The state of the gap filler.

    Attributes:
        running: whether its sensor is switched on and Dagster's daemon is alive by its heartbeat.
        enabled: whether its sensor is switched on; null if it has never run.
        symbols: the symbols watched.
        series_watched: their series.
        gaps_detected: gaps found by the last scan.
        gaps_filled: gaps that were found by an earlier scan and are closed, since the store began
            to count.
        gaps_failed: gaps of the last scan whose requests failed or were refused.
        bars_missing: bars of the gaps of the last scan.
        last_scan: when the last scan ended.
        next_try_at: when the first deferred gap is due.
        last_error: why the last scan failed, if it did.
    """

    running: bool
    enabled: bool | None
    symbols: tuple[str, ...]
    series_watched: int
    gaps_detected: int
    gaps_filled: int
    gaps_failed: int
    bars_missing: int
    last_scan: datetime | None
    next_try_at: datetime | None = None
    last_error: ErrorDocument | None = None


class ForcedScan(Document):
    """What a forced scan did: woke the sensor, or began an operation that fills the gaps.

    ``gaps_made_due`` counts the deferred requests that are due now.
    """

    gaps_made_due: int
    sensor_woken: bool
    operation: OperationDocument | None = None
    message: str


class SystemStatus(Document):
    """The system as a whole: the store, the gateway and the gap filler."""

    version: str
    store: str
    origin: str | None
    symbols: int
    series: int
    ib: IbStatus
    gap_filler: GapFillerStatus


class ServeDocument(ResultDocument):
    """The REST API that ``ktrdr serve`` serves."""

    url: str
    host: str
    port: int
    store: str
    token_required: bool


class UpDocument(ResultDocument):
    """The web UI that ``ktrdr up`` serves, and what it works with.

    Attributes:
        backlog: what the sensors will load; null unless that is much.
        waits_for_universe: whether nothing is loaded until the example universe has been edited.
        rest_url: the REST API; null if it is not served.
    """

    url: str
    store: str
    gateway: str
    log: str
    backlog: BacklogDocument | None
    waits_for_universe: bool
    rest_url: str | None


class SimulatedGatewayDocument(ResultDocument):
    """The gateway that ``ktrdr simulate`` serves; ``now`` is the time of its clock."""

    host: str
    port: int
    market: str
    now: datetime


class DemoRunDocument(Document):
    """One Dagster run of the demo: its windows, requests and bars, and why it failed."""

    timeframe: str
    first_window: str
    last_window: str
    windows: int
    requests: int
    bars: int
    took_s: float
    error: str


class DemoSeriesDocument(Document):
    """The bars of a series that the demo loaded, and its gaps in the windows of the runs."""

    symbol: str
    timeframe: str
    first: date | None
    last: date | None
    bars: int
    gaps: int


class DemoQueryDocument(Document):
    """A query of the demo; ``rows`` are those of SQL, each with a value by column name."""

    title: str
    sql: str
    rows: tuple[dict[str, Any], ...]
    took_ms: float


class DemoDocument(ResultDocument):
    """The result of ``ktrdr demo``."""

    store: str
    took_s: float
    runs: tuple[DemoRunDocument, ...]
    series: tuple[DemoSeriesDocument, ...]
    queries: tuple[DemoQueryDocument, ...]
