"""Looking through one bar file for anything that is not as it must be, and quarantining it.

Not here: going through a whole store (``store.maintenance.repair``).
"""

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pyarrow as pa

from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, OddPathError
from ktrdr_pipelines.store.bars.bar_file import (
    Known,
    has_footer,
    has_true_digest,
    read_file,
    wrong_statistics,
)
from ktrdr_pipelines.store.bars.bar_store import ALL, misfiled, replaced
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.bars.integrity import true_footer
from ktrdr_pipelines.store.files import disk_errors, is_folder, kind_of, make_folder, sync_folder
from ktrdr_pipelines.store.layout import StoreLayout


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that was quarantined: where it stood, where it is now, why, what is to be loaded."""

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
    footer: Footer | None
    wrong: str = ""
    bars: pa.Table | None = None

    @property
    def needs_fix(self) -> bool:
        """Say whether it is to be written anew: its footer is lost or untrue, or bytes differ."""
        return self.bars is not None


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that was read whole: its facts and bars, or what is wrong with it.

    ``altered`` says how its bytes differ from those that were written although its bars and its
    footer do not: writing it anew is all that it needs.
    """

    footer: Footer | None = None
    bars: pa.Table | None = None
    is_footer_true: bool = False
    wrong: str = ""
    altered: str = ""

    @property
    def damage(self) -> str:
        """What is not as it was written, in words, or nothing."""
        return self.wrong or self.altered


def check_file(
    path: Path,
    symbol: str,
    timeframe: Timeframe,
    *,
    known: Known | None = None,
    calendar: SessionCalendar | None = None,
    origin: Origin | None = None,
) -> Checked:
    """Read a whole file and compare it with all that is known of it.

    Args:
        path, symbol, timeframe: where it stands.
        known: stands in for a lost footer.
        calendar: whose days a recount cuts by.
        origin: that of the store, where it has one.

    Raises:
        StoreError: it was written by a newer version, and so is not ours to judge.
        DiskError: the system refused to read.
    """
    try:
        said, bars = read_file(path, known)
        footer = true_footer(path, said, bars, calendar)
        wrong = misfiled(path, footer, symbol, timeframe, origin=origin)
        if wrong or (wrong := replaced(footer, known)):
            return Checked(wrong=wrong)
        is_footer_true = footer is said and has_footer(path)
        if said.seal is not None and has_true_digest(path):
            return Checked(footer, bars, is_footer_true)
        statistics = wrong_statistics(path) if has_footer(path) else ""
    except CorruptFileError as error:
        return Checked(wrong=error.reason)
    if said.seal is None:
        return Checked(footer, bars, is_footer_true, wrong=statistics)
    altered = "its bytes are not those that were written, though its bars are"
    return Checked(footer, bars, is_footer_true, altered=statistics or altered)


def inspected(path: Path, found: Checked) -> Inspected:
    """Say what is to be done with a file that was checked; bars are kept of those to be written."""
    if found.wrong:
        return Inspected(path, None, found.wrong)
    is_whole = found.is_footer_true and not found.altered
    return Inspected(path, found.footer, bars=None if is_whole else found.bars)


def quarantine(layout: StoreLayout, path: Path, why: str, load_again: str) -> Quarantined:
    """Move what stands at a path into quarantine, under its old name.

    Nothing there is ever replaced. A link is moved, not its target.

    Raises:
        StoreReplacedError: the store is not the one that was opened.
        DiskError: the system refused.
    """
    target = next(
        candidate for candidate in _candidates(layout, path) if kind_of(candidate) is None
    )
    layout.require_same()
    with disk_errors(path):
        make_folder(target.parent)
        try:
            path.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_to_other_disk(path, target)
        sync_folder(target.parent)
        sync_folder(path.parent)
    return Quarantined(path, target, why, load_again)


def _candidates(layout: StoreLayout, path: Path) -> Iterator[Path]:
    """Give where in quarantine something could go, best first."""
    name = layout.relative(path)
    for number in count():
        base = layout.quarantine
        if any(kind_of(one) and not is_folder(one) for one in _between(base, base / name)):
            base /= str(number)  # a file was quarantined under the name of a folder
        yield base / (f"{name}.{number}" if number and base == layout.quarantine else name)


def _between(base: Path, path: Path) -> Iterator[Path]:
    """Give the folders that lie between a folder and a path below it."""
    return (folder for folder in path.parents if base in folder.parents)


def _move_to_other_disk(path: Path, target: Path) -> None:
    """Copy what stands at a path and remove it there, once the copy outlives a power cut."""
    if path.is_symlink():
        target.symlink_to(path.readlink())
        path.unlink()
    elif path.is_file():
        shutil.copy2(path, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        sync_folder(target.parent)
        path.unlink()
    else:
        raise OddPathError(
            f"cannot quarantine {path}",
            reason=f"it is {kind_of(path)} on another disk than {target.parent}",
            hint="Move it away by hand and run `ktrdr repair` again",
        )


def load_again(path: Path, symbol: str, timeframe: Timeframe) -> str:
    """Say what a file that is gone would have held."""
    dates = "all dates" if path.stem == ALL else f"session dates of {path.stem}"
    return f"{symbol} {timeframe}, {dates}"
