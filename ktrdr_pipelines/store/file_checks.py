"""The ledger's file checks: when each bar file was last read whole, and what damage was found.

A row counts only while the fingerprint of the file is the one that was recorded: a file that is
written anew, or set aside, has no damage. Not here: the reading (``store.integrity``).
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.store.database import Database
from ktrdr_pipelines.store.mirror import Fingerprint


class FileCheck(NamedTuple):
    """One reading of a whole file; ``damage`` says what is wrong with it, or is empty."""

    fingerprint: Fingerprint
    checked_at: datetime
    damage: str


class FileChecksTable(Database):
    """The last check of each file, by its name relative to the data folder."""

    def record_checks(self, checks: Mapping[str, FileCheck]) -> None:
        """Keep the last check of files."""
        with self._writing() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO file_checks VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        name,
                        one.fingerprint.size,
                        one.fingerprint.mtime_ns,
                        one.fingerprint.inode,
                        micros(one.checked_at),
                        one.damage,
                    )
                    for name, one in checks.items()
                ],
            )

    def file_checks(self, *, damaged: bool = False) -> dict[str, FileCheck]:
        """Return the last check of each file, or of those alone that were found damaged."""
        where = " WHERE damage <> ''" if damaged else ""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT file, size, mtime_ns, inode, checked_at, damage FROM file_checks{where}"  # noqa: S608
            ).fetchall()
        return {
            name: FileCheck(Fingerprint(size, mtime_ns, inode), moment(at), damage)
            for name, size, mtime_ns, inode, at, damage in rows
        }

    def forget_checks(self, files: Iterable[str]) -> None:
        """Drop the checks of files that are gone."""
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM file_checks WHERE file = ?", [(one,) for one in files]
            )
