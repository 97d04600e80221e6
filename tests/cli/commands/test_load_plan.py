"""ktrdr plan: the cost of a load or an update, estimated without a request."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.planning.gaps import bar_lag

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def test_a_load_costs_what_its_plan_says(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Requests and bars are equal; after the load nothing is left to plan."""
    arguments = ("AAPL,MSFT", "1h,1d", *DAYS, "--json")
    before = ktrdr("plan", *arguments)
    assert (before.code, before.err) == (0, "")
    loaded = ktrdr("load", *arguments)
    assert before.document["requests"] == sum(one["requests"] for one in loaded.document["series"])
    assert before.document["bars"] == sum(one["added"] for one in loaded.document["series"])
    assert [one["symbol"] for one in before.document["series"]] == ["AAPL", "AAPL", "MSFT", "MSFT"]
    after = ktrdr("plan", *arguments).document
    assert (after["requests"], after["bars"], after["size_bytes"], after["duration_s"]) == (
        0,
        0,
        0,
        0,
    )


def test_missing_sessions_that_follow_each_other_are_one_range(ktrdr: Any, store: Path) -> None:
    """A night or a weekend between two sessions divides no range, a held session does."""
    (one,) = ktrdr("plan", "AAPL", "1h", "--start", "2024-01-02", "--json").document["series"]
    assert [part["start"] for part in one["missing"]] == ["2024-01-02T14:30:00Z"]


def test_a_plan_opens_no_connection(ktrdr: Any, store: Path) -> None:
    """It works without a gateway."""
    result = ktrdr("plan", "AAPL", "1h", *DAYS)
    assert result.code == 0, result.all
    assert "together: 1 requests, up to 28 bars" in result.out
    assert "assumed for 1h" in result.out


def test_the_last_day_of_a_plan_is_the_same_for_hours_and_days(ktrdr: Any, store: Path) -> None:
    """It is the last session that is requested, a Friday, and not the day after it."""
    lines = ktrdr("plan", "AAPL", "1h,1d", *DAYS).out.splitlines()
    rows = [line.split()[:4] for line in lines if line.lstrip().startswith("AAPL")]
    assert rows == [["AAPL", kind, "2024-01-02", "2024-01-05"] for kind in ("1h", "1d")]


def test_a_plan_without_arguments_is_that_of_an_update(ktrdr: Any, store: Path) -> None:
    """It has every series of the universe."""
    document = ktrdr("plan", "--json").document
    series = [(one["symbol"], one["timeframe"]) for one in document["series"]]
    assert series == [
        ("AAPL", "1h"),
        ("AAPL", "1d"),
        ("MSFT", "1h"),
        ("MSFT", "1d"),
        ("EURUSD", "1h"),
    ]
    assert document["requests"] > 10


def test_a_refresh_of_covered_ranges_is_planned(ktrdr: Any, store: Path, gateway: Any) -> None:
    """It costs as many requests as the first load."""
    arguments = ("AAPL", "1h", *DAYS, "--json")
    first = ktrdr("load", *arguments).document["series"][0]["requests"]
    assert ktrdr("plan", *arguments, "--refresh").document["requests"] == first


def test_the_time_is_estimated_from_measured_requests(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """It is measured once the gateway has responded to some requests."""
    universe = (store / "universe.yaml").read_text()
    (store / "universe.yaml").write_text(universe.replace("2024-01-02", "2023-06-01"))
    ktrdr("load", "AAPL", "5m", "--start", "2023-10-02", "--end", "2024-01-02")
    basis = ktrdr("plan", "AAPL", "5m", "--start", "2023-07-03", "--json").document["basis"]
    assert basis.startswith("measured for 5m from")


def is_first_bar_open() -> bool:
    """Return whether the first hourly bar of a session is not due yet: now would request it."""
    now, first_bar = system_now(), timedelta(minutes=30)
    sessions = calendar_named("XNYS.RTH").sessions(now.date(), now.date() + timedelta(days=1))
    return any(one.opens_at <= now < one.opens_at + first_bar + bar_lag() for one in sessions)


def test_the_plan_has_latencies_of_both_kinds_of_requests(ktrdr: Any, store: Path) -> None:
    """A request up to now, as a tail sends it, takes less time than one with an end."""
    result = ktrdr("plan", "AAPL", "1h", "--mode", "tail", "--json").document
    latencies = {one["end"]: one["latency_s"] for one in result["latencies"]}
    assert latencies.keys() == {"now", "given"}
    assert latencies["now"] < latencies["given"]
    assert not any(one["measured"] for one in result["latencies"])
    assert [one["up_to_now"] for one in result["series"]] == [0 if is_first_bar_open() else 1]
    full = ktrdr("plan", "AAPL", "1h", "--json").document
    assert [one["up_to_now"] for one in full["series"]] == [0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--mode", "tail"), ("options without symbols", "ktrdr load")),
        (("APPL",), ("'APPL'", "not in the universe")),
        (("AAPL", "2m"), ("'2m'", "1m, 5m")),
        (("AAPL", "1h", "--mode", "tail", "--refresh"), ("--refresh with --mode tail",)),
    ],
)
def test_invalid_arguments_are_refused(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """They are bad usage, and the error says what is allowed."""
    ktrdr("plan", *arguments).is_error(2, *parts)
