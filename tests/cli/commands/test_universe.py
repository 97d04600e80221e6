"""ktrdr universe: check, add, rename, retire."""

import json
import shlex
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.app.setup import prepare_home
from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.maintenance.rename_journal import Move, MoveKind, write_journal

NO_OFFSET = {"market_clock_offset_s": 0.0}


@pytest.fixture
def loaded(ktrdr: Any, store: Path, gateway: Any) -> Path:
    """Give a store with a few bars of AAPL."""
    assert ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06").code == 0
    return store


@pytest.fixture
def instance(store: Path) -> Any:
    """Give Dagster's instance of the store, with partitions of AAPL."""
    home = prepare_home(open_store(store))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("symbols_1d", ["AAPL", "MSFT"])
        yield instance


def test_check_of_a_well_universe_says_that_nothing_changes(ktrdr: Any, store: Path) -> None:
    """All symbols are shown with what was derived; exit code 0."""
    told = ktrdr("universe", "check")
    assert (told.code, told.err) == (0, "")
    assert "is valid: 3 symbols" in told.out
    assert "IDEALPRO*" in told.out
    assert "Nothing changes." in told.out


def test_check_says_what_a_file_would_change(ktrdr: Any, loaded: Path, instance: Any) -> None:
    """Added, removed and changed symbols, and the partitions that follow."""
    file = loaded / "other.yaml"
    file.write_text(
        "defaults: {timeframes: [1h, 1d]}\nsymbols: {MSFT: {start: 2021-01-04}, TSLA: {}}"
    )
    told = ktrdr("universe", "check", str(file), "--json")
    assert told.code == 0
    kinds = {(one["kind"], one["symbol"]) for one in told.document["changes"]}
    assert kinds == {
        ("added", "TSLA"),
        ("removed", "AAPL"),
        ("removed", "EURUSD"),
        ("changed", "MSFT"),
    }
    assert told.document["partitions"]["1d"] == {"added": ["TSLA"], "removed": ["AAPL"]}
    text = ktrdr("universe", "check", str(file)).out
    assert "bars of 1d stay and can be queried" in text
    assert "start changes from 2024-01-02 to 2021-01-04" in text


@pytest.mark.parametrize(
    "entry", ["{use_rth: false}", "{what_to_show: MIDPOINT}", "{con_id: 4711}", "{exchange: IEX}"]
)
def test_check_refuses_another_identity_with_the_way_out(
    ktrdr: Any, loaded: Path, entry: str
) -> None:
    """Bars on disk are another thing than the entry says: exit code 1, and what can be done."""
    file = loaded / "other.yaml"
    file.write_text(f"defaults: {{timeframes: [1h, 1d]}}\nsymbols: {{AAPL: {entry}}}")
    told = ktrdr("universe", "check", str(file))
    assert told.code == 1
    assert "refused: AAPL: " in told.out
    assert "ktrdr universe retire AAPL" in told.out


def test_check_of_a_bad_file_names_the_line(ktrdr: Any, store: Path) -> None:
    """Bad usage, with file, line and key."""
    (store / "universe.yaml").write_text("symbols:\n  AAPL: {start: soon}\n")
    ktrdr("universe", "check").is_error(2, "line 2", "AAPL > start", "soon")


def test_add_keeps_the_file_and_shows_what_came_of_it(ktrdr: Any, store: Path) -> None:
    """One line more in the file; derived fields are told."""
    before = (store / "universe.yaml").read_text()
    told = ktrdr("universe", "add", "GBPUSD", "--timeframes", "1h,1d", "--start=2023-01-03")
    assert told.code == 0, told.err
    line = "  GBPUSD: {timeframes: [1h, 1d], start: 2023-01-03}\n"
    assert (store / "universe.yaml").read_text() == before + line
    assert "CASH (derived)" in told.out
    assert "2023-01-03 (set)" in told.out
    document = ktrdr("universe", "add", "QQQ", "--json").document
    assert document["added"] == "QQQ"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("AAPL",), "already has AAPL"),
        (("QQQ", "--colour", "blue"), "--what-to-show"),
        (("QQQ", "--start"), "no value"),
        (("QQQ", "--start", "soon"), "soon"),
        (("QQQ", "--start=2020-01-02", "--start=2020-01-03"), "twice"),
    ],
)
def test_add_of_nonsense_changes_nothing(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], words: str
) -> None:
    """Bad usage; the file is as it was."""
    before = (store / "universe.yaml").read_bytes()
    ktrdr("universe", "add", *arguments).is_error(2, words)
    assert (store / "universe.yaml").read_bytes() == before


