"""``ktrdr up``: Dagster's web UI and daemon over the store, with a gateway to ask.

Not here: Dagster's processes (``cli.dagster_services``), the look at a gateway
(``cli.commands.gateway``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Annotated, Any, Final

import typer

from ktrdr_pipelines.cli.output import AsJson, note, say, say_json
from ktrdr_pipelines.errors import GatewayUnreachableError

if TYPE_CHECKING:
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.dagster_services import Web
    from ktrdr_pipelines.settings import Settings
    from ktrdr_pipelines.store.layout import StoreLayout

HOW_TO_GET_ONE: Final = """\
Get one in one of these ways:

  IB Gateway or TWS, logged in: in Configure, Settings, API, Settings
    enable ActiveX and Socket Clients (TWS only; IB Gateway has it on)
    set the socket port: 4002 for a paper account, 4001 for a live one (TWS: 7497, 7496)
    trust the address 127.0.0.1, and leave Read-Only API ticked: nothing here sends orders
    then say which: export IB_HOST=127.0.0.1 IB_PORT=4002

  IB Gateway in a container, for a paper account:
    docker run -e TWS_USERID=... -e TWS_PASSWORD=... -e TRADING_MODE=paper \\
      -e READ_ONLY_API=yes -p 127.0.0.1:4002:4004 ghcr.io/gnzsnz/ib-gateway:stable

  No account: ktrdr up --simulate

Then ktrdr health shows whether it answers"""

_SIMULATOR_PORT: Final = 4102
"""Where the simulated gateway is tried first, so that what the store knows of it keeps counting."""


def up(
    simulated: Annotated[
        bool,
        typer.Option(
            "--simulate", help="Use a simulated gateway, and a store of its own: data/simulated."
        ),
    ] = False,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port of the web UI.")] = 3000,
    as_json: AsJson = False,
) -> None:
    """Start Dagster's web UI and daemon over the store, until you stop it.

    The store is made where there is none. A gateway must answer first.

    Exit codes: 0 you stopped it, 1 it could not start, or Dagster ended by itself, 2 bad usage.
    """
    from ktrdr_pipelines.app.setup import prepare_home
    from ktrdr_pipelines.cli.dagster_services import dagster_web
    from ktrdr_pipelines.cli.entry_point import Stopped
    from ktrdr_pipelines.cli.processes import require_free
    from ktrdr_pipelines.settings import load_settings

    require_free("--port", port)
    try:
        with _gateway(load_settings(), simulated=simulated) as workspace:
            home = prepare_home(workspace.layout)
            log = workspace.layout.state / "dagster.log"
            with (
                _only_one(workspace.layout) as alone,
                dagster_web(home, log, port, _variables(workspace), keeping=alone) as web,
            ):
                if not as_json:
                    note("starting Dagster's web UI and daemon ...")
                plan = _backlog(workspace)
                web.wait_until_ready()
                _say_ready(workspace, web, plan, as_json=as_json)
                web.wait()
    except Stopped:
        if not as_json:
            say("stopped; what was saved is kept")


@contextmanager
def _only_one(layout: "StoreLayout") -> "Iterator[int]":
    """Refuse a second Dagster over one store; gives a lock that Dagster is to keep open.

    Two daemons would ask for everything twice. One lock lasts as long as this process, the other
    as long as anything of its Dagster: where a killed command left that behind, it is ended first.

    Raises:
        StoreError: another `ktrdr up` works on this store, or a Dagster that cannot be ended.
    """
    from ktrdr_pipelines.cli.watchdog import end_group
    from ktrdr_pipelines.errors import StoreError
    from ktrdr_pipelines.store.files import disk_errors, require_file

    own, dagster = layout.lock("up"), layout.lock("dagster")
    attempt = f"start Dagster over {layout.root}"
    require_file(own)
    require_file(dagster)
    with disk_errors(own), own.open("a") as command_file, dagster.open("a+") as dagster_file:
        if not _take(command_file):
            raise StoreError(
                attempt,
                reason="another `ktrdr up` works on this store",
                hint=f"Use that one, or end it; `fuser {own}` names its process",
            )
        if not _take(dagster_file):
            if group := _group_in(dagster_file):
                note("ending the Dagster that a killed `ktrdr up` left behind ...")
                end_group(group)
            if not _take(dagster_file):
                raise StoreError(
                    attempt,
                    reason="a Dagster that another `ktrdr up` left behind works on this store",
                    hint=f"End it; `fuser {dagster}` names its processes",
                )
        dagster_file.truncate(0)
        yield dagster_file.fileno()


def _take(file: IO[str]) -> bool:
    """Lock a file for as long as it is open anywhere; False where another has the lock."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _group_in(file: IO[str]) -> int | None:
    """Read the process group that a running Dagster wrote into its lock's file."""
    file.seek(0)
    text = file.read().strip()
    return int(text) if text.isdecimal() else None


