"""Asset checks: what is unexplained, stale, out of order, impossible, or in another unit or basis.

They are not partitioned (such checks lose their partition in ranged runs): they look over all
gaps and disagreements, and over the bars of the newest windows. One op serves all timeframes; the
schedule runs it hourly, and a materialization in the UI runs the part of its asset.

The daily check of files: a thirtieth of them is read whole, and what is damaged is named.

DuckDB answers from damaged files without a word, so what is found here is refused by queries until
it is repaired.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.catalog_metadata import markdown_table
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.tags import KIND, RunKind
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.plausibility import Disagreement
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.gaps.due_chunks import is_stale, stale_s
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps, open_gap_index
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.integrity import CheckedBars, check_file
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from ktrdr_pipelines.store.maintenance.file_checks import check_files, damaged_files, due_files

UNEXPLAINED: Final = "unexplained_gaps"
FRESH: Final = "tail_is_fresh"
ORDER: Final = "order_and_duplicates"
SANE: Final = "ohlc_sane"
BASIS: Final = "price_basis"
VOLUME: Final = "volume_unit"
_TEXTS: Final = {
    UNEXPLAINED: "No bar is missing without a reason.",
    FRESH: "No tail is older than the registry's threshold of open session time.",
    ORDER: "Bars of the newest windows are in order and there once.",
    SANE: "Bars of the newest windows have plausible values, or those that the gateway returned.",
    BASIS: "No held bars came again at other prices: each series is on one price basis.",
    VOLUME: "No volumes jump by 100: each series has its volumes in shares, or in lots.",
}
_NEWEST_DAYS: Final = {one: 70 if one is Timeframe.M1 else 400 for one in Timeframe}
"""How far back bars are examined: the newest windows and the ones before."""

NAMED_AT_MOST: Final = 20
Clock = Callable[[], datetime]
Rows = list[tuple[object, ...]]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found of one timeframe: how many are bad, of how many, and the worst of them.

    ``kept`` counts bars that are as the gateway returned them although their values are
    implausible; None where a check does not look at values.
    """

    bad: int
    looked_at: int
    what: str
    columns: tuple[str, ...]
    rows: Rows
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN
    kept: int | None = None

    def result(self, timeframe: Timeframe, name: str) -> dg.AssetCheckResult:
        """Return the result of the check; most only warn, since no run can do better for now."""
        metadata: dict[str, dg.MetadataValue] = {
            "bad": dg.MetadataValue.int(self.bad),
            "looked_at": dg.MetadataValue.int(self.looked_at),
        }
        if self.kept is not None:
            metadata["findings"] = dg.MetadataValue.int(self.kept)
        if self.rows:
            metadata["worst"] = dg.MetadataValue.md(markdown_table(self.columns, self.rows))
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
    """Make the checks of all timeframes."""
    specs = [
        dg.AssetCheckSpec(name, asset=bars_key(timeframe), description=text)
        for timeframe in timeframes
        for name, text in _TEXTS.items()
    ]

    @dg.multi_asset_check(name="bars_checks", specs=specs, can_subset=True)
    def checks(
        context: dg.AssetCheckExecutionContext, ib: IbResource, store: StoreResource
    ) -> Iterator[dg.AssetCheckResult]:
        gateway = GatewayConfig.from_settings(ib.settings()).gateway
        index = open_gap_index(store.layout(), gateway)
        chosen = context.selected_asset_check_keys
        for timeframe in Timeframe:
            names = {key.name for key in chosen if key.asset_key == bars_key(timeframe)}
            if names:
                series = store.universe().series(timeframe)
                now = ib.clock(clock).market_now()
                yield from _results(
                    timeframe, names, index.series_gaps(series, now), index, now=now
                )

    return checks


def check_schedule() -> dg.ScheduleDefinition:
    """Make the schedule that renews the catalog and runs all checks, hourly."""
    return schedule_of_checks(
        "check_schedule",
        "17 * * * *",
        selected_checks(*_TEXTS) | dg.AssetSelection.assets("bars_catalog"),
        "Renews the catalog with its picture of coverage, and runs the checks of gaps and bars.",
    )


