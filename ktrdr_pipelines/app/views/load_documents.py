"""Documents of loads: what was loaded, what is missing, and operations in the background."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Self

from pydantic import AliasChoices, Field

from ktrdr_pipelines.app.views.documents import (
    Document,
    ErrorDocument,
    IntervalDocument,
    ResultDocument,
)
from ktrdr_pipelines.app.views.series_documents import AdjustmentDocument, DisagreementDocument
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.errors import ExitCode
from ktrdr_pipelines.gaps.estimates import Estimate


class LoadStatus(StrEnum):
    """How a load ended.

    ``success``: everything that is due of the range is there. ``partial``: something is missing.
    ``failed``: an error, and the store holds no bar of the range.
    """

    SUCCESS = "success"
    PARTIAL = "partial"
    FAILED = "failed"


class MissingInterval(IntervalDocument):
    """An interval in which expected bars are missing, and why.

    Attributes:
        reason: why, in a word (``domain.planning.gaps.GapReason``; ``app.reading.readiness`` adds
            two).
        detail: why, in a sentence; may be empty.
        next_try_at: when the next request for it is due, if that is deferred.
    """

    reason: str
    detail: str = ""
    next_try_at: datetime | None = None


class LoadResult(Document):
    """The result of the load of one series, in the fields of the original system.

    Attributes:
        status: success, partial or failed.
        fetched_bars: bars that responses returned.
        cached_before: whether the store held bars of the series before the load.
        merged_file: the newest bar file of the series, relative to the data folder; empty without
            bars.
        start_time: the bar timestamp of the first bar of the range that the store now holds.
        end_time: that of its last bar.
        requests_made: requests that were sent.
        execution_time_seconds: how long the load took.
        error_message: why it is not a success.
        new_bars: bars that the store did not hold before.
        revised_bars: bars whose values changed.
        missing: what is due and neither covered nor explained, by bar timestamps, and why.
        waiting: the uncovered part of sessions that are still open.
        error: the error that ended it.
        next_try_at: when the next attempt for something missing is due.
    """

    symbol: str
    timeframe: str
    mode: str
    status: LoadStatus
    fetched_bars: int
    cached_before: bool
    merged_file: str
    start_time: datetime | None
    end_time: datetime | None
    requests_made: int
    execution_time_seconds: float
    error_message: str | None = None
    new_bars: int = 0
    revised_bars: int = 0
    missing: tuple[MissingInterval, ...] = ()
    waiting: tuple[IntervalDocument, ...] = ()
    error: ErrorDocument | None = None
    next_try_at: datetime | None = None


class DataLoadResult(LoadResult):
    """The result of a load by the data manager: with what it found missing before it began.

    Attributes:
        gaps_analyzed: gaps of the named range before the load, of closed sessions.
        segments_fetched: gaps that the load closed.
        ib_requests_made: requests that were sent; as ``requests_made``.
    """

    gaps_analyzed: int = 0
    segments_fetched: int = 0
    ib_requests_made: int = 0


class SeriesReportDocument(Document):
    """How the load of one series ended (``domain.planning.reports.SeriesReport``).

    ``bars`` are those of responses, ``added`` those that the store did not hold, ``revised``
    those whose values changed. ``remarks``, in JSON ``notes``, is what the load noted about it.
    """

    symbol: str
    timeframe: str
    complete: bool
    requests: int
    bars: int
    added: int
    revised: int
    unexplained: tuple[IntervalDocument, ...]
    waiting: tuple[IntervalDocument, ...]
    before_listing: tuple[IntervalDocument, ...]
    deferred: tuple[IntervalDocument, ...]
    next_try_at: datetime | None
    not_refreshed: tuple[IntervalDocument, ...]
    sparse: tuple[IntervalDocument, ...]
    confirmed_at: datetime | None
    disagreements: tuple[DisagreementDocument, ...]
    unit_changes: tuple[DisagreementDocument, ...]
    volume_jumps: tuple[DisagreementDocument, ...]
    adjustments: tuple[AdjustmentDocument, ...]
    unconfirmed_bars: int
    unconfirmed_basis: tuple[IntervalDocument, ...]
    basis_due_at: datetime | None
    failures: tuple[ErrorDocument, ...]
    error: ErrorDocument | None
    remarks: tuple[str, ...] = Field(
        serialization_alias="notes", validation_alias=AliasChoices("remarks", "notes")
    )

    @classmethod
    def of(cls, report: SeriesReport, remarks: Sequence[str] = ()) -> Self:
        """Return the document of a report."""
        to_the_second = IntervalDocument.to_the_second
        return cls(
            symbol=report.series.symbol,
            timeframe=str(report.series.timeframe),
            complete=report.is_complete,
            requests=report.requests,
            bars=report.rows,
            added=report.added,
            revised=report.revised,
            unexplained=to_the_second(report.unexplained),
            waiting=to_the_second(report.waiting),
            before_listing=to_the_second(report.before_listing),
            deferred=to_the_second(report.deferred),
            next_try_at=report.next_try_at,
            not_refreshed=to_the_second(report.not_refreshed),
            sparse=to_the_second(report.sparse),
            confirmed_at=report.confirmed_at,
            disagreements=DisagreementDocument.all_of(report.disagreements, of_unit=False),
            unit_changes=DisagreementDocument.all_of(report.disagreements, of_unit=True),
            volume_jumps=DisagreementDocument.all_of(report.volume_jumps),
            adjustments=tuple(map(AdjustmentDocument.of, report.adjustments)),
            unconfirmed_bars=report.unconfirmed_bars,
            unconfirmed_basis=to_the_second(report.unconfirmed_basis),
            basis_due_at=report.basis_due_at,
            failures=tuple(map(ErrorDocument.of, report.failures)),
            error=ErrorDocument.of_any(report.error),
            remarks=tuple(remarks),
        )


class LoadReportDocument(ResultDocument):
    """The result of ``ktrdr load`` and ``ktrdr update``.

    Attributes:
        series: the series that the load reached.
        notices: those of the gateway.
        catalog_error: why the catalog could not be rebuilt; the bars are saved.
        error: what ended the load before all series were loaded.
    """

    series: tuple[SeriesReportDocument, ...]
    notices: tuple[str, ...]
    catalog_error: ErrorDocument | None
    error: ErrorDocument | None = None


class LatencyDocument(Document):
    """How long one request of a timeframe takes, sent with the usual concurrency.

    ``end`` is ``now`` for requests without an end, else ``given``; ``measured``: at this gateway,
    not assumed.
    """

    timeframe: str
    end: str
    latency_s: float
    measured: bool


class WidthDocument(Document):
    """The learned width of the requests for one kind of series.

    Attributes:
        kind: bar size, type of instrument, hours of a session, what a bar is made of.
        sessions: the number of sessions of a request.
        learned_at: when it was last found to be the best.
        bars_per_s: bars a second of one request in flight, by each width that was measured.
        undecided: those of the measured widths that too few responses compare with the best yet.
    """

    kind: str
    sessions: int
    learned_at: datetime
    bars_per_s: dict[int, float]
    undecided: tuple[int, ...] = ()


class EstimateDocument(Document):
    """What a load takes.

    Attributes:
        requests: requests of the first plan; ranges without bars take more.
        bars: bars at most: those that the calendar expects.
        size_bytes: their size on disk.
        duration_s: how long the load takes at the gateway's rate.
    """

    requests: int
    bars: int
    size_bytes: int
    duration_s: float


class SeriesPlanDocument(EstimateDocument):
    """What a load of one series takes; ``up_to_now`` of its requests have no end.

    Ranges of ``missing`` between which no bar is expected, over nights and weekends, are one.
    """

    symbol: str
    timeframe: str
    up_to_now: int
    missing: tuple[IntervalDocument, ...]


class BacklogDocument(EstimateDocument):
    """What the sensors will load of a store; ``basis`` says what the duration is based on."""

    series: int
    basis: str

    @classmethod
    def of(cls, found: Estimate) -> Self:
        """Return the document of a backlog."""
        return cls(
            requests=found.requests,
            bars=found.bars,
            size_bytes=found.size_bytes,
            duration_s=round(found.seconds, 1),
            series=len(found.parts),
            basis=found.basis,
        )


class PlanDocument(EstimateDocument, ResultDocument):
    """What a load or an update would take; ``basis`` says what the duration is based on.

    ``widths`` are the learned widths of its requests; a kind without one has the safe width.
    """

    basis: str
    latencies: tuple[LatencyDocument, ...]
    widths: tuple[WidthDocument, ...] = ()
    series: tuple[SeriesPlanDocument, ...]

    @classmethod
    def of(cls, found: Estimate) -> Self:
        """Return the document of an estimate."""
        return cls(
            complete=True,
            exit_code=int(ExitCode.DONE),
            requests=found.requests,
            bars=found.bars,
            size_bytes=found.size_bytes,
            duration_s=round(found.seconds, 1),
            basis=found.basis,
            latencies=tuple(
                LatencyDocument(
                    timeframe=str(one.timeframe),
                    end="now" if one.ends_now else "given",
                    latency_s=round(one.seconds, 4),
                    measured=one.is_measured,
                )
                for one in found.latencies
            ),
            widths=tuple(
                WidthDocument(
                    kind=one.kind,
                    sessions=one.learned.width,
                    learned_at=one.learned.learned_on,
                    bars_per_s={width: round(rate, 1) for width, rate in one.learned.rates.items()},
                    undecided=one.learned.undecided,
                )
                for one in found.widths
            ),
            series=tuple(
                SeriesPlanDocument(
                    symbol=part.series.symbol,
                    timeframe=str(part.series.timeframe),
                    requests=part.requests,
                    up_to_now=part.up_to_now,
                    bars=part.bars,
                    size_bytes=part.size_bytes,
                    duration_s=round(part.seconds, 1),
                    missing=IntervalDocument.to_the_second(part.ranges),
                )
                for part in found.parts
            ),
        )


class OperationState(StrEnum):
    """The state of an operation.

    ``queued``: it waits for others to end. ``interrupted``: the process that ran it ended before
    the operation did; what it had saved is in the store.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class OperationProgress(Document):
    """How far an operation is; ``planned`` requests may grow while it runs.

    ``bars`` are those received, ``saved_until`` the time at which everything received was last
    saved, ``waiting`` what it waits for.
    """

    requests_planned: int = 0
    requests_done: int = 0
    bars: int = 0
    saved_at: datetime | None = None
    waiting: str | None = None


class OperationDocument(Document):
    """One operation, such as a load: what it does, how far it is, and how it ended.

    Attributes:
        symbol: the symbol of a load, timeframe and mode likewise; null for an update.
        started_at: when it was started, or queued.
        results: one of each series; an update leaves out those that were complete before, and
            needed no request.
        error: why it failed, else the first error of a result.
        bars_held: the bars that the store held of its series when the operation ended, or when it
            was found interrupted.
    """

    id: str
    kind: str
    description: str
    state: OperationState
    started_at: datetime
    symbol: str | None = None
    timeframe: str | None = None
    mode: str | None = None
    ended_at: datetime | None = None
    progress: OperationProgress = OperationProgress()
    results: tuple[DataLoadResult, ...] = ()
    error: ErrorDocument | None = None
    bars_held: int | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the operation has ended, in whatever way."""
        return self.state not in {OperationState.QUEUED, OperationState.RUNNING}


class OperationList(Document):
    """The operations that are remembered, newest first."""

    operations: tuple[OperationDocument, ...]
