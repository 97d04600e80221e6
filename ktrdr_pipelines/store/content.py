"""What the bars of a file are, beyond their count: plausible or not, and a digest of them.

Not here: which bars should be there (``load.verify``), the file's footer (``store.recount``).
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.core.bars import BAR_SCHEMA, stamps
from ktrdr_pipelines.core.instruments import SecType
from ktrdr_pipelines.core.plausibility import Finding, findings_of, implausible_rows


class Digest:
    """A SHA-256 over bars in their order: the same for the same bars, however they are filed."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, bars: pa.Table) -> None:
        """Take in bars that follow those before."""
        columns = [_plain(bars, name) for name in BAR_SCHEMA.names]
        rows = np.rec.fromarrays([part for pair in columns for part in pair])
        self._hash.update(rows.tobytes())

    @property
    def text(self) -> str:
        """The digest so far, in hexadecimal."""
        return self._hash.hexdigest()


def implausible_bars(
    bars: pa.Table, sec_type: SecType | None, known: Iterable[Finding]
) -> tuple[int, list[Finding]]:
    """Count implausible bars that no finding explains, and return the findings that explain others.

    A finding explains a bar that has the values which the gateway returned twice.
    """
    keys = stamps(bars)[implausible_rows(bars, sec_type)]
    found, explained = findings_of(bars, keys.tolist()), set(known)
    return sum(one not in explained for one in found), [one for one in found if one in explained]


def _plain(bars: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Give a column as fixed-width little-endian values, and which of them are null."""
    if name == "ts":
        keys = stamps(bars)
        return keys.astype("<i8"), np.zeros(len(keys), "?")
    column = bars[name].combine_chunks()
    null = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    kind = "<i4" if pa.types.is_int32(column.type) else "<f8"
    return pc.fill_null(column, 0).to_numpy(zero_copy_only=False).astype(kind), null
