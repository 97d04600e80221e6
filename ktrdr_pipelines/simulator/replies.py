"""What the gateway says: one function a message, each returning framed bytes.

Not here: the description of a contract (``details``) and the account (``accounts``).

Source: the field lists of the decoders of ``ib_async`` 2.1.0 and ``ibapi`` (grade S), which
depend on the negotiated server version where a function takes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ktrdr_pipelines.simulator import wire

_ADVANCED_REJECT_FROM = 166

NO_REQUEST = -1
"""The id of errors and notices that concern no request."""


@dataclass(frozen=True, slots=True)
class ApiError:
    """A code and text of the gateway's, for one request or for none."""

    code: int
    text: str
    request_id: int = NO_REQUEST


@dataclass(frozen=True, slots=True)
class HistoryAnswer:
    """An answered historical request: the stated reach, and bars already written as fields."""

    request_id: int
    start: str
    end: str
    count: int
    fields: bytes


def handshake(version: int, connected_at: str, encoding: str = "utf-8") -> bytes:
    """Say which version both will speak, and since when, in the encoding of the machine."""
    return wire.frame(f"{version}\0{connected_at}\0".encode(encoding))


def error(version: int, failed: ApiError) -> bytes:
    """Report an error or notice; without the sixth field ib_async would drop it."""
    fields = (4, 2, failed.request_id, failed.code, failed.text)
    return wire.message((*fields, "") if version >= _ADVANCED_REJECT_FROM else fields)


def managed_accounts(account: str) -> bytes:
    """Name the accounts of the session."""
    return wire.message((15, 1, account))


def next_valid_id(order_id: int) -> bytes:
    """Name the next order id, which ends the start-up for most clients."""
    return wire.message((9, 1, order_id))


def current_time(epoch_s: int) -> bytes:
    """Tell the gateway's time."""
    return wire.message((49, 1, epoch_s))


def open_orders_end() -> bytes:
    """End the list of open orders."""
    return wire.message((53, 1))


def completed_orders_end() -> bytes:
    """End the list of completed orders."""
    return wire.message((102,))


def executions_end(request_id: int) -> bytes:
    """End the list of executions."""
    return wire.message((55, 1, request_id))


def head_timestamp(request_id: int, moment: str) -> bytes:
    """Tell when the oldest bar starts."""
    return wire.message((88, request_id, moment))


def historical_data(answer: HistoryAnswer) -> bytes:
    """Send all bars of a request."""
    start = f"17\0{answer.request_id}\0{answer.start}\0{answer.end}\0{answer.count}\0"
    return wire.frame(start.encode() + answer.fields)


def historical_update(request_id: int, bar: tuple[str, ...]) -> bytes:
    """Send the newest bar of a request that is kept up to date, in this message's own order."""
    date, open_, high, low, close, volume, average, count = bar
    return wire.message((90, request_id, count, date, open_, close, high, low, average, volume))


def historical_schedule(
    request_id: int, zone: str, sessions: Sequence[tuple[str, str, str]]
) -> bytes:
    """Send the start, end and date of sessions, of which there is one at least."""
    reach = (sessions[0][0], sessions[-1][1])
    each = (text for session in sessions for text in session)
    return wire.message((106, request_id, *reach, zone, len(sessions), *each))
