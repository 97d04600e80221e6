"""ktrdr universe: check, add, rename, retire."""

import codecs
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
    """Return a store with a few bars of AAPL."""
    assert ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06").code == 0
    return store


@pytest.fixture
def instance(store: Path) -> Any:
    """Return Dagster's instance of the store, with partitions of AAPL and MSFT."""
    home = prepare_home(open_store(store))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        instance.add_dynamic_partitions("symbols_1d", ["AAPL", "MSFT"])
        yield instance


def test_check_of_a_valid_universe(ktrdr: Any, store: Path) -> None:
    """It shows all symbols with their derived fields, and that nothing changes."""
    result = ktrdr("universe", "check")
    assert (result.code, result.err) == (0, "")
    assert "is valid: 3 symbols" in result.out
    assert "IDEALPRO*" in result.out
    assert "Nothing changes." in result.out


def test_check_shows_the_symbols_that_ib_is_asked_for(ktrdr: Any, store: Path) -> None:
    """Those of keys with a dot, and those that are set."""
    text = "  BP.: {primary_exchange: LSE}\n  BRK.B: {}\n  FB: {symbol: META}\n"
    path = store / "universe.yaml"
    path.write_text(path.read_text() + text)
    result = ktrdr("universe", "check")
    assert "IB's symbols: BP. is BP., BRK.B is BRK B, FB is META; `symbol`" in result.out


def test_check_tells_all_that_is_wrong(ktrdr: Any, store: Path) -> None:
    """One line for each; other commands use the entries that are valid."""
    path = store / "universe.yaml"
    path.write_text(path.read_text() + "  A: {start: soon, colour: blue}\n  B: {exchange: XETRA}\n")
    result = ktrdr("universe", "check")
    result.is_error(2, "A > start", "A > colour", "B: is STK at XETRA", "similar ones are")
    status = ktrdr("status", "--json")
    assert list(status.document["universe"]["symbols"]) == ["AAPL", "MSFT", "EURUSD"]


def test_check_shows_what_a_file_would_change(ktrdr: Any, loaded: Path, instance: Any) -> None:
    """It lists added, removed and changed symbols, and the partitions that follow."""
    file = loaded / "other.yaml"
    file.write_text(
        "defaults: {timeframes: [1h, 1d]}\nsymbols: {MSFT: {start: 2021-01-04}, TSLA: {}}"
    )
    result = ktrdr("universe", "check", str(file), "--json")
    assert result.code == 0
    kinds = {(one["kind"], one["symbol"]) for one in result.document["changes"]}
    assert kinds == {
        ("added", "TSLA"),
        ("removed", "AAPL"),
        ("removed", "EURUSD"),
        ("changed", "MSFT"),
    }
    assert result.document["partitions"]["1d"] == {"added": ["TSLA"], "removed": ["AAPL"]}
    text = ktrdr("universe", "check", str(file)).out
    assert "bars of 1d stay and can be queried" in text
    assert "start changes from 2024-01-02 to 2021-01-04" in text


@pytest.mark.parametrize(
    "entry", ["{use_rth: false}", "{what_to_show: MIDPOINT}", "{con_id: 4711}", "{exchange: IEX}"]
)
def test_check_refuses_another_identity(ktrdr: Any, loaded: Path, entry: str) -> None:
    """Where bars on disk are of another instrument, it exits with 1 and says what to do."""
    file = loaded / "other.yaml"
    file.write_text(f"defaults: {{timeframes: [1h, 1d]}}\nsymbols: {{AAPL: {entry}}}")
    result = ktrdr("universe", "check", str(file))
    assert result.code == 1
    assert "refused: AAPL: " in result.out
    assert "ktrdr universe retire AAPL" in result.out


def test_check_of_a_bad_file_names_the_line(ktrdr: Any, store: Path) -> None:
    """It is bad usage, with file, line and key."""
    (store / "universe.yaml").write_text("symbols:\n  AAPL: {start: soon}\n")
    ktrdr("universe", "check").is_error(2, "line 2", "AAPL > start", "soon")


