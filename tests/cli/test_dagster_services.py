"""The web server of ktrdr up accepts requests of this machine's pages only."""

import base64
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import uvicorn
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import EmptyWorkspaceTarget
from ruamel.yaml import YAML

from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.cli.dagster_services import LOCATION, GuardedWebserver, UniverseReloader
from ktrdr_pipelines.cli.processes import end_reaped, reap
from ktrdr_pipelines.store.layout import create_store

ROOT = Path(__file__).parents[2]
FOREIGN_HOSTS = (
    "evil.com",
    "evil.com:3000",
    "localhost.evil.com",
    "localhost.evil.com:3000",
    "127.0.0.1.evil.com",
    "evil.com:3000@127.0.0.1",
    "user@localhost",
    "localhost.",
    "LOCALHOST",
    "localhost:",
    "localhost:port",
    "localhost:123456",
    "localhost, evil.com",
    "127.1",
    "127.0.0.2",
    "127.0.0.01",
    "0x7f.1",
    "2130706433",
    "0.0.0.0",  # noqa: S104  (a Host, and nothing is bound to it)
    "::1",
    "[::1",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[0:0:0:0:0:0:0:1]",
    "",
)
OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]", "localhost:3000", "127.0.0.1:3000", "[::1]:3000")
FOREIGN_ORIGINS = (
    "http://evil.com",
    "https://evil.com:3000",
    "http://localhost.evil.com",
    "http://localhost@evil.com",
    "http://127.0.0.1.evil.com:3000",
    "http://localhost.:3000",
    "file://",
    "null",
    "",
)
MUTATION = "mutation{setNuxSeen}"
READ = "{version}"
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    "Sec-WebSocket-Protocol": "graphql-ws",
}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run the guarded web server of a Dagster without code on a free loopback port."""
    with (
        dg.DagsterInstance.local_temp(str(tmp_path_factory.mktemp("home"))) as instance,
        WorkspaceProcessContext(instance, EmptyWorkspaceTarget()) as context,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        app = GuardedWebserver(context).create_asgi_app()
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


def send_raw(port: int, *lines: str, body: str = "") -> tuple[int, str]:
    """Send a raw request; return the status and the text after the first line."""
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}"] if body else lines)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(f"{head}\r\n\r\n{body}".encode("latin-1"))
        received = b""
        while b"\r\n\r\n" not in received and (part := client.recv(65536)):
            received += part
        client.settimeout(0.2)
        try:
            while part := client.recv(65536):
                received += part
        except TimeoutError:
            pass
    first, _, rest = received.decode("latin-1").partition("\r\n")
    return int(first.split()[1]), rest


def headers(**values: str) -> list[str]:
    """Return header lines; underscores stand for hyphens."""
    return [f"{name.replace('_', '-')}: {value}" for name, value in values.items()]


def upgrade(port: int, host: str, **others: str) -> tuple[int, str]:
    """Request the websocket of GraphQL subscriptions."""
    lines = [f"{name}: {value}" for name, value in UPGRADE.items()]
    return send_raw(port, "GET /graphql HTTP/1.1", *headers(Host=host, **others), *lines)


def post(port: int, host: str, query: str, **others: str) -> tuple[int, str]:
    """Send a GraphQL query as the UI does."""
    lines = headers(Host=host, Content_Type="application/json", Connection="close", **others)
    return send_raw(port, "POST /graphql HTTP/1.1", *lines, body=json.dumps({"query": query}))


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_requests_to_loopback_names_are_accepted(port: int, host: str) -> None:
    """Pages, queries and websockets are, by every loopback name and any port."""
    assert send_raw(port, "GET / HTTP/1.1", *headers(Host=host, Connection="close"))[0] == 200
    status, text = post(port, host, READ, Origin=f"http://{host}")
    assert status == 200
    assert "version" in text
    assert upgrade(port, host, Origin=f"http://{host}")[0] == 101


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_another_host_is_refused(port: int, host: str) -> None:
    """Other names that resolve to 127.0.0.1 are, and other spellings, for HTTP and websockets."""
    lines = headers(Host=host, Connection="close")
    for path in ("/", "/server_info", "/graphql", "/runs/any"):
        status, text = send_raw(port, f"GET {path} HTTP/1.1", *lines)
        assert (status, "dagster" in text) == (400, False)
    assert post(port, host, READ)[0] == 400
    assert upgrade(port, host)[0] == 400


@pytest.mark.parametrize(
    "lines",
    [
        ("GET /server_info HTTP/1.1",),
        ("GET /server_info HTTP/1.0",),
        ("GET /server_info HTTP/1.1", "Host: localhost", "Host: evil.com"),
        ("GET /server_info HTTP/1.1", "Host: evil.com", "Host: localhost"),
        ("GET /server_info HTTP/1.1", "Host: localhost", "host: localhost"),
    ],
    ids=["none", "none in HTTP 1.0", "own first", "own last", "own twice"],
)
def test_exactly_one_host_header_is_accepted(port: int, lines: tuple[str, ...]) -> None:
    """None or several are refused: servers and proxies disagree on which of them counts."""
    assert send_raw(port, *lines, "Connection: close")[0] == 400


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_requests_of_another_site_are_refused(port: int, origin: str) -> None:
    """The browser names the page in the Origin of queries, forms and websockets."""
    assert post(port, "localhost", READ, Origin=origin)[0] == 400
    assert upgrade(port, "127.0.0.1", Origin=origin)[0] == 400
    form = headers(Host="localhost", Content_Type="text/plain", Connection="close", Origin=origin)
    assert send_raw(port, f"POST /graphql?query={MUTATION} HTTP/1.1", *form, body="x")[0] == 400
    report = "POST /report_asset_materialization/bars/1d HTTP/1.1"
    assert send_raw(port, report, *form, body="x")[0] == 400


def test_an_image_of_another_site_changes_nothing(port: int) -> None:
    """GraphQL over GET executes mutations, and images and frames have no Origin."""
    request = f"GET /graphql?query={MUTATION} HTTP/1.1"
    own = headers(Host="localhost", Connection="close", Sec_Fetch_Site="same-origin")
    status, text = send_raw(port, request, *own)
    assert (status, "setNuxSeen" in text) == (200, True)
    for mode, target in (("no-cors", "image"), ("navigate", "iframe"), ("cors", "empty")):
        fetch = headers(
            Host="localhost",
            Connection="close",
            Sec_Fetch_Site="cross-site",
            Sec_Fetch_Mode=mode,
            Sec_Fetch_Dest=target,
        )
        assert send_raw(port, request, *fetch)[0] == 400


def test_an_image_says_why_there_is_no_heatmap_yet(port: int) -> None:
    """The catalog's page shows it until the catalog is materialized."""
    lines = headers(Host="localhost", Connection="close")
    status, text = send_raw(port, "GET /ktrdr/coverage.png HTTP/1.1", *lines)
    assert (status, "image/svg+xml" in text) == (404, True)


