"""The file of the shared record: errors of the system, versions, and damage."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ktrdr_pipelines.errors import DiskError
from ktrdr_pipelines.ib.pacing.shared_file import FILE, SharedFile


def forget(_: sqlite3.Connection) -> None:
    """Handle a loss."""


def test_a_full_disk_says_to_make_room(tmp_path: Path) -> None:
    """The hint offers another folder only as a second choice."""
    file = SharedFile(tmp_path, on_loss=forget)
    with file.transaction() as database:
        database.execute("PRAGMA max_page_count = 1")
    rows = [(str(number), "x" * 1000) for number in range(1000)]
    with (
        pytest.raises(DiskError, match="Make room on that disk") as caught,
        file.transaction() as it,
    ):
        it.executemany("INSERT INTO blocks VALUES (?, ?, 0, 0)", rows)
    assert "full" in caught.value.reason
    assert str(tmp_path / FILE) in str(caught.value)


def test_a_broken_file_that_cannot_be_quarantined_is_an_error(tmp_path: Path) -> None:
    """The error says that the file is broken, and which one."""
    (tmp_path / FILE).write_bytes(b"this is no database" * 100)
    (tmp_path / f"{FILE}.broken").mkdir()
    with (
        pytest.raises(DiskError, match="broken and cannot be replaced") as caught,
        SharedFile(tmp_path, on_loss=forget).transaction(),
    ):
        pass
    assert "KTRDR_STATE" in caught.value.hint


def test_a_file_of_a_newer_version_asks_for_an_update(tmp_path: Path) -> None:
    """The hint names no other folder, which would be another budget."""
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with (
        pytest.raises(DiskError, match="newer version") as caught,
        SharedFile(tmp_path, on_loss=forget).transaction(),
    ):
        pass
    assert "Update" in caught.value.hint
    assert "KTRDR_STATE" not in caught.value.hint


@pytest.mark.parametrize("is_cut_short", [False, True])
def test_a_file_of_an_earlier_version_loses_account_numbers(
    tmp_path: Path, is_cut_short: bool
) -> None:
    """Refusals are kept without them, and free pages hold none."""
    account = "U" + "7654321"
    with SharedFile(tmp_path, on_loss=forget).transaction() as database:
        database.execute("PRAGMA user_version = 3")
    with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as database:
        database.execute("PRAGMA secure_delete = OFF")
        rows = [(str(number), f"Error for {account}. " * 20) for number in range(1000)]
        database.execute("BEGIN")
        database.executemany("INSERT INTO blocks VALUES (?, ?, 354, 0)", rows)
        database.execute("INSERT INTO memory VALUES ('a', 'breaker', ?)", (f"{{{account}}}",))
        database.execute("DELETE FROM blocks WHERE entitlement > '1'")
        if is_cut_short:
            database.execute("UPDATE blocks SET reason = ''")
        database.execute("COMMIT")
    file = SharedFile(tmp_path, on_loss=forget)
    with file.transaction() as database:
        [(reason,)] = database.execute("SELECT DISTINCT reason FROM blocks").fetchall()
        assert database.execute("SELECT value FROM memory").fetchall() == [("{(account)}",)]
    assert reason == ("" if is_cut_short else "Error for (account). " * 20)
    contents = [one.read_bytes() for one in tmp_path.iterdir()]
    assert not any(account.encode() in data for data in contents)
    file.close()
