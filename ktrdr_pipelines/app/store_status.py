"""What a store holds and lacks: read once, for the texts of commands and for documents.

No request is sent to a gateway.

Not here: the shapes of the documents (``app.views.series_documents``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_pipelines.app.acknowledgement import ExplainedRange, explained_ranges
from ktrdr_pipelines.app.selection import chosen_series, instruments_of
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.coverage import ProofKind
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.errors import ExitCode
from ktrdr_pipelines.gaps.index import SeriesGaps
from ktrdr_pipelines.gaps.universe_diff import Stranger, strangers
from ktrdr_pipelines.store.layout import store_origin, store_version
from ktrdr_pipelines.store.ledger.basis_records import BasisCheck
from ktrdr_pipelines.store.ledger.ledger import series_key

if TYPE_CHECKING:  # a status that is printed as text needs no documents
    from ktrdr_pipelines.app.views.series_documents import (
        CalendarChangeDocument,
        GapsDocument,
        HeldRangeDocument,
        StoreStatusDocument,
    )

KINDS = (ProofKind.DISPUTED, ProofKind.ACKNOWLEDGED)
"""What explains ranges in spite of held data, or by the user."""


@dataclass(frozen=True, slots=True)
class KnownBases:
    """What is known of price bases, by symbol: adjustments, statements, unreadable histories."""

    adjustments: Mapping[str, Sequence[Adjustment]]
    stated: Mapping[str, BasisCheck]
    errors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """A store at a moment: every series, the bases of all symbols, and what has no entry.

    ``instruments`` are those of the universe, or those that were named: then the series and bases
    are theirs alone, and nothing is unlisted. ``findings`` are the numbers of bars with implausible
    values, by ledger key.
    """

    workspace: Workspace
    instruments: Sequence[Instrument]
    series: Sequence[SeriesGaps]
    unlisted: Sequence[Stranger]
    findings: Mapping[str, int]
    bases: KnownBases
    calendars: Calendars
    real_now: datetime

    def catalog_age_s(self) -> int | None:
        """Return the age of the catalog in seconds; None if there is none."""
        path = self.workspace.layout.catalog
        if not path.is_file():
            return None
        return max(0, round(self.real_now.timestamp() - path.stat().st_mtime))

    @property
    def exit_code(self) -> ExitCode:
        """FAILED if something cannot be read, INCOMPLETE if bars disagree, else DONE."""
        if self.bases.errors or any(one.error is not None for one in self.series):
            return ExitCode.FAILED
        is_open = self.bases.stated or any(one.disagreements for one in self.series)
        return ExitCode.INCOMPLETE if is_open else ExitCode.DONE


def store_status(workspace: Workspace, symbols: str | None = None) -> StoreStatus:
    """Read the status of a store, or of named symbols.

    Raises:
        UsageError: a symbol is empty, or not in the universe.
        StoreError: the ledger cannot be read.
        UniverseError: the universe is malformed, and there is no earlier copy.
    """
    real_now = workspace.clock.real_now()
    instruments = instruments_of(workspace.universe, symbols)
    series = chosen_series(workspace.universe, workspace.store, symbols, None)
    index = workspace.gap_index()
    named = {one.symbol for one in instruments}
    adjustments, errors = workspace.store.bases.all()
    if symbols is not None:
        adjustments = {name: known for name, known in adjustments.items() if name in named}
        errors = {name: text for name, text in errors.items() if name in named}
    stated = {
        symbol: one
        for symbol, one in workspace.ledger.basis_checks.stated().items()
        if symbol in named
    }
    others = () if symbols is not None else strangers(workspace.store, named)
    return StoreStatus(
        workspace,
        instruments,
        index.series_gaps(series, workspace.now),
        list(others),
        workspace.ledger.findings.counts(),
        KnownBases(adjustments, stated, errors),
        index.calendars,
        real_now,
    )


def status_document(status: StoreStatus) -> "StoreStatusDocument":
    """Return the document of a store.

    Raises:
        StoreError: the ledger cannot be read.
    """
    from ktrdr_pipelines.app.views.documents import ErrorDocument
    from ktrdr_pipelines.app.views.series_documents import (
        BasisErrorDocument,
        CatalogDocument,
        SeriesStatusDocument,
        StatedRebasingDocument,
        StoreStatusDocument,
        SymbolAdjustmentDocument,
        UniverseDocument,
        UnlistedSeriesDocument,
    )
    from ktrdr_pipelines.app.views.universe_documents import field_documents

    workspace, universe = status.workspace, status.workspace.universe
    explained = explained_ranges(workspace.ledger, status.calendars, status.series)
    of_series: dict[Series, list[ExplainedRange]] = {}
    for one in explained:
        of_series.setdefault(one.series, []).append(one)
    code = status.exit_code
    is_whole = not any(
        one.gaps or one.unconfirmed_bars or one.volume_jumps for one in status.series
    )
    return StoreStatusDocument(
        complete=code is ExitCode.DONE and is_whole,
        exit_code=int(code),
        store=str(workspace.layout.root),
        format=store_version(workspace.layout),
        origin=store_origin(workspace.layout),
        catalog=CatalogDocument(path=str(workspace.layout.catalog), age_s=status.catalog_age_s()),
        universe=UniverseDocument(
            path=str(workspace.layout.universe),
            problem=ErrorDocument.of_any(workspace.problem),
            symbols={one.symbol: field_documents(universe, one) for one in status.instruments},
        ),
        before_windows={
            str(kind): tuple(names)
            for kind, names in universe.before_windows(status.instruments).items()
        },
        counts=explained_counts(status.series),
        series=tuple(
            SeriesStatusDocument.of(
                state,
                of_series.get(state.series, ()),
                findings=status.findings.get(series_key(state.series), 0),
            )
            for state in status.series
        ),
        not_in_universe=tuple(
            UnlistedSeriesDocument(symbol=one.symbol, timeframe=one.timeframe, bars=one.rows)
            for one in status.unlisted
        ),
        adjustments=tuple(
            SymbolAdjustmentDocument.of_symbol(symbol, one)
            for symbol, known in status.bases.adjustments.items()
            for one in known
        ),
        stated_rebasings=tuple(
            StatedRebasingDocument(
                symbol=symbol,
                ratio=one.stated_ratio,
                bars=one.stated_bars,
                request=one.stated_by,
                sent_at=one.stated_at,
                text=one.statement,
            )
            for symbol, one in status.bases.stated.items()
        ),
        basis_errors=tuple(
            BasisErrorDocument(symbol=symbol, message=text)
            for symbol, text in status.bases.errors.items()
        ),
        calendars=tuple(_calendar_changes(status.calendars)),
    )


def _calendar_changes(calendars: Calendars) -> "list[CalendarChangeDocument]":
    from ktrdr_pipelines.app.views.series_documents import CalendarChangeDocument

    return [
        CalendarChangeDocument(
            key=key,
            date=one.stated.day,
            opens=one.stated.parts[0].start if one.stated.parts else None,
            closes=one.stated.parts[-1].end if one.stated.parts else None,
            closed=not one.stated.parts,
            symbols=tuple(one.symbols),
        )
        for key, days in calendars.changed().items()
        for one in days
    ]


def gaps_exit_code(found: Sequence[SeriesGaps]) -> ExitCode:
    """Return FAILED if a series cannot be read, else INCOMPLETE if one has gaps, else DONE."""
    if any(one.error is not None for one in found):
        return ExitCode.FAILED
    return ExitCode.INCOMPLETE if any(one.gaps for one in found) else ExitCode.DONE


def blocked_series(
    found: Sequence[SeriesGaps],
) -> dict[tuple[str, int | None], list[SeriesGaps]]:
    """Return the series that lack a permission, by what it is for and the gateway's code.

    A permission is for an exchange, a security type and a what_to_show.
    """
    blocked: dict[tuple[str, int | None], list[SeriesGaps]] = {}
    for one in (state for state in found if state.blocks):
        made = one.series.instrument
        exchange = made.primary_exchange or made.exchange
        key = f"{exchange} {made.sec_type} {made.what_to_show}", one.blocks[-1].code
        blocked.setdefault(key, []).append(one)
    return blocked


def explained_counts(found: Sequence[SeriesGaps]) -> dict[str, int]:
    """Return how many ranges of some series are disputed and how many acknowledged."""
    return {str(kind): sum(len(one.explained_as(kind)) for one in found) for kind in KINDS}


def gaps_document(
    found: Sequence[SeriesGaps],
    explained: Sequence[ExplainedRange],
    *,
    plot: Path | None = None,
) -> "GapsDocument":
    """Return the document of the gaps of some series.

    Args:
        found: the series, as the gap index knows them.
        explained: their explained ranges (``app.acknowledgement``).
        plot: the file of the heatmap, if one was written.
    """
    from ktrdr_pipelines.app.views.documents import ErrorDocument
    from ktrdr_pipelines.app.views.series_documents import (
        ExplainedDocument,
        GapDocument,
        GapsDocument,
        SeriesErrorDocument,
    )

    code = gaps_exit_code(found)
    return GapsDocument(
        complete=code is ExitCode.DONE,
        exit_code=int(code),
        series=len(found),
        gaps=tuple(GapDocument.of(one, gap) for one in found for gap in one.gaps),
        counts=explained_counts(found),
        disputed=ExplainedDocument.all_of(explained, ProofKind.DISPUTED),
        acknowledged=ExplainedDocument.all_of(explained, ProofKind.ACKNOWLEDGED),
        errors=tuple(
            SeriesErrorDocument(
                symbol=one.series.symbol,
                timeframe=str(one.series.timeframe),
                error=ErrorDocument.of(one.error),
            )
            for one in found
            if one.error is not None
        ),
        plot=None if plot is None else str(plot),
    )


def held_ranges(workspace: Workspace, instrument: Instrument) -> "list[HeldRangeDocument]":
    """Return the bars held of each timeframe of an instrument, of those on disk too.

    Raises:
        StoreError: a series cannot be read.
    """
    from ktrdr_pipelines.app.views.series_documents import HeldRangeDocument

    store = workspace.store
    kinds = [kind for symbol, kind in store.series_on_disk() if symbol == instrument.symbol]
    held = []
    for kind in dict.fromkeys((*instrument.timeframes, *kinds)):
        series = Series(instrument, kind)
        days = list(store.rows_per_session(series))
        covered = store.coverage(series).covered(workspace.now).bounds
        held.append(
            HeldRangeDocument(
                timeframe=str(kind),
                bars=store.rows(series),
                first=days[0] if days else None,
                last=days[-1] if days else None,
                covered_from=covered.start if covered else None,
                covered_to=covered.end if covered else None,
            )
        )
    return held
