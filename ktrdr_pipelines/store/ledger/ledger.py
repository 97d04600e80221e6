"""The ledger: what a store knows beside its bars, in one SQLite file shared by many processes.

Losing the file loses no bar: ``ktrdr repair`` rebuilds it from the bar files. Its tables live in
one module a topic; this module joins them into the object that other packages use.

Not here: the SQLite file itself (``store.ledger.database``), its tables' definitions
(``store.ledger.schema``).
"""

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.store.files import disk_errors
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.attempts import Attempt, AttemptKind, AttemptsTable
from ktrdr_pipelines.store.ledger.bar_findings import DisagreementsTable, FindingsTable
from ktrdr_pipelines.store.ledger.claims import Claim, ClaimsTable
from ktrdr_pipelines.store.ledger.database import SymbolsTable, series_key
from ktrdr_pipelines.store.ledger.file_index import FileChecksTable, FileIndexTable
from ktrdr_pipelines.store.ledger.gateway_records import (
    EmptyRange,
    HeadRecord,
    ProbeRecord,
    ProbesTable,
    ReferencesTable,
    Revision,
    SchedulesTable,
    WidthsTable,
)
from ktrdr_pipelines.store.ledger.marks import (
    ConfirmedTable,
    KeptFreshTable,
    RefreshesTable,
    VerifiedTable,
)
from ktrdr_pipelines.store.ledger.request_audit import AuditTable, RequestRecord
from ktrdr_pipelines.store.ledger.statements import StatementsTable

__all__ = [
    "Attempt",
    "AttemptKind",
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


class Ledger(
    FileIndexTable,
    AttemptsTable,
    ClaimsTable,
    AuditTable,
    ReferencesTable,
    ConfirmedTable,
    DisagreementsTable,
    FileChecksTable,
    FindingsTable,
    KeptFreshTable,
    ProbesTable,
    RefreshesTable,
    SchedulesTable,
    StatementsTable,
    SymbolsTable,
    VerifiedTable,
    WidthsTable,
):
    """All tables of the ledger of one store.

    Every call is one transaction, from any thread of any process. SQLite's failures are raised as
    StoreError with a hint.
    """

    def _remove_copies(self) -> None:
        """Remove the catalog, which holds ledger rows of an earlier version.

        Commands that load or query build it again.
        """
        layout = StoreLayout(self.path.parents[1])
        if layout.ledger == self.path:
            with disk_errors(layout.catalog):
                layout.catalog.unlink(missing_ok=True)
                layout.catalog_log.unlink(missing_ok=True)


def open_ledger(layout: StoreLayout) -> Ledger:
    """Return the ledger of a store; it refuses to open where another store took its path."""
    return Ledger(layout.ledger, layout.require_same)


def open_calendars(ledger: Ledger) -> Calendars:
    """Return the calendars with what a ledger currently holds of schedules and late bars."""
    return ledger.calendars()
