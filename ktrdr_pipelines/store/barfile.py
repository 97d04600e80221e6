"""One bar file: reading it, its footer, writing it whole.

Not here: where files stand and how bars come into them (``store.parquet``).
"""

from collections.abc import Iterator
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

FOOTER_KEY = "ktrdr"
"""Key of our JSON among a Parquet file's key-value metadata."""

ROW_GROUP_ROWS = 131_072
"""Rows of a row group: a year of regular minutes in one, a year of all hours in three or four."""

_Opened = tuple[FileFacts, pq.ParquetFile]


def read_bars(path: Path) -> pa.Table:
    """Read all bars of a file, sorted by stamp.

    Raises:
        CorruptFileError: it is not a bar file of ours, or is damaged.
        StoreError: it was written by a newer version.
    """
    return read_file(path)[1]


def read_footer(path: Path) -> FileFacts:
    """Read what a file says of itself, and none of its bars.

    Raises: as ``read_bars``.
    """
    with _opened(path) as (facts, _file):
        return facts


def read_file(path: Path) -> tuple[FileFacts, pa.Table]:
    """Read footer and bars of one version of a file, even while it is being replaced."""
    with _opened(path) as (facts, file):
        return facts, file.read().replace_schema_metadata(None)


def read_bars_between(path: Path, interval: Interval) -> pa.Table:
    """Read the bars of a file whose stamp lies in an interval."""
    return bars_between(read_bars(path), interval.start, interval.end)


def count_bars_between(path: Path, interval: Interval) -> int:
    """Count the bars of a file whose stamp lies in an interval, reading stamps alone."""
    with _opened(path) as (_facts, file):
        keys = file.read(columns=["ts"])
    return int(bars_between(keys, interval.start, interval.end).num_rows)


def write_file(path: Path, bars: pa.Table, facts: FileFacts) -> None:
    """Put bars and what is known of them in place, in one step.

    Raises:
        DiskError: the system refused; the older file still stands.
    """

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(
            file,
            BAR_SCHEMA,
            compression="zstd",
            store_schema=False,
            sorting_columns=[pq.SortingColumn(0)],
        ) as writer:
            writer.write_table(bars, row_group_size=ROW_GROUP_ROWS)
            writer.add_key_value_metadata({FOOTER_KEY: facts_to_json(facts)})

    write_atomically(path, write)


@contextmanager
def _opened(path: Path) -> Iterator[_Opened]:
    """Lend an open file with its footer read, telling bad content from a refusing disk."""
    try:
        with disk_errors(path), pq.ParquetFile(path) as file:
            yield _facts(path, file), file
    except (pa.ArrowException, OSError) as error:
        raise corrupt(path, str(error)) from error


def _facts(path: Path, file: pq.ParquetFile) -> FileFacts:
    text = (file.metadata.metadata or {}).get(FOOTER_KEY.encode())
    if text is None:
        raise corrupt(path, f"a Parquet file without our footer key {FOOTER_KEY!r}")
    try:
        facts = facts_from_json(text)
    except NewerSchemaError as error:
        raise StoreError(
            f"{path} was written by a newer ktrdr", came=str(error), remedy="Use a newer ktrdr"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(path, f"a footer that makes no sense: {text[:80]!r}") from error
    if not file.schema_arrow.remove_metadata().equals(BAR_SCHEMA):
        raise corrupt(path, f"columns {file.schema_arrow.names}, expected {BAR_SCHEMA.names}")
    if file.metadata.num_rows != facts.rows:
        raise corrupt(path, f"{file.metadata.num_rows} rows, its footer says {facts.rows}")
    return facts


def corrupt(path: Path, came: str) -> CorruptFileError:
    """Say that a file cannot be read as a bar file."""
    return CorruptFileError(
        f"cannot read {path} as a bar file",
        came=came,
        remedy="Run `ktrdr repair`: it sets the file aside and says what to load again",
    )