def test_add_keeps_the_text_of_the_file(ktrdr: Any, store: Path) -> None:
    """The file has one line more, and the derived fields are shown."""
    before = (store / "universe.yaml").read_text()
    result = ktrdr("universe", "add", "GBPUSD", "--timeframes", "1h,1d", "--start=2023-01-03")
    assert result.code == 0, result.err
    line = "  GBPUSD: {timeframes: [1h, 1d], start: 2023-01-03}\n"
    assert (store / "universe.yaml").read_text() == before + line
    assert "CASH (derived)" in result.out
    assert "2023-01-03 (set)" in result.out
    document = ktrdr("universe", "add", "QQQ", "--json").document
    assert document["added"] == "QQQ"


def test_a_byte_order_mark_is_accepted_and_kept(ktrdr: Any, store: Path) -> None:
    """Some editors write one at the beginning of a file."""
    path = store / "universe.yaml"
    before = codecs.BOM_UTF8 + path.read_bytes()
    path.write_bytes(before)
    assert ktrdr("universe", "check").code == 0
    assert ktrdr("universe", "add", "QQQ").code == 0
    assert path.read_bytes() == before + b"  QQQ: {}\n"
    assert "QQQ" in ktrdr("status", "--json").document["universe"]["symbols"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("AAPL",), "already has AAPL"),
        (("QQQ", "--colour", "blue"), "--what-to-show"),
        (("QQQ", "--start"), "no value"),
        (("QQQ", "--start", "soon"), "soon"),
        (("QQQ", "--start=2020-01-02", "--start=2020-01-03"), "twice"),
    ],
)
def test_an_invalid_add_changes_nothing(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], part: str
) -> None:
    """It is bad usage, and the file is unchanged."""
    before = (store / "universe.yaml").read_bytes()
    ktrdr("universe", "add", *arguments).is_error(2, part)
    assert (store / "universe.yaml").read_bytes() == before


def test_rename_is_seen_by_queries_and_by_dagster(ktrdr: Any, loaded: Path, instance: Any) -> None:
    """Bars have the new name alone, and are not requested again."""
    result = ktrdr("universe", "rename", "AAPL", "APPLE", "--json")
    expected = {"renamed": "AAPL", "to": "APPLE", "partition_sets": 1} | NO_OFFSET
    assert expected.items() <= result.document.items()
    assert (result.document["complete"], result.document["exit_code"]) == (True, 0)
    counts = ktrdr("query", "SELECT symbol, count(*) n FROM bars GROUP BY 1", "--json").rows
    assert counts == [{"symbol": "APPLE", "n": 4}]
    assert instance.get_dynamic_partitions("symbols_1d") == ["MSFT", "APPLE"]
    interval = ("--start", "2024-01-02", "--end", "2024-01-06", "--json")
    again = ktrdr("load", "APPLE", "1d", *interval)
    assert again.code == 0
    assert again.document["series"][0]["requests"] == 0


def test_a_symbol_removed_from_the_file_can_be_retired(ktrdr: Any, loaded: Path) -> None:
    """Its bars move to the folder of retired symbols."""
    (loaded / "universe.yaml").write_text("symbols: {MSFT: {}}")
    assert ktrdr("universe", "retire", "AAPL").code == 0
    assert (loaded / "retired" / "AAPL@1").is_dir()


def test_an_interrupted_rename_is_finished(ktrdr: Any, loaded: Path) -> None:
    """The same command finishes it from the journal, and so does repair."""
    layout = open_store(loaded)
    write_journal(layout, Move(MoveKind.RENAME, "EURUSD", "EUR"))
    result = ktrdr("universe", "rename", "EURUSD", "EUR")
    assert result.code == 0, result.err
    assert "interrupted" in result.err
    write_journal(layout, Move(MoveKind.RENAME, "EUR", "EURO"))
    assert "finished the rename of EUR to EURO" in ktrdr("repair").out
    assert "EURO" in (loaded / "universe.yaml").read_text()


