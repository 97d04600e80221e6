"""Assets: the bars of each timeframe, and the DuckDB catalog downstream of them.

Not here: what is shown of them (``defs.asset_specs``), partitions (``defs.partitions``), a run over
partitions (``defs.runs.bars_run``), what to request and what to keep (``sync``, ``gaps`` and
``domain``).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import dagster as dg

from ktrdr_pipelines.defs.asset_specs import CATALOG, bars_key, bars_spec, catalog_spec
from ktrdr_pipelines.defs.catalog_metadata import catalog_metadata
from ktrdr_pipelines.defs.partitions import (
    BarPartition,
    bars_partitions,
    windows_partitions,
    windows_per_run,
)
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.active_runs import held_symbols
from ktrdr_pipelines.defs.runs.bars_run import BarsRun
from ktrdr_pipelines.defs.runs.outcome import WITHOUT_EVENTS
from ktrdr_pipelines.defs.runs.tags import POOL, RANGE_END, RANGE_START, shown_tags
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.gaps.estimates import Rates
from ktrdr_pipelines.store.files import write_atomically

__all__ = ["bars_asset", "bars_key", "catalog_asset"]

RANGE_GONE: Final = (
    "universe.yaml changed after this run was launched: the symbol was removed from it, or its "
    "windows now begin later (`Reload definitions` shows the current ones). Nothing was loaded. "
    "The gap sensor starts new runs for what is still missing."
)


def bars_asset(
    timeframe: Timeframe, windows: Windows, owners: Sequence[str] = (), *, rates: Rates
) -> dg.AssetsDefinition:
    """Return the asset of one timeframe's bars, partitioned by symbol and window.

    By ``rates``, Dagster cuts a backfill into runs.
    """

    @dg.multi_asset(
        name=f"bars_{timeframe.value}",
        specs=[bars_spec(timeframe, owners)],
        partitions_def=bars_partitions(timeframe, windows),
        backfill_policy=dg.BackfillPolicy.multi_run(windows_per_run(timeframe, rates)),
        pool=POOL,
    )
    def bars(
        context: dg.AssetExecutionContext, ib: IbResource, store: StoreResource
    ) -> Iterator[dg.MaterializeResult]:  # type: ignore[type-arg]
        run = BarsRun(context, timeframe, ib=ib, store=store)
        if is_range_gone(context.instance, context.run.tags, timeframe, windows):
            run.skip(RANGE_GONE)
            return
        refuse_lost_range(context.run.tags, context.partition_keys)
        partitions = [BarPartition.of(key) for key in context.partition_keys]
        context.instance.add_run_tags(context.run.run_id, shown_tags(partitions))
        run.load(partitions)
        # Without an output, checks and downstream assets of the same run would be skipped.
        yield dg.MaterializeResult(metadata=WITHOUT_EVENTS)

    return bars


def catalog_asset(
    timeframes: Sequence[Timeframe], owners: Sequence[str] = (), *, shows_heatmap: bool = False
) -> dg.AssetsDefinition:
    """Return the asset of the DuckDB catalog over all bars."""
    spec = catalog_spec(timeframes, owners, shows_heatmap=shows_heatmap)

    @dg.multi_asset(name=CATALOG, specs=[spec])
    def bars_catalog(ib: IbResource, store: StoreResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        workspace = ib.workspace(store)
        workspace.renew_catalog()
        index, now = workspace.gap_index(), workspace.now
        found = index.series_gaps(workspace.universe.series(), now)
        metadata, image = catalog_metadata(index, found, now)
        write_atomically(workspace.layout.coverage_image, lambda file: file.write(image))
        return dg.MaterializeResult(metadata={**metadata, "path": str(workspace.layout.catalog)})

    return bars_catalog


def is_range_gone(
    instance: dg.DagsterInstance, tags: Mapping[str, str], timeframe: Timeframe, windows: Windows
) -> bool:
    """Return whether the first or last partition of a run's range no longer exists."""
    ends = [BarPartition.of(tags[one]) for one in (RANGE_START, RANGE_END) if one in tags]
    symbols = held_symbols(instance, timeframe) if ends else ()
    known = windows_partitions(timeframe, windows).get_partition_keys()
    return any(one.symbol not in symbols or one.window not in known for one in ends)


def refuse_lost_range(tags: Mapping[str, str], keys: Sequence[str]) -> None:
    """Fail a run whose tags name a range of partitions but whose context holds only one.

    A backfill that is launched through a named job over such an asset carries the tags of the
    range and the key of one partition: it would load one window and report success for all.
    Source: observed on Dagster 1.13.27.

    Raises:
        dg.Failure: the range was lost.
    """
    start, end = tags.get(RANGE_START), tags.get(RANGE_END)
    if start != end and len(keys) == 1:
        raise dg.Failure(
            f"Loading the partitions {start} to {end}: Dagster passed only {keys[0]} to the run; "
            "nothing was loaded. Hint: Launch the backfill from the asset's page, not through a "
            "job.",
            allow_retries=False,
        )
