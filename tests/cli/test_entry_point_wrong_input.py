"""What is wrong with each argument, file, port and disk: one message, an exit code, nothing else.

Each row runs in this process against one store. Whatever the row, stdout stays empty, the message
names what is wrong and what to do, there is no traceback, and the store has the same files with the
same bytes as before.
"""

import hashlib
import os
import re
import resource
import shutil
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.store.layout import open_store
from tests.support.command_line import CommandResult
from tests.support.older_files import within_data
from tests.support.readable import ReadableStore

UNIVERSE = """\
defaults: {timeframes: [1h, 1d], start: 2024-01-02}
symbols:
  AAPL: {}
  MSFT: {}
"""
A_DAY = ("AAPL", "1d")
TO_ADJUST = ("--from", "2024-01-04", "--note", "n")
REMADE = re.compile(r"state/(ledger\.sqlite.*|locks/.*|catalog/.*)")
"""Files of a store whose bytes may change with every command: what they hold can be rebuilt."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a used store with the daily bars of AAPL for a week, which tests copy."""
    root = tmp_path_factory.mktemp("filled") / "data"
    with closing(ReadableStore(root, universe=UNIVERSE)) as store:
        store.fill("AAPL", "1d", "2024-01-02", "2024-01-09")
    assert universe_file(open_store(root)).read()[1] is None  # keeps a copy of the valid file
    return root


