"""Errors that a faulty gateway gives in the place of an answer.

Not here: errors that a request deserves (``refusals``), when these are given (``faults``).
"""

from collections.abc import Callable

from ktrdr_pipelines.simulator.durations import window_of
from ktrdr_pipelines.simulator.faults import Fault, FaultRule
from ktrdr_pipelines.simulator.messages import ContractRequest, DataRequest, HistoryRequest
from ktrdr_pipelines.simulator.pacing import VIOLATION
from ktrdr_pipelines.simulator.reading import Setting, read_history
from ktrdr_pipelines.simulator.refusals import SERVICE, UNKNOWN_CONTRACT, RefusedError, invalid
from ktrdr_pipelines.simulator.replies import ApiError

_Made = tuple[int, str]


def false_error(rule: FaultRule, request: DataRequest) -> ApiError | None:
    """Return the error that a fault gives instead of an answer, if it is of that kind."""
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
    """Say whether a request asks for older bars than there are, and for some that there are."""
    if not isinstance(request, HistoryRequest):
        return False
    try:
        asked = read_history(setting, request)
    except RefusedError:
        return False
    head = setting.market.head(asked.instrument, asked.what, use_rth=request.use_rth)
    if head is None:
        return False
    hours = setting.market.hours(asked.instrument, use_rth=request.use_rth)
    first = max(0, hours.last_opened_before(head + 1))
    window = window_of(asked.duration, min(asked.end.seconds, setting.now_s), hours)
    return window.start_s < hours.reaches_back_from(first)


_ERRORS: dict[Fault, Callable[[FaultRule, DataRequest], _Made]] = {
    Fault.ERROR: lambda rule, _: (int(rule.number("code")), rule.text),
    Fault.INVALID: _invalid,
    Fault.UNKNOWN_CONTRACT: lambda _, __: (200, UNKNOWN_CONTRACT),
    Fault.NO_DATA: _no_data,
    Fault.PAST_OLDEST: _no_data,
    Fault.PACING: lambda _, __: (162, VIOLATION),
}
