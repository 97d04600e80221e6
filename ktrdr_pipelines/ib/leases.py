"""Client ids, leased by file locks, so that no two processes of this machine take the same.

The system frees the lock of a process that dies. An id that the gateway calls "in use" (326) is
left alone for a while by every process. Not here: which operation uses which ids (``limits``).
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ktrdr_pipelines.errors import ClientIdInUseError, DiskError
from ktrdr_pipelines.ib.clock import boot_id, boot_time_s
from ktrdr_pipelines.private_files import FILE_MODE, make_private_folder, write_privately

QUARANTINE_S = 300.0
"""How long an id is left alone after 326: a gateway can hold the id of a dead client (C)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientIdLease:
    """The right to one client id, until it is released or the process ends."""

    client_id: int
    lock: FileLock

    def release(self) -> None:
        """Give the id back; may be repeated."""
        self.lock.release()


class ClientIdLeases:
    """The client ids of one gateway.

    Args:
        folder: where the locks of this gateway lie; made when first needed.
        clock: seconds that all processes of this machine share.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = boot_time_s,
        boot: Callable[[], str] = boot_id,
        quarantine_s: float = QUARANTINE_S,
    ) -> None:
        self._folder = folder
        self._clock, self._boot = clock, boot
        self._quarantine_s = quarantine_s

    def __repr__(self) -> str:
        return f"ClientIdLeases({self._folder})"

    def lease(self, ids: tuple[int, int], *, skipped: Iterable[int] = ()) -> ClientIdLease:
        """Lease the lowest id of a range, both ends in, that is free, well and not skipped.

        Raises:
            ClientIdInUseError: there is none.
            DiskError: the folder of the locks cannot be used.
        """
        first, last = ids
        refused = {0, *skipped}
        for client_id in range(first, last + 1):
            if client_id in refused or self._is_quarantined(client_id):
                continue
            if (lease := self._try(client_id)) is not None:
                return lease
        raise ClientIdInUseError(
            f"client ids {first} to {last}",
            came="each is taken by another process or was refused by the gateway a moment ago",
            remedy="Wait a few minutes, end other runs, or set a wider range (IB_CLIENT_ID_*).",
        )

    def quarantine(self, client_id: int) -> None:
        """Leave an id alone for a while, in every process."""
        until = self._clock() + self._quarantine_s
        try:
            write_privately(self._mark(client_id), f"{self._boot()} {until}\n".encode("ascii"))
        except OSError as error:
            _log.warning("client id %d cannot be marked as refused: %s", client_id, error)

    def _try(self, client_id: int) -> ClientIdLease | None:
        path = self._folder / f"client-{client_id}.lock"
        lock = FileLock(path, timeout=0, mode=FILE_MODE, thread_local=False)
        try:
            make_private_folder(self._folder)
            lock.acquire()
        except Timeout:
            return None
        except OSError as error:
            raise DiskError(
                f"lock of client id {client_id}",
                came=f"{path}: {error.strerror or error}",
                remedy="Set KTRDR_STATE to a folder on a local disk that can be written.",
            ) from error
        return ClientIdLease(client_id, lock)

    def _is_quarantined(self, client_id: int) -> bool:
        try:
            boot, until = self._mark(client_id).read_text(encoding="ascii").split()
            left_s = float(until) - self._clock()
        except (OSError, ValueError):
            return False
        return boot == self._boot() and 0 < left_s <= self._quarantine_s

    def _mark(self, client_id: int) -> Path:
        return self._folder / f"client-{client_id}.refused"
