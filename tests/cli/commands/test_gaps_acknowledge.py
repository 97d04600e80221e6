"""ktrdr gaps --acknowledge, and the output for explained ranges without bars."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.app.workspace import universe_file
from ktrdr_pipelines.domain.bars import empty_bars
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import Statement, StatementKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_file import read_footer
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger

DAYS = ("--start", "2024-01-02", "--end", "2024-01-10")
UNIVERSE = """\
symbols:
  AAPL: {start: 2024-01-02, end: 2024-01-10, timeframes: [1d]}
"""
THURSDAY = ("AAPL", "1d", "2024-01-04")


def acknowledged(ktrdr: Any, *named: str, note: str = "halted") -> Any:
    """Acknowledge a session."""
    return ktrdr("gaps", "--acknowledge", *(named or THURSDAY), "--note", note)


def take_out(store: Path, timeframe: str, day: str) -> None:
    """Delete the bars of a session date with another program."""
    path = store / "bars" / "symbol=AAPL" / f"timeframe={timeframe}" / "all.parquet"
    table = pq.read_table(path, partitioning=None)
    dates = pc.cast(table["session_date"], "string")
    pq.write_table(table.filter(pc.not_equal(dates, day)), path)


def attempt(store: Path, kind: str, first: str, end: str, *, key: str = "AAPL|1d") -> datetime:
    """Record an attempt as a load does, and return when the next request is due."""
    ledger = Ledger(open_store(store).ledger)
    at = datetime.now(tz=UTC).replace(microsecond=0)
    due = at + timedelta(minutes=15)
    ledger.attempts.record(
        key, days(first, end), kind, error="a second response is due", code=None,
        next_try_at=due, at=at,
    )  # fmt: skip
    ledger.close()
    return due


def days(first: str, end: str) -> Interval:
    """Return whole days of UTC."""
    return Interval(*(datetime.fromisoformat(one).replace(tzinfo=UTC) for one in (first, end)))


@pytest.fixture
def lacking(ktrdr: Any, store: Path, gateway: Any) -> Path:
    """Make a store of one ended symbol that lacks one daily bar."""
    (store / "universe.yaml").write_text(UNIVERSE)
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    take_out(store, "1d", "2024-01-04")
    assert ktrdr("gaps").code == 3
    return store


def test_an_acknowledged_session_is_explained(ktrdr: Any, lacking: Path, gateway: Any) -> None:
    """The note is in the file's footer, no request is sent, and nothing is missing any more."""
    requests = len(gateway.requests)
    result = acknowledged(ktrdr)
    assert (result.code, result.err) == (0, "")
    assert "AAPL 1d: 2024-01-04 is acknowledged" in result.out
    assert "halted" in result.out
    assert len(gateway.requests) == requests
    (path,) = open_store(lacking).bar_files("AAPL", Timeframe.D1)
    (proof,) = read_footer(path).coverage.empty
    assert (proof.kind, proof.note) == (ProofKind.ACKNOWLEDGED, "halted")
    assert proof.interval == days("2024-01-04", "2024-01-05")
    shown = ktrdr("gaps")
    assert shown.code == 0
    assert "No gap in 1 series." in shown.out
    assert "1 acknowledged range without bars" in shown.out
    assert "halted" in shown.out
    assert ktrdr("verify").code == 0


def test_documents_list_acknowledged_ranges(ktrdr: Any, lacking: Path) -> None:
    """Gaps and status have the range, kind, times, note and statements."""
    done = ktrdr("gaps", "--acknowledge", *THURSDAY, "--note", "  halted \n all day", "--json")
    assert done.document["exit_code"] == 0
    document = ktrdr("gaps", "--json").document
    (one,) = document["acknowledged"]
    assert done.document["acknowledged"] == [one]
    assert document["disputed"] == []
    assert document["counts"] == {"disputed": 0, "acknowledged": 1}
    assert document["gaps"] == []
    proved_at = datetime.fromisoformat(one.pop("proved_at"))
    assert datetime.fromisoformat(one.pop("expires_at")) == proved_at + timedelta(days=365)
    assert one == {
        "symbol": "AAPL",
        "timeframe": "1d",
        "start": "2024-01-04T00:00:00Z",
        "end": "2024-01-05T00:00:00Z",
        "kind": "acknowledged",
        "note": "halted all day",
        "statements": [],
    }
    status = ktrdr("status", "--json").document
    assert status["counts"] == {"disputed": 0, "acknowledged": 1}
    assert status["series"][0]["acknowledged"][0]["note"] == "halted all day"
    assert "1 acknowledged range" in ktrdr("status").out


