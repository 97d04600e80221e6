"""One bar file: reading it, its footer and its digests, and writing it as a whole.

Three things protect a file. Each page has a checksum, which is compared on every read. The footer
holds digests of the bars and of the footer itself (``store.bars.footer``), which survive a rewrite
by another program that keeps the footer. And the footer holds a digest of all bytes of the file,
which detects a single changed bit. Files of earlier versions have none of these and are read as
they are.

Not here: at which bytes columns begin, and the digest of all bytes (``store.bars.file_bytes``),
where files lie and how bars get into them (``store.bars.bar_store``).
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date
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
    basis_of,
    basis_runs,
    micros,
    moment,
    timestamps,
    with_basis,
)
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.errors import CorruptFileError, DiskError, StoreError
from ktrdr_pipelines.store.bars.digests import seal_of
from ktrdr_pipelines.store.bars.file_bytes import (
    apart,
    chunk_starts,
    matches_digest,
    with_digest,
)
from ktrdr_pipelines.store.bars.footer import (
    SCHEMA_VERSION,
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

UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What pyarrow raises for invalid Parquet files, those with changed bits in the footer included."""

LOST_BASIS: Final = "another program has removed the price basis of its bars"
"""What is wrong with a file of version 2 that has no column ``basis``."""

_OPENINGS: Final = 100
"""How often a file is opened that is replaced meanwhile, which takes longer than an opening."""

_ROWS_FOR_THREADS: Final = 16_384
"""Rows from which threads decode the columns of a file sooner than one does."""

Known = Callable[[], Footer]
"""Returns the footer recorded elsewhere (the file index), for a file that has lost its own."""


@dataclass(frozen=True, slots=True)
class BarBounds:
    """Which bars are read: those whose timestamp and session date lie within all bounds.

    ``start`` and ``end`` are timestamps in microseconds since 1970 UTC, ``first`` and ``until``
    session dates; starts are included, ends are not, and None is no bound.
    """

    start: int | None = None
    end: int | None = None
    first: date | None = None
    until: date | None = None

    @classmethod
    def of(cls, interval: Interval) -> "BarBounds":
        """Return the bounds of an interval of timestamps."""
        return cls(micros(interval.start), micros(interval.end))

    @property
    def have_times(self) -> bool:
        """Whether a timestamp is bounded."""
        return self.start is not None or self.end is not None

    @property
    def have_dates(self) -> bool:
        """Whether a session date is bounded."""
        return self.first is not None or self.until is not None

    def select(self, bars: pa.Table) -> tuple[int, int]:
        """Return the first and the end index of the bars of a sorted table within the bounds."""
        low, high = 0, bars.num_rows
        if self.have_times:
            keys = timestamps(bars)
            low = low if self.start is None else int(np.searchsorted(keys, self.start))
            high = high if self.end is None else int(np.searchsorted(keys, self.end))
        if self.have_dates:
            days = _days(bars)
            if self.first is not None:
                low = max(low, int(np.searchsorted(days, np.datetime64(self.first))))
            if self.until is not None:
                high = min(high, int(np.searchsorted(days, np.datetime64(self.until))))
        return low, max(low, high)

    def may_include(self, group: pq.RowGroupMetaData) -> bool:
        """Return whether a row group may have bars within the bounds, by its statistics."""
        if not self.have_times and not self.have_dates:
            return True
        for at in range(group.num_columns):
            column = group.column(at)
            said = column.statistics
            if said is None or not said.has_min_max:
                continue
            if column.path_in_schema == "ts" and self.have_times:
                least, greatest = said.min_raw, said.max_raw
                if not isinstance(least, int):
                    continue
                if (self.start is not None and greatest < self.start) or (
                    self.end is not None and least >= self.end
                ):
                    return False
            if column.path_in_schema == "session_date" and self.have_dates:
                if not isinstance(said.min, date):
                    continue
                if (self.first is not None and said.max < self.first) or (
                    self.until is not None and said.min >= self.until
                ):
                    return False
        return True


ALL_BARS: Final = BarBounds()
"""No bounds."""


