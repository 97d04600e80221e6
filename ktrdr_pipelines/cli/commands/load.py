"""``ktrdr load``, ``ktrdr update`` and ``ktrdr plan``: request missing bars, or estimate it.

``load`` takes named series; ``update`` takes the tails and the gaps of the whole universe;
``plan`` estimates what either would cost, without a connection.

Not here: running the jobs and reporting the result (``cli.load_report``), the estimate
(``app.load_plan``, ``gaps.estimates``).
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import typer

from ktrdr_pipelines.cli.arguments import (
    EndOption,
    ListedTimeframes,
    ModeOption,
    PlannedSymbols,
    RefreshOption,
    SomeSymbols,
    StartOption,
    Symbols,
    Timeframes,
    Wait,
    WaitOption,
)
from ktrdr_pipelines.cli.output import (
    AsJson,
    counted,
    note,
    say,
    say_json,
    say_table,
)
from ktrdr_pipelines.errors import UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.arguments import TypedOptions
    from ktrdr_pipelines.domain.planning.jobs import Job
    from ktrdr_pipelines.gaps.estimates import SeriesEstimate

_COLUMNS: Final = {
    "series": "left",
    "from": "left",
    "to": "left",
    "requests": "right",
    "bars": "right",
    "on disk": "right",
    "time": "right",
}


def load(
    symbols: Symbols,
    timeframes: Timeframes,
    *,
    mode: ModeOption = "full",
    start: StartOption = None,
    end: EndOption = None,
    refresh: RefreshOption = False,
    wait: WaitOption = None,
    as_json: AsJson = False,
) -> None:
    """Load bars: request what is missing, save it, and report the gaps that remain.

    You can stop it at any time: what was saved is kept, and the same command requests the rest.
    It waits for a gateway that restarts or is in its nightly reset, and then goes on by itself.
    Ranges that failed or were refused earlier are retried immediately. Ranges that the gateway
    returned without bars are unconfirmed: they need a second response at least 15 minutes later,
    and the load says when.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 ranges are unexplained or unconfirmed,
    sessions are sparse, bars are on an unconfirmed price basis, or the gateway returned stored bars
    again at other prices or in another unit.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.arguments import TypedOptions, named_jobs
    from ktrdr_pipelines.cli.load_report import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem

    typed = TypedOptions(mode, start, end, refresh)
    typed.read()
    workspace = Workspace.open()
    warn_of_problem(workspace)
    jobs = named_jobs(workspace, symbols, timeframes, typed)
    waits = Wait.of(wait, workspace.settings.ktrdr_wait)
    raise typer.Exit(load_jobs(workspace, jobs, as_json=as_json, wait=waits))


def update(
    symbols: SomeSymbols = None,
    *,
    wait: WaitOption = None,
    as_json: AsJson = False,
) -> None:
    """Bring the whole universe up to date: newest bars first, then every gap.

    You can run it as often as you like. Covered ranges are not requested. Ranges that failed, are
    unconfirmed or are not permitted are deferred until their next attempt is due; ktrdr load
    retries them immediately. Symbols with `backfill: manual` are kept up to date; load their
    history with ktrdr load.

    Exit codes: 0 complete, 1 failed, 2 bad usage, 3 ranges are unexplained or unconfirmed,
    sessions are sparse, bars are on an unconfirmed price basis, or the gateway returned stored bars
    again at other prices or in another unit.
    """
    from ktrdr_pipelines.app.selection import update_jobs
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.arguments import note_symbol_named_all
    from ktrdr_pipelines.cli.load_report import load_jobs
    from ktrdr_pipelines.cli.output import warn_of_problem

    workspace = Workspace.open()
    warn_of_problem(workspace)
    note_symbol_named_all(workspace, symbols)
    jobs = update_jobs(workspace, symbols)
    left = sum(one.instrument.backfill == "manual" for one in workspace.universe.series())
    if left:
        note(f"{left} series have backfill: manual; load their history with ktrdr load")
    waits = Wait.of(wait, workspace.settings.ktrdr_wait)
    raise typer.Exit(load_jobs(workspace, jobs, as_json=as_json, wait=waits))


def plan(
    symbols: PlannedSymbols = None,
    timeframes: ListedTimeframes = None,
    *,
    mode: ModeOption = "full",
    start: StartOption = None,
    end: EndOption = None,
    refresh: RefreshOption = False,
    as_json: AsJson = False,
) -> None:
    """Estimate the requests, bars, disk space and time of a load; nothing is requested.

    Takes the arguments and options of ktrdr load; without arguments, it estimates ktrdr update.
    The numbers of bars are those that the calendar expects: a thin market has fewer, and so has a
    range before a listing date that is not known yet. No connection is opened.

    Exit codes: 0 done, 1 the store cannot be read, 2 bad usage.
    """
    from ktrdr_pipelines.app.load_plan import planned
    from ktrdr_pipelines.app.views.load_documents import PlanDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.arguments import TypedOptions
    from ktrdr_pipelines.cli.output import warn_of_problem

    typed = TypedOptions(mode, start, end, refresh)
    typed.read()
    workspace = Workspace.open()
    warn_of_problem(workspace)
    jobs = _planned_jobs(workspace, symbols, timeframes, typed)
    found = planned(workspace, jobs)
    if as_json:
        say_json(PlanDocument.of(found))
        return
    say_table(_COLUMNS, (_row(part) for part in found.parts if part.requests))
    if whole := sum(not part.requests for part in found.parts):
        say(f"{counted(whole, 'series', 'series')} with nothing to request")
    if found.requests:
        say(f"together: {found.summary}")
        for one in found.widths:
            say(str(one))
        say(f"time: {found.basis}")
    else:
        say("Nothing is missing that could be requested now.")


def _planned_jobs(
    workspace: "Workspace", symbols: str | None, timeframes: str | None, typed: "TypedOptions"
) -> "list[Job]":
    from ktrdr_pipelines.app.selection import update_jobs
    from ktrdr_pipelines.cli.arguments import named_jobs

    if symbols is not None:
        return named_jobs(workspace, symbols, timeframes, typed)
    if not typed.is_plain:
        raise UsageError(
            "options without symbols",
            reason="the plan of an update takes no options",
            hint="Name symbols, as for ktrdr load, or leave out the options",
        )
    return update_jobs(workspace)


def _row(part: "SeriesEstimate") -> tuple[str, ...]:
    from ktrdr_pipelines.gaps.estimates import size_text, time_text

    bounds = part.gaps.bounds
    return (
        str(part.series),
        f"{bounds.start.date()}" if bounds else "",
        # The end is exclusive: of daily bars the midnight after the last session date.
        f"{(bounds.end - timedelta.resolution).date()}" if bounds else "",
        f"{part.requests:,}",
        f"{part.bars:,}",
        size_text(part.size_bytes),
        time_text(part.seconds),
    )
