"""What the gateway answers to contract, head timestamp and historical requests.

Here: reading a request's texts, asking the market, choosing between bars and the error that IB
gives. Not here: I/O, and rules over several requests (``rules``). Everything is computed from
the arguments, in any thread.

Source: texts of 162, 200 and 321 as seen in live logs (grade L); an unknown sub-text follows the
same form (grade P).
"""

from dataclasses import dataclass

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator import replies
from ktrdr_pipelines.simulator.barcodec import EPOCH_FORMAT, bar_fields
from ktrdr_pipelines.simulator.durations import (
    Duration,
    DurationError,
    Window,
    parse_duration,
    stated_start,
    window_of,
)
from ktrdr_pipelines.simulator.hours import Hours, MarketKind
from ktrdr_pipelines.simulator.hourstext import trading_hours
from ktrdr_pipelines.simulator.instruments import Instrument, fitting
from ktrdr_pipelines.simulator.market import BarQuery, Market, PricedBars, What
from ktrdr_pipelines.simulator.messages import (
    ContractFields,
    ContractRequest,
    DataRequest,
    HeadRequest,
    HistoryRequest,
)
from ktrdr_pipelines.simulator.replies import ApiError, HistoryAnswer
from ktrdr_pipelines.simulator.sizes import DAY, SIZE_BY_TEXT, BarSize
from ktrdr_pipelines.simulator.timetext import (
    BAD_END,
    NO_ZONE,
    EndTime,
    EndTimeError,
    parse_end,
    utc_text,
    zoned,
)

MOST_BARS = 1_500_000
"""Bars of one answer above which it is refused as too long: about 100 MB (grade P)."""

_SERVICE = "Historical Market Data Service error message:"
_LEGAL_SIZES = ", ".join(SIZE_BY_TEXT)


class RefusedError(Exception):
    """The request gets an error instead of an answer."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class Setting:
    """What an answer depends on besides its request."""

    market: Market
    version: int
    now_s: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Frames to send, and what they amount to: a number of bars or contracts, or an error."""

    data: bytes
    count: int | None = None
    error_code: int | None = None


def answer(setting: Setting, request: DataRequest) -> Answer:
    """Answer one request; a refusal is an answer too."""
    try:
        if isinstance(request, HistoryRequest):
            return _history(setting, request)
        if isinstance(request, HeadRequest):
            return _head(setting, request)
        return _contracts(setting, request)
    except RefusedError as refused:
        error = ApiError(refused.code, refused.text, request.request_id)
        return Answer(replies.error(setting.version, error), error_code=refused.code)


def invalid(cause: str) -> RefusedError:
    """Build the refusal of a request that fails validation."""
    return RefusedError(321, f"Error validating request.-'bM' : cause - {cause}")


def _contracts(setting: Setting, request: ContractRequest) -> Answer:
    found = fitting(setting.market.instruments(), request.contract)
    if not found:
        raise RefusedError(200, "No security definition has been found for the request")
    details = [
        replies.contract_details(
            setting.version,
            request.request_id,
            instrument,
            trading_hours(setting.market, instrument, setting.now_s),
        )
        for instrument in found
    ]
    data = b"".join([*details, replies.contract_details_end(request.request_id)])
    return Answer(data, count=len(found))


def _the_one(setting: Setting, asked: ContractFields) -> Instrument:
    """Return the only instrument that fits a request for data."""
    if not asked.exchange:
        raise invalid("Please enter exchange")
    found = fitting(setting.market.instruments(), asked)
    if not found:
        raise RefusedError(200, "No security definition has been found for the request")
    if len(found) > 1:
        name = asked.symbol or asked.local_symbol
        raise RefusedError(200, f"The contract description specified for {name} is ambiguous.")
    return found[0]


def _what(text: str) -> What:
    try:
        return What(text)
    except ValueError:
        raise invalid(f"The what to show field is missing or incorrect: {text!r}") from None


def _no_trades_of_fx(instrument: Instrument, what: What, seconds: int) -> None:
    if instrument.kind is MarketKind.FX and what is What.TRADES:
        name = f"{instrument.symbol}/CASH@FXSUBPIP Last {seconds}"
        raise RefusedError(162, f"{_SERVICE}No historical market data for {name}")


