"""Frames of bars: Arrow tables of one or many symbols as pandas, polars or Arrow.

Not here: which bars (``app.reading.bar_reader``).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.app.reading.read_options import EngineName

if TYPE_CHECKING:
    import pandas as pd

SYMBOL_TYPE: Final = pa.dictionary(pa.int32(), pa.string())

_MOST_UNUSED: Final = 2
"""How many times the memory of a column may be what is used of it, before that is copied."""


def frame_of(
    tables: Sequence[pa.Table],
    *,
    symbols: Sequence[str] | None,
    engine: EngineName,
    zone: str,
    shift_ts: bool,
) -> Any:
    """Return the bars of one symbol, or of several, as one frame.

    Args:
        tables: of each symbol, of one schema, with ``ts`` first.
        symbols: those of the tables; None for a frame of one symbol without a column ``symbol``.
        engine: what makes the frame.
        zone: the time zone of instants.
        shift_ts: whether ``ts`` is an instant; else it is a date and stays at midnight UTC.
    """
    zones = {
        field.name: zone if shift_ts or field.name != "ts" else "UTC"
        for field in tables[0].schema
        if pa.types.is_timestamp(field.type)
    }
    if engine == "pandas":
        return _pandas(tables, symbols, zones)
    table = _in_zones(_arrow(tables, symbols), zones)
    if engine == "arrow":
        return table
    import polars as pl

    return pl.from_arrow(table)


def _arrow(tables: Sequence[pa.Table], symbols: Sequence[str] | None) -> pa.Table:
    """Return all tables as one, with the symbol of each row after its timestamp."""
    if symbols is None:
        return tables[0]
    names = pa.array(symbols, pa.string())
    marked = []
    for number, table in enumerate(tables):
        codes = pa.array(np.full(table.num_rows, number, np.int32))
        column = pa.DictionaryArray.from_arrays(codes, names)
        marked.append(table.add_column(1, pa.field("symbol", SYMBOL_TYPE, nullable=False), column))
    return pa.concat_tables(marked)


def _in_zones(table: pa.Table, zones: dict[str, str]) -> pa.Table:
    """Return a table whose instants are shown in other zones; the instants stay."""
    for name, zone in zones.items():
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        if field.type.tz != zone:
            kind = pa.timestamp("us", tz=zone)
            table = table.set_column(at, field.with_type(kind), table[name].cast(kind))
    return table


def _pandas(
    tables: Sequence[pa.Table], symbols: Sequence[str] | None, zones: dict[str, str]
) -> "pd.DataFrame":
    """Return a pandas frame indexed by ``ts``, whose values are its own and can be changed.

    The floats of one table stay in the memory into which its file was decoded, each column a block
    of its own. Those of several tables or row groups are copied, and share a block.
    """
    import pandas as pd

    schema = tables[0].schema
    names = [field.name for field in schema if pa.types.is_floating(field.type)]
    index = _instants(tables, "ts", zones)
    floats = _own_floats(tables[0], names) if len(tables) == 1 else None
    if floats is None:
        block = _block(tables, names)
        if symbols is None and len(names) == len(schema) - 1:
            return pd.DataFrame(block.T, index=index, columns=names, copy=False)
        floats = dict(zip(names, block, strict=True))
    columns: dict[str, Any] = {}
    if symbols is not None:
        codes = np.repeat(np.arange(len(tables), dtype=np.int32), [one.num_rows for one in tables])
        columns["symbol"] = pd.Categorical.from_codes(codes, categories=pd.Index(symbols))
    for field in schema:
        if field.name in floats:
            columns[field.name] = floats[field.name]
        elif pa.types.is_timestamp(field.type) and field.name != "ts":
            columns[field.name] = _instants(tables, field.name, zones)
        elif pa.types.is_dictionary(field.type):
            columns[field.name] = _category(tables, field.name)
        elif field.name != "ts":
            columns[field.name] = _values(tables, field)
    return pd.DataFrame(columns, index=index, copy=False)


def _own_floats(table: pa.Table, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return columns of floats as arrays over their own memory, which can be written to.

    None where one has nulls or several parts, shares its memory, or keeps far more memory alive
    than it needs.
    """
    found: dict[str, np.ndarray] = {}
    taken = set()
    for name in names:
        column = table[name]
        if column.num_chunks != 1 or column.null_count:
            return None
        values = column.chunk(0)
        memory = values.buffers()[1]
        if memory is None or not memory.is_mutable or memory.address in taken:
            return None
        if _is_mostly_unused(values):
            return None
        taken.add(memory.address)
        found[name] = np.frombuffer(memory, np.float64, len(values), values.offset * 8)
    return found