@dataclass(frozen=True, slots=True)
class OpenedBarFile:
    """One version of a bar file, held open while another may be renamed over it.

    ``status`` is that of the version, not of what lies at the path by now.
    """

    path: Path
    status: os.stat_result
    file: pq.ParquetFile

    def footer(self, known: Known | None = None) -> Footer:
        """Return the footer; ``known`` as for ``read_bars``.

        Raises: as ``read_bars``.
        """
        return _footer(self.path, self.file, known)

    def bars(
        self, columns: Sequence[str], bounds: BarBounds = ALL_BARS, *, footer: Footer | None = None
    ) -> pa.Table:
        """Return bars within bounds, sorted by timestamp, reading only what that needs.

        Args:
            columns: names of ``STORED_SCHEMA``.
            bounds: which bars.
            footer: that of the file; None for a file that is known to be as ktrdr wrote it, with
                digests and the column ``basis``. Only of such a file are the statistics believed:
                row groups without bars within the bounds are skipped, and a price basis that all
                bars share is not read.

        Returns: the columns in their order, and ``basis`` after them if it is not one of them.
        """
        groups = [self.file.metadata.row_group(at) for at in range(self.file.num_row_groups)]
        is_as_written = footer is None
        chosen = [
            at for at, group in enumerate(groups) if not is_as_written or bounds.may_include(group)
        ]
        names = list(dict.fromkeys([*columns, "basis"]))
        wanted = set(names)
        wanted |= {"ts"} if bounds.have_times else set()
        wanted |= {"session_date"} if bounds.have_dates else set()
        if footer is None:
            basis = _one_basis([groups[at] for at in chosen])
            if basis is not None:
                # A file has one column at least that tells how many bars there are.
                wanted = (wanted - {"basis"}) or {"ts"}
            read = _table(self.file, [one for one in STORED_SCHEMA.names if one in wanted], chosen)
            if basis is not None:
                read = _with_basis_column(read, np.full(read.num_rows, basis, np.int16))
        else:
            stated = [one for one in STORED_SCHEMA.names if one in wanted]
            read = _stored(self.file, footer, stated, chosen)
        if bounds is not ALL_BARS:
            low, high = bounds.select(read)
            read = read.slice(low, high - low)
        return read.select(names)


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
    with opened(path) as file:
        return file.footer()


def read_file(path: Path, known: Known | None = None) -> tuple[Footer, pa.Table]:
    """Return footer and bars of one version of a file, even while it is being replaced.

    The footer states what was true when ktrdr wrote the file; ``store.bars.integrity`` finds out
    what is true now.

    Raises: as ``read_bars``.
    """
    with opened(path) as file:
        footer = file.footer(known)
        return footer, _stored(file.file, footer)


def read_keys(path: Path, known: Known | None = None) -> tuple[Footer, pa.Table]:
    """Return footer, ``ts`` and ``session_date``; as ``read_file``."""
    with opened(path) as file:
        footer = file.footer(known)
        return footer, _table(file.file, ["ts", "session_date"])


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
    return matches_digest(data)


def wrong_statistics(path: Path) -> str:
    """Compare a file's Parquet statistics with its values; queries skip row groups by them.

    Returns: a description of the first difference, or an empty string.

    Raises: as ``read_bars``.
    """
    with opened(path) as one:
        one.footer()
        file = one.file
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
    with opened(path) as file:
        return int(file.bars(["ts"], BarBounds.of(interval), footer=file.footer(known)).num_rows)


def write_file(
    path: Path,
    bars: pa.Table,
    footer: Footer,
    *,
    is_as_written: bool = True,
    before_renaming: Callable[[], object] | None = None,
) -> Footer:
    """Write bars and footer to a file, in one atomic step.

    A reader that has taken the footer of the earlier version fails on the new pages
    (``store.bars.file_bytes``).

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
    text = footer_to_json(footer)

    def encode(shift: int) -> pa.Buffer:
        return _encoded(bars, text, shift, is_as_written=is_as_written)

    encoded = apart(encode, _chunk_starts(path))
    data = with_digest(encoded) if is_as_written else encoded

    def write(file: BinaryIO) -> None:
        file.write(data)

    write_atomically(path, write, before_renaming)
    return footer


def _encoded(bars: pa.Table, footer: str, shift: int, *, is_as_written: bool) -> pa.Buffer:
    """Return a file but for its digest, with so many empty bytes before its first column.

    Readers find columns by the offsets in the footer, so these bytes are of no account.
    """
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
        sorting_columns=_SORTED_BY if is_as_written else None,
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


def _chunk_starts(path: Path) -> set[int]:
    """Return ``chunk_starts`` of the file at a path; none where no reader can have its footer."""
    if bar_file_oddity(path):
        return set()
    try:
        with disk_errors(path), _parquet(path) as file:
            return chunk_starts(file.metadata)
    except (DiskError, *UNREADABLE):
        return set()


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
    # Not mapped into memory, which gains nothing here: a program that truncates a mapped file would
    # end this one. A path alone would first be looked up as a URI and as a folder.
    return pq.ParquetFile(pa.OSFile(os.fspath(path)), page_checksum_verification=True)


@contextmanager
def opened(path: Path) -> Iterator[OpenedBarFile]:
    """Yield the version of a bar file that lies at a path now.

    Invalid content and disk errors are different errors, also those of what is read in the block.

    Raises: as ``read_bars``; DiskError with a FileNotFoundError as its cause where there is none.
    """
    try:
        with disk_errors(path):
            for _ in range(_OPENINGS):
                status = _regular(path)
                with _parquet(path) as file:
                    # What lies there before and after the opening is what was opened.
                    if _print(_regular(path)) == _print(status):
                        yield OpenedBarFile(path, status, file)
                        return
    except UNREADABLE as error:
        raise corrupt(path, str(error)) from error
    raise DiskError(
        f"cannot read {path}",
        reason=f"it was replaced {_OPENINGS} times while it was being opened",
        hint="Find out which program rewrites it all the time",
    )


def _regular(path: Path) -> os.stat_result:
    """Return the status of a regular file; nothing else may be opened, as a pipe would block."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise corrupt(path, str(bar_file_oddity(path)))
    return status


