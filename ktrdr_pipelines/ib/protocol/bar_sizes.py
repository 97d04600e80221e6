"""The strings by which a gateway calls bar sizes: those to try, and the one that it accepts.

The documentation says ``1 week``; the lists in IB's refusals say ``1W`` (grade L), and reports of
both disagree. So after a refusal of one string the next one is tried, and the string that works is
remembered for the gateway.

Not here: sending requests (``ib.source``).
"""

import logging
import re
from collections.abc import Awaitable, Callable, Container
from dataclasses import replace
from sqlite3 import Connection
from typing import TypeVar

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import BarSizeRefusedError
from ktrdr_pipelines.ib.pacing.gateway_memory import SharedMemory
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.protocol.error_codes import NoDataError, sizes_listed
from ktrdr_pipelines.ib.protocol.requests import HistoryQuery
from ktrdr_pipelines.limits import IbLimitsRegistry

T = TypeVar("T")
_log = logging.getLogger(__name__)

_SIZE = re.compile(r"(\d+)\s*([A-Za-z]+)")
_UNITS = {
    60: frozenset({"min", "mins", "minute", "minutes"}),
    3_600: frozenset({"h", "hr", "hrs", "hour", "hours"}),
    86_400: frozenset({"d", "day", "days"}),
    604_800: frozenset({"w", "wk", "week", "weeks"}),
}
"""Names of a unit, in lower case, by its seconds; not ``m`` alone, as ``1M`` is a month."""


class BarSizes:
    """The bar size strings of one gateway; other processes learn them from the shared record.

    Args:
        rate_limiter: the budget of the gateway, whose shared record keeps the accepted strings.
    """

    def __init__(self, rate_limiter: RateLimiter) -> None:
        self._rate_limiter = rate_limiter
        self._accepted: dict[Timeframe, str] | None = None

    async def accepted(
        self, query: HistoryQuery, request: Callable[[HistoryQuery], Awaitable[T]]
    ) -> T:
        """Send a request with one string after another until one is accepted; return the response.

        Each string is sent once at most, so that a gateway that refuses all of them costs a few
        requests and never causes a loop.

        Args:
            query: the request; without a timeframe it is sent as it is.
            request: sends it, each time as a request of its own for the budget.

        Raises:
            BarSizeRefusedError: the gateway refuses every string.
            GatewayError: the request failed for another reason.
        """
        if (timeframe := query.timeframe) is None:
            return await request(query)
        refused: dict[str, BarSizeRefusedError] = {}
        listed: tuple[str, ...] = ()
        while (size := self._next(timeframe, refused, listed)) is not None:
            try:
                response = await request(replace(query, bar_size=size))
            except BarSizeRefusedError as error:
                refused[size] = error
                listed = sizes_listed(error.reason) or listed
                refusal = f"the gateway refuses the bar size {size!r}: {error.reason}"
                _log.info("%s: %s", query.what, refusal)
            except NoDataError:
                self._learn(timeframe, size)
                raise
            else:
                self._learn(timeframe, size)
                return response
        last = list(refused.values())[-1]
        names = " and ".join(f"'{one}'" for one in refused)
        lists = f"it lists {', '.join(listed)}" if listed else f"it says: {last.reason}"
        raise BarSizeRefusedError(
            query.what,
            reason=f"the gateway refuses the bar size {names}; {lists}",
            hint=f"Update the gateway, or remove {timeframe} from the timeframes in the universe; "
            "each request tries these strings again",
            code=last.code,
        )

    def _next(
        self, timeframe: Timeframe, refused: Container[str], listed: tuple[str, ...]
    ) -> str | None:
        """Return the next string: the accepted one, the documented one, a listed one, or others.

        A string that another request has learned in the meantime is first, so that requests that
        were refused together fall back once each.
        """
        documented, *others = IbLimitsRegistry.BAR_SIZE_STRINGS.value[timeframe.value]
        own = [one for one in listed if _is_size_of(timeframe, one)]
        known = self._known().get(timeframe)
        choices = [known, documented, *own, *others]
        return next((one for one in choices if one is not None and one not in refused), None)

    def _learn(self, timeframe: Timeframe, size: str) -> None:
        documented = IbLimitsRegistry.BAR_SIZE_STRINGS.value[timeframe.value][0]
        if self._known().get(timeframe, documented) == size:
            return
        self._known()[timeframe] = size

        def learn(memory: SharedMemory, database: Connection) -> None:
            memory.learn_bar_size(database, timeframe.value, size)

        self._rate_limiter.remember(learn)
        _log.info("the gateway accepts %r as the size of %s bars", size, timeframe)

    def _known(self) -> dict[Timeframe, str]:
        if self._accepted is None:
            kept = self._rate_limiter.remember(lambda memory, database: memory.bar_sizes(database))
            self._accepted = {one: kept[one.value] for one in Timeframe if one.value in kept}
        return self._accepted


def _is_size_of(timeframe: Timeframe, text: str) -> bool:
    """Return whether a string of a gateway's list means bars of a timeframe's length.

    Bars of a day and a week follow sessions, not hours: ``24 hours`` is not ``1 day``.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return False
    for unit_s, names in _UNITS.items():
        if found[2].casefold() in names:
            is_alike = timeframe.is_intraday or unit_s == timeframe.seconds
            return is_alike and int(found[1]) * unit_s == timeframe.seconds
    return False
