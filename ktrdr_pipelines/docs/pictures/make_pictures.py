"""Make the pictures of the README and the docs anew, from a simulated gateway.

    python -m pip install -e '.[pictures]'
    python -m ktrdr_pipelines.docs.pictures.make_pictures [demo] [heatmap] [plot] [dagster]
        [catalog] [width]

It needs Chromium or Chrome, and takes about five minutes. Stores and state lie in a temporary
folder, everything listens on loopback only, and all processes that it starts are ended. ``demo``
is the output of ``ktrdr demo`` in a terminal, ``heatmap`` that of ``ktrdr gaps --plot`` over a
store with gaps, ``plot`` that of ``ktrdr plot`` around one of them, ``dagster`` an asset of that
store in the web UI, and ``catalog`` the asset that shows how complete it is. ``width`` is the
number of requests in flight over time, from a simulation that needs neither of these.
"""

import argparse
import fcntl
import html
import io
import json
import os
import pty
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from ktrdr_pipelines.cli.processes import HOST, end, start, watched
from ktrdr_pipelines.defs.asset_specs import HEATMAP_PATH
from ktrdr_pipelines.docs.pictures.width_figure import width_figure
from ktrdr_pipelines.errors import KtrdrError

if TYPE_CHECKING:
    from playwright.sync_api import Page

HERE: Final = Path(__file__).parent

BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names of programs that playwright can drive, as packages install them."""

BROWSER_OPTIONS: Final = (
    "--no-sandbox",  # which is not available to root in a container
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

COLUMNS: Final = 96
"""Width of the terminal; the widest line of the demo's output is a little shorter."""

_LINES: Final = 120
"""Height of the terminal: more than the demo prints, so that nothing scrolls out of it."""

_SIZE: Final = {"width": 1280, "height": 800}
_TERMINAL_COLOURS: Final = 64
_UI_COLOURS: Final = 128
"""Colours of a saved screenshot: enough for text and icons, at a third of the size."""

_SPINNER_MS: Final = 5_000
"""How long the UI may show that it loads more; it shows this beside what it has."""

_COMMAND_S: Final = 600.0
_READY_S: Final = 180.0
_POLL_S: Final = 1.0

UNIVERSE: Final = """\
defaults: {timeframes: [1h], start: 2019-01-01, backfill: manual}
windows: {yearly: 2019}
symbols:
  AAPL: {}
  AMZN: {}
  EURUSD: {}
  GBPUSD: {}
  HSBA: {primary_exchange: LSE}
  IBM: {}
  JPM: {}
  MSFT: {}
  NVDA: {}
  SPY: {}
  TSLA: {start: 2022-01-01}
  USDJPY: {}
  VOD: {primary_exchange: LSE}
  XOM: {}
"""

BLOCKED: Final = ("VOD",)

FAULTS: Final = """\
faults:
  - {fault: error, code: 354, text: Requested market data is not subscribed., symbol: VOD}
"""

LOADS: Final = (
    (("AAPL", "EURUSD", "MSFT"), "2019-01-01", None),
    (("GBPUSD", "IBM"), "2021-01-01", None),
    (("AMZN", "JPM"), "2023-01-01", None),
    (("TSLA",), "2022-01-01", None),
    (("HSBA", "NVDA", "SPY"), "2025-01-01", None),
    (("SPY",), "2020-02-12", "2022-05-20"),
    (("XOM",), "2026-03-12", None),
    (BLOCKED, "2026-01-01", None),
)
"""What is loaded into the store: symbols, and the session dates from and to."""

PLOTTED: Final = ("SPY", "1h", "2022-05-02", "2025-01-16")
"""The series whose chart is a picture, and its session dates, around what was not loaded."""

MATERIALIZED: Final = ("AMZN", "2024")
"""The window whose metadata the picture of Dagster shows."""


class PicturesError(KtrdrError):
    """The pictures could not be made."""


@dataclass(frozen=True, slots=True)
class Glyph:
    """A character of a terminal, and how it is shown."""

    text: str
    colour: str = "default"
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """A temporary folder in which commands run as in a clone, with the store in ``data``."""

    root: Path

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a command: of this process, less its settings."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
        return kept | {"KTRDR_STATE": str(self.root / "state")}

    def shortened(self, output: bytes) -> bytes:
        """Return output with paths as seen from this folder."""
        return output.replace(f"{self.root}/".encode(), b"")


_SETTINGS: Final = ("KTRDR_", "IB_", "DAGSTER_")


