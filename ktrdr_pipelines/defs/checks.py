"""Asset checks: gaps, freshness and bar values hourly, the integrity of bar files daily.

The checks are not partitioned, because partitioned checks lose their partition in runs over ranges.
The hourly ones examine all gaps and disagreements, and the bars of the newest windows. The daily
one reads a thirtieth of the files whole; DuckDB reads damaged files without an error, so queries
refuse the files found here until they are repaired. One op serves all timeframes. Users' runs
that load bars execute the checks of their asset too, but read no file whole for that.

Not here: reading and judging a file (``store.bars.integrity``, ``store.maintenance.file_checks``),
gaps and disagreements of a series (``gaps.index``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.catalog_metadata import markdown_table
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tags import KIND, RunKind
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.due_chunks import is_stale, stale_s
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.integrity import CheckedBars, check_file
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.store.maintenance.file_checks import check_files, damaged_files, due_files

UNEXPLAINED: Final = "unexplained_gaps"
FRESH: Final = "tail_is_fresh"
ORDER: Final = "order_and_duplicates"
SANE: Final = "ohlc_sane"
BASIS: Final = "price_basis"
VOLUME: Final = "volume_unit"
INTEGRITY: Final = "file_integrity"
_TEXTS: Final = {
    UNEXPLAINED: "Every expected bar is present, or its absence is explained.",
    FRESH: "No series lags by more open session time than GAP_THRESHOLDS_S (limits.py) allows.",
    ORDER: "Bars of the newest windows are in order and unique.",
    SANE: "Bars of the newest windows have plausible values, or are as the gateway returned them.",
    BASIS: "Each series is on one price basis and in one unit of price, after the adjustments that "
    "readers apply: no held bars were returned again at other prices, no basis is unconfirmed.",
    VOLUME: "Each series has volumes in one unit, shares or lots: none jump by a factor of 100.",
}
_NEWEST_DAYS: Final = {one: 70 if one is Timeframe.M1 else 400 for one in Timeframe}
"""Days back that bars are examined: of 1m about two months of a year, as it has many bars."""

_INTEGRITY_TEXT: Final = "No bar file is damaged; a thirtieth of the files is read whole each day."

NAMED_AT_MOST: Final = 20
Clock = Callable[[], datetime]
Rows = list[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """What a check found in one timeframe: how many items are bad, of how many, and the worst.

    ``what`` completes "3 of 10 ..." in the description. ``kept`` counts bars with implausible
    values that are as the gateway returned them; None for a check that does not examine values.
    ``more`` is further metadata.
    """

    bad: int
    looked_at: int
    what: str
    columns: tuple[str, ...]
    rows: Rows
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    kept: int | None = None
    more: Mapping[str, dg.MetadataValue] = field(default_factory=dict)

    def result(self, timeframe: Timeframe, name: str) -> dg.AssetCheckResult:
        """Return the result of the check.

        Most checks only warn, because the next run already requests what is missing.
        """
        metadata: dict[str, dg.MetadataValue] = {
            "bad": dg.MetadataValue.int(self.bad),
            "looked_at": dg.MetadataValue.int(self.looked_at),
        }
        if self.kept is not None:
            metadata["findings"] = dg.MetadataValue.int(self.kept)
        if self.rows:
            metadata["worst"] = dg.MetadataValue.md(markdown_table(self.columns, self.rows))
        metadata |= self.more
        return dg.AssetCheckResult(
            asset_key=bars_key(timeframe),
            check_name=name,
            passed=self.bad == 0,
            severity=self.severity,
            description=f"{self.bad} of {self.looked_at} {self.what}",
            metadata=metadata,
        )


def bars_checks(
    timeframes: Iterable[Timeframe], clock: Clock = system_now
) -> dg.AssetChecksDefinition:
    """Return the hourly checks of all timeframes."""
    specs = [
        dg.AssetCheckSpec(name, asset=bars_key(timeframe), description=text)
        for timeframe in timeframes
        for name, text in _TEXTS.items()
    ]

    @dg.multi_asset_check(name="bars_checks", specs=specs, can_subset=True)
    def checks(
        context: dg.AssetCheckExecutionContext, ib: IbResource, store: StoreResource
    ) -> Iterator[dg.AssetCheckResult]:
        workspace = ib.workspace(store, clock)
        index, chosen = workspace.gap_index(), context.selected_asset_check_keys
        for timeframe in Timeframe:
            names = {key.name for key in chosen if key.asset_key == bars_key(timeframe)}
            if names:
                now = workspace.now
                found = index.series_gaps(workspace.universe.series(timeframe), now)
                yield from _results(timeframe, names, found, index, now=now)

    return checks


def check_schedule(timeframes: Iterable[Timeframe]) -> dg.ScheduleDefinition:
    """Return the hourly schedule that refreshes the catalog and runs the checks."""
    return schedule_of_checks(
        "check_schedule",
        "17 * * * *",
        selected_checks(timeframes, *_TEXTS) | dg.AssetSelection.assets("bars_catalog"),
        "Refreshes the catalog with its coverage heatmap, and runs the checks of gaps and bars.",
    )


def selected_checks(timeframes: Iterable[Timeframe], *names: str) -> dg.AssetSelection:
    """Return the selection of the checks with these names, in these timeframes."""
    return dg.AssetSelection.checks(
        *(dg.AssetCheckKey(bars_key(one), name) for one in timeframes for name in names)
    )


def error_checks(timeframes: Iterable[Timeframe]) -> list[dg.AssetCheckKey]:
    """Return the checks whose failure is an error: stored bars are wrong."""
    return [
        dg.AssetCheckKey(bars_key(one), name) for one in timeframes for name in (SANE, INTEGRITY)
    ]


def schedule_of_checks(
    name: str, cron_schedule: str, target: dg.AssetSelection, description: str
) -> dg.ScheduleDefinition:
    """Return a schedule in UTC that is on by default and tags its runs as checks."""
    return dg.ScheduleDefinition(
        name=name,
        target=target,
        cron_schedule=cron_schedule,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
        tags={KIND: RunKind.CHECK.value},
    )


def _results(
    timeframe: Timeframe,
    names: set[str],
    found: Sequence[SeriesGaps],
    index: GapIndex,
    *,
    now: datetime,
) -> Iterator[dg.AssetCheckResult]:
    if UNEXPLAINED in names:
        yield _unexplained(found).result(timeframe, UNEXPLAINED)
    if FRESH in names:
        yield _fresh(found, index, now).result(timeframe, FRESH)
    if BASIS in names:
        yield _price_basis(found, index).result(timeframe, BASIS)
    if VOLUME in names:
        what = "series have volumes in shares next to volumes in lots of 100"
        differing = [(one.series, one.volume_jumps) for one in found]
        yield _differing(differing, what).result(timeframe, VOLUME)
    if names & {ORDER, SANE}:
        since = now.date() - timedelta(days=_NEWEST_DAYS[timeframe])
        files = _check_files(found, index, since)
        for name, finding in ((ORDER, _order(files)), (SANE, _sane(files))):
            if name in names:
                yield finding.result(timeframe, name)


def _unexplained(found: Sequence[SeriesGaps]) -> CheckFinding:
    lacking = sorted(
        ((sum(gap.bars for gap in one.gaps), one) for one in found if one.gaps or one.error),
        key=lambda pair: -pair[0],
    )
    rows: Rows = [
        (one.series.symbol, bars, len(one.gaps), one.error or f"{one.gaps[-1].reason}: "
         f"{one.gaps[-1].detail}")
        for bars, one in lacking[:NAMED_AT_MOST]
    ]  # fmt: skip
    columns = ("symbol", "bars missing", "gaps", "newest gap")
    return CheckFinding(len(lacking), len(found), "series have unexplained gaps", columns, rows)


def _fresh(found: Sequence[SeriesGaps], index: GapIndex, now: datetime) -> CheckFinding:
    stale = [one for one in found if is_stale(one, index.calendars, now)]
    rows: Rows = [
        (one.series.symbol, one.covered_until, f"{stale_s(one, index.calendars, now) / 3600:.1f} h")
        for one in stale[:NAMED_AT_MOST]
    ]
    threshold_s = IbLimitsRegistry.GAP_THRESHOLDS_S.value[found[0].series.timeframe] if found else 0
    what = f"series lag by more than {threshold_s / 3600:g} h of open session time"
    return CheckFinding(len(stale), len(found), what, ("symbol", "covered until", "lag"), rows)


def _differing(found: Sequence[tuple[Series, Sequence[Disagreement]]], what: str) -> CheckFinding:
    """Return the series with bars that differ by a ratio, with the newest disagreement of each."""
    differing = [(series, ones) for series, ones in found if ones]
    rows: Rows = [
        (
            series.symbol,
            f"{last.ratio:.4g}",
            last.bars,
            f"{last.first:%Y-%m-%d %H:%MZ} to {last.last:%Y-%m-%d %H:%MZ}",
            _command(series, last),
        )
        for series, ones in differing[:NAMED_AT_MOST]
        for last in ones[-1:]
    ]
    if rows:
        symbol, ratio, *_, hint = rows[0]
        what += f" ({symbol}: by a factor of {ratio}). Hint: run `{hint}`"
    columns = ("symbol", "ratio", "bars", "interval", "command that resolves it")
    return CheckFinding(len(differing), len(found), what, columns, rows)


def _command(series: Series, found: Disagreement) -> str:
    if found.kind is DisagreementKind.UNIT:
        day = f"{found.first:%Y-%m-%d}"
        return f"ktrdr adjust {series.symbol} --ratio {found.ratio:.6g} --from {day} --note TEXT"
    return f"ktrdr load {series.symbol} {series.timeframe} --refresh"


def _price_basis(found: Sequence[SeriesGaps], index: GapIndex) -> CheckFinding:
    """Return the series with bars at other prices, in another unit, or on an unconfirmed basis.

    Adjustments that were found are no fault: readers apply them. They are metadata.
    """
    what = "series have held bars that were returned again at other prices"
    finding = _differing([(one.series, one.disagreements) for one in found], what)
    unconfirmed = [one for one in found if one.unconfirmed_bars]
    both = sum(bool(one.disagreements) for one in unconfirmed)
    rows = list(finding.rows)
    for one in unconfirmed[: max(0, NAMED_AT_MOST - len(rows))]:
        bounds = one.unconfirmed_basis.bounds
        interval = (
            f"{bounds.start:%Y-%m-%d %H:%MZ} to {bounds.end:%Y-%m-%d %H:%MZ}" if bounds else ""
        )
        again = f"ktrdr load {one.series.symbol} {one.series.timeframe}"
        rows.append((one.series.symbol, "unconfirmed", one.unconfirmed_bars, interval, again))
    what = finding.what
    if unconfirmed:
        bars = sum(one.unconfirmed_bars for one in unconfirmed)
        what += (
            f"; {len(unconfirmed)} have {bars} bars on an unconfirmed basis, left out of queries"
        )
    symbols = {one.series.symbol for one in found}
    in_force = [
        (
            symbol,
            one.number,
            one.kind,
            f"{one.ratio:.6g}",
            one.effective,
            f"{one.found_at:%Y-%m-%d}",
        )
        for symbol, ones in index.store.ledger.adjustments.all().items()
        if symbol in symbols
        for one in ones
        if one.removed_at is None
    ]
    more: dict[str, dg.MetadataValue] = {"adjustments": dg.MetadataValue.int(len(in_force))}
    if in_force:
        columns = ("symbol", "number", "kind", "prices times", "effective", "found on")
        newest = sorted(in_force, key=lambda row: str(row[-1]), reverse=True)[:NAMED_AT_MOST]
        more["newest_adjustments"] = dg.MetadataValue.md(markdown_table(columns, newest))
    return replace(
        finding, bad=finding.bad + len(unconfirmed) - both, what=what, rows=rows, more=more
    )


def _check_files(
    found: Sequence[SeriesGaps], index: GapIndex, since: date
) -> Mapping[str, CheckedBars | StoreError]:
    """Return the checked bars, or the error, of each file that may hold bars since a date."""
    files: dict[str, CheckedBars | StoreError] = {}
    layout = index.store.layout
    for one in found:
        sec_type = one.series.instrument.sec_type
        known = index.store.ledger.findings.of(series_key(one.series))
        try:
            paths = layout.bar_files(one.series.symbol, one.series.timeframe)
        except StoreError as error:
            folder = layout.series_folder(one.series.symbol, one.series.timeframe)
            files[layout.relative(folder)] = error
            continue
        for path in paths:
            if path.stem.isdigit() and int(path.stem) < since.year:
                continue
            try:
                files[layout.relative(path)] = check_file(path, since, sec_type, known)
            except StoreError as error:
                files[layout.relative(path)] = error
    return files


def _order(files: Mapping[str, CheckedBars | StoreError]) -> CheckFinding:
    rows: Rows = []
    for name, one in files.items():
        if isinstance(one, StoreError):
            rows.append((name, "", "", one))
        elif one.out_of_order or one.duplicates:
            rows.append((name, one.out_of_order, one.duplicates, one.first_misplaced))
    columns = ("file", "out of order", "duplicates", "first misplaced")
    what = "files have bars out of order or duplicates"
    return CheckFinding(len(rows), len(files), what, columns, rows[:NAMED_AT_MOST])


def _sane(files: Mapping[str, CheckedBars | StoreError]) -> CheckFinding:
    """Return the bars with implausible values.

    Damage is an error: a repair or another request removes it. Bars that only have findings pass
    and are counted: the gateway returns them as they are, so a check that counted them as failures
    would fail forever and hide later damage.
    """
    good = {name: one for name, one in files.items() if isinstance(one, CheckedBars)}
    rows: Rows = [
        (name, one.implausible, one.first_implausible)
        for name, one in good.items()
        if one.implausible
    ]
    count = sum(one.implausible for one in good.values())
    kept = sum(one.findings for one in good.values())
    what = "bars have implausible values that the gateway is not known to have returned"
    if kept:
        what += f"; {kept} more are kept as the gateway returned them (`ktrdr verify` lists them)"
    return CheckFinding(
        count,
        sum(one.rows for one in good.values()),
        what,
        ("file", "bars", "first"),
        rows[:NAMED_AT_MOST],
        severity=dg.AssetCheckSeverity.ERROR if count else dg.AssetCheckSeverity.WARN,
        kept=kept,
    )


def integrity_checks(
    timeframes: Iterable[Timeframe], clock: Clock = system_now
) -> dg.AssetChecksDefinition:
    """Return the daily check of each timeframe's bar files."""
    specs = [
        dg.AssetCheckSpec(INTEGRITY, asset=bars_key(timeframe), description=_INTEGRITY_TEXT)
        for timeframe in timeframes
    ]

    @dg.multi_asset_check(name="integrity_checks", specs=specs, can_subset=True)
    def checks(
        context: dg.AssetCheckExecutionContext, ib: IbResource, store: StoreResource
    ) -> Iterator[dg.AssetCheckResult]:
        workspace = ib.workspace(store)
        instruments = workspace.universe.instruments.values()
        calendars = {one.symbol: one.calendar for one in instruments}
        chosen = {key.asset_key for key in context.selected_asset_check_keys}
        for timeframe in Timeframe:
            if bars_key(timeframe) in chosen:
                # Each run of a backfill would read a further thirtieth.
                is_load = bars_key(timeframe) in (context.run.asset_selection or ())
                due = {} if is_load else due_files(workspace.store, timeframe)
                found = _checked(workspace.store, timeframe, due, calendars, clock=clock)
                yield found.result(timeframe, INTEGRITY)

    return checks


