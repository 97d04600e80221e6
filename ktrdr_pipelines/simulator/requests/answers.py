"""Compute the responses to contract, head timestamp and historical requests.

A response consists of the data of the market, or of the error that IB sends. It is computed from
the arguments alone, in any thread.

Not here: I/O (``client_connection``), parsing a request (``validation``), and the rules over
several requests (``request_limits``).
"""

from dataclasses import dataclass

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.market.hours import DAY_S, Hours
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.protocol import replies
from ktrdr_pipelines.simulator.protocol.bar_encoding import EPOCH_FORMAT, DateStyle, bar_fields
from ktrdr_pipelines.simulator.protocol.languages import localised
from ktrdr_pipelines.simulator.protocol.messages import (
    ContractRequest,
    DataRequest,
    HeadRequest,
    HistoryRequest,
)
from ktrdr_pipelines.simulator.protocol.replies import (
    ApiError,
    HistoryAnswer,
    contract_details,
    contract_details_end,
    last_trade_text,
    session_texts,
    trading_hours,
)
from ktrdr_pipelines.simulator.protocol.time_texts import NO_ZONE, utc_text, zoned
from ktrdr_pipelines.simulator.requests.durations import (
    DAY,
    TOO_LONG,
    BarSize,
    Unit,
    Window,
    stated_start,
    window_of,
)
from ktrdr_pipelines.simulator.requests.refusals import (
    UNKNOWN_CONTRACT,
    RefusedError,
    check_shown,
    no_data,
    service_error,
)
from ktrdr_pipelines.simulator.requests.validation import (
    ParsedHistoryRequest,
    Setting,
    find_all,
    find_one,
    read_history,
    read_what,
)
from ktrdr_pipelines.simulator.variants import BeforeFirstTrade

MOST_BARS = 1_500_000
"""The bars of one response, about 100 MB, above which it is refused as too long (grade P)."""

_SMALL_S = IbLimitsRegistry.SMALL_BAR_MAX_S.value
_SMALL_HISTORY_S = IbLimitsRegistry.SMALL_BAR_HISTORY_DAYS.value * DAY_S


@dataclass(frozen=True, slots=True)
class Answer:
    """The frames of a response, and its number of bars or contracts, or its error code."""

    data: bytes
    count: int | None = None
    error_code: int | None = None


def answer(setting: Setting, request: DataRequest) -> Answer:
    """Return the response to one request; a refusal is a response too."""
    try:
        if isinstance(request, HistoryRequest):
            return _history(setting, request)
        if isinstance(request, HeadRequest):
            return _head(setting, request)
        return _contracts(setting, request)
    except RefusedError as refused:
        error = ApiError(refused.code, refused.text, request.request_id)
        error = localised(setting.variants.language, error)
        return Answer(replies.error(setting.version, error), error_code=refused.code)


def _contracts(setting: Setting, request: ContractRequest) -> Answer:
    if request.sec_id:
        raise RefusedError(200, UNKNOWN_CONTRACT)  # instruments have no such ids here
    found = find_all(setting.market.instruments(), request.contract, setting.now_s)
    # A gateway does not sort the contracts of a future by expiry (grade L,
    # https://github.com/ib-api-reloaded/ib_async/issues/128).
    found.sort(key=lambda each: each.shown.con_id if each.shown.expiry else 0)
    details = [
        contract_details(
            setting.version,
            request.request_id,
            each.shown,
            last_trade=last_trade_text(each.shown, setting.variants, setting.now_s),
            hours=trading_hours(setting.market, each.instrument, setting.now_s, setting.variants),
        )
        for each in found
    ]
    data = b"".join([*details, contract_details_end(request.request_id)])
    return Answer(data, count=len(found))


def _head(setting: Setting, request: HeadRequest) -> Answer:
    what = read_what(request.what)
    found = find_one(setting.market.instruments(), request.contract, setting.now_s)
    instrument = found.instrument
    check_shown(instrument, what, seconds=0)
    head = setting.market.head(instrument, what, use_rth=request.use_rth)
    if head is None or head > setting.now_s:
        raise no_data(instrument, what)
    text = str(head) if request.format_date == EPOCH_FORMAT else utc_text(head)
    return Answer(replies.head_timestamp(request.request_id, text), count=1)


