"""Arguments that many commands share: lists of symbols from files, and --data."""

import io
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.arguments import names_with_files
from ktrdr_pipelines.errors import UsageError


def test_a_file_of_names_is_part_of_a_list(tmp_path: Path) -> None:
    """One name a line or several, with comments; patterns too."""
    listed = tmp_path / "list.txt"
    listed.write_text("\ufeffAAPL, MSFT # two\n\n# none\n*USD\n", encoding="utf-8")
    assert names_with_files(f"USO,@{listed}, EURUSD") == "USO,AAPL,MSFT,*USD,EURUSD"
    assert names_with_files("AAPL,,MSFT") == "AAPL,,MSFT"


def test_names_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    """``@-`` reads it."""
    monkeypatch.setattr("sys.stdin", io.StringIO("AAPL\nMSFT\n"))
    assert names_with_files("@-") == "AAPL,MSFT"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "No such file"),
        (b"", "it has no symbol"),
        (b"# none\n", "it has no symbol"),
        (b"@other\n", "it names another file, @other"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_a_file_without_names_is_refused(tmp_path: Path, content: bytes | None, part: str) -> None:
    """The error names the file, and what one looks like."""
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"@.*list\.txt") as caught:
        names_with_files(f"@{path}")
    assert part in str(caught.value)


def test_a_home_that_nobody_has_is_named() -> None:
    """The reason is that of the path, not of the text in a file."""
    with pytest.raises(UsageError, match="could not determine home directory"):
        names_with_files("@~nobody-here/list.txt")


def test_commands_take_patterns_and_files(ktrdr: Any, store: Path, tmp_path: Path) -> None:
    """Wherever symbols are taken, the same lists are."""
    (tmp_path / "list.txt").write_text("AAPL\nMSFT\n")
    listed = f"@{tmp_path / 'list.txt'}"

    def planned(*arguments: str) -> set[str]:
        document = ktrdr("plan", *arguments, "--json").document
        return {f"{one['symbol']} {one['timeframe']}" for one in document["series"]}

    assert planned("*USD", "ALL") == {"EURUSD 1h"}
    assert planned(listed, "1d") == {"AAPL 1d", "MSFT 1d"}
    assert len(planned("ALL", "1d,ALL")) == 6
    assert {one["symbol"] for one in ktrdr("gaps", listed, "--json").document["gaps"]} == {
        "AAPL",
        "MSFT",
    }
    verified = ktrdr("verify", "EUR*")
    assert "EURUSD" in verified.out
    assert "AAPL" not in verified.out
    for command in (["gaps"], ["verify"], ["ranges"], ["update"], ["export", "--out", "x"]):
        ktrdr(*command, "X*").is_error(2, "symbols 'X*'", "no symbol of", "quote a pattern")
    ktrdr("load", "@none", "1d").is_error(2, "symbols @none", "No such file")


def test_all_is_the_symbol_of_this_name_if_there_is_one(ktrdr: Any, store: Path) -> None:
    """A note says so."""
    (store / "universe.yaml").write_text("symbols: {AAPL: {}, ALL: {}}\n")
    result = ktrdr("plan", "ALL", "1d", "--json")
    assert [one["symbol"] for one in result.document["series"]] == ["ALL"]
    assert "ALL is a symbol of" in result.err
    assert "'*' is all" in result.err
    assert len(ktrdr("plan", "*", "1d", "--json").document["series"]) == 2


@pytest.fixture
def other(ktrdr: Any, tmp_path: Path) -> Path:
    """Make a second store, with a universe of its own."""
    folder = tmp_path / "other"
    assert ktrdr("init", "--data", str(folder)).code == 0
    (folder / "universe.yaml").write_text("symbols: {NVDA: {timeframes: [1d]}}\n")
    return folder


def test_a_data_folder_of_the_command_line_comes_first(
    ktrdr: Any, store: Path, other: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before or after the command, relative or not; the next command has the folder of before."""
    monkeypatch.chdir(tmp_path)

    def symbols(*arguments: str) -> set[str]:
        return {one["symbol"] for one in ktrdr(*arguments, "--json").document["series"]}

    assert symbols("plan") == {"AAPL", "MSFT", "EURUSD"}
    assert symbols("plan", "--data", str(other)) == {"NVDA"}
    assert symbols("--data", "other", "plan") == {"NVDA"}
    assert symbols("--data", str(store), "plan", "--data=other") == {"NVDA"}
    assert symbols("plan") == {"AAPL", "MSFT", "EURUSD"}
    assert ktrdr("universe", "check", "--data", "other").code == 0


def test_a_data_folder_that_is_no_store_is_refused(ktrdr: Any, store: Path, tmp_path: Path) -> None:
    """The error is the one that the variable has."""
    missing = tmp_path / "missing"
    ktrdr("status", "--data", str(missing)).is_error(2, str(missing))
    ktrdr("status", "--data", "").is_error(2, "--data", "empty")
    assert not missing.exists()


def test_every_command_with_a_store_tells_the_option(ktrdr: Any) -> None:
    """Those that need no store do not have it."""
    for command in ("load", "status", "up", "serve", "query", "universe add", "repair"):
        assert "--data DIR" in ktrdr(*command.split(), "--help").out, command
    for command in ("simulate", "demo", "probe"):
        assert "--data DIR" not in ktrdr(command, "--help").out, command
