"""``ktrdr status`` and ``ktrdr ranges``: summarize the store, and show where data begin.

``status`` reads the store only and sends no request to a gateway; ``ranges`` may request the
beginnings.

Not here: finding the earliest data (``sync.discovery.earliest_data``).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.arguments import SomeSymbols, note_symbol_named_all
from ktrdr_pipelines.cli.commands.gaps import blocked_lines, explained_text
from ktrdr_pipelines.cli.output import (
    AsJson,
    adjustment_text,
    counted,
    few_text,
    instant_text,
    note,
    say,
    say_json,
    say_some,
    say_table,
    say_wrapped,
    unconfirmed_text,
)
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.app.store_status import KnownBases, StoreStatus
    from ktrdr_pipelines.app.views.series_documents import HeldRangeDocument
    from ktrdr_pipelines.domain.calendars.registry import Calendars
    from ktrdr_pipelines.domain.instruments import Instrument, Series
    from ktrdr_pipelines.domain.planning.gaps import Gap
    from ktrdr_pipelines.domain.timeframes import Timeframe
    from ktrdr_pipelines.domain.universe.universe import Universe
    from ktrdr_pipelines.gaps.index import SeriesGaps
    from ktrdr_pipelines.gaps.universe_diff import Stranger
    from ktrdr_pipelines.sync.discovery.earliest_data import EarliestData


_CONTRACT: Final = ("sec_type", "exchange", "currency")
_FIELDS: Final = ("what_to_show", "use_rth", "start", "backfill")
MOST_SERIES: Final = 40
"""Series that are listed; of more, a summary is shown."""
_WORST: Final = 10
"""Symbols, and lines of one kind, that a summary has."""
_COLUMNS: Final = {
    "series": "fold",
    "bars": "right",
    "first": "left",
    "last": "left",
    "covered until": "left?",
    "gaps": "right",
    "remark": "fold",
}
_TOTALS: Final = {
    "timeframe": "left",
    "series": "right",
    "bars": "right",
    "first": "left",
    "last": "left",
    "with gaps": "right",
    "bars missing": "right",
}
_WORST_COLUMNS: Final = {
    "symbol": "left",
    "bars": "right",
    "gaps": "right",
    "bars missing": "right",
    "remark": "fold",
}


def status(
    symbols: SomeSymbols = None,
    *,
    every: Annotated[
        bool,
        typer.Option("--all", help=f"List every series, also if there are over {MOST_SERIES}."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the store: the universe, the bars of each series, gaps and failed attempts.

    With symbols, their series alone are shown, and all that is known of them. Of a large universe
    a summary is shown: totals by timeframe, the symbols that lack most, and errors. No request is
    sent to a gateway.

    Exit codes: 0 shown, with or without gaps (ktrdr gaps exits with 3 if there are any), 1 a
    series cannot be read, 2 bad usage, 3 the gateway returned stored bars again at other prices,
    and it is no re-basing, or not confirmed as one yet.
    """
    from ktrdr_pipelines.app.selection import is_everything
    from ktrdr_pipelines.app.store_status import status_document, store_status
    from ktrdr_pipelines.app.workspace import Workspace

    workspace = Workspace.open()
    note_symbol_named_all(workspace, symbols)
    found = store_status(workspace, symbols)
    if as_json:
        say_json(status_document(found))
        raise typer.Exit(found.exit_code)
    is_whole = is_everything(workspace.universe, symbols)
    is_summary = not every and is_whole and len(found.series) > MOST_SERIES
    most = _WORST if is_summary else None
    _say_store(found)
    if is_summary:
        say_table(_TOTALS, _total_rows(found.series))
        worst = _worst_rows(found.series)
        if worst:
            say(f"The symbols that lack most, {len(worst):,} of {_incomplete(found.series):,}:")
            say_table(_WORST_COLUMNS, worst)
    else:
        say_symbols(found.workspace.universe, found.instruments)
    say_some(_window_lines(found.workspace.universe, found.instruments), most=most)
    say_some(_calendar_lines(found.calendars), most=most)
    if not is_summary:
        say_table(_COLUMNS, map(_row, found.series))
    _say_states(found.series, found.unlisted, most=most)
    _say_bases(found.bases, most=most)
    _say_findings(found.series, found.findings)
    if is_summary:
        say_wrapped(
            "`ktrdr status SYMBOL` shows all of one symbol, `ktrdr status --all` each series"
        )
    say_wrapped(_total_text(found))
    raise typer.Exit(found.exit_code)