def selected_checks(*names: str) -> dg.AssetSelection:
    """Select checks by name, of all timeframes."""
    return dg.AssetSelection.checks(
        *(dg.AssetCheckKey(bars_key(one), name) for one in Timeframe for name in names)
    )


def schedule_of_checks(
    name: str, cron_schedule: str, target: dg.AssetSelection, description: str
) -> dg.ScheduleDefinition:
    """Make a schedule, in UTC, that runs from the start and whose runs count as checks."""
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
        yield _basis(found).result(timeframe, BASIS)
    if VOLUME in names:
        yield _volume(found).result(timeframe, VOLUME)
    if names & {ORDER, SANE}:
        since = now.date() - timedelta(days=_NEWEST_DAYS[timeframe])
        files = _check_files(found, index, since)
        for name, finding in ((ORDER, _order(files)), (SANE, _sane(files))):
            if name in names:
                yield finding.result(timeframe, name)


def _unexplained(found: Sequence[SeriesGaps]) -> Finding:
    lacking = sorted(
        ((sum(gap.bars for gap in one.gaps), one) for one in found if one.gaps or one.error),
        key=lambda pair: -pair[0],
    )
    rows: Rows = [
        (one.series.symbol, bars, len(one.gaps), one.error or f"{one.gaps[-1].reason}: "
         f"{one.gaps[-1].detail}")
        for bars, one in lacking[:NAMED_AT_MOST]
    ]  # fmt: skip
    columns = ("symbol", "bars missing", "gaps", "the newest, why")
    return Finding(len(lacking), len(found), "series lack bars without a reason", columns, rows)


def _fresh(found: Sequence[SeriesGaps], index: GapIndex, now: datetime) -> Finding:
    stale = [one for one in found if is_stale(one, index.calendars, now)]
    rows: Rows = [
        (one.series.symbol, one.covered_until, f"{stale_s(one, index.calendars, now) / 3600:.1f} h")
        for one in stale[:NAMED_AT_MOST]
    ]
    threshold_s = IbLimitsRegistry.GAP_THRESHOLDS_S.value[found[0].series.timeframe] if found else 0
    what = f"tails are more than {threshold_s / 3600:g} h of open session behind"
    return Finding(len(stale), len(found), what, ("symbol", "covered until", "behind"), rows)


def _basis(found: Sequence[SeriesGaps]) -> Finding:
    told = [(one.series, one.disagreements) for one in found]
    return _differing(told, "series have held bars that came again at other prices")


def _volume(found: Sequence[SeriesGaps]) -> Finding:
    told = [(one.series, one.volume_jumps) for one in found]
    return _differing(told, "series have volumes in shares beside volumes in lots of 100")


def _differing(told: Sequence[tuple[Series, Sequence[Disagreement]]], what: str) -> Finding:
    """Return the series with bars that differ from others by a ratio, the newest of each named."""
    differing = [(series, ones) for series, ones in told if ones]
    rows: Rows = [
        (
            series.symbol,
            f"{last.ratio:.4g}",
            last.bars,
            f"{last.first:%Y-%m-%d %H:%MZ} to {last.last:%Y-%m-%d %H:%MZ}",
            f"ktrdr load {series.symbol} {series.timeframe} --refresh",
        )
        for series, ones in differing[:NAMED_AT_MOST]
        for last in ones[-1:]
    ]
    if rows:
        symbol, ratio, *_, hint = rows[0]
        what += f" ({symbol}: {ratio} times). Hint: `{hint}` requests all of it again"
    columns = ("symbol", "ratio", "bars", "from and to", "requests all of it again")
    return Finding(len(differing), len(told), what, columns, rows)


def _check_files(
    found: Sequence[SeriesGaps], index: GapIndex, since: date
) -> Mapping[str, CheckedBars | StoreError]:
    """Examine the files that may hold bars since a date, by name."""
    files: dict[str, CheckedBars | StoreError] = {}
    layout = index.store.layout
    for one in found:
        sec_type = one.series.instrument.sec_type
        known = index.store.ledger.findings(series_key(one.series))
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


