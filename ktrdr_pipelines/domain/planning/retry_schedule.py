"""Tries that covered nothing: their kinds, how far each reaches, and when the next one is due.

Not here: the table of them (``store.ledger.attempts``), what a load does about them
(``sync.engine.writer``).
"""

from datetime import timedelta
from enum import StrEnum
from typing import Final

from ktrdr_pipelines.limits import IbLimitsRegistry

_MOST_DOUBLINGS = 30


class AttemptKind(StrEnum):
    """What came of a try that covered nothing.

    ``error``: a failure. ``no_data``: the gateway has never had a bar of the instrument.
    ``probed``: a response without bars is to be confirmed. ``contradicted``: the same, although
    held data speak against it. ``sparse``: a session with far fewer bars than its neighbours is to
    be requested once more. ``blocked``: a permission is missing. ``unknown``: the gateway does not
    know the contract, or knows another one.
    """

    ERROR = "error"
    NO_DATA = "no_data"
    PROBED = "probed"
    CONTRADICTED = "contradicted"
    SPARSE = "sparse"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"


SERIES_WIDE: Final = frozenset({AttemptKind.NO_DATA, AttemptKind.BLOCKED, AttemptKind.UNKNOWN})
"""Kinds that say something about all of a series, bars that have yet to come included."""

TO_CONFIRM: Final = frozenset({AttemptKind.PROBED, AttemptKind.CONTRADICTED})
"""Kinds of ranges that wait for another statement."""


def retry_in(kind: AttemptKind, failures: int) -> timedelta:
    """Give how long to leave alone what was tried so often, at least once, in vain.

    It doubles with each try, without any chance in it: two processes come to the same moment.
    """
    first_s, longest_s = IbLimitsRegistry.TRY_AGAIN_S.value[kind.value]
    return timedelta(seconds=min(first_s * 2 ** min(failures - 1, _MOST_DOUBLINGS), longest_s))
