"""Repairing a store from its bar files, which are the truth.

The ledger and the catalog are rebuilt, untrustworthy files are quarantined, never deleted, and what
killed writers left is removed.

Not here: checking one file (``store.maintenance.inspection``).
"""

import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.bars import moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Identity, Instrument, SecType
from ktrdr_pipelines.domain.plausibility import Finding, explained, findings_of
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, DiskError, StoreError, StoreReplacedError
from ktrdr_pipelines.store.bars.adjustment_history import AdjustmentHistory, Adjustments
from ktrdr_pipelines.store.bars.bar_file import is_as_written, read_bars
from ktrdr_pipelines.store.bars.filing import BarFiles
from ktrdr_pipelines.store.bars.footer import SCHEMA_VERSION
from ktrdr_pipelines.store.bars.integrity import without_implausible
from ktrdr_pipelines.store.catalog.catalog import rebuild_catalog
from ktrdr_pipelines.store.files import TEMP_SUFFIX, disk_errors, kind_of, locked
from ktrdr_pipelines.store.layout import StoreLayout, imported_store, pin_origin, store_origin
from ktrdr_pipelines.store.ledger.file_index import known_by
from ktrdr_pipelines.store.ledger.ledger import Ledger, open_ledger
from ktrdr_pipelines.store.maintenance.inspection import (
    Inspected,
    Quarantined,
    check_file,
    inspected,
    load_again,
    quarantine,
)
from ktrdr_pipelines.store.maintenance.odd_paths import quarantine_odd_paths
from ktrdr_pipelines.store.maintenance.rename import finish_move
from ktrdr_pipelines.store.maintenance.rename_journal import Move

_LEDGER_ERRORS: Final = (
    CorruptFileError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    zlib.error,
)
"""What reading a ledger with changed bits raises. Bar files raise none of these here."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found and did.

    ``quarantined_ledger`` is the new path of a damaged ledger; ``leftovers`` are unfinished files
    that were removed; ``forgotten`` counts expired audit rows; ``finished`` is an interrupted move
    of a symbol that was completed. ``fixed`` are files whose footer was lost or stated more than
    they hold, or whose bytes outside the bars had changed: they were rewritten, and what they lack
    is missing. ``sealed`` are files of earlier versions that were given digests. ``distrusted`` are
    files that another program wrote with implausible values: the bars are kept and requested
    again. ``findings`` counts bars with implausible values that are attributed to the gateway from
    now on. ``restored`` are files of adjustments that were damaged or lost, written again from the
    ledger; ``lost`` says of which symbols that was not possible, so that no query returns their
    bars on one price basis.
    """

    files: int
    quarantined: tuple[Quarantined, ...]
    leftovers: tuple[Path, ...]
    quarantined_ledger: Path | None
    forgotten: int
    finished: Move | None = None
    fixed: tuple[Path, ...] = ()
    distrusted: tuple[Path, ...] = ()
    findings: int = 0
    sealed: tuple[Path, ...] = ()
    restored: tuple[Path, ...] = ()
    lost: tuple[str, ...] = ()


def repair(
    layout: StoreLayout,
    universe: Sequence[Instrument] = (),
    now: datetime | None = None,
    *,
    seal: bool = False,
) -> RepairReport:
    """Check every file, rebuild ledger and catalog, and report what must be loaded again.

    Args:
        layout: the store.
        universe: instruments; without them the catalog has bars, but no sessions.
        now: the time of pins, and from which the age of audit rows is measured; by default the
            system's time.
        seal: whether to rewrite files of earlier versions, so that they have digests.

    Raises:
        StoreError: a newer version wrote a file, or a series stayed locked.
        StoreReplacedError: the store is not the one that was opened.
        DiskError: the system refused.
    """
    now = now or system_now()
    layout = layout.reopened()
    done = _Done(quarantined=quarantine_odd_paths(layout))
    moved = _quarantine_damaged_ledger(layout)
    try:
        report = _repair(layout, universe, now, done, seal=seal)
    except _LEDGER_ERRORS as error:
        if moved is not None:
            raise
        # Its values are invalid, though each has the type of its column.
        moved = _quarantine_ledger(layout, str(error))
        report = _repair(layout, universe, now, done, seal=seal)
    return replace(report, quarantined_ledger=moved)


