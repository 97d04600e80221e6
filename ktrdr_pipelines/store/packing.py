"""How the ledger writes the bars of each session down: small, and read at once into arrays.

A sensor reads the counts of millions of sessions; they are steps from session to session, nearly
all alike, which compress to almost nothing. Ledgers of version 1 hold them as JSON, which is read
as well. Not here: the footer, which says the same in JSON (``store.footer``).
"""

import json
import zlib
from collections.abc import Mapping
from datetime import date

import numpy as np

_STEP = np.dtype("<i4")


def packed_sessions(rows_per_session: Mapping[date, int]) -> bytes:
    """Write down the bars of each session date."""
    days = np.array(sorted(rows_per_session), dtype="datetime64[D]")
    rows = [rows_per_session[day] for day in days.astype(object)]
    steps = [np.diff(column, prepend=0) for column in (days.astype(np.int64), np.array(rows, int))]
    return zlib.compress(np.concatenate(steps).astype(_STEP).tobytes(), level=1)


def unpacked_sessions(packed: str | bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read session dates (``datetime64[D]``) and the bars of each (int64)."""
    if isinstance(packed, str):
        told = json.loads(packed)
        return np.array(list(told), "datetime64[D]"), np.array(list(told.values()), np.int64)
    steps = np.frombuffer(zlib.decompress(packed), dtype=_STEP)
    half = len(steps) // 2
    days = steps[:half].cumsum(dtype=np.int64)
    return days.view("datetime64[D]"), steps[half:].cumsum(dtype=np.int64)
