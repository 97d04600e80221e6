"""The gateway sensor: polls an unreachable gateway, and starts deferred requests on recovery.

It polls once a tick, by connecting and requesting the time, and only while a record of all
processes says that the gateway is unreachable. Several stores may share the gateway: the sensor of
one finds it again, and the sensors of the others make their deferred requests due then.

Not here: recording that the gateway is unreachable (``defs.runs.outcome``).
"""

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Final

import dagster as dg

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.asset_specs import GATEWAY_KEY
from ktrdr_pipelines.defs.assets import bars_key
from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.sensors.gap_sensor import choose_runs, read_gaps, run_request
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.universe import Windows
from ktrdr_pipelines.errors import GatewayError, GatewayTimeoutError, KtrdrError
from ktrdr_pipelines.ib.connection.strategy import Operation
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.store.files import disk_errors, is_regular
from ktrdr_pipelines.store.layout import StoreLayout

_EVERY_S: Final = 30
_POLL_S: Final = 15.0
"""Deadline of a poll: a gateway that takes longer counts as unreachable."""

_OF_RUNS: Final = (Operation.BATCH, Operation.GAP_FILLER, Operation.API)
"""The operations that runs connect as. After an outage the gateway may still hold the client ids
of just one of them, and runs of that kind would then fail every half minute."""

_NO_OUTAGE: Final = "no outage of the gateway is recorded"

Clock = Callable[[], datetime]


def gateway_sensor(
    timeframes: Iterable[Timeframe], windows: Windows, clock: Clock = system_now
) -> dg.SensorDefinition:
    """Return the sensor that polls an unreachable gateway and starts deferred requests."""
    kept = tuple(timeframes)

    @dg.sensor(
        name="gateway_sensor",
        asset_selection=[bars_key(timeframe) for timeframe in kept],
        minimum_interval_seconds=_EVERY_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Polls the gateway while it is unreachable. On recovery, deferred requests "
        "become due immediately.",
    )
    def sensor(
        context: dg.SensorEvaluationContext, ib: IbResource, store: StoreResource
    ) -> dg.SensorResult | dg.SkipReason:
        now = clock()
        try:
            workspace = ib.workspace(store)
            with closing(ib.rate_limiter(workspace)) as gateway:
                take_over_earlier_record(workspace.layout, gateway)
                known = gateway.absence()
                if known is None or not known.may_defer(now):
                    return dg.SkipReason(_NO_OUTAGE)
                if known.ended_at is None:
                    if trouble := asyncio.run(poll_gateway(ib, workspace)):
                        gateway.note_absence(now, trouble)
                        text = f"the gateway is still unreachable, since {known.since_text}"
                        reason = f"{text}: {trouble}"
                        if context.cursor == text:
                            return dg.SkipReason(reason)
                        event = _observed(workspace, reachable=False, text=reason)
                        return dg.SensorResult(
                            skip_reason=reason, asset_events=[event], cursor=text
                        )
                    gateway.note_recovery(now)
            hastened = workspace.ledger.attempts.hasten(now, made_until=known.ended_at)
            if known.ended_at and not hastened:
                return dg.SkipReason(_NO_OUTAGE)
            tick = read_gaps(workspace, now)
        except KtrdrError as error:
            return dg.SkipReason(str(error))
        runs, text = choose_runs(context.instance, tick, windows, kept)
        back = f"the gateway is reachable again (unreachable since {known.since_text})"
        text = f"{back}; {hastened} deferred requests are due now; {text}"
        context.log.info(text)
        return dg.SensorResult(
            run_requests=[run_request(run) for run in runs],
            skip_reason=None if runs else text,
            cursor=text,
            asset_events=[_observed(workspace, reachable=True, text=back)],
        )

    return sensor


def _observed(workspace: Workspace, *, reachable: bool, text: str) -> dg.AssetObservation:
    """Return the observation of a gateway that has become unreachable, or reachable again."""
    metadata: dict[str, dg.MetadataValue] = {
        "gateway": dg.MetadataValue.text(workspace.gateway_config.gateway),
        "reachable": dg.MetadataValue.bool(reachable),
        "change": dg.MetadataValue.text(text),
    }
    return dg.AssetObservation(GATEWAY_KEY, metadata=metadata)


async def poll_gateway(ib: IbResource, workspace: Workspace) -> str:
    """Connect and request the time; return what is wrong, or an empty string."""
    try:
        return await asyncio.wait_for(_check(ib, workspace), _POLL_S)
    except TimeoutError:
        return f"no response within {_POLL_S:g} s"
    except GatewayError as error:
        return str(error)


async def _check(ib: IbResource, workspace: Workspace) -> str:
    strategy = ib.strategy(workspace)
    try:
        for operation in _OF_RUNS:
            async with strategy.get_connection_for_operation(operation) as connection:
                health = await connection.health()
    finally:
        # The deadline of the poll must not cut the clean-up short.
        await asyncio.shield(asyncio.ensure_future(strategy.cleanup_temporary_connections()))
    if health.round_trip_s is None:
        return str(GatewayTimeoutError("requesting the time", reason="no response"))
    return "; ".join(health.troubles)


def take_over_earlier_record(layout: StoreLayout, gateway: RateLimiter) -> None:
    """Move an outage that an earlier version recorded in the store to the gateway's record.

    Raises:
        StoreError: the store or the gateway's record cannot be used.
    """
    path = layout.state / "gateway-away.json"
    if not is_regular(path):
        return
    layout.require_same()
    with disk_errors(path):
        with suppress(ValueError, KeyError, TypeError):  # an unreadable record counted as none
            fields = json.loads(path.read_bytes())
            for moment in ("since", "seen_at"):
                at = datetime.fromisoformat(fields[moment]).astimezone(UTC)
                gateway.note_absence(at, str(fields["text"]))
        path.unlink()
