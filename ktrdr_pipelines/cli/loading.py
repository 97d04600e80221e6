"""Running jobs for a command: progress, the catalog at the end, the report, the exit code.

Not here: which jobs (``cli.jobs``), how a load works (``load``).
"""

from collections.abc import Sequence

from ktrdr_pipelines.cli.load_report import exit_code_of, tell
from ktrdr_pipelines.cli.place import Place, renew_catalog
from ktrdr_pipelines.cli.progress import load_progress, tell_notes
from ktrdr_pipelines.cli.stopping import run_stoppable
from ktrdr_pipelines.core.instruments import Series
from ktrdr_pipelines.errors import ExitCode, KtrdrError
from ktrdr_pipelines.load.opening import open_manager
from ktrdr_pipelines.load.outlook import Job
from ktrdr_pipelines.load.reports import Progress, SeriesReport


def load_jobs(place: Place, jobs: Sequence[Job], *, as_json: bool, wait_s: float = 0.0) -> ExitCode:
    """Load, tell how it ended, and give the exit code; jobs of one series are one line.

    ``wait_s`` is how long to wait for a gateway that lets the load connect.
    """
    with load_progress(shown=not as_json) as notes:
        reports = _joined(_run(place, jobs, notes, wait_s))
    if not as_json:
        tell_notes(notes)
    catalog_error = _renewed(place)
    place.layout.require_same()
    tell(reports, notes, catalog_error, calendars=place.calendars(), as_json=as_json)
    return exit_code_of(reports, catalog_error)


def _run(
    place: Place, jobs: Sequence[Job], progress: Progress, wait_s: float
) -> list[SeriesReport]:
    """Load; where that is cut short, the catalog still comes to show what was saved."""
    manager = open_manager(
        place.settings, place.layout, operation="cli", progress=progress, wait_s=wait_s
    )
    try:
        return run_stoppable(manager.run(jobs))
    except BaseException:
        _renewed(place)
        raise


def _joined(reports: Sequence[SeriesReport]) -> list[SeriesReport]:
    joined: dict[Series, SeriesReport] = {}
    for report in reports:
        before = joined.get(report.series)
        joined[report.series] = report if before is None else before.then(report)
    return list(joined.values())


def _renewed(place: Place) -> KtrdrError | None:
    """Make the catalog show what the files hold; give what speaks against it."""
    try:
        renew_catalog(place.layout, place.universe)
    except KtrdrError as error:
        return error
    return None
