"""Commands that tell how a store stands: ``ktrdr status`` and ``ktrdr gaps``.

``ktrdr gaps``: every gap with its reason, and ranges that are explained without bars.

No gateway is asked.

``ktrdr status``: what is wanted, what is there, what is missing; it asks no gateway.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ktrdr_pipelines.cli.arguments import (
    SomeSymbols,
    SomeTimeframes,
    chosen_series,
    timeframes_named,
)
from ktrdr_pipelines.cli.output import (
    AsJson,
    counted,
    disagreement_json,
    disagreement_text,
    error_json,
    instant_text,
    interval_text,
    intervals_json,
    note,
    say,
    say_json,
    say_table,
    typed_text,
)
from ktrdr_pipelines.errors import DiskError, ExitCode, KtrdrError, UsageError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.acknowledgement import ExplainedRange
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.domain.calendars.registry import Calendars
    from ktrdr_pipelines.domain.planning.gaps import Gap
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps
    from ktrdr_pipelines.gaps.universe_diff import Stranger


MOST_OF_A_SERIES: Final = 10
"""Gaps of one series that are told one by one; behind them the rest is counted."""

_GAP_COLUMNS: Final = {
    "series": "left",
    "from and to": "left",
    "sessions": "right",
    "bars": "right",
    "reason": "left",
    "next try": "left",
}
_EXPLAINED_COLUMNS: Final = {
    "series": "left",
    "from and to": "left",
    "kind": "left",
    "since": "left",
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
        typer.Option(metavar="FILE", help="Write the coverage of each symbol as a PNG picture."),
    ] = None,
    every: Annotated[
        bool,
        typer.Option("--all", help=f"Name all gaps, not {MOST_OF_A_SERIES} of a series at most."),
    ] = False,
    acknowledge: Annotated[
        tuple[str, str, str] | None,
        typer.Option(
            metavar="SYMBOL TIMEFRAME DATE",
            help="Explain a session that is missing as a whole, by hand; needs --note.",
        ),
    ] = None,
    remark: Annotated[
        str | None,
        typer.Option("--note", metavar="TEXT", help="Why the session has no bars."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is missing and why: each gap with its extent, its bars and its next try.

    A gap is time in which sessions are expected and that is neither covered by responses nor
    explained. Disputed and acknowledged ranges are explained; they are listed below the gaps.

    --acknowledge ends a session that is missing as a whole: it counts as explained, with your
    note, until the proof expires. A second time it replaces the note.

    Exit codes: 0 no gap, 1 a series cannot be read, 2 bad usage, 3 there are gaps.
    """
    from ktrdr_pipelines.app.acknowledgement import explained_ranges
    from ktrdr_pipelines.app.workspace import open_gap_index, open_workspace
    from ktrdr_pipelines.cli.output import warn_of_problem

    if acknowledge is not None or remark is not None:
        _refuse_mixed(acknowledge, symbols, plot, every=every)
        day = _day(acknowledge, remark)
    workspace = open_workspace()
    now = workspace.now
    warn_of_problem(workspace)
    if acknowledge is not None:
        _acknowledge(workspace, acknowledge, day, typed_text(remark or ""), as_json=as_json)
        return
    index = open_gap_index(workspace)
    found = index.series_gaps(
        chosen_series(workspace.universe, index.store, symbols, timeframes), now
    )
    explained = explained_ranges(index.store.ledger, index.calendars, found)
    if plot is not None:
        _plot(plot, index, found, now)
    if as_json:
        say_json(_gaps_document(found, explained, plot))
    else:
        _tell(found, explained, most=None if every else MOST_OF_A_SERIES)
        if plot is not None:
            say(f"The picture is {plot}")
    raise typer.Exit(exit_code_of(found))


def _refuse_mixed(
    acknowledge: tuple[str, str, str] | None, symbols: str | None, plot: Path | None, *, every: bool
) -> None:
    """Refuse options that mean nothing together."""
    if acknowledge is None:
        raise UsageError(
            "--note without --acknowledge",
            reason="there is nothing to note it for",
            hint=f"Write {_EXAMPLE}",
        )
    if symbols is not None or plot is not None or every:
        raise UsageError(
            "--acknowledge with symbols, --plot or --all",
            reason="it is about one session alone",
            hint=f"Write {_EXAMPLE}",
        )


