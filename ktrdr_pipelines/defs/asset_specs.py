"""What Dagster shows of the assets before any of them is materialized, and what lies upstream.

Keys that begin with ``dagster/`` are Dagster's standard metadata
(https://docs.dagster.io/guides/build/assets/metadata-and-tags). The assets have no code version:
a new one would mark every window out of date, although no bar has to be loaded again.

Not here: what materializes the assets (``defs.assets``), the metadata of events
(``defs.runs.outcome``, ``defs.catalog_metadata``).
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import dagster as dg
import pyarrow as pa

from ktrdr_pipelines.defs.runs.tags import TIMEFRAME
from ktrdr_pipelines.domain.bars import STORED_SCHEMA
from ktrdr_pipelines.domain.timeframes import Timeframe

GROUP: Final = "bars"
CATALOG: Final = "bars_catalog"
GATEWAY_KEY: Final = dg.AssetKey("gateway")
UNIVERSE_KEY: Final = dg.AssetKey("universe")

HEATMAP_PATH: Final = "/ktrdr/coverage.png"
"""Where the web server of ``ktrdr up`` serves the coverage heatmap of the catalog."""

_SOURCE: Final = {"ktrdr/source": "interactive-brokers"}
_STORAGE_KIND: Final = "dagster/storage_kind"
_TABLE_NAME: Final = "dagster/table_name"

_COLUMN_TEXTS: Final = {
    "ts": "start of the bar, UTC; 1d: midnight of the session date, 1w: of its Monday",
    "session_date": "the trading day; 1w: the date in the gateway's response",
    "open": "first price, in the instrument's currency",
    "high": "highest price",
    "low": "lowest price",
    "close": "last price",
    "volume": "traded volume; null where the gateway returned none",
    "average": "average price, weighted by volume; null where the gateway returned none",
    "bar_count": "number of trades; null where the gateway returned none",
    "basis": "number of the last adjustment of the symbol that the prices include; 0 none, "
    "-1 unconfirmed",
}

_CATALOG_FRESH: Final = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(hours=3), warn_window=timedelta(hours=2)
)
"""The catalog is materialized every hour."""

_DAILY_FRESH: Final = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=6), warn_window=timedelta(days=5)
)
"""Five days pass between the closes around Easter. Dagster counts time, not sessions, and judges
the asset by its newest event of any symbol; the check ``tail_is_fresh`` counts open session time of
each series, and warns much earlier."""


def bars_key(timeframe: Timeframe) -> dg.AssetKey:
    """Return the key of a timeframe's bars asset."""
    return dg.AssetKey([GROUP, timeframe.value])


def bars_spec(timeframe: Timeframe, owners: Sequence[str]) -> dg.AssetSpec:
    """Return the specification of one timeframe's bars."""
    return dg.AssetSpec(
        bars_key(timeframe),
        deps=[GATEWAY_KEY, UNIVERSE_KEY],
        description=f"{timeframe.value} bars from Interactive Brokers, partitioned by symbol and "
        "window. A window is materialized once every expected bar is present or its absence is "
        "explained.",
        group_name=GROUP,
        kinds={"parquet"},
        skippable=True,
        owners=owners,
        tags={**_SOURCE, TIMEFRAME: timeframe.value},
        freshness_policy=_DAILY_FRESH if timeframe is Timeframe.D1 else None,
        metadata={
            "bar_length_s": timeframe.seconds,
            "dagster/column_schema": _column_schema(),
            _TABLE_NAME: f"bars_{timeframe.value}",
            _STORAGE_KIND: "parquet",
        },
    )


def catalog_spec(
    timeframes: Sequence[Timeframe], owners: Sequence[str], *, shows_heatmap: bool
) -> dg.AssetSpec:
    """Return the specification of the DuckDB catalog.

    Its description shows the coverage heatmap where a web server serves it.
    """
    heatmap = f"\n\n![Coverage of each series]({HEATMAP_PATH})" if shows_heatmap else ""
    return dg.AssetSpec(
        CATALOG,
        deps=[bars_key(timeframe) for timeframe in timeframes],
        description="The DuckDB catalog: views of bars, sessions and coverage. The metadata of its "
        f"latest materialization shows how complete the store is.{heatmap}",
        group_name=GROUP,
        kinds={"duckdb"},
        owners=owners,
        tags=_SOURCE,
        freshness_policy=_CATALOG_FRESH,
        metadata={_TABLE_NAME: "ktrdr.main.bars", _STORAGE_KIND: "duckdb"},
    )


def external_specs(owners: Sequence[str]) -> list[dg.AssetSpec]:
    """Return the assets upstream of all bars, which sensors observe when they change."""
    return [
        dg.AssetSpec(
            GATEWAY_KEY,
            description="The gateway of Interactive Brokers that bars are requested from. "
            "`gateway_sensor` observes when it becomes unreachable, and when it is reachable "
            "again; `ktrdr health` checks it now.",
            group_name=GROUP,
            kinds={"api"},
            owners=owners,
            tags=_SOURCE,
        ),
        dg.AssetSpec(
            UNIVERSE_KEY,
            description="universe.yaml, the file that lists the symbols. `universe_sensor` "
            "observes each change.",
            group_name=GROUP,
            kinds={"yaml"},
            owners=owners,
        ),
    ]


def _column_schema() -> dg.TableSchema:
    return dg.TableSchema([_column(field) for field in STORED_SCHEMA])


def _column(field: pa.Field) -> dg.TableColumn:
    return dg.TableColumn(
        field.name,
        str(field.type),
        description=_COLUMN_TEXTS[field.name],
        constraints=dg.TableColumnConstraints(nullable=field.nullable),
    )
