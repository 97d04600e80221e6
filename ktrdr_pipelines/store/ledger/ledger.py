"""The ledger: what a store records besides its bars, in one SQLite file shared by many processes.

Losing the file loses no bar: ``ktrdr repair`` rebuilds it from the bar files. There is a module for
each topic of its tables; this one joins them into the object that other packages use.

Not here: the SQLite file itself (``store.ledger.database``), its tables' definitions
(``store.ledger.schema``).
"""

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.attempts import Attempt, AttemptKind, AttemptsTable
from ktrdr_pipelines.store.ledger.bar_findings import DisagreementsTable, FindingsTable
from ktrdr_pipelines.store.ledger.basis_records import (
    AdjustmentsTable,
    BasisCheck,
    BasisChecksTable,
)
from ktrdr_pipelines.store.ledger.claims import Claim, ClaimsTable
from ktrdr_pipelines.store.ledger.database import Database
from ktrdr_pipelines.store.ledger.file_index import ChecksTable, FilesTable
from ktrdr_pipelines.store.ledger.gateway_records import (
    ContractsTable,
    EmptyRange,
    EmptyRangesTable,
    HeadRecord,
    HeadsTable,
    LateBarsTable,
    ProbeRecord,
    ProbesTable,
    Revision,
    RevisionsTable,
    SchedulesTable,
    SymbolCalendarsTable,
    VenuesTable,
    VotesTable,
    WidthsTable,
)
from ktrdr_pipelines.store.ledger.marks import (
    ConfirmedTable,
    KeptFreshTable,
    RefreshesTable,
    VerifiedTable,
)
from ktrdr_pipelines.store.ledger.request_audit import RequestRecord, RequestsTable
from ktrdr_pipelines.store.ledger.statements import StatementsTable

__all__ = [
    "Attempt",
    "AttemptKind",
    "BasisCheck",
    "Claim",
    "EmptyRange",
    "HeadRecord",
    "Ledger",
    "ProbeRecord",
    "RequestRecord",
    "Revision",
    "open_ledger",
    "series_key",
]

_OF_FILES = ("mirror", "claims", "refreshed")
"""Tables whose rows concern files and moments: they are dropped, not moved, and rebuilt."""


class Ledger:
    """The ledger of one store: an attribute for each topic, whose calls are one transaction each.

    It may be used from any thread of any process, and opens the file on first use. SQLite's
    failures are raised as StoreError with a hint.

    Args:
        path: the file; a missing or empty one is created.
        guard: called before the file is opened; raises where another store took its path.
    """

    def __init__(self, path: Path, guard: Callable[[], object] | None = None) -> None:
        self.path = path
        self.database = Database(path, guard, remove_copies=partial(_remove_catalog, path))
        self.adjustments = AdjustmentsTable(self.database)
        self.attempts = AttemptsTable(self.database)
        self.basis_checks = BasisChecksTable(self.database)
        self.checks = ChecksTable(self.database)
        self.claims = ClaimsTable(self.database)
        self.confirmed = ConfirmedTable(self.database)
        self.contracts = ContractsTable(self.database)
        self.disagreements = DisagreementsTable(self.database)
        self.empty_ranges = EmptyRangesTable(self.database)
        self.files = FilesTable(self.database)
        self.findings = FindingsTable(self.database)
        self.heads = HeadsTable(self.database)
        self.kept_fresh = KeptFreshTable(self.database)
        self.late_bars = LateBarsTable(self.database)
        self.probes = ProbesTable(self.database)
        self.refreshes = RefreshesTable(self.database)
        self.requests = RequestsTable(self.database)
        self.revisions = RevisionsTable(self.database)
        self.schedules = SchedulesTable(self.database)
        self.statements = StatementsTable(self.database)
        self.symbol_calendars = SymbolCalendarsTable(self.database)
        self.venues = VenuesTable(self.database)
        self.verified = VerifiedTable(self.database)
        self.votes = VotesTable(self.database)
        self.widths = WidthsTable(self.database)

    def __repr__(self) -> str:
        return f"Ledger({self.path})"

    def close(self) -> None:
        """Close this thread's connection; the next use opens another."""
        self.database.close()

    def version(self) -> Hashable:
        """Return a value that stays the same, in this thread, while no row changes."""
        return self.database.version()

    def as_of_now(self) -> AbstractContextManager[None]:
        """Ask only once, for a block, whether others have changed rows (``Database.as_of_now``)."""
        return self.database.as_of_now()

    def check(self) -> None:
        """Check the whole file for damage, and for tables and values of other programs.

        Raises:
            CorruptFileError: the file has any of these.
        """
        self.database.check()

    def calendars(self) -> Calendars:
        """Return the calendars with what the ledger currently holds of schedules and late bars."""
        return Calendars(
            self.schedules.all(), shared=self.votes.agreed(), late_bars=self.late_bars.all()
        )

    def move_symbol(self, old: str, new: str) -> None:
        """Move every row of a symbol to another name, in one transaction."""
        keys = [(f"{new}|{timeframe}", f"{old}|{timeframe}") for timeframe in Timeframe]
        with self.database.writing() as connection:
            found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for table in [name for (name,) in found if not name.startswith("sqlite_")]:
                columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
                if table in _OF_FILES:
                    connection.executemany(
                        f"DELETE FROM {table} WHERE series = ?",  # noqa: S608
                        [(key,) for _, key in keys],
                    )
                elif "series" in columns:
                    connection.executemany(
                        f"UPDATE OR REPLACE {table} SET series = ? WHERE series = ?",  # noqa: S608
                        keys,
                    )
                if "symbol" in columns:
                    connection.execute(
                        f"UPDATE OR REPLACE {table} SET symbol = ? WHERE symbol = ?",  # noqa: S608
                        (new, old),
                    )


def open_ledger(layout: StoreLayout) -> Ledger:
    """Return the ledger of a store; it refuses to open where another store took its path."""
    return Ledger(layout.ledger, layout.require_same)


def series_key(series: Series) -> str:
    """Return the key of a series in the ledger, such as ``AAPL|1m``."""
    return series.symbol + "|" + series.timeframe  # a quarter of the time of formatting an enum


def _remove_catalog(path: Path) -> None:
    """Remove the catalog, which holds ledger rows of an earlier version.

    Commands that load or query build it again.
    """
    layout = StoreLayout(path.parents[1])
    if layout.ledger == path:
        layout.remove_catalog()
