"""How a run that loads ends: a new catalog, tags that say to sensors how it went.

A gateway that is away is noted for all runs.

Not here: what is loaded (``defs.bars_run``, ``defs.tail_run``), who reads the tags
(``defs.alert_sensor``, ``defs.gap_sensor``).
"""

from collections.abc import Iterable, Sequence

import dagster as dg

from ktrdr_pipelines.clock import Clock
from ktrdr_pipelines.core.instruments import Instrument
from ktrdr_pipelines.core.outages import GATEWAY, outage_of
from ktrdr_pipelines.defs.tags import CAUSE, KILLED, QUIET, REQUESTS, YES
from ktrdr_pipelines.errors import GatewayError, IncompleteError, KtrdrError, StoreError
from ktrdr_pipelines.load.absence import AbsenceFile
from ktrdr_pipelines.load.catalog import renew_catalog
from ktrdr_pipelines.load.gapbook import GapBook
from ktrdr_pipelines.load.reports import SeriesReport
from ktrdr_pipelines.store.layout import StoreLayout


class RunEnding:
    """Says how one run ended."""

    def __init__(
        self,
        context: dg.AssetExecutionContext | dg.OpExecutionContext,
        layout: StoreLayout,
        clock: Clock,
    ) -> None:
        self._instance, self._run_id = context.instance, context.run.run_id
        self._log = context.log
        self._layout, self._clock = layout, clock

    def renew_catalog(self, book: GapBook, instruments: Sequence[Instrument]) -> None:
        """Renew the catalog, and say where it cannot be.

        One unreadable file of any symbol speaks against that, and the run's bars are saved all the
        same: what fails by it is the catalog's own asset, hourly, not the runs of all symbols.
        """
        try:
            renew_catalog(book, instruments, self._clock.market_now())
        except StoreError as error:
            self._log.error("The bars are saved, the catalog is not up to date: %s", error)

    def failed(self, error: KtrdrError) -> dg.Failure:
        """Take note of what ended a load, and give the failure of the run."""
        self._tag({CAUSE: type(error).__name__})
        if isinstance(error, GatewayError) and outage_of(type(error).__name__) == GATEWAY:
            AbsenceFile(self._layout).note(self._clock.real_now(), str(error))
        return dg.Failure(str(error), allow_retries=False)

    def incomplete(self, text: str, reports: Iterable[SeriesReport]) -> dg.Failure:
        """Take note that something could not be had, and give the failure of the run."""
        causes = [type(failure).__name__ for report in reports for failure in report.failures]
        shared = (cause for cause in causes if outage_of(cause) == GATEWAY)
        self._tag({CAUSE: next(shared, IncompleteError.__name__)})
        return dg.Failure(text, allow_retries=False)

    def interrupted(self) -> None:
        """Take note that a signal ended the run with all of Dagster.

        It is no fault of the series, which may go on at once. A run that a person terminates is
        canceled, and its series waits.
        """
        run = self._instance.get_run_by_id(self._run_id)
        if run is not None and run.status is dg.DagsterRunStatus.STARTED:
            self._tag({CAUSE: KILLED})

    def well(self, *, requests: int, windows: int) -> None:
        """Take note of a good end: what was asked, and of how many windows was told."""
        tags = {REQUESTS: str(requests)} if requests else {}
        self._tag(tags | ({} if windows else {QUIET: YES}))

    def _tag(self, tags: dict[str, str]) -> None:
        if tags:
            self._instance.add_run_tags(self._run_id, tags)
