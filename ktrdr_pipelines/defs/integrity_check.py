"""The daily check of files: a thirtieth of them is read whole, and what is damaged is named.

DuckDB answers from damaged files without a word, so what is found here is refused by queries until
it is repaired. Not here: the reading and what is remembered (``store.integrity``), the other checks
(``defs.checks``).
"""

from collections.abc import Iterable, Iterator
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.checks import (
    NAMED_AT_MOST,
    Clock,
    Finding,
    schedule_of_checks,
    selected_checks,
)
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.store.integrity import check_files, damaged_files, due_files
from ktrdr_pipelines.store.ledger import Ledger
from ktrdr_pipelines.store.parquet import BarStore

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
        what += ". Hint: `ktrdr repair` sets them aside and says what to load again"
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
