"""Documents of series: what they hold and lack, and why; of the store, its gaps and its ranges.

``ktrdr status``, ``gaps`` and ``ranges`` print them with ``--json``. Intervals are by bar
timestamp, and their ends are exclusive; every field is set, so that none is left out.

Not here: reading what they are made of (``app.store_status``), documents of loads
(``app.views.load_documents``).
"""

from collections.abc import Iterable, Sequence
from datetime import date as Day  # noqa: N812  (a field is named date)
from datetime import datetime
from typing import TYPE_CHECKING, Self

from ktrdr_pipelines.app.acknowledgement import ExplainedRange
from ktrdr_pipelines.app.views.documents import (
    Document,
    ErrorDocument,
    IntervalDocument,
    ResultDocument,
)
from ktrdr_pipelines.app.views.universe_documents import FieldDocuments
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.coverage import ProofKind
from ktrdr_pipelines.domain.planning.gaps import Gap
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.gaps.index import SeriesGaps
from ktrdr_pipelines.store.ledger.attempts import Attempt

if TYPE_CHECKING:
    from ktrdr_pipelines.sync.discovery.earliest_data import EarliestData


class GapDocument(Document):
    """A gap (``domain.planning.gaps``); ``sessions`` and ``bars`` count what is expected in it."""

    symbol: str
    timeframe: str
    reason: str
    start: datetime
    end: datetime
    sessions: int
    bars: int
    detail: str
    next_try_at: datetime | None

    @classmethod
    def of(cls, found: SeriesGaps, gap: Gap) -> Self:
        """Return the document of a gap of a series."""
        return cls(
            symbol=found.series.symbol,
            timeframe=str(found.series.timeframe),
            reason=str(gap.reason),
            start=gap.interval.start,
            end=gap.interval.end,
            sessions=gap.sessions,
            bars=gap.bars,
            detail=gap.detail,
            next_try_at=gap.next_try_at,
        )


class StatementDocument(Document):
    """What a response stated about a range (``domain.planning.empty_ranges``)."""

    kind: str
    timeframe: str
    said_at: datetime
    controlled: bool


class ExplainedDocument(Document):
    """A disputed or acknowledged range, until when it counts as explained, and the statements."""

    symbol: str
    timeframe: str
    start: datetime
    end: datetime
    kind: str
    proved_at: datetime
    expires_at: datetime
    note: str
    statements: tuple[StatementDocument, ...]

    @classmethod
    def of(cls, one: ExplainedRange) -> Self:
        """Return the document of an explained range."""
        return cls(
            symbol=one.series.symbol,
            timeframe=str(one.series.timeframe),
            start=one.proof.interval.start,
            end=one.proof.interval.end,
            kind=str(one.proof.kind),
            proved_at=one.proof.proved_at,
            expires_at=one.proof.expires_at,
            note=one.proof.note,
            statements=tuple(
                StatementDocument(
                    kind=str(statement.kind),
                    timeframe=statement.timeframe,
                    said_at=statement.said_at,
                    controlled=statement.controlled,
                )
                for statement in one.statements
            ),
        )

    @classmethod
    def all_of(cls, explained: Iterable[ExplainedRange], kind: ProofKind) -> tuple[Self, ...]:
        """Return the documents of the ranges that one kind of proof explains."""
        return tuple(cls.of(one) for one in explained if one.proof.kind is kind)


class SeriesErrorDocument(Document):
    """Why a series cannot be read."""

    symbol: str
    timeframe: str
    error: ErrorDocument


class GapsDocument(ResultDocument):
    """The gaps of some series, how many ranges are explained, and which.

    Attributes:
        complete: whether there is no gap, and every series can be read.
        series: how many series were read.
        counts: how many ranges are disputed and how many acknowledged.
        plot: the file of the heatmap, if one was written.
    """

    series: int
    gaps: tuple[GapDocument, ...]
    counts: dict[str, int]
    disputed: tuple[ExplainedDocument, ...]
    acknowledged: tuple[ExplainedDocument, ...]
    errors: tuple[SeriesErrorDocument, ...]
    plot: str | None


class AcknowledgedDocument(ResultDocument):
    """The session that a user acknowledged."""

    acknowledged: tuple[ExplainedDocument, ...]
    catalog_error: ErrorDocument | None


