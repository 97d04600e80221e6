"""``ktrdr up`` and ``ktrdr serve``: run Dagster with a gateway over the store, or the REST API.

Not here: Dagster's processes (``cli.processes``, ``cli.dagster_services``), the lock that admits
one Dagster to a store (``app.services.dagster_lock``), checking the gateway
(``app.services.gateway_monitor``), the routes of the REST API and their rules (``api``).
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ktrdr_pipelines.cli.output import AsJson, note, say, say_json
from ktrdr_pipelines.errors import ExitCode, GatewayUnreachableError, UsageError

if TYPE_CHECKING:
    import socket

    from ktrdr_pipelines.api.access import AccessRules
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.processes import SimulatorProcess, WebProcess
    from ktrdr_pipelines.gaps.estimates import Estimate
    from ktrdr_pipelines.settings import Settings
    from ktrdr_pipelines.store.layout import StoreLayout

HOW_TO_GET_A_GATEWAY: Final = """\
Set up a gateway in one of these ways:

  IB Gateway or TWS, logged in: in Configure, Settings, API, Settings
    enable ActiveX and Socket Clients (TWS only; IB Gateway has it on)
    set the socket port: 4002 for a paper account, 4001 for a live one (TWS: 7497, 7496)
    trust the address 127.0.0.1, and leave Read-Only API checked: ktrdr sends no orders
    then set its address: export IB_HOST=127.0.0.1 IB_PORT=4002

  IB Gateway in a container: use an image that logs in by itself, with the API read-only
    publish the port of its API on this machine alone: docker run -p 127.0.0.1:4002:PORT ...

  No account: ktrdr up --simulate

Then check it with ktrdr health"""

_TWO: Final = "Choose two different ports with --port and --serve-port"

_SIMULATOR_PORT: Final = 4102
"""The preferred port of the simulated gateway: the store keeps facts per host and port."""

_SWITCH_S: Final = 0.001
"""How long a thread may run while others wait: a status waits for each of them several times."""


def up(
    *,
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulate", help="Use a simulated gateway, with a separate store in data/simulated."
        ),
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the web UI.")] = 3000,
    with_rest: Annotated[
        bool, typer.Option("--serve", help="Serve the REST API, too, as `ktrdr serve` does.")
    ] = False,
    serve_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port of the REST API.")
    ] = 8000,
    accepted: Annotated[
        bool,
        typer.Option("--yes", help="Load the example universe as it is, if you did not edit it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run Dagster's web UI and daemon over the store until you stop them.

    With --serve, the REST API runs beside them; if it exits by itself, Dagster goes on. The store
    must exist (`ktrdr init`); --simulate makes its own. A gateway must respond before Dagster
    starts. A store without bars is not loaded before you have edited the example universe.

    Exit codes: 0 you stopped it, 1 it could not start, or Dagster or the simulated gateway exited,
    2 bad usage.
    """
    from ktrdr_pipelines.app.setup import accept_example, prepare_home, waits_for_universe
    from ktrdr_pipelines.cli.entry_point import Stopped
    from ktrdr_pipelines.cli.processes import dagster_process, require_free, rest_process

    require_free("--port", port)
    if with_rest:
        if serve_port == port:
            raise UsageError(
                f"--serve-port {serve_port}", reason="the web UI has the same port", hint=_TWO
            )
        require_free("--serve-port", serve_port)
    try:
        with _workspace(simulated=simulated) as (workspace, needed):
            home = prepare_home(workspace.layout)
            log = workspace.layout.state / "dagster.log"
            variables = _variables(workspace)
            with ExitStack() as stack:
                lock = stack.enter_context(_only_one(workspace.layout))
                if accepted and waits_for_universe(workspace.layout):
                    accept_example(workspace.layout)
                dagster = stack.enter_context(
                    dagster_process(home, log, port, variables, keeping=lock)
                )
                beside = []
                if with_rest:
                    rest_log = workspace.layout.state / "rest.log"
                    beside.append(
                        stack.enter_context(rest_process(rest_log, serve_port, variables))
                    )
                if not as_json:
                    note("starting Dagster's web UI and daemon ...")
                for one in (*beside, dagster):
                    one.wait_until_ready()
                # Not meanwhile: it takes a core of those that start.
                plan = _backlog(workspace, waits=waits_for_universe(workspace.layout))
                _say_ready(workspace, dagster, beside, plan, as_json=as_json)
                dagster.wait(beside, lambda error: note(f"Error: {error}"), needed=needed)
    except Stopped:
        if not as_json:
            say("stopped; what was saved is kept")


