"""Command lines that run in this process, and their results."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from ktrdr_pipelines.cli.entry_point import LogFile, run
from ktrdr_pipelines.cli.main import command_line


@dataclass(frozen=True)
class CommandResult:
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document of stdout."""
        return json.loads(self.out)

    @property
    def rows(self) -> Any:
        """The rows of a query that printed JSON."""
        return self.document["rows"]

    @property
    def all(self) -> str:
        return self.out + self.err

    def is_error(self, code: int, *parts: str) -> None:
        """Assert that it is one error message with these parts, in any letter case."""
        assert self.code == code, self.all
        assert "Traceback" not in self.all
        missing = [part for part in parts if part.casefold() not in self.err.casefold()]
        assert not missing, self.err


Ktrdr = Callable[..., CommandResult]


def ktrdr_in_process(capsys: pytest.CaptureFixture[str]) -> Ktrdr:
    """Return a function that runs a command line in this process, as the entry point does."""

    def command(*arguments: str) -> CommandResult:
        capsys.readouterr()
        code = run(command_line, list(arguments), LogFile())
        printed = capsys.readouterr()
        return CommandResult(code, printed.out, printed.err)

    return command
