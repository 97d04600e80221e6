"""Loads that outlast a gateway which restarts, and what they print when it does not come back."""

import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import running_simulator
from tests.support.held_market import HeldMarket

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")
REAL_ACCOUNT = "DU1"


def is_free(port: int) -> bool:
    """Return whether no server listens at a port; a connection would disturb one that ends."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@contextmanager
def ending_gateway(
    helpers: Any, store: Path, *, restarts_with: dict[str, str] | None
) -> Iterator[int]:
    """Run a gateway that ends when MSFT is requested, once AAPL is loaded; yield its port.

    Args:
        helpers: those of the conftest.
        store: the store that the bars of AAPL are saved in.
        restarts_with: options of the gateway that then listens on the port; None for none.
    """
    market, others, is_over = HeldMarket("MSFT"), ExitStack(), threading.Event()
    first = ExitStack()
    port = first.enter_context(running_simulator(market, now=helpers.NOW)).port

    def follow() -> None:
        market.requested.wait()
        if not is_over.is_set():
            helpers.wait_for(lambda: list(store.glob("bars/symbol=AAPL/*/*.parquet")))
        # The response that is held must not leave before the connections are closed.
        end = threading.Thread(target=first.close)
        end.start()
        helpers.wait_for(lambda: is_free(port))
        market.let_go.set()
        end.join()
        if restarts_with is not None:
            others.enter_context(
                running_simulator(
                    SyntheticMarket(seed=1), now=helpers.NOW, port=port, **restarts_with
                )
            )

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield port
    finally:
        is_over.set()
        market.requested.set()
        market.let_go.set()
        thread.join()
        others.close()


@pytest.mark.slow
def test_a_load_outlasts_a_restart_of_the_gateway(
    ktrdr: Any, store: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says until when it waits and why, resumes by itself, and ends with every bar.

    IB's rule for identical requests makes the one that was lost wait for 15 seconds.
    """
    monkeypatch.delenv("KTRDR_WAIT")
    with ending_gateway(helpers, store, restarts_with={}) as port:
        monkeypatch.setenv("IB_PORT", str(port))
        result = ktrdr("load", "AAPL,MSFT", "1d", *DAYS)
    assert result.code == 0, result.all
    assert len(re.findall("waiting until .*nothing listens", result.err)) <= 1
    bars = ktrdr("query", "SELECT symbol, count(*) AS bars FROM bars GROUP BY 1 ORDER BY 1")
    assert re.search(r"AAPL\W+4", bars.out)
    assert re.search(r"MSFT\W+4", bars.out)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_load_that_gives_up_says_what_it_saved_and_how_to_go_on(
    ktrdr: Any, store: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch, *, as_json: bool
) -> None:
    """The table, the command to repeat, and one error; the JSON document has the same."""
    more = ["--json"] if as_json else []
    with ending_gateway(helpers, store, restarts_with=None) as port:
        monkeypatch.setenv("IB_PORT", str(port))
        result = ktrdr("load", "AAPL,MSFT", "1h", *DAYS, "--wait", "1", *more)
    if not as_json:
        result.is_error(1, "nothing listens there")
        assert result.err.count("nothing listens there") == 1
        assert re.search(r"AAPL 1h +complete +\d+ +28 +28", result.out), result.out
        assert re.search(r"MSFT 1h +stopped", result.out)
        again = f"`ktrdr load AAPL,MSFT 1h {' '.join(DAYS)} --wait 1` requests the rest"
        assert again in result.out
        return
    document = result.document
    assert (result.code, document["complete"], document["exit_code"]) == (1, False, 1)
    assert {one["symbol"]: one["added"] for one in document["series"]} == {"AAPL": 28, "MSFT": 0}
    assert document["error"]["kind"] == "GatewayUnreachableError"


def test_another_gateway_on_the_port_is_refused(
    ktrdr: Any, store: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated bars are never continued with those of another account."""
    with ending_gateway(helpers, store, restarts_with={"account": REAL_ACCOUNT}) as port:
        monkeypatch.setenv("IB_PORT", str(port))
        result = ktrdr("load", "AAPL,MSFT", "1d", *DAYS, "--wait", "60")
    assert result.code == 1
    assert "MSFT 1d could not be loaded: continue the load at" in result.out
    assert "this load began with bars of origin simulated" in result.out
    symbols = ktrdr("query", "SELECT DISTINCT symbol FROM bars", "--json").rows
    assert symbols == [{"symbol": "AAPL"}]


def test_a_wait_is_stopped_at_once(
    store: Path, helpers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends a load that waits; the table says what was saved."""
    with ending_gateway(helpers, store, restarts_with=None) as port:
        monkeypatch.setenv("IB_PORT", str(port))
        with helpers.started("load", "AAPL,MSFT", "1d", *DAYS, "--wait", "2h") as load:
            line = load.stderr.readline()
            load.send_signal(signal.SIGINT)
            out, err = load.communicate(timeout=60)
    assert "waiting until" in line
    assert load.returncode == 130
    assert err == "stopped; what was saved is kept\n"
    assert re.search(r"AAPL 1d +complete", out)
    assert "`ktrdr load AAPL,MSFT 1d" in out


@pytest.mark.parametrize("text", ["0", "0.1", "0h", "0m0.1s"])
def test_a_load_that_finds_no_gateway_says_that_nothing_was_loaded(
    ktrdr: Any, store: Path, text: str
) -> None:
    """The error has the command to repeat."""
    result = ktrdr("load", "AAPL", "1d", *DAYS, "--wait", text)
    result.is_error(1, "nothing listens there", "Nothing was loaded. `ktrdr load AAPL 1d")


@pytest.mark.parametrize("text", ["-1", "soon", "5d", "", "h", "1m2h"])
def test_a_wait_that_is_none_is_bad_usage(ktrdr: Any, store: Path, text: str) -> None:
    """The error names the option and what it takes."""
    ktrdr("load", "AAPL", "1d", "--wait", text).is_error(2, "--wait", "use 0, 90, 90m or 2h")
