"""Looking through one bar file for anything that is not as it must be, and setting it aside.

Not here: going through a whole store (``store.repair``).
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.atomic import disk_errors, make_folder, sync_folder
from ktrdr_pipelines.store.barfile import Known, has_footer, read_file
from ktrdr_pipelines.store.filing import ALL, misfiled
from ktrdr_pipelines.store.footer import FileFacts
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.recount import true_facts


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
    bars: pa.Table | None = None

    @property
    def is_to_mend(self) -> bool:
        """Say whether its footer is lost, or says more than the file has."""
        return self.bars is not None


def inspect_file(
    path: Path,
    symbol: str,
    timeframe: Timeframe,
    *,
    known: Known | None = None,
    calendar: SessionCalendar | None = None,
) -> Inspected:
    """Read a whole file and say what is wrong with it, if anything.

    Args:
        path, symbol, timeframe: where it stands.
        known: stands in for a lost footer.
        calendar: whose days a recount cuts by.

    Raises:
        StoreError: it was written by a newer version, and so is not ours to judge.
        DiskError: the system refused to read.
    """
    try:
        said, bars = read_file(path, known)
        facts = true_facts(path, said, bars, calendar)
        if wrong := misfiled(path, facts, symbol, timeframe):
            return Inspected(path, None, wrong)
        mend = facts is not said or not has_footer(path)
    except CorruptFileError as error:
        return Inspected(path, None, error.came)
    return Inspected(path, facts, bars=bars if mend else None)


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
