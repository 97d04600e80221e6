"""Effects of faults: mutated responses, injected errors, and outages of the whole gateway.

Responses are mutated on their way out: only the bars of message 17 change, other messages pass
unchanged. An outage has a course: notices at their times, and the two times between which requests
for data hang. Those that hang, and those that were open when hanging began, never get a response;
the client repeats them or waits without end (grade O for requests before 2106).

Source: the order of a night (2103, 2104 after 0.7 s, 1100 repeatedly, 2103 of two farms) is
that of https://github.com/IbcAlpha/IBC/issues/143, the list of farms in 1102 that of
https://github.com/QuantConnect/Lean.Brokerages.InteractiveBrokers/issues/169 (grade L).

Not here: which fault a request meets (``faults``).
"""

import asyncio
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from ktrdr_pipelines.simulator.faults.faults import Fault, FaultRule
from ktrdr_pipelines.simulator.protocol import framing, replies
from ktrdr_pipelines.simulator.protocol.languages import localised
from ktrdr_pipelines.simulator.protocol.messages import ContractRequest, DataRequest, HistoryRequest
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.protocol.time_texts import parse_end
from ktrdr_pipelines.simulator.requests.answers import Answer
from ktrdr_pipelines.simulator.requests.durations import window_of
from ktrdr_pipelines.simulator.requests.pacing_rules import VIOLATION
from ktrdr_pipelines.simulator.requests.refusals import (
    SERVICE,
    UNKNOWN_CONTRACT,
    RefusedError,
    invalid,
)
from ktrdr_pipelines.simulator.requests.validation import Setting, read_history
from ktrdr_pipelines.simulator.variants import Language

NEWEST_MISSING = "Up-to-the-second historical data requires additional subscription for the API."

Bar = list[str]
Change = Callable[[list[Bar], FaultRule], list[Bar]]

_HEADER = 5
_PER_BAR = 8
_OPEN, _CLOSE, _VOLUME = 1, 4, 5
_LENGTH = struct.Struct(">I")


def mutated(
    answered: Answer,
    rule: FaultRule,
    *,
    version: int,
    request_id: int,
    language: Language = Language.ENGLISH,
) -> Answer:
    """Return a response with its bars changed by a fault, and their count corrected."""
    out, count = b"", answered.count
    for payload in _frames(answered.data):
        fields = framing.split_fields(payload)
        if fields[0] == "17":
            texts = fields[_HEADER:]
            bars = [texts[at : at + _PER_BAR] for at in range(0, len(texts), _PER_BAR)]
            bars = _CHANGES[rule.fault](bars, rule)
            count = len(bars)
            # The last field of the header is the number of bars.
            header = [*fields[: _HEADER - 1], str(count)]
            fields = [*header, *(text for bar in bars for text in bar)]
        out += framing.message(fields)
    if rule.fault is Fault.NEWEST_MISSING:
        notice = localised(language, ApiError(2188, NEWEST_MISSING, request_id))
        out = replies.error(version, notice) + out
    return Answer(out, count)


