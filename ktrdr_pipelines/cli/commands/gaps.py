"""``ktrdr gaps``: list every gap with its reason, and acknowledge sessions that have no bars.

The command reads the store only and sends no request to a gateway.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.app.selection import chosen_series, timeframes_named
from ktrdr_pipelines.cli.arguments import SomeSymbols, SomeTimeframes, note_symbol_named_all
from ktrdr_pipelines.cli.output import (
    AsJson,
    counted,
    few_text,
    instant_text,
    interval_text,
    note,
    say,
    say_json,
    say_some,
    say_table,
    say_wrapped,
    typed_text,
)
from ktrdr_pipelines.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.acknowledgement import ExplainedRange
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.instruments import Series
    from ktrdr_pipelines.domain.planning.gaps import Gap, GapReason
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps


MOST_OF_A_SERIES: Final = 10
"""Gaps listed for one series; older ones are counted in one row."""

MOST_ROWS: Final = 40
"""Rows of a table; of more gaps, the series are listed with the totals of each reason."""

_MOST_GROUPS: Final = 20

_GAP_COLUMNS: Final = {
    "series": "fold",
    "from and to": "fold",
    "sessions": "right?",
    "bars": "right",
    "reason": "left",
    "next attempt": "left?",
}
_GROUP_COLUMNS: Final = {
    "series": "fold",
    "reason": "left",
    "gaps": "right",
    "bars": "right",
    "first": "left",
    "last": "left",
    "next attempt": "left?",
}
_REASON_COLUMNS: Final = {
    "reason": "left",
    "timeframe": "left",
    "series": "right",
    "gaps": "right",
    "bars": "right",
}
_EXPLAINED_COLUMNS: Final = {
    "series": "fold",
    "from and to": "fold",
    "kind": "left",
    "since": "left?",
    "until": "left",
    "note and statements": "fold",
}
_EXAMPLE: Final = 'ktrdr gaps --acknowledge AAPL 1h 2024-06-05 --note "halted"'


def gaps(
    symbols: SomeSymbols = None,
    timeframes: SomeTimeframes = None,
    *,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a heatmap of the coverage of each symbol as a PNG image."
        ),
    ] = None,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help=f"List all gaps instead of the newest {MOST_OF_A_SERIES} of each series, and "
            "instead of totals of series if there are many.",
        ),
    ] = False,
    acknowledge: Annotated[
        tuple[str, str, str] | None,
        typer.Option(
            metavar="SYMBOL TIMEFRAME DATE",
            help="Mark one session that is missing as a whole as explained; requires --note.",
        ),
    ] = None,
    remark: Annotated[
        str | None,
        typer.Option("--note", metavar="TEXT", help="Why the acknowledged session has no bars."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what is missing and why: each gap with its range, its bars and its next attempt.

    A gap is expected session time that is neither covered by responses nor explained. Disputed
    and acknowledged ranges are explained; they are listed below the gaps. No request is sent to a
    gateway.

    --acknowledge marks a session that is missing as a whole as explained: it counts as such, with
    your note, until the acknowledgement expires. Repeating it replaces the note.

    Exit codes: 0 no gap, 1 a series cannot be read, 2 bad usage, 3 there are gaps.
    """
    from ktrdr_pipelines.app.acknowledgement import explained_ranges
    from ktrdr_pipelines.app.store_status import gaps_document, gaps_exit_code
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.output import warn_of_problem

    if acknowledge is not None or remark is not None:
        _require_acknowledgement_alone(acknowledge, symbols, plot, every=every)
        day = _session_date(acknowledge, remark)
    if plot is not None:
        _refuse_other_formats(plot)
    workspace = Workspace.open()
    now = workspace.now
    warn_of_problem(workspace)
    if acknowledge is not None:
        _acknowledge(workspace, acknowledge, day, typed_text(remark or ""), as_json=as_json)
        return
    note_symbol_named_all(workspace, symbols)
    series = chosen_series(workspace.universe, workspace.store, symbols, timeframes)
    index = workspace.gap_index()
    found = index.series_gaps(series, now)
    explained = explained_ranges(workspace.ledger, index.calendars, found)
    if plot is not None:
        _plot(plot, index, found, now)
    if as_json:
        say_json(gaps_document(found, explained, plot=plot))
    else:
        _say_gaps(found, explained, every=every)
        if plot is not None:
            say(f"Heatmap written to {plot}")
    raise typer.Exit(gaps_exit_code(found))


def _require_acknowledgement_alone(
    acknowledge: tuple[str, str, str] | None, symbols: str | None, plot: Path | None, *, every: bool
) -> None:
    if acknowledge is None:
        raise UsageError(
            "--note without --acknowledge",
            reason="there is no session that the note is for",
            hint=f"Write {_EXAMPLE}",
        )
    if symbols is not None or plot is not None or every:
        raise UsageError(
            "--acknowledge with symbols, --plot or --all",
            reason="--acknowledge concerns one session only",
            hint=f"Write {_EXAMPLE}",
        )


