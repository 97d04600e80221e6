"""Client ids: leased across processes, freed by the system, avoided after a refusal."""

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
from tests.ib.lease_processes import lease_and_wait, lease_in_another_process
from tests.ib.pacing_support import FakeClock


def test_ids_are_leased_from_the_lowest(tmp_path: Path) -> None:
    """Each lease takes the lowest free id, a released one again."""
    leases = ClientIdLeases(tmp_path)
    first, second = leases.lease((201, 250)), leases.lease((201, 250))
    assert (first.client_id, second.client_id) == (201, 202)
    first.release()
    third = leases.lease((201, 250))
    assert third.client_id == 201
    second.release()
    third.release()


def test_other_objects_and_processes_see_a_lease(tmp_path: Path) -> None:
    """A lease is a lock of the system, which every process sees."""
    lease = ClientIdLeases(tmp_path).lease((1, 2))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(lease_in_another_process, (tmp_path,)) == 2
    lease.release()


def test_a_killed_process_frees_its_id(tmp_path: Path) -> None:
    """SIGKILL releases the lock at once."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=lease_and_wait, args=(tmp_path, child)
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


def test_zero_is_never_leased(tmp_path: Path) -> None:
    """Id 0 receives manual orders, and is skipped in a range that holds it."""
    lease = ClientIdLeases(tmp_path).lease((0, 3))
    assert lease.client_id == 1
    lease.release()


def test_an_exhausted_range_names_itself(tmp_path: Path) -> None:
    """The error names the range and the setting."""
    leases = ClientIdLeases(tmp_path)
    held = [leases.lease((1, 2)) for _ in range(2)]
    with pytest.raises(ClientIdInUseError, match=r"client ids 1 to 2.*IB_CLIENT_ID"):
        leases.lease((1, 2))
    for lease in held:
        lease.release()


def test_a_refused_id_is_avoided_until_its_quarantine_ends(tmp_path: Path) -> None:
    """The quarantine of a refused id ends after QUARANTINE_S."""
    clock = FakeClock()
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


def test_the_oldest_refusal_is_retried_if_no_other_id_is_left(tmp_path: Path) -> None:
    """Refused ids are retried after 30 s, the oldest refusal first, after all others."""
    clock = FakeClock()
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


def test_a_quarantine_ends_with_the_boot(tmp_path: Path) -> None:
    """After a restart of the machine, times of the earlier boot mean nothing."""
    clock = FakeClock()
    tmp_path.mkdir(exist_ok=True)
    before = ClientIdLeases(tmp_path, clock=clock, boot=lambda: "one")
    before.quarantine(1)
    after = ClientIdLeases(tmp_path, clock=clock, boot=lambda: "two")
    lease = after.lease((1, 9))
    assert lease.client_id == 1
    lease.release()


@pytest.mark.parametrize("text", ["", "nonsense", "boot not-a-number", "a b c"])
def test_an_unreadable_mark_is_no_quarantine(tmp_path: Path, text: str) -> None:
    """A broken file costs one attempt at most, and never blocks an id."""
    (tmp_path / "client-1.refused").write_text(text)
    lease = ClientIdLeases(tmp_path).lease((1, 9))
    assert lease.client_id == 1
    lease.release()


def test_a_mark_that_cannot_be_written_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A quarantine that cannot be recorded is a warning, not an error."""
    ClientIdLeases(tmp_path / "missing").quarantine(3)
    assert "client id 3 cannot be marked" in caplog.text


def test_a_file_in_place_of_the_folder_is_a_disk_error(tmp_path: Path) -> None:
    """The error names KTRDR_STATE."""
    (tmp_path / "state").write_text("")
    with pytest.raises(DiskError, match="KTRDR_STATE"):
        ClientIdLeases(tmp_path / "state").lease((1, 9))


class HeldIdsRun:
    """A run against a gateway that holds client ids; time passes only while it sleeps."""

    def __init__(self, config: GatewayConfig, gateway: Any) -> None:
        self.config = replace(config, port=gateway.port)
        self.gateway = gateway
        self.now = 1000.0
        self.id_pauses: list[float] = []
        self.pauses: list[float] = []
        self.waits: list[tuple[str, float]] = []

    @property
    def attempted(self) -> list[int]:
        """The client ids that the gateway received, in order."""
        return [int(fields[2]) for fields in self.gateway.frames(71)]

    async def pause_between_ids(self, seconds: float) -> None:
        self.id_pauses.append(seconds)

    async def pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def record_wait(self, why: str, wait_s: float) -> None:
        self.waits.append((why, wait_s))

    @asynccontextmanager
    async def source(self) -> AsyncIterator[Any]:
        leases = ClientIdLeases(self.config.folder, clock=lambda: self.now)
        strategy = IbConnectionStrategy(self.config, leases=leases, sleep=self.pause_between_ids)
        async with strategy.get_connection_for_operation("cli") as connection:
            yield connection

    def ask(self, *, wait_s: float = 0.0, requests: int = 1) -> list[Any]:
        """Send concurrent requests that return the client id of their connection."""
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
            async with SourceSession(
                self.source, retry_policy, waits=self.record_wait
            ) as source_session:
                tasks = (source_session.ask(client_id) for _ in range(requests))
                return await asyncio.gather(*tasks, return_exceptions=True)

        return asyncio.run(run())


