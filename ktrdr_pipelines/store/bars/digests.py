"""Digests of bars: what tells the values that were written from any others.

Not here: which bars should be there (``gaps.verification``), which can be
(``domain.plausibility``), where digests are kept (``store.bars.footer``,
``store.ledger.file_index``).
"""

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, timestamps


class Digest:
    """A SHA-256 over bars in their order: the same for the same bars, however they are filed."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, bars: pa.Table) -> None:
        """Take in bars that follow those before."""
        self._hash.update(np.rec.fromarrays(_columns(bars)).tobytes())

    @property
    def text(self) -> str:
        """The digest so far, in hexadecimal."""
        return self._hash.hexdigest()


@dataclass(frozen=True, slots=True)
class Seal:
    """Digests of the bars of one file as they were written.

    ``bars`` is the SHA-256 over all of them, column by column, in hexadecimal, empty where another
    program has taken bars out since. ``sessions`` is the CRC-32 of the bars of each session date,
    so that a session can be judged although others are gone; dates whose bars cannot be judged are
    not in it. No CRC-32 is told as zero.
    """

    bars: str
    sessions: Mapping[date, int]


def seal_of(bars: pa.Table) -> Seal:
    """Return the digests of the bars of a file; a CRC-32 of zero is told as one."""
    columns = [np.ascontiguousarray(one).view(np.uint8).data for one in _columns(bars)]
    whole = hashlib.sha256()
    for column in columns:
        whole.update(column)
    days = bars["session_date"].to_numpy().astype("datetime64[D]")
    is_first = np.concatenate((np.ones(min(len(days), 1), bool), days[1:] != days[:-1]))
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(days))
    found: dict[date, int] = {}
    for start, end in zip(starts.tolist(), ends.tolist(), strict=False):
        day = days[start].item()
        crc = found.get(day, 0)
        for column in columns:
            width = len(column) // len(days)
            crc = zlib.crc32(column[start * width : end * width], crc)
        found[day] = crc
    return Seal(whole.hexdigest(), {day: crc or 1 for day, crc in found.items()})


def _columns(bars: pa.Table) -> list[np.ndarray]:
    """Return the values of each column, and which of them are null."""
    return [part for name in BAR_SCHEMA.names for part in _plain(bars, name)]


def _plain(bars: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give a column as fixed-width little-endian values, and which of them are null."""
    if name == "ts":
        keys = timestamps(bars)
        return keys.astype("<i8"), np.zeros(len(keys), "?")
    column = bars[name].combine_chunks()
    null = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    kind = "<i4" if pa.types.is_int32(column.type) else "<f8"
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(kind), null
