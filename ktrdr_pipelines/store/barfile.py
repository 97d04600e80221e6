"""One bar file: reading it, its footer, writing it whole.

Not here: where files stand and how bars come into them (``store.parquet``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ktrdr_pipelines.core.bars import BAR_SCHEMA, bars_between
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.atomic import disk_errors, write_atomically
from ktrdr_pipelines.store.footer import (
    FileFacts,
    NewerSchemaError,
    facts_from_json,
    facts_to_json,
)
from ktrdr_pipelines.store.path_kinds import bar_file_oddity

FOOTER_KEY = "ktrdr"
"""Key of our JSON among a Parquet file's key-value metadata."""

ROW_GROUP_ROWS = 131_072
"""Rows of a row group: a year of regular minutes in one, a year of all hours in three or four."""

_SORTED_BY = (pq.SortingColumn(0),)

Known = Callable[[], FileFacts]
"""Gives what is known of a file from elsewhere, should its footer be lost."""

_Opened = tuple[FileFacts, pq.ParquetFile]


def read_bars(path: Path, known: Known | None = None) -> pa.Table:
    """Read all bars of a file, sorted by stamp.

    Args:
        path: the file.
        known: stands in for the footer, where another program rewrote the file without it.

    Raises:
        CorruptFileError: it is not a bar file of ours, or is damaged.
        StoreError: it was written by a newer version.
    """
    return read_file(path, known)[1]


def read_footer(path: Path) -> FileFacts:
    """Read what a file says of itself, and none of its bars.

    Raises: as ``read_bars``.
    """
    with _opened(path) as (facts, _file):
        return facts


def read_file(path: Path, known: Known | None = None) -> tuple[FileFacts, pa.Table]:
    """Read footer and bars of one version of a file, even while it is being replaced.

    The footer is what was true when we wrote the file: see ``store.recount`` for what is true now.
    """
    with _opened(path, known) as (facts, file):
        return facts, _table(file, BAR_SCHEMA.names)


def read_keys(path: Path, known: Known | None = None) -> tuple[FileFacts, pa.Table]:
    """Read footer, ``ts`` and ``session_date``; as ``read_file``."""
    with _opened(path, known) as (facts, file):
        return facts, _table(file, ["ts", "session_date"])


def has_footer(path: Path) -> bool:
    """Say whether a Parquet file has our footer."""
    with disk_errors(path), pq.ParquetFile(path) as file:
        return FOOTER_KEY.encode() in (file.metadata.metadata or {})


def is_as_written(path: Path) -> bool:
    """Say whether a file is laid out as ``write_file`` does it.

    Other programs may keep the footer, but name no sorting columns and add a schema of their own
    (pyarrow), or lose the footer (pandas, DuckDB).

    Raises:
        DiskError: the system refused to read.
    """
    with disk_errors(path), pq.ParquetFile(path) as file:
        metadata = file.metadata
        groups = [metadata.row_group(place) for place in range(metadata.num_row_groups)]
        return set(metadata.metadata or {}) == {FOOTER_KEY.encode()} and all(
            group.sorting_columns == _SORTED_BY for group in groups
        )


def count_bars_between(path: Path, interval: Interval, known: Known | None = None) -> int:
    """Count the bars of a file whose stamp lies in an interval, reading stamps alone."""
    with _opened(path, known) as (_facts, file):
        keys = _table(file, ["ts"])
    return int(bars_between(keys, interval.start, interval.end).num_rows)


def write_file(
    path: Path,
    bars: pa.Table,
    facts: FileFacts,
    *,
    is_as_written: bool = True,
    before_renaming: Callable[[], object] | None = None,
) -> None:
    """Put bars and what is known of them in place, in one step.

    Args:
        path: the file.
        bars: all its bars, sorted by stamp.
        facts: what is known of them.
        is_as_written: whether the values are those that were saved; False keeps it visible that
            another program wrote them (``is_as_written``).
        before_renaming: as in ``store.atomic.write_atomically``.

    Raises:
        DiskError: the system refused; the older file still stands.
    """

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(
            file,
            BAR_SCHEMA,
            compression="zstd",
            store_schema=False,
            sorting_columns=_SORTED_BY if is_as_written else None,
        ) as writer:
            writer.write_table(bars, row_group_size=ROW_GROUP_ROWS)
            writer.add_key_value_metadata({FOOTER_KEY: facts_to_json(facts)})

    write_atomically(path, write, before_renaming)


@contextmanager
def _opened(path: Path, known: Known | None = None) -> Iterator[_Opened]:
    """Lend an open file with its footer read, telling bad content from a refusing disk."""
    if oddity := bar_file_oddity(path):
        raise corrupt(path, oddity)
    try:
        with disk_errors(path), pq.ParquetFile(path) as file:
            yield _facts(path, file, known), file
    except (pa.ArrowException, OSError) as error:
        raise corrupt(path, str(error)) from error


def _facts(path: Path, file: pq.ParquetFile, known: Known | None) -> FileFacts:
    text = (file.metadata.metadata or {}).get(FOOTER_KEY.encode())
    if text is None and known is None:
        raise corrupt(path, f"a Parquet file without our footer key {FOOTER_KEY!r}")
    facts = _parsed(path, text) if text is not None else known()  # type: ignore[misc]
    if not _can_hold_bars(file.schema_arrow):
        raise corrupt(path, f"columns {file.schema_arrow.names}, expected {BAR_SCHEMA.names}")
    if file.metadata.num_rows > facts.rows:
        raise corrupt(path, f"{file.metadata.num_rows} rows, {facts.rows} were written")
    return facts


def _parsed(path: Path, text: bytes) -> FileFacts:
    try:
        return facts_from_json(text)
    except NewerSchemaError as error:
        raise StoreError(
            f"{path} was written by a newer ktrdr", came=str(error), remedy="Use a newer ktrdr"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise corrupt(path, f"a footer that makes no sense: {text[:80]!r}") from error


def _can_hold_bars(schema: pa.Schema) -> bool:
    """Say whether the columns are ours, as other programs may write them: wider, or nullable."""
    if not set(BAR_SCHEMA.names) <= set(schema.names):
        return False
    stamp = schema.field("ts").type
    if not pa.types.is_timestamp(stamp) or stamp.tz is None:
        return False
    try:
        schema.empty_table().select(BAR_SCHEMA.names).cast(BAR_SCHEMA)
    except (pa.ArrowException, ValueError):
        return False
    return True


def _table(file: pq.ParquetFile, columns: list[str]) -> pa.Table:
    """Read columns as ours, losing nothing: what does not fit is an Arrow error."""
    schema = pa.schema([BAR_SCHEMA.field(name) for name in columns])
    table = file.read(columns=columns).select(columns).replace_schema_metadata(None)
    if any(table[name].null_count for name in columns if name in {"ts", "session_date"}):
        raise pa.ArrowInvalid("a bar without a stamp or a session date")
    return table if table.schema.equals(schema) else table.cast(schema)


def corrupt(path: Path, came: str) -> CorruptFileError:
    """Say that a file cannot be read as a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file",
        came=came,
        remedy="Run `ktrdr repair`: it sets the file aside and says what to load again",
    )