@pytest.fixture
def held(config: GatewayConfig, gateways: Any, replies: Any) -> Any:
    """Return a function that makes a run whose first connections are refused."""

    def make(refusals: float, ids: tuple[int, int] = (201, 250)) -> HeldIdsRun:
        def start(client: Any, fields: list[str]) -> None:
            if len(run.attempted) > refusals:
                replies.start(client, fields)
                return
            client.error(-1, 326, "Unable to connect as the client id is already in use.")
            client.close()

        run = HeldIdsRun(
            replace(config, client_id_ranges={**config.client_id_ranges, "cli": ids}),
            gateways(start=start),
        )
        return run

    return make


def test_a_run_waits_until_the_gateway_frees_an_id(held: Any) -> None:
    """Three ids with short pauses, then one at a time with growing ones; the reason is reported."""
    run = held(6)
    assert run.ask(wait_s=600) == [207]
    assert run.attempted == [201, 202, 203, 204, 205, 206, 207]
    assert run.id_pauses == [1.5, 1.5]
    assert run.pauses == [3.0, 6.0, 12.0, 24.0]
    why = (
        "client ids 201, 202, 203 are in use; the gateway may still hold the old connection; "
        "trying again for 600 s"
    )
    assert run.waits == [(why, 600.0)]


def test_pauses_are_bounded_and_so_is_the_wait(held: Any) -> None:
    """Pauses grow to a minute and end with the wait; untried ids come before refused ones.

    Each id that the run has not tried yet comes before one that was refused.
    """
    run = held(float("inf"))
    (error,) = run.ask(wait_s=240)
    assert run.pauses == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0, 27.0]
    assert sum(run.pauses) == 240
    assert len(run.attempted) == 3 + len(run.pauses) == len(set(run.attempted))
    assert isinstance(error, ClientIdInUseError)
    assert error.code == 326
    assert "11 client ids, of them 207, 208, 209, 210, 211, are in use" in str(error)


def test_requests_of_one_run_wait_together(held: Any) -> None:
    """One request walks over the ids; the others share its connection, or its error."""
    run = held(5)
    assert run.ask(wait_s=600, requests=8) == [206] * 8
    assert len(run.attempted) == 6
    run = held(float("inf"))
    errors = run.ask(wait_s=30, requests=8)
    assert {type(error) for error in errors} == {ClientIdInUseError}
    assert sum(run.pauses) == 30
    assert len(run.attempted) == 3 + len(run.pauses)


def test_without_a_wait_the_error_says_how_to_wait(held: Any) -> None:
    """After the usual retries the error says what may hold the ids, and what to do."""
    run = held(float("inf"))
    errors = run.ask(requests=8)
    assert run.attempted == [201, 202, 203, 204, 205]
    assert run.pauses == [2.0, 4.0]
    assert len(errors) == 8
    for part in (
        "client ids 201, 202, 203, 204, 205 are in use",
        "until it is restarted",
        "--wait SECONDS",
        "IB_CLIENT_ID_",
    ):
        assert part in str(errors[0])


def test_a_second_walk_finds_an_id_though_all_were_refused(held: Any) -> None:
    """If all ids were refused, the oldest refusal is retried after half a minute."""
    run = held(3, ids=(201, 203))
    assert run.ask(wait_s=600) == [201]
    assert run.attempted == [201, 202, 203, 201]
    assert run.pauses == [3.0, 6.0, 12.0, 24.0]


def test_a_wait_covers_an_unreachable_gateway(
    config: GatewayConfig, closed_port: int, gateways: Any
) -> None:
    """An unreachable gateway is polled with growing pauses, under its own reason."""
    run = HeldIdsRun(config, gateways())
    run.config = replace(config, port=closed_port)
    (error,) = run.ask(wait_s=20)
    assert isinstance(error, GatewayUnreachableError)
    assert run.pauses == [3.0, 6.0, 11.0]
    ((why, wait_s),) = run.waits
    assert "nothing listens there; trying again for 20 s" in why
    assert wait_s == 20.0