def command(*arguments: str) -> list[str]:
    """Return the command line of ``ktrdr`` in this Python."""
    return [sys.executable, "-m", "ktrdr_pipelines.cli.main", *arguments]


def make_demo(folder: Folder, browser: Path) -> bytes:
    """Return the picture of a terminal in which ``ktrdr demo`` ran."""
    output = terminal_output(command("demo"), folder)
    rows = screen_rows(b"\x1b[32m$\x1b[0m ktrdr demo\r\n" + folder.shortened(output))
    with browser_tab(browser, scale=2) as tab:
        tab.set_content(terminal_html(rows))
        image: bytes = tab.locator("pre").screenshot()
    return image


def terminal_output(arguments: Sequence[str], folder: Folder) -> bytes:
    """Return what a command prints to a terminal, control sequences included.

    Raises:
        PicturesError: the command failed, or did not end in time.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, COLUMNS, 0, 0))
    variables = folder.variables | {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
    process = start(arguments, cwd=folder.root, env=variables, output=its)
    os.close(its)
    output = bytearray()
    ends_s = time.monotonic() + _COMMAND_S
    try:
        with watched(process), suppress(OSError):  # EIO, once the terminal is closed
            while select.select([ours], [], [], max(0.0, ends_s - time.monotonic()))[0]:
                output += os.read(ours, 65536)
        if time.monotonic() < ends_s:
            process.wait()
    finally:
        end(process)
        os.close(ours)
    if process.returncode:
        raise PicturesError(
            f"cannot show `{' '.join(arguments[-1:])}`", reason=output.decode(errors="replace")
        )
    return bytes(output)


def screen_rows(output: bytes) -> list[list[Glyph]]:
    """Return the rows of a terminal after this output, up to the last one with text."""
    import pyte  # noqa: PLC0415  (of the extra ``pictures``)

    screen = pyte.Screen(COLUMNS, _LINES)
    pyte.ByteStream(screen).feed(output)
    rows = [
        [Glyph(at.data, at.fg, at.bold) for at in (screen.buffer[row][x] for x in range(COLUMNS))]
        for row in range(_LINES)
    ]
    while rows and not "".join(cell.text for cell in rows[-1]).strip():
        rows.pop()
    return rows


INK: Final = {
    "default": "#d7dae0",
    "black": "#5c6370",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#ffffff",
}
"""The colours of a terminal by the names of pyte; others are given as hexadecimal numbers."""


def terminal_html(rows: Sequence[Sequence[Glyph]]) -> str:
    """Return a page that shows rows of a terminal."""
    lines = []
    for row in rows:
        line = ""
        for (colour, bold), cells in groupby(row, key=lambda cell: (cell.colour, cell.bold)):
            text = html.escape("".join(cell.text for cell in cells))
            weight = ";font-weight:bold" if bold else ""
            line += f'<span style="color:{INK.get(colour, f"#{colour}")}{weight}">{text}</span>'
        lines.append(line)
    style = (
        "display:inline-block;margin:0;padding:14px 18px;background:#21252b;"
        'font:13px/1.3 "DejaVu Sans Mono",monospace'
    )
    text = "\n".join(lines)
    return f"<pre style='{style}'>{text}</pre>"


@contextmanager
def filled_store(folder: Folder) -> Iterator[dict[str, str]]:
    """Make a store with gaps; yield the environment for commands, with a simulated gateway.

    The gateway lacks the permission for one symbol.
    """
    faults = folder.root / "faults.yaml"
    faults.write_text(FAULTS)
    (folder.root / "data").mkdir()
    (folder.root / "data" / "universe.yaml").write_text(UNIVERSE)
    serving = command("simulate", "--port", "0", "--faults", str(faults), "--json")
    with service(serving, folder, folder.variables) as gateway:
        variables = folder.variables | {"IB_HOST": HOST, "IB_PORT": str(gateway["port"])}
        run("init", folder=folder, variables=variables)
        for symbols, first, last in LOADS:
            codes = {1, 3} if symbols == BLOCKED else {0, 3}
            dates = ["--start", first, *([] if last is None else ["--end", last])]
            names = ",".join(symbols)
            run("load", names, "1h", *dates, folder=folder, variables=variables, codes=codes)
        yield variables


def run(
    *arguments: str, folder: Folder, variables: Mapping[str, str], codes: Container[int] = (0,)
) -> None:
    """Run a command of ``ktrdr``.

    Raises:
        PicturesError: it ended with another exit code than these.
    """
    done = subprocess.run(  # noqa: S603  (the project's own commands)
        command(*arguments),
        cwd=folder.root,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_COMMAND_S,
        check=False,
    )
    if done.returncode not in codes:
        raise PicturesError(f"ktrdr {' '.join(arguments)}", reason=done.stdout + done.stderr)


@contextmanager
def service(
    arguments: Sequence[str], folder: Folder, variables: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Run a command that serves until it is stopped; yield the document that it prints first.

    Raises:
        PicturesError: it printed none in time.
    """
    process = start(arguments, cwd=folder.root, env=variables, output=subprocess.PIPE)
    try:
        with watched(process):
            assert process.stdout is not None  # noqa: S101  (started with a pipe)
            is_ready = bool(select.select([process.stdout], [], [], _READY_S)[0])
            line = process.stdout.readline() if is_ready else b""
            document: dict[str, Any] = json.loads(line) if line.startswith(b"{") else {}
            if not document or "error" in document:
                raise PicturesError(
                    f"cannot start `ktrdr {arguments[3]}`",
                    reason=line.decode() or f"it was not ready within {_READY_S:g} s",
                )
            yield document
    finally:
        end(process)


