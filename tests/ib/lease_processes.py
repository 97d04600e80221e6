"""What processes of a test do with client ids, in a module that they import quickly."""

import signal
from pathlib import Path
from typing import Any

from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases


def lease_in_another_process(folder: Path) -> int:
    """Lease an id of 1 to 2, release it, and return it."""
    lease = ClientIdLeases(folder).lease((1, 2))
    try:
        return lease.client_id
    finally:
        lease.release()


def lease_and_wait(folder: Path, pipe: Any) -> None:
    """Lease id 7, send it, and wait to be killed."""
    lease = ClientIdLeases(folder).lease((7, 7))
    pipe.send(lease.client_id)
    signal.pause()