def _is_mostly_unused(values: pa.Array) -> bool:
    """Return whether the memory of values of 8 bytes is far larger than they are."""
    memory = values.buffers()[1]
    return memory is not None and memory.size > len(values) * 8 * _MOST_UNUSED


def _block(tables: Sequence[pa.Table], names: Sequence[str]) -> np.ndarray:
    """Return columns of floats of all tables as the rows of one array; nulls become NaN."""
    rows = sum(table.num_rows for table in tables)
    # Arrow's memory pool has pages at hand; new ones of the system would take as long as the copy.
    memory = pa.allocate_buffer(len(names) * rows * 8)
    block = np.frombuffer(memory, np.float64).reshape(len(names), rows)
    for values, name in zip(block, names, strict=True):
        _fill(values, tables, name)
    return block


def _category(tables: Sequence[pa.Table], name: str) -> "pd.Categorical":
    """Return a dictionary column, whose dictionary all tables share."""
    import pandas as pd

    chunks = [chunk for table in tables for chunk in table[name].chunks]
    codes = [np.asarray(chunk.indices) for chunk in chunks]
    names = chunks[0].dictionary.to_pylist() if chunks else []
    return pd.Categorical.from_codes(
        np.concatenate([*codes, np.empty(0, np.int32)]), categories=pd.Index(names, dtype="str")
    )


def _values(tables: Sequence[pa.Table], field: pa.Field) -> Any:
    """Return a column of neither floats nor instants, in a type that nulls do not change."""
    import pandas as pd

    column = pa.chunked_array(
        [chunk for table in tables for chunk in table[field.name].chunks], field.type
    )
    if pa.types.is_date(field.type):
        return np.array(column.to_numpy().astype("datetime64[ms]"))
    if field.nullable and pa.types.is_integer(field.type):
        mask = np.array(column.is_null().to_numpy())
        values = column.fill_null(0).to_numpy()
        return pd.arrays.IntegerArray(np.array(values), mask)
    return np.array(column.to_numpy())


def _instants(tables: Sequence[pa.Table], name: str, zones: dict[str, str]) -> "pd.DatetimeIndex":
    """Return a column of instants; nulls become NaT."""
    import pandas as pd

    chunks = [chunk.view(pa.int64()) for table in tables for chunk in table[name].chunks]
    nat = np.iinfo(np.int64).min
    parts = [(one.fill_null(nat) if one.null_count else one).to_numpy() for one in chunks]
    is_own = len(parts) == 1 and not _is_mostly_unused(chunks[0])
    values = parts[0] if is_own else np.concatenate([*parts, np.empty(0, np.int64)])
    # Whole numbers are instants in UTC, whatever the zone in which they are shown.
    kind = pd.DatetimeTZDtype("us", zones[name])
    return pd.DatetimeIndex(values, dtype=kind, copy=False, name=name)


def _fill(values: np.ndarray, tables: Sequence[pa.Table], name: str) -> None:
    """Copy a column of floats into an array; nulls become NaN."""
    at = 0
    for table in tables:
        for chunk in table[name].chunks:
            values[at : at + len(chunk)] = chunk.to_numpy(zero_copy_only=False)
            at += len(chunk)
