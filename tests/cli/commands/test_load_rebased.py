"""Splits, changes of unit and unconfirmed price bases: what load, status, gaps and verify tell."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger

UNIVERSE = "symbols: {AAPL: {start: START, end: 2024-01-11, timeframes: [TIMEFRAMES]}}\n"
Splitting = Callable[[float], Callable[[], None]]


def wanted(store: Path, timeframes: str, start: str = "2024-01-02") -> None:
    """Write a universe of one symbol whose data end with the first session after the split."""
    text = UNIVERSE.replace("START", start).replace("TIMEFRAMES", timeframes)
    (store / "universe.yaml").write_text(text)


def series_of(result: Any, timeframe: str = "1d") -> dict[str, Any]:
    """Return a series of a document."""
    (found,) = (one for one in result.document["series"] if one["timeframe"] == timeframe)
    series: dict[str, Any] = found
    return series


@pytest.fixture
def rebased(ktrdr: Any, store: Path, splitting: Splitting) -> Any:
    """Return the document of a load that found a 4:1 split, of a store that is complete then."""
    wanted(store, "1d, 1h")
    pass_ex_date = splitting(4)
    assert ktrdr("load", "AAPL", "1d,1h").code == 0
    pass_ex_date()
    return ktrdr("load", "AAPL", "1d,1h", "--json")


def test_a_load_tells_the_rebasing_that_it_found(rebased: Any) -> None:
    """Every series of the symbol has the same adjustment, and the load is complete."""
    assert (rebased.code, rebased.document["complete"]) == (0, True)
    (daily,), (hourly,) = (series_of(rebased, one)["adjustments"] for one in ("1d", "1h"))
    assert daily == hourly
    assert (daily["number"], daily["kind"], daily["ratio"], daily["volume_ratio"]) == (
        1,
        "split",
        0.25,
        4.0,
    )
    assert (daily["effective"], daily["estimated"], daily["removed_at"]) == (
        "2024-01-10",
        False,
        None,
    )
    assert "AAPL 1d" in daily["evidence"]
    for timeframe in ("1d", "1h"):
        found = series_of(rebased, timeframe)
        assert (found["unconfirmed_bars"], found["unconfirmed_basis"]) == (0, [])
        assert (found["disagreements"], found["unit_changes"]) == ([], [])


def test_a_rebasing_is_one_line_of_the_text(
    ktrdr: Any, store: Path, splitting: Splitting, new_budget: Any
) -> None:
    """It says what is multiplied and which command requests the bars again; once per symbol."""
    wanted(store, "1d, 1h")
    pass_ex_date = splitting(4)
    ktrdr("load", "AAPL", "1d,1h")
    pass_ex_date()
    result = ktrdr("load", "AAPL", "1d,1h")
    assert result.code == 0
    (line,) = (line for line in result.out.splitlines() if "re-based" in line)
    assert "prices times 0.25, volumes times 4" in line
    assert "effective 2024-01-10" in line
    assert "ktrdr load AAPL 1d,1h --refresh" in line
    new_budget()
    assert "re-based" not in ktrdr("load", "AAPL", "1d,1h").all
    assert ktrdr("load", "AAPL", "1d,1h", "--refresh").code == 0


def test_status_and_verify_list_adjustments(rebased: Any, ktrdr: Any) -> None:
    """Status has a line for the symbol, verify certifies its series as sound."""
    assert rebased.code == 0
    result = ktrdr("status")
    assert (result.code, result.err) == (0, "")
    (line,) = (line for line in result.out.splitlines() if "adjustment" in line)
    assert line.startswith("AAPL: 1 adjustment, the last a split 1, effective 2024-01-10: ")
    document = ktrdr("status", "--json").document
    (found,) = document["adjustments"]
    assert {**found, "symbol": "AAPL"} == found
    assert (found["ratio"], document["stated_rebasings"], document["basis_errors"]) == (
        0.25,
        [],
        [],
    )
    result = ktrdr("verify")
    assert result.code == 0
    assert result.out.count("AAPL: split 1, effective 2024-01-10") == 1
    for one in ktrdr("verify", "--json").document["certificates"]:
        assert (one["sound"], one["unconfirmed_bars"]) == (True, 0)
        assert [each["number"] for each in one["adjustments"]] == [1]


def test_queries_are_on_one_basis_and_raw_views_as_stored(rebased: Any, ktrdr: Any) -> None:
    """Bars are ratio times what is stored, bit for bit; the catalog's tables say so."""
    assert rebased.code == 0
    sql = (
        "SELECT r.basis, b.close = r.close * f.price AS price, b.volume = r.volume * f.volume AS "
        "volume FROM bars AS b JOIN raw AS r USING (symbol, timeframe, ts) "
        "JOIN price_factors AS f ON f.symbol = r.symbol AND f.basis = r.basis "
        "GROUP BY ALL ORDER BY ALL"
    )
    assert ktrdr("query", sql, "--json").rows == [
        {"basis": 0, "price": True, "volume": True},
        {"basis": 1, "price": True, "volume": True},
    ]
    sql = "SELECT max(close) / min(close) AS spread FROM series('AAPL', '1d')"
    (row,) = ktrdr("query", sql, "--json").rows
    assert row["spread"] < 1.1
    (row,) = ktrdr("query", "FROM adjustments", "--json").rows
    assert (row["symbol"], row["number"], row["kind"], row["ratio"]) == ("AAPL", 1, "split", 0.25)
    assert (row["effective"], row["is_estimated"]) == ("2024-01-10", False)