@contextmanager
def _gateway(settings: "Settings", *, simulated: bool) -> "Iterator[Workspace]":
    """Give the store with a gateway that answers, while the context lasts."""
    from ktrdr_pipelines.cli.processes import is_free, simulator_process
    from ktrdr_pipelines.settings import data_folder

    folder = data_folder(settings)
    if not simulated:
        yield _workspace(settings.model_copy(update={"ktrdr_data": folder}), origin=None)
        return
    wish = _SIMULATOR_PORT if is_free(_SIMULATOR_PORT) else 0
    with simulator_process(port=wish, now=settings.clock.moved_now()) as port:
        own = {"ib_host": "127.0.0.1", "ib_port": port, "ktrdr_data": folder / "simulated"}
        yield _workspace(settings.model_copy(update=own), origin="simulated")


def _workspace(settings: "Settings", *, origin: str | None) -> "Workspace":
    """Make sure of the store and of the gateway."""
    from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
    from ktrdr_pipelines.cli.output import warn_of_problem
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.settings import data_folder

    kind = None if origin is None else Origin(origin)
    workspace, was_made = make_workspace(
        settings, data_folder(settings), kind, example=UNIVERSE_EXAMPLE
    )
    if was_made:
        note(f"made the store {workspace.layout.root} with a universe to edit")
    warn_of_problem(workspace)
    _require_gateway(workspace)
    return workspace


def _require_gateway(workspace: "Workspace") -> None:
    """Refuse to start without a gateway that answers, and whose bars the store may take.

    Raises:
        GatewayUnreachableError: nothing listens there; the text says how to get one.
        GatewayError: something listens and is no gateway that can be used.
        ForeignIdentityError: the store holds bars of another origin.
    """
    from ktrdr_pipelines.cli.commands.gateway import check_health
    from ktrdr_pipelines.cli.entry_point import run_stoppable
    from ktrdr_pipelines.domain.instruments import Origin
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.store.layout import refuse_other_origin

    found = run_stoppable(check_health(GatewayConfig.from_settings(workspace.settings)))
    if found.error is not None:
        if found.tcp is not False:
            raise found.error
        reason = found.error.reason or str(found.error)
        raise GatewayUnreachableError(
            f"no gateway answers at {found.gateway}", reason=reason, hint=HOW_TO_GET_ONE
        )
    if found.origin is not None:
        refuse_other_origin(workspace.layout, Origin(found.origin))
    for trouble in found.troubles:
        note(f"Trouble at the gateway: {trouble}")


def _variables(workspace: "Workspace") -> dict[str, str]:
    """Give the settings that Dagster's processes must share with this one."""
    settings = workspace.settings
    return {
        "IB_HOST": settings.ib_host,
        "IB_PORT": str(settings.ib_port),
        "KTRDR_DATA": str(workspace.layout.root),
        "KTRDR_STATE": str(settings.ktrdr_state),
        "KTRDR_CLOCK_OFFSET_S": repr(settings.ktrdr_clock_offset_s),
    }


def _backlog(workspace: "Workspace") -> str:
    """Say what the sensors will load, where it is much; empty where it is not."""
    from ktrdr_pipelines.gaps.due_chunks import backlog_plan, measured_backlog
    from ktrdr_pipelines.gaps.index import open_gap_index
    from ktrdr_pipelines.ib.config import GatewayConfig

    config, now = GatewayConfig.from_settings(workspace.settings), workspace.now
    index = open_gap_index(workspace.layout, config.gateway)
    found = index.series_gaps(workspace.universe.series(), now)
    is_big = measured_backlog(found).is_big
    return backlog_plan(index, found, config, now) if is_big else ""


def _say_ready(workspace: "Workspace", web: "Web", plan: str, *, as_json: bool) -> None:
    settings = workspace.settings
    told: dict[str, Any] = {
        "url": web.url,
        "store": str(workspace.layout.root),
        "gateway": f"{settings.ib_host}:{settings.ib_port}",
        "log": str(web.log),
        "backlog": plan or None,
    }
    if as_json:
        say_json(told, lines=False)
        return
    say(f"Dagster   {web.url}   (Ctrl-C ends it)")
    say(f"store     {told['store']}")
    say(f"gateway   {told['gateway']}")
    say(f"log       {told['log']}")
    say(f"sensors   {web.url}/automation: gaps and tails are loaded by themselves")
    if plan:
        say(f"backlog   {plan}")
    say("Elsewhere, ktrdr sees the same with:")
    say(f"  export KTRDR_DATA={told['store']} IB_PORT={settings.ib_port}")
