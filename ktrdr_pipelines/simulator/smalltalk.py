"""Answers that need no market: accounts, orders, positions, the time.

The account holds no positions and orders are not possible, so their lists end where they begin.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ktrdr_pipelines.simulator import replies
from ktrdr_pipelines.simulator.accounts import (
    positions,
    positions_multi,
    profit,
    summary,
    updates,
    updates_multi,
)
from ktrdr_pipelines.simulator.languages import localised
from ktrdr_pipelines.simulator.messages import PlainRequest
from ktrdr_pipelines.simulator.replies import ApiError
from ktrdr_pipelines.simulator.timetext import zoned
from ktrdr_pipelines.simulator.variants import Variants

FIRST_ORDER_ID = 1

FARMS_OK = (
    ApiError(2104, "Market data farm connection is OK:usfarm"),
    ApiError(2106, "HMDS data farm connection is OK:ushmds"),
    ApiError(2158, "Sec-def data farm connection is OK:secdefil"),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What small talk is about: the account and the time."""

    account: str
    now_s: int
    variants: Variants = Variants()  # noqa: RUF009 - immutable

    @property
    def clock(self) -> str:
        """The time as account updates tell it, ``HH:MM``."""
        return zoned(self.now_s, self.variants.login_zone)[9:14]

    @property
    def accounts(self) -> str:
        """The list of accounts, which some gateways end with a comma.

        Source: https://github.com/wrighter/ib-scripts/issues/9 (grade L).
        """
        return f"{self.account}," if self.variants.account_comma else self.account


def start_up(version: int, facts: Facts) -> bytes:
    """Say what a gateway says once a client has named its id, in a real gateway's order."""
    language = facts.variants.language
    farms = [replies.error(version, localised(language, farm)) for farm in FARMS_OK]
    named = replies.managed_accounts(facts.accounts)
    return b"".join([named, replies.next_valid_id(FIRST_ORDER_ID), *farms])


_Reply = Callable[[PlainRequest, Facts], bytes]

_REPLIES: dict[int, _Reply] = {
    5: lambda _, __: replies.open_orders_end(),
    6: lambda asked, facts: updates(asked.account or facts.account, facts.clock),
    7: lambda asked, _: replies.executions_end(asked.request_id),
    8: lambda _, __: replies.next_valid_id(FIRST_ORDER_ID),
    16: lambda _, __: replies.open_orders_end(),
    17: lambda _, facts: replies.managed_accounts(facts.accounts),
    49: lambda _, facts: replies.current_time(facts.now_s),
    61: lambda _, __: positions(),
    62: lambda asked, facts: summary(asked.request_id, facts.account, asked.tags),
    74: lambda asked, _: positions_multi(asked.request_id),
    76: lambda asked, facts: updates_multi(
        asked.request_id, asked.account or facts.account, asked.model
    ),
    92: lambda asked, _: profit(asked.request_id),
    99: lambda _, __: replies.completed_orders_end(),
}


def reply_to(asked: PlainRequest, facts: Facts) -> bytes:
    """Answer a plain request; one that changes nothing and expects nothing gets no bytes."""
    reply = None if asked.is_ending else _REPLIES.get(asked.type_id)
    return b"" if reply is None else reply(asked, facts)