def test_a_change_of_unit_is_told_and_left_to_a_person(
    ktrdr: Any, store: Path, splitting: Splitting, new_budget: Any
) -> None:
    """All commands report it with the first session, nothing is multiplied until `ktrdr adjust`."""
    wanted(store, "1d")
    pass_ex_date = splitting(0.01)
    ktrdr("load", "AAPL", "1d")
    pass_ex_date()
    loaded = ktrdr("load", "AAPL", "1d", "--json")
    assert (loaded.code, loaded.document["complete"]) == (3, False)
    (found,) = series_of(loaded)["unit_changes"]
    assert (found["ratio"], found["first"]) == (100.0, "2024-01-10T00:00:00Z")
    assert (series_of(loaded)["adjustments"], series_of(loaded)["disagreements"]) == ([], [])
    hint = "ktrdr adjust AAPL --ratio 100 --from 2024-01-10 --note TEXT"
    for command in (("load", "AAPL", "1d"), ("status",), ("verify",)):
        result = ktrdr(*command)
        assert (result.code, hint in result.out) == (3, True), command
    assert "other unit" in ktrdr("load", "AAPL", "1d").out
    assert series_of(ktrdr("status", "--json"))["unit_changes"] == [found]
    (certificate,) = ktrdr("verify", "--json").document["certificates"]
    assert (certificate["sound"], certificate["unit_changes"]) == (False, [found])
    sql = "SELECT bool_and(b.close = r.close) AS same FROM bars AS b JOIN raw AS r USING (ts)"
    assert ktrdr("query", sql, "--json").rows == [{"same": True}]

    options = ("--ratio", "100", "--from", "2024-01-10", "--note", "dollars became cents")
    assert ktrdr("adjust", "AAPL", *options).code == 0
    sql = "SELECT max(close) / min(close) AS spread FROM bars_1d"
    (row,) = ktrdr("query", sql, "--json").rows
    assert row["spread"] < 1.1
    assert ktrdr("status").code == ktrdr("verify").code == 0
    new_budget()
    assert ktrdr("load", "AAPL", "1d").code == 0


