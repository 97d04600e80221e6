"""The journal of a symbol that is being renamed, retired or restored, and the saves it forbids.

The journal is written when everything is prepared and removed when everything is done, so a journal
on disk means an interrupted move, and names it.

Not here: the moves themselves (``store.maintenance.rename``).
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError, UniverseError
from ktrdr_pipelines.store.files import (
    disk_errors,
    locked,
    require_file,
    sync_folder,
    write_atomically,
)
from ktrdr_pipelines.store.layout import StoreLayout, pin_origin
from ktrdr_pipelines.store.universe_file import load_universe


class MoveKind(StrEnum):
    """What happens to a symbol."""

    RENAME = "rename"
    RETIRE = "retire"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Move:
    """One symbol and its target: the new symbol, or its name among the retired ones.

    A restored symbol has that name, and ``target`` is the symbol that it becomes again. ``entry``
    is the entry of a retired or restored symbol, as one line of YAML; empty if the universe is not
    to be edited. ``contract_id`` and ``ib_symbol`` are as in ``editing.rename_symbol``.
    """

    kind: MoveKind
    symbol: str
    target: str
    entry: str = ""
    contract_id: int | None = None
    ib_symbol: str = ""

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbols of a universe that it moves."""
        if self.kind is MoveKind.RENAME:
            return (self.symbol, self.target)
        return (self.target if self.kind is MoveKind.RESTORE else self.symbol,)

    def __str__(self) -> str:
        return f"{self.kind} of {self.symbol} to {self.target}"


def journal_of(layout: StoreLayout) -> Path:
    """Return the path of the journal."""
    return layout.state / "move.json"


def pending_move(layout: StoreLayout) -> Move | None:
    """Return the unfinished move, or None.

    Raises:
        CorruptFileError: the journal is invalid.
        OddPathError: its path is not a file.
    """
    path = journal_of(layout)
    if not require_file(path):
        return None
    with disk_errors(path):
        text = path.read_bytes()
    try:
        fields = json.loads(text)
        contract_id = fields.get("contract_id")
        return Move(
            MoveKind(fields["kind"]),
            str(fields["symbol"]),
            str(fields["target"]),
            str(fields.get("entry", "")),
            None if contract_id is None else int(contract_id),
            str(fields.get("ib_symbol", "")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"cannot read {path}",
            reason=f"it is not a valid journal: {text[:80]!r}",
            hint="It names the symbol that was being moved. Find out with `ktrdr universe check` "
            "which folder under bars that was, then remove the file",
        ) from error


def write_journal(layout: StoreLayout, move: Move) -> None:
    """Record durably that a move has begun."""
    text = f"{json.dumps(asdict(move))}\n"
    write_atomically(
        journal_of(layout),
        lambda file: file.write(text.encode()),
        before_renaming=layout.require_same,
    )


def remove_journal(layout: StoreLayout) -> None:
    """Record durably that a move is done."""
    layout.require_same()
    path = journal_of(layout)
    with disk_errors(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


@contextmanager
def saving(
    layout: StoreLayout, symbol: str, timeframe: Timeframe, origin: Origin | None = None
) -> Iterator[None]:
    """Hold the lock of a series while its files are rewritten.

    Args:
        layout: the store.
        symbol, timeframe: the series.
        origin: that of new bars; None where only the coverage of held ones changes.

    Raises:
        ForeignIdentityError: the store holds bars of another origin.
        StoreReplacedError: the store is not the one that was opened.
        StoreError: another process kept the series locked, its symbol is being moved, or new bars
            are the first of a symbol that the universe does not name.
    """
    layout.require_same()
    if origin is not None:
        pin_origin(layout, origin)
    with locked(layout.series_lock(symbol, timeframe), f"{symbol} {timeframe}"):
        refuse_moving(layout, symbol)
        if origin is not None:
            _refuse_unnamed(layout, symbol)
        yield


@contextmanager
def saving_bars(
    layout: StoreLayout, symbol: str, timeframe: Timeframe, origin: Origin
) -> Iterator[None]:
    """Hold the locks of a symbol's price basis and of a series while bars are saved.

    Args and raises: as ``saving``.
    """
    with (
        locked(layout.basis_lock(symbol), f"the price basis of {symbol}"),
        saving(layout, symbol, timeframe, origin),
    ):
        yield


def refuse_moving(layout: StoreLayout, symbol: str) -> None:
    """Refuse to change a symbol that is being moved.

    The caller holds the lock of the series, or of the price basis of the symbol.

    Raises:
        StoreError: the symbol is being moved.
    """
    move = pending_move(layout)
    if move is not None and symbol in {move.symbol, move.target}:
        raise StoreError(
            f"cannot save bars or adjustments of {symbol}",
            reason=f"the {move} is unfinished",
            hint="Run `ktrdr repair`, which completes it, and run this again",
        )


def _refuse_unnamed(layout: StoreLayout, symbol: str) -> None:
    """Refuse the first bars of a symbol that has left the universe; the caller holds the lock.

    A load reads its symbols once, at its start. Without this check a load that continues while its
    symbol is renamed or retired would save bars under the abandoned name. Moves hold the locks of
    all series until the universe is written, and remove the old folder, so only a save that finds
    no folder has to check. A missing or malformed universe refuses nothing.

    Raises:
        StoreError: the symbol has no bars, and the universe does not name it.
    """
    if layout.symbol_folder(symbol).exists() or not layout.universe.exists():
        return
    try:
        named = load_universe(layout.universe).instruments
    except UniverseError:
        return
    if symbol not in named:
        raise StoreError(
            f"cannot save the first bars of {symbol}",
            reason=f"{layout.universe} does not name it (any more)",
            hint="If it was renamed, load it under its new name; otherwise add it there again",
        )
