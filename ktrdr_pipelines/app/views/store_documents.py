"""Documents of commands that make, repair, check, adjust and query a store.

Not here: what a store holds and lacks (``app.views.series_documents``).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import date as Day  # noqa: N812  (as in series_documents)
from datetime import datetime
from typing import Any, Self

from ktrdr_pipelines.app.views.documents import Document, ErrorDocument, ResultDocument
from ktrdr_pipelines.app.views.series_documents import AdjustmentDocument, DisagreementDocument
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.bars import moment
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ExitCode
from ktrdr_pipelines.gaps.verification import Certificate
from ktrdr_pipelines.store.maintenance.repair import RepairReport


class InitDocument(ResultDocument):
    """A store that was made, or was there; ``universe_made`` tells whether its universe is new."""

    store: str
    universe: str
    universe_made: bool
    catalog: str
    symbols: tuple[str, ...]


class QuarantinedDocument(Document):
    """A file that was quarantined: its old and new path, the reason, and what to load again."""

    was: str
    now: str
    why: str
    load_again: str


class MoveDocument(Document):
    """A rename or retirement of a symbol that had been interrupted."""

    kind: str
    symbol: str
    target: str


class RepairDocument(ResultDocument):
    """What a repair found and did (``store.maintenance.repair.RepairReport``)."""

    files: int
    quarantined: tuple[QuarantinedDocument, ...]
    leftovers: tuple[str, ...]
    quarantined_ledger: str | None
    forgotten: int
    finished: MoveDocument | None
    fixed: tuple[str, ...]
    distrusted: tuple[str, ...]
    findings: int
    sealed: tuple[str, ...]
    restored: tuple[str, ...]
    lost: tuple[str, ...]

    @classmethod
    def of(cls, report: RepairReport) -> Self:
        """Return the document of a repair."""
        move = report.finished
        ledger = report.quarantined_ledger
        return cls(
            complete=True,
            exit_code=int(ExitCode.DONE),
            files=report.files,
            quarantined=tuple(
                QuarantinedDocument(
                    was=str(one.was), now=str(one.now), why=one.why, load_again=one.load_again
                )
                for one in report.quarantined
            ),
            leftovers=tuple(map(str, report.leftovers)),
            quarantined_ledger=None if ledger is None else str(ledger),
            forgotten=report.forgotten,
            finished=None
            if move is None
            else MoveDocument(kind=move.kind, symbol=move.symbol, target=move.target),
            fixed=tuple(map(str, report.fixed)),
            distrusted=tuple(map(str, report.distrusted)),
            findings=report.findings,
            sealed=tuple(map(str, report.sealed)),
            restored=tuple(map(str, report.restored)),
            lost=report.lost,
        )


class FindingDocument(Document):
    """A bar with implausible values, kept as the gateway returned it; ``ts`` is its start."""

    ts: datetime
    kind: str
    detail: str


class SessionCountsDocument(Document):
    """The number of expected sessions by what is known (``gaps.verification.SessionCounts``)."""

    expected: int
    have: int
    empty: int
    explained: int
    unexplained: int


class VerifiedBeforeDocument(Document):
    """When all bars of a series were read before, and their digest then."""

    verified_at: datetime
    digest: str


class CertificateDocument(Document):
    """The result of verifying one series (``gaps.verification.Certificate``).

    Attributes:
        sound: whether the bars are intact, and known to be on one price basis and in one unit.
        wrong: the damage, in words.
        first: the session date of the first bar held; ``last`` that of the last one.
        outside_sessions: bars outside the known sessions, kept as returned.
        uncovered: bars outside the coverage.
        gaps: their number; ``missing_bars`` is how many bars are expected in them.
        error: why what the series lacks is not known.
        digest: of the bars alone.
    """

    symbol: str
    timeframe: str
    sound: bool
    wrong: tuple[str, ...]
    findings: tuple[FindingDocument, ...]
    first: Day | None
    last: Day | None
    sessions: SessionCountsDocument
    bars: int
    outside_sessions: int
    uncovered: int
    gaps: int
    missing_bars: int
    adjustments: tuple[AdjustmentDocument, ...]
    unconfirmed_bars: int
    disagreements: tuple[DisagreementDocument, ...]
    unit_changes: tuple[DisagreementDocument, ...]
    volume_jumps: tuple[DisagreementDocument, ...]
    revisions: int
    digest: str
    verified_before: VerifiedBeforeDocument | None
    error: ErrorDocument | None

    @classmethod
    def of(cls, one: Certificate) -> Self:
        """Return the document of a certificate."""
        content, found, before = one.content, one.found, one.before
        return cls(
            symbol=found.series.symbol,
            timeframe=str(found.series.timeframe),
            sound=one.is_sound,
            wrong=tuple(content.wrong),
            findings=tuple(
                FindingDocument(ts=moment(bar.ts), kind=str(bar.kind), detail=bar.detail)
                for bar in content.findings
            ),
            first=found.first,
            last=found.last,
            sessions=SessionCountsDocument(
                expected=one.sessions.expected,
                have=one.sessions.have,
                empty=one.sessions.empty,
                explained=one.sessions.explained,
                unexplained=one.sessions.unexplained,
            ),
            bars=content.bars,
            outside_sessions=content.outside,
            uncovered=content.uncovered,
            gaps=len(found.gaps),
            missing_bars=sum(gap.bars for gap in found.gaps),
            adjustments=tuple(map(AdjustmentDocument.of, one.adjustments)),
            unconfirmed_bars=content.unconfirmed,
            disagreements=DisagreementDocument.all_of(found.disagreements, of_unit=False),
            unit_changes=DisagreementDocument.all_of(found.disagreements, of_unit=True),
            volume_jumps=DisagreementDocument.all_of(found.volume_jumps),
            revisions=one.revisions,
            digest=content.digest.text,
            verified_before=None
            if before is None
            else VerifiedBeforeDocument(verified_at=before.verified_at, digest=before.digest),
            error=ErrorDocument.of_any(found.error),
        )


class VerificationDocument(ResultDocument):
    """The result of reading everything; ``damaged_others`` are files of no series of it."""

    verified_at: datetime
    certificates: tuple[CertificateDocument, ...]
    damaged_others: dict[str, str]

    @classmethod
    def of(
        cls,
        certificates: Iterable[Certificate],
        damaged_others: Mapping[str, str],
        *,
        verified_at: datetime,
        code: ExitCode,
    ) -> Self:
        """Return the document of all certificates."""
        return cls(
            complete=code is ExitCode.DONE,
            exit_code=int(code),
            verified_at=verified_at,
            certificates=tuple(map(CertificateDocument.of, certificates)),
            damaged_others=dict(damaged_others),
        )


class AdjustDocument(ResultDocument):
    """The adjustments of a symbol, and what a command changed.

    Attributes:
        recorded: the adjustment that was made.
        removed: the adjustment that was undone.
        bars: how many bars before its date are concerned, by timeframe.
        adjustments: all of the symbol, undone ones too.
        statement: what one response stated of a re-basing, and no other has confirmed.
    """

    symbol: str
    recorded: AdjustmentDocument | None
    removed: AdjustmentDocument | None
    bars: dict[str, int]
    adjustments: tuple[AdjustmentDocument, ...]
    statement: str | None

    @classmethod
    def of(
        cls,
        symbol: str,
        known: Sequence[Adjustment],
        statement: str | None,
        *,
        recorded: Adjustment | None = None,
        removed: Adjustment | None = None,
        bars: Mapping[Timeframe, int] | None = None,
    ) -> Self:
        """Return the document of the adjustments of a symbol, as they are after the command."""
        undone = None if removed is None else known[removed.number - 1]
        return cls(
            complete=True,
            exit_code=int(ExitCode.DONE),
            symbol=symbol,
            recorded=None if recorded is None else AdjustmentDocument.of(recorded),
            removed=None if undone is None else AdjustmentDocument.of(undone),
            bars={str(timeframe): count for timeframe, count in (bars or {}).items()},
            adjustments=tuple(map(AdjustmentDocument.of, known)),
            statement=statement,
        )


class ColumnDocument(Document):
    """A column of the result of a query: its name, unique in the result, and its Arrow type."""

    name: str
    type: str


class QueryDocument(ResultDocument):
    """The result of a query; ``rows`` are those of SQL, each with a value by column name."""

    columns: tuple[ColumnDocument, ...]
    rows: tuple[dict[str, Any], ...]
