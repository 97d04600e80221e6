"""One bar file: reading it, its footer and its digests, and writing it as a whole.

Three things protect a file. Each page has a checksum, which is compared on every read. The footer
holds digests of the bars and of the footer itself (``store.bars.footer``), which survive a rewrite
by another program that keeps the footer. And the footer holds a digest of all bytes of the file,
which detects a single changed bit. Files of earlier versions have none of these and are read as
they are.

Not here: where files lie and how bars get into them (``store.bars.bar_store``).
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ktrdr_pipelines.domain.bars import (
    BAR_SCHEMA,
    STORED_SCHEMA,
    UNCONFIRMED,
    bars_between,
    basis_of,
    basis_runs,
    micros,
    moment,
    timestamps,
    with_basis,
)
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.bars.digests import seal_of
from ktrdr_pipelines.store.bars.footer import (
    SCHEMA_VERSION,
    UNKNOWN_DIGEST,
    ChangedFooterError,
    Footer,
    NewerSchemaError,
    footer_from_json,
    footer_to_json,
)
from ktrdr_pipelines.store.files import bar_file_oddity, disk_errors, write_atomically

FOOTER_KEY = "ktrdr"
"""Key of the footer's JSON in the key-value metadata of the Parquet file."""

ROW_GROUP_ROWS = 131_072
"""Rows in a row group: a year of regular-hours minutes fits one, of all hours three or four."""

_SORTED_BY = (pq.SortingColumn(0),)

_FILE_DIGEST: Final = re.compile(rb'"file":"([0-9a-f]{64})"')
_DIGEST_WITHIN: Final = 4_194_304
"""Bytes at the end of a file that are searched for its footer."""

UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises for invalid Parquet files, those with changed bits in the footer included."""

LOST_BASIS: Final = "another program has removed the price basis of its bars"
"""What is wrong with a file of version 2 that has no column ``basis``."""

Known = Callable[[], Footer]
"""Returns the footer recorded elsewhere (the file index), for a file that has lost its own."""

_Opened = tuple[Footer, pq.ParquetFile]


def read_bars(path: Path, known: Known | None = None) -> pa.Table:
    """Return all bars of a file in the columns of ``STORED_SCHEMA``, sorted by timestamp.

    Args:
        path: the file.
        known: replaces the footer where another program rewrote the file without it.

    Raises:
        CorruptFileError: the file is not a bar file of ktrdr, or is damaged.
        StoreError: a newer version wrote the file.
        DiskError: the system refused to read it.
    """
    return read_file(path, known)[1]


def read_footer(path: Path) -> Footer:
    """Return the footer of a file without reading its bars.

    Raises: as ``read_bars``.
    """
    with _opened(path) as (footer, _file):
        return footer


def read_file(path: Path, known: Known | None = None) -> tuple[Footer, pa.Table]:
    """Return footer and bars of one version of a file, even while it is being replaced.

    The footer states what was true when ktrdr wrote the file; ``store.bars.integrity`` finds out
    what is true now.

    Raises: as ``read_bars``.
    """
    with _opened(path, known) as (footer, file):
        return footer, _stored(file, footer)


def read_keys(path: Path, known: Known | None = None) -> tuple[Footer, pa.Table]:
    """Return footer, ``ts`` and ``session_date``; as ``read_file``."""
    with _opened(path, known) as (footer, file):
        return footer, _table(file, ["ts", "session_date"])


def has_footer(path: Path) -> bool:
    """Return whether a Parquet file has a ktrdr footer."""
    with disk_errors(path), _parquet(path) as file:
        return FOOTER_KEY.encode() in (file.metadata.metadata or {})


def has_lost_basis(path: Path, version: int) -> bool:
    """Return whether another program has removed the column ``basis`` from a file of a version."""
    if version == 1:
        return False
    with disk_errors(path), _parquet(path) as file:
        return "basis" not in file.schema_arrow.names


def is_as_written(path: Path) -> bool:
    """Return whether a file is as ``write_file`` wrote it: by its digest, else by its layout.

    Other programs may keep the footer, but name no sorting columns and add their own schema
    (pyarrow), or lose the footer (pandas, DuckDB).

    Raises: as ``read_footer``.
    """
    same = has_true_digest(path)
    if same is not None:
        return same
    try:
        with disk_errors(path), _parquet(path) as file:
            metadata = file.metadata
            groups = [metadata.row_group(position) for position in range(metadata.num_row_groups)]
            return set(metadata.metadata or {}) == {FOOTER_KEY.encode()} and all(
                group.sorting_columns == _SORTED_BY for group in groups
            )
    except UNREADABLE as error:
        raise corrupt(path, str(error)) from error


def may_have_flat(path: Path) -> bool:
    """Return whether a file may hold bars without volume, by its Parquet statistics.

    Raises: as ``read_footer``.
    """
    try:
        with disk_errors(path), _parquet(path) as file:
            groups = [file.metadata.row_group(at) for at in range(file.metadata.num_row_groups)]
    except UNREADABLE as error:
        raise corrupt(path, str(error)) from error
    position = BAR_SCHEMA.get_field_index("volume")
    for group in groups:
        column = group.column(position) if position < group.num_columns else None
        if column is None or column.path_in_schema != "volume" or column.statistics is None:
            return True
        least = column.statistics
        is_null = least.has_null_count and least.null_count == group.num_rows
        if not is_null and not (least.has_min_max and least.min > 0):
            return True
    return False


def has_true_digest(path: Path) -> bool | None:
    """Return whether a file's bytes match the digest in its footer; None without a digest.

    Raises:
        CorruptFileError: the path is not a regular file.
        DiskError: the system refused to read it.
    """
    if oddity := bar_file_oddity(path):
        raise corrupt(path, oddity)
    with disk_errors(path):
        data = path.read_bytes()
    position = _digest_span(data)
    if position is None:
        return None
    return data[slice(*position)].decode() == _digest_without(data, *position)


def wrong_statistics(path: Path) -> str:
    """Compare a file's Parquet statistics with its values; queries skip row groups by them.

    Returns: a description of the first difference, or an empty string.

    Raises: as ``read_bars``.
    """
    with _opened(path) as (_footer, file):
        for group in range(file.metadata.num_row_groups):
            bars = file.read_row_group(group)
            for position in range(file.metadata.num_columns):
                column = file.metadata.row_group(group).column(position)
                if column.path_in_schema in bars.schema.names and not _is_true(
                    column.statistics, bars[column.path_in_schema]
                ):
                    return f"the statistics of {column.path_in_schema} are not those of its values"
    return ""


def count_bars_between(path: Path, interval: Interval, known: Known | None = None) -> int:
    """Return how many bars have a timestamp in an interval, reading only the timestamps."""
    with _opened(path, known) as (_footer, file):
        keys = _table(file, ["ts"])
    return int(bars_between(keys, interval.start, interval.end).num_rows)


def write_file(
    path: Path,
    bars: pa.Table,
    footer: Footer,
    *,
    is_as_written: bool = True,
    before_renaming: Callable[[], object] | None = None,
) -> Footer:
    """Write bars and footer to a file, in one atomic step.

    Args:
        path: the file.
        bars: all its bars, sorted by timestamp; without a column ``basis`` it is 0.
        footer: what the file states about them; the version and the runs of bars on one basis are
            those of the new file.
        is_as_written: whether the values are those that were saved; False keeps it visible that
            another program wrote them (``is_as_written``), and gives the file no digests.
        before_renaming: as in ``store.files.write_atomically``.

    Returns: the footer with the digests that were written.

    Raises:
        DiskError: the system refused; the earlier file is unchanged.
    """
    bars = with_basis(bars, 0)
    footer = replace(
        footer,
        schema_version=SCHEMA_VERSION,
        seal=seal_of(bars) if is_as_written else None,
        basis=replace(
            footer.basis,
            intervals=tuple(
                (Interval(moment(start), moment(end)), basis)
                for start, end, basis in basis_runs(bars)
            ),
        ),
    )
    whole = io.BytesIO()
    with pq.ParquetWriter(
        whole,
        STORED_SCHEMA,
        compression="zstd",
        store_schema=False,
        write_page_checksum=True,
        sorting_columns=_SORTED_BY if is_as_written else None,
    ) as writer:
        writer.write_table(bars, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({FOOTER_KEY: footer_to_json(footer)})
    data = whole.getbuffer()
    if is_as_written:
        position = _digest_span(data)
        if position is None:
            raise AssertionError("a footer with digests has a place for that of the file")
        data[slice(*position)] = _digest_without(data, *position).encode()

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(path, write, before_renaming)
    return footer


def _digest_span(data: bytes | memoryview) -> tuple[int, int] | None:
    """Return start and end of the last file digest within a file's bytes."""
    start = max(len(data) - _DIGEST_WITHIN, 0)
    positions = [match.span(1) for match in _FILE_DIGEST.finditer(bytes(data[start:]))]
    return (start + positions[-1][0], start + positions[-1][1]) if positions else None


def _digest_without(data: bytes | memoryview, start: int, end: int) -> str:
    """Return the SHA-256 of a file's bytes with the placeholder in place of their digest."""
    view = memoryview(data)
    found = hashlib.sha256(view[:start])
    found.update(UNKNOWN_DIGEST.encode())
    found.update(view[end:])
    return found.hexdigest()


def _is_true(said: pq.Statistics | None, values: pa.ChunkedArray) -> bool:
    """Return whether the statistics of a column, as far as it has any, match its values."""
    if said is None:
        return True
    if said.has_null_count and said.null_count != values.null_count:
        return False
    if not said.has_min_max or (
        pa.types.is_floating(values.type) and pc.any(pc.is_nan(values)).as_py()
    ):
        return True
    bounds = pc.min_max(values)
    least, greatest = bounds["min"], bounds["max"]
    if pa.types.is_timestamp(values.type):
        least, greatest = (one.cast(pa.int64()) for one in (least, greatest))
        return (said.min_raw, said.max_raw) == (least.as_py(), greatest.as_py())
    return (said.min, said.max) == (least.as_py(), greatest.as_py())


