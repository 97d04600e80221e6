"""What a running load shows on the terminal: a bar for every series, on stderr.

Not here: the table at the end (``cli.load_report``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final

from ktrdr_pipelines.cli.output import console, instant_text, note
from ktrdr_pipelines.core.instruments import Series

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import Task, TaskID

MOST_SHOWN: Final = 12
"""Series above which a finished one makes room: a terminal is not higher than its window."""


@dataclass(slots=True)
class Notes:
    """Keeps what a load says by the way, each thing once; shows nothing but waits."""

    texts: dict[Series, list[str]] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    def planned(self, series: Series, requests: int) -> None:
        """Ignore it."""

    def answered(self, series: Series, rows: int) -> None:
        """Ignore it."""

    def saved(self, series: Series) -> None:
        """Ignore it."""

    def noted(self, series: Series, text: str) -> None:
        """Keep it."""
        kept = self.texts.setdefault(series, [])
        if text not in kept:
            kept.append(text)

    def noticed(self, text: str) -> None:
        """Keep it."""
        if text not in self.notices:
            self.notices.append(text)

    def waiting(self, text: str, until: datetime) -> None:
        """Tell it now: else a load that waits looks like one that hangs."""
        self.tell(f"waiting until {instant_text(until)}: {text}")

    def tell(self, text: str) -> None:
        """Print a line beside the result, now."""
        note(text)


class TerminalProgress(Notes):
    """Moves a bar for every series, and keeps the notes for the end."""

    def __init__(self, bars: "Bars") -> None:
        super().__init__()
        self._bars = bars
        self._tasks: dict[Series, TaskID] = {}
        self._rows: dict[Series, int] = {}

    def planned(self, series: Series, requests: int) -> None:
        """Lengthen the bar of a series."""
        task = self._task(series)
        self._bars.update(task.id, total=(task.total or 0) + requests, visible=True)

    def answered(self, series: Series, rows: int) -> None:
        """Move the bar of a series."""
        task = self._task(series)
        self._rows[series] = self._rows.get(series, 0) + rows
        rows_per_s = self._rows[series] / task.elapsed if task.elapsed else 0.0
        self._bars.update(
            task.id, advance=1, rows=f"{self._rows[series]:,}", rate=f"{rows_per_s:,.0f}"
        )
        if task.finished and len(self._tasks) > MOST_SHOWN:
            self._bars.update(task.id, visible=False)

    def tell(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, soft_wrap=True)

    def _task(self, series: Series) -> "Task":
        if series not in self._tasks:
            self._tasks[series] = self._bars.add_task(str(series), total=0, rows="0", rate="0")
        return next(task for task in self._bars.tasks if task.id == self._tasks[series])


@contextmanager
def load_progress(*, shown: bool) -> Iterator[Notes]:
    """Show the progress of a load while the context lasts, where a person looks at it."""
    screen = console(err=True)
    if not shown or not screen.is_terminal:
        yield Notes()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests  {task.fields[rows]} bars  {task.fields[rate]} bars/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen) as bars:
        yield TerminalProgress(bars)


def tell_notes(notes: Notes) -> None:
    """Print what a load said by the way."""
    for text in notes.notices:
        note(text)
    for series, texts in notes.texts.items():
        for text in texts:
            note(f"{series}: {text}")
