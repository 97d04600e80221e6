"""What a bar file really holds, when another program may have changed it.

A footer is true at the time of writing. Another program may have removed bars since, keeping the
footer (Arrow) or losing it (pandas, DuckDB). A session with fewer bars than were written is no
longer covered, as a whole; a session with more, or bars out of order, make the file untrustworthy.

A lost footer is replaced by the file index's record of that very file. That is as safe as a kept
footer: either states only what ktrdr wrote under that name, neither vouches for the values of the
remaining bars, and both are believed only as far as a count of every session confirms. A file
without footer that the ledger does not know is an error. Implausible values written by another
program are not believed.

Not here: comparing a file with its digests and statistics (``store.maintenance.inspection``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, VALUES, moment, rows_per_session, timestamps
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import SecType
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.plausibility import Finding, explained
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_file import (
    UNREADABLE,
    Known,
    corrupt,
    has_true_digest,
    is_as_written,
    read_file,
    read_keys,
)
from ktrdr_pipelines.store.bars.digests import Seal, is_sealed, seal_of
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.files import bar_file_oddity, disk_errors

_COLUMNS = ["ts", "session_date", *VALUES]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class CheckedBars:
    """Counts of misplaced and implausible bars; ``first_*`` is the first such bar, or None."""

    rows: int = 0
    out_of_order: int = 0
    duplicates: int = 0
    implausible: int = 0
    findings: int = 0
    first_misplaced: datetime | None = None
    first_implausible: datetime | None = None


def check_file(
    path: Path, since: date, sec_type: SecType | None = None, known: Iterable[Finding] = ()
) -> CheckedBars:
    """Check the bars of a file from a session date on; older ones are not read.

    Args:
        path: the file.
        since: the oldest session date to check.
        sec_type: the kind of the instrument; None where it is unknown.
        known: the findings of its series.

    Raises:
        CorruptFileError: the file cannot be read as a bar file.
        DiskError: the system refused to read it.
    """
    if oddity := bar_file_oddity(path):
        raise corrupt(path, oddity)
    try:
        with disk_errors(path):
            bars = pq.read_table(
                path,
                columns=_COLUMNS,
                filters=pc.field("session_date") >= pa.scalar(since),
                page_checksum_verification=True,
            )
    except UNREADABLE as error:
        raise corrupt(path, str(error)) from error
    return check_bars(bars, sec_type, known)


def check_bars(
    bars: pa.Table, sec_type: SecType | None = None, known: Iterable[Finding] = ()
) -> CheckedBars:
    """Check bars in the order of their file.

    ``implausible`` counts bars that no finding explains, ``findings`` those that one does
    (``domain.plausibility``).
    """
    keys = np.asarray(bars["ts"].cast(pa.int64()).to_numpy())
    steps = np.diff(keys)
    implausible, findings = explained(bars, sec_type, known)
    return CheckedBars(
        rows=len(keys),
        out_of_order=int((steps < 0).sum()),
        duplicates=len(keys) - len(np.unique(keys)),
        implausible=int(implausible.sum()),
        findings=len(findings),
        first_misplaced=_first(keys[1:], steps <= 0),
        first_implausible=_first(keys, implausible),
    )


def _first(keys: np.ndarray, chosen: np.ndarray) -> datetime | None:
    positions = np.flatnonzero(chosen)
    return _EPOCH + timedelta(microseconds=int(keys[positions[0]])) if len(positions) else None


_DAY = timedelta(days=1)
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class TrueFile:
    """What a file holds now; ``is_as_written`` is False where another program wrote its bars."""

    footer: Footer
    bars: pa.Table
    is_as_written: bool


def true_file(path: Path, known: Known | None, calendar: SessionCalendar | None) -> TrueFile:
    """Return what a file holds now, from all its bars.

    Args:
        path: the file.
        known: replaces a lost footer.
        calendar: as for ``true_footer``.

    Raises: as ``bar_file.read_bars`` and ``true_footer``.
    """
    said, bars = read_file(path, known)
    footer = true_footer(path, said, bars, calendar)
    return TrueFile(footer, bars, said.seal is not None or is_as_written(path))


def current_footer(path: Path, known: Known | None, calendar: SessionCalendar | None) -> Footer:
    """Return the true footer of a file, as ``true_file``, reading as little as possible.

    A file whose bytes match its digest is believed; of others that can be checked all bars are
    read.
    """
    said, bars = read_keys(path, known)
    if (said.seal or said.schema_version > 1) and not has_true_digest(path):
        said, bars = read_file(path, known)
    return true_footer(path, said, bars, calendar)


def true_footer(
    path: Path, said: Footer, bars: pa.Table, calendar: SessionCalendar | None
) -> Footer:
    """Return the footer that is true of a file now, from the written one and its present bars.

    Args:
        path: for messages.
        said: the footer as it was written.
        bars: all bars of the file; for a file without digests, timestamps and session dates
            suffice.
        calendar: the calendar whose session days bound lost sessions; without one the bars around
            them do, so that more may be requested again than was lost.

    Raises:
        CorruptFileError: the file has bars that were not written, bars out of order, or bars with
            other values than were written.
    """
    keys = timestamps(bars)
    if not bool(np.all(keys[1:] > keys[:-1])):
        raise corrupt(path, "its bars are not in order, or not unique")
    found = rows_per_session(bars)
    for day, rows in found.items():
        written = said.rows_per_session.get(day, 0)
        if rows > written:
            raise corrupt(path, f"{rows} bars of {day}, {written} were written")
    seal = said.seal
    if seal is not None and "close" in bars.schema.names:
        seal = _remaining_seal(path, said, seal, bars)
    if found == said.rows_per_session:
        return said
    lost = [day for day, rows in said.rows_per_session.items() if found.get(day, 0) < rows]
    timeframe = said.identity.timeframe
    file_intervals = IntervalSet(_interval_of(day, timeframe, bars, calendar) for day in lost)
    coverage = Coverage(said.coverage.bars - file_intervals, said.coverage.empty)
    return replace(said, coverage=coverage, rows=len(keys), rows_per_session=found, seal=seal)


def without_implausible(
    footer: Footer, bars: pa.Table, known: Iterable[Finding], sec_type: SecType | None
) -> Footer:
    """Return the footer of a file that another program wrote, without its implausible bars.

    Implausible bars without a finding may come from that program. They are no longer covered, so
    that they are requested again and the gateway's response counts. Otherwise they would pass for
    the gateway's as soon as the file is rewritten.

    Args:
        footer: what is true of the file by its counts.
        bars: all bars of the file.
        known: the findings of the series.
        sec_type: the kind of the instrument; None where it is unknown.

    Returns: the same object where nothing changes.
    """
    implausible, _ = explained(bars, sec_type, known)
    length = footer.identity.timeframe.length
    keys = timestamps(bars)[implausible].tolist()
    positions = IntervalSet(Interval(moment(key), moment(key) + length) for key in keys)
    if not footer.coverage.bars & positions:
        return footer
    coverage = replace(footer.coverage, bars=footer.coverage.bars - positions)
    return replace(footer, coverage=coverage)


def _remaining_seal(path: Path, said: Footer, seal: Seal, bars: pa.Table) -> Seal:
    """Return the seal of the remaining sessions, or refuse the file.

    The file is refused where a value was changed, and where a session has lost some of its bars:
    the remaining ones of that session can no longer be checked. Sessions that are gone as a whole
    are missing.

    Raises:
        CorruptFileError: the file is refused.
    """
    sealed = bars.select(BAR_SCHEMA.names) if said.schema_version == 1 else bars
    if is_sealed(sealed, seal):
        return seal
    here = seal_of(sealed)
    found, written = rows_per_session(bars), said.rows_per_session
    broken = [day for day, rows in found.items() if rows < written.get(day, 0)]
    if broken:
        raise corrupt(
            path, f"bars of {min(broken)} are gone, and the remaining ones cannot be checked"
        )
    whole = {day: crc for day, crc in here.sessions.items() if found[day] == written.get(day)}
    changed = [day for day, crc in whole.items() if seal.sessions.get(day, crc) != crc]
    if changed or (found == written and seal.bars):
        days = f"of {min(changed)}" if changed else "of some session"
        more = f" and {len(changed) - 1} other session dates" if len(changed) > 1 else ""
        raise corrupt(path, f"the bars {days}{more} have other values than were written")
    return Seal("", {day: crc for day, crc in whole.items() if day in seal.sessions})


def _interval_of(
    day: date, timeframe: Timeframe, bars: pa.Table, calendar: SessionCalendar | None
) -> Interval:
    """Return the interval of bar timestamps that a session date can have."""
    if timeframe is Timeframe.D1:
        return Interval(midnight(day), midnight(day + _DAY))
    if timeframe is Timeframe.W1:
        return Interval(midnight(monday_of(day)), midnight(monday_of(day) + 7 * _DAY))
    if calendar is not None:
        return Interval(calendar.day_starts_at(day), calendar.day_starts_at(day + _DAY))
    return _between_others(day, timeframe, bars)


def _between_others(day: date, timeframe: Timeframe, bars: pa.Table) -> Interval:
    """Return the interval from the last bar of an earlier session to the first of a later one.

    A session's last bar may be short. Where the next session can begin within its full length, as
    with four hours, that bar is not trusted either.
    """
    length = timedelta(0) if timeframe is Timeframe.H4 else timeframe.length
    keys = timestamps(bars)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    earlier, later = keys[days < np.datetime64(day)], keys[days > np.datetime64(day)]
    return Interval(
        moment(earlier[-1]) + length if len(earlier) else _FIRST,
        moment(later[0]) if len(later) else _LAST,
    )