def _total_text(found: "StoreStatus") -> str:
    """Return the totals of the series that were looked at."""
    states = found.series
    missing = [state for state in states if state.gaps]
    gaps = counted(sum(len(state.gaps) for state in missing), "gap")
    lacks = (
        f"{gaps} in {counted(len(missing), 'series', 'series')}, about "
        f"{counted(_missing_bars(missing), 'bar')} missing"
        if missing
        else "no gap"
    )
    unreadable = sum(state.error is not None for state in states)
    return (
        f"Total: {counted(len(states), 'series', 'series')} of "
        f"{counted(len(found.instruments), 'symbol')}, "
        f"{counted(sum(state.rows for state in states), 'bar')}; {lacks}"
        + (f"; {counted(unreadable, 'series', 'series')} unreadable" if unreadable else "")
    )


def _missing_bars(states: "Iterable[SeriesGaps]") -> int:
    return sum(gap.bars for state in states for gap in state.gaps)


def _total_rows(states: "Sequence[SeriesGaps]") -> Iterator[tuple[object, ...]]:
    """Yield the totals of each timeframe, shortest first."""
    by_kind: dict[Timeframe, list[SeriesGaps]] = {}
    for state in states:
        by_kind.setdefault(state.series.timeframe, []).append(state)
    for kind, own in sorted(by_kind.items(), key=lambda one: one[0].seconds):
        yield (
            kind,
            f"{len(own):,}",
            f"{sum(state.rows for state in own):,}",
            min((state.first for state in own if state.first), default=""),
            max((state.last for state in own if state.last), default=""),
            f"{sum(bool(state.gaps) for state in own):,}",
            f"{_missing_bars(own):,}",
        )


def _by_symbol(states: "Sequence[SeriesGaps]") -> "dict[str, list[SeriesGaps]]":
    found: dict[str, list[SeriesGaps]] = {}
    for state in states:
        found.setdefault(state.series.symbol, []).append(state)
    return found


def _is_incomplete(own: "Iterable[SeriesGaps]") -> bool:
    return any(state.gaps or state.error is not None for state in own)


def _incomplete(states: "Sequence[SeriesGaps]") -> int:
    return sum(map(_is_incomplete, _by_symbol(states).values()))


def _worst_rows(states: "Sequence[SeriesGaps]") -> list[tuple[object, ...]]:
    """Return the symbols that cannot be read, then those that lack most bars."""
    found = [(symbol, own) for symbol, own in _by_symbol(states).items() if _is_incomplete(own)]
    found.sort(key=lambda one: (all(s.error is None for s in one[1]), -_missing_bars(one[1])))
    return [
        (
            symbol,
            f"{sum(state.rows for state in own):,}",
            f"{sum(len(state.gaps) for state in own):,}",
            f"{_missing_bars(own):,}",
            ", ".join(dict.fromkeys(filter(None, map(_remark, own)))),
        )
        for symbol, own in found[:_WORST]
    ]


def _say_bases(bases: "KnownBases", *, most: int | None) -> None:
    """Print a line for each symbol that was adjusted, and for each unconfirmed statement."""
    lines = []
    for symbol, known in bases.adjustments.items():
        in_force = [one for one in known if one.removed_at is None]
        if in_force:
            count = counted(len(in_force), "adjustment")
            lines.append(
                f"{symbol}: {count}, the last a {adjustment_text(in_force[-1])}; "
                f"ktrdr adjust {symbol} lists them"
            )
        else:
            lines.append(f"{symbol}: {counted(len(known), 'adjustment')}, all removed")
    say_some(lines, most=most)
    stated = bases.stated.items()
    texts = (f"{name}: {check.statement}, which the next load requests" for name, check in stated)
    say_some(texts, most=most)
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


def say_symbols(universe: "Universe", named: "Sequence[Instrument] | None" = None) -> None:
    """Print the resolved fields of symbols; a star marks those that the file does not set.

    Those of the whole universe are followed by the symbols that start before Dagster's windows.
    """
    rows = []
    for instrument in universe.instruments.values() if named is None else named:
        fields = universe.fields_of(instrument)
        contract = " ".join(_starred(*fields[name]) for name in _CONTRACT)
        rows.append((instrument.symbol, contract, *(_starred(*fields[name]) for name in _FIELDS)))
    say_table({"symbol": "left", "contract": "fold", **dict.fromkeys(_FIELDS, "left")}, rows)
    say("* derived, or from the defaults; --json shows which, and all fields")
    if named is None:
        say_some(_window_lines(universe, list(universe.instruments.values())), most=None)


