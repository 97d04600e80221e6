"""The history sensor: old run history goes, what it says of windows stays.

Not here: which runs may go (``defs.history``).
"""

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.history import prune_history

_EVERY_S = 600
_RUNS = 100
_WINDOWS = 500


def history_sensor() -> dg.SensorDefinition:
    """Make the sensor that deletes runs nothing hangs on, some a tick."""

    @dg.sensor(
        name="history_sensor",
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Deletes runs that told of no window after 6 hours, others after 14 days; "
        "windows stay materialized.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = system_now()
        done = prune_history(context.instance, now, most_runs=_RUNS, most_windows=_WINDOWS)
        if not done.runs:
            return dg.SkipReason("no run is past keeping")
        text = (
            f"deleted {done.runs} runs that were past keeping ({done.freed_bytes / 1e6:.1f} MB); "
            f"told of {done.windows} windows again, so that they stay materialized"
        )
        context.log.info(text)
        return dg.SkipReason(text)

    return sensor
