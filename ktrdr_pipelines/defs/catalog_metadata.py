"""The store as a person sees it in the catalog's metadata: a picture of coverage and a table.

Not here: drawing (``gaps.heatmap``), what is missing (``gaps.index``).
"""

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.gaps.heatmap import coverage_heatmap
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps

_MOST_BYTES: Final = 200_000
"""A picture that is larger is not worth its place in the history; fewer symbols are shown."""

_MOST_SYMBOLS: Final = 60
_MOST_ROWS: Final = 40


def catalog_metadata(
    index: GapIndex, found: Sequence[SeriesGaps], now: datetime
) -> dict[str, dg.MetadataValue]:
    """Give what the catalog's materialization says of the store."""
    missing = sum(gap.bars for one in found for gap in one.gaps)
    return {
        "symbols": dg.MetadataValue.int(len({one.series.symbol for one in found})),
        "series": dg.MetadataValue.int(len(found)),
        "bars": dg.MetadataValue.int(sum(one.rows for one in found)),
        "bars_missing": dg.MetadataValue.int(missing),
        "catalog_size_bytes": dg.MetadataValue.int(index.store.layout.catalog.stat().st_size),
        "heatmap": dg.MetadataValue.md(heatmap_markdown(index, found, now)),
        "coverage": dg.MetadataValue.md(coverage_table(found)),
    }


def heatmap_markdown(index: GapIndex, found: Sequence[SeriesGaps], now: datetime) -> str:
    """Give the picture as an image within Markdown; of a big store the symbols that lack most."""
    if not found:
        return "the universe names no series"
    image = coverage_heatmap(index, found, now)
    text = ""
    if len(image) > _MOST_BYTES:
        worst = _worst_symbols(found)
        image = coverage_heatmap(index, [o for o in found if o.series.symbol in worst], now)
        text = f"the {len(worst)} symbols that lack most\n\n"
    code = base64.b64encode(image).decode()
    return f"{text}![coverage](data:image/png;base64,{code})"


def coverage_table(found: Sequence[SeriesGaps]) -> str:
    """Give the series that lack most, then the others, as a table within Markdown."""
    ordered = sorted(found, key=lambda one: -_missing(one))
    rows = [
        (
            one.series,
            f"{one.rows:,}",
            one.first or "",
            one.last or "",
            f"{_missing(one):,}",
            one.error or (f"{one.gaps[-1].reason}" if one.gaps else ""),
        )
        for one in ordered[:_MOST_ROWS]
    ]
    columns = ("series", "bars", "first", "last", "missing", "why")
    more = len(found) - len(rows)
    rest = f"\n\nand {more} more, none of which lacks more" if more > 0 else ""
    return markdown_table(columns, rows) + rest


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ((str(cell).replace("|", "/").replace("\n", " ") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _worst_symbols(found: Iterable[SeriesGaps]) -> set[str]:
    missing: dict[str, int] = {}
    for one in found:
        missing[one.series.symbol] = missing.get(one.series.symbol, 0) + _missing(one)
    return set(sorted(missing, key=lambda symbol: -missing[symbol])[:_MOST_SYMBOLS])


def _missing(one: SeriesGaps) -> int:
    return sum(gap.bars for gap in one.gaps)
