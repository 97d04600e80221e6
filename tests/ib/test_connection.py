"""Connecting, refusing, sharing and closing connections."""

import asyncio
import gc
import os
import re
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.core.answers import BarRequest
from ktrdr_pipelines.core.instruments import Instrument
from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    DiskError,
    GatewaySilentError,
    GatewayUnreachableError,
    UsageError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection import IbConnectionStrategy
from ktrdr_pipelines.ib.leases import ClientIdLeases
from ktrdr_pipelines.ib.source import GatewaySource, open_source
from ktrdr_pipelines.limits import IbLimitsRegistry


class Naps:
    """A sleep that only notes how long it would have taken."""

    def __init__(self) -> None:
        self.seconds = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def connect(config: GatewayConfig, gateways: Any) -> Any:
    """Connect once to a gateway of a script, and give the gateway and the naps between tries."""

    def run(operation: str = "cli", **script: Any) -> Any:
        gateway, naps = gateways(**script), Naps()
        run.gateway, run.naps = gateway, naps

        async def once() -> Any:
            strategy = IbConnectionStrategy(replace(config, port=gateway.port), sleep=naps)
            async with strategy.get_connection_for_operation(operation) as connection:
                return connection.client_id

        return asyncio.run(once())

    return run


def test_a_closed_port_says_how_to_start_a_gateway(config: GatewayConfig, closed_port: int) -> None:
    """Nothing listening names host and port, the gateway, and the simulator."""

    async def once() -> None:
        async with open_source(replace(config, port=closed_port)):
            pass

    with pytest.raises(GatewayUnreachableError, match=f"127.0.0.1:{closed_port}") as caught:
        asyncio.run(once())
    assert f"enable the API on port {closed_port}" in str(caught.value)
    assert "ktrdr simulate" in str(caught.value)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "gate..home", "[::1]"])
def test_a_host_that_nobody_knows_is_unreachable(config: GatewayConfig, host: str) -> None:
    """A name that does not resolve, or is none, points to IB_HOST and not to the gateway."""

    async def once() -> None:
        async with open_source(replace(config, host=host, timeout_s=5)):
            pass

    with pytest.raises(GatewayUnreachableError, match=re.escape(host)) as caught:
        asyncio.run(once())
    assert "no such host is known" in caught.value.came
    assert "IB_HOST" in caught.value.remedy
    assert "Start IB Gateway" not in caught.value.remedy


def test_a_host_that_never_answers_is_unreachable(config: GatewayConfig) -> None:
    """A connection that is never accepted ends at the deadline, and is no silent gateway."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        there = replace(config, port=listener.getsockname()[1])

        async def once() -> None:
            async with open_source(there):
                pass

        with pytest.raises(
            GatewayUnreachableError, match=r"no connection could be made \(in time\)"
        ):
            asyncio.run(once())


def test_a_port_that_closes_at_once_is_unreachable(connect: Any) -> None:
    """Accept, then the end: what a container's port does when the gateway in it is down."""
    with pytest.raises(GatewayUnreachableError, match="closed the connection"):
        connect(greet=lambda talk: talk.close())


def test_an_end_after_the_handshake_is_unreachable(connect: Any) -> None:
    """A gateway that greets and then hangs up is no gateway to work with."""
    with pytest.raises(GatewayUnreachableError, match="closed the connection"):
        connect(start=lambda talk, _: talk.close())


def test_a_port_that_stays_silent_is_told_apart(connect: Any, words: Any) -> None:
    """Accepting and saying nothing is the gateway's own hang, not a missing gateway."""
    with pytest.raises(GatewaySilentError, match="did not answer"):
        connect(greet=lambda _: None)


def test_silence_after_the_handshake_is_silence(connect: Any, words: Any) -> None:
    """A gateway that never says that it is ready is silent."""
    with pytest.raises(GatewaySilentError):
        connect(start=words.ignore)


def test_a_gateway_that_does_not_tell_the_time_is_silent(connect: Any, words: Any) -> None:
    """Being connected is not enough: one round trip must come back."""
    with pytest.raises(GatewaySilentError, match="time of 127"):
        connect(time=words.ignore)


