"""The rules over all connections of one gateway: client ids, open requests, pacing.

A method changes the tables and returns the error of a refused request, which the caller sends.
Nothing here awaits, so that two requests cannot pass the same check.

Not here: the limits over time (``pacing_rules``).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.protocol.messages import (
    ContractRequest,
    DataRequest,
    HeadRequest,
    HistoryRequest,
)
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.requests.pacing_rules import (
    VIOLATION,
    MessageRate,
    PacingRule,
    PacingRules,
    SimulatedPacing,
)

MAX_OPEN = IbLimitsRegistry.MAX_OPEN_HISTORICAL.value
MAX_CLIENTS = IbLimitsRegistry.MAX_CLIENTS.value

ID_IN_USE = "Unable to connect as the client id is already in use. Retry with a unique client id."
TOO_MANY_CLIENTS = (
    f"Couldn't connect to TWS: the maximum of {MAX_CLIENTS} connected clients is reached."
)
"""The real gateway's text for this is not documented: this one is the simulator's (grade P)."""

TOO_MANY_OPEN = (
    "Error processing request.-'bM' : cause - "
    f"Only {MAX_OPEN} simultaneous API historical data requests allowed."
)
DUPLICATE = "Error processing request.-'bM' : cause - Duplicate ticker ID."
DUPLICATE_HISTORY = "Duplicate ticker ID for API historical data query."


class Kind(StrEnum):
    """The kinds of requests that are counted and logged."""

    CONTRACT = "contract"
    HISTORY = "history"
    HEAD = "head"


_KINDS: dict[type[DataRequest], Kind] = {
    ContractRequest: Kind.CONTRACT,
    HeadRequest: Kind.HEAD,
    HistoryRequest: Kind.HISTORY,
}


def kind_of(request: DataRequest) -> Kind:
    """Return the kind as which a request is counted and logged."""
    return _KINDS[type(request)]


def _no_time() -> float:
    return 0.0


@dataclass(slots=True)
class GatewayRules:
    """The connected clients, the open requests, and how often each rule was broken.

    A head timestamp request stays open until it is cancelled or its client leaves, whether it was
    served or not (grade O). The id of a client whose connection dies stays in use for ``hold_s``
    seconds (grade C); a client that disconnects without open requests has ended properly. Until
    ``all_held_until`` every id is in use by earlier sockets, as after a night in which the gateway
    did not release them (grade L: https://github.com/ib-api-reloaded/ib_async/issues/152).
    """

    now_s: Callable[[], float] = _no_time
    hold_s: float = 0.0
    pacing: PacingRules = field(default_factory=lambda: PacingRules(SimulatedPacing.OFF, _no_time))
    clients: set[int] = field(default_factory=set)
    held_until: dict[int, float] = field(default_factory=dict)
    all_held_until: float = 0.0
    open_requests: dict[tuple[int, int], Kind] = field(default_factory=dict)
    violations: Counter[PacingRule] = field(default_factory=Counter)
    on_violation: Callable[[PacingRule, int], None] | None = None

    def join(self, client_id: int) -> ApiError | None:
        """Register a client id, or return the error that refuses it."""
        until_s = max(self.all_held_until, self.held_until.get(client_id, 0.0))
        if client_id in self.clients or until_s > self.now_s():
            return ApiError(326, ID_IN_USE)
        if len(self.clients) >= MAX_CLIENTS:
            return ApiError(502, TOO_MANY_CLIENTS)
        self.clients.add(client_id)
        return None

    def hold_all(self, seconds: float) -> None:
        """Refuse every client id for some seconds from now."""
        self.all_held_until = self.now_s() + seconds

    def leave(self, client_id: int, *, died: bool = False) -> None:
        """Free a client id and its open requests; that of a dead connection is held for a while."""
        self.clients.discard(client_id)
        left_open = [key for key in self.open_requests if key[0] == client_id]
        for key in left_open:
            del self.open_requests[key]
        if (died or left_open) and self.hold_s:
            self.held_until[client_id] = self.now_s() + self.hold_s

    def open(self, client_id: int, request: DataRequest) -> ApiError | None:
        """Count a request as open, or return the error that refuses it."""
        key, kind = (client_id, request.request_id), kind_of(request)
        if key in self.open_requests:
            if kind is Kind.HISTORY:
                return ApiError(386, DUPLICATE_HISTORY, request.request_id)
            return ApiError(322, DUPLICATE, request.request_id)
        open_history = sum(each is not Kind.CONTRACT for each in self.open_requests.values())
        if kind is not Kind.CONTRACT and open_history >= MAX_OPEN:
            return ApiError(322, TOO_MANY_OPEN, request.request_id)
        if not isinstance(request, ContractRequest):
            broken = self.pacing.broken_by(request)
            if broken is not None:
                self.violated(broken, client_id)
                return ApiError(162, VIOLATION, request.request_id)
        self.open_requests[key] = kind
        return None

    def close(self, client_id: int, request_id: int, kind: Kind) -> bool:
        """Free the slot of a request; return whether it was open as this kind."""
        key = (client_id, request_id)
        if self.open_requests.get(key) is not kind:
            return False
        del self.open_requests[key]
        return True

    def violated(self, rule: PacingRule, client_id: int) -> None:
        """Count a broken rule and call ``on_violation``."""
        self.violations[rule] += 1
        if self.on_violation is not None:
            self.on_violation(rule, client_id)

    def message_rate(self) -> MessageRate | None:
        """Return the message counter of a new connection; None if pacing is off."""
        return self.pacing.message_rate()
