"""Migration removes account numbers and their hashes from older ledgers and their free pages.

The account is composed here, so that no file of the project contains one.
"""

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from ktrdr_pipelines.errors import NoCatalogError
from ktrdr_pipelines.store.catalog.catalog import connect_catalog
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.ledger.schema import LEDGER_VERSION
from tests.support.archives import unpack

FIXTURES = Path(__file__).parents[2] / "fixtures"
ACCOUNT = "U" + "7654321"
HASH = hashlib.sha256(f"ktrdr-pipelines account:{ACCOUNT}".encode()).hexdigest()[:16]
TEXT = f"321 Error for {ACCOUNT}: account {ACCOUNT.lower()} is not subscribed"
DELETED = 2_000

STEPS = (
    *("BEGIN IMMEDIATE", "ALTER TABLE requests", "UPDATE requests", "PRAGMA user_version ="),
    *("COMMIT", "DELETE FROM erasure_due", "VACUUM", "PRAGMA wal_checkpoint"),
    "DROP TABLE erasure_due",
)
"""How the statements of a migration begin, in their order."""

OPEN_AND_DIE = """
import os, sys
from pathlib import Path
from ktrdr_pipelines.store.ledger import database
from ktrdr_pipelines.store.ledger.ledger import Ledger
connect = database._connect
def open_and_die(path, step):
    def dying(path):
        connection = connect(path)
        connection.set_trace_callback(lambda sql: sql.lstrip().startswith(step) and os._exit(9))
        return connection
    database._connect = dying
    Ledger(path).requests.newest(1)
for path, step in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    child = os.fork()
    if child == 0:
        try:
            open_and_die(Path(path), step)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Opens each ledger in a child process, which exits with 9 at the first statement of its step."""

OPEN_AT_ONCE = """
import os, sys
from pathlib import Path
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.archives import unpack
children = []
for _ in range(3):
    children.append(os.fork())
    if children[-1] == 0:
        try:
            count = len(Ledger(Path(sys.argv[1])).requests.newest(1000))
            os.write(1, f"{count}\\n".encode())
        finally:
            os._exit(0)
for child in children:
    os.waitpid(child, 0)
"""
"""Opens a ledger in three child processes, which write the number of its requests."""


@pytest.fixture(params=[6, 7], ids="version {}".format)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> StoreLayout:
    """Copy a store of an earlier version, and write an account into its ledger and catalog."""
    root = tmp_path / "data"
    if request.param == 6:
        shutil.copytree(FIXTURES / "store_v6", root)
    else:
        unpack(FIXTURES / "store_v7.tar.gz", root)
    layout = StoreLayout(root)
    _fill_ledger(layout.ledger)
    with duckdb.connect(layout.catalog) as catalog:
        catalog.execute("CREATE TABLE requests (account_hash VARCHAR, outcome VARCHAR)")
        catalog.execute("INSERT INTO requests VALUES (?, ?)", [HASH, TEXT])
    assert found(root) == {ACCOUNT, ACCOUNT.lower(), HASH}
    return layout


def _fill_ledger(path: Path) -> None:
    """Write texts and hashes into the ledger, and delete most of them again."""
    with closing(sqlite3.connect(path, isolation_level=None)) as ledger:
        ledger.execute("PRAGMA secure_delete = OFF")
        ledger.execute("BEGIN")
        ledger.execute(
            "UPDATE requests SET account_hash = ?, outcome = ?, proved = ?", (HASH, TEXT, TEXT)
        )
        ledger.execute("UPDATE attempts SET error = ?", (TEXT,))
        columns = ", ".join(row[1] for row in ledger.execute("PRAGMA table_info(requests)"))
        ledger.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {DELETED})"  # noqa: S608
            f" INSERT INTO requests ({columns}) SELECT {columns}"
            " FROM (SELECT * FROM requests LIMIT 1), n"
        )
        ledger.execute("COMMIT")
        assert ledger.execute("SELECT count(*) FROM requests").fetchone()[0] > DELETED
        ledger.execute("DELETE FROM requests WHERE rowid > 20")
        assert ledger.execute("PRAGMA freelist_count").fetchone()[0] > 0


def found(root: Path) -> set[str]:
    """Return which forms of the account the bytes of all files contain."""
    contents = b"".join(one.read_bytes() for one in sorted(root.rglob("*")) if one.is_file())
    return {text for text in (ACCOUNT, ACCOUNT.lower(), HASH) if text.encode() in contents}