def _order(files: Mapping[str, CheckedBars | StoreError]) -> Finding:
    rows: Rows = []
    for name, one in files.items():
        if isinstance(one, StoreError):
            rows.append((name, "", "", one))
        elif one.out_of_order or one.duplicates:
            rows.append((name, one.out_of_order, one.duplicates, one.first_misplaced))
    columns = ("file", "out of order", "twice", "first")
    what = "files have bars out of order or twice"
    return Finding(len(rows), len(files), what, columns, rows[:NAMED_AT_MOST])


def _sane(files: Mapping[str, CheckedBars | StoreError]) -> Finding:
    """Return which bars have values that cannot be.

    Damage is an error: a repair or another request removes it. Bars with findings alone pass, and
    are counted: they are what the gateway has, nothing removes them, and a check that fails for
    ever would hide the damage that comes later.
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
        what += f"; {kept} more are kept as it returned them, ktrdr verify lists them"
    return Finding(
        count,
        sum(one.rows for one in good.values()),
        what,
        ("file", "bars", "first"),
        rows[:NAMED_AT_MOST],
        severity=dg.AssetCheckSeverity.ERROR if count else dg.AssetCheckSeverity.WARN,
        kept=kept,
    )


INTEGRITY: Final = "file_integrity"
_TEXT: Final = "No bar file is damaged: a thirtieth of them is read whole each day."


def integrity_checks(
    timeframes: Iterable[Timeframe], clock: Clock = system_now
) -> dg.AssetChecksDefinition:
    """Make the check of the files of each timeframe."""
    specs = [
        dg.AssetCheckSpec(INTEGRITY, asset=bars_key(timeframe), description=_TEXT)
        for timeframe in timeframes
    ]

    @dg.multi_asset_check(name="integrity_checks", specs=specs, can_subset=True)
    def checks(
        context: dg.AssetCheckExecutionContext, store: StoreResource
    ) -> Iterator[dg.AssetCheckResult]:
        calendars = {one.symbol: one.calendar for one in store.universe().instruments.values()}
        layout = store.layout()
        ledger = Ledger(layout.ledger)
        chosen = {key.asset_key for key in context.selected_asset_check_keys}
        for timeframe in Timeframe:
            if bars_key(timeframe) in chosen:
                bars = BarStore(layout, ledger)
                found = _checked(bars, timeframe, calendars, clock)
                yield found.result(timeframe, INTEGRITY)

    return checks


def integrity_schedule() -> dg.ScheduleDefinition:
    """Make the schedule that reads a thirtieth of the files, daily."""
    return schedule_of_checks(
        "integrity_schedule",
        "41 3 * * *",
        selected_checks(INTEGRITY),
        "Reads a thirtieth of the bar files whole, and names those that are damaged.",
    )


def _checked(
    store: BarStore, timeframe: Timeframe, calendars: dict[str, str], clock: Clock
) -> Finding:
    """Read the files that are due, and name all that are known to be damaged."""
    read = 0
    for symbol, paths in due_files(store, timeframe).items():
        calendar = calendar_named(calendars[symbol]) if symbol in calendars else None
        for _ in check_files(store, symbol, timeframe, paths, calendar=calendar, at=clock()):
            read += 1
    folder = f"/timeframe={timeframe}/"
    damaged = [(name, why) for name, why in damaged_files(store).items() if folder in name]
    what = f"files are known to be damaged; {read} were read whole this time"
    if damaged:
        what += ". Hint: `ktrdr repair` quarantines them and says what to load again"
    files = sum(
        len(store.layout.bar_files(*key)) for key in store.series_on_disk() if key[1] is timeframe
    )
    return Finding(
        len(damaged),
        files,
        what,
        ("file", "damage"),
        [tuple(row) for row in damaged[:NAMED_AT_MOST]],
        severity=dg.AssetCheckSeverity.ERROR,
    )
