"""The gateway sensor: while the gateway is away it looks for it, and when it is back, work goes on.

It knocks once a tick, by connecting and asking for the time, and only while it is known that the
gateway is away. Not here: who finds out that it is away (``defs.runs.outcome``).
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.sensors.gap_sensor import choose_runs, read_gaps, run_request
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import GatewayError, GatewayTimeoutError, KtrdrError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.strategy import Operation
from ktrdr_pipelines.ib.pacing.circuit_breaker import Depth
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.store.gateway_absence import AbsenceFile
from ktrdr_pipelines.store.ledger.ledger import open_ledger

_EVERY_S: Final = 30
_KNOCK_S: Final = 15.0
"""How long a knock may take: a gateway that needs longer is not back."""

_OF_RUNS: Final = (Operation.BATCH, Operation.GAP_FILLER, Operation.API)
"""What runs connect as. The gateway may hold the client ids of one of them only: runs that start
before it lets go of those would fail every half minute."""

Clock = Callable[[], datetime]


def gateway_sensor(windows: Windows, clock: Clock = system_now) -> dg.SensorDefinition:
    """Make the sensor that waits for the gateway and then starts what was deferred."""

    @dg.sensor(
        name="gateway_sensor",
        asset_selection=[bars_key(timeframe) for timeframe in Timeframe],
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks for the gateway while it is away. When it is back, what failed is "
        "tried again at once.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.SensorResult | dg.SkipReason:
        now = clock()
        try:
            absence = AbsenceFile(store.layout())
            known = absence.read()
            if known is None:
                return dg.SkipReason("the gateway is not known to be away")
            if trouble := asyncio.run(knock(ib)):
                absence.note(now, trouble)
                since = known.since_text
                return dg.SkipReason(f"the gateway is still away, since {since}: {trouble}")
            absence.end()
            hastened = open_ledger(store.layout()).hasten_attempts(now)
            tick = read_gaps(ib, store, now)
        except KtrdrError as error:
            return dg.SkipReason(str(error))
        runs, text = choose_runs(context.instance, tick, windows)
        back = f"the gateway is back, after {known.since_text}"
        told = f"{back}; {hastened} tries are due at once; {text}"
        context.log.info(told)
        return dg.SensorResult(
            run_requests=[run_request(run) for run in runs],
            skip_reason=None if runs else told,
            cursor=told,
        )

    return sensor


async def knock(ib: IbResource) -> str:
    """Connect and ask for the time; give what is wrong, or nothing."""
    config = GatewayConfig.from_settings(ib.settings())
    try:
        return await asyncio.wait_for(_check(ib, config), _KNOCK_S)
    except TimeoutError:
        return f"no answer in {_KNOCK_S:g} s"
    except GatewayError as error:
        return str(error)


async def _check(ib: IbResource, config: GatewayConfig) -> str:
    strategy = ib.strategy()
    try:
        for operation in _OF_RUNS:
            async with strategy.get_connection_for_operation(operation) as connection:
                health = await connection.health()
    finally:
        await _shielded(strategy.cleanup_temporary_connections())
    if health.round_trip_s is None:
        return str(GatewayTimeoutError("asking for the time", reason="no answer"))
    if health.troubles:
        return "; ".join(health.troubles)
    with closing(RateLimiter.of(config)) as rate_limiter:
        rate_limiter.note_life(Depth.DATA)
    return ""


async def _shielded(task: Awaitable[object]) -> None:
    await asyncio.shield(asyncio.ensure_future(task))
