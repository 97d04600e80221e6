"""The findings about a gateway's set-up as values: verdict, finding and hint of each check.

Not here: making the checks (``ib.diagnostics.doctor``), printing (``cli.commands.gateway``).
"""

from dataclasses import dataclass
from enum import StrEnum

from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    ContractUnknownError,
    EntitlementError,
    GatewayError,
    GatewayTimeoutError,
    OutageError,
)
from ktrdr_pipelines.ib.connection.notices import LANGUAGE_HINT, ZONE_HINT
from ktrdr_pipelines.ib.protocol.error_codes import is_other_session
from ktrdr_pipelines.ib.protocol.transport import NO_LISTENER, DisconnectReason, TransportError
from ktrdr_pipelines.limits import IbLimitsRegistry

CLOCK_WRONG_S, CLOCK_ODD_S = 60.0, 5.0
"""Seconds between two clocks that break loading, and that are worth a note."""

_LOGIN = (
    "Check the gateway's window: log in, and answer its dialogs. During its nightly reset (North "
    "America 00:15 to 01:45 New York time, Europe 06:25 to 07:45 CET) wait until it is over"
)


class CheckVerdict(StrEnum):
    """The result of a check."""

    GOOD = "good"
    NOTE = "note"
    WRONG = "WRONG"
    UNKNOWN = "not seen"


class Name(StrEnum):
    """The checks, in order: each one presupposes those before it."""

    PORT = "port"
    HANDSHAKE = "handshake"
    VERSION = "version"
    CLIENT_ID = "client id"
    CLOCK = "clock"
    ZONE = "time zone"
    LANGUAGE = "language"
    FARMS = "data farms"
    CONTRACTS = "contracts"
    SESSION = "session"
    PERMISSIONS = "market data"
    BARS = "bars"
    READ_ONLY = "read-only"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the result; ``hint`` is empty if nothing has to be done."""

    name: Name
    verdict: CheckVerdict
    finding: str
    hint: str = ""


def good(name: Name, finding: str) -> Check:
    """Return a check that found nothing wrong."""
    return Check(name, CheckVerdict.GOOD, finding)


def wrong(name: Name, finding: str, hint: str) -> Check:
    """Return a check that found something wrong, with a hint how to fix it."""
    return Check(name, CheckVerdict.WRONG, finding, hint)


def no_connection(error: GatewayError, port: int, others: dict[str, int]) -> list[Check]:
    """Return the checks that explain why no connection was made.

    Args:
        error: the error of connecting.
        port: the port that was tried.
        others: other open ports of that host where gateways usually listen, by kind.
    """
    cause = error.__cause__
    disconnect_reason = cause.disconnect_reason if isinstance(cause, TransportError) else None
    if disconnect_reason in NO_LISTENER:
        return [_closed_port(error, port, others)]
    if disconnect_reason is None and isinstance(error, ClientIdInUseError):
        return [_id_taken(error)]
    open_port = good(Name.PORT, f"something listens at port {port}")
    if isinstance(error, ClientIdInUseError):
        return [open_port, good(Name.HANDSHAKE, "the API responds"), _id_taken(error)]
    if disconnect_reason is None and isinstance(error, GatewayTimeoutError):
        finding = "the gateway accepts the connection but does not tell its time"
        return [
            open_port,
            good(Name.HANDSHAKE, "the API responds"),
            wrong(Name.CLOCK, finding, _LOGIN),
        ]
    if disconnect_reason is DisconnectReason.VERSION:
        return [open_port, wrong(Name.VERSION, error.reason, error.hint)]
    return [open_port, _no_handshake(disconnect_reason, error, port)]


def clock(offset_s: float) -> Check:
    """Return the check of how far the gateway's clock is ahead of this machine's."""
    finding = f"the gateway's clock is {offset_s:+.0f} s relative to this machine's"
    if abs(offset_s) > CLOCK_WRONG_S:
        hint = "Set both clocks by NTP: due requests and final bars depend on the time"
        return wrong(Name.CLOCK, finding, hint)
    if abs(offset_s) > CLOCK_ODD_S:
        return Check(Name.CLOCK, CheckVerdict.NOTE, finding)
    return good(Name.CLOCK, finding)


def zone(unknown: tuple[str, ...]) -> Check:
    """Return the check of the time zone names that the gateway used and that are unknown."""
    if not unknown:
        return good(Name.ZONE, "all time zones that the gateway uses are known")
    named = ", ".join(name or "none" for name in unknown)
    finding = f"the gateway uses unknown time zones: {named}"
    return Check(Name.ZONE, CheckVerdict.NOTE, finding, ZONE_HINT)


def language(foreign_text: str) -> Check:
    """Return the check of the gateway's language, by a text that is not English, if any."""
    if not foreign_text:
        return good(Name.LANGUAGE, "the gateway's messages are in English")
    finding = f"the gateway's messages seem not to be English: {foreign_text}"
    return Check(Name.LANGUAGE, CheckVerdict.NOTE, finding, LANGUAGE_HINT)


