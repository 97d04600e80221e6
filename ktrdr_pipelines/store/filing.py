"""Which file of a series holds which stretch of stamps.

1m and 5m have one file a year, the others one for all. A year begins when the session day of
1 January begins, so the evening of 31 December in New York is filed with the FX session it opens.
Bars and coverage are cut at the same moments: no file claims what stands in another.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from ktrdr_pipelines.core.bars import bars_between, moment, stamps
from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.coverage import Coverage
from ktrdr_pipelines.core.instruments import Identity, Origin, Series
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.store.footer import FileFacts

ALL = "all"
"""Stem of the one file of a series that is not filed by years."""

EVER = Interval(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
"""The stretch of a file that holds all."""

_BAR = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class FilePart:
    """The share of a save that goes into one file, named without ``.parquet``."""

    stem: str
    bars: pa.Table
    coverage: Coverage


def filed_parts(series: Series, bars: pa.Table, coverage: Coverage) -> Iterator[FilePart]:
    """Cut sorted bars and their coverage by files; only files that get something are named."""
    hull = _hull(bars, coverage)
    for stem, stretch in stretches(series, hull) if hull else ():
        part = FilePart(
            stem, bars_between(bars, stretch.start, stretch.end), coverage.clip(stretch)
        )
        if part.bars.num_rows or part.coverage:
            yield part


def stretches(series: Series, wanted: Interval) -> Iterator[tuple[str, Interval]]:
    """Give the stems of the files that share stamps with an interval, and what each holds."""
    if not series.timeframe.is_yearly_filed:
        yield ALL, EVER
        return
    calendar = calendar_named(series.instrument.calendar)
    last = calendar.day_of(wanted.end - _BAR).year
    for year in range(calendar.day_of(wanted.start).year, last + 1):
        bounds = (calendar.day_starts_at(date(y, 1, 1)) for y in (year, year + 1))
        yield str(year), Interval(*bounds)


def misfiled(
    path: Path,
    facts: FileFacts,
    symbol: str,
    timeframe: Timeframe,
    *,
    origin: Origin | None = None,
) -> str:
    """Say why a file cannot stand where it does, or nothing; copies count their bars twice.

    ``origin`` is that of the store, where it has one.
    """
    held = facts.identity
    if (held.symbol, held.timeframe) != (symbol, timeframe):
        return f"it holds {held}, its folder is that of {symbol} {timeframe}"
    if origin not in {None, held.origin}:
        return f"it holds {held}, the store holds bars of origin {origin}"
    if wrong := misnamed(path, timeframe):
        return wrong
    if not timeframe.is_yearly_filed:
        return ""
    strange = [day for day in facts.rows_per_session if day.year != int(path.stem)]
    return f"it holds bars of {strange[0]}, which are filed under that year" if strange else ""


def prevailing(
    held: Iterable[tuple[Identity, int]], origin: Origin | None, contract_id: int | None
) -> Identity | None:
    """Return what a series holds where its files disagree, or None where no file can tell.

    Args:
        held: the identity of each file, and its bars.
        origin: that of the store; files of another one do not count.
        contract_id: what the symbol stands for; of several identities that of this contract
            prevails, else the one with the most bars.
    """
    bars: Counter[Identity] = Counter()
    for identity, rows in held:
        if origin in {None, identity.origin}:
            bars[identity] += rows + 1
    return max(bars, key=lambda one: (one.contract_id == contract_id, bars[one]), default=None)


def replaced(facts: FileFacts, known: Callable[[], FileFacts] | None) -> str:
    """Say that a file holds another instrument than the ledger knows under its name, or nothing."""
    before = facts.identity if known is None else known().identity
    return (
        "" if facts.identity == before else f"it holds {facts.identity}, and held {before} before"
    )


def misnamed(path: Path, timeframe: Timeframe) -> str:
    """Say why a file of a timeframe cannot have its name, or nothing."""
    pattern = r"[0-9]{4}" if timeframe.is_yearly_filed else ALL
    return "" if re.fullmatch(pattern, path.stem) else f"no file of {timeframe} bars is named so"


def _hull(bars: pa.Table, coverage: Coverage) -> Interval | None:
    keys = stamps(bars)
    around = [coverage.bars.hull, *(proof.interval for proof in coverage.empty)]
    parts = [part for part in around if part]
    if len(keys):
        parts.append(Interval(moment(int(keys[0])), moment(int(keys[-1])) + _BAR))
    if not parts:
        return None
    return Interval(min(p.start for p in parts), max(p.end for p in parts))