@pytest.fixture
def store(filled: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the store, as that of the settings; the current folder is another one."""
    shutil.copytree(filled, data)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return data


def contents_of(folder: Path) -> dict[str, str]:
    """Return a digest of each file of a folder, less those that every command may write."""
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not REMADE.fullmatch(name := str(path.relative_to(folder)))
    }


@contextmanager
def unchanged(*folders: Path) -> Iterator[None]:
    """Require that no file of the folders differs after the block."""
    before = [contents_of(folder) for folder in folders]
    yield
    assert [contents_of(folder) for folder in folders] == before


def is_one_error(result: CommandResult, code: int, *parts: str, hint: str = "Hint: ") -> None:
    """Assert that a command printed one error, with a hint, and nothing else."""
    result.is_error(code, *parts, hint)
    assert result.out == ""
    assert len(re.findall("^Error: ", result.err, re.MULTILINE)) == 1
    assert [one for one in result.err if not one.isprintable() and one != "\n"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("load", "APPL", "1d"), ("plan", "APPL", "1d"), ("plot", "APPL", "1d"), ("gaps", "APPL"),
        ("ranges", "APPL"), ("update", "APPL"), ("verify", "APPL"), ("adjust", "APPL"),
        ("universe", "rename", "APPL", "NEW"), ("universe", "retire", "APPL"),
        ("gaps", "--acknowledge", "APPL", "1d", "2024-01-05", "--note", "x"),
    ],
)  # fmt: skip
def test_an_unknown_symbol_has_similar_ones(
    ktrdr: Any, store: Path, arguments: tuple[str, ...]
) -> None:
    """Every command that takes a symbol says which one is probably meant."""
    with unchanged(store):
        is_one_error(ktrdr(*arguments), 2, "APPL", "Did you mean AAPL?")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        # symbols
        (("load", "AAPL,,MSFT", "1d"), ("'AAPL,,MSFT'", "a symbol is empty")),
        (("gaps", ",AAPL"), ("',AAPL'", "empty")),
        (("load", "", "1d"), ("symbols ''", "empty")),
        (("load", "A" * 300, "1d"), ("A" * 300, "universe.yaml")),
        (("load", "../AAPL", "1d"), ("'../AAPL'", "AAPL?")),
        (("plot", "../AAPL", "1d"), ("'../AAPL'", "AAPL?")),
        (("load", "AA\nPL", "1d"), (r"'AA\nPL'",)),
        (("load", "AA\x1b[31mPL", "1d"), (r"'AA\x1b[31mPL'",)),
        (("plot", "AAPL\x00", "1d"), (r"'AAPL\x00'",)),
        (("load", "\udcff", "1d"), (r"'\udcff'",)),
        (("universe", "add", "A\x1b[31mB"), (r"'A\x1b[31mB'", "is not a symbol", "20 letters")),
        (("universe", "add", "A\nB"), (r"'A\nB'", "is not a symbol")),
        (("universe", "add", "A" * 300), ("A" * 300, "at most 20")),
        (("universe", "add", "AAPL"), ("already has AAPL",)),
        (("universe", "add", "NEW", "--start", "2024-02-30"), ("start", "2024-02-30")),
        (("universe", "add", "NEW", "--colour", "red"), ("--colour", "--currency")),
        (("universe", "add", "NEW", "--start"), ("--start", "no value")),
        (("universe", "rename", "AAPL", "MSFT"), ("MSFT",)),
        (("universe", "rename", "AAPL", "a b"), ("a b", "is not a symbol", "20 letters")),
        (("universe", "rename", "AAPL", "\x1b"), (r"'\x1b'", "is not a symbol")),
        # timeframes and modes
        (("load", "AAPL", "2m"), ("'2m'", "1m, 5m, 15m")),
        (("plan", "AAPL", "1D"), ("'1D'", "1m, 5m, 15m")),
        (("plot", "AAPL", "1 d"), ("'1 d'", "1m, 5m, 15m")),
        (("gaps", "AAPL", "1d,"), ("'1d,'", "empty")),
        (("load", *A_DAY, "--mode", "fill"), ("--mode fill", "tail, backfill, full")),
        (("load", *A_DAY, "--mode", "tail", "--refresh"), ("--refresh", "--mode tail")),
        # dates
        (("load", *A_DAY, "--start", "2024-02-01", "--end", "2024-01-02"),
         ("--start 2024-02-01", "--end 2024-01-02", "reversed", "not to include")),
        (("plan", *A_DAY, "--start", "2024-02-01", "--end", "2024-02-01"), ("nothing lies",)),
        (("plot", *A_DAY, "--start", "2024-02-01", "--end", "2024-01-02"), ("reversed",)),
        (("load", *A_DAY, "--start", "2049-06-01"), ("2049-06-01", "future", "latest")),
        (("plan", *A_DAY, "--end", "2049-06-01"), ("2049-06-01", "future", "latest")),
        (("plot", *A_DAY, "--start", "2049-06-01"), ("2049-06-01", "future", "latest")),
        (("plot", *A_DAY, "--start", "1776-07-04"), ("1776-07-04", "outside", "1970-01-01")),
        (("load", *A_DAY, "--start", "2024-02-30"), ("2024-02-30", "day is out of range")),
        (("plot", *A_DAY, "--end", "2024-1-2"), ("--end 2024-1-2", "neither a date")),
        (("load", *A_DAY, "--start", "yesterday"), ("--start yesterday", "2024-01-05")),
        (("load", "AAPL", "1h", "--start", "2024-01-05T14:30:00"), ("14:30:00", "without a zone")),
        (("plot", "AAPL", "1h", "--start", "2024-01-05T25:30:00Z"), ("25:30", "0..23")),
        (("plot", *A_DAY, "--start", "2024-01-06", "--end", "2024-01-08"), ("no bar lies there",)),
        (("gaps", "--acknowledge", *A_DAY, "2024-01-33", "--note", "x"), ("2024-01-33",)),
        (("gaps", "--acknowledge", *A_DAY, "2024-01-06", "--note", "x"), ("not a session date",)),
        (("gaps", "--acknowledge", *A_DAY, "2024-01-10", "--note", " "), ("note is missing",)),
        (("gaps", "--note", "x"), ("--note without --acknowledge",)),
        (("simulate", "--now", "2024-01-05T14:30:00"), ("--now", "without a zone")),
        # adjustments
        (("adjust", "AAPL", "--ratio", "0", *TO_ADJUST), ("--ratio 0", "above 0")),
        (("adjust", "AAPL", "--ratio", "-2", *TO_ADJUST), ("--ratio -2", "above 0")),
        (("adjust", "AAPL", "--ratio", "1/0", *TO_ADJUST), ("--ratio 1/0", "above 0")),
        (("adjust", "AAPL", "--ratio", "nan", *TO_ADJUST), ("--ratio nan", "above 0")),
        (("adjust", "AAPL", "--ratio", "2", "--volume-ratio", "-1", *TO_ADJUST),
         ("--volume-ratio -1",)),
        (("adjust", "AAPL", "--ratio", "2", "--from", "2024-01-40", "--note", "n"),
         ("--from 2024-01-40",)),
        (("adjust", "AAPL", "--ratio", "2", "--from", "2099-01-01", "--note", "n"),
         ("2099-01-01", "outside the known calendars")),
        (("adjust", "AAPL", "--ratio", "2"), ("--from is missing",)),
        (("adjust", "AAPL", "7", "--remove"), ("removing an adjustment of AAPL", "none")),
        # files
        (("plot", *A_DAY, "--out", "a.jpg"), ("a.jpg", ".png, .svg, .pdf")),
        (("plot", *A_DAY, "--out", "a\x1b[31m.bmp"), (r"a\x1b[31m.bmp", ".png, .svg, .pdf")),
        (("universe", "check", "no.yaml"), ("no.yaml", "no such file")),
        (("simulate", "--splits", "no.csv"), ("no.csv", "No such file")),
        (("simulate", "--zone", "Mars/Base"), ("Mars/Base", "Europe/Zurich")),
        (("simulate", "--variant", "x"), ("--variant x", "hours_zone")),
        (("init", "--origin", "x"), ("--origin x", "ib, simulated")),
        (("serve", "--host", "256.1.1.1"), ("256.1.1.1", "--host")),
        (("serve", "--allow-host", "a b"), ("--allow-host 'a b'", "not the name")),
        (("serve", "--allow-host", "nas", "--allow-host", "*.lan"), ("--allow-host '*.lan'",)),
        (("serve", "--allow-host", "nas:8000"), ("--allow-host 'nas:8000'", "port")),
        (("serve", "--allow-host", ""), ("--allow-host ''",)),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_what_is_allowed(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """It is bad usage, and nothing is written or requested."""
    with unchanged(store, Path.cwd()):
        is_one_error(ktrdr(*arguments), 2, *parts)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "Commands:"),
        (("lood",), "Did you mean 'load'?"),
        (("\x1b[31m",), r"'\x1b[31m'"),
        (("universe", "chek"), "Did you mean 'check'?"),
        (("load",), "SYMBOL"),
        (("plot", "AAPL"), "TIMEFRAME"),
        (("query",), "SQL"),
        (("load", *A_DAY, "extra"), "extra"),
        (("status", "--jsn"), "--json"),
        (("verify", "--quick"), "--quick"),
        (("load", *A_DAY, "--wait", "-1"), "--wait"),
        (("load", *A_DAY, "--wait", "x"), "--wait"),
        (("load", *A_DAY, "--wait", "99999999999h"), "longer than a year"),
        (("adjust", "AAPL", "x"), "NUMBER"),
        (("up", "--port", "70000"), "65535"),
        (("up", "--port", "x"), "--port"),
        (("serve", "--port", "70000"), "65535"),
        (("serve", "--port", "-1"), "--port"),
        (("simulate", "--port", "x"), "--port"),
        (("simulate", "--pacing", "x"), "'documented'"),
        (("simulate", "--hold-ids", "-1"), "--hold-ids"),
    ],
)
def test_an_invalid_command_line_prints_the_usage(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], part: str
) -> None:
    """What is unknown, missing or too much is named below the usage of the command."""
    with unchanged(store, Path.cwd()):
        result = ktrdr(*arguments)
    result.is_error(2, "Usage: ktrdr", part)
    assert result.out == ""
    assert "\x1b" not in result.err


@pytest.mark.parametrize(
    ("sql", "part", "hint"),
    [
        ("DELETE FROM bars", "DELETE", "read-only"),
        ("COPY bars TO 'x.csv'", "COPY", "read-only"),
        ("SELECT 1; DROP TABLE x", "DROP", "read-only"),
        ("FROM read_csv('/etc/hostname')", "read_csv()", "beyond the store"),
        ("\udcff", "not valid UTF-8", "Hint: "),
        (" ", "an empty query", "Hint: "),
        ("SELEC 1", 'near "SELEC"', "LINE 1: SELEC 1\n        ^"),
        ("SELECT nope FROM bars", '"nope" not found', "Candidate bindings: "),
    ],
)
def test_a_query_that_is_invalid_or_would_write(
    ktrdr: Any, store: Path, sql: str, part: str, hint: str
) -> None:
    """The message names the statement or the place, and what is possible."""
    assert ktrdr("query", "SELECT 1").code == 0  # builds the catalog
    with unchanged(store, Path.cwd()):
        is_one_error(ktrdr("query", sql), 2, part, hint=hint)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("symbols: {AAPL: {start: 2024-01-02}\n", ("line 2", "not YAML", "brackets")),
        ("symbols:\n\tAAPL: {}\n", ("line 2", "Replace the tab by spaces")),
        ("symbols:\n  AAPL: {}\n  AAPL: {}\n", ("line 3", "AAPL", "given twice", "line 2")),
        ("symbols:\n  AAPL: {}\n  aapl: {}\n", ("line 3", "aapl", "AAPL by case only")),
        ("symbols:\n  AAPL: {strat: 2024-01-02}\n", ("AAPL > strat", "Did you mean start?")),
        ("symbols:\n  AAPL: {start: [1]}\n", ("AAPL > start", "is a list")),
        ("symbols:\n  AAPL: {use_rth: 7}\n", ("AAPL > use_rth", "'7'", "true or false")),
        ("symbols:\n  AAPL: {timeframes: [1d, 2m]}\n", ("timeframes", "'2m'", "1m, 5m")),
        ('symbols:\n  "A\\eB": {}\n', (r"'A\x1bB'", "is not a symbol")),
        ("symbols: 7\n", ("symbols", "'7'", "a mapping")),
        ("- AAPL\n", ("line 1", "is a list")),
        ("", ("line 1", "is empty")),
        ("symbols: {AAPL: *x}\n", ("undefined alias 'x'",)),
        ("\udcff", ("byte 1", "not UTF-8")),
    ],
)
def test_a_malformed_universe_is_named_by_line_and_key(
    ktrdr: Any, store: Path, text: str, parts: tuple[str, ...]
) -> None:
    """The file, the line and the key are in the message; the store's own universe is not."""
    Path("new.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with unchanged(store, Path.cwd()):
        is_one_error(ktrdr("universe", "check", "new.yaml"), 2, "new.yaml", *parts)


@pytest.mark.parametrize(
    ("variable", "value", "part"),
    [
        ("IB_PORT", "0", "1 to 65535"),
        ("IB_PORT", "70000", "1 to 65535"),
        ("IB_PORT", "x", "1 to 65535"),
        ("IB_HOST", "", "host name"),
        ("IB_HOST", "no such host", "host name"),
        ("IB_TIMEOUT", "-1", "above 0"),
        ("IB_PACING", "fast", "adaptive"),
        ("IB_CLIENT_ID_CLI", "9-1", "range of client ids"),
        ("KTRDR_CLOCK_OFFSET_S", "x", "seconds"),
        ("KTRDR_DATE", "x", "Did you mean KTRDR_DATA?"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(
    ktrdr: Any, store: Path, variable: str, value: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that need no gateway refuse it, too: no command guesses."""
    monkeypatch.setenv(variable, value)
    with unchanged(store):
        is_one_error(ktrdr("gaps", *A_DAY), 2, f"{variable}={value!r}", part)


def test_an_unknown_host_is_no_success(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host can be well-formed and not exist."""
    monkeypatch.setenv("IB_HOST", "256.1.1.1")
    result = ktrdr("health")
    result.is_error(1, "256.1.1.1", "no such host is known", "Hint: Check IB_HOST")


@pytest.mark.parametrize("command", ["up", "serve", "simulate"])
def test_a_port_in_use_is_named(ktrdr: Any, store: Path, command: str) -> None:
    """Nothing is started."""
    (store / "universe.yaml").write_text(UNIVERSE.replace("MSFT", "IBM"))  # as the user's own
    with socket.create_server(("127.0.0.1", 0)) as server, unchanged(store):
        port = str(server.getsockname()[1])
        is_one_error(ktrdr(command, "--port", port), 1, port, "use", "choose another")


EVERY_READER = (
    ("status",), ("gaps",), ("plan",), ("verify",), ("ranges",), ("update",), ("repair",), ("up",),
    ("serve",), ("query", "SELECT 1"), ("load", *A_DAY), ("plot", *A_DAY), ("adjust", "AAPL"),
    ("universe", "check"), ("universe", "add", "NEW"), ("universe", "retire", "AAPL"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", EVERY_READER)
def test_a_folder_without_a_store(ktrdr: Any, data: Path, arguments: tuple[str, ...]) -> None:
    """No command makes one by the way."""
    is_one_error(ktrdr(*arguments), 2, str(data), "not a store", "ktrdr init")
    assert not data.exists()


@pytest.mark.parametrize("arguments", EVERY_READER)
def test_a_store_of_a_newer_version(ktrdr: Any, store: Path, arguments: tuple[str, ...]) -> None:
    """It is refused before anything is read."""
    marker = store / "store.json"
    marker.write_text(marker.read_text().replace('"format_version": 2', '"format_version": 99'))
    with unchanged(store):
        is_one_error(ktrdr(*arguments), 2, str(store), "99")


def test_a_folder_that_is_a_file(ktrdr: Any, data: Path) -> None:
    """The hint does not send the user to a command that fails."""
    data.write_text("x")
    is_one_error(ktrdr("status"), 2, str(data), "it is a file", "another folder")
    is_one_error(ktrdr("init"), 1, str(data), "File exists", "another")
    assert data.read_text() == "x"


@pytest.mark.parametrize(
    "arguments",
    [("gaps", *A_DAY), ("plot", *A_DAY), ("status",), ("query", "FROM bars"), ("verify", "AAPL")],
)
@pytest.mark.parametrize("damage", ["replaced", "flipped"])
def test_a_damaged_bar_file(
    ktrdr: Any, store: Path, damage: str, arguments: tuple[str, ...]
) -> None:
    """The file is named, and what repairs it; what can be read is shown all the same."""
    assert ktrdr("query", "SELECT 1").code == 0  # builds the catalog
    path = store / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"
    content = bytearray(path.read_bytes())
    content[within_data(path)] ^= 255
    path.write_bytes(b"junk" if damage == "replaced" else content)
    if damage == "flipped":  # bytes that change in place are found when they are read
        assert ktrdr("verify", "AAPL").code == 1
    with unchanged(store):
        ktrdr(*arguments).is_error(1, "all.parquet", "Hint:", "ktrdr repair")


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",), ("gaps",), ("plan",), ("update",), ("query", "FROM bars"), ("load", *A_DAY),
        ("plot", *A_DAY), ("adjust", "AAPL"), ("universe", "retire", "AAPL"),
    ],
)  # fmt: skip
def test_a_damaged_ledger(ktrdr: Any, store: Path, arguments: tuple[str, ...]) -> None:
    """It is never replaced by the way: `ktrdr repair` rebuilds it."""
    ledger = store / "state" / "ledger.sqlite"
    for one in (store / "state").glob("ledger.sqlite-*"):
        one.unlink()
    ledger.write_bytes(b"junk" * 1_000)
    with unchanged(store):
        is_one_error(ktrdr(*arguments), 1, str(ledger), "not a database", "ktrdr repair")
    assert ledger.read_bytes() == b"junk" * 1_000


@pytest.mark.parametrize("text", ["{junk", '{"ib_prot": 4002}', '{"ib_port": 70000}', "[]"])
def test_damaged_settings(ktrdr: Any, store: Path, text: str) -> None:
    """A file of settings that cannot be used is not taken for one without settings."""
    path = store / "state" / "settings.json"
    path.write_text(text)
    with unchanged(store):
        is_one_error(ktrdr("gaps", *A_DAY), 2, "settings.json")


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size during the block, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("arguments", "room", "part"),
    [
        (("plot", *A_DAY, "--out", "a.svg"), 36_000, "a.svg"),
        (("universe", "add", "NEW"), 40, "universe.yaml"),
        (("query", "FROM bars"), 36_000, "ktrdr.duckdb"),
        (("status",), 0, "ledger.sqlite"),
        (("adjust", "AAPL", "--ratio", "2", *TO_ADJUST), 0, "ledger.sqlite"),
        (("universe", "rename", "AAPL", "NEW"), 0, "ledger.sqlite"),
    ],
)
def test_a_full_disk(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], room: int, part: str
) -> None:
    """The file that could not be written is named; no part of it is left."""
    with unchanged(store, Path.cwd()):
        with full_disk(room):
            result = ktrdr(*arguments)
        is_one_error(result, 1, part, "room")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("universe", "add", "NEW"), "universe.yaml"),
        (("plot", *A_DAY, "--out", "locked/a.png"), "a.png"),
        (("init", "--data", "locked/store"), "locked"),
    ],
)
def test_a_folder_that_may_not_be_written(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], part: str
) -> None:
    """The file is named, and what would help."""
    folders = [store, Path("locked")]
    folders[1].mkdir()
    with unchanged(*folders):
        for one in folders:
            one.chmod(0o555)
        try:
            result = ktrdr(*arguments)
        finally:
            for one in folders:
                one.chmod(0o755)
        is_one_error(result, 1, part, "Permission denied", "writable")


def test_arguments_that_are_not_utf8_in_a_process(process: Any, store: Path) -> None:
    """The bytes that the system passes on are named with escapes."""
    with unchanged(store):
        is_one_error(process("load", b"AAPL\xff", "1d"), 2, r"'AAPL\udcff'", "Did you mean AAPL?")


def test_an_error_as_json_has_its_parts(ktrdr: Any, store: Path) -> None:
    """A program reads what was wrong, why and what to do from stdout; stderr is empty."""
    result = ktrdr("plot", "APPL", "1d", "--json")
    assert (result.code, result.err) == (2, "")
    error = result.document["error"]
    assert error["kind"] == "UnknownSymbolError"
    assert error["what"] == "symbol 'APPL'"
    assert "AAPL" in error["hint"]