def _window_lines(universe: "Universe", named: "Sequence[Instrument]") -> Iterator[str]:
    if universe.windows_notice:
        yield universe.windows_notice
    for timeframe, symbols in universe.before_windows(named).items():
        first = universe.windows.first_day(timeframe)
        yield (
            f"{few_text(symbols)}: {timeframe} starts before {first}, where Dagster's windows "
            "begin: sensors and backfills load nothing older, ktrdr load and ktrdr update do; "
            "`windows:` in the universe moves the first window"
        )


def _calendar_lines(calendars: "Calendars") -> Iterator[str]:
    """Yield the dates on which contracts agree that a calendar of the libraries is wrong."""
    for key, days in calendars.changed().items():
        for one in days:
            parts = one.stated.parts
            hours = "closed"
            if parts:
                hours = f"{instant_text(parts[0].start)} to {instant_text(parts[-1].end)}"
            yield (
                f"calendar {key} {one.stated.day}: {hours}, according to "
                f"{counted(len(one.symbols), 'contract')}: {few_text(one.symbols)}"
            )


def _say_states(
    states: "Sequence[SeriesGaps]", strangers: "Sequence[Stranger]", *, most: int | None
) -> None:
    say_some(blocked_lines(states), most=most)
    say_some(_confirmation_lines(states), most=most)
    disagreements = (
        f"{state.series}: {found.text_for(state.series)}"
        for state in states
        for found in (*state.disagreements, *state.volume_jumps)
    )
    say_some(disagreements, most=most)
    unconfirmed = (one for one in states if one.unconfirmed_bars)
    say_some((unconfirmed_text(one.series, one.unconfirmed_bars) for one in unconfirmed), most=most)
    errors = dict.fromkeys(str(state.error) for state in states if state.error is not None)
    for text in list(errors)[:most]:
        note(f"Error: {text}")
    if most is not None and len(errors) > most:
        note(f"  and {len(errors) - most:,} more errors; --all prints them")
    say_some(
        (
            f"{one.symbol} {one.timeframe}: {counted(one.rows, 'bar')} on disk, but it is not in "
            "the universe"
            for one in strangers
        ),
        most=most,
    )
    if text := explained_text(states):
        say(f"{text} without bars; ktrdr gaps lists them")
    missing = [state for state in states if state.gaps]
    if missing:
        first = missing[0].series
        say_wrapped(
            f"{counted(len(missing), 'series', 'series')} with gaps; ktrdr gaps lists them, "
            f"ktrdr load {first.symbol} {first.timeframe} fills the first"
        )


def _say_findings(states: "Sequence[SeriesGaps]", findings: "Mapping[str, int]") -> None:
    from ktrdr_pipelines.store.ledger.ledger import series_key

    found = [(state.series, findings.get(series_key(state.series), 0)) for state in states]
    affected = [f"{series} ({count:,})" for series, count in found if count]
    if affected:
        say_wrapped(
            f"bars with implausible values, kept as the gateway returned them: "
            f"{few_text(affected)}; ktrdr verify lists them"
        )


def _confirmation_lines(states: "Sequence[SeriesGaps]") -> Iterator[str]:
    """Yield a line for gaps that another response must confirm: why, and when it is due."""
    from ktrdr_pipelines.domain.planning.gaps import GapReason

    waiting = {
        GapReason.UNCONFIRMED,
        GapReason.CONTRADICTED,
        GapReason.SPARSE,
        GapReason.BASIS,
    }
    grouped: dict[tuple[str, str], list[tuple[Series, Gap]]] = {}
    for state in states:
        for gap in state.gaps:
            if gap.reason in waiting:
                grouped.setdefault((gap.reason, gap.detail), []).append((state.series, gap))
    for (reason, detail), found in grouped.items():
        due = min((gap.next_try_at for _, gap in found if gap.next_try_at), default=None)
        again = "" if due is None else f"; next request at {instant_text(due)}"
        names = few_text(list(dict.fromkeys(series for series, _ in found)))
        yield f"{reason}: {names}: {counted(len(found), 'gap')}: {detail}{again}"


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


def _starred(value: object, origin: str) -> str:
    """Return a field as the file writes it, with a star if the file does not set it."""
    from ktrdr_pipelines.domain.universe.fields import shown

    return f"{shown(value)}{'' if origin == 'set' else '*'}"


def _until_text(timeframe: "Timeframe", until: datetime | None) -> str:
    if until is None:
        return ""
    return f"{until:%Y-%m-%dT%H:%MZ}" if timeframe.is_intraday else str(until.date())


_BEGINNINGS: Final = {
    "symbol": "left",
    "shows": "left",
    "oldest data": "left",
    "how known": "fold",
    "requested": "left?",
}
_HELD: Final = {
    "series": "fold",
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
