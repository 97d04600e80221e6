"""Checking one bar file for anything that is not as written, and quarantining files.

Not here: which files to check, and repairing a whole store (``store.maintenance.file_checks``,
``store.maintenance.repair``).
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
    LOST_BASIS,
    Known,
    has_footer,
    has_lost_basis,
    has_true_digest,
    read_file,
    wrong_statistics,
)
from ktrdr_pipelines.store.bars.filing import ALL, misfiled, replaced
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.bars.integrity import true_footer
from ktrdr_pipelines.store.files import disk_errors, is_folder, kind_of, make_folder, sync_folder
from ktrdr_pipelines.store.layout import StoreLayout


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that was quarantined: its old and new path, the reason, and what to load again."""

    was: Path
    now: Path
    why: str
    load_again: str

    def __str__(self) -> str:
        return f"{self.was} is now {self.now}: {self.why}. To be loaded again: {self.load_again}"


@dataclass(frozen=True, slots=True)
class Inspected:
    """One file of a series: its true footer, or what is wrong with it; ``bars`` to rewrite it."""

    path: Path
    footer: Footer | None
    wrong: str = ""
    bars: pa.Table | None = None

    @property
    def needs_fix(self) -> bool:
        """Whether to rewrite the file: its footer is lost or untrue, or its bytes differ."""
        return self.bars is not None


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that was read as a whole: its footer and bars, or what is wrong with it.

    ``altered`` describes how its bytes differ from those that were written although its bars and
    its footer do not: rewriting fixes such a file.
    """

    footer: Footer | None = None
    bars: pa.Table | None = None
    is_footer_true: bool = False
    wrong: str = ""
    altered: str = ""

    @property
    def damage(self) -> str:
        """What is not as it was written, in words, or an empty string."""
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
    """Read a whole file and compare it with its digests, its statistics and its place.

    Args:
        path, symbol, timeframe: where it lies.
        known: replaces a lost footer.
        calendar: the calendar whose session days bound lost sessions in a recount.
        origin: that of the store, where it has one.

    Raises:
        StoreError: a newer version wrote it, so it cannot be checked.
        DiskError: the system refused to read it.
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
    if has_lost_basis(path, said.schema_version):
        return Checked(footer, bars, is_footer_true, altered=LOST_BASIS)
    if said.seal is None:
        return Checked(footer, bars, is_footer_true, wrong=statistics)
    altered = "its bytes are not those that were written, though its bars are"
    return Checked(footer, bars, is_footer_true, altered=statistics or altered)


def inspected(path: Path, found: Checked) -> Inspected:
    """Return what to do with a checked file; it keeps the bars only of a file to rewrite."""
    if found.wrong:
        return Inspected(path, None, found.wrong)
    is_whole = found.is_footer_true and not found.altered
    return Inspected(path, found.footer, bars=None if is_whole else found.bars)


def quarantine(layout: StoreLayout, path: Path, why: str, load_again: str) -> Quarantined:
    """Move whatever lies at a path into quarantine, under its old name.

    Nothing in quarantine is ever replaced. A link is moved, not its target.

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
    """Yield possible paths in quarantine for a file, best first."""
    name = layout.relative(path)
    for number in count():
        base = layout.quarantine
        between = [folder for folder in (base / name).parents if base in folder.parents]
        if any(kind_of(one) and not is_folder(one) for one in between):
            base /= str(number)  # a file was quarantined under the name of a folder
        yield base / (f"{name}.{number}" if number and base == layout.quarantine else name)


def _move_to_other_disk(path: Path, target: Path) -> None:
    """Copy what lies at a path, and remove it there once the copy survives a power cut."""
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
    """Return the bars of a lost file in words, such as ``AAPL 1m, session dates of 2024``."""
    dates = "all dates" if path.stem == ALL else f"session dates of {path.stem}"
    return f"{symbol} {timeframe}, {dates}"
