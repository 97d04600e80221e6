"""What happens to a gateway as a whole: the link to IB, a data farm, the nightly reset.

While an outage lasts every request for data hangs, as do those that were open when it began: they
are never answered, and a client asks again or waits in vain (grade O for requests before 2106).
Not here: which request begins one (``faults``), what hangs a request (``serving``).
"""

import asyncio
from collections.abc import Callable

from ktrdr_pipelines.simulator.faults import Fault, FaultRule
from ktrdr_pipelines.simulator.replies import ApiError

LINK_LOST = ApiError(1100, "Connectivity between IBKR and Trader Workstation has been lost.")
RESTORED = {
    1101: ApiError(
        1101,
        "Connectivity between IBKR and Trader Workstation has been restored - data lost.",
    ),
    1102: ApiError(
        1102,
        "Connectivity between IBKR and Trader Workstation has been restored - data maintained.",
    ),
}
FARM_BROKEN = ApiError(2105, "HMDS data farm connection is broken:ushmds")
FARM_OK = ApiError(2106, "HMDS data farm connection is OK:ushmds")


class Outages:
    """The outage that lasts now, if any, and how many there were.

    Args:
        tell: sends a notice to every client.
        drop_all: ends every connection.
    """

    def __init__(self, *, tell: Callable[[ApiError], None], drop_all: Callable[[], None]) -> None:
        self._tell = tell
        self._drop_all = drop_all
        self._now: FaultRule | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.begun = 0

    def __repr__(self) -> str:
        return f"Outages({'none' if self._now is None else self._now.fault}, {self.begun} begun)"

    @property
    def is_on(self) -> bool:
        """Whether requests for data hang now."""
        return self._now is not None

    @property
    def is_total(self) -> bool:
        """Whether nothing at all is answered, not even the time."""
        return self._now is not None and self._now.fault is Fault.NIGHTLY_RESET

    def notices(self) -> list[ApiError]:
        """Return what a client that connects now is told."""
        if self._now is None:
            return []
        return [_BEGINS[self._now.fault]] if self._now.fault in _BEGINS else []

    def begin(self, rule: FaultRule) -> None:
        """Begin an outage unless one lasts; it ends by itself."""
        if self._now is not None:
            return
        self._now = rule
        self.begun += 1
        for notice in self.notices():
            self._tell(notice)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(rule.number("seconds"), self.end)

    def end(self) -> None:
        """End the outage that lasts, if any."""
        rule, self._now = self._now, None
        self.stop_timer()
        if rule is None:
            return
        if rule.fault is Fault.LINK_LOST:
            self._tell(RESTORED[int(rule.number("code"))])
        elif rule.fault is Fault.FARM_BROKEN:
            self._tell(FARM_OK)
        else:
            self._drop_all()

    def stop_timer(self) -> None:
        """Let go of the timer; the gateway closes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


_BEGINS = {Fault.LINK_LOST: LINK_LOST, Fault.FARM_BROKEN: FARM_BROKEN}
