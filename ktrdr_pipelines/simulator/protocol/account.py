"""Responses that need no market: the account, orders, positions, the time.

The gateway has one account, which holds money and no positions; orders are not possible. The lists
of orders and positions are therefore empty and consist of their end message only.

Source: the decoders of ``ib_async`` 2.1.0 and ``ibapi`` 10 (grade S); which values an account
has is a choice out of IB's long list (grade P).
"""

from collections.abc import Callable
from dataclasses import dataclass

from ktrdr_pipelines.simulator.protocol import framing, replies
from ktrdr_pipelines.simulator.protocol.languages import localised
from ktrdr_pipelines.simulator.protocol.messages import PlainRequest
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.protocol.time_texts import zoned
from ktrdr_pipelines.simulator.variants import Variants

CURRENCY = "USD"
VALUES = {
    "AccountType": "INDIVIDUAL",
    "NetLiquidation": "1000000.00",
    "TotalCashValue": "1000000.00",
    "SettledCash": "1000000.00",
    "AvailableFunds": "1000000.00",
    "BuyingPower": "4000000.00",
    "GrossPositionValue": "0.00",
    "UnrealizedPnL": "0.00",
    "RealizedPnL": "0.00",
}
"""The values of the account, by IB's tags; all but the account type are amounts of money."""

_ALL_TAGS = "All"


def _currency(tag: str) -> str:
    return "" if tag == "AccountType" else CURRENCY


def updates(account: str, clock: str) -> bytes:
    """Return the messages of every value, their time (``HH:MM``) and the end."""
    values = [
        framing.message((6, 2, tag, value, _currency(tag), account))
        for tag, value in VALUES.items()
    ]
    ends = (framing.message((8, 1, clock)), framing.message((54, 1, account)))
    return b"".join([*values, *ends])


def summary(request_id: int, account: str, tags: str) -> bytes:
    """Return the messages of the values of ``tags`` (comma-separated, or ``All``) and the end."""
    wanted = set(VALUES) if tags == _ALL_TAGS else set(tags.split(","))
    rows = [
        framing.message((63, 1, request_id, account, tag, value, _currency(tag)))
        for tag, value in VALUES.items()
        if tag in wanted
    ]
    return b"".join([*rows, framing.message((64, 1, request_id))])


def updates_multi(request_id: int, account: str, model: str) -> bytes:
    """Return the messages of every value of one account and model, and the end."""
    rows = [
        framing.message((73, 1, request_id, account, model, tag, value, _currency(tag)))
        for tag, value in VALUES.items()
    ]
    return b"".join([*rows, framing.message((74, 1, request_id))])


def positions() -> bytes:
    """Return the end of the list of positions, which is empty."""
    return framing.message((62, 1))


def positions_multi(request_id: int) -> bytes:
    """Return the end of the list of positions of one account and model, which is empty."""
    return framing.message((72, 1, request_id))


def profit(request_id: int) -> bytes:
    """Return the profit of the day, unrealized and realized, which are all zero."""
    return framing.message((94, request_id, 0.0, 0.0, 0.0))


FIRST_ORDER_ID = 1

FARMS_OK = (
    ApiError(2104, "Market data farm connection is OK:usfarm"),
    ApiError(2106, "HMDS data farm connection is OK:ushmds"),
    ApiError(2158, "Sec-def data farm connection is OK:secdefil"),
)


@dataclass(frozen=True, slots=True)
class AccountDetails:
    """The account and the time, from which the responses in this module are made."""

    account: str
    now_s: int
    variants: Variants = Variants()  # noqa: RUF009 - immutable

    @property
    def clock(self) -> str:
        """The time as account updates state it, ``HH:MM``."""
        return zoned(self.now_s, self.variants.login_zone)[9:14]

    @property
    def accounts(self) -> str:
        """The list of accounts, which some gateways end with a comma.

        Source: https://github.com/wrighter/ib-scripts/issues/9 (grade L).
        """
        return f"{self.account}," if self.variants.account_comma else self.account


def start_up(version: int, details: AccountDetails) -> bytes:
    """Return the messages that follow a client's id, in the order of a real gateway."""
    language = details.variants.language
    farms = [replies.error(version, localised(language, farm)) for farm in FARMS_OK]
    named = replies.managed_accounts(details.accounts)
    return b"".join([named, replies.next_valid_id(FIRST_ORDER_ID), *farms])


_Reply = Callable[[PlainRequest, AccountDetails], bytes]

_REPLIES: dict[int, _Reply] = {
    5: lambda _, __: replies.open_orders_end(),
    6: lambda request, details: updates(request.account or details.account, details.clock),
    7: lambda request, _: replies.executions_end(request.request_id),
    8: lambda _, __: replies.next_valid_id(FIRST_ORDER_ID),
    16: lambda _, __: replies.open_orders_end(),
    17: lambda _, details: replies.managed_accounts(details.accounts),
    49: lambda _, details: replies.current_time(details.now_s),
    61: lambda _, __: positions(),
    62: lambda request, details: summary(request.request_id, details.account, request.tags),
    74: lambda request, _: positions_multi(request.request_id),
    76: lambda request, details: updates_multi(
        request.request_id, request.account or details.account, request.model
    ),
    92: lambda request, _: profit(request.request_id),
    99: lambda _, __: replies.completed_orders_end(),
}


def reply_to(request: PlainRequest, details: AccountDetails) -> bytes:
    """Return the response to a plain request; no bytes where the client expects none."""
    reply = None if request.is_end else _REPLIES.get(request.type_id)
    return b"" if reply is None else reply(request, details)
