"""The ledger's schema: tables, their version, and the migration of earlier versions.

Moments are stored as microseconds since 1970 UTC, intervals as ``[start, end)``.

Not here: when a ledger is created, migrated or erased (``store.ledger.database``).
"""

import sqlite3
from contextlib import closing

from ktrdr_pipelines.domain.account_numbers import without_accounts

LEDGER_VERSION = 11
"""Version of these tables. 1 is the first; 2 adds ``confirmed``, 3 ``probes`` and ``silences``, 4
``verified`` and the encoded sessions of ``mirror``, 5 ``schedules`` and ``schedule_asks``, 6
``refreshed`` and ``widths``, 7 ``statements``, ``disagreements``, ``findings``, ``kept_fresh``,
``late_bars``, ``schedule_votes``, ``symbol_calendars`` and the clock's offset in ``requests``, 8
``file_checks``, the digests in ``mirror``, and names of logins in ``requests``, which held a hash
of their accounts before, 9 the kinds of ``disagreements``, and ``flat`` in ``mirror``, 10
``adjustments``, ``basis_checks``, and ``basis`` in ``mirror``, 11 ``venues``; each version reads
what earlier ones wrote."""

ADDED_COLUMNS = (
    # version, table, column, its type
    (7, "requests", "clock_offset_s", "REAL NOT NULL DEFAULT 0"),
    (8, "mirror", "seal", "TEXT NOT NULL DEFAULT ''"),
    (9, "mirror", "flat", "TEXT NOT NULL DEFAULT ''"),
    (10, "mirror", "basis", "TEXT NOT NULL DEFAULT ''"),
    (9, "disagreements", "kind", "TEXT NOT NULL DEFAULT 'price'"),
)
"""Columns that tables of earlier versions lack. Each was the last of its table when it was added:
SQLite adds columns at the end, and a new file and a migrated one must have the same shape."""

RENAMED_COLUMNS = (
    # version, table, old column name, new column name
    (8, "requests", "account_hash", "login"),
)

ACCOUNTS_UNTIL = 7
"""The last version that kept hashes of accounts, and gateway texts unredacted."""

REMOVE_ACCOUNTS = (
    "UPDATE requests SET login = ''",
    "UPDATE requests SET outcome = without_accounts(outcome), proved = without_accounts(proved)",
    "UPDATE attempts SET error = without_accounts(error)",
    "UPDATE findings SET detail = without_accounts(detail)",
)
"""Statements that remove accounts from rows, with the function ``without_accounts`` of
``domain.account_numbers``."""

ERASURE = "erasure_due"
"""A table that exists while free pages may still hold accounts that were removed from rows. It has
a row while a catalog built from those rows may still exist, too."""

