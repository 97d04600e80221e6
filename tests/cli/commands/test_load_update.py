"""ktrdr update: tails and gaps of the universe; ktrdr load --refresh."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def series_of(told: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """Give the series of a document by symbol and timeframe."""
    return {(one["symbol"], one["timeframe"]): one for one in told.document["series"]}


def test_an_update_makes_the_universe_whole(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Every series is loaded and told once; a second update asks nothing."""
    told = ktrdr("update", "--json")
    assert told.code == 0, told.all
    found = series_of(told)
    assert len(found) == len(told.document["series"]) == 5
    assert all(one["complete"] and one["added"] for one in found.values())
    again = ktrdr("update", "--json")
    assert (again.code, sum(one["requests"] for one in again.document["series"])) == (0, 0)


def test_an_update_fills_tails_and_holes(ktrdr: Any, store: Path, gateway: Any) -> None:
    """What is missing inside and what is new both come."""
    for first, end in (("2024-01-02", "2024-01-04"), ("2024-01-05", "2024-01-09")):
        ktrdr("load", "AAPL", "1d", "--start", first, "--end", end)
    told = ktrdr("update", "AAPL", "--json")
    assert told.code == 0, told.all
    days = series_of(told)["AAPL", "1d"]
    assert (days["added"], days["complete"]) == (2, True)


def test_a_manual_symbol_is_kept_fresh_and_its_history_left(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """Nothing is asked of it while it is empty; then only what is newer than its newest bar."""
    universe = (store / "universe.yaml").read_text()
    (store / "universe.yaml").write_text(
        universe.replace("AAPL: {}", "AAPL: {backfill: manual, start: 2020-01-02}")
    )
    told = ktrdr("update", "AAPL")
    assert told.code == 0, told.all
    assert "backfill: manual" in told.err
    assert "AAPL" not in told.out
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-03", "--end", "2024-01-05")
    told = ktrdr("update", "AAPL", "--json")
    found = series_of(told)
    assert set(found) == {("AAPL", "1d")}
    assert found["AAPL", "1d"]["added"] == 3


def test_an_update_leaves_alone_what_was_tried_in_vain(
    ktrdr: Any, store: Path, gateway: Any, data: Path
) -> None:
    """It says until when, exits with 3, and ktrdr load retries immediately."""
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
    told = ktrdr("update", "AAPL")
    assert told.code == 3, told.all
    assert "deferred" in told.out
    assert "ktrdr load retries immediately" in told.out
    assert ktrdr("load", "AAPL", "1d", "--start", "2024-01-02").code == 0


def test_a_refresh_asks_again_and_says_so(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """The same bars come, none is new or revised, and the load is complete."""
    first = series_of(ktrdr("load", "AAPL", "1h", *DAYS, "--json"))["AAPL", "1h"]
    new_budget()
    told = ktrdr("load", "AAPL", "1h", *DAYS, "--refresh", "--json")
    again = series_of(told)["AAPL", "1h"]
    assert told.code == 0
    assert again["requests"] == first["requests"]
    assert (again["added"], again["revised"]) == (0, 0)
    assert again["not_refreshed"] == []


def test_an_update_without_a_gateway_fails_clearly(ktrdr: Any, store: Path) -> None:
    """Where there is nobody to ask it exits with 1 and names the port."""
    ktrdr("update").is_error(1, "127.0.0.1")
