"""The gateway's texts as far as they are known, so that a record can hold them and nothing else.

Of a text stays what begins as the texts of its code do; what follows stays where it has the form
that it must have (a farm, a query, a number), and is withheld where it has not. So no name, account
or address passes, however it is put, and what a code means can still be told from its text. Not
here: classes of codes (``limits``), the record (``ib.capture``).

Source: the texts are those of the project's facts about Interactive Brokers, of IB's list of codes
(https://interactivebrokers.github.io/tws-api/message_codes.html), and of logs that users of its
clients published.
"""

import re
from dataclasses import dataclass

WITHHELD = "(withheld)"

_REGION = "us|eu|uk|hk|jp|ca|nj|il|zh|sg"
_FARM = (
    rf"(?:{_REGION}|j|h|cash|fund|apac)?(?:farm|hmds|secdef|future|opt|bond)(?:\.?(?:{_REGION}))?"
)
_FARMS = rf"{_FARM}(?:; {_FARM})*\.?"
_SHOWN = "trades|aggtrades|(?:adjusted_?|agg)?last|mid_?point|bid|ask|bid_?ask|schedule"
_QUERY = rf"[A-Z0-9. /-]{{1,30}}@[A-Z0-9]{{1,12}}(?: (?i:{_SHOWN})(?: \d{{1,7}})?)?"
_NUMBER = r"\d{1,9}\.?"
_SIZE = r"\d{1,2} ?(?:secs?|mins?|hours?|days?|weeks?|months?|D|W|M)"
_END = r"[. ]*"
_SERVICE = "Historical Market Data Service error message:"
_MESSAGE = "Historical Market Data Service query message:"
_INVALID = r"Error validating request\.-'\w{1,3}' : cause - "
_PROCESSING = r"Error processing request\.-'\w{1,3}' : cause - "
_LINK = "Connectivity between (?:IB|IBKR) and (?:TWS|Trader Workstation) has been "
_FARM_STATE = r"farm connection is (?:OK|broken):"
_IDLE = r"farm connection is inactive but should be available upon demand[.:]"
_DATE_FORM = (
    r" The correct format is yyyymmdd hh:mm:ss xx/xxxx where yyyymmdd and xx/xxxx are optional\."
    r" E\.g\.: 20031126 15:59:00 US/Eastern +Note that there is a space between the date and time,"
    r" and between the time and time-zone\. +If no date is specified, current date is assumed\."
    r" If no time-zone is specified, local time-zone is assumed ?\(deprecated\)\. +You can also"
    r" provide yyyymmddd-hh:mm:ss time is in UTC\. Note that there is a dash between the date and"
    r" time in UTC notation\."
)
_ZONE_FORM = (
    r" Please switch to use yyyymmdd-hh:mm:ss in UTC or use instrument time zone, like US/Eastern\."
    r" Implied time zone functionality will be removed in the next API release\.?"
)


@dataclass(frozen=True, slots=True)
class _Known:
    """How texts of a code begin, and the form of what may follow."""

    start: re.Pattern[str]
    rest: re.Pattern[str]

    def kept(self, text: str) -> str | None:
        """Give what may be kept of a text that begins so, or None where it does not."""
        found = self.start.match(text)
        if found is None:
            return None
        return text if self.rest.fullmatch(text, found.end()) else f"{found[0]}{WITHHELD}"


def _known(*pairs: tuple[str, str]) -> tuple[_Known, ...]:
    return tuple(_Known(re.compile(start), re.compile(rest)) for start, rest in pairs)


