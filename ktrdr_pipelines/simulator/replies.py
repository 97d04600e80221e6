"""What the gateway says: one function a message, each returning framed bytes.

Source: the field lists of the decoders of ``ib_async`` 2.1.0 and ``ibapi`` (grade S), which
depend on the negotiated server version where a function takes one.
"""

from dataclasses import dataclass

from ktrdr_pipelines.simulator import wire
from ktrdr_pipelines.simulator.instruments import Instrument

_ADVANCED_REJECT_FROM = 166
_SIZE_INCREMENT_FROM = 164
_SUGGESTED_INCREMENT_ONLY = 163

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
    fields: str


def handshake(version: int, connected_at: str) -> bytes:
    """Say which version both will speak."""
    return wire.message((version, connected_at))


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


def positions_end() -> bytes:
    """End the list of positions."""
    return wire.message((62, 1))


def open_orders_end() -> bytes:
    """End the list of open orders."""
    return wire.message((53, 1))


def completed_orders_end() -> bytes:
    """End the list of completed orders."""
    return wire.message((102,))


def account_download_end(account: str) -> bytes:
    """End the account's values."""
    return wire.message((54, 1, account))


def account_update_multi_end(request_id: int) -> bytes:
    """End the values of one account and model."""
    return wire.message((74, 1, request_id))


def account_summary_end(request_id: int) -> bytes:
    """End an account summary."""
    return wire.message((64, 1, request_id))


def executions_end(request_id: int) -> bytes:
    """End the list of executions."""
    return wire.message((55, 1, request_id))


def contract_details_end(request_id: int) -> bytes:
    """End the list of fitting contracts."""
    return wire.message((52, 1, request_id))


def head_timestamp(request_id: int, moment: str) -> bytes:
    """Tell when the oldest bar starts."""
    return wire.message((88, request_id, moment))


def historical_data(answer: HistoryAnswer) -> bytes:
    """Send all bars of a request."""
    start = f"17\0{answer.request_id}\0{answer.start}\0{answer.end}\0{answer.count}\0"
    return wire.frame((start + answer.fields).encode())


@dataclass(frozen=True, slots=True)
class TradingHours:
    """Both hours of a contract as details state them."""

    trading: str
    liquid: str


def contract_details(
    version: int, request_id: int, instrument: Instrument, hours: TradingHours
) -> bytes:
    """Describe one contract."""
    return wire.message(
        (
            *_leading_fields(version, request_id, instrument),
            *_naming_fields(instrument),
            *(instrument.zone, hours.trading, hours.liquid, "", 0, 0),
            *_trailing_fields(version, instrument),
        )
    )


def _leading_fields(
    version: int, request_id: int, instrument: Instrument
) -> tuple[wire.Field, ...]:
    is_old = version < _SIZE_INCREMENT_FROM
    head = (10, 8, request_id) if is_old else (10, request_id)
    contract = (instrument.symbol, instrument.kind.value, "", 0.0, "", instrument.exchange)
    names = (instrument.currency, instrument.local_symbol, instrument.trading_class)
    last = (instrument.trading_class, instrument.con_id, instrument.min_tick)
    return (*head, *contract, *names, *last, *((1,) if is_old else ()))


def _naming_fields(instrument: Instrument) -> tuple[wire.Field, ...]:
    exchanges = ",".join(instrument.exchanges)
    name = instrument.name.encode("unicode-escape").decode()
    return ("", "LMT,MKT", exchanges, 1, 0, name, instrument.primary_exchange, "", "", "", "")


def _trailing_fields(version: int, instrument: Instrument) -> tuple[wire.Field, ...]:
    stock_type = "COMMON" if instrument.kind == "STK" else ""
    fields: tuple[wire.Field, ...] = (1, "", "", "26", "", stock_type)
    if version >= _SIZE_INCREMENT_FROM:
        return (*fields, 0.0001, 0.0001, 100)
    return (*fields, 100) if version == _SUGGESTED_INCREMENT_ONLY else fields
