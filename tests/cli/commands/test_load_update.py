"""ktrdr update: tails and gaps of the universe; ktrdr load --refresh."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def series_of(result: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the series of a document by symbol and timeframe."""
    return {(one["symbol"], one["timeframe"]): one for one in result.document["series"]}


def test_an_update_completes_the_universe(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Every series is loaded and listed once; a second update sends no request."""
    result = ktrdr("update", "--json")
    assert result.code == 0, result.all
    found = series_of(result)
    assert len(found) == len(result.document["series"]) == 5
    assert all(one["complete"] and one["added"] for one in found.values())
    again = ktrdr("update", "--json")
    assert (again.code, sum(one["requests"] for one in again.document["series"])) == (0, 0)


def test_an_update_fills_tails_and_gaps(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Missing bars between stored ones are loaded, and newer ones."""
    for first, end in (("2024-01-02", "2024-01-04"), ("2024-01-05", "2024-01-09")):
        ktrdr("load", "AAPL", "1d", "--start", first, "--end", end)
    result = ktrdr("update", "AAPL", "--json")
    assert result.code == 0, result.all
    days = series_of(result)["AAPL", "1d"]
    assert (days["added"], days["complete"]) == (2, True)


def test_a_manual_symbol_gets_its_newest_bars_only(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Nothing is requested while it is empty, and later only bars after its newest one."""
    universe = (store / "universe.yaml").read_text()
    (store / "universe.yaml").write_text(
        universe.replace("AAPL: {}", "AAPL: {backfill: manual, start: 2020-01-02}")
    )
    result = ktrdr("update", "AAPL")
    assert result.code == 0, result.all
    assert "backfill: manual" in result.err
    assert "AAPL" not in result.out
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-03", "--end", "2024-01-05")
    result = ktrdr("update", "AAPL", "--json")
    found = series_of(result)
    assert set(found) == {("AAPL", "1d")}
    assert found["AAPL", "1d"]["added"] == 3


def test_an_update_defers_failed_ranges(ktrdr: Any, store: Path, gateway: Any, data: Path) -> None:
    """It names the time and exits with 3; ktrdr load retries immediately."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    now = datetime.now(tz=UTC)
    missing = Interval(datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 11, tzinfo=UTC))
    Ledger(StoreLayout(data).ledger).attempts.record(
        "AAPL|1d",
        missing,
        "error",
        error="no answer",
        code=None,
        next_try_at=now + timedelta(hours=1),
        at=now,
    )
    result = ktrdr("update", "AAPL")
    assert result.code == 3, result.all
    assert "deferred" in result.out
    assert "ktrdr load retries immediately" in result.out
    assert ktrdr("load", "AAPL", "1d", "--start", "2024-01-02").code == 0


def test_a_refresh_requests_covered_ranges_again(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """The same bars are returned, none is new or revised, and the load is complete."""
    first = series_of(ktrdr("load", "AAPL", "1h", *DAYS, "--json"))["AAPL", "1h"]
    new_budget()
    result = ktrdr("load", "AAPL", "1h", *DAYS, "--refresh", "--json")
    again = series_of(result)["AAPL", "1h"]
    assert result.code == 0
    assert again["requests"] == first["requests"]
    assert (again["added"], again["revised"]) == (0, 0)
    assert again["not_refreshed"] == []


def test_an_update_without_a_gateway_fails(ktrdr: Any, store: Path) -> None:
    """It exits with 1 and names the address."""
    ktrdr("update").is_error(1, "127.0.0.1")
