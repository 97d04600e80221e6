"""Records of operations: one small JSON file each, which outlives the process that runs it.

A record names the owner whose process runs the operation (``store.claim_owners``), so that another
process can tell one that runs from one that was interrupted. A damaged file is left out.

Not here: what an operation is, and the documents of it (``app.operations``).
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ktrdr_pipelines.store.claim_owners import is_owner_alive
from ktrdr_pipelines.store.files import disk_errors, is_regular, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

_ID: Final = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """One record: the operation as JSON values, its owner, and when it was written."""

    operation_id: str
    owner: str
    written_at: datetime
    operation: Mapping[str, Any]


class OperationRecords:
    """The records of a store.

    Args:
        layout: the store.
    """

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._read: dict[Path, tuple[tuple[int, int], OperationRecord | None]] = {}

    def write(self, record: OperationRecord) -> None:
        """Write a record in one atomic step, over an earlier one of the same operation.

        Raises:
            DiskError: the system refused; the earlier record is unchanged.
            StoreReplacedError: the store is not the one that was opened.
        """
        document = {
            "owner": record.owner,
            "written_at": record.written_at.isoformat(),
            "operation": dict(record.operation),
        }
        text = json.dumps(document, ensure_ascii=False).encode()
        path = self._path(record.operation_id)
        write_atomically(
            path, lambda file: file.write(text), before_renaming=self._layout.require_same
        )

    def get(self, operation_id: str) -> OperationRecord | None:
        """Return a record; None without one, or where it is damaged.

        Raises:
            DiskError: the system refused to read it.
        """
        # Ids come from outside, and become part of a path.
        if not _ID.fullmatch(operation_id):
            return None
        return self._known(self._path(operation_id))

    def all(self) -> list[OperationRecord]:
        """Return all records that can be read, in no order.

        Raises:
            DiskError: the system refused to read one.
        """
        with disk_errors(self._layout.operations):
            paths = [
                path for path in self._layout.operations.glob("*.json") if _ID.fullmatch(path.stem)
            ]
        self._read = {path: self._read[path] for path in paths if path in self._read}
        found = (self._known(path) for path in paths)
        return [record for record in found if record is not None]

    def remove(self, operation_id: str) -> None:
        """Remove a record, if there is one.

        Raises:
            DiskError: the system refused.
        """
        path = self._path(operation_id)
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def is_running(self, record: OperationRecord) -> bool:
        """Return whether the process of the owner of a record still runs."""
        return bool(_ID.fullmatch(record.owner)) and is_owner_alive(self._layout, record.owner)

    def _path(self, operation_id: str) -> Path:
        return self._layout.operations / f"{operation_id}.json"

    def _known(self, path: Path) -> OperationRecord | None:
        """Return the record of a file, which is read again only if it has changed."""
        if not is_regular(path):
            return None
        with disk_errors(path):
            try:
                status = path.stat()
                version = status.st_mtime_ns, status.st_ino
                known = self._read.get(path)
                if known is None or known[0] != version:
                    known = version, _parsed(path)
                    self._read[path] = known
            except FileNotFoundError:  # removed meanwhile
                return None
        return known[1]


def _parsed(path: Path) -> OperationRecord | None:
    try:
        document = json.loads(path.read_bytes())
        written_at = datetime.fromisoformat(document["written_at"])
        owner, operation = document["owner"], document["operation"]
        is_valid = isinstance(owner, str) and isinstance(operation, dict) and written_at.tzinfo
    except (ValueError, KeyError, TypeError, RecursionError):
        is_valid = False
    if not is_valid:
        _log.warning("%s is no record of an operation; it is left out", path)
        return None
    return OperationRecord(path.stem, owner, written_at, operation)
