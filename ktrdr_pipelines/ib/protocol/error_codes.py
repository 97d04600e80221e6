"""The meaning of the gateway's error frames: a typed error with a hint, or a notice.

Not here: the classes of codes (``limits``), handling the errors (``ib.connection.connection``).

Source: https://interactivebrokers.github.io/tws-api/message_codes.html
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ktrdr_pipelines.errors import (
    BadAnswerError,
    BarSizeRefusedError,
    ClientIdInUseError,
    ConnectionLostError,
    ContractAmbiguousError,
    ContractUnclearError,
    ContractUnknownError,
    EntitlementError,
    GatewayError,
    GatewayUnreachableError,
    OutageError,
    PacingError,
    RequestRejectedError,
    RequestTooLongError,
)
from ktrdr_pipelines.limits import CodeClass, IbLimitsRegistry

NO_REQUEST = -1
"""The request id of a frame that concerns the whole connection."""

_UNCLEAR_TEXT_HINT = (
    "The text is not English, so the refusal cannot be classified reliably: set the gateway's "
    "language to English in its login window."
)
_FARM_LEFT, _COMPETING, _DISCLAIMER = 165, 10197, 10141
_SIZE_REFUSED = "bar size setting is invalid"
_SIZES = re.compile(r"\b\d+ ?[A-Za-z]+(?:\s*,\s*\d+ ?[A-Za-z]+){3,}\b", re.ASCII)
"""A list of bar sizes: four or more, so that no two numbers in a sentence look like one."""
_DURATION = re.compile(r"\d+ ?[SDWMY]", re.ASCII)
"""An item of a list of durations, not of bar sizes: ``86400 S, 365 D, 52 W, 12 M``."""

_ENGLISH = re.compile(
    r"\b(?:the|is|are|has|been|for|not|should|of|connectivity|farm|invalid|expected|specified)\b",
    re.IGNORECASE,
)
"""Words of which every English text of the codes below contains at least one."""

_ENGLISH_BEGINNINGS = {
    162: ("historical market data service", "historical data request"),
    165: ("historical market data service",),
    321: ("error validating request",),
    322: ("error processing request",),
}
_IN_ENGLISH = frozenset({200, 354, 1100, 1101, 1102, 2103, 2104, 2105, 2106, 2107, 2108, 2157})
"""Codes whose texts show the language of a gateway: every login receives some of them."""


class NoDataError(RequestRejectedError):
    """The gateway has no data for a request; ``ib.source`` turns it into a value."""


class QueryDroppedError(GatewayError):
    """The gateway dropped a query that was not cancelled; the connection to it stays."""

    retry = True


@dataclass(frozen=True, slots=True)
class ErrorFrame:
    """One error frame: the request it names (or ``NO_REQUEST``), its code and its text."""

    request_id: int
    code: int
    text: str

    @property
    def code_class(self) -> CodeClass:
        """The class of the code."""
        return IbLimitsRegistry.class_of(self.code, self.text)

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()


def is_english(frame: ErrorFrame) -> bool:
    """Return whether a text is from a gateway that speaks English, as far as its code shows it.

    A gateway translates the text before the words of IB's servers: ``Mensaje de error de los
    servicios de datos de mercado históricos:invalid step: 1`` (162), ``Es wurde keine
    Wertpapierdefinition zu der Anfrage gefunden`` (200). An empty text shows no language.

    Source: https://github.com/wrighter/ib-scripts/issues/1 and
    https://github.com/pst-group/pysystemtrade/issues/1270 (grade L).
    """
    if not frame.text.strip():
        return True
    if (beginning := _ENGLISH_BEGINNINGS.get(frame.code)) is not None:
        return frame.text.casefold().startswith(beginning)
    return frame.code not in _IN_ENGLISH or bool(_ENGLISH.search(frame.text))


def error_frame(fields: list[str]) -> ErrorFrame:
    """Read the fields of message 4.

    Raises:
        ValueError: the fields are not those of an error frame.
    """
    _, _, request_id, code, text, *_ = fields
    return ErrorFrame(int(request_id), int(code), text)


def is_other_session(code: int | None, text: str) -> bool:
    """Return whether a refusal means that another session of the login receives the data."""
    return code == _COMPETING or "different ip" in text.casefold()


def concerns_session(code: int | None, text: str) -> bool:
    """Return whether a refusal concerns the whole session, and may be over in minutes."""
    return code == _DISCLAIMER or is_other_session(code, text)


def lasting_outage(what: str, lost_link: str) -> OutageError:
    """Return the error of a request that waited too long for the gateway's connection to IB."""
    return OutageError(
        what,
        reason=f"the gateway has no connection to IB: {lost_link}",
        hint="It is requested again when the gateway has reconnected.",
        code=1100,
    )


def lasting_farm_outage(what: str, trouble: str) -> OutageError:
    """Return the error of a request whose route got no response to its probes.

    ``trouble`` is the gateway's message about its data farm.
    """
    return OutageError(
        what,
        reason=f"no response to the probes of its route, and the gateway says: {trouble}",
        hint="It is requested again when the farm is connected, or a probe gets a response.",
    )


def error_for(frame: ErrorFrame, what: str) -> GatewayError | None:
    """Return the error that ends a request, or None if the frame is a mere notice."""
    if is_size_refused(frame):
        return _made(BarSizeRefusedError, frame, what, "Another string for the bar size is tried.")
    make = _MAKERS.get(frame.code_class)
    return None if make is None else make(frame, what)


