"""What clients say: one frozen dataclass a request.

Here: what a request means. Not here: how it is read (``decoding``), what is answered
(``answers``, ``smalltalk``) and whether it may be served (``session``, ``rules``).
"""

from dataclasses import dataclass, field


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
    """The client names its id; nothing is answered before."""

    client_id: int


@dataclass(frozen=True, slots=True)
class ContractRequest:
    """Ask for the details of every instrument that fits, also by an id such as its ISIN."""

    request_id: int
    contract: ContractFields
    sec_id_type: str = ""
    sec_id: str = ""


@dataclass(frozen=True, slots=True)
class HistoryRequest:
    """Ask for historical bars; ``legs`` are the fields of those that a combination has."""

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
    """Ask when the oldest bar of an instrument starts."""

    request_id: int
    contract: ContractFields
    use_rth: bool
    what: str
    format_date: int


@dataclass(frozen=True, slots=True)
class CancelHistory:
    """Give up a historical request."""

    request_id: int


@dataclass(frozen=True, slots=True)
class CancelHead:
    """Give up a head timestamp request, or free its slot once it is answered."""

    request_id: int


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request of which only its type, its id and what it says of the account matter.

    ``is_ending`` says that what was asked for before is given up.
    """

    type_id: int
    request_id: int = -1
    account: str = ""
    model: str = ""
    tags: str = ""
    is_ending: bool = False


@dataclass(frozen=True, slots=True)
class OrderMessage:
    """Any message that would place, change or cancel an order."""

    order_id: int


@dataclass(frozen=True, slots=True)
class UnknownMessage:
    """A message type this gateway has no use for."""

    type_id: int


DataRequest = ContractRequest | HeadRequest | HistoryRequest
"""What is answered from the market."""

Request = (
    DataRequest
    | StartApi
    | CancelHistory
    | CancelHead
    | PlainRequest
    | OrderMessage
    | UnknownMessage
)