_KNOWN: dict[int, tuple[_Known, ...]] = {
    100: _known(
        (
            "Max rate of messages per second has been exceeded",
            r"[:. ]*(?:max=\d+ rec=\d+ ?(?:\(\d\))?)?",
        )
    ),
    162: _known(
        (f"{_SERVICE}HMDS query returned no data", f": {_QUERY}"),
        (f"{_SERVICE}No historical market data for ", _QUERY),
        (f"{_SERVICE}Historical data request pacing violation", _END),
        (f"{_SERVICE}API historical data query cancelled", f": {_NUMBER}"),
        (f"{_SERVICE}No market data permissions for ", r"[A-Z0-9]{2,12} [A-Z]{2,6}\.?"),
        (
            f"{_SERVICE}Trading TWS session is connected from a different IP address",
            _END,
        ),
        (f"{_SERVICE}Time length exceed max", _END),
        (f"{_SERVICE}invalid step", f"(?:: {_SIZE})?"),
        (f"{_SERVICE}Historical data bar size setting is invalid", _END),
        (_SERVICE, "$"),
    ),
    165: _known(
        (f"{_MESSAGE}HMDS server disconnect occurred", r"[. ]*(?:Attempting reconnection[. ]*)?"),
        (f"{_MESSAGE}HMDS (?:server )?connection was successful", _END),
        (_MESSAGE, "$"),
    ),
    166: _known((r"HMDS Expired Contract Violation", _END)),
    200: _known(
        ("No security definition has been found for the request", _END),
        ("The contract description specified for ", r"[A-Z0-9.]{1,12} is ambiguous\.?"),
    ),
    321: _known(
        (
            f"{_INVALID}Historical data bar size setting is invalid",
            rf"\.(?: Legal ones are: {_SIZE}(?:, {_SIZE})*\.?)?",
        ),
        (
            f"{_INVALID}When specifying a unit, historical data request duration format is ",
            r"integer\{SPACE\}unit \(S\|D\|W\|M\|Y\)\.?",
        ),
        (f"{_INVALID}End date not supported with (?:adjusted last|live updates)", _END),
        (f"{_INVALID}Multi day bar size not supported with adjusted last", _END),
        (f"{_INVALID}Invalid (?:step|duration)", _END),
        (f"{_INVALID}Only daily resolution supported for Schedule requests", _END),
        (f"{_INVALID}The API interface is currently in Read-Only mode", _END),
        (_INVALID, "$"),
    ),
    322: _known(
        (
            f"{_PROCESSING}Only 50 simultaneous API historical data requests allowed",
            _END,
        ),
        (f"{_PROCESSING}Duplicate ticker ID", _END),
        (_PROCESSING, "$"),
    ),
    326: _known(
        (
            "Unable to connect as the client id is already in use",
            r"\.(?: Retry with a unique client id\.)?",
        )
    ),
    354: _known(("Requested market data is not subscribed", _END)),
    366: _known(("No historical data query found for ticker id", f":{_NUMBER}")),
    386: _known(("Duplicate ticker ID for API historical data query", _END)),
    502: _known(("Couldn't connect to TWS", _END)),
    504: _known(("Not connected", _END)),
    507: _known(("Bad [Mm]essage [Ll]ength", f"[. ]*(?:{_NUMBER})?")),
    1100: _known((f"{_LINK}lost", _END)),
    1101: _known(
        (f"{_LINK}restored ?- data lost", rf"\.?(?: All data farms are connected: {_FARMS})?")
    ),
    1102: _known(
        (f"{_LINK}restored ?- data maintained", rf"\.?(?: All data farms are connected: {_FARMS})?")
    ),
    1300: _known(
        ("TWS socket port has been reset and this connection is being dropped", _END),
    ),
    10090: _known(
        (
            "Part of requested market data is not subscribed",
            r"[. ]*(?:Subscription-independent ticks are still active[. ]*)?",
        )
    ),
    10167: _known(
        (
            "Requested market data is not subscribed",
            r"[. ]*(?:Displaying delayed market data[. ]*)?",
        )
    ),
    2110: _known(
        (
            "Connectivity between (?:TWS|Trader Workstation) and server is broken",
            r"\.(?: It will be restored automatically\.?)?",
        )
    ),
    10089: _known(("Requested market data requires additional subscription for API", _END)),
    10141: _known(
        ("Paper trading disclaimer must first be accepted for API connection", _END),
    ),
    **{
        code: _known(
            (
                "Requested market data is not subscribed",
                r"\.(?: Delayed market data is not enabled\.?)?",
            )
        )
        for code in (10168, 10186)
    },
    10187: _known(("Failed to request historical ticks", ":No market data permissions")),
    10197: _known(("No market data during competing live session", _END)),
    10314: _known(
        (
            r"End Date/Time: The date, time, or time-zone entered is invalid\.?",
            f"(?:{_DATE_FORM})?",
        )
    ),
    2174: _known(
        (
            "Warning: You submitted request with date-time attributes without explicit time zone",
            rf"\.?(?:{_ZONE_FORM})?",
        )
    ),
    2188: _known(
        (
            "Up-to-the-second historical data requires additional subscription",
            r"(?: for the API)?\.?",
        )
    ),
    **{code: _known((f"Market data {_FARM_STATE}", _FARM)) for code in (2103, 2104)},
    **{code: _known((f"HMDS data {_FARM_STATE}", _FARM)) for code in (2105, 2106)},
    **{code: _known((f"Sec-def data {_FARM_STATE}", _FARM)) for code in (2157, 2158)},
    2107: _known((f"HMDS data {_IDLE}", f"(?:{_FARM})?")),
    2108: _known((f"Market data {_IDLE}", f"(?:{_FARM})?")),
}


def harmless(code: int, text: str) -> str:
    """Give what of a code's text cannot name anybody; ``(withheld)`` stands for the rest."""
    kept = (known.kept(text) for known in _KNOWN.get(code, ()))
    return next((one for one in kept if one is not None), WITHHELD)