def _day(acknowledge: tuple[str, str, str] | None, remark: str | None) -> date:
    """Return the session date that is acknowledged."""
    from ktrdr_pipelines.cli.dates import parse_bound

    text = "" if acknowledge is None else acknowledge[2]
    value = parse_bound("--acknowledge", text).value
    if isinstance(value, datetime):
        raise UsageError(
            f"--acknowledge {text}",
            reason="an instant, not a session date",
            hint="Say the date of the session, such as 2024-06-05",
        )
    if remark is None or not remark.strip():
        raise UsageError(
            f"cannot acknowledge {' '.join(acknowledge or ())}",
            reason="the note is missing",
            hint=f"Say why there are no bars: {_EXAMPLE}",
        )
    return value


def _acknowledge(
    workspace: "Workspace", named: tuple[str, str, str], day: date, remark: str, *, as_json: bool
) -> None:
    from ktrdr_pipelines.app.acknowledgement import ExplainedRange, acknowledge
    from ktrdr_pipelines.app.workspace import open_gap_index, renew_catalog
    from ktrdr_pipelines.domain.instruments import Series

    (timeframe,) = timeframes_named(named[1])
    series = Series(workspace.universe.instrument(named[0]), timeframe)
    index = open_gap_index(workspace)
    proof = acknowledge(index, series, day, note=remark, now=workspace.now)
    catalog_error: KtrdrError | None = None
    try:
        renew_catalog(workspace.layout, workspace.universe, workspace.settings)
    except KtrdrError as error:
        catalog_error = error
    code = ExitCode.DONE if catalog_error is None else ExitCode.FAILED
    if as_json:
        document = {
            "exit_code": int(code),
            "acknowledged": [explained_json(ExplainedRange(series, proof))],
            "catalog_error": None if catalog_error is None else error_json(catalog_error),
        }
        say_json(document)
    else:
        say(
            f"{series}: {interval_text(timeframe, proof.interval)} is acknowledged and counts as "
            f"explained until {instant_text(proof.expires_at)}: {proof.note}"
        )
        if catalog_error is not None:
            note(f"The proof is saved, the catalog is not up to date: {catalog_error}")
    raise typer.Exit(code)


def exit_code_of(found: "Sequence[SeriesGaps]") -> ExitCode:
    """Say how complete the series are: what cannot be read weighs more than a gap."""
    if any(one.error is not None for one in found):
        return ExitCode.FAILED
    return ExitCode.INCOMPLETE if any(one.gaps for one in found) else ExitCode.DONE


def gap_json(one: "SeriesGaps", gap: "Gap") -> dict[str, Any]:
    """Give a gap as JSON has it; its end is out."""
    return {
        "symbol": one.series.symbol,
        "timeframe": str(one.series.timeframe),
        "reason": str(gap.reason),
        "start": gap.interval.start,
        "end": gap.interval.end,
        "sessions": gap.sessions,
        "bars": gap.bars,
        "detail": gap.detail,
        "next_try_at": gap.next_try_at,
    }


def explained_json(one: "ExplainedRange") -> dict[str, Any]:
    """Give a disputed or acknowledged range as JSON has it; its end is out."""
    return {
        "symbol": one.series.symbol,
        "timeframe": str(one.series.timeframe),
        "start": one.proof.interval.start,
        "end": one.proof.interval.end,
        "kind": str(one.proof.kind),
        "proved_at": one.proof.proved_at,
        "expires_at": one.proof.expires_at,
        "note": one.proof.note,
        "statements": [
            {
                "kind": str(said.kind),
                "timeframe": said.timeframe,
                "said_at": said.said_at,
                "controlled": said.controlled,
            }
            for said in one.statements
        ],
    }


def by_kind(explained: "Sequence[ExplainedRange]") -> dict[str, list[dict[str, Any]]]:
    """Give the disputed and the acknowledged ranges as JSON has them, each under its kind."""
    from ktrdr_pipelines.domain.coverage import ProofKind

    return {
        str(kind): [explained_json(one) for one in explained if one.proof.kind is kind]
        for kind in (ProofKind.DISPUTED, ProofKind.ACKNOWLEDGED)
    }


