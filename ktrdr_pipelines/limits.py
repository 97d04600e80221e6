"""The registry of all limits and codes of Interactive Brokers that the project relies on.

Each value has a unit, a source and a grade: O official documentation, L seen in live captures, R
reverse-engineered, S read in the source of ib_async or ibapi, C community report, K the original
KTRDR system, P this project's own choice. R and C are likely, not certain.

Not here: the rules that use them (``domain.planning.chunks``, ``ib.pacing.rules``,
``ib.protocol.error_codes``).

Source: https://ibkrcampus.com/campus/ibkr-api-page/twsapi-doc/ (bar data, limitations, codes)
and https://interactivebrokers.github.io/tws-api/historical_limitations.html.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_CAMPUS = "https://ibkrcampus.com/campus/ibkr-api-page/twsapi-doc/"
_PACING = "https://interactivebrokers.github.io/tws-api/historical_limitations.html"
_BARS = "https://interactivebrokers.github.io/tws-api/historical_bars.html"
_CODES = "https://interactivebrokers.github.io/tws-api/message_codes.html"


@dataclass(frozen=True, slots=True)
class Limit(Generic[T]):
    """One value with its unit, its source, and the grade of the source."""

    value: T
    unit: str
    source: str
    grade: str


@dataclass(frozen=True, slots=True)
class Backoff:
    """Growing pauses between attempts, in seconds.

    The first lasts ``first_s``, each further one ``factor`` times as long, up to ``longest_s``.
    """

    first_s: float
    longest_s: float
    factor: float = 2.0

    def delay_s(self, failures: int, jitter: float = 0.0) -> float:
        """Return the seconds to wait after so many consecutive failures, at least one.

        Args:
            failures: the number of failures.
            jitter: from 0 to 1, the share of half the delay that is added, so that attempts that
                failed together are not all repeated at the same moment.
        """
        grown_s = self.first_s * self.factor ** min(failures - 1, _MOST_STEPS)
        return min(grown_s, self.longest_s) * (1 + jitter / 2)

    def after_s(self, last_s: float) -> float:
        """Return the seconds of the pause that follows one of ``last_s`` seconds."""
        return min(max(last_s * self.factor, self.first_s), self.longest_s)

    def starting(self, first_s: float) -> "Backoff":
        """Return the same backoff with another first pause, which may be longer than the rest."""
        return Backoff(first_s, max(self.longest_s, first_s), self.factor)


class CodeClass(StrEnum):
    """What a gateway's code means for the request or connection that received it."""

    NOTICE = "notice"
    RETRY = "retry"
    PACING = "pacing"
    NO_DATA = "no_data"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    TOO_LONG = "too_long"
    CONTRACT = "contract"
    ENTITLEMENT = "entitlement"
    CONNECTION = "connection"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class CodeText:
    """A part of a message that decides what its code means."""

    part: str
    code_class: CodeClass


@dataclass(frozen=True, slots=True)
class DurationRange:
    """The bar sizes that a duration unit may be requested with, and how many units at most."""

    unit: str
    smallest_bar_s: int
    largest_bar_s: int
    most: int


def _table(values: dict[str, int], source: str, grade: str) -> Limit[Mapping[str, int]]:
    return Limit(MappingProxyType(values), "days per request", source, grade)


_HISTORICAL_ERROR = 162
_MOST_STEPS = 60  # of a growing pause, which is longest by then, and below any overflow
_MIN, _HOUR, _DAY, _WEEK, _MONTH = 60, 3600, 86_400, 604_800, 2_592_000

_TOO_LONG = tuple(
    CodeText(part, CodeClass.TOO_LONG)
    for part in (
        "Time length exceed max",
        "invalid step",
        "data requests for durations longer than",
        "data request for durations longer than",
        "data request for greater than",
    )
)
"""Texts with which a gateway refuses a duration, under any code and after text in any language."""


