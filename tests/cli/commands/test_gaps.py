"""ktrdr gaps, ktrdr verify and the blocked lines of ktrdr status."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.store.bars.bar_file import read_file, write_file
from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.older_files import make_older

DAYS = ("--start", "2024-01-02", "--end", "2024-01-10")
ENDED = "symbols: {AAPL: {start: 2024-01-02, timeframes: [1d]}}\n"


def _daily(store: Path) -> Path:
    return store / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"


def _take_out(path: Path, day: str) -> None:
    """Delete the bars of a session date with another program."""
    table = pq.read_table(path, partitioning=None)
    dates = pc.cast(table["session_date"], "string")
    pq.write_table(table.filter(pc.not_equal(dates, day)), path)


def _retrying(store: Path, kind: str, error: str) -> None:
    ledger = Ledger(open_store(store).ledger)
    at = datetime.now(tz=UTC)
    # Over the end of the day: a bar of it that closes before the next command is no other gap.
    ledger.attempts.record(
        *("MSFT|1d", Interval(datetime(2024, 1, 2, tzinfo=UTC), at + timedelta(days=1)), kind),
        error=error,
        code=354,
        next_try_at=at + timedelta(days=1),
        at=at,
    )
    ledger.close()


def test_an_empty_store_has_one_gap_a_series(ktrdr: Any, store: Path) -> None:
    """Without any bar, everything from the start on is one gap, and the exit code is 3."""
    result = ktrdr("gaps")
    assert (result.code, result.err) == (3, "")
    rows = [line.split() for line in result.out.splitlines() if " missing " in f"{line} "]
    assert sum(row[:1] in (["AAPL"], ["MSFT"], ["EURUSD"]) for row in rows) == 5
    assert "5 gaps in 5 of 5 series (5 missing)" in result.out
    assert "ktrdr load AAPL 1h requests the first" in result.out


def test_a_deleted_day_is_a_gap_with_its_reason(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The document has the range, sessions, bars and reason of each gap."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    before = ktrdr("gaps", "AAPL", "1d", "--json").document["gaps"]
    _take_out(_daily(store), "2024-01-04")
    document = ktrdr("gaps", "AAPL", "1d", "--json").document
    assert document["exit_code"] == 3
    assert document["gaps"][1:] == before
    assert document["gaps"][0] == {
        "symbol": "AAPL",
        "timeframe": "1d",
        "reason": "missing",
        "start": "2024-01-04T00:00:00Z",
        "end": "2024-01-05T00:00:00Z",
        "sessions": 1,
        "bars": 1,
        "detail": "no response has covered it yet",
        "next_try_at": None,
    }
    assert "2024-01-04" in ktrdr("gaps", "AAPL", "1d").out


def test_each_detail_is_printed_once(ktrdr: Any, store: Path) -> None:
    """The gateway's message is below the table, with the number of gaps that it explains."""
    _retrying(store, "error", "no answer in 30 s")
    result = ktrdr("gaps", "MSFT", "1d")
    assert "failed: no answer in 30 s (1 gap)" in result.out
    assert " failed " in result.out


