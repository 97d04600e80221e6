"""The way in and out of the process: help, errors, exit codes, signals that nobody expected."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.entry_point import MOST_BYTES, LogFile, run
from ktrdr_pipelines.cli.main import command_line
from ktrdr_pipelines.errors import IncompleteError, KtrdrError

MODULE = (sys.executable, "-m", "ktrdr_pipelines.cli.main")
COMMANDS = (
    "demo", "init", "up", "load", "update", "plan", "ranges", "query", "status", "gaps", "verify",
    "health", "doctor", "repair", "simulate",
)  # fmt: skip
UNIVERSE_COMMANDS = ("check", "add", "rename", "retire")


def test_help_names_every_command(ktrdr: Any) -> None:
    """The help of the whole names what can be done."""
    told = ktrdr("--help")
    assert told.code == 0
    assert [name for name in COMMANDS if f"  {name} " not in told.out] == []


@pytest.mark.parametrize(
    "words", [*((one,) for one in COMMANDS), *(("universe", one) for one in UNIVERSE_COMMANDS)]
)
def test_every_command_tells_of_json_and_its_exit_codes(ktrdr: Any, words: tuple[str, ...]) -> None:
    """Each command explains itself, can speak JSON, and says how it ends."""
    told = ktrdr(*words, "--help")
    assert told.code == 0
    assert "--json" in told.out
    assert re.search(r"Exit codes: 0\s.*\b1\s.*\b2\s", told.out, re.DOTALL), told.out


def test_probe_says_where_its_questions_are(ktrdr: Any) -> None:
    """They are tests; the command stays, and tells how to run them."""
    ktrdr("probe").is_error(2, "pytest tests/live -m live", "IB_HOST")


def test_help_imports_nothing_heavy() -> None:
    """Help must answer at once: nothing is imported that it does not need."""
    code = (
        "import sys; from ktrdr_pipelines.cli.main import command_line; command_line(['--help']);"
        "heavy = {'dagster', 'pandas', 'pyarrow', 'duckdb', 'ib_async', 'pydantic', 'numpy',"
        "'rich.console', 'exchange_calendars', 'matplotlib', 'ruamel.yaml'};"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_told(ktrdr: Any) -> None:
    """A report of a fault begins with it."""
    assert ktrdr("--version").out.startswith("ktrdr 0.")


def test_the_entry_point_runs_as_a_module(process: Any) -> None:
    """The module ktrdr_pipelines.cli.main can be run and is the same program."""
    told = process("--version")
    assert (told.code, told.err) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("load", "AAPL"), "TIMEFRAME"),
        (("lood",), "lood"),
        (("load", "AAPL", "1d", "--stat", "2024-01-05"), "--stat"),
        (("simulate", "--port", "70000"), "--port"),
        (("simulate", "--seed", "x"), "--seed"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_bad_usage(
    ktrdr: Any, arguments: tuple[str, ...], part: str
) -> None:
    """It exits with 2 and names what is wrong."""
    ktrdr(*arguments).is_error(2, part, "usage: ktrdr")


def test_bad_usage_is_json_where_json_was_asked_for(ktrdr: Any) -> None:
    """A program that reads stdout finds the error there."""
    told = ktrdr("load", "--json")
    assert told.code == 2
    assert told.document["error"]["kind"] == "UsageError"


def test_an_error_of_the_project_is_one_message_and_its_exit_code(capsys: Any) -> None:
    """What was asked, what came and what to do, on stderr."""

    def command(_: list[str]) -> None:
        raise IncompleteError("the load of AAPL", reason="a gap is left", hint="Run it again")

    assert run(command, [], LogFile()) == 3
    told = capsys.readouterr()
    assert told.err == "Error: the load of AAPL: a gap is left. Hint: Run it again\n"
    assert told.out == ""


def test_an_error_of_the_project_is_json_where_json_was_asked_for(capsys: Any) -> None:
    """The parts of the message come one by one."""

    def command(_: list[str]) -> None:
        raise KtrdrError("a thing", reason="broken", hint="Mend it")

    assert run(command, ["--json"], LogFile()) == 1
    told = capsys.readouterr()
    assert '"what": "a thing", "reason": "broken", "hint": "Mend it"' in told.out
    assert told.err == ""


def test_a_defect_is_one_line_and_a_log(capsys: Any, tmp_path: Path) -> None:
    """The terminal shows the kind and where the log lies; the traceback is in the log."""

    def command(_: list[str]) -> None:
        raise ZeroDivisionError("a\nb")

    assert run(command, [], LogFile()) == 1
    told, log = capsys.readouterr(), tmp_path / "state" / "ktrdr.log"
    assert told.err == f"Error: an unexpected ZeroDivisionError: a b. Details are in {log}\n"
    assert "Traceback" in log.read_text()


def test_a_refusing_disk_is_named(capsys: Any) -> None:
    """An error of the system that nobody foresaw names the file and the hint."""

    def command(_: list[str]) -> None:
        Path("/nowhere/at/all").write_text("")

    assert run(command, [], LogFile()) == 1
    told = capsys.readouterr().err
    assert "/nowhere/at/all: No such file" in told
    assert "make it writable" in told


def test_a_refusing_network_is_no_disk(capsys: Any) -> None:
    """Where no file is concerned nobody is told to make room."""

    def command(_: list[str]) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    assert run(command, [], LogFile()) == 1
    told = capsys.readouterr().err
    assert "Connection refused (ConnectionRefusedError)" in told
    assert "room" not in told


def test_the_log_goes_elsewhere_where_the_state_folder_refuses(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error is told even where its log cannot be written to its place."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def command(_: list[str]) -> None:
        raise ValueError

    assert run(command, [], LogFile()) == 1
    assert f"Details are in {tmp_path / 'ktrdr.log'}" in capsys.readouterr().err


def test_the_log_does_not_grow_for_ever(tmp_path: Path, capsys: Any) -> None:
    """A long log is quarantined, and the next line begins a new one."""
    log = tmp_path / "state" / "ktrdr.log"
    log.parent.mkdir()
    log.write_text("x" * (MOST_BYTES + 1))

    def command(_: list[str]) -> None:
        raise ValueError

    run(command, [], LogFile())
    assert "ValueError" in log.read_text()
    assert log.with_name("ktrdr.log.1").stat().st_size == MOST_BYTES + 1


def test_an_unknown_setting_is_bad_usage(ktrdr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slip in the environment is told before anything is done."""
    monkeypatch.setenv("KTRDR_DATE", "/tmp")  # noqa: S108  (a name, nothing is written)
    ktrdr("status").is_error(2, "KTRDR_DATE", "did you mean KTRDR_DATA")


