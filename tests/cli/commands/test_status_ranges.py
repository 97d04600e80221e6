"""ktrdr ranges: where the data begin, how that is known, and which bars are stored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


@pytest.fixture
def gateway(helpers: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """Run a gateway for one test: it accepts a repeated head request every 15 seconds only."""
    with running_simulator(SyntheticMarket(seed=1), now=helpers.NOW) as server:
        monkeypatch.setenv("IB_PORT", str(server.port))
        yield server


def symbol_of(result: Any, symbol: str) -> dict[str, Any]:
    """Return one symbol of a document."""
    found: dict[str, Any] = next(
        one for one in result.document["symbols"] if one["symbol"] == symbol
    )
    return found


def test_heads_and_stored_bars_are_listed(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Each symbol has the gateway's oldest data, when it was requested, and bars by timeframe."""
    ktrdr("load", "AAPL", "1h", *DAYS)
    result = ktrdr("ranges", "--json")
    assert result.code == 0, result.all
    assert [one["symbol"] for one in result.document["symbols"]] == ["AAPL", "MSFT", "EURUSD"]
    apple = symbol_of(result, "AAPL")
    assert (apple["how"], apple["what_to_show"]) == ("head", "TRADES")
    assert apple["head"] < "2024-01-02"
    assert apple["asked_at"]
    hours, days = apple["series"]
    assert (hours["timeframe"], hours["bars"]) == ("1h", 28)
    assert (hours["first"], hours["last"]) == ("2024-01-02", "2024-01-05")
    assert hours["covered_from"].startswith("2024-01-02")
    assert (days["timeframe"], days["bars"], days["first"]) == ("1d", 0, None)


def test_a_recent_head_is_not_requested_again(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The second command repeats the first response and its time."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    first = ktrdr("ranges", "AAPL", "--json")
    assert first.code == 0, first.all
    assert symbol_of(ktrdr("ranges", "AAPL", "--json"), "AAPL") == symbol_of(first, "AAPL")


def test_the_output_is_a_table(ktrdr: Any, store: Path, gateway: Any) -> None:
    """It has the oldest data of each symbol and how that is known, then the stored bars."""
    result = ktrdr("ranges", "EURUSD")
    assert result.code == 0, result.all
    (line,) = [line for line in result.out.splitlines() if "MIDPOINT" in line]
    assert "EURUSD" in line
    assert "head timestamp" in line
    assert "EURUSD 1h" in result.out


def test_coverage_of_days_ends_on_the_last_session(ktrdr: Any, store: Path, gateway: Any) -> None:
    """On a Friday, and not on the day after it."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    lines = ktrdr("ranges", "AAPL").out.splitlines()
    (row,) = [line for line in lines if line.split()[:2] == ["AAPL", "1d"]]
    assert row.rstrip().endswith("2024-01-02 to 2024-01-05")


def test_an_unknown_symbol_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """The error names the nearest symbol."""
    ktrdr("ranges", "APPL").is_error(2, "'APPL'", "AAPL")
