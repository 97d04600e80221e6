"""The messages that clients send: one frozen dataclass a request, and a table of decoders.

Source: the field lists of ``ib_async/client.py`` 2.1.0 and ``ibapi/client.py`` (grade S); they
are the same for server versions 157 to 178, except for the trailing field of a contract request,
which is not read.

Not here: the messages that the gateway sends (``replies``), and whether the values of a request are
valid (``requests.validation``).
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class ContractFields:
    """The twelve fields by which a client names an instrument, and whether it may have expired."""

    con_id: int
    symbol: str
    sec_type: str
    last_trade_date: str
    strike: str
    right: str
    multiplier: str
    exchange: str
    primary_exchange: str
    currency: str
    local_symbol: str
    trading_class: str
    include_expired: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class StartApi:
    """The client names its id; the gateway responds to no request before."""

    client_id: int


@dataclass(frozen=True, slots=True)
class ContractRequest:
    """Request the details of every matching instrument, also by an id such as its ISIN."""

    request_id: int
    contract: ContractFields
    sec_id_type: str = ""
    sec_id: str = ""


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """Request historical bars; ``legs`` holds the fields of the legs of a combination."""

    request_id: int
    contract: ContractFields
    end: str
    bar_size: str
    duration: str
    use_rth: bool
    what: str
    format_date: int
    keep_up_to_date: bool
    legs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HeadRequest:
    """Request the start of the oldest bar of an instrument."""

    request_id: int
    contract: ContractFields
    use_rth: bool
    what: str
    format_date: int


@dataclass(frozen=True, slots=True)
class CancelHistory:
    """Cancel a historical request."""

    request_id: int


@dataclass(frozen=True, slots=True)
class CancelHead:
    """Cancel a head timestamp request, or free its slot after its response."""

    request_id: int


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request of which only the type, the id and the fields about the account matter.

    ``is_end`` is true for a message that ends an earlier subscription.
    """

    type_id: int
    request_id: int = -1
    account: str = ""
    model: str = ""
    tags: str = ""
    is_end: bool = False


@dataclass(frozen=True, slots=True)
class OrderMessage:
    """Any message that would place, change or cancel an order."""

    order_id: int


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message of a type that this gateway does not support."""

    type_id: int


DataRequest = ContractRequest | HeadRequest | HistoryRequest
"""The requests whose response is computed from the market."""

Request = (
    DataRequest
    | StartApi
    | CancelHistory
    | CancelHead
    | PlainRequest
    | OrderMessage
    | UnknownMessage
)


class MessageError(ValueError):
    """A message of a known type lacks a field or holds one that cannot be read."""


class _Cursor:
    """Read the fields of a message one after the other."""

    def __init__(self, fields: Iterator[str]) -> None:
        self._fields = fields

    def text(self) -> str:
        try:
            return next(self._fields)
        except StopIteration:
            raise MessageError("a field is missing") from None

    def skip(self, count: int) -> None:
        for _ in range(count):
            self.text()

    def number(self) -> int:
        text = self.text()
        try:
            return int(text or 0)
        except ValueError:
            raise MessageError(f"not a whole number: {text[:40]!r}") from None

    def flag(self) -> bool:
        return self.number() != 0

    def contract(self) -> ContractFields:
        """Read the fields of a contract and the flag for expired ones, which always follows."""
        fields = ContractFields(self.number(), *(self.text() for _ in range(11)))
        # One form for a strike: ib_async sends ``0.0`` where ibapi sends nothing (grade S).
        strike = fields.strike
        with suppress(ValueError):
            strike = str(float(strike or 0))
        return replace(fields, strike=strike, include_expired=self.flag())


def _start_api(cursor: _Cursor) -> StartApi:
    cursor.skip(1)
    return StartApi(cursor.number())


def _contract_request(cursor: _Cursor) -> ContractRequest:
    cursor.skip(1)
    return ContractRequest(cursor.number(), cursor.contract(), cursor.text(), cursor.text())


def _history_request(cursor: _Cursor) -> HistoryRequest:
    request_id, contract = cursor.number(), cursor.contract()
    end, bar_size, duration = cursor.text(), cursor.text(), cursor.text()
    use_rth, what, format_date = cursor.flag(), cursor.text(), cursor.number()
    legs: tuple[str, ...] = ()
    if contract.sec_type == "BAG":
        legs = tuple(cursor.text() for _ in range(4 * cursor.number()))
    return HistoryRequest(
        request_id=request_id,
        contract=contract,
        end=end,
        bar_size=bar_size,
        duration=duration,
        use_rth=use_rth,
        what=what,
        format_date=format_date,
        keep_up_to_date=cursor.flag(),
        legs=legs,
    )


def _head_request(cursor: _Cursor) -> HeadRequest:
    request_id, contract = cursor.number(), cursor.contract()
    return HeadRequest(request_id, contract, cursor.flag(), cursor.text(), cursor.number())


def _cancel_history(cursor: _Cursor) -> CancelHistory:
    cursor.skip(1)
    return CancelHistory(cursor.number())


def _versioned_order(cursor: _Cursor) -> OrderMessage:
    cursor.skip(1)
    return OrderMessage(cursor.number())


def _plain(type_id: int) -> Callable[[_Cursor], Request]:
    return lambda _: PlainRequest(type_id)


def _plain_with_id(type_id: int) -> Callable[[_Cursor], Request]:
    def decode(cursor: _Cursor) -> Request:
        cursor.skip(1)
        return PlainRequest(type_id, cursor.number())

    return decode


def _account_updates(cursor: _Cursor) -> PlainRequest:
    cursor.skip(1)
    is_wanted = cursor.flag()
    return PlainRequest(6, account=cursor.text(), is_end=not is_wanted)


def _account_summary(cursor: _Cursor) -> PlainRequest:
    cursor.skip(1)
    request_id = cursor.number()
    cursor.skip(1)
    return PlainRequest(62, request_id, tags=cursor.text())


def _multi(type_id: int) -> Callable[[_Cursor], Request]:
    def decode(cursor: _Cursor) -> Request:
        cursor.skip(1)
        return PlainRequest(type_id, cursor.number(), cursor.text(), cursor.text())

    return decode


def _profit(type_id: int) -> Callable[[_Cursor], Request]:
    return lambda cursor: PlainRequest(type_id, cursor.number())


DECODERS: dict[int, Callable[[_Cursor], Request]] = {
    3: lambda cursor: OrderMessage(cursor.number()),
    4: _versioned_order,
    6: _account_updates,
    9: _contract_request,
    20: _history_request,
    21: _versioned_order,
    25: _cancel_history,
    58: lambda _: OrderMessage(-1),
    62: _account_summary,
    71: _start_api,
    74: _multi(74),
    76: _multi(76),
    87: _head_request,
    90: lambda cursor: CancelHead(cursor.number()),
    92: _profit(92),
    93: _profit(93),
}
"""The decoder of each supported message type; those of the simplest types are added below."""

DECODERS |= {type_id: _plain(type_id) for type_id in (5, 8, 14, 15, 16, 17, 49, 59, 61, 64, 99)}
DECODERS |= {type_id: _plain_with_id(type_id) for type_id in (7, 63, 75, 77)}


def decode(fields: list[str]) -> Request:
    """Return the request in the fields of one message from a client.

    Raises:
        MessageError: the type is no number, or a field is missing or unreadable.
    """
    cursor = _Cursor(iter(fields))
    type_id = cursor.number()
    decoder = DECODERS.get(type_id)
    return UnknownMessage(type_id) if decoder is None else decoder(cursor)
