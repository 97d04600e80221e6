"""Looking through one bar file for anything that is not as it must be, and setting it aside.

Not here: going through a whole store (``store.repair``).
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ktrdr_pipelines.core.bars import rows_per_session, stamps
from ktrdr_pipelines.core.instruments import Identity
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.atomic import disk_errors, make_folder, sync_folder
from ktrdr_pipelines.store.barfile import read_file
from ktrdr_pipelines.store.filing import ALL
from ktrdr_pipelines.store.footer import FileFacts
from ktrdr_pipelines.store.layout import StoreLayout


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that was set aside: where it stood, where it is now, why, what is to be loaded."""

    was: Path
    now: Path
    why: str
    load_again: str

    def __str__(self) -> str:
        return f"{self.was} is now {self.now}: {self.why}. To be loaded again: {self.load_again}"


@dataclass(frozen=True, slots=True)
class Inspected:
    """One file of a series: what it holds, or what is wrong with it."""

    path: Path
    facts: FileFacts | None
    wrong: str = ""


def inspect_file(path: Path, symbol: str, timeframe: Timeframe) -> Inspected:
    """Read a whole file and say what is wrong with it, if anything.

    Raises:
        StoreError: it was written by a newer version, and so is not ours to judge.
        DiskError: the system refused to read.
    """
    try:
        facts, bars = read_file(path)
    except CorruptFileError as error:
        return Inspected(path, None, error.came)
    keys = stamps(bars)
    if wrong := _misplaced(path, facts.identity, symbol, timeframe):
        return Inspected(path, None, wrong)
    if not bool(np.all(keys[1:] > keys[:-1])):
        return Inspected(path, None, "its bars are not in order, or not unique")
    if rows_per_session(bars) != facts.rows_per_session:
        return Inspected(path, None, "its footer counts other bars a session than it has")
    return Inspected(path, facts)


def set_aside(layout: StoreLayout, path: Path, why: str, load_again: str) -> Quarantined:
    """Move a file into quarantine, under its old name; nothing there is ever replaced."""
    target = layout.quarantine / layout.relative(path)
    number = 0
    while target.exists():
        number += 1
        target = layout.quarantine / f"{layout.relative(path)}.{number}"
    with disk_errors(path):
        make_folder(target.parent)
        path.replace(target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    return Quarantined(path, target, why, load_again)


def load_again(path: Path, symbol: str, timeframe: Timeframe) -> str:
    """Say what a file that is gone would have held."""
    dates = "all dates" if path.stem == ALL else f"session dates of {path.stem}"
    return f"{symbol} {timeframe}, {dates}"


def _misplaced(path: Path, held: Identity, symbol: str, timeframe: Timeframe) -> str:
    if (held.symbol, held.timeframe) != (symbol, timeframe):
        return f"it holds {held}, its folder is that of {symbol} {timeframe}"
    stems = r"\d{4}" if timeframe.is_yearly_filed else ALL
    if not re.fullmatch(stems, path.stem):
        return f"no file of {timeframe} bars is named so"
    return ""