def test_older_gaps_of_a_series_are_counted(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Ten gaps are listed, and the older ones counted in one row; --all lists every gap."""
    ktrdr("load", "AAPL", "1h", "--start", "2022-01-03", "--end", "2022-04-01")
    path = store / "bars" / "symbol=AAPL" / "timeframe=1h" / "all.parquet"
    (store / "universe.yaml").write_text("symbols: {AAPL: {start: 2022-01-03}}\n")
    for week in range(12):
        monday = datetime(2022, 1, 4, tzinfo=UTC) + timedelta(days=7 * week)
        _take_out(path, f"{monday:%Y-%m-%d}")
    result = ktrdr("gaps", "AAPL", "1h")
    assert "3 older gaps since 2022-01-04" in result.out
    assert "13 gaps in 1 of 1 series" in result.out
    assert (
        sum("2022-" in line for line in ktrdr("gaps", "AAPL", "1h", "--all").out.split("\n")) == 13
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("NOPE",), "NOPE"),
        (("AAPL", "2m"), "2m"),
        (("AAPL,,MSFT",), "empty"),
    ],
)
def test_unknown_names_are_bad_usage(
    ktrdr: Any, store: Path, arguments: tuple[str, ...], part: str
) -> None:
    """The error names the unknown symbol or timeframe."""
    ktrdr("gaps", *arguments).is_error(2, part)


def test_a_damaged_file_fails_its_series(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Gaps of other series are listed; the error names the file and ktrdr repair."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    _daily(store).write_bytes(b"junk")
    result = ktrdr("gaps")
    assert result.code == 1
    assert "all.parquet" in result.err
    assert "ktrdr repair" in result.err
    assert "4 gaps in 4 of 5 series" in result.out
    assert "1 series unreadable" in result.out
    assert "1 series unreadable: gaps are not known" in ktrdr("gaps", "AAPL", "1d").out
    assert ktrdr("gaps", "--json").document["errors"][0]["symbol"] == "AAPL"


def test_the_heatmap_shows_the_coverage(
    ktrdr: Any, store: Path, gateway: Any, tmp_path: Path
) -> None:
    """It is a PNG with the colours of complete, partial and missing coverage."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    path = tmp_path / "gaps.png"
    result = ktrdr("gaps", "--plot", str(path))
    assert f"Heatmap written to {path}" in result.out
    pixels = (imread(path, format="png")[..., :3] * 255).round().astype(int)
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()}
    assert {(205, 62, 54), (236, 238, 241)} <= colours
    ktrdr("gaps", "--plot", str(tmp_path / "no" / "x.png")).is_error(1, "x.png", "folder")
    ktrdr("gaps", "--plot", str(tmp_path / "x.svg")).is_error(2, "x.svg", "a PNG image")


def test_status_names_blocked_series(ktrdr: Any, store: Path) -> None:
    """It shows the gateway's message and the time of the next attempt."""
    _retrying(store, "blocked", "No market data permissions for ISLAND STK")
    result = ktrdr("status")
    assert "blocked: MSFT 1d: No market data permissions for ISLAND STK" in result.out
    assert "next attempt at" in result.out
    (row,) = (one for one in ktrdr("status", "--json").document["series"] if one["blocked"])
    assert row["gaps"][0]["reason"] == "blocked"


