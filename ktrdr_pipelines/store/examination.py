"""Looking through the bars of a file for what no bar can be: out of order, twice, or impossible.

Only what is newer than a date is read. Not here: whether a file is what its footer says
(``store.inspection``), what is missing (``load.gapbook``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ktrdr_pipelines.core.bars import VALUES
from ktrdr_pipelines.core.instruments import SecType
from ktrdr_pipelines.core.plausibility import Finding, explained
from ktrdr_pipelines.store.atomic import disk_errors
from ktrdr_pipelines.store.barfile import UNREADABLE, corrupt
from ktrdr_pipelines.store.path_kinds import bar_file_oddity

_COLUMNS = ["ts", "session_date", *VALUES]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Examined:
    """What some bars of a file are like; stamps are those of the first bad bar, or None."""

    rows: int = 0
    out_of_order: int = 0
    duplicates: int = 0
    implausible: int = 0
    findings: int = 0
    first_misplaced: datetime | None = None
    first_implausible: datetime | None = None


def examine(
    path: Path, since: date, sec_type: SecType | None = None, known: Iterable[Finding] = ()
) -> Examined:
    """Examine the bars of a file whose session is not older than a date.

    Args:
        path: the file.
        since: the oldest session date that is looked at.
        sec_type: the kind of the instrument.
        known: the findings of its series.

    Raises:
        CorruptFileError: it cannot be read.
        DiskError: the system refused.
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
    return examined(bars, sec_type, known)


def examined(
    bars: pa.Table, sec_type: SecType | None = None, known: Iterable[Finding] = ()
) -> Examined:
    """Examine bars as they stand in a file.

    ``implausible`` counts those that no finding explains, ``findings`` those that one does
    (``core.plausibility``).
    """
    keys = np.asarray(bars["ts"].cast(pa.int64()).to_numpy())
    steps = np.diff(keys)
    implausible, findings = explained(bars, sec_type, known)
    return Examined(
        rows=len(keys),
        out_of_order=int((steps < 0).sum()),
        duplicates=len(keys) - len(np.unique(keys)),
        implausible=int(implausible.sum()),
        findings=len(findings),
        first_misplaced=_first(keys[1:], steps <= 0),
        first_implausible=_first(keys, implausible),
    )


def _first(keys: np.ndarray, chosen: np.ndarray) -> datetime | None:
    places = np.flatnonzero(chosen)
    return _EPOCH + timedelta(microseconds=int(keys[places[0]])) if len(places) else None
