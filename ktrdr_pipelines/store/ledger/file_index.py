"""The file index: what each bar file holds, and when each was last checked.

A row counts only while the file's fingerprint is the recorded one; the files are the truth. A file
that was rewritten or quarantined therefore has no known damage.

The bars of each session are stored as compressed differences from session to session: a sensor
reads the counts of millions of sessions, which are nearly all alike. Ledgers of version 1 hold them
as JSON, which is read as well.
"""

import json
import sqlite3
import stat
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Identity
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.bars.footer import (
    FileBasis,
    Footer,
    basis_from_json,
    basis_to_json,
    coverage_from_json,
    coverage_to_json,
    identity_from_json,
    identity_to_json,
    seal_from_json,
    seal_to_json,
)
from ktrdr_pipelines.store.files import disk_errors, not_a_bar_file
from ktrdr_pipelines.store.ledger.database import Table
from ktrdr_pipelines.store.ledger.rows import Rows

_STEP = np.dtype("<i4")


def encode_sessions(rows_per_session: Mapping[date, int]) -> bytes:
    """Return the number of bars of each session date in the ledger's encoding."""
    days = np.array(sorted(rows_per_session), dtype="datetime64[D]")
    rows = [rows_per_session[day] for day in days.astype(object)]
    steps = [np.diff(column, prepend=0) for column in (days.astype(np.int64), np.array(rows, int))]
    return zlib.compress(np.concatenate(steps).astype(_STEP).tobytes(), level=1)