def _session_date(acknowledge: tuple[str, str, str] | None, remark: str | None) -> date:
    from ktrdr_pipelines.domain.planning.date_bounds import parse_bound

    text = "" if acknowledge is None else acknowledge[2]
    value = parse_bound("--acknowledge", text).value
    if isinstance(value, datetime):
        raise UsageError(
            f"--acknowledge {text}",
            reason="an instant, not a session date",
            hint="Give the date of the session, such as 2024-06-05",
        )
    if remark is None or not remark.strip():
        raise UsageError(
            f"cannot acknowledge {' '.join(acknowledge or ())}",
            reason="the note is missing",
            hint=f"Explain why there are no bars: {_EXAMPLE}",
        )
    return value


def _acknowledge(
    workspace: "Workspace", named: tuple[str, str, str], day: date, remark: str, *, as_json: bool
) -> None:
    from ktrdr_pipelines.app.acknowledgement import ExplainedRange, acknowledge
    from ktrdr_pipelines.app.views.documents import ErrorDocument
    from ktrdr_pipelines.app.views.series_documents import AcknowledgedDocument, ExplainedDocument
    from ktrdr_pipelines.domain.instruments import Series

    (timeframe,) = timeframes_named(named[1])
    series = Series(workspace.universe.instrument(named[0]), timeframe)
    proof = acknowledge(workspace.gap_index(), series, day, note=remark, now=workspace.now)
    catalog_error = workspace.try_renew_catalog()
    code = ExitCode.DONE if catalog_error is None else ExitCode.FAILED
    if as_json:
        say_json(
            AcknowledgedDocument(
                complete=catalog_error is None,
                exit_code=int(code),
                acknowledged=(ExplainedDocument.of(ExplainedRange(series, proof)),),
                catalog_error=ErrorDocument.of_any(catalog_error),
            )
        )
    else:
        say(
            f"{series}: {interval_text(timeframe, proof.interval)} is acknowledged and counts as "
            f"explained until {instant_text(proof.expires_at)}: {proof.note}"
        )
        if catalog_error is not None:
            note(f"The acknowledgement is saved; the catalog is not up to date: {catalog_error}")
    raise typer.Exit(code)


def explained_text(found: "Sequence[SeriesGaps]") -> str:
    """Return the numbers of disputed and acknowledged ranges as text; empty if there are none."""
    from ktrdr_pipelines.app.store_status import explained_counts

    return " and ".join(
        counted(number, f"{kind} range")
        for kind, number in explained_counts(found).items()
        if number
    )


def _refuse_other_formats(path: Path) -> None:
    """Refuse the suffix of another image format: a heatmap is a PNG image, whatever its name."""
    if path.suffix.lower() in {".svg", ".pdf", ".jpg", ".jpeg", ".gif"}:
        raise UsageError(
            f"--plot {path}", reason="a heatmap is a PNG image", hint="Use the suffix .png"
        )


def _plot(path: Path, index: "GapIndex", found: "Sequence[SeriesGaps]", now: datetime) -> None:
    from ktrdr_pipelines.app.charts.drawing import write_image
    from ktrdr_pipelines.app.charts.heatmap import coverage_heatmap

    write_image(path, coverage_heatmap(index, found, now))


def _say_gaps(
    found: "Sequence[SeriesGaps]", explained: "Sequence[ExplainedRange]", *, every: bool
) -> None:
    missing = [one for one in found if one.gaps]
    most = None if every else MOST_OF_A_SERIES
    rows = [row for one in missing for row in _gap_rows(one, most)]
    if every or len(rows) <= MOST_ROWS:
        if rows:
            say_table(_GAP_COLUMNS, rows)
    else:
        _say_groups(missing)
    say_some(_detail_lines(missing), most=None if every else MOST_OF_A_SERIES)
    if explained:
        newest = explained if every else explained[-MOST_ROWS:]
        say_table(_EXPLAINED_COLUMNS, map(_explained_row, newest))
        if len(newest) < len(explained):
            say(f"  and {len(explained) - len(newest):,} more explained ranges; --all lists them")
    for text in dict.fromkeys(str(one.error) for one in found if one.error is not None):
        note(f"Error: {text}")
    if text := explained_text(found):
        say(f"{text} without bars, explained until the dates given above")
    say_wrapped(_summary(found, missing))


def _say_groups(missing: "Sequence[SeriesGaps]") -> None:
    """Print the series that lack most, by reason, and the totals of reasons and timeframes."""
    groups: dict[tuple[Series, GapReason], list[Gap]] = {}
    for one in missing:
        for gap in one.gaps:
            groups.setdefault((one.series, gap.reason), []).append(gap)
    ordered = sorted(groups.items(), key=lambda one: -sum(gap.bars for gap in one[1]))
    say_table(_GROUP_COLUMNS, (_group_row(*key, gaps) for key, gaps in ordered[:_MOST_GROUPS]))
    if len(ordered) > _MOST_GROUPS:
        rest = counted(len(ordered) - _MOST_GROUPS, "row")
        say(f"  and {rest} with fewer missing bars; --all lists every gap")
    totals: dict[tuple[GapReason, Timeframe], list[list[Gap]]] = {}
    for (series, reason), gaps in groups.items():
        totals.setdefault((reason, series.timeframe), []).append(gaps)
    say_table(
        _REASON_COLUMNS,
        (
            (
                *key,
                f"{len(parts):,}",
                f"{sum(map(len, parts)):,}",
                f"{sum(gap.bars for part in parts for gap in part):,}",
            )
            for key, parts in totals.items()
        ),
    )


