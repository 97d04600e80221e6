"""The bytes of a bar file: columns, codecs, where its pages lie, and the digest of all bytes.

Not here: what the footer says (``store.bars.footer``), putting the bytes on disk and reading bars
(``store.bars.bar_file``).
"""

import hashlib
import re
from collections.abc import Set as AbstractSet
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from ktrdr_pipelines.domain.bars import STORED_SCHEMA
from ktrdr_pipelines.store.bars.footer import UNKNOWN_DIGEST

FOOTER_KEY: Final = "ktrdr"
"""Key of the footer's JSON in the key-value metadata of the Parquet file."""

ROW_GROUP_ROWS: Final = 131_072
"""Rows in a row group: a year of regular-hours minutes fits one, of all hours three or four."""

SORTED_BY: Final = (pq.SortingColumn(0),)
"""The sorting columns of a file as it was written, which other programs leave out."""

_REPEATED: Final = ("session_date", "open", "high", "low", "close", "basis")
"""Columns that repeat their values, which are written as numbers of a dictionary."""

_ENCODINGS: Final = {
    "ts": "DELTA_BINARY_PACKED",
    "volume": "BYTE_STREAM_SPLIT",
    "average": "PLAIN",
    "bar_count": "DELTA_BINARY_PACKED",
}
"""Encodings of the other columns. Volumes are whole numbers, so most of their bytes are zeros that
lie together once the bytes of all values are split into streams."""

_CODECS: Final = dict.fromkeys(STORED_SCHEMA.names, "lz4") | {"average": "zstd"}
"""Codecs, chosen by measurement. LZ4 decodes at twice the speed of Zstandard; averages, which no
read decodes unless they are asked for, take a third less with the latter."""

_DICTIONARY_BYTES: Final = 524_288
"""Size from which a column has too few repeated values for its dictionary to save anything: half of
the values of a row group."""

_MAGIC_BYTES: Final = 4
_SHIFTS: Final = 61
_SHIFT_STEP: Final = 23
"""The first page of each version lies this many bytes further than that of the version before,
modulo ``_SHIFTS``, a prime: it takes long until one begins where an older one did."""

_FILE_DIGEST: Final = re.compile(rb'"file":"([0-9a-f]{64})"')
_DIGEST_WITHIN: Final = 4_194_304
"""Bytes at the end of a file that are searched for its footer."""


def encode(bars: pa.Table, footer: str, *, is_as_written: bool, earlier: AbstractSet[int]) -> bytes:
    """Return the bytes of a bar file.

    A reader that opens a path twice, as DuckDB does to prepare a query and to run it, may use the
    footer of one version on the pages of the next. Where pages begin at the same bytes it would
    return rows of neither, without an error. So no chunk of a column begins here where one of the
    earlier version did: such a reader meets no page and fails, and may try again.

    Args:
        bars: all bars, in the columns of ``STORED_SCHEMA``.
        footer: the JSON of the footer.
        is_as_written: whether the values are those that were saved (``bar_file.write_file``).
        earlier: ``chunk_starts`` of the version that these bytes replace; empty where none.
    """
    shift = (min(earlier) - _MAGIC_BYTES + _SHIFT_STEP) % _SHIFTS if earlier else 0
    for _ in range(_SHIFTS):
        data = _shifted(bars, footer, shift, is_as_written=is_as_written)
        if not earlier & chunk_starts(pq.read_metadata(pa.BufferReader(data))):
            break
        shift = (shift + _SHIFT_STEP) % _SHIFTS
    if not is_as_written:
        return bytes(data)
    position = _digest_span(data)
    if position is None:
        raise AssertionError("a footer with digests has a place for that of the file")
    whole = bytearray(data)
    whole[slice(*position)] = _digest_without(data, *position).encode()
    return bytes(whole)


def chunk_starts(metadata: pq.FileMetaData) -> set[int]:
    """Return at which bytes of a file its columns' chunks begin: dictionaries and first pages."""
    found: set[int] = set()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            found.add(column.data_page_offset)
            if column.has_dictionary_page:
                found.add(column.dictionary_page_offset)
    return found


def matches_digest(data: bytes) -> bool | None:
    """Return whether a file's bytes match the digest in its footer; None without a digest."""
    position = _digest_span(data)
    if position is None:
        return None
    return data[slice(*position)].decode() == _digest_without(data, *position)


def _shifted(bars: pa.Table, footer: str, shift: int, *, is_as_written: bool) -> pa.Buffer:
    """Return the bytes of a file, but for its digest, with empty bytes before the first page."""
    sink = pa.BufferOutputStream()
    full = _required_where_full(bars)
    with pq.ParquetWriter(
        sink,
        full.schema,
        compression=_CODECS,
        use_dictionary=list(_REPEATED),
        column_encoding=_ENCODINGS,
        dictionary_pagesize_limit=_DICTIONARY_BYTES,
        store_schema=False,
        write_page_checksum=True,
        sorting_columns=SORTED_BY if is_as_written else None,
    ) as writer:
        sink.write(bytes(shift))
        writer.write_table(full, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({FOOTER_KEY: footer})
    return sink.getvalue()


def _required_where_full(bars: pa.Table) -> pa.Table:
    """Return bars whose columns without nulls are not nullable, which decode faster."""
    fields = [
        field.with_nullable(column.null_count > 0)
        for field, column in zip(bars.schema, bars.columns, strict=True)
    ]
    return pa.Table.from_arrays(bars.columns, schema=pa.schema(fields))


def _digest_span(data: "bytes | pa.Buffer") -> tuple[int, int] | None:
    """Return start and end of the last file digest within a file's bytes."""
    view = memoryview(data)
    start = max(len(view) - _DIGEST_WITHIN, 0)
    positions = [match.span(1) for match in _FILE_DIGEST.finditer(view[start:])]
    return (start + positions[-1][0], start + positions[-1][1]) if positions else None


def _digest_without(data: "bytes | pa.Buffer", start: int, end: int) -> str:
    """Return the SHA-256 of a file's bytes with the placeholder in place of their digest."""
    view = memoryview(data)
    found = hashlib.sha256(view[:start])
    found.update(UNKNOWN_DIGEST.encode())
    found.update(view[end:])
    return found.hexdigest()
