"""Failed attempts: their kinds, which of them concern a whole series, and when to retry.

Not here: their table (``store.ledger.attempts``), what a load does about them
(``sync.engine.failed_attempts``).
"""

from datetime import timedelta
from enum import StrEnum
from typing import Final

from ktrdr_pipelines.limits import IbLimitsRegistry


class AttemptKind(StrEnum):
    """The outcome of an attempt that covered nothing.

    ``error``: a failure. ``no_data``: the gateway has never had a bar of the instrument.
    ``probed``: a response without bars is to be confirmed. ``contradicted``: the same, although
    held data contradict it. ``sparse``: a session with far fewer bars than its neighbours is to
    be requested once more. ``blocked``: a permission is missing. ``unknown``: the gateway does not
    know the contract, or knows another one. ``basis``: bars were returned on a price basis that
    one response cannot confirm.
    """

    ERROR = "error"
    NO_DATA = "no_data"
    PROBED = "probed"
    CONTRADICTED = "contradicted"
    SPARSE = "sparse"
    BLOCKED = "blocked"
    UNKNOWN = "unknown"
    BASIS = "basis"


SERIES_WIDE: Final = frozenset({AttemptKind.NO_DATA, AttemptKind.BLOCKED, AttemptKind.UNKNOWN})
"""Kinds that concern all of a series, including bars that do not exist yet."""

TO_CONFIRM: Final = frozenset({AttemptKind.PROBED, AttemptKind.CONTRADICTED})
"""Kinds of ranges that wait for another statement."""


def retry_in(kind: AttemptKind, failures: int) -> timedelta:
    """Return how long to defer a request after so many failed attempts, at least one.

    The delay doubles with each attempt and has no random part: all processes compute the same time.
    """
    return timedelta(seconds=IbLimitsRegistry.TRY_AGAIN_S.value[kind.value].delay_s(failures))
