"""KTRDR_CLOCK_OFFSET_S on the command line: its effects, and the line that every command prints."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.cli.commands.up import _variables
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger

WITHOUT_A_GATEWAY = {
    "init": ("init",),
    "status": ("status",),
    "gaps": ("gaps",),
    "plan": ("plan",),
    "plan of a load": ("plan", "AAPL", "1d"),
    "verify": ("verify",),
    "repair": ("repair",),
    "query": ("query", "SELECT 1 AS n"),
    "universe check": ("universe", "check"),
    "universe add": ("universe", "add", "TSLA"),
    "universe rename": ("universe", "rename", "AAPL", "APPLE"),
    "universe retire": ("universe", "retire", "AAPL"),
    "health": ("health",),
    "doctor": ("doctor",),
    "probe": ("probe",),
    "ranges": ("ranges", "AAPL"),
    "load": ("load", "AAPL", "1d"),
    "update": ("update",),
    "up": ("up",),
}
"""Commands by name. Some end with an error, as no gateway is there; the line comes before it."""

OffsetTo = Callable[[datetime], float]


@pytest.fixture
def offset_to(monkeypatch: pytest.MonkeyPatch) -> OffsetTo:
    """Return a function that sets market time to a moment."""

    def move(moment: datetime) -> float:
        offset_s = (moment - datetime.now(tz=UTC)).total_seconds()
        monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", str(offset_s))
        return offset_s

    return move


@pytest.mark.parametrize("arguments", WITHOUT_A_GATEWAY.values(), ids=WITHOUT_A_GATEWAY)
def test_every_command_prints_market_time(
    ktrdr: Any,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    """It is the first line on stderr; without an offset there is none."""
    monkeypatch.chdir(tmp_path)
    assert "Clock:" not in ktrdr(*arguments).err
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "86400")
    result = ktrdr(*arguments)
    first = result.err.splitlines()[0]
    assert first.startswith(
        "Clock: market time is offset by +86400 s (KTRDR_CLOCK_OFFSET_S); it is now "
    ), result.all
    assert first.endswith("Z for the market")
    assert result.err.count("Clock:") == 1


def test_a_load_prints_market_time(
    ktrdr: Any, store: Path, gateway: Any, offset_to: OffsetTo
) -> None:
    """The document has the offset, and the audit has it, with real times."""
    before = datetime.now(tz=UTC)
    offset_s = offset_to(gateway.clock.now())
    result = ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--json")
    assert result.code == 0, result.all
    assert result.err.startswith(f"Clock: market time is offset by {offset_s:+.3f} s")
    assert result.document["market_clock_offset_s"] == offset_s
    requests = Ledger(StoreLayout(store).ledger).requests.newest(100)
    assert requests
    assert {one.clock_offset_s for one in requests} == {offset_s}
    assert all(before <= one.sent_at <= datetime.now(tz=UTC) for one in requests)
    rows = ktrdr("query", "SELECT DISTINCT clock_offset_s AS s FROM requests", "--json").rows
    assert rows == [{"s": offset_s}]


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("gaps",), ("plan",), ("verify",), ("repair",), ("universe", "check")],
)
def test_every_document_has_the_offset(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """It always does, so that programs can rely on it."""
    assert ktrdr(*arguments, "--json").document["market_clock_offset_s"] == 0.0
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "-60")
    assert ktrdr(*arguments, "--json").document["market_clock_offset_s"] == -60.0
    assert ktrdr("load", "NONE", "1d", "--json").document["market_clock_offset_s"] == -60.0


@pytest.mark.parametrize("value", ["", "tomorrow", "inf"])
def test_a_bad_offset_is_an_error_that_names_it(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Every command refuses it before it does anything."""
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", value)
    for arguments in (("status",), ("simulate",)):
        ktrdr(*arguments).is_error(2, f"KTRDR_CLOCK_OFFSET_S={value!r}", "such as -86400")
    document = ktrdr("status", "--json").document
    assert document["error"]["kind"] == "SettingsError"
    assert document["market_clock_offset_s"] is None


def test_help_ignores_invalid_settings(ktrdr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of commands and the version are printed whatever is set."""
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "tomorrow")
    assert ktrdr("--help").code == 0
    assert ktrdr("--version").code == 0


def test_no_gaps_at_the_market_time_of_a_gateway_in_the_past(
    ktrdr: Any,
    store: Path,
    gateway: Any,
    monkeypatch: pytest.MonkeyPatch,
    offset_to: OffsetTo,
) -> None:
    """All commands agree on what is due; without the offset all of them see gaps up to now."""
    offset_to(gateway.clock.now())
    result = ktrdr("update")
    assert result.code == 0, result.all
    first = len(gateway.requests)
    assert (ktrdr("gaps").code, ktrdr("verify").code) == (0, 0)
    assert all(not one["gaps"] for one in ktrdr("status", "--json").document["series"])
    assert ktrdr("plan", "--json").document["requests"] == 0
    assert ktrdr("plan", "AAPL", "1h", "--json").document["requests"] == 0
    assert ktrdr("load", "AAPL,MSFT", "1h,1d").code == 0
    assert ktrdr("update").code == 0
    assert [one for one in gateway.requests[first:] if one.bar_size] == []
    latest = "SELECT max(session_date)::VARCHAR AS d FROM sessions"
    assert ktrdr("query", latest, "--json").rows[0]["d"] < "2025-02-01"

    monkeypatch.delenv("KTRDR_CLOCK_OFFSET_S")
    assert ktrdr("gaps").code == 3
    assert any(one["gaps"] for one in ktrdr("status", "--json").document["series"])
    assert ktrdr("plan", "--json").document["requests"] > 0


def test_ranges_after_market_time_are_refused(
    ktrdr: Any, store: Path, gateway: Any, offset_to: OffsetTo
) -> None:
    """They are in the future of the market."""
    offset_to(gateway.clock.now())
    result = ktrdr("load", "AAPL", "1d", "--start", "2024-02-01")
    result.is_error(2, "in the future", "2024-01-10")


def test_dagsters_processes_get_the_offset(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable has every digit of the setting."""
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "-123456789.125")
    variables = _variables(Workspace.open())
    assert load_settings(variables).ktrdr_clock_offset_s == -123_456_789.125


def test_an_update_fills_gaps_of_a_manual_symbol_since_its_first_load(
    ktrdr: Any, store: Path, gateway: Any, offset_to: OffsetTo
) -> None:
    """It is kept fresh from the end of its first bars, as by the sensors."""
    universe = (store / "universe.yaml").read_text()
    (store / "universe.yaml").write_text(
        universe.replace("AAPL: {}", "AAPL: {backfill: manual, start: 2020-01-02}")
    )
    offset_to(gateway.clock.now())
    for first, end in (("2024-01-03", "2024-01-04"), ("2024-01-08", "2024-01-09")):
        assert ktrdr("load", "AAPL", "1d", "--start", first, "--end", end).code == 0
    planned = ktrdr("plan", "--json").document["series"]
    [days] = [one for one in planned if (one["symbol"], one["timeframe"]) == ("AAPL", "1d")]
    assert (days["missing"][0]["start"], days["bars"]) == ("2024-01-04T00:00:00Z", 3)
    result = ktrdr("update", "AAPL")
    assert result.code == 0, result.all
    held = "SELECT list(session_date::VARCHAR ORDER BY ts) AS days FROM series('AAPL', '1d')"
    assert ktrdr("query", held, "--json").rows == [
        {"days": ["2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"]}
    ]
