"""The number of bars of each session, encoded for the ledger and decoded as arrays."""

import json
from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.store.ledger.file_index import decode_sessions, encode_sessions

counts = st.dictionaries(st.dates(date(1970, 1, 1)), st.integers(0, 100_000))


def _read(encoded: str | bytes) -> dict[date, int]:
    days, rows = decode_sessions(encoded)
    return dict(zip(days.astype(object).tolist(), rows.tolist(), strict=True))


@given(counts)
def test_what_is_packed_is_read(rows: dict[date, int]) -> None:
    """Every date with its number of bars."""
    assert _read(encode_sessions(rows)) == rows


@given(counts)
def test_what_version_1_wrote_is_read(rows: dict[date, int]) -> None:
    """Older ledgers hold JSON."""
    assert _read(json.dumps({day.isoformat(): count for day, count in rows.items()})) == rows


def test_decades_of_whole_sessions_are_small() -> None:
    """Twenty years of sessions take less than two kilobytes."""
    rows = {date.fromordinal(730_000 + n + n // 5 * 2): 390 for n in range(5_000)}
    assert len(encode_sessions(rows)) < 2_000
