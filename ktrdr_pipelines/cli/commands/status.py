"""``ktrdr status`` and ``ktrdr ranges``: summarize the store, and show where data begin.

``status`` reads the store only and sends no request to a gateway; ``ranges`` may request the
beginnings.

Not here: finding the earliest data (``sync.discovery.earliest_data``).
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.arguments import SomeSymbols, note_symbol_named_all
from ktrdr_pipelines.cli.commands.gaps import explained_text
from ktrdr_pipelines.cli.output import (
    AsJson,
    adjustment_text,
    counted,
    instant_text,
    note,
    say,
    say_json,
    say_table,
    unconfirmed_text,
)
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.app.store_status import KnownBases, StoreStatus
    from ktrdr_pipelines.app.views.series_documents import HeldRangeDocument
    from ktrdr_pipelines.domain.calendars.registry import Calendars
    from ktrdr_pipelines.domain.planning.gaps import Gap
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.gaps.index import SeriesGaps
    from ktrdr_pipelines.gaps.universe_diff import Stranger
    from ktrdr_pipelines.sync.discovery.earliest_data import EarliestData


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
    """Show the store: the universe, the bars of each series, gaps and failed attempts.

    No request is sent to a gateway.

    Exit codes: 0 shown, with or without gaps (ktrdr gaps exits with 3 if there are any), 1 a
    series cannot be read, 2 bad usage, 3 the gateway returned stored bars again at other prices,
    and it is no re-basing, or not confirmed as one yet.
    """
    from ktrdr_pipelines.app.store_status import status_document, store_status
    from ktrdr_pipelines.app.workspace import Workspace

    found = store_status(Workspace.open())
    states, bases = found.series, found.bases
    if as_json:
        say_json(status_document(found))
    else:
        _say_store(found)
        say_symbols(found.workspace.universe)
        _say_calendars(found.calendars)
        _say_states(states, found.unlisted)
        _say_bases(bases)
        _say_findings(states, found.findings)
    raise typer.Exit(found.exit_code)


def _say_bases(bases: "KnownBases") -> None:
    """Print a line for each symbol that was adjusted, and for each unconfirmed statement."""
    for symbol, known in bases.adjustments.items():
        in_force = [one for one in known if one.removed_at is None]
        if in_force:
            count = counted(len(in_force), "adjustment")
            say(
                f"{symbol}: {count}, the last a {adjustment_text(in_force[-1])}; "
                f"ktrdr adjust {symbol} lists them"
            )
        else:
            say(f"{symbol}: {counted(len(known), 'adjustment')}, all removed")
    for symbol, check in bases.stated.items():
        say(f"{symbol}: {check.statement}, which the next load requests")
    for text in bases.errors.values():
        note(f"Error: {text}")


def _say_store(status: "StoreStatus") -> None:
    from ktrdr_pipelines.store.layout import store_origin, store_version

    workspace = status.workspace
    origin = store_origin(workspace.layout) or "open: determined by the first bars"
    version = store_version(workspace.layout)
    say(f"store     {workspace.layout.root}, format {version}, origin {origin}")
    age_s = status.catalog_age_s()
    age = "missing: ktrdr repair builds it" if age_s is None else f"built {_age_text(age_s)} ago"
    say(f"catalog   {workspace.layout.catalog}, {age}")
    symbols = counted(len(workspace.universe.instruments), "symbol")
    say(f"universe  {workspace.layout.universe}, {symbols}")
    if workspace.problem is not None:
        say(f"          invalid edit, the last good universe is used: {workspace.problem}")


def say_symbols(universe: "Universe") -> None:
    """Print the resolved fields of each symbol; a star marks those the file does not set."""
    rows = []
    for symbol, instrument in universe.instruments.items():
        fields = universe.describe(instrument)
        contract = " ".join(_starred(fields[name]) for name in _CONTRACT)
        rows.append((symbol, contract, *(_starred(fields[name]) for name in _FIELDS)))
    say_table({"symbol": "left", "contract": "fold", **dict.fromkeys(_FIELDS, "left")}, rows)
    say("* derived, or from the defaults; --json shows which, and all fields")
    for timeframe, symbols in universe.before_windows().items():
        first = universe.windows.first_day(timeframe)
        say(
            f"{_few(symbols)}: {timeframe} starts before {first}, where Dagster's windows "
            "begin: sensors and backfills load nothing older, ktrdr load and ktrdr update do; "
            "`windows:` in the universe moves the first window"
        )


def _say_calendars(calendars: "Calendars") -> None:
    """Print the dates on which contracts agree that a calendar of the libraries is wrong."""
    for key, days in calendars.changed().items():
        for one in days:
            parts = one.stated.parts
            hours = "closed"
            if parts:
                hours = f"{instant_text(parts[0].start)} to {instant_text(parts[-1].end)}"
            say(
                f"calendar {key} {one.stated.day}: {hours}, according to "
                f"{counted(len(one.symbols), 'contract')}: {_few(one.symbols)}"
            )


def _say_states(states: "Sequence[SeriesGaps]", strangers: "Sequence[Stranger]") -> None:
    say_table(_COLUMNS, map(_row, states))
    for line in (*_blocked_lines(states), *_confirmation_lines(states)):
        say(line)
    for state in states:
        for found in (*state.disagreements, *state.volume_jumps):
            say(f"{state.series}: {found.text_for(state.series)}")
        if state.unconfirmed_bars:
            say(unconfirmed_text(state.series, state.unconfirmed_bars))
    for text in dict.fromkeys(str(state.error) for state in states if state.error is not None):
        note(f"Error: {text}")
    for one in strangers:
        bars = counted(one.rows, "bar")
        say(f"{one.symbol} {one.timeframe}: {bars} on disk, but it is not in the universe")
    if text := explained_text(states):
        say(f"{text} without bars; ktrdr gaps lists them")
    missing = [state for state in states if state.gaps]
    if missing:
        first = missing[0].series
        say(
            f"{counted(len(missing), 'series', 'series')} with gaps; ktrdr gaps lists them, "
            f"ktrdr load {first.symbol} {first.timeframe} fills the first"
        )


def _say_findings(states: "Sequence[SeriesGaps]", findings: "Mapping[str, int]") -> None:
    from ktrdr_pipelines.store.ledger.ledger import series_key

    found = [(state.series, findings.get(series_key(state.series), 0)) for state in states]
    affected = [f"{series} ({count:,})" for series, count in found if count]
    if affected:
        say(
            f"bars with implausible values, kept as the gateway returned them: {_few(affected)}; "
            "ktrdr verify lists them"
        )


def _blocked_lines(states: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Return a line for each refusal of the gateway, whose text names the missing subscription."""
    blocked: dict[str, list[str]] = {}
    for state in states:
        for attempt in state.blocks[-1:]:
            again = "" if attempt.next_try_at is None else instant_text(attempt.next_try_at)
            text = f"{attempt.error}{again and f'; next attempt at {again}'}"
            blocked.setdefault(text, []).append(str(state.series))
    for text, series in blocked.items():
        yield f"blocked: {', '.join(series)}: {text}"