def make_heatmap(folder: Folder, variables: Mapping[str, str]) -> bytes:
    """Return the heatmap of a store, as ``ktrdr gaps --plot`` draws it."""
    path = folder.root / "heatmap.png"
    run("gaps", "--plot", str(path), folder=folder, variables=variables, codes=(3,))
    return path.read_bytes()


def make_plot(folder: Folder, variables: Mapping[str, str]) -> bytes:
    """Return the chart of a series around a gap, as ``ktrdr plot`` draws it."""
    path = folder.root / "plot.png"
    dates = ("--start", PLOTTED[2], "--end", PLOTTED[3])
    run("plot", *PLOTTED[:2], *dates, "--out", str(path), folder=folder, variables=variables)
    return path.read_bytes()


def make_dagster(
    names: Container[str], folder: Folder, variables: Mapping[str, str], browser: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield the chosen screenshots of the UI of ``ktrdr up``, with their names."""
    port = str(free_port())
    with service(command("up", "--port", port, "--json"), folder, variables) as dagster:
        wait_for_windows(dagster["url"], complete_windows(datetime.now(UTC).year))
        with browser_tab(browser) as tab:
            tab.set_default_timeout(_READY_S * 1000)
            if "dagster" in names:
                yield "dagster", partitions_screenshot(tab, dagster["url"])
            if "catalog" in names:
                yield "catalog", catalog_screenshot(tab, dagster["url"])


def partitions_screenshot(tab: "Page", url: str) -> bytes:
    """Return a screenshot of the partitions of ``bars/1h``."""
    symbol, window = MATERIALIZED
    tab.goto(f"{url}/assets/bars/1h?view=partitions&partition={symbol}%7C{window}")
    # The list of partitions and the metadata of the chosen one come separately.
    tab.get_by_text(re.compile(r"Materialized \([1-9]")).wait_for()
    tab.get_by_text("dagster/partition_row_count").wait_for()
    tab.wait_for_timeout(_SPINNER_MS)
    image: bytes = tab.screenshot(animations="disabled")
    return image


def catalog_screenshot(tab: "Page", url: str) -> bytes:
    """Return a screenshot of ``bars_catalog``, once its materialization has drawn the heatmap."""
    address = f"{url}/assets/bars_catalog?view=overview"
    tab.goto(address)
    tab.locator("button", has_text="Materialize").first.click()
    ends_s = time.monotonic() + _READY_S
    while tab.request.get(f"{url}{HEATMAP_PATH}").headers["content-type"] != "image/png":
        if time.monotonic() > ends_s:
            reason = "the catalog was not materialized in time"
            raise PicturesError("cannot show the catalog in Dagster", reason=reason)
        tab.wait_for_timeout(_POLL_S * 1000)
    tab.goto(address)
    tab.get_by_role("img", name="Coverage of each series").wait_for()
    tab.wait_for_timeout(_SPINNER_MS)
    image: bytes = tab.screenshot(animations="disabled")
    return image


def complete_windows(year: int) -> int:
    """Return how many yearly windows the loads complete at least, up to the one of a year."""
    return sum(
        len(symbols) * (year - int(first[:4]) + 1)
        for symbols, first, last in LOADS
        if first.endswith("-01-01") and last is None and symbols != BLOCKED
    )


WINDOWS: Final = """
{ assetNodeOrError(assetKey: {path: ["bars", "1h"]}) {
    ... on AssetNode { partitionStats { numMaterialized } } } }
"""


def wait_for_windows(url: str, expected: int) -> None:
    """Wait until ``report_sensor`` has materialized so many windows.

    Raises:
        PicturesError: there are fewer after a few of its ticks.
    """
    ends_s = time.monotonic() + _READY_S
    while True:
        body = json.dumps({"query": WINDOWS}).encode()
        request = urllib.request.Request(  # noqa: S310  (our own loopback URL)
            f"{url}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            found = json.load(reply)["data"]["assetNodeOrError"]
        number = int((found.get("partitionStats") or {}).get("numMaterialized") or 0)
        if number >= expected:
            return
        if time.monotonic() > ends_s:
            reason = f"{number} windows are materialized, {expected} should be"
            raise PicturesError("cannot show an asset in Dagster", reason=reason)
        time.sleep(_POLL_S)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def find_browser(wanted: Path | None) -> Path:
    """Return the program to drive: the one that is wanted, or the first that is installed.

    Raises:
        PicturesError: there is none; the hint says what to install.
    """
    names = BROWSERS if wanted is None else (str(wanted),)
    for name in names:
        if found := shutil.which(name):
            return Path(found)
    raise PicturesError(
        "cannot make the pictures",
        reason=f"no browser is installed: {', '.join(names)}",
        hint="Install Chromium (Debian and Ubuntu: apt install chromium), or give the path of "
        "Chromium or Chrome with --browser",
    )


@contextmanager
def browser_tab(browser: Path, *, scale: float = 1) -> "Iterator[Page]":
    """Yield an empty tab of a browser, which is ended afterwards."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  (of the extra ``pictures``)

    with sync_playwright() as playwright:
        driven = playwright.chromium.launch(executable_path=browser, args=list(BROWSER_OPTIONS))
        try:
            yield driven.new_page(
                viewport={"width": _SIZE["width"], "height": _SIZE["height"]},
                device_scale_factor=scale,
                timezone_id="UTC",
                locale="en-US",
            )
        finally:
            driven.close()


def small(image: bytes, colours: int) -> bytes:
    """Return a screenshot with few colours, as a PNG file."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(image)) as opened:
        few = opened.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    few.save(file, format="PNG", optimize=True)
    return file.getvalue()


def require_extra() -> None:
    """Refuse to begin without the packages of the extra.

    Raises:
        PicturesError: one cannot be imported.
    """
    try:
        import playwright.sync_api  # noqa: F401, PLC0415
        import pyte  # noqa: F401, PLC0415
    except ImportError as error:
        raise PicturesError(
            "cannot make the pictures",
            reason=f"{error.name} is not installed",
            hint="Run python -m pip install -e '.[pictures]'",
        ) from error


def make(names: Sequence[str], browser: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the chosen pictures with their names."""
    if "width" in names:
        yield "width", small(width_figure(), _UI_COLOURS)
    if "demo" in names:
        with temporary_folder() as folder:
            yield "demo", small(make_demo(folder, browser), _TERMINAL_COLOURS)
    if {"heatmap", "plot", "dagster", "catalog"} & {*names}:
        with temporary_folder() as folder, filled_store(folder) as variables:
            if "heatmap" in names:
                yield "heatmap", make_heatmap(folder, variables)
            if "plot" in names:
                yield "plot", make_plot(folder, variables)
            if {"dagster", "catalog"} & {*names}:
                for name, image in make_dagster(names, folder, variables, browser):
                    yield name, small(image, _UI_COLOURS)


@contextmanager
def temporary_folder() -> Iterator[Folder]:
    """Yield a folder that looks like a clone to the commands, and remove it."""
    with tempfile.TemporaryDirectory() as path:
        folder = Folder(Path(path).resolve())
        (folder.root / "workspace.yaml").touch()
        yield folder


NAMES: Final = ("demo", "heatmap", "plot", "dagster", "catalog", "width")


def main() -> None:
    """Make the pictures that the command line names, or all."""
    parser = argparse.ArgumentParser(description="Make the pictures of the README and the docs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--into", type=Path, default=HERE, help="the folder for the pictures")
    parser.add_argument("--browser", type=Path, help="Chromium or Chrome; found if not given")
    chosen = parser.parse_args()
    if unknown := {*chosen.names} - {*NAMES}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    try:
        browser = Path()
        if {*chosen.names} != {"width"}:
            require_extra()
            browser = find_browser(chosen.browser)
        for name, image in make(chosen.names or NAMES, browser):
            path = chosen.into / f"{name}.png"
            path.write_bytes(image)
            print(f"{path}: {len(image) / 1024:.0f} KiB")  # noqa: T201  (a program)
    except PicturesError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