def farms(troubles: tuple[str, ...], states: tuple[str, ...]) -> Check:
    """Return the check of the gateway's own connections."""
    if troubles:
        return wrong(Name.FARMS, "; ".join(troubles), _LOGIN)
    finding = ", ".join(states) if states else "the gateway reported none"
    is_good = states and not any(state.endswith("broken") for state in states)
    return Check(Name.FARMS, CheckVerdict.GOOD if is_good else CheckVerdict.NOTE, finding)


def client_id(used: int, first: int) -> Check:
    """Return the check of client ids; a later one than the first shows another client."""
    if used == first:
        return good(Name.CLIENT_ID, f"{used} is free")
    finding = f"{used} works; those from {first} on are in use or were refused recently"
    return Check(Name.CLIENT_ID, CheckVerdict.NOTE, finding)


def pausing(left_s: float) -> Check:
    """Return the check for a pause after a pacing violation: no data were requested."""
    finding = (
        "not checked: the gateway received too many requests, and every process pauses for "
        f"{left_s:.0f} s more"
    )
    hint = "Run this again afterwards. Other programs at the same login share the same limits"
    return wrong(Name.CONTRACTS, finding, hint)


def no_contract(error: GatewayError) -> Check:
    """Return the check for a failed contract request of a well-known stock."""
    if isinstance(error, GatewayTimeoutError | OutageError):
        finding = f"connected, but no response about a well-known stock: {error.reason}"
        return wrong(Name.CONTRACTS, finding, _LOGIN)
    if isinstance(error, ContractUnknownError):
        return wrong(Name.CONTRACTS, f"a well-known stock is unknown: {error.reason}", _LOGIN)
    return wrong(Name.CONTRACTS, str(error), _LOGIN)


def no_bars(error: GatewayError) -> Check:
    """Return the check for a failed request for bars."""
    if not isinstance(error, EntitlementError):
        no_answer = isinstance(error, GatewayTimeoutError | OutageError)
        hint = _LOGIN if no_answer else error.hint or "Try again in a few minutes"
        return wrong(Name.BARS, error.reason or str(error), hint)
    if is_other_session(error.code, error.reason):
        hint = (
            "Log out the other TWS, gateway, phone or web session of this user, or give this one "
            "a user of its own: only one session of a login receives data"
        )
        return wrong(Name.SESSION, f"another session receives the data: {error.reason}", hint)
    return wrong(Name.PERMISSIONS, error.reason, error.hint)


def no_data(message: str) -> Check:
    """Return the check for a gateway without bars of a stock that trades every day."""
    return wrong(Name.BARS, f"no bars of a well-known stock: {message}", _LOGIN)


def _closed_port(error: GatewayError, port: int, others: dict[str, int]) -> Check:
    finding = error.reason or f"nothing listens at port {port}"
    if not others:
        return wrong(Name.PORT, finding, error.hint)
    shown = ", ".join(f"{number} ({kind})" for kind, number in others.items())
    first = next(iter(others.values()))
    return wrong(
        Name.PORT,
        f"{finding}; open on that host: {shown}",
        f"Set IB_PORT={first}, or another of these, if that is the intended gateway",
    )


def _id_taken(error: GatewayError) -> Check:
    return wrong(Name.CLIENT_ID, error.reason or str(error), error.hint)


def _no_handshake(
    disconnect_reason: DisconnectReason | None, error: GatewayError, port: int
) -> Check:
    finding = error.reason or str(error)
    if disconnect_reason is not DisconnectReason.CLOSED:
        return wrong(Name.HANDSHAKE, finding, error.hint)
    if port in IbLimitsRegistry.CONTAINER_PORTS.value.values():
        hint = (
            "This port is the forwarder of a container: it listens, but the gateway behind it "
            "does not. Check the container's log: still starting, wrong password, or waiting for "
            "the second factor"
        )
        return wrong(Name.HANDSHAKE, finding, hint)
    hint = (
        "In the gateway under Configure, Settings, API: enable socket clients, and add this "
        "machine's address to the trusted ones (or allow connections from elsewhere than "
        "localhost). A gateway that is not logged in behaves the same way"
    )
    return wrong(Name.HANDSHAKE, finding, hint)