TABLES = """
CREATE TABLE IF NOT EXISTS mirror (
    file TEXT PRIMARY KEY,
    series TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    identity TEXT NOT NULL,
    coverage TEXT NOT NULL,
    sessions TEXT NOT NULL,
    seal TEXT NOT NULL DEFAULT '',
    flat TEXT NOT NULL DEFAULT '',
    basis TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS mirror_series ON mirror (series);

CREATE TABLE IF NOT EXISTS file_checks (
    file TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    damage TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS attempts (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    kind TEXT NOT NULL,
    error TEXT NOT NULL,
    code INTEGER,
    tries INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    next_try_at INTEGER,
    PRIMARY KEY (series, starts, ends, kind)
);

CREATE TABLE IF NOT EXISTS claims (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    owner TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (series, starts, ends, owner)
);

CREATE TABLE IF NOT EXISTS requests (
    series TEXT NOT NULL,
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    login TEXT NOT NULL,
    asked_end INTEGER,
    duration TEXT NOT NULL,
    sent_at INTEGER NOT NULL,
    took_s REAL NOT NULL,
    outcome TEXT NOT NULL,
    code INTEGER,
    rows INTEGER NOT NULL,
    proved TEXT NOT NULL,
    clock_offset_s REAL NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS requests_sent ON requests (sent_at);
CREATE INDEX IF NOT EXISTS requests_series ON requests (series, sent_at);
CREATE INDEX IF NOT EXISTS requests_answered
    ON requests (contract_id, what_to_show, gateway, sent_at) WHERE rows > 0;

CREATE TABLE IF NOT EXISTS ranges (
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    head INTEGER,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (contract_id, what_to_show, gateway)
);

CREATE TABLE IF NOT EXISTS probes (
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    oldest TEXT NOT NULL,
    requests INTEGER NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (contract_id, what_to_show, gateway)
);

CREATE TABLE IF NOT EXISTS silences (
    contract_id INTEGER NOT NULL,
    what_to_show TEXT NOT NULL,
    gateway TEXT NOT NULL,
    first_date TEXT NOT NULL,
    end_date TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (contract_id, what_to_show, gateway, first_date, end_date)
);

CREATE TABLE IF NOT EXISTS instruments (
    symbol TEXT NOT NULL,
    origin TEXT NOT NULL,
    contract_id INTEGER NOT NULL,
    description TEXT NOT NULL,
    pinned_at INTEGER NOT NULL,
    PRIMARY KEY (symbol, origin)
);

CREATE TABLE IF NOT EXISTS venues (
    symbol TEXT PRIMARY KEY,
    sec_type TEXT NOT NULL,
    exchange TEXT NOT NULL,
    currency TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS revisions (
    series TEXT NOT NULL,
    ts INTEGER NOT NULL,
    replaced_at INTEGER NOT NULL,
    open REAL,
    high REAL,
    low REAL,
    close REAL,
    volume REAL,
    average REAL,
    bar_count INTEGER
);
CREATE INDEX IF NOT EXISTS revisions_series ON revisions (series, ts);

CREATE TABLE IF NOT EXISTS verified (
    series TEXT PRIMARY KEY,
    verified_at INTEGER NOT NULL,
    digest TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS confirmed (
    series TEXT NOT NULL,
    session_date TEXT NOT NULL,
    rows INTEGER NOT NULL,
    confirmed_at INTEGER NOT NULL,
    PRIMARY KEY (series, session_date)
);

CREATE TABLE IF NOT EXISTS refreshed (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    answered_at INTEGER NOT NULL,
    PRIMARY KEY (series, starts, ends)
);

CREATE TABLE IF NOT EXISTS kept_fresh (
    series TEXT PRIMARY KEY,
    since INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS widths (
    gateway TEXT NOT NULL,
    timeframe TEXT NOT NULL,
    most INTEGER NOT NULL,
    runs INTEGER NOT NULL,
    learned_at INTEGER NOT NULL,
    PRIMARY KEY (gateway, timeframe)
);

CREATE TABLE IF NOT EXISTS schedules (
    calendar TEXT NOT NULL,
    symbol TEXT NOT NULL,
    session_date TEXT NOT NULL,
    opens INTEGER,
    closes INTEGER,
    parts TEXT NOT NULL,
    source TEXT NOT NULL,
    learned_at INTEGER NOT NULL,
    PRIMARY KEY (calendar, symbol, session_date)
);

CREATE TABLE IF NOT EXISTS schedule_asks (
    calendar TEXT NOT NULL,
    symbol TEXT NOT NULL,
    first_date TEXT NOT NULL,
    end_date TEXT NOT NULL,
    asked_at INTEGER NOT NULL,
    PRIMARY KEY (calendar, symbol, first_date, end_date)
);

CREATE TABLE IF NOT EXISTS statements (
    symbol TEXT NOT NULL,
    gateway TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    kind TEXT NOT NULL,
    timeframe TEXT NOT NULL,
    said_at INTEGER NOT NULL,
    request TEXT NOT NULL,
    controlled INTEGER NOT NULL,
    reaches_past INTEGER NOT NULL,
    recorded_at INTEGER NOT NULL,
    voided_at INTEGER,
    PRIMARY KEY (symbol, starts, ends, kind, request)
);
CREATE INDEX IF NOT EXISTS statements_said ON statements (gateway, kind, said_at);

CREATE TABLE IF NOT EXISTS disagreements (
    series TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    bars INTEGER NOT NULL,
    ratio REAL NOT NULL,
    found_at INTEGER NOT NULL,
    kind TEXT NOT NULL DEFAULT 'price',
    PRIMARY KEY (series, starts, ends, found_at)
);

CREATE TABLE IF NOT EXISTS findings (
    series TEXT NOT NULL,
    ts INTEGER NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    found_at INTEGER NOT NULL,
    PRIMARY KEY (series, ts, kind)
);

CREATE TABLE IF NOT EXISTS late_bars (
    symbol TEXT NOT NULL,
    session_date TEXT NOT NULL,
    starts INTEGER NOT NULL,
    ends INTEGER NOT NULL,
    PRIMARY KEY (symbol, session_date)
);

CREATE TABLE IF NOT EXISTS schedule_votes (
    calendar TEXT NOT NULL,
    symbol TEXT NOT NULL,
    session_date TEXT NOT NULL,
    parts TEXT NOT NULL,
    told_at INTEGER NOT NULL,
    PRIMARY KEY (calendar, symbol, session_date)
);

CREATE TABLE IF NOT EXISTS symbol_calendars (
    symbol TEXT PRIMARY KEY,
    calendar TEXT NOT NULL
);

CREATE TABLE IF NOT EXISTS adjustments (
    symbol TEXT NOT NULL,
    number INTEGER NOT NULL,
    ratio REAL NOT NULL,
    volume_ratio REAL NOT NULL,
    kind TEXT NOT NULL,
    effective TEXT NOT NULL,
    is_estimated INTEGER NOT NULL,
    found_at INTEGER NOT NULL,
    old_until INTEGER NOT NULL,
    evidence TEXT NOT NULL,
    note TEXT NOT NULL,
    removed_at INTEGER,
    PRIMARY KEY (symbol, number)
);

CREATE TABLE IF NOT EXISTS basis_checks (
    symbol TEXT PRIMARY KEY,
    basis INTEGER NOT NULL,
    established_on TEXT,
    confirmed_at INTEGER,
    next_session TEXT,
    requested_on TEXT,
    requests INTEGER NOT NULL,
    stated_ratio REAL,
    stated_bars INTEGER NOT NULL,
    stated_by TEXT NOT NULL,
    stated_at INTEGER
)
"""

