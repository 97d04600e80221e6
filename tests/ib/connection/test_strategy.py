"""Which operation gets which connection: shared, kept or temporary, of one loop and thread."""

import asyncio
import os
import threading
from dataclasses import replace
from typing import Any

import pytest

from ktrdr_pipelines.errors import (
    UsageError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.source import open_source


@pytest.fixture
def strategy_session(config: GatewayConfig, gateways: Any) -> Any:
    """Return a function that runs code with the strategy of a normal gateway."""

    def run(act: Any) -> Any:
        gateway = gateways()
        run.gateway = gateway

        async def session() -> Any:
            strategy = IbConnectionStrategy(replace(config, port=gateway.port))
            result = await act(strategy)
            await strategy.cleanup_temporary_connections()
            return result

        return asyncio.run(session())

    return run


def test_api_calls_share_one_connection(strategy_session: Any) -> None:
    """Concurrent and later api calls use the same connection."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with (
            strategy.get_connection_for_operation("api") as one,
            strategy.get_connection_for_operation("api") as other,
        ):
            assert one is other
        async with strategy.get_connection_for_operation("api") as later:
            return later is one, later.client_id

    assert strategy_session(act) == (True, 1)
    assert strategy_session.gateway.connects == 1


def test_concurrent_calls_connect_once(strategy_session: Any) -> None:
    """Concurrent calls wait for the one connection that is being opened."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async def call() -> Any:
            async with strategy.get_connection_for_operation("api") as connection:
                return connection

        return len(set(await asyncio.gather(*(call() for _ in range(5)))))

    assert strategy_session(act) == 1
    assert strategy_session.gateway.connects == 1


def test_the_gap_filler_has_a_connection_of_its_own(strategy_session: Any) -> None:
    """It is kept, and another than that of the api."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api") as api:
            async with strategy.get_connection_for_operation("gap_filler") as one:
                pass
            async with strategy.get_connection_for_operation("gap_filler") as again:
                return one is again, api is not one, one.client_id

    assert strategy_session(act) == (True, True, 101)


def test_a_batch_has_one_connection_while_it_lasts(strategy_session: Any) -> None:
    """The connection of a batch is closed with the batch."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("batch", batch_size=20) as connection:
            client_id = connection.client_id
        return client_id, connection.is_up, repr(strategy)

    client_id, is_up, text = strategy_session(act)
    assert (client_id, is_up) == (11, False)
    assert text.endswith("nothing open)")


def test_an_api_call_for_many_series_is_a_batch(strategy_session: Any) -> None:
    """It does not block the shared connection."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api", batch_size=2) as connection:
            return connection.client_id

    assert strategy_session(act) == 11


def test_temporary_connections_end_with_their_use(strategy_session: Any) -> None:
    """Two commands have a connection each, and both are closed."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with (
            strategy.get_connection_for_operation("cli") as one,
            strategy.get_connection_for_operation("cli") as other,
        ):
            assert "cli id 201 (1 using), cli id 202 (1 using)" in repr(strategy)
            ids = one.client_id, other.client_id
        return ids, one.is_up, other.is_up

    assert strategy_session(act) == ((201, 202), False, False)


def test_cleanup_closes_idle_connections(strategy_session: Any) -> None:
    """Connections in use stay open, idle ones are closed."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api") as used:
            async with strategy.get_connection_for_operation("gap_filler") as idle:
                pass
            closed = await strategy.cleanup_temporary_connections()
            return closed, used.is_up, idle.is_up

    assert strategy_session(act) == (1, True, False)


def test_a_kept_connection_that_broke_is_replaced(strategy_session: Any) -> None:
    """The next api call opens a new one."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api") as first:
            await first.close()
        async with strategy.get_connection_for_operation("api") as second:
            return first is second, second.is_up

    assert strategy_session(act) == (False, True)


@pytest.mark.parametrize(("operation", "size"), [("order", 1), ("", 1), ("batch", 0)])
def test_an_unknown_operation_is_a_usage_error(
    config: GatewayConfig, operation: str, size: int
) -> None:
    """The error names the operations."""
    with pytest.raises(UsageError, match="gap_filler"):
        IbConnectionStrategy(config).get_connection_for_operation(operation, size)


def test_a_connection_refuses_another_loop_and_thread(config: GatewayConfig, gateways: Any) -> None:
    """It belongs to one thread and one event loop."""
    port = gateways().port

    async def once() -> Any:
        async with open_source(replace(config, port=port)) as source:
            errors = []

            def elsewhere() -> None:
                try:
                    asyncio.run(source.health())
                except RuntimeError as error:
                    errors.append(str(error))

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            return errors

    (error,) = asyncio.run(once())
    assert "belongs to another thread or event loop" in error


def test_the_local_names_of_a_gateway_are_one_gateway(config: GatewayConfig) -> None:
    """All names of this machine share one budget and one set of client ids."""
    folders = {replace(config, host=host).folder for host in ("localhost", "127.0.0.1", "::1")}
    assert len(folders) == 1
    assert os.fspath(replace(config, host="Gate.Example", port=4001).folder).endswith(
        "gate.example_4001"
    )
