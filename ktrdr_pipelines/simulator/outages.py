"""What happens to a gateway as a whole: the link to IB, its data farms, the nightly reset.

Every outage has a course: notices at their times, and between which of them requests for data hang.
Those that hang, and those that were open when hanging began, are never answered, and a client asks
again or waits without end (grade O for requests before 2106). Not here: which request begins one
(``faults``), what hangs a request (``serving``).

Source: the order of a night (2103, 2104 after 0.7 s, 1100 again and again, 2103 of two farms) is
that of https://github.com/IbcAlpha/IBC/issues/143, the list of farms in 1102 that of
https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/issues/169 (grade L).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

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
FARMS = "eufarmnj; usfarm; ushmds; secdefnj"
FARMS_WITHOUT_HISTORY = "eufarmnj; usfarm; secdefnj"

_BREAKS = frozenset({1100, 2103, 2105})
_ENDS = frozenset({1101, 1102, 2104, 2106})


def market_farm(name: str, *, is_ok: bool) -> ApiError:
    """Return what is said of a market data farm."""
    if is_ok:
        return ApiError(2104, f"Market data farm connection is OK:{name}")
    return ApiError(2103, f"Market data farm connection is broken:{name}")


def restored(code: int, farms: str) -> ApiError:
    """Return 1101 or 1102, with a list of connected farms where one is given."""
    notice = RESTORED[code]
    if not farms:
        return notice
    return ApiError(code, f"{notice.text} All data farms are connected: {farms}.")


@dataclass(frozen=True, slots=True)
class _Course:
    """What an outage is: notices by seconds since it began, and when requests hang.

    ``hangs`` is the first and the last second of that, or None. ``drops`` says that every
    connection ends with it.
    """

    notices: tuple[tuple[float, ApiError], ...]
    ends_s: float
    hangs: tuple[float, float] | None = None
    drops: bool = False


class Outages:
    """The outage that lasts now, if any, and how many made requests hang.

    Args:
        tell: sends a notice to every client.
        drop_all: ends every connection.
    """

    def __init__(self, *, tell: Callable[[ApiError], None], drop_all: Callable[[], None]) -> None:
        self._tell = tell
        self._drop_all = drop_all
        self._now: FaultRule | None = None
        self._course: _Course | None = None
        self._coming: list[ApiError] = []
        self._standing: list[ApiError] = []
        self._hangs = False
        self._timers: list[asyncio.TimerHandle] = []
        self.begun = 0

    def __repr__(self) -> str:
        return f"Outages({'none' if self._now is None else self._now.fault}, {self.begun} begun)"

    @property
    def is_on(self) -> bool:
        """Whether requests for data hang now."""
        return self._hangs

    @property
    def is_total(self) -> bool:
        """Whether nothing at all is answered, not even the time."""
        return self._now is not None and self._now.fault is Fault.NIGHTLY_RESET

    def notices(self) -> list[ApiError]:
        """Return what a client that connects now is told."""
        return list(self._standing)

    def begin(self, rule: FaultRule) -> None:
        """Begin an outage unless one lasts; it ends by itself."""
        if self._now is not None:
            return
        course = _COURSES[rule.fault](rule)
        self._now, self._course = rule, course
        self._coming = [notice for _, notice in course.notices]
        if course.hangs is not None:
            first_s, last_s = course.hangs
            self._at(first_s, self._hang)
            self._at(last_s, self._go_on)
        for after_s, _ in course.notices:
            if after_s < course.ends_s:
                self._at(after_s, self._say_next)
        self._at(course.ends_s, self._finish)

    def end(self) -> None:
        """End the outage that lasts, if any; what is over is told now."""
        course, self._now, self._course = self._course, None, None
        self.stop_timers()
        self._go_on()
        for notice in self._coming:
            if notice.code in _ENDS:
                self._tell(notice)
        self._coming, self._standing = [], []
        if course is not None and course.drops:
            self._drop_all()

    def stop_timers(self) -> None:
        """Let go of the timers; the gateway closes."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _at(self, after_s: float, act: Callable[[], None]) -> None:
        """Act after some seconds; what is due at once is done at once."""
        if after_s:
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(after_s, act))
        else:
            act()

    def _hang(self) -> None:
        self._hangs = True
        self.begun += 1

    def _go_on(self) -> None:
        self._hangs = False

    def _finish(self) -> None:
        """Say the last notices, and end."""
        self._go_on()
        while self._coming:
            self._say_next()
        self.end()

    def _say_next(self) -> None:
        notice = self._coming.pop(0)
        if notice.code in _ENDS:
            self._standing = [each for each in self._standing if not _is_ended(each, notice)]
        elif notice not in self._standing:
            self._standing.append(notice)
        self._tell(notice)