def test_rename_is_seen_by_queries_and_by_dagster(ktrdr: Any, loaded: Path, instance: Any) -> None:
    """Bars answer under the new name alone; a load of it asks nothing again."""
    told = ktrdr("universe", "rename", "AAPL", "APPLE", "--json")
    assert told.document == {"renamed": "AAPL", "to": "APPLE", "partition_sets": 1} | NO_OFFSET
    counts = ktrdr("query", "SELECT symbol, count(*) n FROM bars GROUP BY 1", "--json").document
    assert counts == [{"symbol": "APPLE", "n": 4}]
    assert instance.get_dynamic_partitions("symbols_1d") == ["MSFT", "APPLE"]
    interval = ("--start", "2024-01-02", "--end", "2024-01-06", "--json")
    again = ktrdr("load", "APPLE", "1d", *interval)
    assert again.code == 0
    assert again.document["series"][0]["requests"] == 0


def test_symbol_that_was_taken_out_by_hand_can_still_be_retired(ktrdr: Any, loaded: Path) -> None:
    """Its bars go where the others go."""
    (loaded / "universe.yaml").write_text("symbols: {MSFT: {}}")
    assert ktrdr("universe", "retire", "AAPL").code == 0
    assert (loaded / "retired" / "AAPL@1").is_dir()


def test_rename_finishes_what_was_cut_short(ktrdr: Any, loaded: Path) -> None:
    """The same command again takes up the journal; so does repair."""
    layout = open_store(loaded)
    write_journal(layout, Move(MoveKind.RENAME, "EURUSD", "EUR"))
    told = ktrdr("universe", "rename", "EURUSD", "EUR")
    assert told.code == 0, told.err
    assert "interrupted" in told.err
    write_journal(layout, Move(MoveKind.RENAME, "EUR", "EURO"))
    assert "finished the rename of EUR to EURO" in ktrdr("repair").out
    assert "EURO" in (loaded / "universe.yaml").read_text()


def test_retire_says_where_the_bars_are_and_how_to_have_them_back(
    ktrdr: Any, loaded: Path, instance: Any
) -> None:
    """No query sees them, nothing is lost, and the way back works."""
    files = {p.name for p in (loaded / "bars" / "symbol=AAPL").rglob("*.parquet")}
    told = ktrdr("universe", "retire", "AAPL")
    assert told.code == 0, told.err
    kept = loaded / "retired" / "AAPL@1"
    assert str(kept) in told.out
    assert {p.name for p in kept.rglob("*.parquet")} == files
    assert ktrdr("query", "SELECT count(*) n FROM bars", "--json").document == [{"n": 0}]
    assert instance.get_dynamic_partitions("symbols_1d") == ["MSFT"]
    assert ktrdr("universe", "add", "AAPL").code == 0
    kept.rename(loaded / "bars" / "symbol=AAPL")
    assert ktrdr("repair").code == 0
    assert ktrdr("query", "SELECT count(*) n FROM bars", "--json").document == [{"n": 4}]


def test_the_way_back_of_a_renamed_symbol_names_the_same_instrument(
    ktrdr: Any, loaded: Path
) -> None:
    """What its entry said is part of the command, as a person would paste it."""
    assert ktrdr("universe", "rename", "AAPL", "APPLE").code == 0
    before = ktrdr("universe", "check", "--json").document["symbols"]["APPLE"]
    told = ktrdr("universe", "retire", "APPLE")
    [way] = [line for line in told.out.splitlines() if "universe add" in line]
    add, _move, _repair = way.split("&&")
    assert "--symbol AAPL" in add
    assert ktrdr(*shlex.split(add)[1:]).code == 0
    assert ktrdr("universe", "check", "--json").document["symbols"]["APPLE"] == before


def test_what_is_not_there_is_neither_renamed_nor_retired(ktrdr: Any, store: Path) -> None:
    """Bad usage that names the symbol; as one JSON document where that is asked for."""
    ktrdr("universe", "rename", "TSLA", "T").is_error(2, "no entry TSLA")
    ktrdr("universe", "retire", "TSLA").is_error(2, "'TSLA'", "not in the universe")
    told = ktrdr("universe", "retire", "TSLA", "--json")
    assert "TSLA" in json.loads(told.out)["error"]["message"]


def test_an_option_before_the_symbol_is_told_as_that(ktrdr: Any, store: Path) -> None:
    """The order of words matters, and the text says which."""
    told = ktrdr("universe", "add", "--timeframes", "1h", "TSLA")
    told.is_error(2, "--timeframes", "put the symbol first")
