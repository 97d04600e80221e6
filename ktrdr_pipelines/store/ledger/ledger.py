"""The ledger as one object, and the calendars that it lets expect.

The book of calendars of one store: what the libraries know, its gateway told and bars show.

The ledger: what is known beside the bars, in one SQLite file that many processes share.

Losing it loses no bar: ``store.maintenance.repair`` rebuilds what the files say. Its tables live in
one module a group; here they are joined into the one object that others use.
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
    """All that is known beside the bars of one store.

    Every call is one transaction; any thread of any process may call. SQLite's failures come as
    StoreError, with what to do.
    """

    def _remove_copies(self) -> None:
        """Remove the catalog, which shows rows of the ledger as an earlier version had them.

        Commands that load or query make it anew.
        """
        layout = StoreLayout(self.path.parents[1])
        if layout.ledger == self.path:
            with disk_errors(layout.catalog):
                layout.catalog.unlink(missing_ok=True)
                layout.catalog_log.unlink(missing_ok=True)


def open_ledger(layout: StoreLayout) -> Ledger:
    """Return the ledger of a store; it refuses to be that of another store at the same path."""
    return Ledger(layout.ledger, layout.require_same)


def open_calendars(ledger: Ledger) -> Calendars:
    """Make the book of calendars as a store's ledger stands now."""
    return ledger.calendars()
