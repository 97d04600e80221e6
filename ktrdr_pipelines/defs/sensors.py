"""Sensors: the universe's symbols as Dagster's dynamic partitions.

Not here: what a symbol means (``universe``), filling gaps.
"""

from collections.abc import Iterable

import dagster as dg

from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.defs.partitions import symbols_partitions
from ktrdr_pipelines.defs.resources import StoreResource
from ktrdr_pipelines.errors import KtrdrError
from ktrdr_pipelines.universe import Universe

_EVERY_S = 15
Request = dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest


def universe_sensor(timeframes: Iterable[Timeframe]) -> dg.SensorDefinition:
    """Make the sensor that keeps each timeframe's symbols as the universe says."""
    kept = tuple(timeframes)

    @dg.sensor(
        name="universe_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Keeps the partitions of every timeframe as universe.yaml says.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, store: StoreResource
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            universe, problem = store.universe_file().read()
        except KtrdrError as error:
            return dg.SkipReason(str(error))
        requests = [
            request
            for timeframe in kept
            for request in changes(context.instance, universe, timeframe)
        ]
        if problem is not None:
            context.log.error("universe.yaml is bad, the last good one stands: %s", problem)
        if not requests:
            return dg.SkipReason("the partitions are as the universe says")
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return sensor


def changes(
    instance: dg.DagsterInstance, universe: Universe, timeframe: Timeframe
) -> list[Request]:
    """Say what must change so that a timeframe's partitions are the universe's symbols.

    A removed symbol keeps its bars and its events: only its partition is hidden.
    """
    partitions = symbols_partitions(timeframe)
    held = instance.get_dynamic_partitions(str(partitions.name))
    wanted = [series.symbol for series in universe.series(timeframe)]
    added = [symbol for symbol in wanted if symbol not in set(held)]
    removed = [symbol for symbol in held if symbol not in set(wanted)]
    requests: list[Request] = []
    if added:
        requests.append(partitions.build_add_request(added))
    if removed:
        requests.append(partitions.build_delete_request(removed))
    return requests
