"""Diagnosis of a gateway's set-up, step by step, with five requests at most.

After a failed step the later ones are not reached. A diagnosis resets what all processes have
recorded against the gateway: the circuit breaker closes, and refused requests may be sent again.

Not here: what a finding means (``ib.diagnostics.gateway_checks``), the state of a connection
(``ib.connection.gateway_status.Health``).
"""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from datetime import date, datetime
from itertools import compress

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.instruments import Instrument, Origin, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import EntitlementError, GatewayError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.connection import GatewayConnection
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy, Operation
from ktrdr_pipelines.ib.diagnostics.gateway_checks import (
    Check,
    CheckVerdict,
    Name,
    client_id,
    clock,
    farms,
    good,
    language,
    no_bars,
    no_connection,
    no_contract,
    no_data,
    pausing,
    zone,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.protocol.error_codes import NoDataError
from ktrdr_pipelines.ib.source import GatewaySource, Requester
from ktrdr_pipelines.limits import IbLimitsRegistry

KNOWN_PORTS = {**IbLimitsRegistry.PORTS.value, **IbLimitsRegistry.CONTAINER_PORTS.value}
"""Ports on which gateways usually listen."""

LONGEST_S = 10.0
"""Longest deadline of one step in seconds, whatever IB_TIMEOUT says."""

_SCAN_S = 1.0
_READ_ONLY = (
    "not checked: this program neither sends nor requests orders; checking the gateway's own "
    "Read-Only API switch would require that, and may open a window there; keep it on under "
    "Configure, Settings, API"
)


def probe_stock() -> Instrument:
    """Return a stock that every gateway knows."""
    return Instrument(
        symbol="AAPL",
        ib_symbol="AAPL",
        sec_type=SecType.STK,
        exchange="SMART",
        currency="USD",
        what_to_show=WhatToShow.TRADES,
        use_rth=True,
        calendar="XNYS.RTH",
        timeframes=(Timeframe.D1,),
        start=date(2020, 1, 1),
        primary_exchange="NASDAQ",
    )


def probe_currency() -> Instrument:
    """Return a currency pair, whose bars need no subscription."""
    return replace(
        probe_stock(),
        symbol="EURUSD",
        ib_symbol="EUR",
        sec_type=SecType.CASH,
        exchange="IDEALPRO",
        what_to_show=WhatToShow.MIDPOINT,
        use_rth=False,
        calendar="FX",
        primary_exchange="",
    )


async def diagnose(config: GatewayConfig) -> list[Check]:
    """Check a gateway; the result holds every check, those not reached with verdict unknown.

    Raises:
        DiskError: the state folder cannot be used.
    """
    config = replace(config, timeout_s=min(config.timeout_s, LONGEST_S), outage_s=0.0)
    rate_limiter = RateLimiter.of(config)
    strategy = IbConnectionStrategy(config, rate_limiter=rate_limiter)
    rate_limiter.remember(lambda memory, database: memory.reset(database))
    try:
        async with AsyncExitStack() as stack:
            entering = strategy.get_connection_for_operation(Operation.CLI)
            try:
                connection = await stack.enter_async_context(entering)
            except GatewayError as error:
                return _complete(no_connection(error, config.port, await _open_ports(config)))
            return _complete(await _checks_of(connection, rate_limiter, config))
    finally:
        await strategy.cleanup_temporary_connections()
        rate_limiter.close()


async def _checks_of(
    connection: GatewayConnection, rate_limiter: RateLimiter, config: GatewayConfig
) -> list[Check]:
    source = GatewaySource(connection, Requester(connection, rate_limiter, config))
    data = await _data(source, rate_limiter)
    health = await source.health()
    first_id = config.client_id_ranges[Operation.CLI][0]
    simulated = ", simulated" if connection.origin is Origin.SIMULATED else ""
    return [
        good(Name.PORT, f"something listens at port {config.port}"),
        good(Name.HANDSHAKE, f"the API responds{simulated}"),
        good(Name.VERSION, f"protocol version {connection.server_version}"),
        client_id(connection.client_id, first_id),
        clock(health.clock_offset_s),
        zone(source.notices.zones),
        language(source.notices.foreign_text),
        farms(health.troubles, tuple(map(str, health.farms))),
        *data,
        Check(Name.READ_ONLY, CheckVerdict.NOTE, _READ_ONLY),
    ]


async def _data(source: GatewaySource, rate_limiter: RateLimiter) -> list[Check]:
    if rate_limiter.vitals().paused_s > LONGEST_S:
        return [pausing(rate_limiter.vitals().paused_s)]
    try:
        number = await source.contract_id(probe_stock())
    except GatewayError as error:
        return [no_contract(error)]
    known = good(Name.CONTRACTS, f"AAPL is contract {number}")
    try:
        bars = await _bars(source, probe_stock())
    except NoDataError as error:
        return [known, no_data(error.reason)]
    except EntitlementError as error:
        refused = no_bars(error)
        is_session = refused.name is Name.SESSION
        return [known, refused, *([] if is_session else [await _free_bars(source)])]
    except GatewayError as error:
        return [known, no_bars(error)]
    return [
        known,
        good(Name.SESSION, "no other session receives the data"),
        good(Name.PERMISSIONS, "stocks of NASDAQ are permitted"),
        good(Name.BARS, f"AAPL 1d: {bars}"),
    ]


async def _free_bars(source: GatewaySource) -> Check:
    """Check whether the gateway returns bars that need no subscription."""
    try:
        return good(Name.BARS, f"EURUSD 1d: {await _bars(source, probe_currency())}")
    except GatewayError as error:
        return replace(no_bars(error), name=Name.BARS)


async def _bars(source: GatewaySource, instrument: Instrument) -> str:
    series = Series(instrument, Timeframe.D1)
    answer = await source.bars(BarRequest(series, None, duration_at(system_now())))
    if not isinstance(answer, Response):
        raise NoDataError(str(answer.request), reason=answer.message)
    last = answer.bars["session_date"][-1].as_py()
    return f"{answer.bars.num_rows} bars, the last of {last}"


def duration_at(moment: datetime) -> str:
    """Return a duration that changes every other second.

    An identical request within 15 s would have to wait (IB's rule of identical requests).
    """
    return f"{5 + int(moment.timestamp() / 2) % 20} D"


async def _open_ports(config: GatewayConfig) -> dict[str, int]:
    """Return the other ports, by kind, where gateways usually listen and that are open."""
    others = {kind: port for kind, port in KNOWN_PORTS.items() if port != config.port}
    are_open = await asyncio.gather(*(_is_open(config.host, port) for port in others.values()))
    return dict(compress(others.items(), are_open))


async def _is_open(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_SCAN_S):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, UnicodeError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def _complete(checks: Iterable[Check]) -> list[Check]:
    """Return every check in order; those that were not made have the verdict unknown."""
    made = {check.name: check for check in checks}
    return [made.get(name, Check(name, CheckVerdict.UNKNOWN, "not reached")) for name in Name]