def test_a_link_of_another_site_opens_the_page(port: int) -> None:
    """A user who follows a link gets the UI."""
    link = headers(
        Host="localhost:3000",
        Connection="close",
        Sec_Fetch_Site="cross-site",
        Sec_Fetch_Mode="navigate",
        Sec_Fetch_Dest="document",
        Accept="text/html",
    )
    assert send_raw(port, "GET /runs HTTP/1.1", *link)[0] == 200


def yaml(name: str) -> dict[str, Any]:
    """Return a YAML file of the project."""
    found: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / name).read_text("utf-8"))
    return found


def test_the_code_location_has_one_name() -> None:
    """Switches and cursors of sensors hang on it."""
    [load] = yaml("workspace.yaml")["load_from"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["dg"]["project"]
    assert load["python_module"]["location_name"] == LOCATION == "ktrdr_pipelines.definitions"
    assert project["code_location_name"] == project["code_location_target_module"] == LOCATION


def test_no_file_of_a_clone_overrides_the_home_that_the_user_exports() -> None:
    """Dagster lets a ``.env`` in the current folder override the environment."""
    assert not (ROOT / ".env").exists()
    assert (ROOT / "data" / "dagster" / "dagster.yaml").exists()


@pytest.mark.parametrize("ignores", [False, True])
def test_a_process_that_does_not_end_is_killed_and_reaped(*, ignores: bool) -> None:
    """The main thread never waits inside Popen, where a signal's handler could raise."""
    handler = "SIG_IGN" if ignores else "default_int_handler"
    code = (
        f"import signal, time; signal.signal(signal.SIGINT, signal.{handler}); "
        "print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        reap(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        end_reaped(process, grace_s=0.2 if ignores else 60)
        assert process.returncode == (-signal.SIGKILL if ignores else -signal.SIGINT)


class Reloads:
    """Counts the reloads of the code location."""

    def __init__(self) -> None:
        self.count = 0

    def reload_code_location(self, name: str) -> None:
        """Count a reload."""
        assert name == LOCATION
        self.count += 1


def test_definitions_are_reloaded_for_what_they_lack_alone(tmp_path: Path) -> None:
    """A universe that cannot be read for a while neither counts as one with all timeframes."""
    layout, context = create_store(tmp_path / "data"), Reloads()
    daily = "windows: {yearly: 2020}\nsymbols: {AAPL: {timeframes: [1d]}}"
    hourly = daily.replace("1d", "1d, 1h")

    def reloads_after(text: str) -> int:
        last_good.unlink(missing_ok=True)
        layout.universe.write_text(text, encoding="utf-8")
        before: int = context.count
        for _ in range(2):
            reloader.check(context)  # type: ignore[arg-type]
        return context.count - before

    last_good = universe_file(layout).last_good
    layout.universe.write_text(daily, encoding="utf-8")
    reloader = UniverseReloader(layout.root)
    texts = (daily, "symbols: [", hourly, "symbols: [", hourly, daily)
    assert [reloads_after(text) for text in texts] == [0, 0, 1, 0, 0, 0]
    layout.universe.write_text("symbols: [", encoding="utf-8")
    last_good.unlink(missing_ok=True)
    reloader = UniverseReloader(layout.root)
    assert [reloads_after(text) for text in ("symbols: [", daily, hourly)] == [0, 1, 1]