@pytest.mark.parametrize("version", [20, 156, 179, 201])
def test_another_protocol_version_is_refused_for_good(connect: Any, version: int) -> None:
    """Versions that are not spoken end at once and are not worth another try."""
    with pytest.raises(GatewayUnreachableError, match=f"version {version}") as caught:
        connect(version=version)
    assert not caught.value.retry


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.6\r\n", b"\x00\x00\x00\x04abc\x00"])
def test_something_else_at_the_port_is_recognised(connect: Any, data: Any) -> None:
    """Another protocol on the port is told as such, without waiting for the deadline."""
    with pytest.raises(GatewayUnreachableError, match="something else listens there"):
        connect(greet=lambda talk: talk.raw(data))


def refuse_id(talk: Any, fields: list[str]) -> None:
    """Say 326 and hang up, as the gateway does."""
    talk.error(-1, 326, "Unable to connect as the client id is already in use.")
    talk.close()


def test_an_id_in_use_leads_to_the_next(connect: Any, words: Any) -> None:
    """326 costs a pause, not the connection."""

    def start(talk: Any, fields: list[str]) -> None:
        (refuse_id if talk.client_id == 201 else words.start)(talk, fields)

    assert connect(start=start) == 202
    assert connect.naps.seconds == [IbLimitsRegistry.CLIENT_ID_PAUSE_S.value]


def test_few_ids_are_tried(connect: Any) -> None:
    """After three refused ids it gives up, for more would make the gateway refuse everyone."""
    with pytest.raises(ClientIdInUseError) as caught:
        connect(start=refuse_id)
    assert caught.value.code == 326
    assert [fields[2] for fields in connect.gateway.asked(71)] == ["201", "202", "203"]
    assert len(connect.naps.seconds) == 2


def test_a_refused_id_is_skipped_by_the_next_connection(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """The quarantine of an id outlives the connection that met it."""

    def start(talk: Any, fields: list[str]) -> None:
        (refuse_id if talk.client_id == 201 else words.start)(talk, fields)

    gateway = gateways(start=start)

    async def once() -> None:
        strategy = IbConnectionStrategy(replace(config, port=gateway.port), sleep=Naps())
        async with strategy.get_connection_for_operation("cli"):
            pass

    asyncio.run(once())
    asyncio.run(once())
    assert [fields[2] for fields in gateway.asked(71)] == ["201", "202", "202"]


@pytest.fixture
def strategy_session(config: GatewayConfig, gateways: Any) -> Any:
    """Run something with a strategy of a good gateway; nothing may be open afterwards."""

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
    """Two calls at once and a later one use the same connection."""

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


def test_calls_that_come_together_connect_once(strategy_session: Any) -> None:
    """Callers that find no connection wait for the one that is being made."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async def call() -> Any:
            async with strategy.get_connection_for_operation("api") as connection:
                return connection

        return len(set(await asyncio.gather(*(call() for _ in range(5)))))

    assert strategy_session(act) == 1
    assert strategy_session.gateway.connects == 1


def test_the_gap_filler_has_a_connection_of_its_own(strategy_session: Any) -> None:
    """It is kept, and it is not the one of the api."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api") as api:
            async with strategy.get_connection_for_operation("gap_filler") as one:
                pass
            async with strategy.get_connection_for_operation("gap_filler") as again:
                return one is again, api is not one, one.client_id

    assert strategy_session(act) == (True, True, 101)


def test_a_batch_has_one_connection_while_it_lasts(strategy_session: Any) -> None:
    """The connection of a batch is closed with it."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("batch", batch_size=20) as connection:
            client_id = connection.client_id
        return client_id, connection.is_up, repr(strategy)

    client_id, is_up, text = strategy_session(act)
    assert (client_id, is_up) == (11, False)
    assert text.endswith("nothing open)")


def test_an_api_call_for_many_series_is_a_batch(strategy_session: Any) -> None:
    """It must not hold up the shared connection."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api", batch_size=2) as connection:
            return connection.client_id

    assert strategy_session(act) == 11


def test_temporary_connections_end_with_their_use(strategy_session: Any) -> None:
    """Two commands have two connections, and neither is left."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with (
            strategy.get_connection_for_operation("cli") as one,
            strategy.get_connection_for_operation("cli") as other,
        ):
            assert "cli id 201 (1 using), cli id 202 (1 using)" in repr(strategy)
            ids = one.client_id, other.client_id
        return ids, one.is_up, other.is_up

    assert strategy_session(act) == ((201, 202), False, False)


def test_cleanup_closes_what_nobody_uses(strategy_session: Any) -> None:
    """Kept connections in use stay, idle ones go."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api") as used:
            async with strategy.get_connection_for_operation("gap_filler") as idle:
                pass
            closed = await strategy.cleanup_temporary_connections()
            return closed, used.is_up, idle.is_up

    assert strategy_session(act) == (1, True, False)