def test_retired_bars_can_be_restored(ktrdr: Any, loaded: Path, instance: Any) -> None:
    """Queries do not read them, and the one printed command brings all of it back."""
    files = {p.name for p in (loaded / "bars" / "symbol=AAPL").rglob("*.parquet")}
    before = (loaded / "universe.yaml").read_text().splitlines()
    result = ktrdr("universe", "retire", "AAPL")
    assert result.code == 0, result.err
    kept = loaded / "retired" / "AAPL@1"
    assert str(kept) in result.out
    assert {p.name for p in kept.rglob("*.parquet")} == files
    assert ktrdr("query", "SELECT count(*) n FROM bars", "--json").rows == [{"n": 0}]
    assert instance.get_dynamic_partitions("symbols_1d") == ["MSFT"]
    text = (loaded / "universe.yaml").read_text()
    (loaded / "universe.yaml").write_text(f"{text}# mine\n".replace("1d]", "1d], use_rth: false"))
    [printed] = [line for line in result.out.splitlines() if "ktrdr universe restore" in line]
    _, _, command = printed.partition("ktrdr ")
    restored = ktrdr(*shlex.split(command), "--json")
    assert restored.code == 0, restored.err
    assert (restored.document["restored"], restored.document["partition_sets"]) == ("AAPL", 2)
    assert restored.document["fields"]["use_rth"]["value"] is True
    assert ktrdr("query", "SELECT count(*) n FROM bars", "--json").rows == [{"n": 4}]
    assert set(instance.get_dynamic_partitions("symbols_1d")) == {"MSFT", "AAPL"}
    assert not kept.exists()
    after = (loaded / "universe.yaml").read_text().splitlines()
    assert set(before) - set(after) == {before[0], "  AAPL: {}"}
    interval = ("--start", "2024-01-02", "--end", "2024-01-06", "--json")
    assert ktrdr("load", "AAPL", "1d", *interval).document["series"][0]["requests"] == 0


def test_restoring_a_renamed_symbol_restores_its_fields(ktrdr: Any, loaded: Path) -> None:
    """The entry is as it was, with the contract that the rename wrote."""
    assert ktrdr("universe", "rename", "AAPL", "APPLE").code == 0
    before = ktrdr("universe", "check", "--json").document["symbols"]["APPLE"]
    command = ktrdr("universe", "retire", "APPLE", "--json").document["restore"]
    assert ktrdr(*shlex.split(command)[1:]).code == 0
    assert ktrdr("universe", "check", "--json").document["symbols"]["APPLE"] == before


def test_a_name_that_is_in_use_is_restored_as_another_one(ktrdr: Any, loaded: Path) -> None:
    """The refusal names the command."""
    assert ktrdr("universe", "retire", "AAPL").code == 0
    assert ktrdr("universe", "add", "AAPL", "--con-id", "4711").code == 0
    refused = ktrdr("universe", "restore", "AAPL")
    refused.is_error(1, "another instrument by now", "ktrdr universe restore AAPL@1 --as NEW")
    assert ktrdr("universe", "restore", "AAPL", "--as", "OLD").code == 0
    assert ktrdr("query", "SELECT DISTINCT symbol FROM bars", "--json").rows == [{"symbol": "OLD"}]
    ktrdr("universe", "restore", "AAPL").is_error(2, "cannot restore AAPL")


def test_several_symbols_are_added_together_or_not_at_all(ktrdr: Any, store: Path) -> None:
    """They get the same fields."""
    before = (store / "universe.yaml").read_text()
    ktrdr("universe", "add", "QQQ,MSFT,SPY").is_error(2, "already has MSFT")
    ktrdr("universe", "add", "QQQ,QQQ").is_error(2, "QQQ given twice")
    assert (store / "universe.yaml").read_text() == before
    document = ktrdr("universe", "add", "QQQ,SPY", "--timeframes", "1d", "--json").document
    assert (document["added"], list(document["symbols"])) == ("QQQ,SPY", ["QQQ", "SPY"])
    assert document["complete"] is True
    added = "  QQQ: {timeframes: [1d]}\n  SPY: {timeframes: [1d]}\n"
    assert (store / "universe.yaml").read_text() == before + added