def _print(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


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


def _stored(
    file: pq.ParquetFile,
    footer: Footer,
    columns: Sequence[str] = STORED_SCHEMA.names,
    groups: Sequence[int] | None = None,
) -> pa.Table:
    """Return bars with their basis: some columns, ``basis`` among them, of all or some row groups.

    Bars of a file of version 1 are on basis 0. Where another program has removed the column, the
    footer has the basis of each bar.
    """
    if footer.schema_version == 1:
        bars = _table(file, _but_basis(columns), groups)
        return _with_basis_column(bars, np.zeros(bars.num_rows, np.int16)).select(columns)
    if "basis" in file.schema_arrow.names:
        if footer.seal is not None:
            return _table(file, columns, groups)
        stored = _table(file, list(dict.fromkeys(["ts", *columns])), groups)
        if not np.array_equal(basis_of(stored), _basis_said(footer, timestamps(stored))):
            raise pa.ArrowInvalid("bars are on another price basis than was written")
        return stored.select(columns)
    bars = _table(file, list(dict.fromkeys(["ts", *_but_basis(columns)])), groups)
    return _with_basis_column(bars, _basis_said(footer, timestamps(bars))).select(columns)


def _but_basis(columns: Sequence[str]) -> list[str]:
    """Return columns without the basis; one at least, which tells how many bars there are."""
    return [one for one in columns if one != "basis"] or ["ts"]


def _with_basis_column(bars: pa.Table, basis: np.ndarray) -> pa.Table:
    return bars.append_column(STORED_SCHEMA.field("basis"), pa.array(basis))


def _one_basis(groups: Sequence[pq.RowGroupMetaData]) -> int | None:
    """Return the price basis of all bars of row groups, by their statistics; None for several."""
    found: set[int] = set()
    for group in groups:
        column = group.column(STORED_SCHEMA.get_field_index("basis"))
        said = column.statistics
        if said is None or not said.has_min_max or column.path_in_schema != "basis":
            return None
        found |= {said.min, said.max}
    return found.pop() if len(found) == 1 else None


def _days(bars: pa.Table) -> np.ndarray:
    """Return the session dates of bars as ``datetime64[D]``."""
    return np.asarray(bars["session_date"].to_numpy().astype("datetime64[D]"))


def _basis_said(footer: Footer, keys: np.ndarray) -> np.ndarray:
    """Return the basis that a footer states for bars with these timestamps; sorted or not."""
    found = np.full(len(keys), UNCONFIRMED, np.int16)
    for interval, number in footer.basis.intervals:
        is_in = (keys >= micros(interval.start)) & (keys < micros(interval.end))
        found[is_in] = number
    return found


def _table(
    file: pq.ParquetFile, columns: Sequence[str], groups: Sequence[int] | None = None
) -> pa.Table:
    """Return columns in the types of ``STORED_SCHEMA``; an Arrow error where a value is wrong."""
    schema = pa.schema([STORED_SCHEMA.field(name) for name in columns])
    many = file.metadata.num_rows >= _ROWS_FOR_THREADS
    if groups is None or len(groups) == file.num_row_groups:
        read = file.read(columns=columns, use_threads=many)
    else:
        read = file.read_row_groups(groups, columns=columns, use_threads=many)
    table = read.select(columns).replace_schema_metadata(None)
    required = {"ts", "session_date", "basis"}
    if any(table[name].null_count for name in columns if name in required):
        raise pa.ArrowInvalid("a bar without a timestamp, a session date or a price basis")
    if table.schema.types == schema.types:  # columns without nulls may not be nullable
        return pa.Table.from_arrays(table.columns, schema=schema)
    return table.cast(schema)


def corrupt(path: Path, reason: str) -> CorruptFileError:
    """Return the error of a file that cannot be read as a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file",
        reason=reason,
        hint="Run `ktrdr repair`: it quarantines the file and says what to load again",
    )
