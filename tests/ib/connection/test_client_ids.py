"""Client ids: leased over processes, freed by the system, left alone after a refusal."""

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import ClientIdInUseError, DiskError, GatewayUnreachableError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import QUARANTINE_S, ClientIdLeases
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> Any:
        return self.now


def test_ids_are_leased_from_the_lowest(tmp_path: Path) -> None:
    """Each lease takes the next free id, and a released one is taken again."""
    leases = ClientIdLeases(tmp_path)
    first, second = leases.lease((201, 250)), leases.lease((201, 250))
    assert (first.client_id, second.client_id) == (201, 202)
    first.release()
    third = leases.lease((201, 250))
    assert third.client_id == 201
    second.release()
    third.release()


def test_other_objects_and_processes_see_a_lease(tmp_path: Path) -> None:
    """A lease is a lock of the system, not a note in memory."""
    lease = ClientIdLeases(tmp_path).lease((1, 2))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_leased_elsewhere, (tmp_path,)) == 2
    lease.release()


def _leased_elsewhere(folder: Path) -> int:
    lease = ClientIdLeases(folder).lease((1, 2))
    try:
        return lease.client_id
    finally:
        lease.release()


def test_a_killed_process_frees_its_id(tmp_path: Path) -> None:
    """SIGKILL frees the lock at once."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_lease_and_wait, args=(tmp_path, child)
    )
    process.start()
    assert parent.recv() == 7
    with pytest.raises(ClientIdInUseError):
        ClientIdLeases(tmp_path).lease((7, 7))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    process.close()
    parent.close()
    child.close()
    ClientIdLeases(tmp_path).lease((7, 7)).release()


def _lease_and_wait(folder: Path, pipe: Any) -> None:
    lease = ClientIdLeases(folder).lease((7, 7))
    pipe.send(lease.client_id)
    signal.pause()


def test_zero_is_never_leased(tmp_path: Path) -> None:
    """The id 0 sees manual orders and is skipped even where a range holds it."""
    lease = ClientIdLeases(tmp_path).lease((0, 3))
    assert lease.client_id == 1
    lease.release()


def test_an_exhausted_range_names_itself(tmp_path: Path) -> None:
    """No free id says which range, and what to set."""
    leases = ClientIdLeases(tmp_path)
    held = [leases.lease((1, 2)) for _ in range(2)]
    with pytest.raises(ClientIdInUseError, match=r"client ids 1 to 2.*IB_CLIENT_ID"):
        leases.lease((1, 2))
    for lease in held:
        lease.release()


def test_a_refused_id_is_left_alone_for_a_while(tmp_path: Path) -> None:
    """Quarantine ends by itself."""
    clock = Clock()
    leases = ClientIdLeases(tmp_path, clock=clock)
    first = leases.lease((1, 9))
    leases.quarantine(1)
    first.release()
    second = leases.lease((1, 9))
    assert second.client_id == 2
    second.release()
    clock.now += QUARANTINE_S + 1
    third = ClientIdLeases(tmp_path, clock=clock).lease((1, 9))
    assert third.client_id == 1
    third.release()


def test_the_oldest_refusal_is_tried_again_where_no_other_id_is_left(tmp_path: Path) -> None:
    """Not before half a minute has passed since, and never before an id that was not refused."""
    clock = Clock()
    leases = ClientIdLeases(tmp_path, clock=clock)
    leases.lease((1, 3)).release()
    for client_id in (2, 1, 3):
        leases.quarantine(client_id)
        clock.now += 10
    assert leases.refused((1, 3)) == [1, 2, 3]
    first = leases.lease((1, 3))
    assert first.client_id == 2
    with pytest.raises(ClientIdInUseError, match="--wait SECONDS"):
        leases.lease((1, 3))
    clock.now += 10
    second, fresh = leases.lease((1, 3)), leases.lease((1, 4))
    assert (second.client_id, fresh.client_id) == (1, 4)
    for lease in (first, second, fresh):
        lease.release()


def test_a_quarantine_of_another_start_of_the_machine_counts_for_nothing(tmp_path: Path) -> None:
    """After a restart the gateway has forgotten too, and timestamps mean nothing."""
    clock = Clock()
    tmp_path.mkdir(exist_ok=True)
    before = ClientIdLeases(tmp_path, clock=clock, boot=lambda: "one")
    before.quarantine(1)
    after = ClientIdLeases(tmp_path, clock=clock, boot=lambda: "two")
    lease = after.lease((1, 9))
    assert lease.client_id == 1
    lease.release()


@pytest.mark.parametrize("text", ["", "nonsense", "boot not-a-number", "a b c"])
def test_an_unreadable_mark_is_no_quarantine(tmp_path: Path, text: str) -> None:
    """A broken file costs a try at the gateway, not an id for ever."""
    (tmp_path / "client-1.refused").write_text(text)
    lease = ClientIdLeases(tmp_path).lease((1, 9))
    assert lease.client_id == 1
    lease.release()


def test_a_mark_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Quarantine is a courtesy: failing at it stops nothing."""
    ClientIdLeases(tmp_path / "missing").quarantine(3)
    assert "client id 3 cannot be marked" in caplog.text


def test_a_folder_that_is_none_is_a_disk_error(tmp_path: Path) -> None:
    """The text names the file and the setting."""
    (tmp_path / "state").write_text("")
    with pytest.raises(DiskError, match="KTRDR_STATE"):
        ClientIdLeases(tmp_path / "state").lease((1, 9))


