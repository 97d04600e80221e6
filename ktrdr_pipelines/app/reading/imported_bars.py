"""Bars of the gateway and imported ones together, each with its origin.

Where both have a bar of a timestamp, the gateway's counts, unless it is not returned because its
price basis is unconfirmed. Imported bars are as they were imported: they have no price basis, and
no adjustment applies to them.

Not here: importing them (``app.transfer.imports``), reading files (``store.bars.column_reader``).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.app.reading.bar_tables import bar_tables
from ktrdr_pipelines.app.reading.read_options import ORIGIN
from ktrdr_pipelines.domain.bars import timestamps
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.store.bars.column_reader import BarSelection

if TYPE_CHECKING:
    from ktrdr_pipelines.app.reading.store_parts import StoreParts

OriginName = Literal["gateway", "import"]

ORIGIN_TYPE: Final = pa.dictionary(pa.int32(), pa.string())

_GATEWAYS, _IMPORTED = 0, 1


def parse_origin(origin: str | None) -> OriginName | None:
    """Return the only origin that is wanted; None for all.

    Raises:
        UsageError: there is no such origin.
    """
    if origin is None or origin == "gateway" or origin == "import":  # noqa: PLR1714  (mypy)
        return origin  # type: ignore[return-value]
    raise UsageError(
        f"origin {origin!r}",
        reason="no such origin",
        hint="Allowed are gateway and import; left out, both are read, the gateway's first",
    )


def refuse_incomplete(origin: OriginName | None, columns: Sequence[str]) -> None:
    """Refuse to read imported bars, or origins, as complete ones: nothing says what they lack.

    Raises:
        UsageError: they are asked for.
    """
    for asked, is_asked in (("origin='import'", origin == "import"), (ORIGIN, ORIGIN in columns)):
        if is_asked:
            raise UsageError(
                f"require_complete with {asked}",
                reason="only bars of the gateway can be complete",
                hint="Leave one of them out",
            )


def bars_by_origin(
    parts: "StoreParts",
    symbols: Sequence[str],
    timeframe: Timeframe,
    wanted: BarSelection,
    *,
    origin: OriginName | None = None,
) -> list[pa.Table]:
    """Return the bars of each symbol, as ``bar_tables``, of one origin or of all.

    With all, a last column ``origin`` (``ib`` or ``simulated``, or ``import``) is there if a symbol
    has imported bars, or if ``wanted`` names it. ``basis`` is null in imported bars.

    Raises: as ``ColumnReader.read``.
    """
    names_origin = ORIGIN in wanted.columns
    if names_origin:
        columns = tuple(one for one in wanted.columns if one != ORIGIN)
        wanted = replace(wanted, columns=columns)
    if origin == "import":
        tables = _imported_only(parts, symbols, timeframe, wanted)
        return _marked(parts, tables, _IMPORTED) if names_origin else tables
    held = [] if origin == "gateway" else parts.with_imported(symbols, timeframe)
    if not held and not names_origin:
        return bar_tables(parts, symbols, timeframe, wanted)
    # Where a selection counts bars, those of both origins are counted together.
    needed = dict.fromkeys((*wanted.columns, "session_date"))
    both = replace(wanted, columns=tuple(needed))
    own = _marked(parts, bar_tables(parts, symbols, timeframe, both), _GATEWAYS)
    imported = dict(zip(held, _imported_only(parts, held, timeframe, both), strict=True))
    found = []
    for symbol, table in zip(symbols, own, strict=True):
        whole = _with_nullable_basis(table)
        if symbol in imported:
            (other,) = _marked(parts, [imported[symbol]], _IMPORTED)
            whole = _preferring(whole, other, wanted)
        found.append(whole.select([*wanted.columns, ORIGIN]))
    return found


def _imported_only(
    parts: "StoreParts", symbols: Sequence[str], timeframe: Timeframe, wanted: BarSelection
) -> list[pa.Table]:
    """Return imported bars; their basis is null."""
    if not symbols:
        return []
    imported = parts.imported
    if imported is None:
        tables = bar_tables(parts, symbols, timeframe, replace(wanted, last=0, before=0))
    else:
        tables = bar_tables(imported, symbols, timeframe, wanted)
    return [_with_nullable_basis(one, is_null=True) for one in tables]


def _with_nullable_basis(table: pa.Table, *, is_null: bool = False) -> pa.Table:
    at = table.schema.get_field_index("basis")
    if at < 0:
        return table
    field = pa.field("basis", table.schema.field(at).type)
    column = pa.nulls(table.num_rows, field.type) if is_null else table["basis"]
    return table.set_column(at, field, column)


def _marked(parts: "StoreParts", tables: Sequence[pa.Table], code: int) -> list[pa.Table]:
    """Return tables with their origin in a last column."""
    names = pa.array([parts.origin.value, Origin.IMPORT.value])
    field = pa.field(ORIGIN, ORIGIN_TYPE, nullable=False)
    found = []
    for table in tables:
        codes = pa.array(np.full(table.num_rows, code, np.int32))
        column = pa.DictionaryArray.from_arrays(codes, names)
        found.append(table.append_column(field, column))
    return found


def _preferring(own: pa.Table, imported: pa.Table, wanted: BarSelection) -> pa.Table:
    """Return the bars of both, in order, and as many as ``wanted`` counts."""
    is_new = ~np.isin(timestamps(imported), timestamps(own), assume_unique=True)
    both = pa.concat_tables([own, imported.filter(pa.array(is_new))])
    if len(both) > len(own):
        both = both.take(pa.array(np.argsort(timestamps(both), kind="stable")))
    if wanted.last is not None:
        return both.slice(max(0, both.num_rows - wanted.last))
    if wanted.before:
        low, _ = wanted.bounds.select(both)
        return both.slice(max(0, low - wanted.before))
    return both