def integrity_schedule(timeframes: Iterable[Timeframe]) -> dg.ScheduleDefinition:
    """Return the daily schedule that reads a thirtieth of the files."""
    return schedule_of_checks(
        "integrity_schedule",
        "41 3 * * *",
        selected_checks(timeframes, INTEGRITY),
        "Reads a thirtieth of the bar files whole and reports damaged ones.",
    )


def _checked(
    store: BarStore,
    timeframe: Timeframe,
    due: Mapping[str, Sequence[Path]],
    calendars: dict[str, str],
    *,
    clock: Clock,
) -> CheckFinding:
    """Read the files that are due, by symbol, and return all that are known to be damaged."""
    read = 0
    for symbol, paths in due.items():
        calendar = calendar_named(calendars[symbol]) if symbol in calendars else None
        for _ in check_files(store, symbol, timeframe, paths, calendar=calendar, at=clock()):
            read += 1
    folder = f"/timeframe={timeframe}/"
    damaged = [(name, why) for name, why in damaged_files(store).items() if folder in name]
    what = f"files are known to be damaged; files read in this run: {read}"
    if damaged:
        what += ". Hint: `ktrdr repair` quarantines them and lists what to load again"
    files = sum(
        len(store.layout.bar_files(*key)) for key in store.series_on_disk() if key[1] is timeframe
    )
    return CheckFinding(
        len(damaged),
        files,
        what,
        ("file", "damage"),
        [tuple(row) for row in damaged[:NAMED_AT_MOST]],
        severity=dg.AssetCheckSeverity.ERROR,
    )