@pytest.fixture
def unconfirmed(ktrdr: Any, store: Path, splitting: Splitting) -> Any:
    """Return the document of a load that got a bar again at a fourth of its price, and no more."""
    wanted(store, "1d", start="2024-01-09")
    pass_ex_date = splitting(4)
    assert ktrdr("load", "AAPL", "1d").code == 0
    pass_ex_date()
    return ktrdr("load", "AAPL", "1d", "--json")


def test_bars_on_an_unconfirmed_basis_are_incomplete(unconfirmed: Any) -> None:
    """One bar is too little to tell a split from a correction; the new bar waits for more."""
    series = series_of(unconfirmed)
    assert (unconfirmed.code, series["complete"], series["unconfirmed_bars"]) == (3, False, 1)
    day = [{"start": "2024-01-10T00:00:00Z", "end": "2024-01-11T00:00:00Z"}]
    assert (series["unconfirmed_basis"], series["unexplained"]) == (day, day)
    assert series["basis_due_at"] is not None


def test_commands_agree_on_bars_on_an_unconfirmed_basis(
    unconfirmed: Any, ktrdr: Any, new_budget: Any
) -> None:
    """The gap has the reason basis and the time of the load; queries leave the bar out."""
    due_at = series_of(unconfirmed)["basis_due_at"]
    (gap,) = ktrdr("gaps", "--json").document["gaps"]
    assert (gap["reason"], gap["bars"], gap["next_try_at"]) == ("basis", 1, due_at)
    assert "not confirmed" in gap["detail"]
    assert "queries leave these bars out" in gap["detail"]
    status = series_of(ktrdr("status", "--json"))
    assert (status["bars"], status["unconfirmed_bars"]) == (2, 1)
    assert status["gaps"] == [gap]
    assert status["unconfirmed_basis"][0]["start"] == "2024-01-10T00:00:00Z"
    text = ktrdr("status").out
    assert "AAPL 1d: 1 bar on an unconfirmed price basis" in text
    assert "basis: AAPL 1d: 1 gap: " in text
    result = ktrdr("verify")
    assert result.code == 3
    assert "1 series with bars on an unconfirmed price basis" in result.out
    assert "that no response has covered" not in result.out
    (certificate,) = ktrdr("verify", "--json").document["certificates"]
    assert (certificate["sound"], certificate["wrong"]) == (False, [])
    assert (certificate["unconfirmed_bars"], certificate["missing_bars"]) == (1, 1)
    assert ktrdr("query", "SELECT count(*) AS n FROM bars", "--json").rows == [{"n": 1}]
    sql = "SELECT basis FROM raw_1d ORDER BY ts"
    assert ktrdr("query", sql, "--json").rows == [{"basis": 0}, {"basis": -1}]
    (row,) = ktrdr("query", "SELECT reason FROM gaps", "--json").rows
    assert row == {"reason": "basis"}
    new_budget()
    result = ktrdr("load", "AAPL", "1d")
    assert result.code == 3
    assert "unconfirmed basis" in result.out
    assert "AAPL 1d: 1 bar on an unconfirmed price basis" in result.out
    assert "no response has covered it yet" not in result.out


def test_a_person_who_knows_the_split_resolves_it(
    unconfirmed: Any, ktrdr: Any, new_budget: Any
) -> None:
    """After `ktrdr adjust` the next load confirms the basis, and all bars are served."""
    assert unconfirmed.code == 3
    options = ("--ratio", "1/4", "--from", "2024-01-10", "--note", "4:1 split")
    assert ktrdr("adjust", "AAPL", *options).code == 0
    new_budget()
    assert ktrdr("load", "AAPL", "1d").code == 0
    assert ktrdr("status").code == ktrdr("gaps").code == ktrdr("verify").code == 0
    sql = "SELECT count(*) AS n, max(close) / min(close) < 1.1 AS one FROM bars_1d"
    assert ktrdr("query", sql, "--json").rows == [{"n": 2, "one": True}]