def _frames(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of a response of any length."""
    at = 0
    while at < len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield data[at : at + length]
        at += length


def _without_newest(bars: list[Bar], rule: FaultRule) -> list[Bar]:
    return bars[: max(1, len(bars) - int(rule.number("bars")))]


def _newest_share(bars: list[Bar], rule: FaultRule) -> list[Bar]:
    """Keep the newest part: the response covers less than the request."""
    return bars[-max(1, int(len(bars) * rule.number("share"))) :]


def _twice(bars: list[Bar], _: FaultRule) -> list[Bar]:
    """Send every third bar twice."""
    return [bar for at, bar in enumerate(bars) for _ in range(2 if at % 3 == 0 else 1)]


def _conflicting(bars: list[Bar], _: FaultRule) -> list[Bar]:
    """Send the last bar again with other prices."""
    return [*bars, *(_scaled(bar, 0.5) for bar in bars[-1:])]


def _shuffled(bars: list[Bar], _: FaultRule) -> list[Bar]:
    mixed = list(bars)
    Random(len(bars)).shuffle(mixed)  # noqa: S311 - a repeatable disorder
    return mixed


def _restated(bars: list[Bar], rule: FaultRule) -> list[Bar]:
    """Scale the prices of the selected bars, and volumes the other way, as a split does."""
    factor = rule.number("factor")
    return [_scaled(bar, factor) if rule.restates(_start_of(bar)) else bar for bar in bars]


def _start_of(bar: Bar) -> datetime:
    """Return the start of a bar from its text: epoch seconds, a date, or a zoned time."""
    text = bar[0]
    if len(text) == len("yyyymmdd"):
        return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC)
    seconds = int(text) if text.isdecimal() else parse_end(text, now_s=0).seconds
    return datetime.fromtimestamp(seconds, UTC)


def _scaled(bar: Bar, factor: float) -> Bar:
    prices = [repr(float(text) * factor) for text in bar[_OPEN : _CLOSE + 1]]
    volume = bar[_VOLUME] if bar[_VOLUME] == "-1" else repr(float(bar[_VOLUME]) / factor)
    average = bar[6] if bar[6] == "-1" else repr(float(bar[6]) * factor)
    return [bar[0], *prices, volume, average, bar[7]]


_CHANGES: dict[Fault, Change] = {
    Fault.NEWEST_MISSING: _without_newest,
    Fault.PARTIAL: _newest_share,
    Fault.DUPLICATED: _twice,
    Fault.CONFLICTING: _conflicting,
    Fault.UNORDERED: _shuffled,
    Fault.RESTATED: _restated,
}


_Made = tuple[int, str]


def injected_error(rule: FaultRule, request: DataRequest) -> ApiError | None:
    """Return the error that a fault sends instead of a response, or None for other faults."""
    made = _ERRORS.get(rule.fault)
    if made is None:
        return None
    code, text = made(rule, request)
    return ApiError(code, text, request.request_id)


def _no_data(_: FaultRule, request: DataRequest) -> _Made:
    contract = request.contract
    shown = "" if isinstance(request, ContractRequest) else request.what.capitalize()
    name = f"{contract.local_symbol or contract.symbol}@{contract.exchange} {shown}"
    return 162, f"{SERVICE}HMDS query returned no data: {name}"


def _invalid(_: FaultRule, __: DataRequest) -> _Made:
    refused = invalid("Invalid request")
    return refused.code, refused.text


def reaches_past_oldest(setting: Setting, request: DataRequest) -> bool:
    """Return whether a request spans the start of history: older bars, and some that exist."""
    if not isinstance(request, HistoryRequest):
        return False
    try:
        parsed = read_history(setting, request)
    except RefusedError:
        return False
    head = setting.market.head(parsed.instrument, parsed.what, use_rth=request.use_rth)
    if head is None:
        return False
    hours = setting.market.hours(parsed.instrument, use_rth=request.use_rth)
    first = max(0, hours.last_opened_before(head + 1))
    window = window_of(parsed.duration, min(parsed.end.seconds, setting.now_s), hours)
    return window.start_s < hours.reaches_back_from(first)


_ERRORS: dict[Fault, Callable[[FaultRule, DataRequest], _Made]] = {
    Fault.ERROR: lambda rule, _: (int(rule.number("code")), rule.text),
    Fault.INVALID: _invalid,
    Fault.UNKNOWN_CONTRACT: lambda _, __: (200, UNKNOWN_CONTRACT),
    Fault.NO_DATA: _no_data,
    Fault.PAST_OLDEST: _no_data,
    Fault.PACING: lambda _, __: (162, VIOLATION),
}


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

_ENDS = frozenset({1101, 1102, 2104, 2106})


def market_farm(name: str, *, is_ok: bool) -> ApiError:
    """Return the notice 2104 or 2103 of a market data farm."""
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
    """The course of an outage: notices by seconds since it began, and when requests hang.

    ``hangs`` is the first and the last second in which they do, or None. If ``drops`` is true,
    every connection ends with the outage.
    """

    notices: tuple[tuple[float, ApiError], ...]
    ends_s: float
    hangs: tuple[float, float] | None = None
    drops: bool = False


class Outages:
    """The current outage, if any, and the number of outages that made requests hang.

    Args:
        notify: sends a notice to every client.
        drop_all: ends every connection.
    """

    def __init__(self, *, notify: Callable[[ApiError], None], drop_all: Callable[[], None]) -> None:
        self._notify = notify
        self._drop_all = drop_all
        self._now: FaultRule | None = None
        self._course: _Course | None = None
        self._pending: list[ApiError] = []
        self._repeated: list[ApiError] = []
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
        """Whether no request gets a response, not even one for the time."""
        return self._now is not None and self._now.fault is Fault.NIGHTLY_RESET

    def notices(self) -> list[ApiError]:
        """Return the notices for a client that connects now."""
        return list(self._repeated)

    def begin(self, rule: FaultRule) -> None:
        """Begin an outage unless one is active; it ends by itself."""
        if self._now is not None:
            return
        course = _COURSES[rule.fault](rule)
        self._now, self._course = rule, course
        self._pending = [notice for _, notice in course.notices]
        if course.hangs is not None:
            first_s, last_s = course.hangs
            self._at(first_s, self._hang)
            self._at(last_s, self._end_hang)
        for after_s, _ in course.notices:
            if after_s < course.ends_s:
                self._at(after_s, self._send_next)
        self._at(course.ends_s, self._finish)

    def end(self) -> None:
        """End the current outage, if any, and send the notices of recovery now."""
        course, self._now, self._course = self._course, None, None
        self.stop_timers()
        self._end_hang()
        for notice in self._pending:
            if notice.code in _ENDS:
                self._notify(notice)
        self._pending, self._repeated = [], []
        if course is not None and course.drops:
            self._drop_all()

    def stop_timers(self) -> None:
        """Cancel the timers, as the gateway closes."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _at(self, after_s: float, act: Callable[[], None]) -> None:
        """Act after some seconds, or at once if that is 0."""
        if after_s:
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(after_s, act))
        else:
            act()

    def _hang(self) -> None:
        self._hangs = True
        self.begun += 1

    def _end_hang(self) -> None:
        self._hangs = False

    def _finish(self) -> None:
        """Send the last notices, and end."""
        self._end_hang()
        while self._pending:
            self._send_next()
        self.end()

    def _send_next(self) -> None:
        notice = self._pending.pop(0)
        if notice.code in _ENDS:
            self._repeated = [each for each in self._repeated if not _is_ended(each, notice)]
        elif notice not in self._repeated:
            self._repeated.append(notice)
        self._notify(notice)