@contextmanager
def _only_one(layout: "StoreLayout") -> "Iterator[int]":
    """Refuse a second Dagster over one store; yield a lock that Dagster must keep open.

    Two daemons would request everything twice. One lock lasts as long as this process, the other
    as long as any process of its Dagster. If a killed command left a Dagster behind, it is ended.

    Raises:
        StoreError: another `ktrdr up` uses this store, or a Dagster that cannot be ended.
    """
    from ktrdr_pipelines.app.services.dagster_lock import NAME, take
    from ktrdr_pipelines.cli.processes import end_group
    from ktrdr_pipelines.errors import StoreError
    from ktrdr_pipelines.store.files import disk_errors, require_file

    own, dagster = layout.lock("up"), layout.lock(NAME)
    attempt = f"start Dagster over {layout.root}"
    require_file(own)
    require_file(dagster)
    with disk_errors(own), own.open("a") as command_file, dagster.open("a+") as dagster_file:
        if not take(command_file):
            raise StoreError(
                attempt,
                reason="another `ktrdr up` is using this store",
                hint=f"Use that one, or stop it; `fuser {own}` shows its process",
            )
        if not take(dagster_file):
            dagster_file.seek(0)
            group = dagster_file.read().strip()  # written there by Dagster's main process
            if group.isdecimal() and int(group):
                note("stopping the Dagster that a killed `ktrdr up` left behind ...")
                end_group(int(group))
            if not take(dagster_file):
                raise StoreError(
                    attempt,
                    reason="`dagster dev`, or a Dagster that another `ktrdr up` left behind, is "
                    "using this store",
                    hint=f"Stop it; `fuser {dagster}` shows its processes",
                )
        dagster_file.truncate(0)
        yield dagster_file.fileno()


@contextmanager
def _workspace(*, simulated: bool) -> "Iterator[tuple[Workspace, list[SimulatorProcess]]]":
    """Yield the workspace of a gateway that responds, while the context lasts.

    The store exists, or is made for a simulated gateway, which runs as long as the context.
    """
    from ktrdr_pipelines.cli.output import warn_of_problem
    from ktrdr_pipelines.cli.processes import HOST, is_free, simulator_process
    from ktrdr_pipelines.settings import load_settings

    settings = load_settings()
    own: dict[str, Any] = {}
    needed: list[SimulatorProcess] = []
    with ExitStack() as stack:
        if simulated:
            free_port = _SIMULATOR_PORT if is_free(_SIMULATOR_PORT) else 0
            gateway = simulator_process(port=free_port, now=settings.clock.moved_now())
            needed.append(stack.enter_context(gateway))
            own = {"ib_host": HOST, "ib_port": needed[0].port}
        workspace = _simulated_store(settings, own) if simulated else _existing_store(settings)
        warn_of_problem(workspace)
        _require_gateway(workspace)
        yield workspace, needed


def _simulated_store(settings: "Settings", own: dict[str, Any]) -> "Workspace":
    """Return the store of simulated bars with these settings of the gateway; make it if needed."""
    from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.settings import data_folder, effective_settings

    folder = data_folder(settings) / "simulated"
    used = effective_settings(flags={**own, "ktrdr_data": folder})
    workspace, was_made = make_workspace(used, folder, Origin.SIMULATED, example=UNIVERSE_EXAMPLE)
    if was_made:
        note(f"created the store {workspace.layout.root} with an example universe to edit")
    return workspace


def _existing_store(settings: "Settings") -> "Workspace":
    """Return the store of the settings, with its catalog renewed.

    Raises:
        NoStoreError: there is none: a mistyped folder must not become a store that is then loaded.
        UniverseError: it has no universe, or a malformed one without an earlier copy.
    """
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.settings import data_folder, effective_settings

    workspace = Workspace.open(effective_settings(flags={"ktrdr_data": data_folder(settings)}))
    workspace.renew_catalog()
    return workspace


def _require_gateway(workspace: "Workspace") -> None:
    """Refuse to start unless a gateway responds whose bars the store accepts.

    Raises:
        GatewayUnreachableError: nothing listens at the address; the hint says how to set one up.
        GatewayError: something listens that cannot be used as a gateway.
        ForeignIdentityError: the store holds bars of another origin.
    """
    from ktrdr_pipelines.app.services.gateway_monitor import check_health
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.store.layout import refuse_other_origin

    report = run_stoppable(check_health(workspace.gateway_config))
    found = report.document
    if report.error is not None:
        if found.tcp is not False:
            raise report.error
        reason = report.error.reason or str(report.error)
        raise GatewayUnreachableError(
            f"no gateway responds at {found.gateway}", reason=reason, hint=HOW_TO_GET_A_GATEWAY
        )
    if found.origin is not None:
        refuse_other_origin(workspace.layout, Origin(found.origin))
    for trouble in found.troubles:
        note(f"Problem at the gateway: {trouble}")


