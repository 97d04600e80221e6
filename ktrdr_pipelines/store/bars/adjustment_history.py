"""The record of what changed the price basis of each symbol.

One JSON file a symbol, below ``data/history``: it cannot be rebuilt from the bars, and is replaced
in one atomic step. The ledger's table ``adjustments`` is an index of these files for queries.

Not here: what an adjustment does to bars (``domain.adjustments``), how one is found
(``sync.engine.basis_check``), recording one with all that follows (``store.rebasing``).
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN
from ktrdr_pipelines.errors import CorruptFileError, DiskError, StoreError
from ktrdr_pipelines.store.files import (
    disk_errors,
    is_folder,
    require_file,
    require_folders,
    sync_folder,
    write_atomically,
)
from ktrdr_pipelines.store.layout import StoreLayout

_VERSION: Final = 1

HINT: Final = (
    "Run `ktrdr repair`, which restores it from the ledger if it can; otherwise restore the file "
    "from a backup. Without it the prices of the symbol cannot be put on one basis"
)
"""What to do about a file of adjustments that is damaged or lost."""

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
        folder = layout.adjustments_folder
        self._names = str(folder), str(folder.parent)
        self._folders_then: list[object] | None = None

    def of(self, symbol: str) -> Adjustments:
        """Return the adjustments of a symbol, () for none.

        Raises:
            CorruptFileError: its file cannot be read.
            OddPathError: something else lies there.
            StoreError: a newer version wrote it.
            DiskError: the system refused.
        """
        if self._is_still_absent(symbol):
            return ()
        path = self._layout.adjustments_file(symbol)
        if not require_file(path):
            require_folders(path.parent, self._layout.root)
            self._folders_then = self._folders_now()
            return ()
        try:
            with disk_errors(path):
                status = path.stat()
                taken = status.st_mtime_ns, status.st_size, status.st_ino
                known = self._known.get(symbol)
                if known is None or known[0] != taken:
                    self._known[symbol] = known = taken, _read(path, symbol)
        except DiskError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # the symbol was moved meanwhile
                return ()
            raise
        return known[1]

    def _is_still_absent(self, symbol: str) -> bool:
        """Return whether a symbol has no file, in folders that were checked as they are now."""
        if self._folders_then is None or os.path.lexists(f"{self._names[0]}/{symbol}.json"):
            return False
        return self._folders_then == self._folders_now()

    def _folders_now(self) -> list[object]:
        """Return what tells one state of the folders of all files from another."""
        return [
            None if one is None else (one.st_mode, one.st_ino, one.st_mtime_ns)
            for one in map(_status_of, self._names)
        ]

    def all(self) -> tuple[dict[str, Adjustments], dict[str, str]]:
        """Return the adjustments of every symbol that has any, and why others cannot be read."""
        known: dict[str, Adjustments] = {}
        unreadable: dict[str, str] = {}
        for symbol in self.symbols():
            try:
                if ones := self.of(symbol):
                    known[symbol] = ones
            except StoreError as error:
                unreadable[symbol] = str(error)
        return known, unreadable

    def write(self, symbol: str, adjustments: Sequence[Adjustment]) -> None:
        """Replace the adjustments of a symbol; the caller holds the lock of its basis.

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

    def copy(self, symbol: str, path: Path) -> None:
        """Copy the file of a symbol to a path, whatever it holds, if there is one.

        Raises:
            DiskError: the system refused.
        """
        source = self._layout.adjustments_file(symbol)
        if require_file(source):
            with disk_errors(source):
                content = source.read_bytes()
            write_atomically(
                path,
                lambda file: file.write(content),
                before_renaming=self._layout.require_same,
            )

    def take(self, path: Path, symbol: str, target: str) -> None:
        """Take over the copy of the file of a symbol, if there is one, for another symbol.

        A copy that cannot be read is taken over as it is: no bar is served without it.

        Raises:
            DiskError: the system refused.
        """
        if not require_file(path):
            return
        try:
            adjustments = _read(path, symbol)
        except CorruptFileError:
            with disk_errors(path):
                content = path.read_bytes()
            write_atomically(
                self._layout.adjustments_file(target),
                lambda file: file.write(content),
                before_renaming=self._layout.require_same,
            )
        else:
            self.write(target, adjustments)

    def remove(self, symbol: str) -> None:
        """Remove the file of a symbol, if there is one; the caller holds the lock of its basis.

        Raises:
            DiskError: the system refused.
        """
        path = self._layout.adjustments_file(symbol)
        if require_file(path):
            self._layout.require_same()
            with disk_errors(path):
                path.unlink(missing_ok=True)
                sync_folder(path.parent)

    def symbols(self) -> list[str]:
        """Return the symbols that have a file of adjustments, readable or not."""
        folder = self._layout.adjustments_folder
        with disk_errors(folder):
            paths = [*folder.iterdir()] if is_folder(folder) else []
        return sorted(
            path.stem
            for path in paths
            if path.suffix == ".json" and re.fullmatch(KEY_PATTERN, path.stem)
        )


def _read(path: Path, symbol: str) -> Adjustments:
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
        return _adjustments(symbol, fields)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CorruptFileError(
            f"cannot read the adjustments in {path}",
            reason=str(error) or type(error).__name__,
            hint=HINT,
        ) from error


def _adjustments(symbol: str, fields: Mapping[str, Any]) -> Adjustments:
    if fields["symbol"] != symbol:
        raise ValueError(f"they are those of {fields['symbol']}")
    return tuple(
        _adjustment(number, one) for number, one in enumerate(fields["adjustments"], start=1)
    )


def _fields(one: Adjustment) -> dict[str, object]:
    return {
        name: value.isoformat() if isinstance(value, date | datetime) else value
        for name, value in asdict(one).items()
    }


def _adjustment(number: int, fields: Mapping[str, Any]) -> Adjustment:
    if int(fields["number"]) != number:
        raise ValueError(f"its adjustment {number} has the number {fields['number']}")
    removed = fields["removed_at"]
    ratios = float(fields["ratio"]), float(fields["volume_ratio"])
    if not all(0 < one < math.inf for one in ratios):
        raise ValueError(f"its adjustment {number} has the ratios {ratios}")
    return Adjustment(
        number=number,
        ratio=ratios[0],
        volume_ratio=ratios[1],
        kind=AdjustmentKind(fields["kind"]),
        effective=date.fromisoformat(fields["effective"]),
        is_estimated=bool(fields["is_estimated"]),
        found_at=_moment(fields["found_at"]),
        old_until=_moment(fields["old_until"]),
        evidence=str(fields["evidence"]),
        note=str(fields["note"]),
        removed_at=None if removed is None else _moment(removed),
    )


def _moment(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return found


def _status_of(name: str) -> os.stat_result | None:
    try:
        return os.lstat(name)
    except OSError:
        return None
