"""KTRDR_CLOCK_OFFSET_S on the command line: what it moves, and that every command says so."""

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
    """Let market time stand at a moment."""

    def move(moment: datetime) -> float:
        offset_s = (moment - datetime.now(tz=UTC)).total_seconds()
        monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", str(offset_s))
        return offset_s

    return move


@pytest.mark.parametrize("arguments", WITHOUT_A_GATEWAY.values(), ids=WITHOUT_A_GATEWAY)
def test_every_command_says_where_market_time_stands(
    ktrdr: Any,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    """One line on stderr, the first; without an offset there is none."""
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


def test_a_load_says_it_too(ktrdr: Any, store: Path, gateway: Any, offset_to: OffsetTo) -> None:
    """Beside what it reports, and in its document; the audit has it, by real time."""
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
    rows = ktrdr("query", "SELECT DISTINCT clock_offset_s AS s FROM requests", "--json").document
    assert rows == [{"s": offset_s}]


@pytest.mark.parametrize(
    "arguments",
    [("status",), ("gaps",), ("plan",), ("verify",), ("repair",), ("universe", "check")],
)
def test_every_document_has_the_offset(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Always, so that programs may rely on it."""
    assert ktrdr(*arguments, "--json").document["market_clock_offset_s"] == 0.0
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "-60")
    assert ktrdr(*arguments, "--json").document["market_clock_offset_s"] == -60.0
    assert ktrdr("load", "NONE", "1d", "--json").document["market_clock_offset_s"] == -60.0


@pytest.mark.parametrize("value", ["", "tomorrow", "inf"])
def test_a_bad_offset_is_an_error_that_names_it(
    ktrdr: Any, store: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """Before anything is done, whatever the command."""
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", value)
    for arguments in (("status",), ("simulate",)):
        ktrdr(*arguments).is_error(2, f"KTRDR_CLOCK_OFFSET_S={value!r}", "such as -86400")
    document = ktrdr("status", "--json").document
    assert document["error"]["kind"] == "SettingsError"
    assert document["market_clock_offset_s"] is None


def test_help_needs_no_good_environment(ktrdr: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of commands and the version come whatever is set."""
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "tomorrow")
    assert ktrdr("--help").code == 0
    assert ktrdr("--version").code == 0


def test_a_gateway_in_the_past_makes_no_gaps_where_market_time_is_its_time(
    ktrdr: Any,
    store: Path,
    gateway: Any,
    monkeypatch: pytest.MonkeyPatch,
    offset_to: OffsetTo,
) -> None:
    """All commands that look at what is due agree; without the offset all see gaps up to now."""
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
    assert ktrdr("query", latest, "--json").document[0]["d"] < "2025-02-01"

    monkeypatch.delenv("KTRDR_CLOCK_OFFSET_S")
    assert ktrdr("gaps").code == 3
    assert any(one["gaps"] for one in ktrdr("status", "--json").document["series"])
    assert ktrdr("plan", "--json").document["requests"] > 0


def test_what_lies_after_market_time_is_the_future(
    ktrdr: Any, store: Path, gateway: Any, offset_to: OffsetTo
) -> None:
    """A range beyond it is refused like one beyond now."""
    offset_to(gateway.clock.now())
    result = ktrdr("load", "AAPL", "1d", "--start", "2024-02-01")
    result.is_error(2, "in the future", "2024-01-10")


def test_dagsters_processes_get_the_offset(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the digit, as the settings that they are to share."""
    monkeypatch.setenv("KTRDR_CLOCK_OFFSET_S", "-123456789.125")
    variables = _variables(Workspace.open())
    assert load_settings(variables).ktrdr_clock_offset_s == -123_456_789.125


def test_an_update_fills_what_lies_between_the_mark_and_the_newest_bar(
    ktrdr: Any, store: Path, gateway: Any, offset_to: OffsetTo
) -> None:
    """A manual symbol is kept fresh from where its first bars ended, as sensors do it."""
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
    assert ktrdr("query", held, "--json").document == [
        {"days": ["2024-01-03", "2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09"]}
    ]
