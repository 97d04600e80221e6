"""The journal of a symbol that is being moved: renamed, or retired.

It is written when everything is prepared and removed when everything is done, so whoever finds it
knows that a move was cut short and what is left of it.

Whose bars may come to be: a symbol's first file needs a universe that names the symbol.
"""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from ktrdr_pipelines.errors import CorruptFileError, StoreError, UniverseError
from ktrdr_pipelines.store.files import disk_errors, require_file, sync_folder, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.universe_file import load_universe


class MoveKind(StrEnum):
    """What happens to a symbol."""

    RENAME = "rename"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True)
class Move:
    """One symbol and what it becomes: the new symbol, or its name among the retired ones."""

    kind: MoveKind
    symbol: str
    target: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.symbol} to {self.target}"


def journal_of(layout: StoreLayout) -> Path:
    """Give the journal's place."""
    return layout.state / "move.json"


def pending_move(layout: StoreLayout) -> Move | None:
    """Give the move that was begun and not finished, or None.

    Raises:
        CorruptFileError: there is a journal, and it makes no sense.
        OddPathError: something else than a file stands in its place.
    """
    path = journal_of(layout)
    if not require_file(path):
        return None
    with disk_errors(path):
        text = path.read_bytes()
    try:
        fields = json.loads(text)
        return Move(MoveKind(fields["kind"]), str(fields["symbol"]), str(fields["target"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            f"cannot read {path}",
            reason=f"{text[:80]!r}",
            hint="It says which symbol was being moved; see with `ktrdr universe check` which "
            "folder under bars it was, then remove the file",
        ) from error


def write_journal(layout: StoreLayout, move: Move) -> None:
    """Say that a move has begun, for good."""
    text = f"{json.dumps(asdict(move))}\n"
    write_atomically(
        journal_of(layout),
        lambda file: file.write(text.encode()),
        before_renaming=layout.require_same,
    )


def remove_journal(layout: StoreLayout) -> None:
    """Say that a move is done."""
    layout.require_same()
    path = journal_of(layout)
    with disk_errors(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def refuse_moving(layout: StoreLayout, symbol: str) -> None:
    """Refuse to write bars of a symbol while it is being moved; the series' lock must be held.

    Raises:
        StoreError: it is.
    """
    move = pending_move(layout)
    if move is not None and symbol in {move.symbol, move.target}:
        raise StoreError(
            f"cannot save bars of {symbol}",
            reason=f"a {move} was begun and is not finished",
            hint="Run `ktrdr repair`, which finishes it, and load again",
        )


def refuse_unnamed(layout: StoreLayout, symbol: str) -> None:
    """Refuse the first bars of a symbol that has left the universe; a series' lock must be held.

    A load knows its symbols from when it began: without this one that went on while its symbol
    was renamed or retired would put bars under the name that was given up. Moves hold the locks
    of all series until the universe is written, and take the old folder away, so that only a save
    that finds no folder has to look. A universe that is missing or malformed says nothing.

    Raises:
        StoreError: there is no bar of the symbol, and the universe does not name it.
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
            hint="If it was renamed, load it under its new name; else add it there again",
        )
