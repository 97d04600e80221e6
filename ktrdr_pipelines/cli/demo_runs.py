"""Run Dagster for ``ktrdr demo``: one ranged run a timeframe, in this process.

Their gateway resource gets a second listener, which shows live progress on the terminal.

Not here: the command and its output (``cli.commands.demo``).
"""

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import dagster as dg

from ktrdr_pipelines.app.setup import prepare_home, put_universe
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.cli.entry_point import Stopped
from ktrdr_pipelines.cli.load_report import joined_gaps
from ktrdr_pipelines.cli.progress import load_progress
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.defs.partitions import BarPartition, symbols_partitions, window_dates
from ktrdr_pipelines.defs.resources import IbResource
from ktrdr_pipelines.domain.instruments import Origin, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.reports import Progress, SeriesReport
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.settings import Settings, effective_settings
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.sync.runner import LoadManager


@dataclass(slots=True)
class Tally:
    """Counts the requests of a run and the bars received."""

    requests: int = 0
    rows: int = 0

    def planned(self, series: Series, requests: int) -> None:
        """Do nothing."""

    def answered(self, series: Series, rows: int) -> None:  # noqa: ARG002  (a listener's signature)
        """Count one request and its bars."""
        self.requests += 1
        self.rows += rows

    def saved(self, series: Series) -> None:
        """Do nothing."""

    def noted(self, series: Series, text: str) -> None:
        """Do nothing."""

    def noticed(self, text: str) -> None:
        """Do nothing."""

    def waiting(self, text: str, until: datetime) -> None:
        """Do nothing."""

    def ended(self, report: SeriesReport) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Passes the events of one load to several listeners, in order."""

    all: tuple[Progress, ...]

    def planned(self, series: Series, requests: int) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.planned(series, requests)

    def answered(self, series: Series, rows: int) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.answered(series, rows)

    def saved(self, series: Series) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.saved(series)

    def noted(self, series: Series, text: str) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.noted(series, text)

    def noticed(self, text: str) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.noticed(text)

    def waiting(self, text: str, until: datetime) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.waiting(text, until)

    def ended(self, report: SeriesReport) -> None:
        """Pass the event to all listeners."""
        for one in self.all:
            one.ended(report)


def watched(ib: IbResource, *listeners: Progress) -> IbResource:
    """Return the same resource, whose loads also report to these listeners.

    A class defined here holds them: Dagster rebuilds resources from their fields for every run.
    """

    class WatchedIb(IbResource):
        """An IbResource with more listeners."""

        def manager(
            self, workspace: Workspace, *, operation: str, progress: Progress
        ) -> LoadManager:
            """Return a manager that reports to all listeners."""
            everyone = Listeners((progress, *listeners))
            return super().manager(workspace, operation=operation, progress=everyone)

    return WatchedIb(**ib.model_dump())


UNIVERSE: Final = """\
# The universe of `ktrdr demo`.
defaults: {{timeframes: [1m, 1h, 1d], start: {start}}}
windows: {{1m: {minutes_year}, yearly: {year}}}
symbols:
  AAPL: {{}}
  MSFT: {{}}
  EURUSD: {{}}