@dataclass(slots=True)
class _Done:
    """What a repair has done to files; kept when the repair has to start again."""

    quarantined: list[Quarantined]
    leftovers: list[Path] = field(default_factory=list)
    fixed: list[Path] = field(default_factory=list)
    distrusted: list[Path] = field(default_factory=list)
    sealed: list[Path] = field(default_factory=list)
    restored: list[Path] = field(default_factory=list)


def _repair(
    layout: StoreLayout,
    universe: Sequence[Instrument],
    now: datetime,
    done: _Done,
    *,
    seal: bool,
) -> RepairReport:
    """Repair files, ledger and catalog once; what is done to files is added to ``done``."""
    ledger = open_ledger(layout)
    files = BarFiles(layout, ledger, lambda: now)
    instruments = {one.symbol: one for one in universe}
    with closing(ledger):
        finished = finish_move(layout, ledger)
        kept: list[Path] = []
        findings = 0
        done.quarantined += _quarantine_unfiled(layout)
        with (
            locked(layout.lock("store"), f"the store {layout.root}"),
            locked(layout.lock("catalog"), f"the catalog {layout.catalog}"),
        ):
            done.leftovers += _leftovers(layout.root)
        for symbol, timeframe in layout.series_folders():
            layout.require_same()
            with locked(layout.series_lock(symbol, timeframe), f"{symbol} {timeframe}"):
                done.leftovers += _leftovers(layout.series_folder(symbol, timeframe))
                instrument = instruments.get(symbol)
                sec_type = instrument.sec_type if instrument else None
                good, bad = _judged(layout, files, symbol, timeframe, instrument=instrument)
                done.quarantined += bad
                key = f"{symbol}|{timeframe}"
                known = ledger.findings.of(key)
                trusted = [_without_implausible(item, known, sec_type) for item in good]
                done.distrusted += [
                    new.path for new, old in zip(trusted, good, strict=True) if new is not old
                ]
                good = trusted
                done.fixed += _fix(files, good)
                done.sealed += _seal(files, good) if seal else ()
                for item in good:
                    _pin(layout, ledger, files.record(item.path), now)
                findings += _derive_findings(ledger, key, good, sec_type=sec_type, now=now)
                kept += [item.path for item in good]
        existing = {layout.relative(path) for path in kept}
        ledger.files.remove(name for name in ledger.files.names() if name not in existing)
        ledger.checks.remove(ledger.checks.all())
        lost = _restore_adjustments(layout, ledger, done)
        forgotten = ledger.requests.prune(now)
    imported = _repair_imported(layout, done, now)
    rebuild_catalog(layout, universe, now, is_anew=True)
    return RepairReport(
        files=len(kept) + imported,
        quarantined=tuple(done.quarantined),
        leftovers=tuple(done.leftovers),
        quarantined_ledger=None,
        forgotten=forgotten,
        finished=finished,
        fixed=tuple(path for path in done.fixed if path not in done.distrusted),
        distrusted=tuple(done.distrusted),
        findings=findings,
        sealed=tuple(done.sealed),
        restored=tuple(done.restored),
        lost=tuple(lost),
    )


def _repair_imported(layout: StoreLayout, done: _Done, now: datetime) -> int:
    """Repair the files and the ledger of the store of imported bars; return how many files it has.

    What is quarantined is to be imported again; implausible values stay as they were imported.
    """
    imported = imported_store(layout)
    if imported is None:
        return 0
    bad = quarantine_odd_paths(imported)
    _quarantine_damaged_ledger(imported)
    kept: set[str] = set()
    with closing(open_ledger(imported)) as ledger:
        files = BarFiles(imported, ledger, lambda: now)
        bad += _quarantine_unfiled(imported)
        with locked(imported.lock("store"), f"the store {imported.root}"):
            done.leftovers += _leftovers(imported.root)
        for symbol, timeframe in imported.series_folders():
            with locked(imported.series_lock(symbol, timeframe), f"{symbol} {timeframe}"):
                done.leftovers += _leftovers(imported.series_folder(symbol, timeframe))
                good, wrong = _judged(imported, files, symbol, timeframe, instrument=None)
                bad += wrong
                done.fixed += _fix(files, good)
                kept |= {imported.relative(item.path) for item in good}
        ledger.files.remove(name for name in ledger.files.names() if name not in kept)
        ledger.checks.remove(ledger.checks.all())
    done.quarantined += [
        replace(one, load_again=f"{one.load_again}, by `ktrdr import-csv`") for one in bad
    ]
    return len(kept)


