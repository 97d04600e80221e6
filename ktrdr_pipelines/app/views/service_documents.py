"""Documents of the services: the gap filler, and the system as a whole."""

from datetime import datetime

from ktrdr_pipelines.app.views.documents import Document, ErrorDocument
from ktrdr_pipelines.app.views.ib_documents import IbStatus
from ktrdr_pipelines.app.views.load_documents import OperationDocument


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
