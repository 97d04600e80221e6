"""A place in the budget, while it is taken.

Not here: waiting for one (``ib.pacer``), the shared record (``ib.pacer_record``).
"""

import logging
from collections.abc import Callable

from ktrdr_pipelines.ib.pacer_file import RecordBusyError
from ktrdr_pipelines.ib.pacer_record import PacerRecord, Place

CANCEL_HOLD_S = 2.0
"""How long a cancelled request keeps its place: the gateway may still be working on it."""

TRIES = 40
"""How often a place is tried to be given back while other processes write, 50 ms each: one that is
not given back keeps everybody waiting until its deadline."""

_log = logging.getLogger(__name__)


class Slot:
    """A place in the budget, to be given back when the answer is there.

    A slot that is not given back stays taken until its deadline. ``sent_at_s`` is its stamp.
    """

    def __init__(self, place: Place, record: PacerRecord, size: str = "") -> None:
        self.sent_at_s = place.turn.at
        self.is_held = True
        self._number, self._record, self._size = place.number, record, size

    def release(self) -> None:
        """Give it back: the gateway has said something."""
        self._let_go(lambda: self._record.release(self._number))

    def answered(self) -> None:
        """Give it back: what was asked for came; how long it took tells of the gateway's load."""
        if not self._size:
            self.release()
            return
        self._let_go(lambda: self._record.answered(self._number, self._size, self.sent_at_s))

    def cut(self) -> None:
        """Give it back soon: the request was cancelled, and the gateway may not know yet."""
        self._let_go(lambda: self._record.shorten(self._number, hold_s=CANCEL_HOLD_S))

    def withdraw(self) -> None:
        """Take it back as if it had never been: nothing was sent."""
        self._let_go(lambda: self._record.withdraw(self._number))

    def _let_go(self, act: Callable[[], None]) -> None:
        if not self.is_held:
            return
        self.is_held = False
        for _ in range(TRIES):
            try:
                act()
            except RecordBusyError:
                continue
            return
        _log.warning("a place in the budget stays taken until its deadline: the record is busy")