def _history(setting: Setting, request: HistoryRequest) -> Answer:
    parsed = read_history(setting, request)
    if parsed.what is What.SCHEDULE:
        return _schedule(setting, request, parsed)
    bars = bars_of(setting, parsed, use_rth=request.use_rth)
    if not len(bars):
        raise no_data(parsed.instrument, parsed.what)
    zone = setting.variants.login_zone
    response = HistoryAnswer(
        request_id=request.request_id,
        start=zoned(stated_start(parsed.duration, parsed.end.seconds, zone), zone),
        end=zoned(parsed.end.seconds, zone),
        count=len(bars),
        fields=bar_fields(bars, style_of(parsed, request)),
    )
    notices = b""
    if parsed.end.zone_assumed:
        notice = ApiError(2174, NO_ZONE, request.request_id)
        notices = replies.error(setting.version, localised(setting.variants.language, notice))
    return Answer(notices + replies.historical_data(response), count=len(bars))


def style_of(parsed: ParsedHistoryRequest, request: HistoryRequest) -> DateStyle:
    """Return how the dates of a request's bars are written."""
    return DateStyle(parsed.size, request.format_date, parsed.instrument.zone)


def bars_of(setting: Setting, parsed: ParsedHistoryRequest, *, use_rth: bool) -> PricedBars:
    """Return the requested bars up to now; there may be none.

    Raises:
        RefusedError: there would be too many bars.
    """
    hours = setting.market.hours(parsed.instrument, use_rth=use_rth)
    window = window_of(
        parsed.duration, _counted_end(setting, parsed, hours, use_rth=use_rth), hours
    )
    start_s = window.start_s
    if parsed.size.seconds <= _SMALL_S:
        # Small bars are not served beyond a certain age (grade O).
        start_s = max(start_s, setting.now_s - _SMALL_HISTORY_S)
    window = Window(start_s, _until(setting, parsed))
    if _at_most(window, parsed.size, hours) > MOST_BARS:
        raise service_error(TOO_LONG)
    query = BarQuery(parsed.what, parsed.size, use_rth, window, now_s=setting.now_s)
    return setting.market.bars(parsed.instrument, query)


def _until(setting: Setting, parsed: ParsedHistoryRequest) -> int:
    return min(parsed.end.seconds, setting.now_s)


def _counted_end(
    setting: Setting, parsed: ParsedHistoryRequest, hours: Hours, *, use_rth: bool
) -> int:
    """Return the end from which a duration is counted back; before a first trade it may differ."""
    end_s, variant = _until(setting, parsed), setting.variants.before_first_trade
    if parsed.duration.unit is Unit.SECONDS:
        return end_s
    last = hours.last_opened_before(end_s)
    if variant is BeforeFirstTrade.NO_DATA_FROM_MIDNIGHT:
        coming = last + 1
        if coming < len(hours.opens) and end_s >= _begins_s(hours, coming):
            return int(hours.opens[coming]) + 1
    elif variant is BeforeFirstTrade.PREVIOUS and last > 0 and end_s < hours.closes[last]:
        begun = Window(int(hours.opens[last]), end_s)
        query = BarQuery(parsed.what, min(parsed.size, DAY), use_rth, begun)
        if not len(setting.market.bars(parsed.instrument, query)):
            return int(hours.closes[last - 1])
    return end_s


def _begins_s(hours: Hours, session: int) -> int:
    """Return the local midnight of a session's day, or its open if that is earlier.

    A session that opens on the evening before has no time between midnight and open.
    """
    midnight_s = int(hours.labels[session]) * DAY_S - int(hours.offsets[session])
    return min(midnight_s, int(hours.opens[session]))


def _at_most(window: Window, size: BarSize, hours: Hours) -> int:
    """Return an upper bound of the number of bars in a window."""
    sessions = hours.overlapping(window.start_s, window.end_s)
    open_s = (
        hours.closes[sessions.start : sessions.stop] - hours.opens[sessions.start : sessions.stop]
    )
    return min(int(open_s.sum()), window.end_s - window.start_s) // min(size.seconds, DAY.seconds)


def _schedule(setting: Setting, request: HistoryRequest, parsed: ParsedHistoryRequest) -> Answer:
    """Return the sessions of a duration, including the current one."""
    hours = setting.market.hours(parsed.instrument, use_rth=request.use_rth)
    window = window_of(parsed.duration, _until(setting, parsed), hours)
    sessions = session_texts(hours, window, parsed.instrument.zone)
    if not sessions:
        raise no_data(parsed.instrument, parsed.what)
    data = replies.historical_schedule(request.request_id, parsed.instrument.zone, sessions)
    return Answer(data, count=len(sessions))