class Bench:
    """A run that asks a gateway which holds client ids; time passes only while it sleeps."""

    def __init__(self, config: GatewayConfig, gateway: Any) -> None:
        self.config = replace(config, port=gateway.port)
        self.gateway = gateway
        self.now = 1000.0
        self.naps: list[float] = []
        self.pauses: list[float] = []
        self.told: list[tuple[str, float]] = []

    @property
    def attempted(self) -> list[int]:
        """The client ids that the gateway saw, in their order."""
        return [int(fields[2]) for fields in self.gateway.what(71)]

    async def nap(self, seconds: float) -> None:
        self.naps.append(seconds)

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def tell(self, why: str, wait_s: float) -> None:
        self.told.append((why, wait_s))

    @asynccontextmanager
    async def source(self) -> AsyncIterator[Any]:
        leases = ClientIdLeases(self.config.folder, clock=lambda: self.now)
        strategy = IbConnectionStrategy(self.config, leases=leases, sleep=self.nap)
        async with strategy.get_connection_for_operation("cli") as connection:
            yield connection

    def ask(self, *, wait_s: float = 0.0, requests: int = 1) -> list[Any]:
        """Let requests find out under which client id they are sent, all together."""
        retry_policy = RetryPolicy(
            max_retries=2,
            wait_s=wait_s,
            sleep=self.pause,
            clock=lambda: datetime.fromtimestamp(self.now, UTC),
            jitter=lambda: 0.0,
        )

        async def client_id(connection: Any) -> int:
            return int(connection.client_id)

        async def run() -> list[Any]:
            async with SourceSession(self.source, retry_policy, waits=self.tell) as source_session:
                asking = (source_session.ask(client_id) for _ in range(requests))
                return await asyncio.gather(*asking, return_exceptions=True)

        return asyncio.run(run())


@pytest.fixture
def held(config: GatewayConfig, gateways: Any, words: Any) -> Any:
    """Make a gateway that refuses so many connections, and what asks it."""

    def make(refusals: float, ids: tuple[int, int] = (201, 250)) -> Bench:
        def start(talk: Any, fields: list[str]) -> None:
            if len(bench.attempted) > refusals:
                words.start(talk, fields)
                return
            talk.error(-1, 326, "Unable to connect as the client id is already in use.")
            talk.close()

        bench = Bench(
            replace(config, client_id_ranges={**config.client_id_ranges, "cli": ids}),
            gateways(start=start),
        )
        return bench

    return make


def test_a_run_waits_until_the_gateway_lets_go_of_an_id(held: Any) -> None:
    """Three ids with short pauses, then one at a time with growing ones, and the reason is told."""
    bench = held(6)
    assert bench.ask(wait_s=600) == [207]
    assert bench.attempted == [201, 202, 203, 204, 205, 206, 207]
    assert bench.naps == [1.5, 1.5]
    assert bench.pauses == [3.0, 6.0, 12.0, 24.0]
    why = (
        "client ids 201, 202, 203 are in use; the gateway may still hold the old connection; "
        "trying again for 600 s"
    )
    assert bench.told == [(why, 600.0)]


def test_pauses_are_bounded_and_so_is_the_wait(held: Any) -> None:
    """A gateway that lets go of nothing until it is restarted is not hammered, and told in the end.

    Each id that the run has not tried yet comes before one that was refused.
    """
    bench = held(float("inf"))
    (error,) = bench.ask(wait_s=240)
    assert bench.pauses == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0, 27.0]
    assert sum(bench.pauses) == 240
    assert len(bench.attempted) == 3 + len(bench.pauses) == len(set(bench.attempted))
    assert isinstance(error, ClientIdInUseError)
    assert error.code == 326
    assert "11 client ids, of them 207, 208, 209, 210, 211, are in use" in str(error)


def test_requests_of_one_run_wait_together(held: Any) -> None:
    """One of them walks over the ids; the others take the connection that it gets, or its error."""
    bench = held(5)
    assert bench.ask(wait_s=600, requests=8) == [206] * 8
    assert len(bench.attempted) == 6
    bench = held(float("inf"))
    errors = bench.ask(wait_s=30, requests=8)
    assert {type(error) for error in errors} == {ClientIdInUseError}
    assert sum(bench.pauses) == 30
    assert len(bench.attempted) == 3 + len(bench.pauses)


def test_without_a_wait_the_error_says_how_to_wait(held: Any) -> None:
    """A few tries, as after any failure, and then what may hold the ids and what to do."""
    bench = held(float("inf"))
    errors = bench.ask(requests=8)
    assert bench.attempted == [201, 202, 203, 204, 205]
    assert bench.pauses == [2.0, 4.0]
    assert len(errors) == 8
    for part in (
        "client ids 201, 202, 203, 204, 205 are in use",
        "until it is restarted",
        "--wait SECONDS",
        "IB_CLIENT_ID_",
    ):
        assert part in str(errors[0])


def test_a_second_walk_finds_an_id_though_all_were_refused(held: Any) -> None:
    """The one that was refused longest ago, when that is half a minute: never none at all."""
    bench = held(3, ids=(201, 203))
    assert bench.ask(wait_s=600) == [201]
    assert bench.attempted == [201, 202, 203, 201]
    assert bench.pauses == [3.0, 6.0, 12.0, 24.0]


def test_a_wait_is_for_a_gateway_that_is_not_there_too(
    config: GatewayConfig, closed_port: int, gateways: Any
) -> None:
    """It is tried with growing pauses, and told as what it is."""
    bench = Bench(config, gateways())
    bench.config = replace(config, port=closed_port)
    (error,) = bench.ask(wait_s=20)
    assert isinstance(error, GatewayUnreachableError)
    assert bench.pauses == [3.0, 6.0, 11.0]
    ((why, wait_s),) = bench.told
    assert "nothing listens there; trying again for 20 s" in why
    assert wait_s == 20.0
