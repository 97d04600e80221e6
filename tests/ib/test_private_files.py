"""Only their user may read the files of the state folder, whatever the umask."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ktrdr_pipelines.ib.private_files import (
    make_private_database,
    make_private_folder,
    private_opener,
    tighten_state,
    write_privately,
)

USE = """
import os, sys
from pathlib import Path
os.umask(int(sys.argv[2], 8))
import logging
from ktrdr_pipelines.cli.entry_point import LogFile
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases
from ktrdr_pipelines.ib.connection.accounts import Logins
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
os.environ["KTRDR_STATE"] = sys.argv[1]
config = GatewayConfig(state_dir=Path(sys.argv[1]))
pacer = RateLimiter.of(config)
pacer.note_trouble(failure="a test")
pacer.vitals()
leases = ClientIdLeases(config.folder)
lease = leases.lease((201, 210))
leases.quarantine(lease.client_id)
Logins(config.state_dir).name_of(["a"])
LogFile().handle(logging.LogRecord("a", logging.WARNING, "", 1, "a line", (), None))
for path in sorted(config.state_dir.rglob("*")):
    print(oct(path.stat().st_mode & 0o7777), path.is_dir(), path.name)
"""


def mode(path: Path) -> int:
    """Return the permissions of a path."""
    return stat.S_IMODE(path.stat().st_mode)


def use_state(folder: Path, umask: str) -> dict[str, str]:
    """Create all files of a state folder in another process; return their modes by name."""
    done = subprocess.run(
        [sys.executable, "-c", USE, str(folder), umask],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = (line.split(" ", 2) for line in done.stdout.splitlines())
    return {name: f"{mode} {is_folder}" for mode, is_folder, name in lines}


@pytest.mark.parametrize("umask", ["000", "777"])
def test_a_new_state_folder_is_private(tmp_path: Path, umask: str) -> None:
    """All folders and files, including the side files of SQLite."""
    folder = tmp_path / "deep" / "state"
    found = use_state(folder, umask)
    assert found.keys() >= {
        *("ktrdr.log", "logins.key", "logins.json", "logins.lock", "pacer.sqlite"),
        *("pacer.sqlite-wal", "pacer.sqlite-shm", "client-201.lock", "client-201.refused"),
    }
    assert set(found.values()) == {"0o600 False", "0o700 True"}, found
    assert mode(folder) == mode(folder.parent) == 0o700


def test_files_of_an_earlier_version_become_private(tmp_path: Path) -> None:
    """The files in the folders of other gateways, too."""
    folder = tmp_path / "state"
    use_state(folder, "022")
    other = folder / "localhost_4001"
    other.mkdir()
    for path in (other / "pacer.sqlite", other / "client-1.lock", folder / "ktrdr.log.1"):
        path.write_text("")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    found = use_state(folder, "022")
    assert set(found.values()) == {"0o600 False", "0o700 True"}, found
    assert mode(folder) == 0o700


def test_other_files_keep_their_modes(tmp_path: Path) -> None:
    """The folder may hold files of other programs."""
    folder = tmp_path / "state"
    (folder / "bin").mkdir(parents=True)
    for path in (folder / "script.sh", folder / "bin" / "tool"):
        path.write_text("")
        path.chmod(0o755)
    tighten_state(folder)
    assert mode(folder / "script.sh") == mode(folder / "bin" / "tool") == 0o755
    assert mode(folder) == 0o700


def test_a_shared_folder_keeps_its_mode(tmp_path: Path) -> None:
    """A folder such as /tmp keeps its mode."""
    tmp_path.chmod(0o1777)
    make_private_folder(tmp_path)
    tighten_state(tmp_path)
    assert mode(tmp_path) == 0o1777
    tmp_path.chmod(0o700)


def test_a_missing_folder_is_not_made_by_tightening(tmp_path: Path) -> None:
    """Tightening creates nothing."""
    tighten_state(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_locks_of_an_open_database_survive(tmp_path: Path) -> None:
    """A second opening in the process must not free SQLite's locks."""
    path = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as first:
        first.execute("CREATE TABLE t (a)")
        path.chmod(0o644)
        first.execute("BEGIN IMMEDIATE")
        make_private_database(path)
        code = (
            f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert b"locked" in done.stderr
    assert mode(path) == 0o600


def test_the_side_files_of_a_database_become_private(tmp_path: Path) -> None:
    """SQLite creates them with the mode of the database, and keeps that of existing ones."""
    paths = [tmp_path / f"a.sqlite{suffix}" for suffix in ("", "-wal", "-shm")]
    for path in paths:
        path.write_bytes(b"")
        path.chmod(0o644)
    make_private_database(paths[0])
    assert {mode(path) for path in paths} == {0o600}


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """No temporary file is left, even after a failure."""
    path = tmp_path / "a"
    write_privately(path, b"one")
    write_privately(path, b"two")
    assert path.read_bytes() == b"two"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_privately(tmp_path / "folder", b"three")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "folder"]
    assert mode(path) == 0o600


def test_an_opened_file_becomes_private(tmp_path: Path) -> None:
    """An existing file keeps its content."""
    path = tmp_path / "a"
    path.write_text("one")
    path.chmod(0o666)
    with open(path, "a", opener=private_opener, encoding="ascii") as file:
        file.write("two")
    assert path.read_text() == "onetwo"
    assert mode(path) == 0o600
