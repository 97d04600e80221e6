"""Assemble the Dagster code location from assets, checks, sensors, schedules and resources.

Not here: reading settings at import (``ktrdr_pipelines.definitions``).
"""

from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import dagster as dg

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.defs.asset_specs import external_specs
from ktrdr_pipelines.defs.assets import bars_asset, catalog_asset
from ktrdr_pipelines.defs.checks import (
    bars_checks,
    check_schedule,
    error_checks,
    integrity_checks,
    integrity_schedule,
)
from ktrdr_pipelines.defs.partitions import Grid, readable_grid
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.runs.load_job import load_bars
from ktrdr_pipelines.defs.schedules import tail_schedule
from ktrdr_pipelines.defs.sensors.alert_sensor import alert_sensor
from ktrdr_pipelines.defs.sensors.gap_sensor import gap_sensor
from ktrdr_pipelines.defs.sensors.gateway_sensor import gateway_sensor
from ktrdr_pipelines.defs.sensors.materialization_sensor import report_sensor
from ktrdr_pipelines.defs.sensors.run_history_sensor import history_sensor
from ktrdr_pipelines.defs.sensors.universe_sensor import universe_sensor
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import NoStoreError, SettingsError, StoreError
from ktrdr_pipelines.gaps.estimates import Rates, measured_rates
from ktrdr_pipelines.ib.pacing.learned_widths import learned_widths
from ktrdr_pipelines.settings import Settings, data_folder
from ktrdr_pipelines.store.layout import open_store


def build_defs(
    settings: Settings,
    resource_overrides: Mapping[str, Any] | None = None,
    *,
    shows_heatmap: bool = False,
    in_one_run: bool = False,
    rates: Rates | None = None,
) -> dg.Definitions:
    """Return the definitions of the code location.

    Args:
        settings: name the gateway and the store.
        resource_overrides: resources by name (``ib``, ``store``) that replace the default ones.
        shows_heatmap: whether the web server serves the coverage heatmap, as that of `ktrdr up`
            does.
        in_one_run: whether any range of partitions is loaded by one run.
        rates: how fast the gateway responds, by which backfills are cut into runs; without any, as
            a new store assumes it.
    """
    resources: dict[str, Any] = {
        "ib": IbResource.of(settings),
        "store": StoreResource(data_dir=str(data_folder(settings))),
        **(resource_overrides or {}),
    }
    timeframes, windows = grid_of(resources["store"])
    owners = settings.owners
    bars = [bars_asset(one, windows, owners, rates=rates or Rates()) for one in timeframes]
    if in_one_run:
        single_run = dg.BackfillPolicy.single_run()
        bars = [one.with_attributes(backfill_policy=single_run) for one in bars]
    return dg.Definitions(
        assets=[
            *external_specs(owners),
            *bars,
            catalog_asset(timeframes, owners, shows_heatmap=shows_heatmap),
        ],
        sensors=[
            universe_sensor(Timeframe, loaded=timeframes),
            gap_sensor(timeframes, windows),
            gateway_sensor(timeframes, windows),
            report_sensor(windows),
            history_sensor(),
            alert_sensor(settings.ktrdr_alert_command, error_checks(timeframes)),
        ],
        asset_checks=[bars_checks(timeframes), integrity_checks(timeframes)],
        jobs=[load_bars],
        schedules=[
            tail_schedule(),
            check_schedule(timeframes),
            integrity_schedule(timeframes),
        ],
        resources=resources,
        executor=dg.in_process_executor,
    )


def rates_of(settings: Settings) -> Rates:
    """Return how fast the gateway has responded to requests for the store, as far as it is known.

    As with ``grid_of``, what cannot be read is reported elsewhere.
    """
    with suppress(NoStoreError, StoreError, SettingsError):
        workspace = Workspace(settings, open_store(data_folder(settings)))
        config = workspace.gateway_config
        with closing(workspace.ledger) as ledger:
            return measured_rates(
                ledger,
                config.gateway,
                conservative=config.conservative,
                widths=learned_widths(config, workspace.clock.real_now()),
            )
    return Rates()


def grid_of(store: StoreResource) -> Grid:
    """Return the timeframes that symbols of the universe have, and where their windows begin.

    Of an unreadable universe these are all timeframes, and the defaults: the code location must
    load on a fresh machine too; an invalid store or universe is reported by the sensors and runs
    that use it. An asset without symbols would have no partition, and would look complete.
    """
    return readable_grid(Path(store.data_dir)) or (tuple(Timeframe), Windows())
