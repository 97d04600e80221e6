"""One client's session with the gateway, as a state machine without I/O.

Bytes go in, actions come out: a ``ClientSession`` returns them and ``client_connection`` performs
them. Each stage has an entry in ``_TAKE``; a message that does not belong to the current stage is
ignored, as by a real gateway.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.protocol import framing, replies
from ktrdr_pipelines.simulator.protocol.account import AccountDetails, reply_to, start_up
from ktrdr_pipelines.simulator.protocol.languages import localised
from ktrdr_pipelines.simulator.protocol.messages import (
    CancelHead,
    CancelHistory,
    ContractRequest,
    DataRequest,
    HeadRequest,
    HistoryRequest,
    MessageError,
    OrderMessage,
    PlainRequest,
    Request,
    StartApi,
    UnknownMessage,
    decode,
)
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.protocol.time_texts import server_text
from ktrdr_pipelines.simulator.requests.pacing_rules import TOO_MANY_MESSAGES, PacingRule
from ktrdr_pipelines.simulator.requests.request_limits import GatewayRules, Kind, kind_of
from ktrdr_pipelines.simulator.variants import GREETING_ENCODING, Variants


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Serve:
    """Compute and send the response to a request that is now open."""

    request: DataRequest


@dataclass(frozen=True, slots=True)
class Refuse:
    """Record a request that was not opened, and send its error."""

    request: DataRequest
    error: ApiError


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop a request that was cancelled; ``error`` is the response to the cancellation."""

    request_id: int
    error: ApiError | None


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection once everything is sent."""


Action = Send | Serve | Refuse | Abandon | Close


SERVER_VERSIONS = IbLimitsRegistry.SERVER_VERSIONS.value

READ_ONLY = (
    "Error validating request.-'bO' : cause - The API interface is currently in Read-Only mode."
)
UNKNOWN = "Error validating request.-'bK' : cause - Unsupported message type {}."
UNREADABLE = "Server error when reading an API client request. {}"
CANCELLED = "Historical Market Data Service error message:API historical data query cancelled: {}"
NOTHING_TO_CANCEL = "No historical data query found for ticker id:{}"
BAD_LENGTH = "Bad Message Length {}"


class Stage(StrEnum):
    """The stage of a session, from the greeting to the end."""

    GREETING = "greeting"
    VERSION = "version"
    START = "start"
    READY = "ready"
    CLOSED = "closed"


class ClientSession:
    """The gateway's side of one connection.

    Args:
        rules: the rules that all connections of the gateway share.
        account: the account that it announces.
        now: returns the time of the gateway's clock.
        ignores: returns whether a plain request gets no response.
        versions: the lowest and highest server version that it supports.
        variants: how the gateway differs from others.
    """

    def __init__(
        self,
        rules: GatewayRules,
        *,
        account: str,
        now: Callable[[], datetime],
        ignores: Callable[[PlainRequest], bool] = lambda _: False,
        versions: tuple[int, int] = SERVER_VERSIONS,
        variants: Variants = Variants(),  # noqa: B008 - immutable
    ) -> None:
        self._rules = rules
        self._ignores = ignores
        self._account = account
        self._now = now
        self._versions = versions
        self._variants = variants
        self._greeting = b""
        self._frames = framing.FrameReader()
        self._rate = rules.message_rate()
        self.stage = Stage.GREETING
        self.version = versions[1]
        self.client_id: int | None = None

    def __repr__(self) -> str:
        return f"ClientSession(client_id={self.client_id}, {self.stage}, v{self.version})"

    def receive(self, data: bytes) -> list[Action]:
        """Process bytes from the client and return the actions to perform, in order."""
        actions: list[Action] = []
        try:
            for payload in self._frames.feed(self._after_greeting(data)):
                actions += self._take(payload)
        except framing.FrameError as error:
            actions += self._break_off(BAD_LENGTH.format(error))
        return actions

    def leave(self, *, died: bool = False) -> None:
        """Free the client id and the open requests of a client whose socket closed, or ``died``."""
        self.stage = Stage.CLOSED
        if self.client_id is not None:
            self._rules.leave(self.client_id, died=died)
            self.client_id = None

    def error(self, failed: ApiError) -> bytes:
        """Return the frame of an error in the negotiated version and the gateway's language."""
        return replies.error(self.version, localised(self._variants.language, failed))

    def answered(self, request: DataRequest) -> None:
        """Free the slot of a served request; a head timestamp keeps its slot until cancelled."""
        if self.client_id is not None and not isinstance(request, HeadRequest):
            self._rules.close(self.client_id, request.request_id, kind_of(request))

    @property
    def _named_id(self) -> int:
        return -1 if self.client_id is None else self.client_id

    def _take(self, payload: bytes) -> list[Action]:
        """Process one message, unless it exceeds the message rate."""
        if self._rate is None or self.stage is Stage.CLOSED or not self._rate.broken():
            return self._TAKE[self.stage](self, payload)
        self._rules.violated(PacingRule.MESSAGES, self._named_id)
        if not self._rate.is_out:
            return [self._error_frame(100, TOO_MANY_MESSAGES)]
        self.stage = Stage.CLOSED
        return [self._error_frame(100, TOO_MANY_MESSAGES), Close()]

    def _after_greeting(self, data: bytes) -> bytes:
        """Return the bytes after the greeting: four bytes before the first frame."""
        if self.stage is not Stage.GREETING:
            return data
        self._greeting += data
        greeting = self._greeting[: len(framing.GREETING)]
        if not framing.GREETING.startswith(greeting):
            raise framing.FrameError(f"no greeting: {greeting!r}")
        if len(greeting) < len(framing.GREETING):
            return b""
        self.stage = Stage.VERSION
        return self._greeting[len(framing.GREETING) :]

    def _break_off(self, text: str) -> list[Action]:
        """Close the connection; a client that completed the handshake is sent the reason."""
        can_read = self.stage in {Stage.START, Stage.READY}
        if self.stage is Stage.CLOSED:
            return []
        self.stage = Stage.CLOSED
        return [self._error_frame(507, text), Close()] if can_read else [Close()]

    def _take_version(self, payload: bytes) -> list[Action]:
        lowest, highest = framing.parse_versions(payload)
        least, most = self._versions
        version = min(highest, most)
        if version < max(lowest, least):
            self.stage = Stage.CLOSED
            return [Close()]
        self.version, self.stage = version, Stage.START
        variants = self._variants
        since = server_text(self._now(), variants.login_zone, variants.greeting_zone)
        return [Send(replies.handshake(version, since, GREETING_ENCODING))]

    def _take_start(self, payload: bytes) -> list[Action]:
        request = self._decoded(payload)
        if isinstance(request, Send):
            return [request]
        if not isinstance(request, StartApi):
            return []
        refused = self._rules.join(request.client_id)
        if refused is not None:
            self.stage = Stage.CLOSED
            return [Send(self.error(refused)), Close()]
        self.client_id, self.stage = request.client_id, Stage.READY
        return [Send(start_up(self.version, self._details()))]

    def _take_request(self, payload: bytes) -> list[Action]:
        actions: list[Action] = []
        match self._decoded(payload):
            case Send() as error:
                actions = [error]
            case ContractRequest() | HeadRequest() | HistoryRequest() as request:
                refused = self._rules.open(self._named_id, request)
                actions = [Serve(request) if refused is None else Refuse(request, refused)]
            case CancelHistory(request_id):
                actions = self._cancel_history(request_id)
            case CancelHead(request_id):
                if self._closes(request_id, Kind.HEAD):
                    actions = [Abandon(request_id, None)]
            case PlainRequest() as request if not self._ignores(request):
                actions = [Send(reply_to(request, self._details()))]
            case OrderMessage(order_id):
                actions = [self._error_frame(321, READ_ONLY, order_id)]
            case UnknownMessage(type_id):
                actions = [self._error_frame(321, UNKNOWN.format(type_id))]
            case StartApi() | PlainRequest():
                pass
        return actions

    def _details(self) -> AccountDetails:
        return AccountDetails(self._account, int(self._now().timestamp()), self._variants)

    def _decoded(self, payload: bytes) -> Request | Send:
        try:
            return decode(framing.split_fields(payload))
        except MessageError as error:
            return self._error_frame(320, UNREADABLE.format(error))

    def _cancel_history(self, request_id: int) -> list[Action]:
        code, text = 366, NOTHING_TO_CANCEL
        if self._closes(request_id, Kind.HISTORY):
            code, text = 162, CANCELLED
        return [Abandon(request_id, ApiError(code, text.format(request_id), request_id))]

    def _closes(self, request_id: int, kind: Kind) -> bool:
        return self.client_id is not None and self._rules.close(self.client_id, request_id, kind)

    def _error_frame(self, code: int, text: str, request_id: int = replies.NO_REQUEST) -> Send:
        return Send(self.error(ApiError(code, text, request_id)))

    _TAKE: ClassVar[dict[Stage, Callable[["ClientSession", bytes], list[Action]]]] = {
        Stage.VERSION: _take_version,
        Stage.START: _take_start,
        Stage.READY: _take_request,
        Stage.CLOSED: lambda _, __: [],
    }