def _is_ended(trouble: ApiError, by: ApiError) -> bool:
    """Say whether a notice ends a trouble: that of its own farm, or the lost link."""
    if by.code in RESTORED:
        return trouble.code == LINK_LOST.code
    farm = by.text.rpartition(":")[2]
    return trouble.code == by.code - 1 and trouble.text.endswith(f":{farm}")


def _lost_link(rule: FaultRule, *, after_s: float = 0.0) -> tuple[tuple[float, ApiError], ...]:
    """Return 1100, as often as the rule has it, evenly over the time that the link is lost."""
    repeats = int(rule.number("repeats"))
    apart_s = rule.number("seconds") / repeats
    return tuple((after_s + place * apart_s, LINK_LOST) for place in range(repeats))


def _link(rule: FaultRule) -> _Course:
    seconds = rule.number("seconds")
    end = (seconds, restored(int(rule.number("code")), rule.text))
    return _Course((*_lost_link(rule), end), seconds, hangs=(0.0, seconds))


def _farm(rule: FaultRule) -> _Course:
    seconds = rule.number("seconds")
    return _Course(((0.0, FARM_BROKEN), (seconds, FARM_OK)), seconds, hangs=(0.0, seconds))


def _reset(rule: FaultRule) -> _Course:
    seconds = rule.number("seconds")
    return _Course((), seconds, hangs=(0.0, seconds), drops=True)


def _flaps(rule: FaultRule) -> _Course:
    """Break a market data farm and restore it, again and again; bars need it not."""
    apart_s, repeats = rule.number("seconds"), int(rule.number("repeats"))
    notices = tuple(
        (place * apart_s, market_farm("usfarm", is_ok=place % 2 == 1))
        for place in range(2 * repeats)
    )
    return _Course(notices, (2 * repeats - 1) * apart_s)


def _night(rule: FaultRule) -> _Course:
    """Let a farm flap, lose the link for a while, and end with two broken market data farms."""
    flap_s, seconds = rule.number("flap"), rule.number("seconds")
    lost_s = 2 * flap_s
    over_s = lost_s + seconds
    notices = (
        (0.0, market_farm("usfarm", is_ok=False)),
        (flap_s, market_farm("usfarm", is_ok=True)),
        *_lost_link(rule, after_s=lost_s),
        (over_s, restored(1102, rule.text or FARMS)),
        (over_s + flap_s, market_farm("usfarm", is_ok=False)),
        (over_s + flap_s, market_farm("cashfarm", is_ok=False)),
    )
    return _Course(notices, over_s + flap_s, hangs=(lost_s, over_s))


def _unnamed(rule: FaultRule) -> _Course:
    """Break the farm of bars, then the link; the farm is back with it, and nothing says so."""
    seconds = rule.number("seconds")
    end = restored(1102, rule.text or FARMS_WITHOUT_HISTORY)
    notices = ((0.0, FARM_BROKEN), *_lost_link(rule), (seconds, end))
    return _Course(notices, seconds, hangs=(0.0, seconds))


_COURSES: dict[Fault, Callable[[FaultRule], _Course]] = {
    Fault.LINK_LOST: _link,
    Fault.FARM_BROKEN: _farm,
    Fault.NIGHTLY_RESET: _reset,
    Fault.FARM_FLAPS: _flaps,
    Fault.NIGHTLY_FARMS: _night,
    Fault.FARM_UNNAMED: _unnamed,
}
