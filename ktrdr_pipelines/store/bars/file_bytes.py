"""The bytes of a bar file: where its columns begin, and the digest of all of them.

A reader that opens a path twice, as DuckDB does to prepare a query and to run it, may use the
footer of one version on the columns of the next. Where these begin at the same bytes it would
return rows of neither, without an error. So no chunk of a column begins where one of the version
before did: such a reader finds no column and fails, and may try again.

Not here: how bars are encoded (``store.bars.bar_file``), what the footer says
(``store.bars.footer``).
"""

import hashlib
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from ktrdr_pipelines.store.bars.footer import UNKNOWN_DIGEST

_MAGIC_BYTES: Final = 4
_SHIFTS: Final = 61
_SHIFT_STEP: Final = 23
_MOST_SHIFTS: Final = 8
"""The first column of each version lies this many bytes further than that of the version before,
modulo ``_SHIFTS``, a prime: it takes long until one begins where an older one did. Other columns
may meet one of that version; so many shifts are tried, of which the first serves nearly always."""

_FILE_DIGEST: Final = re.compile(rb'"file":"([0-9a-f]{64})"')
_DIGEST_WITHIN: Final = 4_194_304
"""Bytes at the end of a file that are searched for its footer."""


def chunk_starts(metadata: pq.FileMetaData) -> set[int]:
    """Return at which bytes of a file the chunks of its columns begin, dictionaries and values."""
    found: set[int] = set()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            found.add(column.data_page_offset)
            if column.has_dictionary_page:
                found.add(column.dictionary_page_offset)
    return found


def apart(encode: Callable[[int], pa.Buffer], earlier: AbstractSet[int]) -> pa.Buffer:
    """Return an encoded file in which no chunk begins where one of the version before did.

    Args:
        encode: encodes the file, with so many empty bytes before its first column.
        earlier: ``chunk_starts`` of the version that it replaces; empty where there is none.
    """
    shift = (min(earlier) - _MAGIC_BYTES + _SHIFT_STEP) % _SHIFTS if earlier else 0
    for _ in range(_MOST_SHIFTS):
        data = encode(shift)
        if not earlier & chunk_starts(pq.read_metadata(pa.BufferReader(data))):
            break
        shift = (shift + _SHIFT_STEP) % _SHIFTS
    return data


def with_digest(data: pa.Buffer) -> bytes:
    """Return the bytes of a file with their digest in the place that its footer has for it."""
    position = _digest_span(data)
    if position is None:
        raise AssertionError("a footer with digests has a place for that of the file")
    whole = bytearray(data)
    whole[slice(*position)] = _digest_without(data, *position).encode()
    return bytes(whole)


def matches_digest(data: bytes) -> bool | None:
    """Return whether a file's bytes match the digest in its footer; None without a digest."""
    position = _digest_span(data)
    if position is None:
        return None
    return data[slice(*position)].decode() == _digest_without(data, *position)


def _digest_span(data: bytes | pa.Buffer) -> tuple[int, int] | None:
    """Return start and end of the last file digest within a file's bytes."""
    view = memoryview(data)
    start = max(len(view) - _DIGEST_WITHIN, 0)
    positions = [match.span(1) for match in _FILE_DIGEST.finditer(view[start:])]
    return (start + positions[-1][0], start + positions[-1][1]) if positions else None


def _digest_without(data: bytes | pa.Buffer, start: int, end: int) -> str:
    """Return the SHA-256 of a file's bytes with the placeholder in place of their digest."""
    view = memoryview(data)
    found = hashlib.sha256(view[:start])
    found.update(UNKNOWN_DIGEST.encode())
    found.update(view[end:])
    return found.hexdigest()