def explained_counts(found: "Sequence[SeriesGaps]") -> dict[str, int]:
    """Count the disputed and the acknowledged ranges of some series."""
    from ktrdr_pipelines.domain.coverage import ProofKind

    return {
        str(kind): sum(len(one.explained_as(kind)) for one in found)
        for kind in (ProofKind.DISPUTED, ProofKind.ACKNOWLEDGED)
    }


def explained_text(found: "Sequence[SeriesGaps]") -> str:
    """Say how many ranges are disputed and acknowledged; empty where none is."""
    return " and ".join(
        counted(number, f"{kind} range")
        for kind, number in explained_counts(found).items()
        if number
    )


def _plot(path: Path, index: "GapIndex", found: "Sequence[SeriesGaps]", now: datetime) -> None:
    from ktrdr_pipelines.gaps.heatmap import coverage_heatmap

    image = coverage_heatmap(index, found, now)
    try:
        path.write_bytes(image)
    except OSError as error:
        raise DiskError(
            f"cannot write {path}",
            reason=error.strerror or str(error),
            hint="Name a file in a folder that is there and can be written",
        ) from error


def _tell(
    found: "Sequence[SeriesGaps]", explained: "Sequence[ExplainedRange]", most: int | None
) -> None:
    missing = [one for one in found if one.gaps]
    if missing:
        say_table(_GAP_COLUMNS, (row for one in missing for row in _rows(one, most)))
        for line in _reasons(missing):
            say(line)
    if explained:
        say_table(_EXPLAINED_COLUMNS, map(_explained_row, explained))
    for text in dict.fromkeys(str(one.error) for one in found if one.error is not None):
        note(f"Error: {text}")
    say(_summary(found, missing))
    if text := explained_text(found):
        say(f"{text} without bars, explained until they expire")


def _explained_row(one: "ExplainedRange") -> Sequence[object]:
    said = ", ".join(
        f"{two.kind} {two.timeframe} {instant_text(two.said_at)}" for two in one.statements
    )
    return (
        one.series,
        interval_text(one.series.timeframe, one.proof.interval),
        one.proof.kind,
        instant_text(one.proof.proved_at),
        instant_text(one.proof.expires_at),
        "; ".join(part for part in (one.proof.note, said) if part),
    )


def _rows(one: "SeriesGaps", most: int | None) -> Iterator[Sequence[object]]:
    told = one.gaps if most is None else one.gaps[-most:]
    if rest := one.gaps[: len(one.gaps) - len(told)]:
        bars = f"{sum(gap.bars for gap in rest):,}"
        sessions = f"{sum(gap.sessions for gap in rest):,}"
        older = f"{counted(len(rest), 'older gap')} since {rest[0].interval.start:%Y-%m-%d}"
        yield one.series, older, sessions, bars, "--all names them", ""
    for gap in told:
        again = "" if gap.next_try_at is None else instant_text(gap.next_try_at)
        interval = interval_text(one.series.timeframe, gap.interval)
        yield one.series, interval, f"{gap.sessions:,}", f"{gap.bars:,}", gap.reason, again