def _no_data(instrument: Instrument, what: What) -> RefusedError:
    name = f"{instrument.local_symbol}@{instrument.exchange} {what.value.capitalize()}"
    return RefusedError(162, f"{_SERVICE}HMDS query returned no data: {name}")


def _head(setting: Setting, request: HeadRequest) -> Answer:
    instrument, what = _the_one(setting, request.contract), _what(request.what)
    _no_trades_of_fx(instrument, what, 1)
    head = setting.market.head(instrument, what, use_rth=request.use_rth)
    if head is None or head > setting.now_s:
        raise _no_data(instrument, what)
    text = str(head) if request.format_date == EPOCH_FORMAT else utc_text(head)
    return Answer(replies.head_timestamp(request.request_id, text), count=1)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A historical request with its texts read."""

    instrument: Instrument
    what: What
    size: BarSize
    duration: Duration
    end: EndTime


def _read(setting: Setting, request: HistoryRequest) -> _Asked:
    asked = _Asked(
        instrument=_the_one(setting, request.contract),
        what=_what(request.what),
        size=_size(request.bar_size),
        duration=_duration(request.duration),
        end=_end(request.end, setting.now_s),
    )
    if request.keep_up_to_date:
        raise invalid("keepUpToDate is not supported by this gateway")
    _no_trades_of_fx(asked.instrument, asked.what, asked.size.seconds)
    return asked


def _size(text: str) -> BarSize:
    if text in SIZE_BY_TEXT:
        return SIZE_BY_TEXT[text]
    if text in IbLimitsRegistry.VALID_BAR_SIZES.value:
        raise invalid(f"Bar size {text!r} is not supported by this gateway: {_LEGAL_SIZES}")
    raise invalid(
        f"Historical data bar size setting is invalid: {text!r}. Legal ones are: {_LEGAL_SIZES}"
    )


def _duration(text: str) -> Duration:
    try:
        return parse_duration(text)
    except DurationError as error:
        raise invalid(str(error)) from None


def _end(text: str, now_s: int) -> EndTime:
    try:
        return parse_end(text, now_s)
    except EndTimeError:
        raise RefusedError(10314, BAD_END) from None


def _history(setting: Setting, request: HistoryRequest) -> Answer:
    asked = _read(setting, request)
    bars = _bars(setting, request, asked)
    shown = HistoryAnswer(
        request_id=request.request_id,
        start=zoned(stated_start(asked.duration, asked.end.seconds)),
        end=zoned(asked.end.seconds),
        count=len(bars),
        fields=bar_fields(bars, asked.size, request.format_date),
    )
    notices = _notices(setting, request, asked)
    return Answer(notices + replies.historical_data(shown), count=len(bars))


def _notices(setting: Setting, request: HistoryRequest, asked: _Asked) -> bytes:
    if not asked.end.zone_assumed:
        return b""
    return replies.error(setting.version, ApiError(2174, NO_ZONE, request.request_id))


def _bars(setting: Setting, request: HistoryRequest, asked: _Asked) -> PricedBars:
    """Return the bars up to now of what is asked, or refuse: there is no empty answer."""
    hours = setting.market.hours(asked.instrument, use_rth=request.use_rth)
    window = window_of(asked.duration, min(asked.end.seconds, setting.now_s), hours)
    if _at_most(window, asked.size, hours) > MOST_BARS:
        raise RefusedError(162, f"{_SERVICE}Time length exceed max.")
    query = BarQuery(asked.what, asked.size, request.use_rth, window)
    bars = setting.market.bars(asked.instrument, query)
    if not len(bars):
        raise _no_data(asked.instrument, asked.what)
    return bars


def _at_most(window: Window, size: BarSize, hours: Hours) -> int:
    sessions = hours.overlapping(window.start_s, window.end_s)
    open_s = (
        hours.closes[sessions.start : sessions.stop] - hours.opens[sessions.start : sessions.stop]
    )
    return int(open_s.sum()) // min(size.seconds, DAY.seconds)