def _quarantine_damaged_ledger(layout: StoreLayout) -> Path | None:
    """Quarantine a ledger that is damaged; the next opening creates a new one."""
    try:
        with closing(open_ledger(layout)) as ledger:
            ledger.check()
            for files in ledger.files.all().values():
                for row in files.values():
                    _ = row.footer, row.traded_arrays
    except (DiskError, StoreReplacedError):
        raise
    except _LEDGER_ERRORS as error:
        return _quarantine_ledger(layout, str(error))
    except StoreError as error:
        if not isinstance(error.__cause__, _LEDGER_ERRORS):
            raise
        return _quarantine_ledger(layout, str(error))
    return None


def _quarantine_ledger(layout: StoreLayout, why: str) -> Path:
    """Quarantine the ledger; return its new path.

    The file itself goes last: a process that finds none creates a new one, whose log must stay.
    """
    for suffix in ("-wal", "-shm"):
        beside = layout.ledger.with_name(f"{layout.ledger.name}{suffix}")
        if beside.exists():
            quarantine(layout, beside, why, "nothing")
    return quarantine(layout, layout.ledger, why, "nothing").now


def _quarantine_unfiled(layout: StoreLayout) -> list[Quarantined]:
    """Quarantine bar files outside the folders of series."""
    folders = set(layout.series_folders().values())
    paths = [path for path in sorted(layout.bars.rglob("*.parquet")) if path.parent not in folders]
    why = "no series has its files there"
    return [
        quarantine(layout, path, why, "nothing that is known")
        for path in paths
        if kind_of(path)  # one inside another has been moved with it
    ]


def _judged(
    layout: StoreLayout,
    files: BarFiles,
    symbol: str,
    timeframe: Timeframe,
    *,
    instrument: Instrument | None,
) -> tuple[list[Inspected], list[Quarantined]]:
    """Check the files of one series; return those to keep and those that were quarantined."""
    rows = files.recorded(symbol, timeframe)
    origin = store_origin(layout)
    calendar = calendar_named(instrument.calendar) if instrument else None
    found = [
        inspected(
            path,
            check_file(
                path,
                symbol,
                timeframe,
                known=known_by(rows.get(layout.relative(path))),
                calendar=calendar,
                origin=origin,
            ),
        )
        for path in layout.bar_files(symbol, timeframe)
    ]
    identity = files.prevailing(symbol, (item.footer for item in found if item.footer))
    good, bad = [], []
    for item in found:
        wrong = item.wrong
        if item.footer and item.footer.identity != identity:
            wrong = f"it holds {item.footer.identity}, the series holds {identity}"
        if wrong:
            lost = load_again(item.path, symbol, timeframe)
            bad.append(quarantine(layout, item.path, wrong, lost))
        else:
            good.append(item)
    return good, bad


def _without_implausible(
    item: Inspected, known: Sequence[Finding], sec_type: SecType | None
) -> Inspected:
    """Remove the coverage of implausible bars that another program may have written."""
    if item.footer is None or (not item.needs_fix and is_as_written(item.path)):
        return item
    bars = read_bars(item.path) if item.bars is None else item.bars
    footer = without_implausible(item.footer, bars, known, sec_type)
    return item if footer is item.footer else replace(item, footer=footer, bars=bars)


def _fix(files: BarFiles, good: Iterable[Inspected]) -> list[Path]:
    """Rewrite files whose footer is lost or untrue, or whose bytes differ; bars do not change."""
    fixed = []
    for item in good:
        if item.footer is not None and item.bars is not None:
            files.write(item.path, item.bars, item.footer)
            fixed.append(item.path)
    return fixed