class IbLimitsRegistry:
    """The registry of all limits; use its values, never copy a number out of it."""

    # --- what one request may ask for -------------------------------------------------------
    BAR_SIZES: Final = Limit(
        MappingProxyType(
            {
                "1m": "1 min",
                "5m": "5 mins",
                "15m": "15 mins",
                "30m": "30 mins",
                "1h": "1 hour",
                "4h": "4 hours",
                "1d": "1 day",
                "1w": "1 week",
            }
        ),
        "IB bar size setting per timeframe",
        _BARS,
        "O",
    )
    BAR_SIZE_STRINGS: Final = Limit(
        MappingProxyType(
            {
                "1m": ("1 min", "1 mins"),
                "5m": ("5 mins", "5 min"),
                "15m": ("15 mins", "15 min"),
                "30m": ("30 mins", "30 min"),
                "1h": ("1 hour", "1 hours"),
                "4h": ("4 hours", "4 hour"),
                "1d": ("1 day", "1D"),
                "1w": ("1 week", "1W"),
            }
        ),
        "IB bar size settings to try in turn per timeframe: the documented one first; refusals "
        "list 1W for a week",
        "https://github.com/wboayue/rust-ibapi/pull/245",
        "L",
    )
    SAFE_DAYS: Final = _table(
        {"1m": 1, "5m": 7, "15m": 7, "30m": 30, "1h": 30, "4h": 30, "1d": 365, "1w": 365},
        "the original KTRDR system's IbLimitsRegistry; 15m and 1w from IB's conservative table of "
        f"steps, which allows a week and a year of them ({_PACING})",
        "O",
    )
    SAFE_STEPS: Final = Limit(
        (
            DurationRange("S", 1, _MIN, 60),
            DurationRange("S", 1, 2 * _MIN, 120),
            DurationRange("S", 1, 30 * _MIN, 1_800),
            DurationRange("S", 5, _HOUR, 3_600),
            DurationRange("S", 10, 3 * _HOUR, 14_400),
            DurationRange("S", 30, 8 * _HOUR, 28_800),
            DurationRange("D", _MIN, _DAY, 1),
            DurationRange("D", 2 * _MIN, _DAY, 2),
            DurationRange("W", 3 * _MIN, _WEEK, 1),
            DurationRange("M", 30 * _MIN, _MONTH, 1),
            DurationRange("Y", _DAY, _MONTH, 1),
        ),
        "steps of 'a few thousand bars' (conservative table)",
        _PACING,
        "O",
    )
    WIDE_STEPS: Final = Limit(
        (
            DurationRange("S", 1, _MIN, 86_400),
            DurationRange("D", 5, _HOUR, 365),
            DurationRange("W", 10, 4 * _HOUR, 52),
            DurationRange("M", 30, 8 * _HOUR, 12),
            DurationRange("Y", _MIN, _DAY, 68),
        ),
        "the current table, which contradicts itself: 5 D of 1 day works (L)",
        _CAMPUS,
        "O",
    )
    SMALL_BAR_MAX_S: Final = Limit(
        30, "seconds: bars this long or shorter are 'small'", _PACING, "O"
    )
    SMALL_BAR_HISTORY_DAYS: Final = Limit(180, "days back for small bars (6 months)", _PACING, "O")
    FUTURES_HISTORY_DAYS: Final = Limit(730, "days after expiry (2 years)", _PACING, "O")

    # --- pacing ------------------------------------------------------------------------------
    IDENTICAL_S: Final = Limit(15.0, "seconds between identical requests", _PACING, "O")
    SAME_CONTRACT_MOST: Final = Limit(
        5,
        "requests of one contract, exchange and tick type in 2 s (six are too many)",
        _PACING,
        "O",
    )
    SAME_CONTRACT_S: Final = Limit(2.0, "seconds of the rule above", _PACING, "O")
    WINDOW_MOST: Final = Limit(60, "requests in 10 min", _PACING, "O")
    WINDOW_S: Final = Limit(600.0, "seconds of the rule above", _PACING, "O")
    WINDOW_RESERVE: Final = Limit(
        6,
        "requests of the rule above that backfills leave to tails when they send all they may at "
        "once; a tail sent during a long load would else wait for the whole window",
        "this project",
        "P",
    )
    WINDOW_LENT: Final = Limit(
        4,
        "requests of that reserve that backfills may take after all, evenly over the window: of 60 "
        "they use 58, a tail finds 2 free, and another becomes free every 150 s",
        "this project",
        "P",
    )
    CLOCK_DRIFT: Final = Limit(
        0.001,
        "share by which the gateway's clock may run slower than ours: the windows above are longer "
        "by it. Time daemons let a clock run wrong by up to 0.0005",
        "https://man7.org/linux/man-pages/man2/adjtimex.2.html",
        "P",
    )
    BID_ASK_WEIGHT: Final = Limit(2, "requests that one of BID_ASK counts for", _PACING, "O")
    MAX_OPEN_HISTORICAL: Final = Limit(
        50, "historical requests open at once, head timestamps included", _PACING, "O"
    )
    MESSAGES_PER_S: Final = Limit(50, "messages a second to the gateway", _CAMPUS, "O")
    MESSAGE_JITTER_S: Final = Limit(
        0.1,
        "seconds by which the delays of two messages to the gateway may differ: it counts them "
        "when it reads them, so the second of the rule above is that much longer for the sender",
        "this project",
        "P",
    )
    MESSAGE_STRIKES: Final = Limit(
        3, "violations of the message rate that end the session", _CAMPUS, "O"
    )
    MARGIN: Final = Limit(0.05, "share of a limit kept unused", "this project", "P")
    CONCURRENCY: Final = Limit(
        6, "requests in flight for bars of 1 min and longer, until it adapts", "this project", "P"
    )
    CONCURRENCY_RANGE: Final = Limit(
        (1, 45), "fewest and most of them once it adapts, below the 50 open", "this project", "P"
    )
    PACING_PAUSE_S: Final = Limit(
        Backoff(60.0, 600.0),
        "seconds that every process pauses after a pacing violation, longer after further ones",
        "client practice",
        "C",
    )
    BREAKER_PAUSE_S: Final = Limit(
        Backoff(30.0, 600.0),
        "seconds for which an open circuit breaker blocks requests, longer after failed probes",
        "this project",
        "P",
    )
    RETRY_PAUSE_S: Final = Limit(
        Backoff(2.0, 60.0),
        "seconds before a failed request is repeated; IB_RETRY_DELAY sets the first",
        "this project",
        "P",
    )
    FARM_PROBE_PAUSE_S: Final = Limit(
        Backoff(30.0, 300.0),
        "seconds between two probes of a route whose data farm remains broken; the first is the "
        "deadline of a request (IB_TIMEOUT)",
        "this project",
        "P",
    )
    RERUN_PAUSE_S: Final = Limit(
        Backoff(300.0, 21_600.0, factor=4.0),
        "seconds before a run that changed nothing is started again: one that fails before its "
        "first request leaves no attempt that would defer the next",
        "this project",
        "P",
    )

    # --- connections -------------------------------------------------------------------------
    PORTS: Final = Limit(
        MappingProxyType(
            {"gateway live": 4001, "gateway paper": 4002, "TWS live": 7496, "TWS paper": 7497}
        ),
        "TCP port",
        _CAMPUS,
        "O",
    )
    CONTAINER_PORTS: Final = Limit(
        MappingProxyType({"container live": 4003, "container paper": 4004}),
        "TCP port of the forwarder in a container",
        "https://github.com/gnzsnz/ib-gateway-docker",
        "C",
    )
    MAX_CLIENTS: Final = Limit(32, "clients connected to one gateway", _CAMPUS, "O")
    CLIENT_ID_ATTEMPTS: Final = Limit(
        3, "client ids tried before giving up", "live issue logs", "L"
    )
    CLIENT_ID_PAUSE_S: Final = Limit(1.5, "seconds between those attempts", "live issue logs", "L")
    CONNECT_PAUSE_S: Final = Limit(
        Backoff(3.0, 60.0),
        "seconds between attempts to connect while a run waits for the gateway, which can hold the "
        "ids of lost connections until it is restarted",
        "https://github.com/ib-api-reloaded/ib_async/issues/152",
        "C",
    )
    CLIENT_ID_RANGES: Final = Limit(
        MappingProxyType(
            {
                "api": (1, 10),
                "batch": (11, 50),
                "gap_filler": (101, 110),
                "data_manager": (111, 120),
                "cli": (201, 250),
                "tests": (251, 298),
            }
        ),
        "client ids, first and last included; 0 and the master id see manual orders and are never "
        "used",
        "the original KTRDR system's IbLimitsRegistry",
        "K",
    )
    SERVER_VERSIONS: Final = Limit((157, 178), "server versions spoken", "ib_async 2.1.0", "S")

    # --- time --------------------------------------------------------------------------------
    FINAL_LAG_S: Final = Limit(
        1_800,
        "seconds after a session's close from which a response that reaches over it covers its "
        "end, longer than the 10 to 20 minutes of delayed data, and bars of 1d and 1w are final",
        "this project",
        "P",
    )
    BAR_LAG_S: Final = Limit(
        5, "seconds after its end from which an intraday bar is final", "this project", "P"
    )
    GAP_THRESHOLDS_S: Final = Limit(
        MappingProxyType(
            {
                "1m": 300,
                "5m": 900,
                "15m": 2_700,
                "30m": 5_400,
                "1h": 10_800,
                "4h": 43_200,
                "1d": 86_400,
                "1w": 604_800,
            }
        ),
        "seconds of open session time after which a tail without its next bar is stale",
        "this project",
        "P",
    )
    HEAD_CACHE_S: Final = Limit(86_400, "seconds that a head timestamp is valid", "KTRDR", "K")
    PROBE_CACHE_S: Final = Limit(
        30 * _DAY, "seconds that the oldest bar found by probing is valid", "this project", "P"
    )
    WIDTH_CACHE_S: Final = Limit(
        _DAY,
        "seconds that the width of a request which two runs learned is valid",
        "this project",
        "P",
    )
    LEARNED_WIDTH_S: Final = Limit(
        _WEEK,
        "seconds that the width of a request which brought the most bars a second is valid",
        "this project",
        "P",
    )
    REFUSED_WIDTH_S: Final = Limit(
        30 * _DAY,
        "seconds that a refusal for length is valid: it states a rule, which changes with IB's "
        "software and not by the hour",
        "this project",
        "P",
    )
    TRY_AGAIN_S: Final = Limit(
        MappingProxyType(
            {
                "error": Backoff(300, _DAY),
                "no_data": Backoff(_DAY, _MONTH),
                "probed": Backoff(_DAY, _MONTH),
                "contradicted": Backoff(_DAY, _MONTH),
                "sparse": Backoff(900, _DAY),
                "blocked": Backoff(_DAY, _DAY),
                "unknown": Backoff(_HOUR, _WEEK),
                "basis": Backoff(900, _HOUR),
            }
        ),
        "seconds for which automatic work defers what failed or stays open. A missing permission "
        "is probed once a day; a contract is spuriously unknown in the nightly maintenance "
        "(ib_insync #330)",
        "this project",
        "P",
    )
    CONFIRM_AFTER_S: Final = Limit(
        900.0,
        "seconds between two statements of which one is a response without bars",
        "this project",
        "P",
    )
    STATEMENT_COUNTS_DAYS: Final = Limit(
        20,
        "days that a statement counts: fewer than any confirmation that rests on it lasts",
        "this project",
        "P",
    )
    VOIDED_WITHIN_S: Final = Limit(
        _DAY,
        "seconds from a refuted response without bars within which all others are void",
        "this project",
        "P",
    )
    EMPTY_RECENT_DAYS: Final = Limit(
        30, "days for which a recent range is confirmed empty", "this project", "P"
    )
    EMPTY_OLD_DAYS: Final = Limit(
        365, "days for which an old range is confirmed empty", "this project", "P"
    )

    # --- what a code means -------------------------------------------------------------------
    CODES: Final = Limit(
        MappingProxyType(
            {
                100: CodeClass.PACING,
                165: CodeClass.CONNECTION,
                166: CodeClass.REJECTED,
                200: CodeClass.CONTRACT,
                321: CodeClass.REJECTED,
                322: CodeClass.RETRY,
                326: CodeClass.CONNECTION,
                354: CodeClass.ENTITLEMENT,
                366: CodeClass.CANCELLED,
                386: CodeClass.REJECTED,
                502: CodeClass.CONNECTION,
                504: CodeClass.CONNECTION,
                507: CodeClass.CONNECTION,
                1100: CodeClass.PAUSE,
                1101: CodeClass.RESUME,
                1102: CodeClass.RESUME,
                1300: CodeClass.CONNECTION,
                2103: CodeClass.PAUSE,
                2105: CodeClass.PAUSE,
                2110: CodeClass.PAUSE,
                2157: CodeClass.PAUSE,
                2104: CodeClass.NOTICE,
                2106: CodeClass.NOTICE,
                2158: CodeClass.NOTICE,
                2107: CodeClass.NOTICE,
                2108: CodeClass.NOTICE,
                2174: CodeClass.NOTICE,
                2188: CodeClass.NOTICE,
                10090: CodeClass.NOTICE,
                10167: CodeClass.NOTICE,
                10089: CodeClass.ENTITLEMENT,
                10141: CodeClass.ENTITLEMENT,
                10168: CodeClass.ENTITLEMENT,
                10186: CodeClass.ENTITLEMENT,
                10187: CodeClass.ENTITLEMENT,
                10197: CodeClass.ENTITLEMENT,
                10314: CodeClass.REJECTED,
            }
        ),
        "class per code",
        _CODES,
        "O",
    )
    CODE_TEXTS: Final = Limit(
        MappingProxyType(
            {
                162: (
                    CodeText("query returned no data", CodeClass.NO_DATA),
                    CodeText("pacing violation", CodeClass.PACING),
                    CodeText("query cancelled", CodeClass.CANCELLED),
                    CodeText("No market data permissions", CodeClass.ENTITLEMENT),
                    CodeText("different IP address", CodeClass.ENTITLEMENT),
                    *_TOO_LONG,
                    CodeText("No historical market data for", CodeClass.REJECTED),
                ),
                165: (CodeText("connection was successful", CodeClass.NOTICE),),
                321: _TOO_LONG,
                322: (CodeText("Duplicate ticker", CodeClass.REJECTED),),
            }
        ),
        "codes whose text decides; another text is worth one retry",
        _CODES,
        "L",
    )
    NO_DATA_FORM: Final = Limit(
        re.compile(
            r"^(?!historical market data service)"
            r"(?!.*\b(?:query|requests?|requested|the|timed|failed|must|been|for)\b)"
            r".*: ?[^:@]{1,40}@[A-Z0-9.]{1,15} [A-Z_]{3,15}[. ]*$",
            re.ASCII | re.IGNORECASE | re.DOTALL,
        ),
        "the end of a 162 that reports no data in a language other than English: ': AAPL@SMART "
        "Trades'; with English words before that end, CODE_TEXTS decides",
        "https://github.com/wrighter/ib-scripts/issues/1 (prefixes are translated)",
        "L",
    )
    NO_MARKET_DATA_VALUE: Final = Limit(-1, "volume, average, count: 'not available'", _BARS, "R")

    UNSET_VALUES: Final = Limit(
        (2.0**31 - 1, 2.0**63 - 1, float(2**127 - 1), sys.float_info.max),
        "numbers that mean 'not set' in the protocol, as ibapi reads them (utils.decode, const)",
        "ibapi 10.51",
        "S",
    )

    @classmethod
    def class_of(cls, code: int, text: str) -> CodeClass:
        """Return the class of a gateway's code, by its text where the text decides.

        An unknown code from 2100 to 2199 is a notice (ib_async treats it so too, grade S); one
        whose text reports a pacing violation is one, whatever its number (420 is, grade O); any
        other code refuses the request that it names.
        """
        folded = text.casefold()
        for hint in cls.CODE_TEXTS.value.get(code, ()):
            if hint.part.casefold() in folded:
                return hint.code_class
        if code in cls.CODES.value:
            return cls.CODES.value[code]
        if "pacing violation" in folded:
            return CodeClass.PACING
        if code == _HISTORICAL_ERROR and cls.NO_DATA_FORM.value.search(text):
            return CodeClass.NO_DATA
        if code in cls.CODE_TEXTS.value:
            return CodeClass.RETRY
        return CodeClass.NOTICE if 2100 <= code <= 2199 else CodeClass.REJECTED
