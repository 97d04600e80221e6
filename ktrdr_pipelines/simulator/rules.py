"""The rules that hold over all connections of one gateway: client ids and open requests.

Decide, then act: a method changes the tables and returns what speaks against a request, if
anything; the caller sends it. Nothing here awaits, so no rule can be broken in between.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.replies import ApiError

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
    """The requests that are counted and recorded."""

    CONTRACT = "contract"
    HISTORY = "history"
    HEAD = "head"


@dataclass(slots=True)
class GatewayRules:
    """Who is connected, and which requests are open.

    A head timestamp request stays open until it is cancelled or its client leaves, answered or
    not (grade O).
    """

    clients: set[int] = field(default_factory=set)
    open_requests: dict[tuple[int, int], Kind] = field(default_factory=dict)

    def join(self, client_id: int) -> ApiError | None:
        """Take a client id, or say why not."""
        if client_id in self.clients:
            return ApiError(326, ID_IN_USE)
        if len(self.clients) >= MAX_CLIENTS:
            return ApiError(502, TOO_MANY_CLIENTS)
        self.clients.add(client_id)
        return None

    def leave(self, client_id: int) -> None:
        """Free a client id and every request it had open."""
        self.clients.discard(client_id)
        for key in [key for key in self.open_requests if key[0] == client_id]:
            del self.open_requests[key]

    def open(self, client_id: int, request_id: int, kind: Kind) -> ApiError | None:
        """Count a request as open, or say why it may not be."""
        key = (client_id, request_id)
        if key in self.open_requests:
            if kind is Kind.HISTORY:
                return ApiError(386, DUPLICATE_HISTORY, request_id)
            return ApiError(322, DUPLICATE, request_id)
        if kind is not Kind.CONTRACT and self._open_history() >= MAX_OPEN:
            return ApiError(322, TOO_MANY_OPEN, request_id)
        self.open_requests[key] = kind
        return None

    def close(self, client_id: int, request_id: int, kind: Kind) -> bool:
        """Free a request's slot; say whether it was open as that kind."""
        key = (client_id, request_id)
        if self.open_requests.get(key) is not kind:
            return False
        del self.open_requests[key]
        return True

    def _open_history(self) -> int:
        return sum(kind is not Kind.CONTRACT for kind in self.open_requests.values())