def _parquet(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, page_checksum_verification=True)


@contextmanager
def _opened(path: Path, known: Known | None = None) -> Iterator[_Opened]:
    """Yield an open file and its footer; invalid content and disk errors are different errors."""
    if oddity := bar_file_oddity(path):
        raise corrupt(path, oddity)
    try:
        with disk_errors(path), _parquet(path) as file:
            yield _footer(path, file, known), file
    except UNREADABLE as error:
        raise corrupt(path, str(error)) from error


def _footer(path: Path, file: pq.ParquetFile, known: Known | None) -> Footer:
    text = (file.metadata.metadata or {}).get(FOOTER_KEY.encode())
    if text is None and known is None:
        raise corrupt(path, f"it is a Parquet file without the footer key {FOOTER_KEY!r}")
    footer = _parsed(path, text) if text is not None else known()  # type: ignore[misc]
    if footer.seal is None and known is not None and known().seal is not None:
        # ktrdr wrote this file with digests, and another program has removed them since.
        footer = known()
    if not _can_hold_bars(file.schema_arrow):
        raise corrupt(path, f"its columns are {file.schema_arrow.names}, not {BAR_SCHEMA.names}")
    if file.metadata.num_rows > footer.rows:
        raise corrupt(path, f"it has {file.metadata.num_rows} rows, {footer.rows} were written")
    return footer


def _parsed(path: Path, text: bytes) -> Footer:
    try:
        return footer_from_json(text)
    except NewerSchemaError as error:
        raise StoreError(
            f"cannot read {path}",
            reason=f"a newer ktrdr wrote it ({error})",
            hint="Use a newer ktrdr",
        ) from error
    except ChangedFooterError as error:
        raise corrupt(path, str(error)) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise corrupt(path, f"its footer is invalid: {text[:80]!r}") from error


def _can_hold_bars(schema: pa.Schema) -> bool:
    """Return whether bars can be read from columns that another program wrote: wider, or nullable.

    DuckDB takes the first of two names that differ in case alone, and adds a column ``filename``.
    """
    names = [name.lower() for name in schema.names]
    if not set(BAR_SCHEMA.names) <= set(schema.names):
        return False
    if len(set(names)) < len(names) or "filename" in names:
        return False
    timestamp = schema.field("ts").type
    if not pa.types.is_timestamp(timestamp) or timestamp.tz is None:
        return False
    try:
        schema.empty_table().select(BAR_SCHEMA.names).cast(BAR_SCHEMA)
    except (pa.ArrowException, ValueError):
        return False
    return True


def _stored(file: pq.ParquetFile, footer: Footer) -> pa.Table:
    """Return all bars with their basis.

    Bars of a file of version 1 are on basis 0. Where another program has removed the column, the
    footer has the basis of each bar.
    """
    if footer.schema_version == 1:
        return with_basis(_table(file, BAR_SCHEMA.names), 0)
    if "basis" in file.schema_arrow.names:
        stored = _table(file, STORED_SCHEMA.names)
        if footer.seal is None and not np.array_equal(
            basis_of(stored), _basis_said(footer, timestamps(stored))
        ):
            raise pa.ArrowInvalid("bars are on another price basis than was written")
        return stored
    bars = _table(file, BAR_SCHEMA.names)
    said = _basis_said(footer, timestamps(bars))
    return bars.append_column(STORED_SCHEMA.field("basis"), pa.array(said))


def _basis_said(footer: Footer, keys: np.ndarray) -> np.ndarray:
    """Return the basis that a footer states for bars with these timestamps; sorted or not."""
    found = np.full(len(keys), UNCONFIRMED, np.int16)
    for interval, number in footer.basis.intervals:
        is_in = (keys >= micros(interval.start)) & (keys < micros(interval.end))
        found[is_in] = number
    return found


def _table(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """Return columns in the types of ``STORED_SCHEMA``; an Arrow error where a value is wrong."""
    schema = pa.schema([STORED_SCHEMA.field(name) for name in columns])
    table = file.read(columns=columns).select(columns).replace_schema_metadata(None)
    required = {"ts", "session_date", "basis"}
    if any(table[name].null_count for name in columns if name in required):
        raise pa.ArrowInvalid("a bar without a timestamp, a session date or a price basis")
    return table if table.schema.equals(schema) else table.cast(schema)


def corrupt(path: Path, reason: str) -> CorruptFileError:
    """Return the error of a file that cannot be read as a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file",
        reason=reason,
        hint="Run `ktrdr repair`: it quarantines the file and says what to load again",
    )
