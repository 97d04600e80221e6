"""What the bars of a file are, beyond their count: sane or not, and a digest to compare stores by.

Not here: which bars should be there (``load.verify``), the file's footer (``store.recount``).
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.core.bars import BAR_SCHEMA, stamps

_PRICES = ("open", "high", "low", "close")


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


def insane_bars(bars: pa.Table) -> int:
    """Count bars whose values cannot be: no price, a high below a low, a negative volume."""
    values = {name: bars[name].to_numpy(zero_copy_only=False) for name in _PRICES}
    with np.errstate(invalid="ignore"):
        sane = np.all([np.isfinite(values[name]) for name in _PRICES], axis=0)
        for name in ("open", "close"):
            sane &= (values["low"] <= values[name]) & (values[name] <= values["high"])
    for name in ("volume", "bar_count"):
        sane &= pc.fill_null(pc.greater_equal(bars[name], 0), True).to_numpy()  # noqa: FBT003
    return int(np.count_nonzero(~sane))


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