class DisagreementDocument(Document):
    """Bars at other prices, or with volumes in another unit (``domain.plausibility``)."""

    first: datetime
    last: datetime
    bars: int
    ratio: float

    @classmethod
    def of(cls, found: Disagreement) -> Self:
        """Return the document of a disagreement."""
        return cls(first=found.first, last=found.last, bars=found.bars, ratio=found.ratio)

    @classmethod
    def all_of(
        cls, found: Iterable[Disagreement], *, of_unit: bool | None = None
    ) -> tuple[Self, ...]:
        """Return the documents of disagreements: of all, or of those that are of a unit, or not."""
        return tuple(
            cls.of(one)
            for one in found
            if of_unit is None or (one.kind is DisagreementKind.UNIT) is of_unit
        )


class AdjustmentDocument(Document):
    """An adjustment (``domain.adjustments``)."""

    number: int
    kind: str
    ratio: float
    volume_ratio: float
    effective: Day
    estimated: bool
    found_at: datetime
    old_until: datetime
    evidence: str
    note: str
    removed_at: datetime | None

    @classmethod
    def of(cls, one: Adjustment) -> Self:
        """Return the document of an adjustment."""
        return cls.model_validate(_fields_of(one))


class _Named(Document):
    symbol: str


class SymbolAdjustmentDocument(AdjustmentDocument, _Named):
    """An adjustment, and the symbol that it is of."""

    @classmethod
    def of_symbol(cls, symbol: str, one: Adjustment) -> Self:
        """Return the document of an adjustment of a symbol."""
        return cls.model_validate({"symbol": symbol, **_fields_of(one)})


def _fields_of(one: Adjustment) -> dict[str, object]:
    return {
        "number": one.number,
        "kind": str(one.kind),
        "ratio": one.ratio,
        "volume_ratio": one.volume_ratio,
        "effective": one.effective,
        "estimated": one.is_estimated,
        "found_at": one.found_at,
        "old_until": one.old_until,
        "evidence": one.evidence,
        "note": one.note,
        "removed_at": one.removed_at,
    }


class AttemptDocument(Document):
    """Failed attempts at an interval: the last error, and when the next attempt is due."""

    kind: str
    start: datetime
    end: datetime
    error: str
    code: int | None
    failures: int
    next_try_at: datetime | None

    @classmethod
    def of(cls, one: Attempt) -> Self:
        """Return the document of attempts."""
        return cls(
            kind=str(one.kind),
            start=one.interval.start,
            end=one.interval.end,
            error=one.error,
            code=one.code,
            failures=one.failures,
            next_try_at=one.next_try_at,
        )


class SeriesStatusDocument(Document):
    """What a series holds and lacks (``gaps.index.SeriesGaps``).

    Attributes:
        bars: how many are held.
        first: the session date of the first bar held; ``last`` that of the last one.
        waiting: the uncovered part of sessions that are still open.
        disagreements: held bars that were returned again at other prices.
        unit_changes: those of them that look like a change of unit.
        unconfirmed_bars: bars on an unconfirmed price basis, which queries leave out.
        blocked: whether the gateway refused a part of it for lack of a permission.
        error: why the series could not be read; nothing else is known then.
        findings: bars with implausible values.
    """

    symbol: str
    timeframe: str
    bars: int
    first: Day | None
    last: Day | None
    covered_until: datetime | None
    gaps: tuple[GapDocument, ...]
    waiting: tuple[IntervalDocument, ...]
    disputed: tuple[ExplainedDocument, ...]
    acknowledged: tuple[ExplainedDocument, ...]
    disagreements: tuple[DisagreementDocument, ...]
    unit_changes: tuple[DisagreementDocument, ...]
    volume_jumps: tuple[DisagreementDocument, ...]
    unconfirmed_bars: int
    unconfirmed_basis: tuple[IntervalDocument, ...]
    attempts: tuple[AttemptDocument, ...]
    blocked: bool
    error: ErrorDocument | None
    findings: int

    @classmethod
    def of(
        cls, state: SeriesGaps, explained: Sequence[ExplainedRange], *, findings: int = 0
    ) -> Self:
        """Return the document of a series, with its explained ranges."""
        return cls(
            symbol=state.series.symbol,
            timeframe=str(state.series.timeframe),
            bars=state.rows,
            first=state.first,
            last=state.last,
            covered_until=state.covered_until,
            gaps=tuple(GapDocument.of(state, gap) for gap in state.gaps),
            waiting=IntervalDocument.to_the_second(state.waiting),
            disputed=ExplainedDocument.all_of(explained, ProofKind.DISPUTED),
            acknowledged=ExplainedDocument.all_of(explained, ProofKind.ACKNOWLEDGED),
            disagreements=DisagreementDocument.all_of(state.disagreements, of_unit=False),
            unit_changes=DisagreementDocument.all_of(state.disagreements, of_unit=True),
            volume_jumps=DisagreementDocument.all_of(state.volume_jumps),
            unconfirmed_bars=state.unconfirmed_bars,
            unconfirmed_basis=IntervalDocument.to_the_second(state.unconfirmed_basis),
            attempts=tuple(map(AttemptDocument.of, state.attempts)),
            blocked=state.is_blocked,
            error=ErrorDocument.of_any(state.error),
            findings=findings,
        )


