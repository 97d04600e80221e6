"""--json of every command: one document of a known class, with the exit code of the command."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.views.chart_documents import PlotDocument
from ktrdr_pipelines.app.views.documents import FailureDocument, ResultDocument
from ktrdr_pipelines.app.views.file_documents import ExportDocument, ImportDocument
from ktrdr_pipelines.app.views.ib_documents import DoctorDocument, HealthDocument
from ktrdr_pipelines.app.views.load_documents import LoadReportDocument, PlanDocument
from ktrdr_pipelines.app.views.series_documents import (
    AcknowledgedDocument,
    GapsDocument,
    RangesDocument,
    StoreStatusDocument,
)
from ktrdr_pipelines.app.views.store_documents import (
    AdjustDocument,
    InitDocument,
    QueryDocument,
    RepairDocument,
    VerificationDocument,
)
from ktrdr_pipelines.app.views.universe_documents import (
    AddedDocument,
    ChangedDocument,
    RenamedDocument,
    RetiredDocument,
    UniverseCheckDocument,
)
from ktrdr_pipelines.cli.main import app

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")
ACKNOWLEDGED = ("gaps", "--acknowledge", "AAPL", "1h", "2024-01-03", "--note", "halted")
ADJUSTED = ("--ratio", "1/4", "--from", "2024-01-04", "--note", "of a test")
DONE: tuple[tuple[tuple[str, ...], int, type[ResultDocument]], ...] = (
    (("init",), 0, InitDocument),
    (("load", "AAPL", "1d", *DAYS), 0, LoadReportDocument),
    (("update", "EURUSD"), 0, LoadReportDocument),
    (("ranges", "AAPL"), 0, RangesDocument),
    (("health",), 0, HealthDocument),
    (("doctor",), 1, DoctorDocument),  # the clock of this gateway is years behind
    (("plan",), 0, PlanDocument),
    (("plan", "AAPL", "1d", *DAYS), 0, PlanDocument),
    (("status",), 0, StoreStatusDocument),
    (("status", "AAPL"), 0, StoreStatusDocument),
    (("gaps",), 3, GapsDocument),
    (("gaps", "EURUSD", "1h"), 0, GapsDocument),
    (ACKNOWLEDGED, 0, AcknowledgedDocument),
    (("verify",), 3, VerificationDocument),
    (("verify", "EURUSD"), 0, VerificationDocument),
    (("query", "SELECT symbol, ts, close FROM bars"), 0, QueryDocument),
    (("query", "SELECT 1 AS a, 2 AS a, NULL AS b WHERE false"), 0, QueryDocument),
    (("adjust", "AAPL", *ADJUSTED), 0, AdjustDocument),
    (("adjust", "AAPL"), 0, AdjustDocument),
    (("adjust", "AAPL", "--remove"), 0, AdjustDocument),
    (("export", "AAPL", "1d", *DAYS, "--format", "csv", "--out", "{folder}"), 0, ExportDocument),
    (("import-csv", "{folder}", "--timezone", "UTC"), 0, ImportDocument),
    (("plot", "AAPL", "1d", *DAYS, "--out", "{folder}/a.png"), 0, PlotDocument),
    (("universe", "check"), 0, UniverseCheckDocument),
    (("universe", "add", "TSLA"), 0, AddedDocument),
    (("universe", "set", "TSLA", "timeframes=1d"), 0, ChangedDocument),
    (("universe", "rename", "TSLA", "TESLA"), 0, RenamedDocument),
    (("universe", "retire", "TESLA"), 0, RetiredDocument),
    (("repair",), 0, RepairDocument),
)
"""Commands that end by themselves, in this order over one store, with what they print."""

FAILED: tuple[tuple[tuple[str, ...], int], ...] = (
    (("init", "--origin", "moon"), 2),
    (("load", "NOPE", "1d"), 2),
    (("load", "AAPL"), 2),
    (("update", "NOPE"), 2),
    (("plan", "AAPL", "2m"), 2),
    (("ranges", "NOPE"), 2),
    (("query", "SELEC 1"), 2),
    (("status", "NOPE"), 2),
    (("gaps", "NOPE"), 2),
    (("gaps", "--plot", "/no/such/folder/a.png"), 1),
    (("verify", "NOPE"), 2),
    (("adjust", "NOPE"), 2),
    (("repair", "--seel"), 2),
    (("probe",), 2),
    (("simulate", "--bars", "/no/such/folder", "--port", "0"), 1),
    (("serve", "--host", "192.0.2.1"), 2),
    (("up", "--serve", "--port", "8123", "--serve-port", "8123"), 2),
    (("universe", "check", "/no/such/file"), 2),
    (("universe", "add", "AAPL"), 2),
    (("universe", "rename", "NOPE", "NEW"), 2),
    (("universe", "retire", "NOPE"), 2),
    (("health", "--no-such-option"), 2),
    (("doctor", "--no-such-option"), 2),
    (("demo", "--no-such-option"), 2),
    (("nonsense",), 2),
)


def checked(result: Any, kind: type[ResultDocument], code: int) -> Any:
    """Return the document of a command, after the checks that hold for each."""
    document = result.document
    found = kind.model_validate(document)  # no unknown field, and none missing
    assert result.code == found.exit_code == code, result.all
    assert list(document)[:2] == ["complete", "exit_code"]
    assert found.complete is (code == 0) or kind is StoreStatusDocument
    return document


def test_every_command_prints_its_document(
    ktrdr: Any, store: Path, gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has all fields of its class and no other; its exit code is that of the command."""
    offset_s = (gateway.clock.now() - datetime.now(tz=UTC)).total_seconds()
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", str(offset_s))
    folder = store.parent / "exported"
    seen = {
        arguments: checked(
            ktrdr(*(one.format(folder=folder) for one in arguments), "--json"), kind, code
        )
        for arguments, code, kind in DONE
    }
    assert seen["status",]["complete"] is False
    assert seen["query", "SELECT symbol, ts, close FROM bars"]["columns"] == [
        {"name": "symbol", "type": "string"},
        {"name": "ts", "type": "timestamp[us, tz=UTC]"},
        {"name": "close", "type": "double"},
    ]
    empty = seen["query", "SELECT 1 AS a, 2 AS a, NULL AS b WHERE false"]
    assert [one["name"] for one in empty["columns"]] == ["a", "a_2", "b"]
    assert empty["rows"] == []
    of_rows = {"query", "import-csv"}  # of SQL, and of files; numbers of bars are called bars
    others = [document for (name, *_), document in seen.items() if name not in of_rows]
    assert "'rows'" not in str(others)


@pytest.mark.parametrize(("arguments", "code"), FAILED, ids=lambda one: str(one)[:30])
def test_an_error_has_the_same_shape(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], code: int
) -> None:
    """It is not complete, and has the exit code of the command and the error."""
    document = checked(ktrdr(*arguments, "--json"), FailureDocument, code)
    assert set(document) == {*ResultDocument.model_fields, "error"}
    assert document["error"]["message"]


def test_a_gateway_that_is_absent_is_a_result_of_health(ktrdr: Any, store: Path) -> None:
    """The checks fail with their own document, and loads with that of the error."""
    for arguments, kind in (
        (("health",), HealthDocument),
        (("doctor",), DoctorDocument),
        (("load", "AAPL", "1d", *DAYS, "--wait", "0"), FailureDocument),
        (("ranges", "AAPL"), FailureDocument),
    ):
        checked(ktrdr(*arguments, "--json"), kind, 1)


def test_no_command_is_left_out() -> None:
    """The tables above name every command of the program."""
    names = {one.name for one in app.registered_commands} | {"universe"}
    assert names <= {arguments[0] for arguments, *_ in (*DONE, *FAILED)}