def test_a_kept_connection_that_broke_is_replaced(strategy_session: Any) -> None:
    """The next api call connects anew."""

    async def act(strategy: IbConnectionStrategy) -> Any:
        async with strategy.get_connection_for_operation("api") as first:
            await first.close()
        async with strategy.get_connection_for_operation("api") as second:
            return first is second, second.is_up

    assert strategy_session(act) == (False, True)


@pytest.mark.parametrize(("operation", "size"), [("order", 1), ("", 1), ("batch", 0)])
def test_an_unknown_operation_is_a_mistake_of_the_caller(
    config: GatewayConfig, operation: str, size: int
) -> None:
    """It names the operations that there are."""
    with pytest.raises(UsageError, match="gap_filler"):
        IbConnectionStrategy(config).get_connection_for_operation(operation, size)


def test_a_connection_refuses_another_loop_and_thread(config: GatewayConfig, gateways: Any) -> None:
    """It lives in one thread and one event loop."""
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


def test_many_connections_leave_nothing(config: GatewayConfig, gateways: Any) -> None:
    """After a thousand connections there is no socket, thread, task or lock more than before."""
    gateway = gateways()
    there = replace(config, port=gateway.port)

    async def connect(count: int) -> Any:
        for _ in range(count):
            async with open_source(there) as source:
                await source.health()
        return len(asyncio.all_tasks())

    asyncio.run(connect(1))
    gc.collect()
    before = open_files(), threading.active_count()
    assert asyncio.run(connect(1000)) == 1
    gc.collect()
    assert (open_files(), threading.active_count()) == before
    assert {fields[2] for fields in gateway.asked(71)} == {"201"}


def open_files() -> Any:
    """Count the open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_happens_inside_the_connection_is_closed(
    config: GatewayConfig, gateways: Any, error: Any
) -> None:
    """Any exception leaves with the socket closed and the id free."""
    gateway = gateways()
    there = replace(config, port=gateway.port)
    held = []

    async def once() -> None:
        async with open_source(there) as source:
            held.append(source)
            raise error

    with pytest.raises(type(error)):
        asyncio.run(once())
    assert "down" in repr(held[0])
    ClientIdLeases(there.folder).lease((201, 201)).release()


def test_a_cancelled_session_is_closed(
    config: GatewayConfig, gateways: Any, words: Any, aapl: Instrument
) -> None:
    """A task that is cancelled in mid-request closes its socket and frees its id."""
    gateway = gateways(contract=words.ignore)
    there = replace(config, port=gateway.port, timeout_s=5)

    async def work() -> None:
        async with open_source(there) as source:
            await source.contract_id(aapl)

    async def once() -> Any:
        task = asyncio.create_task(work())
        await gateway.until_asked(9)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    assert asyncio.run(once()) == 1
    ClientIdLeases(there.folder).lease((201, 201)).release()


def test_a_state_folder_that_cannot_be_made_is_told(
    config: GatewayConfig, gateways: Any, tmp_path: Path
) -> None:
    """A file where the folder should be names the setting to change."""
    (tmp_path / "state").write_text("no folder")
    there = replace(config, port=gateways().port)

    async def once() -> None:
        async with open_source(there):
            pass

    with pytest.raises(DiskError, match="KTRDR_STATE"):
        asyncio.run(once())


def test_no_frame_of_a_session_is_an_order(
    bench: Any, minute_request: BarRequest, aapl: Instrument
) -> None:
    """A whole session sends the handshake, the time, contracts, bars, heads and cancels only."""

    async def ask(source: GatewaySource) -> None:
        await source.bars(minute_request)
        await source.head(aapl)
        await source.health()

    bench(ask)
    assert {fields[0] for fields in bench.gateway.received} <= {
        "71",
        "49",
        "9",
        "20",
        "25",
        "87",
        "90",
    }


def test_the_local_names_of_a_gateway_are_one_gateway(config: GatewayConfig) -> None:
    """Two names for this machine share one budget and one set of client ids."""
    folders = {replace(config, host=host).folder for host in ("localhost", "127.0.0.1", "::1")}
    assert len(folders) == 1
    assert os.fspath(replace(config, host="Gate.Example", port=4001).folder).endswith(
        "gate.example_4001"
    )