def _seal(files: BarFiles, good: Iterable[Inspected]) -> list[Path]:
    """Rewrite files of earlier versions: without digests, or without the basis of their bars."""
    sealed = []
    for item in good:
        is_older = item.footer is not None and (
            item.footer.seal is None or item.footer.schema_version < SCHEMA_VERSION
        )
        if item.footer is not None and item.bars is None and is_older:
            files.write(item.path, read_bars(item.path), item.footer)
            sealed.append(item.path)
    return sealed


def _restore_adjustments(layout: StoreLayout, ledger: Ledger, done: _Done) -> list[str]:
    """Write damaged and lost files of adjustments again from the ledger, their only copy.

    A file that cannot be replaced stays where it is: without it, bars would seem to need no
    adjustment.

    Returns: of which symbols adjustments are lost, and why.
    """
    history = AdjustmentHistory(layout)
    lost = []
    for symbol in sorted({*history.symbols(), *(symbol for symbol, _ in layout.series_folders())}):
        with locked(layout.basis_lock(symbol), f"the price basis of {symbol}"):
            path = layout.adjustments_file(symbol)
            done.leftovers += _leftovers(path.parent, path.name)
            known: Adjustments = ()
            wrong, is_damaged = "", False
            try:
                known = history.of(symbol)
            except StoreError as error:
                wrong, is_damaged = str(error), isinstance(error, CorruptFileError)
            copy = ledger.adjustments.of(symbol)
            needed = max(ledger.files.highest_basis(symbol), len(copy), 1 if wrong else 0)
            if not wrong and len(known) >= needed:
                ledger.adjustments.record({symbol: known} if known else {})
                continue
            is_complete = len(copy) == needed and (is_damaged or not wrong)
            if is_complete and all(map(_is_same, known, copy)):
                if kind_of(path):
                    done.quarantined.append(
                        quarantine(layout, path, wrong or "it lacks adjustments", "nothing")
                    )
                history.write(symbol, copy)
                done.restored.append(path)
            else:
                wrong = wrong or f"{path} has {len(known)} adjustments of {needed}"
                lost.append(f"{symbol}: {wrong}")
    return lost


def _is_same(one: Adjustment, other: Adjustment) -> bool:
    """Return whether two records are of one adjustment; only one of them may be removed."""
    return replace(one, removed_at=None) == replace(other, removed_at=None)


def _pin(layout: StoreLayout, ledger: Ledger, identity: Identity, now: datetime) -> None:
    """Pin the origin and the contract of a series again, where they are lost."""
    pin_origin(layout, identity.origin)
    if ledger.contracts.of(identity.symbol, identity.origin) is None:
        ledger.contracts.pin(
            identity.symbol, identity.origin, identity.contract_id, str(identity), now
        )


def _derive_findings(
    ledger: Ledger,
    key: str,
    good: Iterable[Inspected],
    *,
    sec_type: SecType | None,
    now: datetime,
) -> int:
    """Derive the findings of a series again; return how many bars had none before.

    Implausible bars that are covered, in a file that is as it was written, came from the gateway.
    Others stay damage until they are requested again (``_without_implausible``). Findings of bars
    that are gone, or have other values, are deleted.
    """
    known = ledger.findings.of(key)
    stale = {one.ts for one in known}
    new: list[Finding] = []
    for item in good:
        bars = read_bars(item.path)
        implausible, found = explained(bars, sec_type, known)
        stale -= {one.ts for one in found}
        if not item.needs_fix and item.footer is not None:
            covered = item.footer.coverage.bars
            keys = [key for key in timestamps(bars)[implausible].tolist() if moment(key) in covered]
            new += findings_of(bars, keys, sec_type)
    if stale:
        ledger.findings.clear(key, stale)
    if new:
        ledger.findings.record(key, new, now)
    return len(new)


def _leftovers(folder: Path, name: str = "") -> list[Path]:
    """Remove unfinished files, all or those of one name; the caller holds their writers' lock."""
    with disk_errors(folder):
        paths = sorted(folder.glob(f".{f'{name}.' if name else ''}*{TEMP_SUFFIX}*"))
        paths = [path for path in paths if kind_of(path) == "a file"]
        for path in paths:
            path.unlink(missing_ok=True)
    return paths
