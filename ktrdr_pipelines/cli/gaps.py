"""``ktrdr gaps``: every gap with its reason; it asks no gateway.

Not here: how gaps are found (``load.gapbook``), the picture (``load.heatmap``).
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ktrdr_pipelines.cli.choosing import SomeSymbols, SomeTimeframes, chosen_series
from ktrdr_pipelines.cli.output import (
    AsJson,
    counted,
    error_json,
    instant_text,
    note,
    say,
    say_json,
    say_table,
    stretch_text,
)
from ktrdr_pipelines.errors import DiskError, ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.core.completeness import Gap
    from ktrdr_pipelines.load.gapbook import GapBook, SeriesGaps

MOST_OF_A_SERIES: Final = 10
"""Gaps of one series that are told one by one; behind them the rest is counted."""

_COLUMNS: Final = {
    "series": "left",
    "from and to": "left",
    "sessions": "right",
    "bars": "right",
    "reason": "left",
    "next try": "left",
}


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
    as_json: AsJson = False,
) -> None:
    """Show what is missing and why: each gap with its extent, its bars and its next try.

    A gap is time that sessions are expected in, that no answer has settled and nothing explains.

    Exit codes: 0 no gap, 1 a series cannot be read, 2 bad usage, 3 there are gaps.
    """
    from ktrdr_pipelines.cli.place import open_book, open_place, warn_of_problem

    place = open_place()
    now = place.now
    warn_of_problem(place)
    book = open_book(place)
    found = book.look(chosen_series(place.universe, book.store, symbols, timeframes), now)
    if plot is not None:
        _plot(plot, book, found, now)
    if as_json:
        say_json(_document(found, plot))
    else:
        _tell(found, most=None if every else MOST_OF_A_SERIES)
        if plot is not None:
            say(f"The picture is {plot}")
    raise typer.Exit(exit_code_of(found))


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
        "start": gap.stamps.start,
        "end": gap.stamps.end,
        "sessions": gap.sessions,
        "bars": gap.bars,
        "detail": gap.detail,
        "next_try_at": gap.next_try_at,
    }


def _plot(path: Path, book: "GapBook", found: "Sequence[SeriesGaps]", now: datetime) -> None:
    from ktrdr_pipelines.load.heatmap import coverage_heatmap

    picture = coverage_heatmap(book, found, now)
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise DiskError(
            f"cannot write {path}",
            came=error.strerror or str(error),
            remedy="Name a file in a folder that is there and can be written",
        ) from error


def _tell(found: "Sequence[SeriesGaps]", most: int | None) -> None:
    missing = [one for one in found if one.gaps]
    if missing:
        say_table(_COLUMNS, (row for one in missing for row in _rows(one, most)))
        for line in _reasons(missing):
            say(line)
    for text in dict.fromkeys(str(one.error) for one in found if one.error is not None):
        note(f"Error: {text}")
    say(_summary(found, missing))


def _rows(one: "SeriesGaps", most: int | None) -> Iterator[Sequence[object]]:
    told = one.gaps if most is None else one.gaps[-most:]
    if rest := one.gaps[: len(one.gaps) - len(told)]:
        bars = f"{sum(gap.bars for gap in rest):,}"
        sessions = f"{sum(gap.sessions for gap in rest):,}"
        older = f"{counted(len(rest), 'older gap')} since {rest[0].stamps.start:%Y-%m-%d}"
        yield one.series, older, sessions, bars, "--all names them", ""
    for gap in told:
        again = "" if gap.next_try_at is None else instant_text(gap.next_try_at)
        stretch = stretch_text(one.series.timeframe, gap.stamps)
        yield one.series, stretch, f"{gap.sessions:,}", f"{gap.bars:,}", gap.reason, again


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


def _document(found: "Sequence[SeriesGaps]", plot: Path | None) -> dict[str, Any]:
    code = exit_code_of(found)
    return {
        "complete": code is ExitCode.DONE,
        "exit_code": int(code),
        "series": len(found),
        "gaps": [gap_json(one, gap) for one in found for gap in one.gaps],
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