def open_and_close(path: Path) -> None:
    """Open a ledger as every command does."""
    with closing(Ledger(path)) as ledger:
        ledger.check()
        assert ledger.requests.newest(1)[0].login == ""


def is_due(path: Path) -> bool:
    """Return whether free pages of a ledger have yet to be erased."""
    with closing(sqlite3.connect(path)) as ledger:
        statement = "SELECT count(*) FROM sqlite_master WHERE name = 'erasure_due'"
        assert ledger.execute("PRAGMA user_version").fetchone()[0] == LEDGER_VERSION
        return bool(ledger.execute(statement).fetchone()[0])


def texts(path: Path) -> Iterator[str]:
    """Yield the texts that a ledger has of requests and attempts."""
    with closing(sqlite3.connect(path)) as ledger:
        for statement in ("SELECT outcome FROM requests", "SELECT error FROM attempts"):
            yield from (row[0] for row in ledger.execute(statement))


def test_nothing_is_left_of_an_account(layout: StoreLayout) -> None:
    """Neither in rows, free pages and the log of the ledger, nor in the catalog."""
    before = sum(1 for _ in texts(layout.ledger))
    open_and_close(layout.ledger)
    assert found(layout.root) == set()
    assert not is_due(layout.ledger)
    assert set(texts(layout.ledger)) == {
        "321 Error for (account): account (account) is not subscribed"
    }
    assert sum(1 for _ in texts(layout.ledger)) == before


def test_a_log_that_was_not_written_back_is_erased_too(layout: StoreLayout) -> None:
    """Even while the process that wrote it keeps the ledger open and reads."""
    with closing(sqlite3.connect(layout.ledger, isolation_level=None)) as other:
        other.execute("UPDATE attempts SET error = ?", (f"{TEXT} again",))
        assert ACCOUNT.encode() in layout.ledger.with_name("ledger.sqlite-wal").read_bytes()
        open_and_close(layout.ledger)
        assert found(layout.root) == set()
        assert other.execute("SELECT count(*) FROM attempts").fetchone()[0] > 0
    assert found(layout.root) == set()


def test_a_killed_migration_is_completed_by_the_next_opening(layout: StoreLayout) -> None:
    """At whichever step it was killed."""
    roots = [layout.root.with_name(f"killed {number}") for number in range(len(STEPS))]
    ledgers = [StoreLayout(shutil.copytree(layout.root, root)).ledger for root in roots]
    arguments = [str(one) for pair in zip(ledgers, STEPS, strict=True) for one in pair]
    command = [sys.executable, "-c", OPEN_AND_DIE, *arguments]
    killed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert killed.stdout.split() == ["9"] * len(STEPS)
    for root, ledger, step in zip(roots, ledgers, STEPS, strict=True):
        open_and_close(ledger)
        assert found(root) == set(), step
        assert not is_due(ledger), step


def test_a_reader_defers_the_erasure_and_blocks_nothing(layout: StoreLayout) -> None:
    """Rows are cleaned at once, pages at the first opening after the reader has closed."""
    with closing(sqlite3.connect(layout.ledger, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        seen = reader.execute("SELECT count(*) FROM requests").fetchone()
        open_and_close(layout.ledger)
        assert is_due(layout.ledger)
        assert ACCOUNT not in "".join(texts(layout.ledger))
        assert reader.execute("SELECT count(*) FROM requests").fetchone() == seen
        reader.execute("COMMIT")
    open_and_close(layout.ledger)
    assert not is_due(layout.ledger)
    assert found(layout.root) == set()


def test_processes_that_open_it_at_once_migrate_it_once(layout: StoreLayout) -> None:
    """Each of them can use it."""
    command = [sys.executable, "-c", OPEN_AT_ONCE, str(layout.ledger)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    counts = done.stdout.split()
    assert len(counts) == 3
    assert len(set(counts)) == 1
    assert int(counts[0]) > 0
    assert found(layout.root) == set()


def test_a_catalog_of_an_earlier_version_is_not_read(layout: StoreLayout) -> None:
    """Its tables differ from those of this version."""
    with pytest.raises(NoCatalogError, match="earlier version"):
        connect_catalog(layout)


def test_a_new_ledger_has_nothing_to_erase(tmp_path: Path) -> None:
    """It never held an account."""
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        ledger.check()
    assert not is_due(path)
