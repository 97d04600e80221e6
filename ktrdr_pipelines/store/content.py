"""A digest of bars, to compare stores by.

Not here: which bars should be there (``load.verify``), which can be (``core.plausibility``), the
file's footer (``store.recount``).
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.core.bars import BAR_SCHEMA, stamps


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