def test_no_store_is_bad_usage(ktrdr: Any, data: Path) -> None:
    """Commands need a store, and say how to make one."""
    for command in (("status",), ("query", "SELECT 1"), ("load", "AAPL", "1d"), ("repair",)):
        ktrdr(*command).is_error(2, str(data), "ktrdr init")


def run_into_closed_pipe(*arguments: str) -> tuple[int, bytes]:
    """Run a command whose stdout nobody reads; give its exit code and what it said beside."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*MODULE, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    return done.returncode, done.stderr


def test_a_reader_that_goes_away_is_no_error(store: Path) -> None:
    """A pipe into head ends quietly."""
    assert run_into_closed_pipe("query", "SELECT * FROM range(200000)", "--csv") == (1, b"")


def test_an_error_told_as_json_to_no_listener_keeps_its_exit_code(store: Path) -> None:
    """Where the reader of stdout has gone, an error is still that error, and no traceback."""
    assert run_into_closed_pipe("load", "NOPE", "1d", "--json") == (2, b"")


def test_a_full_disk_under_json_is_one_message(store: Path) -> None:
    """Where stdout takes nothing, the error goes to stderr, without a traceback."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*MODULE, "load", "NOPE", "1d", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"Error: symbol 'NOPE'")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_defect(store: Path, closed: str) -> None:
    """A command that was started without one of its streams works as with it."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m ktrdr_pipelines.cli.main load NOPE 1d {closed}', sys.executable],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_command_line_gives_errors_as_they_are() -> None:
    """Whoever embeds the commands catches the project's errors."""
    with pytest.raises(KtrdrError, match="--mode"):
        command_line(["load", "AAPL", "1d", "--mode", "fool"])
