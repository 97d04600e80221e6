"""The record of what changed the price basis of each symbol.

One JSON file a symbol, below ``data/history``: it cannot be rebuilt from the bars, and is replaced
in one atomic step. The ledger's table ``adjustments`` is an index of these files for queries.

Not here: what an adjustment does to bars (``domain.price_basis``), how one is found
(``sync.engine.basis_check``), recording one with all that follows (``store.rebasing``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

from ktrdr_pipelines.domain.price_basis import Adjustment, AdjustmentKind
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.files import disk_errors, require_file, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

_VERSION: Final = 1

Adjustments = tuple[Adjustment, ...]
"""The adjustments of one symbol, in the order of their numbers, which count from 1."""


class AdjustmentHistory:
    """The files of all symbols' adjustments.

    Args:
        layout: the store.
    """

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout
        self._known: dict[str, tuple[tuple[int, int, int], Adjustments]] = {}

    def of(self, symbol: str) -> Adjustments:
        """Return the adjustments of a symbol, () for none.

        Raises:
            CorruptFileError: its file cannot be read.
            StoreError: a newer version wrote it.
            DiskError: the system refused.
        """
        path = self._layout.adjustments_file(symbol)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return ()
        taken = status.st_mtime_ns, status.st_size, status.st_ino
        known = self._known.get(symbol)
        if known is None or known[0] != taken:
            self._known[symbol] = known = taken, _read(path)
        return known[1]

    def all(self) -> dict[str, Adjustments]:
        """Return the adjustments of every symbol that has any; raises as ``of``."""
        folder = self._layout.adjustments_file("").parent
        found = {path.stem: self.of(path.stem) for path in sorted(folder.glob("*.json"))}
        return {symbol: known for symbol, known in found.items() if known}

    def newest_ns(self) -> int:
        """Return when a file of adjustments was last written, in ns since 1970; 0 for never."""
        folder = self._layout.adjustments_file("").parent
        return max((path.stat().st_mtime_ns for path in folder.glob("*.json")), default=0)

    def write(self, symbol: str, adjustments: Sequence[Adjustment]) -> None:
        """Replace the adjustments of a symbol; the caller holds its lock.

        Raises:
            DiskError: the system refused; the earlier file is unchanged.
        """
        fields = {"format_version": _VERSION, "symbol": symbol}
        text = json.dumps({**fields, "adjustments": [*map(_fields, adjustments)]}, indent=2)
        write_atomically(
            self._layout.adjustments_file(symbol),
            lambda file: file.write(f"{text}\n".encode()),
            before_renaming=self._layout.require_same,
        )


def _read(path: Path) -> Adjustments:
    require_file(path)
    with disk_errors(path):
        text = path.read_bytes()
    try:
        fields = json.loads(text)
        version = int(fields["format_version"])
        if version > _VERSION:
            raise StoreError(
                f"cannot read {path}",
                reason=f"a newer ktrdr wrote it (version {version})",
                hint="Use a newer ktrdr",
            )
        return tuple(
            _adjustment(number, one) for number, one in enumerate(fields["adjustments"], start=1)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"cannot read the adjustments in {path}",
            reason=str(error),
            hint="Restore the file from a backup: without it the prices of the symbol cannot be "
            "put on one basis",
        ) from error


def _fields(one: Adjustment) -> dict[str, object]:
    return {
        name: value.isoformat() if isinstance(value, date | datetime) else value
        for name, value in asdict(one).items()
    }


def _adjustment(number: int, fields: Mapping[str, Any]) -> Adjustment:
    if int(fields["number"]) != number:
        raise ValueError(f"its adjustment {number} has the number {fields['number']}")
    removed = fields["removed_at"]
    return Adjustment(
        number=number,
        ratio=float(fields["ratio"]),
        volume_ratio=float(fields["volume_ratio"]),
        kind=AdjustmentKind(fields["kind"]),
        effective=date.fromisoformat(fields["effective"]),
        is_estimated=bool(fields["is_estimated"]),
        found_at=datetime.fromisoformat(fields["found_at"]),
        old_until=datetime.fromisoformat(fields["old_until"]),
        evidence=str(fields["evidence"]),
        note=str(fields["note"]),
        removed_at=None if removed is None else datetime.fromisoformat(removed),
    )
