"""ktrdr plan: what a load or an update would cost, told without asking anybody."""

from pathlib import Path
from typing import Any

import pytest

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")


def test_a_plan_tells_what_the_load_then_costs(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Requests and bars of the plan are those of the load; nothing is left to plan after it."""
    words = ("AAPL,MSFT", "1h,1d", *DAYS, "--json")
    before = ktrdr("plan", *words)
    assert (before.code, before.err) == (0, "")
    loaded = ktrdr("load", *words)
    assert before.document["requests"] == sum(one["requests"] for one in loaded.document["series"])
    assert before.document["bars"] == sum(one["added"] for one in loaded.document["series"])
    assert [one["symbol"] for one in before.document["series"]] == ["AAPL", "AAPL", "MSFT", "MSFT"]
    after = ktrdr("plan", *words).document
    assert (after["requests"], after["bars"], after["bytes"], after["seconds"]) == (0, 0, 0, 0)


def test_a_plan_opens_no_connection(ktrdr: Any, store: Path) -> None:
    """Where no gateway is there at all, a plan is told all the same."""
    told = ktrdr("plan", "AAPL", "1h", *DAYS)
    assert told.code == 0, told.all
    assert "together: 1 requests, up to 28 bars" in told.out
    assert "assumed for 1h" in told.out


def test_the_last_day_of_a_plan_is_the_same_for_hours_and_days(ktrdr: Any, store: Path) -> None:
    """It is the last session that is requested, a Friday, and not the day after it."""
    lines = ktrdr("plan", "AAPL", "1h,1d", *DAYS).out.splitlines()
    rows = [line.split()[:4] for line in lines if line.lstrip().startswith("AAPL")]
    assert rows == [["AAPL", kind, "2024-01-02", "2024-01-05"] for kind in ("1h", "1d")]


def test_a_plan_without_words_is_that_of_an_update(ktrdr: Any, store: Path) -> None:
    """Every series of the universe is in it."""
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


def test_a_refresh_is_planned_though_all_is_covered(ktrdr: Any, store: Path, gateway: Any) -> None:
    """What is asked again costs what it cost."""
    words = ("AAPL", "1h", *DAYS, "--json")
    first = ktrdr("load", *words).document["series"][0]["requests"]
    assert ktrdr("plan", *words, "--refresh").document["requests"] == first


def test_the_basis_is_measured_after_a_while(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Once the gateway has answered some requests, the time rests on them."""
    universe = (store / "universe.yaml").read_text()
    (store / "universe.yaml").write_text(universe.replace("2024-01-02", "2023-06-01"))
    ktrdr("load", "AAPL", "5m", "--start", "2023-10-02", "--end", "2024-01-02")
    basis = ktrdr("plan", "AAPL", "5m", "--start", "2023-07-03", "--json").document["basis"]
    assert basis.startswith("measured for 5m from")


def test_a_plan_tells_the_latencies_of_both_kinds_of_ends(ktrdr: Any, store: Path) -> None:
    """What a tail requests up to now is told, and that it is answered sooner."""
    told = ktrdr("plan", "AAPL", "1h", "--mode", "tail", "--json").document
    latencies = {one["end"]: one["seconds"] for one in told["latencies"]}
    assert latencies.keys() == {"now", "given"}
    assert latencies["now"] < latencies["given"]
    assert not any(one["measured"] for one in told["latencies"])
    assert [one["up_to_now"] for one in told["series"]] == [1]
    full = ktrdr("plan", "AAPL", "1h", "--json").document
    assert [one["up_to_now"] for one in full["series"]] == [0]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--mode", "tail"), ("options without symbols", "ktrdr load")),
        (("APPL",), ("'APPL'", "not in the universe")),
        (("AAPL", "2m"), ("'2m'", "1m, 5m")),
        (("AAPL", "1h", "--mode", "tail", "--refresh"), ("--refresh with --mode tail",)),
    ],
)
def test_what_makes_no_sense_is_refused(
    ktrdr: Any, store: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """Bad usage exits with 2 and says what is allowed."""
    ktrdr("plan", *words).is_error(2, *parts)
