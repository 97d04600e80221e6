"""ktrdr ranges: where data begin, how that is known, and what is held."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


@pytest.fixture
def gateway(hands: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatorServer]:
    """Run a gateway for one test: it takes the same question only every quarter of a minute."""
    with running_simulator(SyntheticMarket(seed=1), now=hands.NOW) as server:
        monkeypatch.setenv("IB_PORT", str(server.port))
        yield server


def of(told: Any, symbol: str) -> dict[str, Any]:
    """Give one symbol of a document."""
    found: dict[str, Any] = next(one for one in told.document["symbols"] if one["symbol"] == symbol)
    return found


def test_the_head_and_what_is_held_are_told(ktrdr: Any, store: Path, gateway: Any) -> None:
    """For each symbol: the gateway's oldest data, when asked, and bars by timeframe."""
    ktrdr("load", "AAPL", "1h", *DAYS)
    told = ktrdr("ranges", "--json")
    assert told.code == 0, told.all
    assert [one["symbol"] for one in told.document["symbols"]] == ["AAPL", "MSFT", "EURUSD"]
    apple = of(told, "AAPL")
    assert (apple["how"], apple["what_to_show"]) == ("head", "TRADES")
    assert apple["head"] < "2024-01-02"
    assert apple["asked_at"]
    hours, days = apple["series"]
    assert (hours["timeframe"], hours["rows"]) == ("1h", 28)
    assert (hours["first"], hours["last"]) == ("2024-01-02", "2024-01-05")
    assert hours["covered_from"].startswith("2024-01-02")
    assert (days["timeframe"], days["rows"], days["first"]) == ("1d", 0, None)


def test_what_is_freshly_known_is_not_asked_again(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The second look tells what the first one heard, and when."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    first = ktrdr("ranges", "AAPL", "--json")
    assert first.code == 0, first.all
    assert of(ktrdr("ranges", "AAPL", "--json"), "AAPL") == of(first, "AAPL")


def test_a_person_reads_a_table(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Symbol, what is shown, oldest data and how that is known; then what is held."""
    told = ktrdr("ranges", "EURUSD")
    assert told.code == 0, told.all
    (line,) = [line for line in told.out.splitlines() if "MIDPOINT" in line]
    assert "EURUSD" in line
    assert "head timestamp" in line
    assert "EURUSD 1h" in told.out


def test_coverage_of_days_ends_on_the_last_session(ktrdr: Any, store: Path, gateway: Any) -> None:
    """On a Friday, and not on the day after it."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    lines = ktrdr("ranges", "AAPL").out.splitlines()
    (row,) = [line for line in lines if line.split()[:2] == ["AAPL", "1d"]]
    assert row.rstrip().endswith("2024-01-02 to 2024-01-05")


def test_an_unknown_symbol_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """It exits with 2 and names the nearest."""
    ktrdr("ranges", "APPL").is_error(2, "'APPL'", "AAPL")
