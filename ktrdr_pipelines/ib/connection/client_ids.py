"""Client ids, leased by file locks, so that no two processes of this machine use the same one.

The system frees the lock of a process that dies. An id that the gateway calls "in use" (326) is
avoided for a while by every process, and tried again sooner if no other is left: a gateway may
hold the ids of lost connections, of a whole range, until it is restarted.

Not here: which operation uses which ids (``limits``).
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ktrdr_pipelines.clock import boot_id, boot_time_s
from ktrdr_pipelines.errors import ClientIdInUseError, DiskError
from ktrdr_pipelines.ib.private_files import FILE_MODE, make_private_folder, write_privately

QUARANTINE_S = 300.0
"""Seconds that an id is avoided after 326: a gateway can hold the id of a dead client (grade C)."""

TRY_AGAIN_S = 30.0
"""Seconds after 326 until an id is tried again if every other one is refused or leased."""

HELD_HINT = (
    "A gateway can hold the ids of lost connections until it is restarted: ktrdr load and ktrdr "
    "update wait for that with --wait SECONDS. Otherwise stop the other programs, or set another "
    "range of client ids (IB_CLIENT_ID_*)."
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClientIdLease:
    """The right to one client id, until it is released or the process ends."""

    client_id: int
    lock: FileLock

    def release(self) -> None:
        """Release the id; may be repeated."""
        self.lock.release()


class ClientIdLeases:
    """The client ids of one gateway.

    Args:
        folder: where the locks of this gateway are; created when first needed.
        clock: seconds that all processes of this machine share.
        boot: returns the name of this run of the machine.
        quarantine_s: how long a refused id is avoided.
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
        """Lease the lowest id of an inclusive range that is free and neither refused nor skipped.

        If all free ids were refused, lease the one whose refusal is the oldest.

        Raises:
            ClientIdInUseError: no id is left.
            DiskError: the folder of the locks cannot be used.
        """
        first, last = ids
        left = [number for number in range(first, last + 1) if number not in {0, *skipped}]
        ages = {number: self._refused_for_s(number) for number in left}
        healthy = [number for number in left if ages[number] is None]
        again = sorted(
            (-age_s, number) for number, age_s in ages.items() if age_s and age_s >= TRY_AGAIN_S
        )
        for client_id in (*healthy, *(number for _, number in again)):
            if (lease := self._try(client_id)) is not None:
                return lease
        raise ClientIdInUseError(
            f"client ids {first} to {last}",
            reason="each is leased by another process or was refused by the gateway recently",
            hint=HELD_HINT,
        )

    def refused(self, ids: tuple[int, int]) -> list[int]:
        """Return the ids of an inclusive range that the gateway has refused recently."""
        first, last = ids
        return [one for one in range(first, last + 1) if self._refused_for_s(one) is not None]

    def quarantine(self, client_id: int) -> None:
        """Avoid an id for ``quarantine_s``, in every process."""
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
                f"lock client id {client_id}",
                reason=f"{path}: {error.strerror or error}",
                hint="Set KTRDR_STATE to a writable folder on a local disk.",
            ) from error
        return ClientIdLease(client_id, lock)

    def _refused_for_s(self, client_id: int) -> float | None:
        """Return the seconds since an id was refused, None if it is not avoided."""
        try:
            boot, until = self._mark(client_id).read_text(encoding="ascii").split()
            left_s = float(until) - self._clock()
        except (OSError, ValueError):
            return None
        is_avoided = boot == self._boot() and 0 < left_s <= self._quarantine_s
        return self._quarantine_s - left_s if is_avoided else None

    def _mark(self, client_id: int) -> Path:
        return self._folder / f"client-{client_id}.refused"
