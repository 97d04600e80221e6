"""Client ids: leased over processes, freed by the system, left alone after a refusal."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.errors import ClientIdInUseError, DiskError
from ktrdr_pipelines.ib.connection.client_ids import QUARANTINE_S, ClientIdLeases


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