class CatalogDocument(Document):
    """The catalog, and how old it is; null if there is none."""

    path: str
    age_s: int | None


class UniverseDocument(Document):
    """The universe, the error of its last edit, and the fields of each symbol with their origin."""

    path: str
    problem: ErrorDocument | None
    symbols: dict[str, FieldDocuments]


class UnlistedSeriesDocument(Document):
    """A series on disk that the universe does not name."""

    symbol: str
    timeframe: str
    bars: int


class StatedRebasingDocument(Document):
    """A re-basing that a single response stated, which another one has to confirm."""

    symbol: str
    ratio: float | None
    bars: int
    request: str
    sent_at: datetime | None
    text: str


class BasisErrorDocument(Document):
    """Why the adjustments of a symbol cannot be read."""

    symbol: str
    message: str


class CalendarChangeDocument(Document):
    """A date on which contracts agree that a calendar of the libraries is wrong."""

    key: str
    date: Day
    opens: datetime | None
    closes: datetime | None
    closed: bool
    symbols: tuple[str, ...]


class StoreStatusDocument(ResultDocument):
    """The store, its universe, and every series.

    Attributes:
        complete: whether every series can be read, lacks nothing and is on a confirmed price basis.
            The exit code is 0 also if something is missing.
        store: the data folder.
        format: the version of the store.
        origin: the origin of its bars; null until the first bars.
        before_windows: symbols by timeframe that start before Dagster's windows.
        counts: how many ranges are disputed and how many acknowledged.
    """

    store: str
    format: int
    origin: str | None
    catalog: CatalogDocument
    universe: UniverseDocument
    before_windows: dict[str, tuple[str, ...]]
    counts: dict[str, int]
    series: tuple[SeriesStatusDocument, ...]
    not_in_universe: tuple[UnlistedSeriesDocument, ...]
    adjustments: tuple[SymbolAdjustmentDocument, ...]
    stated_rebasings: tuple[StatedRebasingDocument, ...]
    basis_errors: tuple[BasisErrorDocument, ...]
    calendars: tuple[CalendarChangeDocument, ...]


class EmptyRangeDocument(Document):
    """Session dates that probing found to have no bar; ``end`` is exclusive."""

    first: Day
    end: Day


class HeldRangeDocument(Document):
    """The bars held of one timeframe, by session date, and the bounds of its coverage."""

    timeframe: str
    bars: int
    first: Day | None
    last: Day | None
    covered_from: datetime | None
    covered_to: datetime | None


class BeginningDocument(Document):
    """Where the data of a symbol begin (``sync.discovery.earliest_data``), and what is held."""

    symbol: str
    what_to_show: str
    oldest: Day | None
    how: str
    head: datetime | None
    contradicted: bool
    asked_at: datetime | None
    empty: tuple[EmptyRangeDocument, ...]
    error: ErrorDocument | None
    series: tuple[HeldRangeDocument, ...]

    @classmethod
    def of(cls, one: "EarliestData", held: Sequence[HeldRangeDocument]) -> Self:
        """Return the document of where data begin, with the bars held."""
        return cls(
            symbol=one.instrument.symbol,
            what_to_show=str(one.instrument.what_to_show),
            oldest=one.oldest,
            how=one.how.name.lower(),
            head=one.head,
            contradicted=one.contradicted,
            asked_at=one.asked_at,
            empty=tuple(EmptyRangeDocument(first=first, end=end) for first, end in one.empty),
            error=ErrorDocument.of_any(one.error),
            series=tuple(held),
        )


class RangesDocument(ResultDocument):
    """Where the data of some symbols begin."""

    symbols: tuple[BeginningDocument, ...]
