"""The book of calendars of one store: what the libraries know, its gateway told and bars show.

Not here: the calendars themselves (``core.calendars``).
"""

from ktrdr_pipelines.core.calendars import Calendars
from ktrdr_pipelines.store.ledger import Ledger


def open_calendars(ledger: Ledger) -> Calendars:
    """Make the book of calendars as a store's ledger stands now."""
    return ledger.calendars()
