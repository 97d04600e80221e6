"""``ktrdr serve``: serve the REST API of the store.

Not here: the routes and their rules (``api``), starting it beside Dagster (``cli.processes``).
"""

import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ktrdr_pipelines.cli.output import AsJson, say, say_json

if TYPE_CHECKING:
    import socket

    from ktrdr_pipelines.api.access import AccessRules

_SWITCH_S: Final = 0.001
"""How long a thread may run while others wait: a status waits for each of them several times."""


def serve(
    *,
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. One that other machines reach needs KTRDR_API_TOKEN."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free port.")
    ] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A further name by which clients call this server; may be repeated. "
            "[default: 127.0.0.1, localhost, ::1 and --host]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the REST API of the store until you stop it.

    /docs describes all requests. With KTRDR_API_TOKEN set, every request needs that token. Loads
    that run when you stop it save what they have received.

    Exit codes: 0 you stopped it, 1 it could not serve, 2 bad usage.
    """
    from ktrdr_pipelines.api.access import AccessRules
    from ktrdr_pipelines.api.rest_server import listening_socket, require_safe
    from ktrdr_pipelines.cli.entry_point import Stopped
    from ktrdr_pipelines.settings import load_settings

    token = load_settings().ktrdr_api_token
    rules = AccessRules(
        host, tuple(allow_host or ()), None if token is None else token.get_secret_value()
    )
    require_safe(rules)
    try:
        with listening_socket(host, port) as listener:
            _serve(rules, listener, as_json=as_json)
    except Stopped:
        if not as_json:
            say("stopped; what was saved is kept")


def _serve(rules: "AccessRules", listener: "socket.socket", *, as_json: bool) -> None:
    from ktrdr_pipelines.api.rest_server import Address, open_services, serve
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.cli.output import warn_of_problem

    sys.setswitchinterval(_SWITCH_S)
    workspace = Workspace.open()
    warn_of_problem(workspace)
    address = Address(rules.host, listener.getsockname()[1])

    def ready() -> None:
        found = {
            "url": address.url,
            "host": address.host,
            "port": address.port,
            "store": str(workspace.layout.root),
            "token_required": rules.token is not None,
        }
        if as_json:
            say_json(found, lines=False)
            return
        say(f"REST API  {address.url}/api/v1   (Ctrl-C stops it)")
        say(f"docs      {address.url}/docs")
        say(f"store     {found['store']}")
        if rules.token is not None:
            say("token     required: Authorization: Bearer, with the value of KTRDR_API_TOKEN")

    with open_services() as context:
        run_stoppable(serve(context, rules, listener, ready))