def test_verify_certifies_intact_series(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Counts, digest and the previous verification are printed."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    first = ktrdr("verify", "AAPL", "--json").document
    daily = next(one for one in first["certificates"] if one["timeframe"] == "1d")
    assert first["exit_code"] == 3
    assert (daily["sound"], daily["bars"], daily["outside_sessions"]) == (True, 6, 0)
    assert daily["sessions"]["have"] == 6
    assert daily["sessions"]["expected"] == 6 + daily["sessions"]["unexplained"]
    assert daily["verified_before"] is None
    again = ktrdr("verify", "AAPL")
    assert again.code == 3
    assert daily["digest"][:12] in again.out
    assert "the same" in again.out
    assert "6 bars in 2 series read and checked" in again.out


def test_two_stores_of_the_same_bars_have_one_digest(
    ktrdr: Any,
    store: Path,
    gateway: Any,
    new_budget: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The digest does not depend on how many loads wrote the bars."""

    def digest() -> str:
        document = ktrdr("verify", "AAPL", "--json").document
        found = [one for one in document["certificates"] if one["timeframe"] == "1d"]
        return str(found[0]["digest"])

    ktrdr("load", "AAPL", "1d", *DAYS)
    here = digest()
    other = tmp_path / "other"
    other.mkdir()
    (other / "universe.yaml").write_text((store / "universe.yaml").read_text())
    monkeypatch.setenv("KTRDR_DATA", str(other))
    assert ktrdr("init").code == 0
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-05", "--end", "2024-01-10")
    assert digest() != here
    new_budget()
    ktrdr("load", "AAPL", "1d", *DAYS)
    assert digest() == here


def test_verify_finds_impossible_prices(ktrdr: Any, store: Path, gateway: Any) -> None:
    """A high below the low, in a file whose counts all agree, is corrupt: exit code 1."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    path = _daily(store)
    table = pq.read_table(path, partitioning=None)
    place = table.schema.get_field_index("high")
    low = pc.subtract(table["low"], 1.0)
    pq.write_table(table.set_column(place, table.schema.field("high"), low), path)
    result = ktrdr("verify", "AAPL")
    assert result.code == 1
    assert (
        "of 2024-01-02 and 5 other session dates have other values than were written" in result.err
    )
    assert "ktrdr repair" in result.err
    assert "corrupt" in result.out
    assert _daily_certificate(ktrdr("verify", "AAPL", "--json").document)["findings"] == []


def _write_impossible_highs(store: Path, *, keeps_footer: bool) -> None:
    """Write highs below the lows with another program, in a file of an earlier version."""
    path = _daily(store)
    make_older(open_store(store), path)
    table = pq.read_table(path, partitioning=None)
    low = pc.subtract(table["low"], 1.0)
    table = table.set_column(table.schema.get_field_index("high"), "high", low)
    pq.write_table(table if keeps_footer else table.replace_schema_metadata(None), path)


@pytest.mark.parametrize("keeps_footer", [True, False])
def test_implausible_bars_of_another_program_are_damage(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any, *, keeps_footer: bool
) -> None:
    """They stay damage however often they are repaired, until the next load requests them again."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    _write_impossible_highs(store, keeps_footer=keeps_footer)
    first = ktrdr("repair")
    assert "the next load requests them again" in first.out
    assert "footer was lost" not in first.out
    for _ in range(2):
        certificate = _daily_certificate(ktrdr("verify", "AAPL", "--json").document)
        assert (certificate["sound"], certificate["findings"]) == (False, [])
        again = ktrdr("repair", "--json").document
        assert (again["findings"], again["distrusted"], again["fixed"]) == (0, [], [])
    new_budget()
    ktrdr("load", "AAPL", "1d", *DAYS)
    certificate = _daily_certificate(ktrdr("verify", "AAPL", "--json").document)
    assert (certificate["sound"], certificate["findings"]) == (True, [])


@pytest.mark.parametrize("keeps_footer", [True, False])
def test_a_load_does_not_hide_damage(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any, *, keeps_footer: bool
) -> None:
    """A save that rewrites the file makes its implausible bars missing again."""
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    _write_impossible_highs(store, keeps_footer=keeps_footer)
    ktrdr("load", "AAPL", "1d", "--start", "2024-01-08", "--end", "2024-01-10")
    ktrdr("repair")
    certificate = _daily_certificate(ktrdr("verify", "AAPL", "--json").document)
    assert (certificate["sound"], certificate["findings"]) == (False, [])
    new_budget()
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    certificate = _daily_certificate(ktrdr("verify", "AAPL", "--json").document)
    assert (certificate["sound"], certificate["findings"], certificate["bars"]) == (True, [], 6)


def _change_first_value(store: Path, column: str, value: float) -> None:
    """Change a value of the first daily bar, in a file as the store itself writes it."""
    path = _daily(store)
    facts, bars = read_file(path)
    place = bars.schema.get_field_index(column)
    field = bars.schema.field(column)
    values = pa.array([value, *bars[column].to_pylist()[1:]], field.type)
    write_file(path, bars.set_column(place, field, values), facts)


def _daily_certificate(document: Any) -> Any:
    return next(one for one in document["certificates"] if one["timeframe"] == "1d")


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("high", 0.01, "price_range"),
        ("close", 0.0, "price_sign"),
        ("close", -5.0, "price_sign"),
        ("open", 1e308, "price_size"),
        ("volume", -5.0, "volume"),
    ],
)
def test_repair_turns_implausible_bars_into_findings(
    ktrdr: Any, store: Path, gateway: Any, *, column: str, value: float, kind: str
) -> None:
    """Before it they are damage, exit code 1; afterwards they are listed as findings."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    _change_first_value(store, column, value)
    before = ktrdr("verify", "AAPL")
    assert before.code == 1
    assert "1 bars have implausible values" in before.err
    assert "kept as the gateway's" in ktrdr("repair").out
    document = ktrdr("verify", "AAPL", "--json").document
    assert document["exit_code"] == 3, "days are missing, nothing is damaged"
    certificate = _daily_certificate(document)
    assert (certificate["sound"], certificate["wrong"]) == (True, [])
    (finding,) = certificate["findings"]
    assert (finding["ts"], finding["kind"]) == ("2024-01-02T00:00:00Z", kind)
    assert f"{column}={value!r}" in finding["detail"]
    result = ktrdr("verify", "AAPL")
    assert "1 bar with implausible values, kept as the gateway returned them" in result.out
    assert f"2024-01-02 00:00Z {kind}" in result.out
    assert "AAPL 1d (1)" in ktrdr("status").out
    counts = {
        (one["symbol"], one["timeframe"]): one["findings"]
        for one in ktrdr("status", "--json").document["series"]
    }
    assert counts.pop(("AAPL", "1d")) == 1
    assert set(counts.values()) == {0}
    assert ktrdr("repair", "--json").document["findings"] == 0, "they are known already"


def test_a_finding_does_not_hide_damage(ktrdr: Any, store: Path, gateway: Any) -> None:
    """Other values of the same bar are damage."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    _change_first_value(store, "close", -5.0)
    ktrdr("repair")
    _change_first_value(store, "close", -6.0)
    result = ktrdr("verify", "AAPL", "--json")
    assert result.code == 1
    assert _daily_certificate(result.document)["findings"] == []


def test_a_refresh_ends_a_finding(ktrdr: Any, store: Path, gateway: Any, new_budget: Any) -> None:
    """The finding is gone once the gateway returns a plausible bar."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    _change_first_value(store, "close", -5.0)
    ktrdr("repair")
    new_budget()
    ktrdr("load", "AAPL", "1d", *DAYS, "--refresh")
    assert _daily_certificate(ktrdr("verify", "AAPL", "--json").document)["findings"] == []
    assert "implausible" not in ktrdr("status").out


def test_bars_at_other_prices_are_reported_until_a_refresh(
    ktrdr: Any, store: Path, gateway: Any, new_budget: Any
) -> None:
    """Status and verify exit with 3, and nothing is damaged."""
    (store / "universe.yaml").write_text(ENDED.replace("1d]", "1d], end: 2024-01-10"))
    ktrdr("load", "AAPL", "1d", *DAYS)
    assert ktrdr("status").code == ktrdr("verify").code == 0
    at = datetime(2024, 1, 8, tzinfo=UTC)
    ledger = Ledger(open_store(store).ledger)
    lots = Disagreement(at, at + timedelta(days=1), 2, 100.0, DisagreementKind.VOLUME)
    ledger.disagreements.record("AAPL|1d", lots, at)
    for command in ("status", "verify"):
        result = ktrdr(command)
        assert result.code == 0
        assert "in shares, the others in lots of 100" in result.out
    (series,) = ktrdr("status", "--json").document["series"]
    assert [one["ratio"] for one in series["volume_jumps"]] == [100.0]
    ledger.disagreements.clear("AAPL|1d")
    ledger.disagreements.record("AAPL|1d", Disagreement(at, at + timedelta(days=1), 2, 0.5), at)
    ledger.close()
    for command in ("status", "verify"):
        result = ktrdr(command)
        assert result.code == 3
        assert "2 held bars" in result.out
        assert "0.5 times their price" in result.out
        assert "ktrdr load AAPL 1d --refresh" in result.out
    expected = {
        "first": "2024-01-08T00:00:00Z",
        "last": "2024-01-09T00:00:00Z",
        "bars": 2,
        "ratio": 0.5,
    }
    (certificate,) = ktrdr("verify", "--json").document["certificates"]
    assert (certificate["sound"], certificate["disagreements"]) == (True, [expected])
    (series,) = ktrdr("status", "--json").document["series"]
    assert series["disagreements"] == [expected]
    document = ktrdr("load", "AAPL", "1d", "--json").document
    assert (document["exit_code"], document["complete"]) == (3, False)
    assert document["series"][0]["disagreements"] == [expected]
    new_budget()
    assert ktrdr("load", "AAPL", "1d", "--refresh").code == 0
    assert ktrdr("status").code == ktrdr("verify").code == 0


def test_damage_takes_precedence_over_other_prices(ktrdr: Any, store: Path, gateway: Any) -> None:
    """An unreadable file makes the exit code 1."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    at = datetime(2024, 1, 8, tzinfo=UTC)
    ledger = Ledger(open_store(store).ledger)
    ledger.disagreements.record("AAPL|1d", Disagreement(at, at, 1, 0.5), at)
    ledger.close()
    _daily(store).write_bytes(b"junk")
    assert ktrdr("verify", "AAPL").code == 1
    assert ktrdr("status").code == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("probed", "unconfirmed"), ("contradicted", "contradicted"), ("sparse", "sparse")],
)
def test_gaps_that_await_a_response_name_its_time(
    ktrdr: Any, store: Path, kind: str, reason: str
) -> None:
    """Gaps and status show the reason, the detail and the time of the next request."""
    at = datetime.now(tz=UTC).replace(microsecond=0)
    due, ledger = at + timedelta(minutes=15), Ledger(open_store(store).ledger)
    ledger.attempts.record(
        *("MSFT|1d", Interval(datetime(2024, 1, 2, tzinfo=UTC), at + timedelta(days=1)), kind),
        error="a second response is due",
        code=None,
        next_try_at=due,
        at=at,
    )
    ledger.close()
    text = f"{due:%Y-%m-%dT%H:%M:%SZ}"
    (gap,) = ktrdr("gaps", "MSFT", "1d", "--json").document["gaps"]
    assert (gap["reason"], gap["next_try_at"]) == (reason, text)
    assert gap["detail"] == "a second response is due"
    result = ktrdr("gaps", "MSFT", "1d").out
    assert text in result
    assert f"{reason}: a second response is due" in result
    assert (
        f"{reason}: MSFT 1d: 1 gap: a second response is due; next request at {text}"
        in ktrdr("status").out
    )


def test_verify_reads_files_with_an_unchanged_fingerprint(
    ktrdr: Any, store: Path, gateway: Any
) -> None:
    """Status relies on the fingerprint of a file; verify reads its content."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    path = _daily(store)
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert ktrdr("status").code == 0
    result = ktrdr("verify", "AAPL")
    assert result.code == 1
    assert "all.parquet" in result.err


def test_gaps_can_be_queried(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The catalog has a table of them, after a load and after a repair."""
    ktrdr("load", "AAPL", "1d", *DAYS)
    question = "SELECT symbol, timeframe, reason, sessions > 0 AS some FROM gaps ORDER BY ALL"
    expected = [
        {"symbol": symbol, "timeframe": timeframe, "reason": "missing", "some": True}
        for symbol, timeframe in (
            ("AAPL", "1d"),
            ("AAPL", "1h"),
            ("EURUSD", "1h"),
            ("MSFT", "1d"),
            ("MSFT", "1h"),
        )
    ]
    assert ktrdr("query", question, "--json").rows == expected
    assert ktrdr("repair").code == 0
    assert ktrdr("query", question, "--json").rows == expected
