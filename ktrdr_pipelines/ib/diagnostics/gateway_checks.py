"""What a look at a gateway found, as values: verdict, finding and hint for each check.

Not here: looking (``ib.diagnostics.doctor``), printing (``cli.commands.gateway``).
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
"""Seconds between two clocks that spoil loading, and that are worth a word."""

_LOGIN = (
    "Look at the gateway's window: log it in, answer what it asks. In its nightly reset (North "
    "America 00:15 to 01:45 New York time, Europe 06:25 to 07:45 CET) wait until that is over"
)


class Verdict(StrEnum):
    """How a check went."""

    GOOD = "good"
    NOTE = "note"
    WRONG = "WRONG"
    UNKNOWN = "not seen"


class Name(StrEnum):
    """The checks, in the order in which one makes sense only after the others."""

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
    """One line of the result; ``hint`` is empty where nothing has to be done."""

    name: Name
    verdict: Verdict
    finding: str
    hint: str = ""


def good(name: Name, finding: str) -> Check:
    """Say that a check went well."""
    return Check(name, Verdict.GOOD, finding)


def wrong(name: Name, finding: str, hint: str) -> Check:
    """Say what is wrong and how to fix it."""
    return Check(name, Verdict.WRONG, finding, hint)


def no_connection(error: GatewayError, port: int, others: dict[str, int]) -> list[Check]:
    """Say why no connection came about.

    Args:
        error: what connecting ended with.
        port: the port that was tried.
        others: other known ports of that host that are open, by what they usually are.
    """
    cause = error.__cause__
    disconnect_reason = cause.disconnect_reason if isinstance(cause, TransportError) else None
    if disconnect_reason in NO_LISTENER:
        return [_closed_port(error, port, others)]
    if disconnect_reason is None and isinstance(error, ClientIdInUseError):
        return [_id_taken(error)]
    open_port = good(Name.PORT, f"something listens at port {port}")
    if isinstance(error, ClientIdInUseError):
        return [open_port, good(Name.HANDSHAKE, "the API answers"), _id_taken(error)]
    if disconnect_reason is None and isinstance(error, GatewayTimeoutError):
        finding = "it accepts the connection and does not even tell the time"
        return [
            open_port,
            good(Name.HANDSHAKE, "the API answers"),
            wrong(Name.CLOCK, finding, _LOGIN),
        ]
    if disconnect_reason is DisconnectReason.VERSION:
        return [open_port, wrong(Name.VERSION, error.reason, error.hint)]
    return [open_port, _no_handshake(disconnect_reason, error, port)]


def clock(offset_s: float) -> Check:
    """Judge how far the gateway's clock is ahead of this machine's."""
    finding = f"the gateway's clock is {offset_s:+.0f} s against this machine's"
    if abs(offset_s) > CLOCK_WRONG_S:
        hint = "Set both clocks by NTP: what is due and what is final depends on the time"
        return wrong(Name.CLOCK, finding, hint)
    if abs(offset_s) > CLOCK_ODD_S:
        return Check(Name.CLOCK, Verdict.NOTE, finding)
    return good(Name.CLOCK, finding)


def zone(unknown: tuple[str, ...]) -> Check:
    """Judge the names of time zones that the gateway wrote and that are not known."""
    if not unknown:
        return good(Name.ZONE, "every time zone that it names is known")
    named = ", ".join(name or "none" for name in unknown)
    finding = f"it names times by a zone that is not known: {named}"
    return Check(Name.ZONE, Verdict.NOTE, finding, ZONE_HINT)


def language(foreign_text: str) -> Check:
    """Judge the language of the gateway by a text of it that is not English, or by none."""
    if not foreign_text:
        return good(Name.LANGUAGE, "its messages are in English")
    finding = f"it seems not to speak English: {foreign_text}"
    return Check(Name.LANGUAGE, Verdict.NOTE, finding, LANGUAGE_HINT)


def farms(troubles: tuple[str, ...], states: tuple[str, ...]) -> Check:
    """Judge what the gateway says of its own connections."""
    if troubles:
        return wrong(Name.FARMS, "; ".join(troubles), _LOGIN)
    told = ", ".join(states) if states else "the gateway told of none"
    is_good = states and not any(state.endswith("broken") for state in states)
    return Check(Name.FARMS, Verdict.GOOD if is_good else Verdict.NOTE, told)


def client_id(used: int, first: int) -> Check:
    """Say which id works; a later one than the first shows a neighbour."""
    if used == first:
        return good(Name.CLIENT_ID, f"{used} is free")
    finding = f"{used} works; those from {first} on are taken or were refused a moment ago"
    return Check(Name.CLIENT_ID, Verdict.NOTE, finding)


def pausing(left_s: float) -> Check:
    """Say that nothing about data was asked, because everybody pauses."""
    finding = f"not asked: the gateway was asked too much, and everybody waits {left_s:.0f} s more"
    hint = "Look again then. Other programs at the same login use up the same allowance"
    return wrong(Name.CONTRACTS, finding, hint)


def no_contract(error: GatewayError) -> Check:
    """Say what it means that a question about a well-known stock came to nothing."""
    if isinstance(error, GatewayTimeoutError | OutageError):
        finding = f"connected, and no answer about a well-known stock: {error.reason}"
        return wrong(Name.CONTRACTS, finding, _LOGIN)
    if isinstance(error, ContractUnknownError):
        return wrong(Name.CONTRACTS, f"a well-known stock is unknown: {error.reason}", _LOGIN)
    return wrong(Name.CONTRACTS, str(error), _LOGIN)


def no_bars(error: GatewayError) -> Check:
    """Say what it means that bars were not to be had."""
    if not isinstance(error, EntitlementError):
        no_answer = isinstance(error, GatewayTimeoutError | OutageError)
        hint = _LOGIN if no_answer else error.hint or "Try again in a few minutes"
        return wrong(Name.BARS, error.reason or str(error), hint)
    if is_other_session(error.code, error.reason):
        hint = (
            "Log out the other TWS, gateway, phone or web session of this user, or give this one "
            "a user of its own: a login has one session that gets data"
        )
        return wrong(Name.SESSION, f"another session has the data: {error.reason}", hint)
    return wrong(Name.PERMISSIONS, error.reason, error.hint)


def no_data(message: str) -> Check:
    """Say what it means that a gateway has no bars of a stock that trades every day."""
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
        f"Set IB_PORT={first}, or another of these, if that is the gateway you mean",
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
            "This is the forwarder of a container: it listens, and the gateway behind it does "
            "not. Look at the container's log: still starting, wrong password, or waiting for "
            "the second factor"
        )
        return wrong(Name.HANDSHAKE, finding, hint)
    hint = (
        "In the gateway under Configure, Settings, API: enable socket clients, and add this "
        "machine's address to the trusted ones (or allow connections from elsewhere than "
        "localhost). A gateway that is not logged in does the same"
    )
    return wrong(Name.HANDSHAKE, finding, hint)