def _reasons(missing: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Say once what stands behind each reason."""
    texts = Counter((gap.reason, gap.detail) for one in missing for gap in one.gaps if gap.detail)
    for (reason, detail), times in texts.most_common():
        yield f"{reason}: {detail} ({counted(times, 'gap')})"


def _summary(found: "Sequence[SeriesGaps]", missing: "Sequence[SeriesGaps]") -> str:
    if not missing:
        readable = sum(one.error is None for one in found)
        return f"No gap in {counted(readable, 'series', 'series')}."
    gaps = [gap for one in missing for gap in one.gaps]
    kinds = ", ".join(
        f"{times:,} {reason}" for reason, times in Counter(gap.reason for gap in gaps).most_common()
    )
    bars = counted(sum(gap.bars for gap in gaps), "bar")
    of = f"{len(missing):,} of {counted(len(found), 'series', 'series')}"
    first = missing[0].series
    return (
        f"{counted(len(gaps), 'gap')} in {of} ({kinds}), about {bars}; "
        f"ktrdr load {first.symbol} {first.timeframe} asks for the first"
    )


def _gaps_document(
    found: "Sequence[SeriesGaps]", explained: "Sequence[ExplainedRange]", plot: Path | None
) -> dict[str, Any]:
    code = exit_code_of(found)
    return {
        "complete": code is ExitCode.DONE,
        "exit_code": int(code),
        "series": len(found),
        "gaps": [gap_json(one, gap) for one in found for gap in one.gaps],
        "counts": explained_counts(found),
        **by_kind(explained),
        "errors": [
            {
                "symbol": one.series.symbol,
                "timeframe": str(one.series.timeframe),
                "error": error_json(one.error),
            }
            for one in found
            if one.error is not None
        ],
        "plot": None if plot is None else str(plot),
    }


_CONTRACT: Final = ("sec_type", "exchange", "currency")
_FIELDS: Final = ("what_to_show", "use_rth", "start", "backfill")
_NAMED_AT_MOST: Final = 8
_COLUMNS: Final = {
    "series": "left",
    "bars": "right",
    "first": "left",
    "last": "left",
    "covered until": "left",
    "gaps": "right",
    "remark": "fold",
}


def status(as_json: AsJson = False) -> None:
    """Show the store: what is wanted, what is there, what is missing. No gateway is asked.

    Exit codes: 0 told (ktrdr gaps ends with 3 where there are gaps), 1 a series cannot be read,
    2 bad usage, 3 held bars came again at other prices.
    """
    from ktrdr_pipelines.app.acknowledgement import explained_ranges
    from ktrdr_pipelines.app.workspace import open_gap_index, open_workspace
    from ktrdr_pipelines.gaps.universe_diff import strangers

    workspace = open_workspace()
    index, real_now = open_gap_index(workspace), workspace.clock.real_now()
    states = index.series_gaps(
        chosen_series(workspace.universe, index.store, None, None), workspace.now
    )
    unnamed = list(strangers(index.store, workspace.universe.instruments))
    findings = index.store.ledger.count_findings()
    if as_json:
        from ktrdr_pipelines.store.ledger.ledger import series_key

        explained = explained_ranges(index.store.ledger, index.calendars, states)
        document = _document(workspace, states, explained, strangers=unnamed, now=real_now)
        for entry, state in zip(document["series"], states, strict=True):
            entry["findings"] = findings.get(series_key(state.series), 0)
        say_json({**document, "calendars": _calendars_json(index.calendars)})
    else:
        _say_store(workspace, real_now)
        say_symbols(workspace.universe)
        _say_calendars(index.calendars)
        _say_states(states, unnamed)
        _say_findings(states, findings)
    if any(state.error is not None for state in states):
        raise typer.Exit(ExitCode.FAILED)
    if any(state.disagreements for state in states):
        raise typer.Exit(ExitCode.INCOMPLETE)


def _say_store(workspace: "Workspace", now: datetime) -> None:
    from ktrdr_pipelines.store.layout import FORMAT_VERSION, store_origin

    origin = store_origin(workspace.layout) or "open: the first bars decide"
    say(f"store     {workspace.layout.root}, format {FORMAT_VERSION}, origin {origin}")
    age_s = _catalog_age_s(workspace, now)
    age = "missing: ktrdr repair makes it" if age_s is None else f"built {_age_text(age_s)} ago"
    say(f"catalog   {workspace.layout.catalog}, {age}")
    symbols = counted(len(workspace.universe.instruments), "symbol")
    say(f"universe  {workspace.layout.universe}, {symbols}")
    if workspace.problem is not None:
        say(f"          the last edit is bad, the last good universe counts: {workspace.problem}")


def say_symbols(universe: "Universe") -> None:
    """Print what came of each symbol; a star marks what the file does not say itself."""
    rows = []
    for symbol, instrument in universe.instruments.items():
        told = universe.describe(instrument)
        contract = " ".join(_starred(told[name]) for name in _CONTRACT)
        rows.append((symbol, contract, *(_starred(told[name]) for name in _FIELDS)))
    say_table({"symbol": "left", "contract": "fold", **dict.fromkeys(_FIELDS, "left")}, rows)
    say("* derived, or from the defaults; --json says which, and has all fields")
    for timeframe, symbols in universe.before_windows().items():
        first = universe.windows.first_day(timeframe)
        say(
            f"{_few(symbols)}: {timeframe} is wanted from before {first}, where Dagster's windows "
            "begin: sensors and backfills load nothing older, ktrdr load and ktrdr update do; "
            "`windows:` in the universe moves the first window"
        )


def _say_calendars(calendars: "Calendars") -> None:
    """Name the dates on which contracts agree that a calendar of the libraries errs."""
    for key, days in calendars.changed().items():
        for one in days:
            parts = one.told.parts
            hours = "closed"
            if parts:
                hours = f"{instant_text(parts[0].start)} to {instant_text(parts[-1].end)}"
            say(
                f"calendar {key} {one.told.day}: {hours}, as "
                f"{counted(len(one.symbols), 'contract')} agree: {_few(one.symbols)}"
            )


def _calendars_json(calendars: "Calendars") -> list[dict[str, Any]]:
    return [
        {
            "key": key,
            "date": one.told.day,
            "opens": one.told.parts[0].start if one.told.parts else None,
            "closes": one.told.parts[-1].end if one.told.parts else None,
            "closed": not one.told.parts,
            "symbols": list(one.symbols),
        }
        for key, days in calendars.changed().items()
        for one in days
    ]


def _say_states(states: "Sequence[SeriesGaps]", strangers: "Sequence[Stranger]") -> None:
    say_table(_COLUMNS, map(_row, states))
    for line in (*_blocked_lines(states), *_confirmation_lines(states)):
        say(line)
    for state in states:
        for found in (*state.disagreements, *state.volume_jumps):
            say(f"{state.series}: {disagreement_text(state.series, found)}")
    for text in dict.fromkeys(str(state.error) for state in states if state.error is not None):
        note(f"Error: {text}")
    for one in strangers:
        bars = counted(one.rows, "bar")
        say(f"{one.symbol} {one.timeframe}: {bars} on disk, and the universe does not name it")
    if text := explained_text(states):
        say(f"{text} without bars; ktrdr gaps lists them")
    missing = [state for state in states if state.gaps]
    if missing:
        first = missing[0].series
        say(
            f"{counted(len(missing), 'series', 'series')} with gaps; ktrdr gaps names them, "
            f"ktrdr load {first.symbol} {first.timeframe} fills the first"
        )


def _say_findings(states: "Sequence[SeriesGaps]", findings: "Mapping[str, int]") -> None:
    from ktrdr_pipelines.store.ledger.ledger import series_key

    found = [(state.series, findings.get(series_key(state.series), 0)) for state in states]
    told = [f"{series} ({count:,})" for series, count in found if count]
    if told:
        say(
            f"bars with implausible values, kept as the gateway returned them: {_few(told)}; "
            "ktrdr verify lists them"
        )


def _blocked_lines(states: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Name what is blocked with what the gateway said, which names the missing subscription."""
    blocked: dict[str, list[str]] = {}
    for state in states:
        for attempt in state.blocks[-1:]:
            again = "" if attempt.next_try_at is None else instant_text(attempt.next_try_at)
            text = f"{attempt.error}{again and f'; it is tried again at {again}'}"
            blocked.setdefault(text, []).append(str(state.series))
    for text, series in blocked.items():
        yield f"blocked: {', '.join(series)}: {text}"


def _confirmation_lines(states: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Say of gaps that wait for another response why, and when it is requested."""
    from ktrdr_pipelines.domain.planning.gaps import GapReason

    waiting = {GapReason.UNCONFIRMED, GapReason.CONTRADICTED, GapReason.SPARSE}
    for state in states:
        grouped: dict[tuple[str, str], list[Gap]] = {}
        for gap in state.gaps:
            if gap.reason in waiting:
                grouped.setdefault((gap.reason, gap.detail), []).append(gap)
        for (reason, detail), gaps in grouped.items():
            due = min((gap.next_try_at for gap in gaps if gap.next_try_at), default=None)
            again = "" if due is None else f"; next request at {instant_text(due)}"
            yield f"{reason}: {state.series}: {counted(len(gaps), 'gap')}: {detail}{again}"


def _row(state: "SeriesGaps") -> tuple[object, ...]:
    return (
        state.series,
        "?" if state.error else f"{state.rows:,}",
        state.first or "",
        state.last or "",
        _until_text(state.series.timeframe, state.covered_until),
        "?" if state.error else f"{len(state.gaps):,}",
        _remark(state),
    )


def _remark(state: "SeriesGaps") -> str:
    if state.error is not None:
        return "unreadable"
    if not state.rows and state.gaps and not state.attempts:
        return "empty"
    failures = counted(len(state.attempts), "failed try", "failed tries")
    return "blocked" if state.is_blocked else failures if state.attempts else ""


def _document(
    workspace: "Workspace",
    states: "Sequence[SeriesGaps]",
    explained: "Sequence[ExplainedRange]",
    *,
    strangers: "Sequence[Stranger]",
    now: datetime,
) -> dict[str, Any]:
    from ktrdr_pipelines.store.layout import FORMAT_VERSION, store_origin

    universe = workspace.universe
    return {
        "store": str(workspace.layout.root),
        "format": FORMAT_VERSION,
        "origin": store_origin(workspace.layout),
        "catalog": {"path": str(workspace.layout.catalog), "age_s": _catalog_age_s(workspace, now)},
        "universe": {
            "path": str(workspace.layout.universe),
            "problem": None if workspace.problem is None else error_json(workspace.problem),
            "symbols": {
                symbol: universe.describe(instrument)
                for symbol, instrument in universe.instruments.items()
            },
        },
        "before_windows": {str(kind): names for kind, names in universe.before_windows().items()},
        "counts": explained_counts(states),
        "series": [
            _state_json(state, [one for one in explained if one.series == state.series])
            for state in states
        ],
        "not_in_universe": [
            {"symbol": one.symbol, "timeframe": one.timeframe, "rows": one.rows}
            for one in strangers
        ],
    }


def _state_json(state: "SeriesGaps", explained: "Sequence[ExplainedRange]") -> dict[str, Any]:
    return {
        "symbol": state.series.symbol,
        "timeframe": str(state.series.timeframe),
        "rows": state.rows,
        "first": state.first,
        "last": state.last,
        "covered_until": state.covered_until,
        "gaps": [gap_json(state, gap) for gap in state.gaps],
        "waiting": intervals_json(state.waiting),
        **by_kind(explained),
        "disagreements": [disagreement_json(one) for one in state.disagreements],
        "volume_jumps": [disagreement_json(one) for one in state.volume_jumps],
        "attempts": [
            {
                "kind": str(attempt.kind),
                "start": attempt.interval.start,
                "end": attempt.interval.end,
                "error": attempt.error,
                "code": attempt.code,
                "failures": attempt.failures,
                "next_try_at": attempt.next_try_at,
            }
            for attempt in state.attempts
        ],
        "blocked": state.is_blocked,
        "error": None if state.error is None else error_json(state.error),
    }


def _catalog_age_s(workspace: "Workspace", now: datetime) -> int | None:
    path = workspace.layout.catalog
    return max(0, round(now.timestamp() - path.stat().st_mtime)) if path.is_file() else None


def _age_text(seconds: int) -> str:
    units = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next((one for one in units if seconds >= one[0]), units[-1])
    return counted(seconds // size, unit)


def _few(symbols: "Sequence[str]") -> str:
    more = len(symbols) - _NAMED_AT_MOST
    return ", ".join(symbols[:_NAMED_AT_MOST]) + (f" and {more:,} more" if more > 0 else "")


def _starred(told: str) -> str:
    value, _, origin = told.rpartition(" (")
    return value if origin == "said)" else f"{value}*"


def _until_text(timeframe: "Timeframe", until: datetime | None) -> str:
    if until is None:
        return ""
    return f"{until:%Y-%m-%dT%H:%MZ}" if timeframe.is_intraday else str(until.date())
