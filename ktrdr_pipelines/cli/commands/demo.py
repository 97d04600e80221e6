"""``ktrdr demo``: run a simulated gateway, Dagster, Parquet and DuckDB together, in a minute.

Not here: the Dagster runs (``cli.demo_runs``), the simulator's process (``cli.processes``).
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from ktrdr_pipelines.cli.output import AsJson, note, say, say_json, say_table
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.app.views.service_documents import DemoDocument
    from ktrdr_pipelines.app.workspace import Workspace
    from ktrdr_pipelines.cli.demo_runs import RunResult

_LAST_DAYS = """\
SELECT session_date, open, high, low, close, volume
FROM series('AAPL', '1d') ORDER BY ts DESC LIMIT 5"""
_NO_LOOKAHEAD = """\
SELECT h.ts, h.close, d.session_date AS day_before, d.close AS its_close
FROM series('AAPL', '1h') AS h ASOF JOIN series('AAPL', '1d') AS d
ON h.ts >= d.closes_at ORDER BY h.ts DESC LIMIT 5"""
QUERIES: Final = {
    "The last five days of AAPL": _LAST_DAYS,
    "Each hour of AAPL with the last day that had closed when the hour began": _NO_LOOKAHEAD,
}
SUMMARY: Final = """
SELECT symbol, timeframe, min(session_date) AS first, max(session_date) AS last, count(*) AS bars
FROM bars GROUP BY ALL"""
_COLUMNS: Final = {
    "symbol": "left",
    "timeframe": "left",
    "first": "left",
    "last": "left",
    "bars": "right",
    "gaps": "right",
}


def demo(as_json: AsJson = False) -> None:
    """Run the whole pipeline without an account: gateway, Dagster, Parquet, DuckDB.

    The gateway is simulated, and everything is stored in the folder demo of the data folder.
    Run it again to see that only new bars are requested.

    Exit codes: 0 done, 1 failed, 2 bad usage, 3 a Dagster run failed or left ranges unexplained.
    """
    from ktrdr_pipelines.cli.demo_runs import demo_workspace, run_demo
    from ktrdr_pipelines.cli.processes import simulator_process
    from ktrdr_pipelines.settings import data_folder, load_settings

    started_s = time.perf_counter()
    settings = load_settings()
    folder = data_folder(settings) / "demo"
    with simulator_process(now=settings.clock.moved_now()) as simulator:
        if not as_json:
            note(f"simulated gateway on 127.0.0.1:{simulator.port}; bars are stored in {folder}")
        workspace = demo_workspace(settings, folder, simulator.port)
        runs = run_demo(workspace, shown=not as_json)
    answers = tuple(_run_query(workspace, title, sql) for title, sql in QUERIES.items())
    took_s = time.perf_counter() - started_s
    result = _Result(folder, tuple(runs), tuple(_summary(workspace, runs)), answers, took_s)
    code = ExitCode.INCOMPLETE if any(run.error for run in runs) else ExitCode.DONE
    if as_json:
        say_json(_document(result, code))
    else:
        _say(result)
    raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class _Answer:
    """One query of the catalog, its rows, and how long it took."""

    title: str
    sql: str
    rows: list[dict[str, Any]]
    took_ms: float


@dataclass(frozen=True, slots=True)
class _Result:
    """The result of a demo; ``summary`` has one row a series, keyed by column name."""

    folder: Path
    runs: "tuple[RunResult, ...]"
    summary: tuple[dict[str, Any], ...]
    answers: tuple[_Answer, ...]
    took_s: float


def _summary(workspace: "Workspace", runs: "Sequence[RunResult]") -> list[dict[str, Any]]:
    """Return the bars of each series by DuckDB, with its gaps in the windows that were run."""
    from ktrdr_pipelines.cli.demo_runs import gaps_in_windows
    from ktrdr_pipelines.store.catalog.catalog import query_catalog

    rows = query_catalog(workspace.layout, SUMMARY).to_pylist()
    known = {(row["symbol"], row["timeframe"]): row for row in rows}
    nothing = {"first": None, "last": None, "bars": 0}
    return [
        known.get((series.symbol, str(series.timeframe)), nothing)
        | {"symbol": series.symbol, "timeframe": str(series.timeframe), "gaps": len(missing)}
        for series, missing in gaps_in_windows(workspace, runs)
    ]


def _run_query(workspace: "Workspace", title: str, sql: str) -> _Answer:
    from ktrdr_pipelines.store.catalog.catalog import query_catalog

    started_s = time.perf_counter()
    rows = query_catalog(workspace.layout, sql).to_pylist()
    return _Answer(title, sql, rows, (time.perf_counter() - started_s) * 1000)


def _document(result: _Result, code: ExitCode) -> "DemoDocument":
    from ktrdr_pipelines.app.views.service_documents import (
        DemoDocument,
        DemoQueryDocument,
        DemoRunDocument,
        DemoSeriesDocument,
    )
    from ktrdr_pipelines.cli.commands.query import json_value

    is_whole = not any(one["gaps"] for one in result.summary)
    return DemoDocument(
        complete=code is ExitCode.DONE and is_whole,
        exit_code=int(code),
        store=str(result.folder),
        took_s=round(result.took_s, 2),
        runs=tuple(DemoRunDocument.model_validate(asdict(run)) for run in result.runs),
        series=tuple(map(DemoSeriesDocument.model_validate, result.summary)),
        queries=tuple(
            DemoQueryDocument.model_validate(json_value(asdict(one))) for one in result.answers
        ),
    )


def _say(result: _Result) -> None:
    from ktrdr_pipelines.cli.commands.query import cell_text

    rows = [
        [
            f"{row[name]:,}" if kind == "right" else row[name] or ""
            for name, kind in _COLUMNS.items()
        ]
        for row in result.summary
    ]
    say_table(_COLUMNS, rows)
    say("Gaps are those in the windows of these runs; nothing before them was requested.\n")
    for answer in result.answers:
        say(f"{answer.title} ({answer.took_ms:.0f} ms):\n")
        say("\n".join(f"  {line}" for line in answer.sql.splitlines()))
        names = dict.fromkeys(answer.rows[0], "right") if answer.rows else {}
        say_table(names, [list(map(cell_text, row.values())) for row in answer.rows])
    requests = sum(run.requests for run in result.runs)
    got = sum(run.bars for run in result.runs)
    say(
        f"{len(result.runs)} Dagster runs, {requests:,} requests, {got:,} bars received, "
        f"{result.took_s:.0f} s."
    )
    say("\nNext:")
    say(f'  KTRDR_DATA={result.folder} ktrdr query "FROM bars_1h LIMIT 5"   to query the bars')
    say("  ktrdr demo            to run it again: only new bars are requested")
    say("  ktrdr up --simulate   to launch backfills in Dagster's web UI, without an account")
    say("  ktrdr init            to create your own store; then ktrdr up, with a gateway")