"""

_OVERRIDES: Final[dict[str, Any]] = {
    "telemetry": {"enabled": False},
    # Capturing the output of steps costs two processes a run, and there is none to capture.
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    },
}
_QUIET: Final = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True, slots=True)
class RunResult:
    """One ranged run: its windows, requests and bars, and why it failed, if it did."""

    timeframe: str
    first_window: str
    last_window: str
    windows: int
    requests: int
    bars: int
    took_s: float
    error: str = ""


def demo_workspace(settings: Settings, folder: Path, port: int) -> Workspace:
    """Create the store of the demo and return its workspace, with the simulated gateway on a port.

    The state that processes share about that gateway lies in the store: no other program uses it.
    """
    layout = create_store(folder, Origin.SIMULATED)
    windows = demo_windows(settings.clock.market_now().date())
    year, minutes_year = windows[Timeframe.D1][0], windows[Timeframe.M1][0]
    text = UNIVERSE.format(start=f"{year}-01-01", minutes_year=minutes_year, year=year)
    put_universe(layout, text.encode())
    own = {"ib_host": "127.0.0.1", "ib_port": port}
    folders = {"ktrdr_data": layout.root, "ktrdr_state": layout.state / "gateway"}
    workspace = Workspace(effective_settings(flags=own | folders), layout)
    workspace.renew_catalog()
    return workspace


def run_demo(workspace: Workspace, *, shown: bool) -> list[RunResult]:
    """Run every timeframe of the demo, longest first, and return the results.

    Raises:
        Stopped: a signal ended a run.
    """
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    home = prepare_home(workspace.layout)
    results = []
    with (
        dg.DagsterInstance.local_temp(str(home), overrides=_OVERRIDES) as instance,
        load_progress(shown=shown) as progress,
    ):
        for timeframe, windows in demo_windows(workspace.now.date()).items():
            result = _run(workspace, instance, progress, timeframe=timeframe, windows=windows)
            results.append(result)
            if shown:
                progress.print_now(_run_text(result))
    return results


def demo_windows(today: date) -> dict[Timeframe, tuple[str, str]]:
    """Return the first and last window of each run: five years, one year, and this year.

    In January, minutes begin a year earlier: there would be too few bars to show.
    """
    year = today.year
    return {
        Timeframe.D1: (str(year - 5), str(year)),
        Timeframe.H1: (str(year - 1), str(year)),
        Timeframe.M1: (str(year - (today.month == 1)), str(year)),
    }


def gaps_in_windows(
    workspace: Workspace, runs: Sequence[RunResult]
) -> Iterator[tuple[Series, list[Interval]]]:
    """Yield each series with its gaps in the windows that were run."""
    index, now = workspace.gap_index(), workspace.now
    for series in workspace.universe.series():
        for run in (one for one in runs if one.timeframe == series.timeframe):
            dates = window_dates(run.first_window)[0], window_dates(run.last_window)[1]
            [window] = index.windows(series, {run.timeframe: dates}, now).values()
            calendar = index.calendars.of(series.instrument)
            yield series, joined_gaps(series, window.unexplained, calendar)


def _run(
    workspace: Workspace,
    instance: dg.DagsterInstance,
    progress: Progress,
    *,
    timeframe: Timeframe,
    windows: tuple[str, str],
) -> RunResult:
    definitions = build_defs(workspace.settings)
    resources, tally = dict(definitions.resources or {}), Tally()
    resources["ib"] = watched(resources["ib"], progress, tally)
    key = bars_key(timeframe)
    assets = [
        one
        for one in definitions.assets or ()
        if isinstance(one, dg.AssetsDefinition) and key in one.keys
    ]
    started_s = time.perf_counter()
    try:
        done = dg.materialize(
            assets,
            instance=instance,
            resources=resources,
            run_config=_QUIET,
            tags=_range_tags(workspace, instance, timeframe, windows),
            raise_on_error=False,
        )
    except dg.DagsterExecutionInterruptedError as error:
        raise Stopped(signal.SIGINT) from error
    errors = (event.step_failure_data.error for event in done.get_step_failure_events())
    failure = "; ".join(str(error.message).strip() for error in errors if error is not None)
    if dg.DagsterExecutionInterruptedError.__name__ in failure:
        raise Stopped(signal.SIGINT)
    return RunResult(
        timeframe=str(timeframe),
        first_window=windows[0],
        last_window=windows[1],
        windows=len(
            # The result of the run has no events that were recorded as one batch.
            instance.all_logs(done.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        ),
        requests=tally.requests,
        bars=tally.rows,
        took_s=round(time.perf_counter() - started_s, 2),
        error=failure,
    )


def _range_tags(
    workspace: Workspace,
    instance: dg.DagsterInstance,
    timeframe: Timeframe,
    windows: tuple[str, str],
) -> dict[str, str]:
    """Register all symbols as partitions, and return the tags of a run over a range of windows."""
    name = str(symbols_partitions(timeframe).name)
    symbols = [series.symbol for series in workspace.universe.series(timeframe)]
    instance.add_dynamic_partitions(name, symbols)
    known = instance.get_dynamic_partitions(name)
    return {
        "dagster/asset_partition_range_start": str(BarPartition(known[0], windows[0]).key),
        "dagster/asset_partition_range_end": str(BarPartition(known[-1], windows[1]).key),
    }


def _run_text(result: RunResult) -> str:
    state = f"failed ({result.error})" if result.error else "done"
    return (
        f"Dagster run of {result.timeframe}, {result.first_window} to {result.last_window}: "
        f"{state}, {result.windows} windows, {result.requests} requests, "
        f"{result.bars:,} bars, {result.took_s:.1f} s"
    )