def _confirmation_lines(states: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Return a line for gaps that another response must confirm: why, and when it is due."""
    from ktrdr_pipelines.domain.planning.gaps import GapReason

    waiting = {
        GapReason.UNCONFIRMED,
        GapReason.CONTRADICTED,
        GapReason.SPARSE,
        GapReason.BASIS,
    }
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
    failures = counted(len(state.attempts), "failed attempt")
    return "blocked" if state.is_blocked else failures if state.attempts else ""


def _age_text(seconds: int) -> str:
    units = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))
    size, unit = next((one for one in units if seconds >= one[0]), units[-1])
    return counted(seconds // size, unit)


def _few(symbols: "Sequence[str]") -> str:
    more = len(symbols) - _NAMED_AT_MOST
    return ", ".join(symbols[:_NAMED_AT_MOST]) + (f" and {more:,} more" if more > 0 else "")


def _starred(text: str) -> str:
    """Return a described field, with a star in place of its origin unless the file sets it."""
    value, _, origin = text.rpartition(" (")
    return value if origin == "said)" else f"{value}*"


def _until_text(timeframe: "Timeframe", until: datetime | None) -> str:
    if until is None:
        return ""
    return f"{until:%Y-%m-%dT%H:%MZ}" if timeframe.is_intraday else str(until.date())


_BEGINNINGS: Final = {
    "symbol": "left",
    "shows": "left",
    "oldest data": "left",
    "how known": "fold",
    "requested": "left",
}
_HELD: Final = {
    "series": "left",
    "bars": "right",
    "first": "left",
    "last": "left",
    "covered": "fold",
}


def ranges(
    symbols: SomeSymbols = None,
    *,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Request the beginnings again, even if they are known."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show where the data of each symbol begin, and which bars the store holds.

    The head timestamp is requested from the gateway if the last response is older than a day. If
    the gateway has none, or states one that is later than a stored bar, small requests search for
    the oldest bar. They prove that data are at least that old, never that nothing older exists.

    Exit codes: 0 done, 1 the request for a symbol failed, 2 bad usage.
    """
    from ktrdr_pipelines.app.selection import instruments_of
    from ktrdr_pipelines.app.store_status import held_ranges
    from ktrdr_pipelines.app.views.series_documents import BeginningDocument, RangesDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.cli.output import warn_of_problem

    workspace = Workspace.open()
    warn_of_problem(workspace)
    note_symbol_named_all(workspace, symbols)
    manager = workspace.load_manager()
    instruments = instruments_of(workspace.universe, symbols)
    begun = run_stoppable(manager.discover(instruments, refresh=refresh))
    held = {one.instrument.symbol: held_ranges(workspace, one.instrument) for one in begun}
    failed = any(one.error is not None for one in begun)
    code = ExitCode.FAILED if failed else ExitCode.DONE
    if as_json:
        documents = (BeginningDocument.of(one, held[one.instrument.symbol]) for one in begun)
        say_json(RangesDocument(complete=not failed, exit_code=int(code), symbols=tuple(documents)))
    else:
        _say_ranges(begun, held)
    raise typer.Exit(code)


def _covered_text(held: "HeldRangeDocument") -> str:
    """Return the dates that coverage begins and ends on; its end is exclusive."""
    if held.covered_from is None or held.covered_to is None:
        return ""
    return f"{held.covered_from.date()} to {(held.covered_to - timedelta.resolution).date()}"


def _say_ranges(begun: "list[EarliestData]", held: "dict[str, list[HeldRangeDocument]]") -> None:
    say_table(_BEGINNINGS, map(_beginning_row, begun))
    rows = [
        (
            f"{symbol} {one.timeframe}",
            f"{one.bars:,}",
            one.first or "",
            one.last or "",
            _covered_text(one),
        )
        for symbol, many in held.items()
        for one in many
    ]
    say_table(_HELD, rows)
    for one in begun:
        if one.error is not None:
            say(f"{one.instrument.symbol}: {one.error}")


def _beginning_row(one: "EarliestData") -> tuple[str, ...]:
    how = str(one.how)
    if one.contradicted and one.head is not None:
        how = f"{how}; the head timestamp {one.head:%Y-%m-%d} is later than a stored bar"
    return (
        one.instrument.symbol,
        str(one.instrument.what_to_show),
        str(one.oldest or "?"),
        how,
        instant_text(one.asked_at) if one.asked_at else "",
    )