def test_many_symbols_are_added_from_a_file(ktrdr: Any, store: Path, tmp_path: Path) -> None:
    """Each is one row, and a change that all of them share is one line."""
    names = [f"S{number}" for number in range(191)]
    (tmp_path / "names.txt").write_text("# mine\n" + "\n".join(names))
    result = ktrdr("universe", "add", f"@{tmp_path / 'names.txt'}")
    assert result.code == 0, result.err
    assert "added 191 symbols to" in result.out
    assert len([line for line in result.out.splitlines() if line.strip()]) < len(names) + 10
    changed = ktrdr("universe", "set", "S1,S2", "timeframes=1d")
    assert "changed 2 symbols in" in changed.out
    check = ktrdr("universe", "check", str(store / "universe.yaml")).out
    assert not [line for line in check.splitlines() if line.startswith("added: S7:")]


def test_fields_are_set_and_removed_for_several_symbols(ktrdr: Any, store: Path) -> None:
    """Every other byte of the file is kept; values come back as JSON types."""
    path = store / "universe.yaml"
    path.write_text(path.read_text() + "  SPY:  # mine\n    start: 2020-01-02  # first\n")
    result = ktrdr("universe", "set", "MSFT,SPY", "start=2021-01-04", "timeframes=1h,1d", "--json")
    assert result.document["changed"] == ["MSFT", "SPY"]
    fields = result.document["symbols"]["SPY"]
    assert fields["start"] == {"value": "2021-01-04", "derived": False, "origin": "set"}
    assert fields["timeframes"]["value"] == ["1h", "1d"]
    assert fields["sec_type"] == {"value": "STK", "derived": True, "origin": "derived"}
    assert fields["con_id"]["value"] is None
    assert "  MSFT: {timeframes: [1h, 1d], start: 2021-01-04}\n" in path.read_text()
    assert path.read_text().endswith(
        "  SPY:  # mine\n    timeframes: [1h, 1d]\n    start: 2021-01-04  # first\n"
    )
    assert ktrdr("universe", "set", "MSFT,SPY", "timeframes=", "start=").code == 0
    assert "  MSFT: {}\n" in path.read_text()
    assert path.read_text().endswith("  SPY:  # mine\n")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("AAPL", "start=soon"), 2, "soon"),
        (("AAPL", "strat=2020-01-02"), 2, "Did you mean start?"),
        (("AAPL", "start"), 2, "key=value"),
        (("AAPL", "start=", "start="), 2, "twice"),
        (("TSLA", "start="), 2, "no entry TSLA"),
        (("AAPL", "use_rth=false"), 1, "use_rth True, not False"),
    ],
)
def test_an_invalid_set_changes_nothing(
    ktrdr: Any, loaded: Path, arguments: tuple[str, ...], code: int, part: str
) -> None:
    """Bad usage is 2; 1 where bars on disk would be another instrument's."""
    before = (loaded / "universe.yaml").read_bytes()
    ktrdr("universe", "set", *arguments).is_error(code, part)
    assert (loaded / "universe.yaml").read_bytes() == before


def test_an_unknown_symbol_is_neither_renamed_nor_retired(ktrdr: Any, store: Path) -> None:
    """It is bad usage that names the symbol, also as JSON."""
    ktrdr("universe", "rename", "TSLA", "T").is_error(2, "no entry TSLA")
    ktrdr("universe", "retire", "TSLA").is_error(2, "'TSLA'", "not in the universe")
    result = ktrdr("universe", "retire", "TSLA", "--json")
    assert "TSLA" in json.loads(result.out)["error"]["message"]


def test_what_is_not_moved_leaves_no_files_that_are_named_after_it(ktrdr: Any, store: Path) -> None:
    """Neither an unknown symbol nor a name that can be none."""
    for arguments in (("rename", "TSLA", "T"), ("retire", "TSLA"), ("rename", "AAPL", "../x")):
        assert ktrdr("universe", *arguments).code == 2
    ktrdr("universe", "rename", "AAPL", "\udcff").is_error(2, "is not a symbol", "20 letters")
    ktrdr("universe", "retire", "\udcff").is_error(2, "is not a symbol")
    names = [one.name for one in store.rglob("*")]
    assert not [one for one in names if "TSLA" in one or one.startswith(("T.", "T-", "x"))]


def test_an_option_before_the_symbol_is_bad_usage(ktrdr: Any, store: Path) -> None:
    """The error says to put the symbol first."""
    result = ktrdr("universe", "add", "--timeframes", "1h", "TSLA")
    result.is_error(2, "--timeframes", "put the symbol first")
