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

    Columns of one type share a block, as pandas would make it.
    """
    import pandas as pd

    schema, rows = tables[0].schema, sum(table.num_rows for table in tables)
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    # Arrow's memory pool has pages at hand; new ones of the system would take as long as the copy.
    memory = pa.allocate_buffer(len(floats) * rows * 8)
    block = np.frombuffer(memory, np.float64).reshape(len(floats), rows)
    for values, name in zip(block, floats, strict=True):
        _fill(values, tables, name)
    index = _instants(tables, "ts", zones).rename("ts")
    if symbols is None and len(floats) == len(schema) - 1:
        return pd.DataFrame(block.T, index=index, columns=floats, copy=False)
    columns: dict[str, Any] = {}
    if symbols is not None:
        codes = np.repeat(np.arange(len(tables), dtype=np.int32), [one.num_rows for one in tables])
        columns["symbol"] = pd.Categorical.from_codes(codes, categories=pd.Index(symbols))
    for field in schema:
        if field.name in floats:
            columns[field.name] = block[floats.index(field.name)]
        elif pa.types.is_timestamp(field.type) and field.name != "ts":
            columns[field.name] = _instants(tables, field.name, zones)
        elif pa.types.is_dictionary(field.type):
            columns[field.name] = _category(tables, field.name)
        elif field.name != "ts":
            columns[field.name] = _values(tables, field)
    return pd.DataFrame(columns, index=index, copy=False)


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

    chunks = [chunk.cast(pa.int64()) for table in tables for chunk in table[name].chunks]
    nat = np.iinfo(np.int64).min
    parts = [(one.fill_null(nat) if one.null_count else one).to_numpy() for one in chunks]
    values = parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.int64)])
    found = pd.DatetimeIndex(values.view("datetime64[us]"), copy=False).tz_localize("UTC")
    return found if zones[name] == "UTC" else found.tz_convert(zones[name])


def _fill(values: np.ndarray, tables: Sequence[pa.Table], name: str) -> None:
    """Copy a column of floats into an array; nulls become NaN."""
    at = 0
    for table in tables:
        for chunk in table[name].chunks:
            values[at : at + len(chunk)] = chunk.to_numpy(zero_copy_only=False)
            at += len(chunk)
