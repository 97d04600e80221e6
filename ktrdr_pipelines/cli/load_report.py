"""Run the jobs of a command and report the result.

A load shows its progress, rebuilds the catalog at the end, and prints a table, the gaps that
remain, their reasons and what to do. Gaps are joined over nights and weekends.

Not here: which jobs run (``cli.arguments``), loading (``sync.runner``).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from ktrdr_pipelines.app.views.documents import ErrorDocument
from ktrdr_pipelines.app.views.load_documents import LoadReportDocument, SeriesReportDocument
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.cli.arguments import Wait, typed_command
from ktrdr_pipelines.cli.entry_point import Stopped, run_stoppable
from ktrdr_pipelines.cli.output import (
    adjustment_text,
    counted,
    instant_text,
    interval_text,
    note,
    say,
    say_json,
    say_table,
)
from ktrdr_pipelines.cli.progress import CollectedMessages, load_progress, print_messages
from ktrdr_pipelines.domain.adjustments import Adjustment
from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.jobs import Job
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.errors import (
    EntitlementError,
    ExitCode,
    GatewayError,
    KtrdrError,
    StoreError,
)
from ktrdr_pipelines.gaps.estimates import time_text


def joined_gaps(series: Series, gaps: IntervalSet, calendar: SessionCalendar) -> list[Interval]:
    """Return the gaps, oldest first, joined where no other bar is expected between them."""
    follows = session_grid(calendar, series.timeframe).follow(gaps.starts, gaps.ends).tolist()
    joined: list[Interval] = []
    for gap, joins in zip(gaps, (False, *follows), strict=False):
        joined.append(Interval(joined.pop().start, gap.end) if joins else gap)
    return joined


MOST_GAPS: Final = 10
MOST_ROWS: Final = 40
"""Rows of a table; of more series, those that are complete are counted in one line."""

MOST_SYMBOLS: Final = 8
"""Symbols that a paragraph about a missing permission names."""

_BY: Final = "`ktrdr update`, a sensor or the same command"
"""What requests unconfirmed ranges and sparse sessions again."""
_COLUMNS: Final = {
    "series": "left",
    "result": "left",
    "requests": "right",
    "bars": "right",
    "new": "right",
    "revised": "right",
    "gaps": "right",
}


def exit_code_of(
    reports: Sequence[SeriesReport], catalog_error: KtrdrError | None = None
) -> ExitCode:
    """Return FAILED if a series or the catalog failed, else INCOMPLETE or DONE."""
    if catalog_error is not None or any(report.error is not None for report in reports):
        return ExitCode.FAILED
    complete = all(report.is_complete for report in reports)
    return ExitCode.DONE if complete else ExitCode.INCOMPLETE


def print_report(
    reports: Sequence[SeriesReport],
    messages: CollectedMessages,
    catalog_error: KtrdrError | None = None,
    *,
    calendars: Calendars,
    as_json: bool,
) -> None:
    """Print the result of a load."""
    if as_json:
        code = exit_code_of(reports, catalog_error)
        say_json(
            LoadReportDocument(
                complete=code is ExitCode.DONE,
                exit_code=int(code),
                series=tuple(
                    SeriesReportDocument.of(report, messages.texts.get(report.series, []))
                    for report in reports
                ),
                notices=tuple(messages.notices),
                catalog_error=ErrorDocument.of_any(catalog_error),
            )
        )
        return
    _say_series(reports, calendars)
    for line in (*_error_lines(reports), *permission_lines(reports)):
        say(line)
    for line in _gap_lines([one for one in reports if one.unexplained | one.deferred], calendars):
        say(line)
    for line in (*_refresh_lines(reports), *_unconfirmed_lines(reports), *_basis_lines(reports)):
        say(line)
    if catalog_error is not None:
        note(f"The bars are saved; the catalog is not up to date: {catalog_error}")


def _say_series(reports: Sequence[SeriesReport], calendars: Calendars) -> None:
    """Print a row for each series; of many, for those that are not complete as they were."""
    plain: list[SeriesReport] = []
    if len(reports) > MOST_ROWS:
        plain = [one for one in reports if _result(one) == "complete" and not one.revised]
    listed = [one for one in reports if one not in plain] if plain else list(reports)
    if listed:
        say_table(_COLUMNS, (_row(report, calendars) for report in listed))
    if plain:
        requests = counted(sum(one.requests for one in plain), "request")
        bars, added = sum(one.rows for one in plain), sum(one.added for one in plain)
        other = " other" if listed else ""
        say(f"{len(plain):,}{other} series complete: {requests}, {bars:,} bars, {added:,} new")


def _error_lines(reports: Sequence[SeriesReport]) -> Iterator[str]:
    """Return what ended series, each reason once: it is often that of several series."""
    failed: dict[tuple[str, str], dict[str, list[str]]] = {}
    for report in reports:
        error = report.error
        if error is not None and not is_permission_missing(error):
            same = failed.setdefault((error.reason, error.hint), {})
            same.setdefault(error.what, []).append(str(report.series))
    for (reason, hint), series in failed.items():
        if len(series) == 1 or not reason:
            for what, names in series.items():
                error = KtrdrError(what, reason=reason, hint=hint)
                yield f"{', '.join(names)} could not be loaded: {error}"
            continue
        yield f"{counted(len(series), 'failure')}: {KtrdrError(reason, hint=hint)}"
        yield from (f"  {', '.join(names)}: {what}" for what, names in series.items())


def _row(report: SeriesReport, calendars: Calendars) -> tuple[str, ...]:
    numbers = (
        report.requests,
        report.rows,
        report.added,
        report.revised,
        len(_joined_gaps(report, calendars)),
    )
    return (str(report.series), _result(report), *(f"{number:,}" for number in numbers))


def _result(report: SeriesReport) -> str:
    left = report.unexplained
    is_all_of_basis = not left - report.unconfirmed_basis
    states = (
        (report.error is not None, "failed"),
        (report.unconfirmed_bars and is_all_of_basis, "unconfirmed basis"),
        (report.unconfirmed and not left - report.unconfirmed, "unconfirmed"),
        (report.deferred and not left - report.deferred, "deferred"),
        (left, "incomplete"),
        (report.not_refreshed, "not all refreshed"),
        (report.sparse, "sparse"),
        (report.unit_changes, "other unit"),
        (report.disagreements, "other prices"),
        (report.waiting, "complete, session still open"),
    )
    return next((state for holds, state in states if holds), "complete")


def _gap_lines(reports: Sequence[SeriesReport], calendars: Calendars) -> Iterator[str]:
    gaps = [(report, part) for report in reports for part in _joined_gaps(report, calendars)]
    if not gaps:
        return
    yield f"{counted(len(gaps), 'interval')} unexplained:"
    for report, gap in gaps[:MOST_GAPS]:
        yield f"  {report.series}  {interval_text(report.series.timeframe, gap)}"
    if len(gaps) > MOST_GAPS:
        yield f"  and {len(gaps) - MOST_GAPS:,} more; --json lists all"
    yield from _reason_lines(reports, calendars)
    yield "What was saved is kept; the same command requests the rest."


def _refresh_lines(reports: Sequence[SeriesReport]) -> Iterator[str]:
    """Return lines for covered intervals that a refresh could not load again."""
    for report in reports:
        if report.not_refreshed:
            intervals = counted(len(report.not_refreshed), "interval")
            yield f"{report.series}: {intervals} could not be refreshed; stored bars are unchanged"
        if not report.unexplained:
            yield from _failure_lines(report)


def _unconfirmed_lines(reports: Sequence[SeriesReport]) -> Iterator[str]:
    """Return lines for covered ranges that are sparse or disagree with stored bars."""
    for report in reports:
        if report.sparse:
            sessions = counted(len(report.sparse), "sparse session")
            yield (
                f"{report.series}: {sessions}, with far fewer bars than the neighboring sessions; "
                f"{_BY} requests them once more, 15 minutes after the first request"
            )
        for found in (*report.disagreements, *report.volume_jumps):
            yield f"{report.series}: {found.text_for(report.series)}"


def _basis_lines(reports: Sequence[SeriesReport]) -> Iterator[str]:
    """Return lines for adjustments that were found, and for bars on an unconfirmed basis."""
    found: dict[tuple[str, Adjustment], list[str]] = {}
    for report in reports:
        for one in report.adjustments:
            found.setdefault((report.series.symbol, one), []).append(str(report.series.timeframe))
    for (symbol, one), timeframes in found.items():
        yield (
            f"{symbol}: the gateway has re-based it, {adjustment_text(one)}. Bars that were "
            "requested before are multiplied when they are read, of all timeframes; the files stay "
            f"as they are. `ktrdr load {symbol} {','.join(timeframes)} --refresh` requests them "
            "again"
        )
    for report in reports:
        if report.unconfirmed_bars:
            due = report.basis_due_at
            again = "" if due is None else f" at {instant_text(due)}"
            yield (
                f"{report.series}: {counted(report.unconfirmed_bars, 'bar')} on an unconfirmed "
                "price basis, as too few bars or responses show whether the gateway re-based them; "
                f"queries leave them out until a response confirms it. {_BY} requests them "
                f"again{again}"
            )


def _joined_gaps(report: SeriesReport, calendars: Calendars) -> list[Interval]:
    left = report.unexplained | report.deferred
    return joined_gaps(report.series, left, calendars.of(report.series.instrument))


def is_permission_missing(error: KtrdrError) -> bool:
    """Return whether an error is the refusal of a permission that is known by its name."""
    return isinstance(error, EntitlementError) and bool(error.entitlement)


def permission_lines(reports: Sequence[SeriesReport]) -> Iterator[str]:
    """Return one paragraph for each missing permission, with the symbols that it concerns."""
    refused: dict[str, list[tuple[str, EntitlementError]]] = {}
    for report in reports:
        for error in (report.error, *report.failures):
            if isinstance(error, EntitlementError) and error.entitlement:
                refused.setdefault(error.entitlement, []).append((report.series.symbol, error))
    for permission, found in refused.items():
        symbols = list(dict.fromkeys(symbol for symbol, _ in found))
        more = len(symbols) - MOST_SYMBOLS
        named = f"{', '.join(symbols[:MOST_SYMBOLS])}{f' and {more:,} more' if more > 0 else ''}"
        # The refusal itself says more than that it was not requested again.
        error = next((one for _, one in found if one.was_sent), found[0][1])
        hint = error.hint.removesuffix(f" The missing permission is {permission}")
        again = time_text(max(one.retry_in_s for _, one in found))
        yield (
            f"{permission} is not permitted, for {named}: {error.reason}. {hint} "
            f"ktrdr update and the sensors request it again in {again}, ktrdr load immediately."
        )


def _reason_lines(reports: Sequence[SeriesReport], calendars: Calendars) -> Iterator[str]:
    for report in reports:
        yield from _failure_lines(report)
        if report.unconfirmed and report.confirmed_at is not None:
            count = len(
                joined_gaps(
                    report.series, report.unconfirmed, calendars.of(report.series.instrument)
                )
            )
            ranges = counted(count, "unconfirmed range")
            yield (
                f"  {report.series}: {ranges}, returned without bars, to be confirmed at "
                f"{instant_text(report.confirmed_at)} by {_BY}"
            )
        rest = report.deferred - report.unconfirmed - report.unconfirmed_basis
        other = report.unexplained - report.unconfirmed - report.unconfirmed_basis
        if rest and report.next_try_at is not None:
            yield (
                f"  {report.series}: deferred until {instant_text(report.next_try_at)} "
                "after failed attempts; ktrdr load retries immediately"
            )
        elif other and report.no_data_until is not None:
            yield (
                f"  {report.series}: no_data, the gateway has no data of it at all; next attempt "
                f"at {instant_text(report.no_data_until)}; ktrdr load retries immediately"
            )
        elif other and not report.failures:
            yield f"  {report.series}: no response has covered it yet"


def _failure_lines(report: SeriesReport) -> Iterator[str]:
    others = (error for error in report.failures if not is_permission_missing(error))
    for reason, times in Counter(map(str, others)).most_common(3):
        often = f" ({times} times)" if times > 1 else ""
        yield f"  {report.series}: {reason}{often}"


def load_jobs(
    workspace: Workspace,
    jobs: Sequence[Job],
    *,
    as_json: bool,
    wait: Wait,
) -> int:
    """Run the jobs, print the result, and return the exit code; each series has one line.

    A load that a lost gateway or a signal ends prints what it has saved before the error.

    Args:
        workspace: the store, and the gateway that the bars come from.
        jobs: what is loaded.
        as_json: whether the result is printed as one document.
        wait: for how long the load waits for its gateway.
    """
    ended_by: KtrdrError | Stopped | None = None
    expected = None if as_json else _expected_requests(workspace, jobs)
    with load_progress(shown=not as_json, expected=expected) as messages:
        manager = workspace.load_manager(
            progress=messages, wait_s=wait.later_s, first_wait_s=wait.first_s
        )
        try:
            reports = run_stoppable(manager.run(jobs))
        except (KtrdrError, Stopped) as error:
            reports, ended_by = messages.reports, error
            messages.drop(str(error))  # it is printed once, at the end
    reports = _joined(reports)
    if not as_json:
        for failure in (one for report in reports for one in report.failures):
            if is_permission_missing(failure):
                messages.drop(str(failure))  # one paragraph for all symbols follows
        print_messages(messages)
    catalog_error = workspace.try_renew_catalog()
    if ended_by is not None:
        return _end_early(ended_by, reports, jobs, messages, as_json=as_json)
    workspace.layout.require_same()
    print_report(
        reports, messages, catalog_error, calendars=workspace.gap_index().calendars, as_json=as_json
    )
    return exit_code_of(reports, catalog_error)


def _expected_requests(workspace: Workspace, jobs: Sequence[Job]) -> dict[Series, int]:
    """Return the requests that a load probably takes, for its progress alone."""
    from ktrdr_pipelines.app.load_plan import planned

    try:
        return {part.series: part.requests for part in planned(workspace, jobs).parts}
    except StoreError:  # the load itself meets it, and reports it with its series
        return {}


def _joined(reports: Sequence[SeriesReport]) -> list[SeriesReport]:
    """Return one report a series: a series may have several jobs."""
    joined: dict[Series, SeriesReport] = {}
    for report in reports:
        before = joined.get(report.series)
        joined[report.series] = report if before is None else before.then(report)
    return list(joined.values())


def _end_early(
    error: KtrdrError | Stopped,
    reports: Sequence[SeriesReport],
    jobs: Sequence[Job],
    messages: CollectedMessages,
    *,
    as_json: bool,
) -> int:
    """Print what a load had saved when an error or a signal ended it, and raise the error."""
    again = typed_command()
    if not any(report.requests for report in reports):
        if isinstance(error, GatewayError) and error.retry and not as_json:
            note(f"Nothing was loaded. `{again}` tries again; --wait 2h waits longer.")
        raise error
    if as_json:
        say_json(_stopped_document(error, reports, messages))
        return error.exit_code
    say_table(_COLUMNS, (_row_of_stopped(report) for report in reports))
    if unreached := len({job.series for job in jobs}) - len(reports):
        say(f"{counted(unreached, 'series', 'series')} not reached.")
    say(f"What was saved is kept. `{again}` requests the rest.")
    raise error


def _row_of_stopped(report: SeriesReport) -> tuple[str, ...]:
    numbers = (report.requests, report.rows, report.added, report.revised)
    is_complete = report.is_complete and not report.waiting
    result = "complete" if is_complete else "failed" if report.error else "stopped"
    return (str(report.series), result, *(f"{number:,}" for number in numbers), "")


def _stopped_document(
    error: KtrdrError | Stopped, reports: Sequence[SeriesReport], messages: CollectedMessages
) -> LoadReportDocument:
    return LoadReportDocument(
        complete=False,
        exit_code=error.exit_code,
        series=tuple(
            SeriesReportDocument.of(report, messages.texts.get(report.series, []))
            for report in reports
        ),
        notices=tuple(messages.notices),
        catalog_error=None,
        error=ErrorDocument.of_text("Stopped", "stopped; what was saved is kept")
        if isinstance(error, Stopped)
        else ErrorDocument.of(error),
    )