_KINDS_OF = {"INTEGER": (int,), "REAL": (int, float), "TEXT": (str, bytes)}
_GREATEST = 4 * 10**18
"""Above every moment and count in the ledger; file times in nanoseconds are below it, too."""


def version(connection: sqlite3.Connection) -> int:
    """Return the version of a ledger's tables; 0 for a new file."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def migrate(connection: sqlite3.Connection, found: int) -> None:
    """Create the tables, or migrate those of version ``found``, in one transaction."""
    connection.execute("PRAGMA journal_mode = WAL")
    changes = [*_renamed_columns(connection, found), *_added_columns(connection, found)]
    script = "; ".join((*changes, TABLES, *_removals(connection, found)))
    connection.executescript(
        f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {LEDGER_VERSION}; COMMIT"
    )


def mismatch(connection: sqlite3.Connection) -> str:
    """Return which value or table does not fit this version's tables, or an empty string."""
    if odd := _odd_value(connection):
        return odd
    held = _shape(connection)
    with closing(sqlite3.connect(":memory:")) as fresh:
        fresh.executescript(TABLES)
        expected = _shape(fresh)
    for table, columns in expected.items():
        if held.get(table) != columns:
            return f"table {table} has the columns {held.get(table)}"
    return ""


def _added_columns(connection: sqlite3.Connection, found: int) -> list[str]:
    """Return the statements that add the columns which an earlier version lacks.

    A missing table is created with them; a table that has them already, whatever the version
    says, keeps them.
    """
    held = _shape(connection)
    return [
        f"ALTER TABLE {table} ADD COLUMN {column} {kind}"
        for version, table, column, kind in ADDED_COLUMNS
        if found < version and table in held and column not in held[table]
    ]


def _renamed_columns(connection: sqlite3.Connection, found: int) -> list[str]:
    held = _shape(connection)
    return [
        f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}"
        for version, table, old, new in RENAMED_COLUMNS
        if found < version and old in held.get(table, ())
    ]


def _removals(connection: sqlite3.Connection, found: int) -> list[str]:
    """Return the statements that remove accounts from the rows of an earlier version.

    They belong to the transaction that sets the version. From here on the connection overwrites
    deleted content.
    """
    if found > ACCOUNTS_UNTIL or not _shape(connection):
        return []
    connection.execute("PRAGMA secure_delete = ON").fetchall()
    connection.create_function("without_accounts", 1, without_accounts, deterministic=True)
    flag = f"CREATE TABLE IF NOT EXISTS {ERASURE} (due); INSERT INTO {ERASURE} VALUES (1)"  # noqa: S608
    return [*REMOVE_ACCOUNTS, flag]


def is_erasure_due(connection: sqlite3.Connection) -> bool:
    """Return whether free pages may still hold what was removed from rows."""
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (ERASURE,)).fetchone()
    return found is not None


def _shape(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Return the column names of each table."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    return {
        name: [row[1] for row in connection.execute(f"PRAGMA table_info('{name}')")]
        for (name,) in rows
    }


def _odd_value(connection: sqlite3.Connection) -> str:
    """Read every row; return the first value that its column cannot hold, or an empty string."""
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    for (table,) in tables:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        kinds = [_KINDS_OF.get(kind, (object,)) for _, _, kind, *_ in columns]
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608  (our own names)
            for value, kind, column in zip(row, kinds, columns, strict=True):
                if value is not None and not isinstance(value, kind):
                    return f"table {table} has {value!r} as {column[1]}"
                if isinstance(value, int) and abs(value) > _GREATEST and column[1] != "inode":
                    return f"table {table} has {value} as {column[1]}"
    return ""
