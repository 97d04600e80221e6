"""The universe file of a store, the copy of its last good text, and the windows that were in use.

Not here: what the text means (``domain.universe.universe``), editing it
(``domain.universe.editing``).
"""

import contextlib
import json
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.universe.editing import with_last_good
from ktrdr_pipelines.domain.universe.universe import (
    Universe,
    Windows,
    parse_universe,
    read_universe,
)
from ktrdr_pipelines.errors import SeveralEntriesError, UniverseError
from ktrdr_pipelines.store.files import write_atomically

FILE_DESCRIPTORS = ("/dev/fd", "/dev/stdin", "/proc")


LastSession = Callable[[str], date | None]
"""Return the last session date of which a store holds bars of a symbol, None without any."""


@dataclass(frozen=True, slots=True)
class UniverseFile:
    """A universe file that the user edits, and a copy of its last good text.

    ``last_session`` tells where instruments with ``ended: true`` end; without it they have no end.
    ``windows`` is the file that remembers the earliest windows that Dagster has used; without it,
    those of the universe are in use.
    """

    path: Path
    last_good: Path
    last_session: LastSession | None = field(default=None, compare=False)
    windows: Path | None = None

    def read(self) -> tuple[Universe, UniverseError | None]:
        """Return the universe, and what is wrong with the file.

        If entries are malformed, the others are used as they are; a malformed entry stays as it
        was in the last good text, or has no instrument if it is new. Until all are valid no symbol
        is removed. A file that is malformed as a whole is replaced by the last good text.

        Its windows begin no later than those that Dagster has used.

        Raises:
            UniverseError: the file is invalid, and there is nothing good to use in its place.
            DiskError: the copy cannot be written.
        """
        universe, problem = self._read()
        used = self._used_windows()
        return (universe if used is None else universe.with_windows_since(used)), problem

    def use_windows(self) -> Windows:
        """Return the windows of the universe for use in Dagster, and remember them.

        Windows of events and backfills must not disappear: an edit of the file may begin windows
        earlier, never later.

        Raises: as ``read``; DiskError also if they cannot be remembered.
        """
        windows = self.read()[0].windows
        if self.windows is not None and windows != self._used_windows():
            text = json.dumps({"1m": windows.first_year_1m, "yearly": windows.first_year})
            write_atomically(self.windows, lambda file: file.write(text.encode()))
        return windows

    def _used_windows(self) -> Windows | None:
        """Return the windows that are remembered; None without a file that can be read."""
        if self.windows is None:
            return None
        try:
            found = json.loads(self.windows.read_bytes())
            return Windows(int(found["1m"]), int(found["yearly"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _read(self) -> tuple[Universe, UniverseError | None]:
        try:
            text = _text_of(self.path)
            universe = _universe_of(text, str(self.path))
        except UniverseError as error:
            try:
                last = parse_universe(_text_of(self.last_good), str(self.path))
            except UniverseError:
                raise error from None
            return self._ended(last), error
        problem = _problem_of(universe)
        if problem is not None:
            text, universe = self._repaired(text, universe, problem)
        with contextlib.suppress(OSError, UniverseError):
            if _text_of(self.last_good) == text:
                return self._ended(universe), problem
        write_atomically(self.last_good, lambda file: file.write(text.encode()))
        return self._ended(universe), problem

    def _repaired(
        self, text: str, universe: Universe, problem: UniverseError
    ) -> tuple[str, Universe]:
        """Return the text in use in place of one with malformed entries, and its universe."""
        name, problems = str(self.path), universe.problems
        try:
            good = _text_of(self.last_good)
            parse_universe(good, name)
        except UniverseError:
            raise problem from None
        for earlier in (good, ""):  # an earlier entry may contradict the defaults of today
            with contextlib.suppress(UniverseError):
                used = with_last_good(text, name, earlier, problems)
                return used, replace(parse_universe(used, name), problems=problems)
        raise problem

    def _ended(self, universe: Universe) -> Universe:
        """Return the universe with the end of each instrument that ended with its last session."""
        ended = [one for one in universe.instruments.values() if one.has_ended]
        if not ended or self.last_session is None:
            return universe
        ends = {one.symbol: self._end_of(one, self.last_session) for one in ended}
        instruments = {
            symbol: replace(one, end=ends[symbol]) if symbol in ends else one
            for symbol, one in universe.instruments.items()
        }
        return replace(universe, instruments=MappingProxyType(instruments))

    @staticmethod
    def _end_of(instrument: Instrument, last_session: LastSession) -> date | None:
        """Return the day after the last held session; None if none is held, so all is expected."""
        last = last_session(instrument.symbol)
        return None if last is None else max(instrument.start, last + timedelta(days=1))


def _universe_of(text: str, name: str) -> Universe:
    """Return the same as ``read_universe``, of a valid text without reading it again."""
    try:
        return _parsed(text, name)
    except UniverseError:
        return read_universe(text, name)


def _problem_of(universe: Universe) -> UniverseError | None:
    """Return the errors of all entries as one."""
    errors = universe.all_problems
    return SeveralEntriesError.of(errors) if len(errors) > 1 else next(iter(errors), None)


def load_universe(path: Path) -> Universe:
    """Return the universe in a file.

    Raises:
        UniverseError: it is missing or malformed; the text names file, line and key.
    """
    return _parsed(_text_of(path), str(path))


@lru_cache(maxsize=4)
def _parsed(text: str, name: str) -> Universe:
    # Every series of a load asks for the universe before its first bars are saved, and every sensor
    # in each of its ticks. Errors are not kept: each is raised with a traceback of its own.
    return parse_universe(text, name)


def _text_of(path: Path) -> str:
    _refuse_odd(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UniverseError(
            str(path), reason="there is no such file", hint="Create one with `ktrdr init`"
        ) from None
    except UnicodeDecodeError as error:
        raise UniverseError(
            f"{path}, byte {error.start + 1}", reason="is not UTF-8", hint="Save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UniverseError(
            str(path), reason=f"cannot be read ({error.strerror})", hint="Check its permissions"
        ) from error


def _refuse_odd(path: Path) -> None:
    """Refuse to open anything but a file: a named pipe would block this process forever.

    Exempt are open file descriptors, by which a shell offers the output of a command as a file.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if not path.is_symlink():
            return
        reason = f"cannot be read: it is a link that leads nowhere ({error.strerror})"
    else:
        if stat.S_ISREG(mode) or any(path.is_relative_to(one) for one in FILE_DESCRIPTORS):
            return
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
        reason = f"cannot be read: it is {kind}, not a file"
    raise UniverseError(
        str(path), reason=reason, hint="Run `ktrdr repair`, which quarantines it in a store"
    )
