"""What a conversation wants done: the values a ``ClientSession`` returns and a server performs."""

from dataclasses import dataclass

from ktrdr_pipelines.simulator.messages import DataRequest
from ktrdr_pipelines.simulator.replies import ApiError


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Serve:
    """Compute the answer of a request that is now open."""

    request: DataRequest


@dataclass(frozen=True, slots=True)
class Refuse:
    """A request that was not opened: its error is to be sent and recorded."""

    request: DataRequest
    error: ApiError


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop what is left of a request that was cancelled; ``error`` is what is said to that."""

    request_id: int
    error: ApiError | None


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection once everything is sent."""


Action = Send | Serve | Refuse | Abandon | Close