def test_a_second_acknowledgement_changes_the_note(ktrdr: Any, lacking: Path) -> None:
    """A date has one proof, with the latest note."""
    acknowledged(ktrdr)
    assert acknowledged(ktrdr, note="merger").code == 0
    (one,) = ktrdr("gaps", "--json").document["acknowledged"]
    assert one["note"] == "merger"


def test_attempts_inside_are_cleared(ktrdr: Any, lacking: Path) -> None:
    """So are those in whose range nothing is missing any more."""
    attempt(lacking, "probed", "2024-01-04", "2024-01-05")
    attempt(lacking, "error", "2024-01-03", "2024-01-06")
    attempt(lacking, "probed", "2024-01-08", "2024-01-09")
    acknowledged(ktrdr)
    (series,) = ktrdr("status", "--json").document["series"]
    assert [one["start"] for one in series["attempts"]] == ["2024-01-08T00:00:00Z"]


def test_an_attempt_at_another_missing_session_is_kept(ktrdr: Any, lacking: Path) -> None:
    """It is cleared once that session is acknowledged too."""
    take_out(lacking, "1d", "2024-01-05")
    attempt(lacking, "contradicted", "2024-01-04", "2024-01-06")
    acknowledged(ktrdr)
    document = ktrdr("gaps", "--json").document
    (gap,) = document["gaps"]
    assert (gap["reason"], gap["start"]) == ("contradicted", "2024-01-05T00:00:00Z")
    acknowledged(ktrdr, "AAPL", "1d", "2024-01-05")
    assert ktrdr("gaps").code == 0
    (series,) = ktrdr("status", "--json").document["series"]
    assert series["attempts"] == []


@pytest.mark.parametrize(
    ("named", "parts"),
    [
        (("AAPL", "1d", "2024-01-06"), ("2024-01-06", "not a session date")),
        (("AAPL", "1d", "2024-01-03"), ("1 bar of that date is held",)),
        (("AAPL", "1d", "2023-12-28"), ("not missing", "start of the data")),
        (("AAPL", "1h", "2023-12-28"), ("not missing",)),
        (("AAPL", "2h", "2024-01-04"), ("2h", "Allowed are")),
        (("NOPE", "1d", "2024-01-04"), ("NOPE",)),
        (("AAPL", "1d", "2024-1-4"), ("2024-1-4", "neither a date")),
        (("AAPL", "1d", "2024-01-04T15:00:00Z"), ("an instant",)),
        (("AAPL", "1d", "2024-02-30"), ("2024-02-30",)),
        (("AAPL", "1d", "2024-01-12"), ("not a session date",)),
    ],
)
def test_what_cannot_be_acknowledged_is_refused(
    ktrdr: Any, lacking: Path, named: tuple[str, str, str], parts: tuple[str, ...]
) -> None:
    """Each refusal is bad usage, states the reason, and changes nothing."""
    before = ktrdr("gaps", "--json").document
    acknowledged(ktrdr, *named).is_error(2, *parts)
    assert ktrdr("gaps", "--json").document == before


def test_a_note_is_required(ktrdr: Any, lacking: Path) -> None:
    """An empty note is refused, and so is a note without a session."""
    ktrdr("gaps", "--acknowledge", *THURSDAY).is_error(2, "note is missing", "--note")
    acknowledged(ktrdr, note="  ").is_error(2, "note is missing")
    ktrdr("gaps", "--note", "halted").is_error(2, "--acknowledge")
    ktrdr("gaps", "AAPL", "--acknowledge", *THURSDAY, "--note", "x").is_error(2, "one session")
    assert ktrdr("gaps", "--acknowledge", "AAPL", "1d").code == 2
    assert ktrdr("gaps").code == 3