def _group_row(series: "Series", reason: str, gaps: "Sequence[Gap]") -> Sequence[object]:
    due = min((gap.next_try_at for gap in gaps if gap.next_try_at), default=None)
    return (
        series,
        reason,
        f"{len(gaps):,}",
        f"{sum(gap.bars for gap in gaps):,}",
        gaps[0].interval.start.date(),
        (gaps[-1].interval.end - timedelta.resolution).date(),
        "" if due is None else instant_text(due),
    )


def _detail_lines(missing: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Yield each detail once, as it repeats from gap to gap, and one line a missing permission."""
    from ktrdr_pipelines.domain.planning.gaps import GapReason

    details: dict[tuple[str, str], list[Gap]] = {}
    for one in missing:
        for gap in one.gaps:
            if gap.detail and gap.reason is not GapReason.BLOCKED:
                details.setdefault((gap.reason, gap.detail), []).append(gap)
    for (reason, detail), gaps in sorted(details.items(), key=lambda one: -len(one[1])):
        due = min((gap.next_try_at for gap in gaps if gap.next_try_at), default=None)
        again = "" if due is None else f", next attempt at {instant_text(due)}"
        yield f"{reason}: {detail} ({counted(len(gaps), 'gap')}){again}"
    yield from blocked_lines(missing)


def blocked_lines(states: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Yield a line for each missing permission: its series, and the gateway's newest message."""
    from ktrdr_pipelines.app.store_status import blocked_series

    for (entitlement, _), own in blocked_series(states).items():
        refusals = [one.blocks[-1] for one in own]
        newest = max(refusals, key=lambda attempt: attempt.last_at)
        due = min((one.next_try_at for one in refusals if one.next_try_at), default=None)
        again = "" if due is None else f"; next attempt at {instant_text(due)}"
        of = "" if len(own) == 1 else f" ({counted(len(own), 'series', 'series')}, {entitlement})"
        yield f"blocked: {few_text([one.series for one in own])}{of}: {newest.error}{again}"


def _explained_row(one: "ExplainedRange") -> Sequence[object]:
    statements = ", ".join(
        f"{two.kind} {two.timeframe} {instant_text(two.said_at)}" for two in one.statements
    )
    return (
        one.series,
        interval_text(one.series.timeframe, one.proof.interval),
        one.proof.kind,
        instant_text(one.proof.proved_at),
        one.proof.expires_at.date(),
        "; ".join(part for part in (one.proof.note, statements) if part),
    )


def _gap_rows(one: "SeriesGaps", most: int | None) -> Iterator[Sequence[object]]:
    listed = one.gaps if most is None else one.gaps[-most:]
    if rest := one.gaps[: len(one.gaps) - len(listed)]:
        bars = f"{sum(gap.bars for gap in rest):,}"
        sessions = f"{sum(gap.sessions for gap in rest):,}"
        older = f"{counted(len(rest), 'older gap')} since {rest[0].interval.start:%Y-%m-%d}"
        yield one.series, older, sessions, bars, "--all lists them", ""
    for gap in listed:
        again = "" if gap.next_try_at is None else instant_text(gap.next_try_at)
        interval = interval_text(one.series.timeframe, gap.interval)
        yield one.series, interval, f"{gap.sessions:,}", f"{gap.bars:,}", gap.reason, again


def _summary(found: "Sequence[SeriesGaps]", missing: "Sequence[SeriesGaps]") -> str:
    unreadable = sum(one.error is not None for one in found)
    unread = f"; {counted(unreadable, 'series', 'series')} unreadable" if unreadable else ""
    if not missing:
        if found and unreadable == len(found):
            return f"{counted(unreadable, 'series', 'series')} unreadable: gaps are not known."
        return f"No gap in {counted(len(found) - unreadable, 'series', 'series')}{unread}."
    gaps = [gap for one in missing for gap in one.gaps]
    kinds = ", ".join(
        f"{times:,} {reason}" for reason, times in Counter(gap.reason for gap in gaps).most_common()
    )
    bars = counted(sum(gap.bars for gap in gaps), "bar")
    of = f"{len(missing):,} of {counted(len(found), 'series', 'series')}"
    first = missing[0].series
    return (
        f"{counted(len(gaps), 'gap')} in {of} ({kinds}), about {bars}{unread}; "
        f"ktrdr load {first.symbol} {first.timeframe} requests the first"
    )