def is_size_refused(frame: ErrorFrame) -> bool:
    """Return whether a refusal concerns the bar size string: of 321, or of 162 (grade L).

    The text before may be in any language, but the list of sizes is not translated. A refusal of
    the duration does not count, whatever it lists.
    """
    if frame.code_class not in {CodeClass.REJECTED, CodeClass.RETRY}:
        return False
    return _SIZE_REFUSED in frame.text.casefold() or bool(sizes_listed(frame.text))


def sizes_listed(text: str) -> tuple[str, ...]:
    """Return the bar sizes that a refusal lists (``1 secs, 5 secs, ..., 1 day, 1W, 1M``)."""
    found = _SIZES.search(text)
    listed = tuple(one.strip() for one in found[0].split(",")) if found else ()
    return () if all(map(_DURATION.fullmatch, listed)) else listed


def _pacing(frame: ErrorFrame, what: str) -> GatewayError:
    return _made(PacingError, frame, what, "Every process pauses before its next request.")


def _other(frame: ErrorFrame, what: str) -> GatewayError:
    if frame.code == 322:
        hint = "Another program uses the gateway's 50 open requests; this one is repeated later."
        return _made(PacingError, frame, what, hint)
    hint = "It is requested again." if is_english(frame) else _UNCLEAR_TEXT_HINT
    return _made(BadAnswerError, frame, what, hint)


def _no_data(frame: ErrorFrame, what: str) -> GatewayError:
    return _made(NoDataError, frame, what, "")


def _cancelled(frame: ErrorFrame, what: str) -> GatewayError:
    """Return the error of "cancelled" and "no such query" for a pending request.

    A request that this program cancels is no longer pending when the gateway confirms that, so
    this one was dropped by the gateway.
    """
    return _made(QueryDroppedError, frame, what, "It is requested again after a pause.")


def _rejected(frame: ErrorFrame, what: str) -> GatewayError:
    if "no historical market data for" in frame.text.casefold():
        hint = "Set another what_to_show in the universe: TRADES does not exist for currencies."
    elif frame.code == 166:
        hint = (
            "The contract has expired. Say so in the universe: 'ktrdr universe set SYMBOL "
            "ended=true'; its bars stay and can be queried. 'ktrdr universe retire SYMBOL' "
            "removes it."
        )
    else:
        hint = "The same request would be refused again; check the symbol in the universe."
    return _made(RequestRejectedError, frame, what, hint)


def _too_long(frame: ErrorFrame, what: str) -> GatewayError:
    return _made(RequestTooLongError, frame, what, "Less is requested at a time from now on.")


def _contract(frame: ErrorFrame, what: str) -> GatewayError:
    text = frame.text.casefold()
    if "ambiguous" in text:
        hint = "Set primary_exchange, currency or con_id in the universe."
        return _made(ContractAmbiguousError, frame, what, hint)
    hint = (
        "Check symbol, sec_type, exchange, primary_exchange and currency in the universe, and of a "
        "future last_trade_date, which may be before the third Friday, and is known for about two "
        "years; during the gateway's nightly reset this can be wrong: try again after it."
    )
    if "no security definition" in text:
        return _made(ContractUnknownError, frame, what, hint)
    if not is_english(frame):
        hint = f"{_UNCLEAR_TEXT_HINT} {hint}"
    return _made(ContractUnclearError, frame, what, hint)


def _entitlement(frame: ErrorFrame, what: str) -> GatewayError:
    if frame.code == _DISCLAIMER:
        hint = "Accept the paper trading disclaimer in the gateway's window, then try again."
    elif is_other_session(frame.code, frame.text):
        hint = "Another session of this login receives the data: close it, then try again."
    else:
        hint = (
            "The account needs a Level 1 market data subscription for this exchange, or the "
            "right to use it through the API (Client Portal, Market Data Subscriptions)."
        )
    return _made(EntitlementError, frame, what, hint)


def _connection(frame: ErrorFrame, what: str) -> GatewayError:
    if frame.code == 326:
        hint = "Close the other program, or set another range of client ids (IB_CLIENT_ID_*)."
        return _made(ClientIdInUseError, frame, what, hint)
    if frame.code == _FARM_LEFT:
        return _made(OutageError, frame, what, "It is requested again on the same connection.")
    if frame.code == 502:
        return _made(GatewayUnreachableError, frame, what, "Start the gateway and log in.")
    return _made(ConnectionLostError, frame, what, "It is requested again on a new connection.")


def _pause(frame: ErrorFrame, what: str) -> GatewayError:
    return _made(OutageError, frame, what, "It is requested again when the outage is over.")


def _made(kind: type[GatewayError], frame: ErrorFrame, what: str, hint: str) -> GatewayError:
    return kind(what, reason=str(frame).rstrip("."), hint=hint, code=frame.code)


_MAKERS: dict[CodeClass, Callable[[ErrorFrame, str], GatewayError]] = {
    CodeClass.RETRY: _other,
    CodeClass.PACING: _pacing,
    CodeClass.NO_DATA: _no_data,
    CodeClass.CANCELLED: _cancelled,
    CodeClass.REJECTED: _rejected,
    CodeClass.TOO_LONG: _too_long,
    CodeClass.CONTRACT: _contract,
    CodeClass.ENTITLEMENT: _entitlement,
    CodeClass.CONNECTION: _connection,
    CodeClass.PAUSE: _pause,
}
