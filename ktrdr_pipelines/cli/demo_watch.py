"""Watching a Dagster run from the terminal: the gateway's resource, with a second listener.

Not here: what the run itself listens to (``defs.runs``), what is shown (``cli.progress``).
"""

from dataclasses import dataclass
from datetime import datetime

from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.defs.resources import IbResource
from ktrdr_pipelines.load.manager import LoadManager
from ktrdr_pipelines.load.reports import Progress
from ktrdr_pipelines.store.layout import StoreLayout


@dataclass(slots=True)
class Tally:
    """Counts the requests of a run and the bars that came."""

    requests: int = 0
    rows: int = 0

    def planned(self, series: Series, requests: int) -> None:
        """Ignore it."""

    def answered(self, series: Series, rows: int) -> None:  # noqa: ARG002  (a listener's signature)
        """Count it."""
        self.requests += 1
        self.rows += rows

    def saved(self, series: Series) -> None:
        """Ignore it."""

    def noted(self, series: Series, text: str) -> None:
        """Ignore it."""

    def noticed(self, text: str) -> None:
        """Ignore it."""

    def waiting(self, text: str, until: datetime) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Several listeners to one load, told in their order."""

    all: tuple[Progress, ...]

    def planned(self, series: Series, requests: int) -> None:
        """Tell all."""
        for one in self.all:
            one.planned(series, requests)

    def answered(self, series: Series, rows: int) -> None:
        """Tell all."""
        for one in self.all:
            one.answered(series, rows)

    def saved(self, series: Series) -> None:
        """Tell all."""
        for one in self.all:
            one.saved(series)

    def noted(self, series: Series, text: str) -> None:
        """Tell all."""
        for one in self.all:
            one.noted(series, text)

    def noticed(self, text: str) -> None:
        """Tell all."""
        for one in self.all:
            one.noticed(text)

    def waiting(self, text: str, until: datetime) -> None:
        """Tell all."""
        for one in self.all:
            one.waiting(text, until)


def watched(ib: IbResource, *listeners: Progress) -> IbResource:
    """Give the same resource, whose loads tell these listeners too.

    A class made here holds them: Dagster makes resources anew from their fields for every run.
    """

    class WatchedIb(IbResource):
        """An IbResource that is listened to."""

        def manager(
            self, layout: StoreLayout, *, operation: str, progress: Progress
        ) -> LoadManager:
            """Make a manager that tells everyone."""
            everyone = Listeners((progress, *listeners))
            return super().manager(layout, operation=operation, progress=everyone)

    return WatchedIb(**ib.model_dump())