def state_rebasing(store: Path) -> None:
    """Record that one response returned the newest bars at a fourth of their price."""
    with closing(Ledger(open_store(store).ledger)) as ledger:
        ledger.basis_checks.change(
            "AAPL",
            lambda known: replace(
                known,
                stated_ratio=0.25,
                stated_bars=5,
                stated_by="5 D of AAPL 1d",
                stated_at=datetime(2024, 1, 11, 1, tzinfo=UTC),
            ),
        )


def test_a_statement_that_awaits_a_second_one_is_told(
    unconfirmed: Any, ktrdr: Any, store: Path
) -> None:
    """Status and gaps say what one response stated, and that a second one is needed."""
    assert unconfirmed.code == 3
    assert ktrdr("status").code == 0
    state_rebasing(store)
    text = "one response returned the newest bars at 0.25 times their price"
    result = ktrdr("status")
    assert result.code == 3
    assert f"AAPL: {text}, as after a split; a second one is needed" in result.out
    (stated,) = ktrdr("status", "--json").document["stated_rebasings"]
    assert (stated["symbol"], stated["ratio"], stated["bars"]) == ("AAPL", 0.25, 5)
    assert (stated["request"], stated["sent_at"]) == ("5 D of AAPL 1d", "2024-01-11T01:00:00Z")
    (gap,) = ktrdr("gaps", "--json").document["gaps"]
    assert gap["detail"].startswith(text)
    assert text in ktrdr("adjust", "AAPL").out


def test_a_lost_history_is_named_and_restored(rebased: Any, ktrdr: Any, store: Path) -> None:
    """Status, verify and a load name its file; a repair writes it again from the ledger."""
    assert rebased.code == 0
    path = open_store(store).adjustments_file("AAPL")
    kept = path.read_bytes()
    path.unlink()
    for command in (("status",), ("verify",), ("load", "AAPL", "1d")):
        result = ktrdr(*command)
        assert (result.code, str(path) in result.all) == (1, True), command
    for one in ktrdr("verify", "--json").document["certificates"]:
        assert not one["sound"]
        assert any(str(path) in wrong for wrong in one["wrong"])
    (store / "universe.yaml").write_text("symbols: {MSFT: {start: 2024-01-10}}\n")
    document = ktrdr("verify", "--json").document
    assert list(document["damaged_others"]) == ["history/adjustments/AAPL.json"]
    assert ktrdr("repair").code == 0
    assert path.read_bytes() == kept
    assert ktrdr("verify", "--json").document["damaged_others"] == {}


def test_a_history_that_the_ledger_lost_too_is_named(rebased: Any, ktrdr: Any, store: Path) -> None:
    """The bars themselves say that they include an adjustment which nothing else knows."""
    assert rebased.code == 0
    layout = open_store(store)
    layout.adjustments_file("AAPL").unlink()
    for path in layout.state.glob("ledger.sqlite*"):
        path.unlink()
    assert str(layout.adjustments_file("AAPL")) in ktrdr("repair").all
    result = ktrdr("verify")
    assert (result.code, "bars include adjustment 1" in result.err) == (1, True)
    sql = "SELECT count(*) AS n FROM bars_1d"
    assert ktrdr("query", sql).code == 1
    assert ktrdr("query", sql.replace("bars_1d", "raw_1d"), "--json").rows == [{"n": 7}]


def test_a_damaged_history_is_named_by_status_and_verify(
    rebased: Any, ktrdr: Any, store: Path
) -> None:
    """Both fail, with the file and without a traceback."""
    assert rebased.code == 0
    path = open_store(store).adjustments_file("AAPL")
    path.write_text("{")
    for command in (("status",), ("verify",), ("adjust", "AAPL")):
        result = ktrdr(*command)
        assert (result.code, str(path) in result.err) == (1, True)
        assert "Traceback" not in result.all
    result = ktrdr("load", "AAPL", "1d")
    assert (result.code, str(path) in result.out) == (1, True)
    (error,) = ktrdr("status", "--json").document["basis_errors"]
    assert error["symbol"] == "AAPL"
    assert str(path) in error["message"]
