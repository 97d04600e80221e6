"""Why no connection came about: a typed error with a remedy for each ending.

Not here: connecting (``ib.connection``), errors of a connection that is there (``ib.codes``).
"""

from ktrdr_pipelines.errors import (
    ClientIdInUseError,
    GatewayError,
    GatewaySilentError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.leases import HELD_REMEDY
from ktrdr_pipelines.ib.wire import Ending, WireError

_MOST_NAMED = 5


def connect_error(config: GatewayConfig, client_id: int, error: WireError) -> GatewayError:
    """Translate why no connection came about."""
    asked = f"connect to {config.gateway} as client {client_id}"
    kind, remedy = _CONNECT_ERRORS[error.ending]
    made = kind(asked, came=str(error), remedy=remedy.format(port=config.port))
    if error.ending is Ending.VERSION:
        made.retry = False
    if error.ending is Ending.ID_IN_USE:
        made.code = 326
    return made


def ids_refused(config: GatewayConfig, client_ids: list[int]) -> ClientIdInUseError:
    """Make the error of a walk over client ids that the gateway called "in use" one by one."""
    shown = ", ".join(map(str, client_ids[-_MOST_NAMED:]))
    named = f"client id{'s' if len(client_ids) > 1 else ''} {shown}"
    if len(client_ids) > _MOST_NAMED:
        named = f"{len(client_ids)} client ids, of them {shown},"
    return ClientIdInUseError(
        f"connect to {config.gateway}",
        came=f"{named} {'are' if len(client_ids) > 1 else 'is'} in use",
        remedy=HELD_REMEDY,
        code=326,
    )


_START = (
    "Start IB Gateway or TWS, log in, and enable the API on port {port}; without an account, "
    "use 'ktrdr simulate --port {port}'."
)
_CONNECT_ERRORS: dict[Ending, tuple[type[GatewayError], str]] = {
    Ending.NO_NAME: (
        GatewayUnreachableError,
        "Check IB_HOST: it is the name or the address of a machine, without a port.",
    ),
    Ending.REFUSED: (GatewayUnreachableError, _START),
    Ending.NO_ROUTE: (
        GatewayUnreachableError,
        "Check IB_HOST, IB_PORT and the firewall. " + _START,
    ),
    Ending.CLOSED: (
        GatewayUnreachableError,
        "Log the gateway in, and look at its API settings: it may not trust this address.",
    ),
    Ending.SILENT: (
        GatewaySilentError,
        "The gateway hangs, is in its nightly reset, or waits for a click: look at its window.",
    ),
    Ending.ID_IN_USE: (ClientIdInUseError, HELD_REMEDY),
    Ending.GARBAGE: (GatewayUnreachableError, "Check IB_PORT: something else listens there."),
    Ending.VERSION: (
        GatewayUnreachableError,
        "Install a gateway that speaks versions 157 to 178, such as the current stable one.",
    ),
    Ending.ASKED: (GatewayUnreachableError, ""),
}