def test_an_open_session_cannot_be_acknowledged(
    ktrdr: Any, lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway may still return its bars."""
    (lacking / "universe.yaml").write_text("symbols: {AAPL: {start: 2024-01-02}}\n")
    at = datetime(2024, 1, 10, 20, tzinfo=UTC)
    offset_s = (at - datetime.now(tz=UTC)).total_seconds()
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", str(offset_s))
    acknowledged(ktrdr, "AAPL", "1d", "2024-01-10").is_error(2, "not over", "2024-01-10 21:00")
    assert acknowledged(ktrdr, "AAPL", "1d", "2024-01-09").code == 2


def test_a_series_without_a_file_needs_a_known_contract(
    ktrdr: Any, lacking: Path, store: Path
) -> None:
    """One that another timeframe looked up is enough; without one, the error names the load."""
    assert acknowledged(ktrdr, "AAPL", "1h", "2024-01-04").code == 0
    document = ktrdr("gaps", "AAPL", "1h", "--json").document
    assert [one["start"] for one in document["acknowledged"]] == ["2024-01-04T14:30:00Z"]
    assert len(document["gaps"]) == 2
    (store / "universe.yaml").write_text("symbols: {MSFT: {start: 2024-01-02}}\n")
    result = acknowledged(ktrdr, "MSFT", "1d", "2024-01-04")
    result.is_error(2, "contract is not known", "ktrdr load MSFT 1d")


def test_a_week_is_acknowledged_by_any_of_its_dates(ktrdr: Any, lacking: Path) -> None:
    """The bar of a week has the timestamp of its Monday."""
    assert acknowledged(ktrdr, "AAPL", "1w", "2024-01-09").code == 0
    (one,) = ktrdr("gaps", "AAPL", "1w", "--json").document["acknowledged"]
    assert (one["start"], one["end"]) == ("2024-01-08T00:00:00Z", "2024-01-15T00:00:00Z")


def test_a_session_covered_without_a_bar_can_be_acknowledged(ktrdr: Any, lacking: Path) -> None:
    """Earlier versions covered sessions without bars: they count as sparse until acknowledged."""
    (lacking / "universe.yaml").write_text(
        "symbols: {AAPL: {start: 2023-10-02, end: 2024-01-10, timeframes: [1h]}}\n"
    )
    bounds = ("--start", "2023-10-02", "--end", "2024-01-10")
    assert ktrdr("load", "AAPL", "1h", *bounds).code == 0
    take_out(lacking, "1h", "2023-11-15")
    store = bar_store(lacking)
    series = series_of(lacking, "1h")
    identity = store.identity(series)
    assert identity is not None
    gap = Interval(
        datetime(2023, 11, 15, 14, 30, tzinfo=UTC), datetime(2023, 11, 15, 21, tzinfo=UTC)
    )

    store.save(series, identity, empty_bars(), Coverage(bars=IntervalSet([gap])))
    (one,) = ktrdr("gaps", "AAPL", "1h", "--json").document["gaps"]
    assert one["reason"] == "sparse"
    assert acknowledged(ktrdr, "AAPL", "1h", "2023-11-15").code == 0
    assert ktrdr("gaps", "AAPL", "1h").code == 0
    assert bar_store(lacking).coverage(series).empty[0].interval == gap


def test_a_disputed_range_lists_its_statements(ktrdr: Any, lacking: Path) -> None:
    """It has the kind, timeframe and time of each statement about it, and no others."""
    store, series = bar_store(lacking), series_of(lacking, "1d")
    identity = store.identity(series)
    assert identity is not None
    at = datetime.now(tz=UTC).replace(minute=0, second=0, microsecond=0)
    proof = Emptiness(days("2024-01-04", "2024-01-05"), at, ProofKind.DISPUTED)

    store.save(series, identity, empty_bars(), Coverage(empty=(proof,)))
    parts = ("2024-01-04", "2024-01-05"), ("2024-01-03", "2024-01-05"), ("2024-01-08", "2024-01-09")
    statements = [
        Statement(days(*part), StatementKind.EMPTY, "1h", at + timedelta(days=place), str(place))
        for place, part in enumerate(parts)
    ]
    store.ledger.statements.record("AAPL", "fake:1", statements, at)
    document = ktrdr("gaps", "--json").document
    assert document["exit_code"] == 0
    assert document["counts"] == {"disputed": 1, "acknowledged": 0}
    (one,) = document["disputed"]
    assert one["kind"] == "disputed"
    assert [(two["kind"], two["timeframe"]) for two in one["statements"]] == [("empty", "1h")] * 2
    assert one["statements"][0]["said_at"] == at.isoformat().replace("+00:00", "Z")
    assert "1 disputed range" in ktrdr("gaps").out
    assert "1 disputed range" in ktrdr("status").out
    (series_json,) = ktrdr("status", "--json").document["series"]
    assert series_json["disputed"] == [one]
    acknowledged(ktrdr).is_error(2, "disputed already")


def test_an_expired_acknowledgement_is_a_gap_again(
    ktrdr: Any, lacking: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reason is expired, and it can be acknowledged again."""
    acknowledged(ktrdr)
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", str(366 * 86_400))
    document = ktrdr("gaps", "--json").document
    assert document["acknowledged"] == []
    assert [one["reason"] for one in document["gaps"]] == ["expired"]
    assert acknowledged(ktrdr, note="still halted").code == 0
    assert ktrdr("gaps").code == 0


def test_an_acknowledgement_is_stored_in_the_file(ktrdr: Any, lacking: Path, gateway: Any) -> None:
    """It survives the loss of the ledger, an edit by another program, and further loads."""
    acknowledged(ktrdr)
    for path in (lacking / "state").glob("ledger.sqlite*"):
        path.unlink()
    assert ktrdr("repair").code == 0
    assert [one["note"] for one in ktrdr("gaps", "--json").document["acknowledged"]] == ["halted"]
    take_out(lacking, "1d", "2024-01-08")
    document = ktrdr("gaps", "--json").document
    assert [one["start"] for one in document["gaps"]] == ["2024-01-08T00:00:00Z"]
    assert len(document["acknowledged"]) == 1
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    assert len(ktrdr("gaps", "--json").document["acknowledged"]) == 1


def test_bars_end_an_acknowledgement(
    ktrdr: Any, lacking: Path, gateway: Any, new_budget: Any
) -> None:
    """A refresh that returns bars of the session ends it."""
    acknowledged(ktrdr)
    new_budget()
    assert ktrdr("load", "AAPL", "1d", *DAYS, "--refresh").code == 0
    document = ktrdr("gaps", "--json").document
    assert (document["exit_code"], document["acknowledged"]) == (0, [])
    acknowledged(ktrdr).is_error(2, "1 bar of that date is held")


def test_acknowledged_ranges_can_be_queried(ktrdr: Any, lacking: Path) -> None:
    """The command itself rebuilds the catalog."""
    acknowledged(ktrdr)
    found = ktrdr("query", "SELECT kind FROM coverage WHERE verdict = 'empty'", "--json").rows
    assert found == [{"kind": "acknowledged"}]
    assert ktrdr("query", "SELECT * FROM gaps", "--json").rows == []


def test_a_failure_to_rebuild_the_catalog_is_reported(ktrdr: Any, lacking: Path) -> None:
    """The acknowledgement is saved, and the exit code is 1."""
    (lacking / "ktrdr.duckdb").unlink()
    (lacking / "ktrdr.duckdb").mkdir()
    result = acknowledged(ktrdr)
    assert result.code == 1
    assert "is acknowledged" in result.out
    assert "the catalog is not up to date" in result.err
    assert len(ktrdr("gaps", "--json").document["acknowledged"]) == 1


def bar_store(folder: Path) -> BarStore:
    """Open the bar store of a folder."""
    layout = open_store(folder)
    return BarStore(layout, Ledger(layout.ledger))


def series_of(folder: Path, timeframe: str) -> Series:
    """Return a series of the universe."""
    universe, _ = universe_file(open_store(folder)).read()
    return Series(universe.instrument("AAPL"), Timeframe(timeframe))
