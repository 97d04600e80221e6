"""Metadata of the catalog asset: totals, a coverage heatmap and a table of series.

Not here: drawing the heatmap (``app.charts.heatmap``), finding gaps (``gaps.index``).
"""

import base64
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.app.charts.heatmap import coverage_heatmap
from ktrdr_pipelines.gaps.index import GapIndex, SeriesGaps

# Each hourly materialization stores an image in Dagster's history: larger ones show fewer symbols.
_MOST_BYTES: Final = 200_000
_MOST_SYMBOLS: Final = 60
_MOST_ROWS: Final = 40


def catalog_metadata(
    index: GapIndex, found: Sequence[SeriesGaps], now: datetime
) -> tuple[dict[str, dg.MetadataValue], bytes]:
    """Return the metadata of the catalog's materialization, and the PNG image of the coverage."""
    image, text = coverage_image(index, found, now)
    bars = sum(one.rows for one in found)
    missing = sum(gap.bars for one in found for gap in one.gaps)
    adjustments = [one for ones in index.store.ledger.adjustments.all().values() for one in ones]
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/row_count": dg.MetadataValue.int(bars),
        "symbols": dg.MetadataValue.int(len({one.series.symbol for one in found})),
        "series": dg.MetadataValue.int(len(found)),
        "bars": dg.MetadataValue.int(bars),
        "bars_missing": dg.MetadataValue.int(missing),
        "adjustments": dg.MetadataValue.int(sum(one.removed_at is None for one in adjustments)),
        "catalog_size_bytes": dg.MetadataValue.int(index.store.layout.catalog.stat().st_size),
        "heatmap": dg.MetadataValue.md(heatmap_markdown(image, text)),
        "coverage": dg.MetadataValue.md(coverage_table(found)),
    }
    return metadata, image


def coverage_image(
    index: GapIndex, found: Sequence[SeriesGaps], now: datetime
) -> tuple[bytes, str]:
    """Return the heatmap as a PNG image, and a text that says what it leaves out, if anything.

    In a large store, it shows only the least complete symbols. Without series it is empty.
    """
    if not found:
        return b"", "The universe has no series."
    image = coverage_heatmap(index, found, now)
    if len(image) <= _MOST_BYTES:
        return image, ""
    missing: dict[str, int] = {}
    for one in found:
        missing[one.series.symbol] = missing.get(one.series.symbol, 0) + _missing(one)
    worst = set(sorted(missing, key=lambda symbol: -missing[symbol])[:_MOST_SYMBOLS])
    image = coverage_heatmap(index, [o for o in found if o.series.symbol in worst], now)
    return image, f"The {len(worst)} symbols with the most missing bars:\n\n"


def heatmap_markdown(image: bytes, text: str) -> str:
    """Return the heatmap as a Markdown image below the text."""
    if not image:
        return text
    code = base64.b64encode(image).decode()
    return f"{text}![coverage](data:image/png;base64,{code})"


def coverage_table(found: Sequence[SeriesGaps]) -> str:
    """Return a Markdown table of the series, those with the most missing bars first."""
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
    rest = f"\n\nand {more} more series with no more missing bars than these" if more > 0 else ""
    return markdown_table(columns, rows) + rest


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = ((str(cell).replace("|", "/").replace("\n", " ") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _missing(one: SeriesGaps) -> int:
    return sum(gap.bars for gap in one.gaps)