def decode_sessions(encoded: str | bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return session dates (``datetime64[D]``) and the number of bars of each (int64)."""
    if isinstance(encoded, str):
        counts = json.loads(encoded)
        return np.array(list(counts), "datetime64[D]"), np.array(list(counts.values()), np.int64)
    steps = np.frombuffer(zlib.decompress(encoded), dtype=_STEP)
    half = len(steps) // 2
    days = steps[:half].cumsum(dtype=np.int64)
    return days.view("datetime64[D]"), steps[half:].cumsum(dtype=np.int64)


class Fingerprint(NamedTuple):
    """What distinguishes one version of a file from another without reading it."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """One file's row; JSON fields are parsed on access.

    ``flat`` holds the encoded number of flat bars of each session that has any; empty where they
    were not counted.

    The properties raise StoreError where the row cannot be decoded.
    """

    fingerprint: Fingerprint
    schema_version: int
    rows: int
    identity_json: str
    coverage_json: str
    sessions: str | bytes
    seal_json: str = ""
    flat: str | bytes = ""
    basis_json: str = ""

    @property
    def identity(self) -> Identity:
        """Instrument, timeframe and origin of the file's bars."""
        with _row_errors():
            return identity_from_json(self.identity_json)

    @property
    def coverage(self) -> Coverage:
        """The coverage in the file's footer."""
        with _row_errors():
            return coverage_from_json(self.coverage_json)

    @property
    def basis(self) -> FileBasis:
        """The price basis of the file's bars, by its footer."""
        with _row_errors():
            return basis_from_json(self.basis_json)

    @property
    def session_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Session dates (``datetime64[D]``) and the number of bars of each (int64)."""
        with _row_errors():
            return decode_sessions(self.sessions)

    @property
    def traded_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Session dates as in ``session_arrays``, and the number of bars of each that are not flat.

        All bars count as traded where flat ones were not counted.
        """
        days, rows = self.session_arrays
        if not self.flat:
            return days, rows
        with _row_errors():
            flat_days, flat = decode_sessions(self.flat)
        traded = rows.copy()
        position = np.searchsorted(days, flat_days)
        is_known = position < len(days)
        is_known[is_known] = days[position[is_known]] == flat_days[is_known]
        traded[position[is_known]] -= flat[is_known]
        return days, np.maximum(traded, 0)

    @property
    def rows_per_session(self) -> dict[date, int]:
        """The number of bars of each session date in the file."""
        days, rows = self.session_arrays
        return dict(zip(days.astype(object).tolist(), rows.tolist(), strict=True))

    @property
    def footer(self) -> Footer:
        """The file's footer, or the result of a recount, when the row was recorded."""
        rows_per_session = self.rows_per_session
        with _row_errors():
            seal = seal_from_json(self.seal_json, rows_per_session) if self.seal_json else None
        return Footer(
            self.identity,
            self.coverage,
            self.rows,
            rows_per_session,
            self.schema_version,
            seal,
            self.basis,
        )


@contextmanager
def _row_errors() -> Iterator[None]:
    """Raise StoreError for an invalid row, as distinct from a damaged bar file."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, zlib.error) as error:
        raise StoreError(
            "cannot read the ledger's row of a bar file",
            reason=str(error),
            hint="Run `ktrdr repair`: the ledger is rebuilt from the bar files, no bar is lost",
        ) from error


def fingerprint(path: Path) -> Fingerprint:
    """Return the fingerprint of a file.

    Raises:
        DiskError: the file is gone or cannot be accessed.
        CorruptFileError: the path is not a regular file.
    """
    with disk_errors(path):
        status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise not_a_bar_file(path)
    return Fingerprint(status.st_size, status.st_mtime_ns, status.st_ino)


def indexed_file(
    taken: Fingerprint, footer: Footer, flat: Mapping[date, int] | None = None
) -> IndexedFile:
    """Return the row of a file with this fingerprint and footer, and its flat bars by session."""
    return IndexedFile(
        fingerprint=taken,
        schema_version=footer.schema_version,
        rows=footer.rows,
        identity_json=identity_to_json(footer.identity),
        coverage_json=coverage_to_json(footer.coverage),
        sessions=encode_sessions(footer.rows_per_session),
        seal_json=seal_to_json(footer.seal, footer.rows_per_session) if footer.seal else "",
        flat="" if flat is None else encode_sessions(flat),
        basis_json=basis_to_json(footer.basis) if footer.schema_version > 1 else "",
    )


def known_by(row: IndexedFile | None) -> Callable[[], Footer] | None:
    """Return a function that returns the recorded footer, for a file that has lost its own."""
    return None if row is None else lambda: row.footer


class FileVersion(NamedTuple):
    """The identity of a recorded file, and what tells whether it is still the same file.

    ``is_sealed`` is whether ktrdr wrote it with digests, and with the column ``basis``.
    """

    fingerprint: Fingerprint
    identity_json: str
    is_sealed: bool


_VERSIONS = (
    "SELECT file, size, mtime_ns, inode, identity, seal <> '' AND schema_version > 1 FROM mirror"
)
_MOST_KEYS = 500
"""Values in one statement; SQLite before 3.32 takes 999."""

_FILES = Rows(
    "mirror",
    IndexedFile,
    keys=("file", "series"),
    names={
        "identity_json": "identity",
        "coverage_json": "coverage",
        "seal_json": "seal",
        "basis_json": "basis",
    },
)


class FilesTable(Table):
    """Rows by file name relative to the data folder, so that the folder can be moved."""

    def of(self, series_key: str) -> dict[str, IndexedFile]:
        """Return the rows of a series' files, by file name."""

        def read(connection: sqlite3.Connection) -> dict[str, IndexedFile]:
            rows = _FILES.select_keyed(connection, "WHERE series = ?", (series_key,))
            return {file: row for (file, _), row in rows}

        return dict(self._database.remembered(("files", series_key), read))

    def recorded_versions(self, series_keys: Sequence[str]) -> dict[str, FileVersion]:
        """Return the recorded versions of the files of some series, by file name."""
        found: dict[str, FileVersion] = {}
        with self._database.reading() as connection:
            for at in range(0, len(series_keys), _MOST_KEYS):
                keys = series_keys[at : at + _MOST_KEYS]
                marks = ", ".join("?" * len(keys))
                rows = connection.execute(f"{_VERSIONS} WHERE series IN ({marks})", keys)
                for file, size, mtime_ns, inode, identity, is_sealed in rows:
                    taken = Fingerprint(size, mtime_ns, inode)
                    found[file] = FileVersion(taken, identity, bool(is_sealed))
        return found

    def all(self) -> dict[str, dict[str, IndexedFile]]:
        """Return the rows of all files, by series key and file name."""
        found: dict[str, dict[str, IndexedFile]] = defaultdict(dict)
        with self._database.reading() as connection:
            for (file, series), row in _FILES.select_keyed(connection):
                found[series][file] = row
        return dict(found)

    def record(self, series_key: str, files: Mapping[str, IndexedFile]) -> None:
        """Record what files hold now, replacing earlier rows."""
        with self._database.writing() as connection:
            for name, row in files.items():
                _FILES.insert(connection, [row], name, series_key)

    def record_flat(self, file: str, taken: Fingerprint, flat: Mapping[date, int]) -> None:
        """Record a file's flat bars by session, if the row is of the version that was counted."""
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE mirror SET flat = ? "
                "WHERE file = ? AND size = ? AND mtime_ns = ? AND inode = ?",
                (encode_sessions(flat), file, taken.size, taken.mtime_ns, taken.inode),
            )

    def remove(self, files: Iterable[str]) -> None:
        """Delete the rows of files that are gone."""
        with self._database.writing() as connection:
            connection.executemany("DELETE FROM mirror WHERE file = ?", [(f,) for f in files])

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Return the total bytes and bars of all files, by timeframe."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT substr(series, instr(series, '|') + 1) AS timeframe, sum(size), sum(rows) "
                "FROM mirror GROUP BY timeframe"
            ).fetchall()
        return {timeframe: (size, bars) for timeframe, size, bars in rows}

    def rows_of(self, series_keys: Sequence[str] | None = None) -> dict[str, int]:
        """Return the recorded number of bars of each series that has files; None for all series."""
        where, values = "", tuple(series_keys or ())
        if series_keys is not None:
            where = f"WHERE series IN ({', '.join('?' * len(values))})"
        statement = f"SELECT series, sum(rows) FROM mirror {where} GROUP BY series"  # noqa: S608
        with self._database.reading() as connection:
            return dict(connection.execute(statement, values).fetchall())

    def highest_basis(self, symbol: str) -> int:
        """Return the highest number of an adjustment that recorded bars of a symbol include."""
        keys = [f"{symbol}|{timeframe}" for timeframe in Timeframe]
        marks = ", ".join("?" * len(keys))
        with self._database.reading() as connection:
            texts = connection.execute(
                f"SELECT basis FROM mirror WHERE series IN ({marks}) AND basis <> ''",  # noqa: S608
                keys,
            ).fetchall()
        with _row_errors():
            bases = [basis_from_json(text) for (text,) in texts]
        return max((number for one in bases for _, number in one.intervals), default=0)

    def recorded_stats(self) -> dict[str, tuple[int, int, int, int]]:
        """Return size, mtime in ns, inode and schema version of all recorded files, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT file, size, mtime_ns, inode, schema_version FROM mirror"
            )
            return {file: tuple(values) for file, *values in rows}

    def recorded_coverage(self) -> dict[str, dict[str, tuple[str, str]]]:
        """Return coverage and identity of all recorded files as JSON, by series key and name."""
        found: dict[str, dict[str, tuple[str, str]]] = defaultdict(dict)
        with self._database.reading() as connection:
            rows = connection.execute("SELECT series, file, coverage, identity FROM mirror")
            for series, file, coverage, identity in rows:
                found[series][file] = (coverage, identity)
        return dict(found)

    def names(self) -> list[str]:
        """Return the names of all recorded files."""
        with self._database.reading() as connection:
            return [name for (name,) in connection.execute("SELECT file FROM mirror")]


class FileCheck(NamedTuple):
    """The result of reading a whole file; ``damage`` describes it, empty for a valid file."""

    fingerprint: Fingerprint
    checked_at: datetime
    damage: str


_CHECKS = Rows("file_checks", FileCheck, keys=("file",))


class ChecksTable(Table):
    """The last check of each file, by its name relative to the data folder."""

    def record(self, checks: Mapping[str, FileCheck]) -> None:
        """Record the last check of files."""
        with self._database.writing() as connection:
            for name, check in checks.items():
                _CHECKS.insert(connection, [check], name)

    def all(self, *, damaged: bool = False) -> dict[str, FileCheck]:
        """Return the last check of each file, or only of those found damaged."""
        where = "WHERE damage <> ''" if damaged else ""
        with self._database.reading() as connection:
            return {name: check for (name,), check in _CHECKS.select_keyed(connection, where)}

    def remove(self, files: Iterable[str]) -> None:
        """Delete the checks of files that are gone."""
        with self._database.writing() as connection:
            connection.executemany(
                "DELETE FROM file_checks WHERE file = ?", [(one,) for one in files]
            )
