"""The ledger: what is known beside the bars, in one SQLite file that many processes share.

Losing it loses no bar: ``store.repair`` rebuilds what the files say. Its tables live in one module
a group; here they are joined into the one object that others use.
"""

from ktrdr_pipelines.store.atomic import disk_errors
from ktrdr_pipelines.store.attempts import Attempt, AttemptKind, AttemptsTable
from ktrdr_pipelines.store.audit import AuditTable, RequestRecord
from ktrdr_pipelines.store.claims import Claim, ClaimsTable
from ktrdr_pipelines.store.confirmed import ConfirmedTable
from ktrdr_pipelines.store.database import series_key
from ktrdr_pipelines.store.disagreements import DisagreementsTable
from ktrdr_pipelines.store.file_checks import FileChecksTable
from ktrdr_pipelines.store.findings import FindingsTable
from ktrdr_pipelines.store.kept_fresh import KeptFreshTable
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.mirror import MirrorTable
from ktrdr_pipelines.store.probes import ProbeRecord, ProbesTable, SilenceRecord
from ktrdr_pipelines.store.references import HeadRecord, ReferencesTable, Revision
from ktrdr_pipelines.store.refreshes import RefreshesTable
from ktrdr_pipelines.store.schedules import SchedulesTable
from ktrdr_pipelines.store.statements import StatementsTable
from ktrdr_pipelines.store.symbols import SymbolsTable
from ktrdr_pipelines.store.verified import VerifiedTable
from ktrdr_pipelines.store.widths import WidthsTable

__all__ = [
    "Attempt",
    "AttemptKind",
    "Claim",
    "HeadRecord",
    "Ledger",
    "ProbeRecord",
    "RequestRecord",
    "Revision",
    "SilenceRecord",
    "open_ledger",
    "series_key",
]


class Ledger(
    MirrorTable,
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
