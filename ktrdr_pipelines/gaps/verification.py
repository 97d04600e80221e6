"""Verify series: read and count every bar, and compare with calendar, footer and ledger.

What a footer states is not trusted: the bars themselves are read. Only the ledger's record of the
verification is written.

Not here: the gaps and counts of sessions (``gaps.index``), checks of one file
(``store.maintenance.file_checks``).
"""

from collections.abc import Container, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.bars import UNCONFIRMED, basis_of, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import SessionGrid, session_grid
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.gaps import Completeness
from ktrdr_pipelines.domain.plausibility import Finding, explained
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.digests import Digest
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.layout import StoreLayout, imported_store
from ktrdr_pipelines.store.ledger.ledger import open_ledger, series_key
from ktrdr_pipelines.store.ledger.marks import Verification
from ktrdr_pipelines.store.maintenance.file_checks import check_files


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """The number of expected sessions by what is known of them.

    A session is ``empty`` when it is covered and has no bar, and ``explained`` or ``unexplained``
    when a part of it is.
    """

    expected: int = 0
    have: int = 0
    empty: int = 0
    explained: int = 0
    unexplained: int = 0


@dataclass(slots=True)
class Content:
    """What the files of a series contain.

    ``outside`` are bars outside the known sessions: kept, as the gateway may know more than the
    calendar; ``uncovered`` are bars outside the coverage; ``unconfirmed`` are on an unconfirmed
    price basis; ``wrong`` describes damage. ``findings`` are implausible bars that are as the
    gateway returned them, which is no damage.
    """

    bars: int = 0
    outside: int = 0
    uncovered: int = 0
    unconfirmed: int = 0
    digest: Digest = field(default_factory=Digest)
    wrong: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The result of verifying one series.

    ``before`` is the previous verification; ``adjustments`` are those of the symbol, which readers
    multiply its bars by.
    """

    found: SeriesGaps
    sessions: SessionCounts
    content: Content
    revisions: int
    before: Verification | None
    adjustments: tuple[Adjustment, ...] = ()

    @property
    def is_intact(self) -> bool:
        """Whether no damage was found."""
        return not self.content.wrong

    @property
    def is_sound(self) -> bool:
        """Whether the bars are intact, and known to be on one price basis and in one unit."""
        is_mixed = self.content.unconfirmed or self.found.unit_changes
        return self.is_intact and not is_mixed


def verify(
    index: GapIndex, series: Iterable[Series], now: datetime, *, real_now: datetime | None = None
) -> Iterator[Certificate]:
    """Read one series after another as a whole, and yield the results.

    Args:
        index: the gap index of the store.
        series: what to read.
        now: market time.
        real_now: real time, recorded as that of the verification; ``now`` if not given.

    Raises:
        StoreError: the ledger cannot be used.
    """
    ledger = index.store.ledger
    for one in series:
        content, adjustments = _read_all(index, one, real_now or now)
        (found,) = index.series_gaps([one], now)
        key = series_key(one)
        certificate = Certificate(
            found=found,
            sessions=_sessions(index, one, now),
            content=content,
            revisions=len(ledger.revisions.of(key)),
            before=ledger.verified.of(key),
            adjustments=adjustments,
        )
        if certificate.is_intact:
            ledger.verified.record(key, content.digest.text, real_now or now)
        yield certificate


def damaged_others(store: BarStore, known: Container[str], at: datetime) -> dict[str, str]:
    """Read the files of symbols that have left the universe, and return their damage.

    A history that lacks an adjustment of their bars, or cannot be read, is damage too.

    Args:
        store: the store.
        known: the symbols of the universe.
        at: real time.

    Returns:
        What is damaged, by the name of the file relative to the data folder.
    """
    damaged: dict[str, str] = {}
    for symbol, timeframe in store.series_on_disk():
        if symbol in known:
            continue
        paths = store.layout.bar_files(symbol, timeframe)
        checks = check_files(store, symbol, timeframe, paths, calendar=None, at=at)
        for path, found in checks:
            if found.damage:
                damaged[store.layout.relative(path)] = found.damage
            elif found.bars is not None and (unknown := _unknown_basis(store, symbol, found.bars)):
                damaged[store.layout.relative(store.layout.adjustments_file(symbol))] = unknown
    return damaged


def damaged_imported(
    layout: StoreLayout, symbols: Container[str] | None, at: datetime
) -> dict[str, str]:
    """Read the files of imported bars, and return their damage.

    Args:
        layout: the store above that of the imported bars.
        symbols: whose files are read; None for all.
        at: real time.

    Returns:
        What is damaged, by the name of the file relative to the data folder.
    """
    imported = imported_store(layout)
    if imported is None:
        return {}
    damaged: dict[str, str] = {}
    with closing(open_ledger(imported)) as ledger:
        store = BarStore(imported, ledger)
        for symbol, timeframe in store.series_on_disk():
            if symbols is not None and symbol not in symbols:
                continue
            paths = imported.bar_files(symbol, timeframe)
            for path, found in check_files(store, symbol, timeframe, paths, calendar=None, at=at):
                if found.damage:
                    damaged[layout.relative(path)] = found.damage
    return damaged


def _unknown_basis(store: BarStore, symbol: str, bars: pa.Table) -> str:
    """Return why the history of a symbol does not explain the basis of its bars; else empty."""
    try:
        count = len(store.bases.of(symbol))
    except StoreError as error:
        return str(error)
    highest = int(basis_of(bars).max(initial=0))
    if highest <= count:
        return ""
    return (
        f"bars include adjustment {highest}, and {store.layout.adjustments_file(symbol)} has "
        f"{count}. Hint: run `ktrdr repair`, or restore that file from a backup"
    )


def _read_all(
    index: GapIndex, series: Series, at: datetime
) -> tuple[Content, tuple[Adjustment, ...]]:
    content, store = Content(), index.store
    paths = store.layout.bar_files(series.symbol, series.timeframe)
    calendar = calendar_named(series.instrument.calendar)
    try:
        read: dict[Path, Footer] = {}
        for path, found in check_files(
            store, series.symbol, series.timeframe, paths, calendar=calendar, at=at
        ):
            if found.damage:
                content.wrong.append(f"{path}: {found.damage}. Hint: run `ktrdr repair`")
            if found.footer is not None and found.bars is not None:
                read[path] = found.footer
                if unknown := _unknown_basis(store, series.symbol, found.bars):
                    content.wrong.append(f"{path}: {unknown}")
                _count(index, series, path, found.footer, bars=found.bars, content=content)
        if content.wrong:
            return content, ()
        for path, row in store.files.of(series).items():
            footer = read[path]
            if (footer.rows_per_session, footer.coverage) != (row.rows_per_session, row.coverage):
                content.wrong.append(
                    f"{path} differs from its entry in the file index. Hint: run `ktrdr repair`"
                )
        return content, store.bases.of(series.symbol)
    except StoreError as error:
        content.wrong.append(str(error))
    return content, ()


def _count(
    index: GapIndex,
    series: Series,
    path: Path,
    footer: Footer,
    *,
    bars: pa.Table,
    content: Content,
) -> None:
    known = index.store.ledger.findings.of(series_key(series))
    damaged, findings = explained(bars, series.instrument.sec_type, known)
    content.findings.extend(findings)
    if damaged.any():
        content.wrong.append(
            f"{path}: {int(damaged.sum()):,} bars have implausible values that the gateway is not "
            "known to have returned. Hint: `ktrdr repair` accepts them as the gateway's if the "
            "file is as ktrdr wrote it; if another program wrote it, the next load requests them "
            "again"
        )
    if series.timeframe.is_intraday and bars.num_rows:
        days = calendar_named(series.instrument.calendar).days_of(timestamps(bars))
        stored_days = bars["session_date"].to_numpy().astype("datetime64[D]")
        if misdated := int(np.count_nonzero(days != stored_days)):
            content.wrong.append(f"{path}: {misdated:,} bars have a wrong session date")
    keys = timestamps(bars)
    calendar = index.calendars.of(series.instrument)
    content.bars += len(keys)
    content.outside += _outside(keys, session_grid(calendar, series.timeframe))
    content.uncovered += _outside(keys, footer.coverage.bars)
    content.unconfirmed += int(np.count_nonzero(basis_of(bars) == UNCONFIRMED))
    content.digest.add(bars)


def _outside(keys: np.ndarray, intervals: SessionGrid | IntervalSet) -> int:
    """Return the number of timestamps that lie in no interval."""
    if not len(intervals):
        return len(keys)
    position = intervals.starts.searchsorted(keys, side="right") - 1
    inside = (position >= 0) & (keys < intervals.ends[np.maximum(position, 0)])
    return int(np.count_nonzero(~inside))


def _sessions(index: GapIndex, series: Series, now: datetime) -> SessionCounts:
    try:
        counts: Completeness = index.completeness(series, now)
    except StoreError:
        return SessionCounts()
    expected = counts.expected > 0
    return SessionCounts(
        expected=int(np.count_nonzero(expected)),
        have=int(np.count_nonzero(expected & (counts.have > 0))),
        empty=int(
            np.count_nonzero(expected & (counts.have == 0) & (counts.covered == counts.expected))
        ),
        explained=int(np.count_nonzero(counts.explained)),
        unexplained=int(np.count_nonzero(counts.unexplained)),
    )