def _is_ended(trouble: ApiError, by: ApiError) -> bool:
    """Return whether a notice ends an outage: of its own farm, or of the link."""
    if by.code in RESTORED:
        return trouble.code == LINK_LOST.code
    farm = by.text.rpartition(":")[2]
    return trouble.code == by.code - 1 and trouble.text.endswith(f":{farm}")


def _lost_link(rule: FaultRule, *, after_s: float = 0.0) -> tuple[tuple[float, ApiError], ...]:
    """Return the rule's number of 1100 notices, evenly over the time of the lost link."""
    repeats = int(rule.number("repeats"))
    apart_s = rule.number("seconds") / repeats
    return tuple((after_s + position * apart_s, LINK_LOST) for position in range(repeats))


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
    """Break a market data farm and restore it repeatedly; bars do not need it."""
    apart_s, repeats = rule.number("seconds"), int(rule.number("repeats"))
    notices = tuple(
        (position * apart_s, market_farm("usfarm", is_ok=position % 2 == 1))
        for position in range(2 * repeats)
    )
    return _Course(notices, (2 * repeats - 1) * apart_s)


def _night(rule: FaultRule) -> _Course:
    """Make a farm flap, lose the link for a while, and end with two broken market data farms."""
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
    """Break the farm of bars, then the link; the farm returns with the link, without a notice."""
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
