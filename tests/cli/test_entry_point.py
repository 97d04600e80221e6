"""The entry point: help, errors, exit codes and closed streams."""

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
    "demo", "init", "up", "load", "update", "plan", "plot", "ranges", "query", "status", "gaps",
    "verify", "health", "doctor", "repair", "simulate",
)  # fmt: skip
UNIVERSE_COMMANDS = ("check", "add", "rename", "retire")


def test_help_names_every_command(ktrdr: Any) -> None:
    """The help of the program lists all of them."""
    result = ktrdr("--help")
    assert result.code == 0
    assert [name for name in COMMANDS if f"  {name} " not in result.out] == []


@pytest.mark.parametrize(
    "arguments", [*((one,) for one in COMMANDS), *(("universe", one) for one in UNIVERSE_COMMANDS)]
)
def test_every_help_has_json_and_exit_codes(ktrdr: Any, arguments: tuple[str, ...]) -> None:
    """Each command documents --json and its exit codes."""
    result = ktrdr(*arguments, "--help")
    assert result.code == 0
    assert "--json" in result.out
    assert re.search(r"Exit codes: 0\s.*\b1\s.*\b2\s", result.out, re.DOTALL), result.out


def test_probe_says_how_to_run_the_live_tests(ktrdr: Any) -> None:
    """It is bad usage with the command to run."""
    ktrdr("probe").is_error(2, "pytest tests/live -m live", "IB_HOST")


def test_help_imports_nothing_heavy() -> None:
    """Help is fast because it imports only what it needs."""
    code = (
        "import sys; from ktrdr_pipelines.cli.main import command_line; command_line(['--help']);"
        "heavy = {'dagster', 'pandas', 'pyarrow', 'duckdb', 'ib_async', 'pydantic', 'numpy',"
        "'rich.console', 'exchange_calendars', 'matplotlib', 'ruamel.yaml'};"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_printed(ktrdr: Any) -> None:
    """It is that of the installed package."""
    assert ktrdr("--version").out.startswith("ktrdr 0.")


def test_the_entry_point_runs_as_a_module(process: Any) -> None:
    """The module ktrdr_pipelines.cli.main can be run and is the same program."""
    result = process("--version")
    assert (result.code, result.err) == (0, "")


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
def test_an_invalid_command_line_is_bad_usage(
    ktrdr: Any, arguments: tuple[str, ...], part: str
) -> None:
    """It exits with 2 and names what is wrong."""
    ktrdr(*arguments).is_error(2, part, "usage: ktrdr")


def test_bad_usage_with_json_is_a_document(ktrdr: Any) -> None:
    """A program that reads stdout finds the error there."""
    result = ktrdr("load", "--json")
    assert result.code == 2
    assert result.document["error"]["kind"] == "UsageError"


def test_an_error_of_the_project_is_one_message_and_its_exit_code(capsys: Any) -> None:
    """What was attempted, the reason and the hint are on stderr."""

    def command(_: list[str]) -> None:
        raise IncompleteError("the load of AAPL", reason="a gap is left", hint="Run it again")

    assert run(command, [], LogFile()) == 3
    result = capsys.readouterr()
    assert result.err == "Error: the load of AAPL: a gap is left. Hint: Run it again\n"
    assert result.out == ""


def test_an_error_of_the_project_with_json_is_a_document(capsys: Any) -> None:
    """It has the parts of the message."""

    def command(_: list[str]) -> None:
        raise KtrdrError("a thing", reason="broken", hint="Mend it")

    assert run(command, ["--json"], LogFile()) == 1
    result = capsys.readouterr()
    assert '"what": "a thing", "reason": "broken", "hint": "Mend it"' in result.out
    assert result.err == ""


def test_a_defect_is_one_line_and_a_log(capsys: Any, tmp_path: Path) -> None:
    """The terminal shows the kind of error and the path of the log, which has the traceback."""

    def command(_: list[str]) -> None:
        raise ZeroDivisionError("a\nb")

    assert run(command, [], LogFile()) == 1
    result, log = capsys.readouterr(), tmp_path / "state" / "ktrdr.log"
    assert result.err == f"Error: an unexpected ZeroDivisionError: a b. Details are in {log}\n"
    assert "Traceback" in log.read_text()


def test_an_error_of_the_disk_names_the_file(capsys: Any) -> None:
    """It has a hint, although no code expected it."""

    def command(_: list[str]) -> None:
        Path("/nowhere/at/all").write_text("")

    assert run(command, [], LogFile()) == 1
    result = capsys.readouterr().err
    assert "/nowhere/at/all: No such file" in result
    assert "make it writable" in result


def test_an_error_of_the_network_has_no_hint_about_the_disk(capsys: Any) -> None:
    """No file is concerned."""

    def command(_: list[str]) -> None:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")

    assert run(command, [], LogFile()) == 1
    result = capsys.readouterr().err
    assert "Connection refused (ConnectionRefusedError)" in result
    assert "room" not in result


def test_the_log_falls_back_to_the_temporary_folder(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is reported even if the state folder cannot be written."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "file" / "state"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def command(_: list[str]) -> None:
        raise ValueError

    assert run(command, [], LogFile()) == 1
    assert f"Details are in {tmp_path / 'ktrdr.log'}" in capsys.readouterr().err


def test_the_size_of_the_log_is_limited(tmp_path: Path, capsys: Any) -> None:
    """A long log is renamed, and the next line begins a new one."""
    log = tmp_path / "state" / "ktrdr.log"
    log.parent.mkdir()
    log.write_text("x" * (MOST_BYTES + 1))

    def command(_: list[str]) -> None:
        raise ValueError

    run(command, [], LogFile())
    assert "ValueError" in log.read_text()
    assert log.with_name("ktrdr.log.1").stat().st_size == MOST_BYTES + 1


def test_an_unknown_setting_is_bad_usage(ktrdr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelled variable is refused before anything is done."""
    monkeypatch.setenv("KTRDR_DATE", "/tmp")  # noqa: S108  (a name, nothing is written)
    ktrdr("status").is_error(2, "KTRDR_DATE", "did you mean KTRDR_DATA")


def test_no_store_is_bad_usage(ktrdr: Any, data: Path) -> None:
    """Commands that need a store name ktrdr init."""
    for command in (("status",), ("query", "SELECT 1"), ("load", "AAPL", "1d"), ("repair",)):
        ktrdr(*command).is_error(2, str(data), "ktrdr init")


def run_into_closed_pipe(*arguments: str) -> tuple[int, bytes]:
    """Run a command whose stdout is a closed pipe; return its exit code and its stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*MODULE, *arguments], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    return done.returncode, done.stderr


def test_a_closed_pipe_is_no_error(store: Path) -> None:
    """A pipe into head ends quietly."""
    assert run_into_closed_pipe("query", "SELECT * FROM range(200000)", "--csv") == (1, b"")


def test_an_error_as_json_into_a_closed_pipe_keeps_its_exit_code(store: Path) -> None:
    """There is no traceback."""
    assert run_into_closed_pipe("load", "NOPE", "1d", "--json") == (2, b"")


def test_a_full_disk_under_json_is_one_message(store: Path) -> None:
    """Where stdout cannot be written, the error goes to stderr, without a traceback."""
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
    """A command works without any of its standard streams."""
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m ktrdr_pipelines.cli.main load NOPE 1d {closed}', sys.executable],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_command_line_raises_the_errors_of_the_project() -> None:
    """A program that embeds the commands can catch them."""
    with pytest.raises(KtrdrError, match="--mode"):
        command_line(["load", "AAPL", "1d", "--mode", "fool"])
