"""The progress of a load: a bar for each series that is loaded, and a line for all of them.

On a terminal the bars stay at the bottom of the screen. Elsewhere a line is printed now and then.
What a load reports of its series is collected, and printed at the end.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from ktrdr_pipelines.cli.output import console, counted, instant_text, local_text, note
from ktrdr_pipelines.clock import boot_time_s
from ktrdr_pipelines.domain.instruments import Series

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

    from ktrdr_pipelines.domain.planning.reports import SeriesReport

MOST_SHOWN: Final = 12
"""Series above which finished ones are hidden, so that the bars fit into the terminal."""

LINE_EVERY_S: Final = 60.0
"""Seconds between two lines about a load without a terminal, at least."""

LINE_AFTER_S: Final = 600.0
"""Seconds after which there is a line though less than a percent more is done."""

_RATE_FROM: Final = 3
"""Requests that must be done before the remaining time is estimated from them."""


class LoadTally:
    """Counts the requests of a load, done and expected, and estimates the time that is left.

    A series that has begun counts with the requests that it has planned, another with those that
    the estimate expects.

    Args:
        expected: the requests that are expected of each series.
        clock: seconds.
    """

    def __init__(
        self, expected: Mapping[Series, int], clock: Callable[[], float] = boot_time_s
    ) -> None:
        self._expected, self._clock = dict(expected), clock
        self._planned: Counter[Series] = Counter()
        self._begun_s = clock()
        self.done = self.bars = 0

    def planned(self, series: Series, requests: int) -> None:
        """Count planned requests, which replace the expected ones of the series."""
        self._expected.pop(series, None)
        self._planned[series] += requests

    def answered(self, bars: int) -> None:
        """Count a request that is done."""
        self.done += 1
        self.bars += bars

    def ended(self, series: Series) -> None:
        """Count nothing more of a series that has ended."""
        self._expected.pop(series, None)

    @property
    def total(self) -> int:
        """The requests that are expected in the whole load."""
        return max(self._planned.total() + sum(self._expected.values()), self.done)

    @property
    def percent(self) -> int:
        """How many percent of the requests are done, rounded down."""
        return self.done * 100 // self.total if self.total else 0

    @property
    def elapsed_s(self) -> float:
        """The seconds since the load began."""
        return self._clock() - self._begun_s

    @property
    def left_s(self) -> float | None:
        """The seconds that are left at the rate so far; None while that is unknown."""
        if self.done < _RATE_FROM:
            return None
        return self.elapsed_s * (self.total - self.done) / self.done

    def __str__(self) -> str:
        from ktrdr_pipelines.gaps.estimates import time_text

        left_s = self.left_s
        left = "" if left_s is None else f", about {time_text(left_s)} left"
        return (
            f"{self.percent} % of {counted(self.total, 'request')}, {counted(self.bars, 'bar')}"
            f"{left}"
        )


@dataclass(slots=True)
class CollectedMessages:
    """Collects the messages of a load, each once, and its reports; waits are printed at once.

    With a ``tally`` it prints how far the load is, at most once a minute.
    """

    texts: dict[Series, list[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    reports: "list[SeriesReport]" = field(default_factory=list)
    tally: LoadTally | None = None
    _printed: tuple[float, int] = (0.0, 0)

    def planned(self, series: Series, requests: int) -> None:
        """Count planned requests."""
        if self.tally is not None:
            self.tally.planned(series, requests)

    def answered(self, series: Series, rows: int) -> None:
        """Count a request that is done."""
        _ = series
        if self.tally is not None:
            self.tally.answered(rows)
            self._print_when_due(self.tally)

    def _print_when_due(self, tally: LoadTally) -> None:
        at_s, percent = self._printed
        passed_s = tally.elapsed_s - at_s
        if passed_s >= (LINE_EVERY_S if tally.percent > percent else LINE_AFTER_S):
            self._printed = tally.elapsed_s, tally.percent
            self.print_now(str(tally))

    def saved(self, series: Series) -> None:
        """Do nothing."""

    def noted(self, series: Series, text: str) -> None:
        """Collect a message about a series."""
        kept = self.texts.setdefault(series, [])
        if text not in kept:
            kept.append(text)

    def noticed(self, text: str) -> None:
        """Collect a message about the load."""
        if text not in self.notices:
            self.notices.append(text)

    def waiting(self, text: str, until: datetime) -> None:
        """Print the wait immediately, so that a waiting load does not look like one that hangs."""
        self.print_now(f"waiting until {instant_text(until)}{local_text(until)}: {text}")

    def drop(self, text: str) -> None:
        """Drop a message about any series."""
        for texts in self.texts.values():
            texts[:] = [one for one in texts if one != text]

    def ended(self, report: "SeriesReport") -> None:
        """Keep the report, also for a load that is stopped."""
        self.reports.append(report)
        if self.tally is not None:
            self.tally.ended(report.series)

    def print_now(self, text: str) -> None:
        """Print a line to stderr immediately."""
        note(text)


class TerminalProgress(CollectedMessages):
    """Shows a progress bar for every series, one for the load, and collects the messages.

    Args:
        bars: where the bars of the series are shown.
        total: where the bar of the load is shown; None for none.
        tally: the counts of the load.
    """

    def __init__(
        self, bars: "Bars", total: "Bars | None" = None, tally: LoadTally | None = None
    ) -> None:
        super().__init__(tally=tally)
        self._bars, self._total = bars, total
        self._tasks: dict[Series, TaskID] = {}
        self._rows: dict[Series, int] = {}
        self._all = None if total is None else total.add_task("all", total=None, text="")
        self._show_total()

    def planned(self, series: Series, requests: int) -> None:
        """Add requests to the bar of a series."""
        super().planned(series, requests)
        task = self._task(series)
        self._bars.update(task.id, total=(task.total or 0) + requests, visible=True)
        self._show_total()

    def answered(self, series: Series, rows: int) -> None:
        """Advance the bar of a series by one request."""
        super().answered(series, rows)
        task = self._task(series)
        self._rows[series] = self._rows.get(series, 0) + rows
        rows_per_s = self._rows[series] / task.elapsed if task.elapsed else 0.0
        self._bars.update(
            task.id, advance=1, rows=f"{self._rows[series]:,}", rate=f"{rows_per_s:,.0f}"
        )
        self._hide_finished()
        self._show_total()

    def ended(self, report: "SeriesReport") -> None:
        """Hide the bar of the series among many, and keep the report."""
        super().ended(report)
        if report.series in self._tasks and len(self._tasks) > MOST_SHOWN:
            self._bars.update(self._tasks[report.series], visible=False)
        self._show_total()

    def _hide_finished(self) -> None:
        if len(self._tasks) > MOST_SHOWN:
            for task in self._bars.tasks:
                if task.finished and task.visible:
                    self._bars.update(task.id, visible=False)

    def _show_total(self) -> None:
        if self._total is not None and self._all is not None and self.tally is not None:
            tally = self.tally
            self._total.update(
                self._all, completed=tally.done, total=tally.total or None, text=str(tally)
            )

    def _print_when_due(self, tally: LoadTally) -> None:
        """Print nothing: the bars show it."""

    def print_now(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, soft_wrap=True)

    def _task(self, series: Series) -> "Task":
        if series not in self._tasks:
            self._tasks[series] = self._bars.add_task(str(series), total=0, rows="0", rate="0")
        return next(task for task in self._bars.tasks if task.id == self._tasks[series])


@contextmanager
def load_progress(
    *,
    shown: bool,
    expected: Mapping[Series, int] | None = None,
    screen: "Console | None" = None,
) -> Iterator[CollectedMessages]:
    """Show the progress of a load while the context lasts: bars on a terminal, else some lines.

    Args:
        shown: whether anything is shown at all.
        expected: the requests that are expected of each series; None for no total.
        screen: where it is shown; None for stderr.
    """
    screen = screen or console(err=True)
    tally = None if expected is None or not shown else LoadTally(expected)
    if not shown or not screen.is_terminal:
        yield CollectedMessages(tally=tally)
        return
    from rich.console import Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rows]} bars  {task.fields[rate]}/s"),
        TimeElapsedColumn(),
        console=screen,
    )
    total = Progress(BarColumn(bar_width=12), TextColumn("{task.fields[text]}"), console=screen)
    shown_bars = bars if tally is None else Group(bars, total)
    with Live(shown_bars, console=screen, refresh_per_second=8):
        yield TerminalProgress(bars, None if tally is None else total, tally)


def print_messages(messages: CollectedMessages) -> None:
    """Print the collected messages of a load."""
    for text in messages.notices:
        note(text)
    for series, texts in messages.texts.items():
        for text in texts:
            note(f"{series}: {text}")