def _variables(workspace: "Workspace") -> dict[str, str]:
    """Return the environment variables that Dagster's processes share with this one.

    Host and port are those of the simulated gateway. Of any other gateway they are not passed on:
    the processes read them from the environment or from the store's file, which may change.
    """
    from ktrdr_pipelines.settings import Source, settings_sources

    settings = workspace.settings
    sources = settings_sources(settings)
    gateway = {"ib_host": settings.ib_host, "ib_port": str(settings.ib_port)}
    fixed = {name.upper(): one for name, one in gateway.items() if sources[name] is Source.FLAG}
    return {
        **fixed,
        "KTRDR_DATA": str(workspace.layout.root),
        "KTRDR_STATE": str(settings.ktrdr_state),
        "KTRDR_CLOCK_OFFSET_S": repr(settings.ktrdr_clock_offset_s),
    }


def _backlog(workspace: "Workspace", *, waits: bool) -> "Estimate | None":
    """Return what loading takes that the sensors will do; None unless it is much or waits."""
    from ktrdr_pipelines.gaps.due_chunks import backlog_estimate, measured_backlog

    index, now = workspace.gap_index(), workspace.now
    found = index.series_gaps(workspace.universe.series(), now)
    if not (waits or measured_backlog(found).is_big):
        return None
    return backlog_estimate(index, found, workspace.gateway_config, now)


def _say_ready(
    workspace: "Workspace",
    dagster: "WebProcess",
    beside: "Sequence[WebProcess]",
    plan: "Estimate | None",
    *,
    as_json: bool,
) -> None:
    from ktrdr_pipelines.app.setup import waits_for_universe
    from ktrdr_pipelines.app.views.load_documents import BacklogDocument
    from ktrdr_pipelines.app.views.service_documents import UpDocument
    from ktrdr_pipelines.gaps.due_chunks import backlog_text
    from ktrdr_pipelines.settings import Source, settings_sources

    settings, waits = workspace.settings, waits_for_universe(workspace.layout)
    document = UpDocument(
        complete=True,
        exit_code=int(ExitCode.DONE),
        url=dagster.url,
        store=str(workspace.layout.root),
        gateway=f"{settings.ib_host}:{settings.ib_port}",
        log=str(dagster.log),
        backlog=None if plan is None else BacklogDocument.of(plan),
        waits_for_universe=waits,
        rest_url=beside[0].url if beside else None,
    )
    if as_json:
        say_json(document, lines=False)
        return
    say(f"Dagster   {dagster.url}   (Ctrl-C stops it)")
    if beside:
        say(f"REST API  {beside[0].url}/docs")
    say(f"store     {document.store}")
    say(f"gateway   {document.gateway}")
    say(f"log       {document.log}")
    say(f"sensors   {dagster.url}/automation: gaps and tails are loaded automatically")
    if plan is not None:
        say(f"backlog   {backlog_text(plan, waits=waits)}")
    if waits:
        say(f"waiting   {workspace.layout.universe} is still the example: nothing is loaded yet")
        say("          edit it to choose your symbols, and loading begins within a minute; or stop")
        say("          this and run `ktrdr up --yes` to load the example as it is")
    say("To use this store and gateway in another terminal:")
    # A variable would fix what the store's file of settings says, which may change meanwhile.
    is_in_file = settings_sources(settings)["ib_port"] is Source.FILE
    port = "" if is_in_file else f" IB_PORT={settings.ib_port}"
    say(f"  export KTRDR_DATA={document.store}{port}")


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
    from ktrdr_pipelines.app.views.service_documents import ServeDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.cli.output import warn_of_problem

    sys.setswitchinterval(_SWITCH_S)
    workspace = Workspace.open()
    warn_of_problem(workspace)
    address = Address(rules.host, listener.getsockname()[1])

    def ready() -> None:
        found = ServeDocument(
            complete=True,
            exit_code=int(ExitCode.DONE),
            url=address.url,
            host=address.host,
            port=address.port,
            store=str(workspace.layout.root),
            token_required=rules.token is not None,
        )
        if as_json:
            say_json(found, lines=False)
            return
        say(f"REST API  {address.url}/api/v1   (Ctrl-C stops it)")
        say(f"docs      {address.url}/docs")
        say(f"store     {found.store}")
        if rules.token is not None:
            say("token     required: Authorization: Bearer, with the value of KTRDR_API_TOKEN")

    with open_services() as context:
        run_stoppable(serve(context, rules, listener, ready))
