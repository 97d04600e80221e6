"""ktrdr status, gaps and verify on a terminal of 80 columns, and of a large universe."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.complete_series import save_complete

SYMBOLS = tuple(f"LONG-SYMBOL-NAME.{number:03}" for number in range(191))
"""Symbols of 20 characters, the longest there are."""
WIDTH = 80


def made_universe(data: Path, ktrdr: Any, count: int, timeframes: str = "1m, 1d") -> None:
    """Make a store of some symbols, each of which expects millions of bars."""
    data.mkdir()
    entry = f"{{symbol: AAPL, timeframes: [{timeframes}], start: 2005-01-03}}"
    lines = [f"  {symbol}: {entry}" for symbol in SYMBOLS[:count]]
    (data / "universe.yaml").write_text("symbols:\n" + "\n".join(lines) + "\n")
    assert ktrdr("init").code == 0


def tables(out: str) -> list[str]:
    """Return the lines of the tables, and the heading of each."""
    lines = out.splitlines()
    return [line for line in lines if line.startswith(" ") and not line.startswith("  and")]


@pytest.fixture
def wide(data: Path, ktrdr: Any) -> Path:
    """Make a store of two long symbols, with bars of ten years by the minute, and failures."""
    made_universe(data, ktrdr, 2)
    workspace = Workspace.open()
    series = Series(workspace.universe.instrument(SYMBOLS[0]), Timeframe.M1)
    gone = [date(2012, 1, 4), date(2013, 1, 3)]
    save_complete(workspace.store, series, date(2010, 1, 4), date(2021, 1, 4), without=gone)
    at = datetime.now(tz=UTC).replace(microsecond=0)
    ledger = Ledger(StoreLayout(data).ledger)
    for timeframe, kind in (("1m", "contradicted"), ("1d", "error")):
        ledger.attempts.record(
            *(
                f"{SYMBOLS[1]}|{timeframe}",
                Interval(datetime(2005, 1, 3, tzinfo=UTC), at + timedelta(days=1)),
                kind,
            ),
            error="a reason that takes more room than a terminal has, so that it is wrapped below",
            code=None,
            next_try_at=at + timedelta(minutes=15),
            at=at,
        )
    ledger.close()
    return data


def test_tables_fit_into_80_columns(wide: Path, terminal: Any, ktrdr: Any) -> None:
    """Numbers and dates are whole, long texts wrap between words, and a total is at the end."""
    for command, total in (
        (("status",), "Total: 4 series of 2 symbols, 1,074,810 bars; 7 gaps in 4 series, about"),
        (("gaps",), "7 gaps in 4 of 4 series (5 missing, 1 contradicted, 1 failed), about"),
        (("gaps", "--all"), "7 gaps in 4 of 4 series (5 missing, 1 contradicted, 1 failed), about"),
        (("verify",), "Total: 1,074,810 bars in 4 series read and checked: see above"),
    ):
        out = terminal(*command).out
        assert "…" not in out
        assert max(map(len, tables(out)), default=0) <= WIDTH, out
        assert out.replace("\n  ", " ").splitlines()[-1].startswith(total), out
    status = terminal("status").out
    (row,) = (line for line in status.splitlines() if f"{SYMBOLS[0]} 1m  " in line)
    assert row.split() == [SYMBOLS[0], "1m", "1,074,810", "2010-01-04", "2020-12-31", "4"]
    reasons = status[status.index("contradicted:") :].splitlines()[:3]
    assert " ".join(map(str.strip, reasons)).startswith(
        f"contradicted: {SYMBOLS[1]} 1m: 1 gap: a reason that takes more room than a terminal has,"
    )
    assert max(map(len, reasons)) <= WIDTH
    gaps = terminal("gaps", SYMBOLS[0], "1m").out.splitlines()
    at = next(number for number, line in enumerate(gaps) if "2012-01-04T14:30:00Z to" in line)
    numbers = ("1", "390", "missing")
    assert gaps[at].split() == [SYMBOLS[0], "1m", "2012-01-04T14:30:00Z", "to", *numbers]
    assert gaps[at + 1].split() == ["2012-01-04T21:00:00Z"]
    # A pipe is 160 columns wide, so no column is left out.
    assert "covered until" in ktrdr("status").out
    assert "next attempt" in ktrdr("gaps").out
    assert "verified before" in ktrdr("verify").out


def test_a_large_universe_is_summed_up(data: Path, ktrdr: Any) -> None:
    """Each report has a screenful; --all has each series, and one symbol all of its own."""
    made_universe(data, ktrdr, 191)
    verified = ktrdr("verify")
    assert verified.code == 3
    assert len(verified.out.splitlines()) < 15
    assert [line.split()[:4] for line in verified.out.splitlines() if "191" in line] == [
        ["1m", "191", "0", "191"],
        ["1d", "191", "0", "191"],
    ]
    assert SYMBOLS[7] in ktrdr("verify", SYMBOLS[7]).out
    assert all(symbol in ktrdr("verify", "--all").out for symbol in SYMBOLS[-2:])
    status = ktrdr("status")
    assert status.code == 0
    lines = status.out.splitlines()
    assert len(lines) < 40
    rows = [line.split() for line in lines]
    (minutes,) = [row for row in rows if row[:2] == ["1m", "191"]]
    assert minutes[2] == "0"
    assert sum(row[:1] == [symbol] for row in rows for symbol in SYMBOLS) == 10
    assert lines[-1].startswith("Total: 382 series of 191 symbols, 0 bars; 382 gaps in 382 series")
    assert sum(SYMBOLS[7] in line for line in ktrdr("status", "--all").out.splitlines()) >= 3
    assert len(ktrdr("status", "--all").out.splitlines()) > 2 * 191
    one = ktrdr("status", SYMBOLS[7])
    assert SYMBOLS[8] not in one.out
    assert "Total: 2 series of 1 symbol" in one.out
    assert len(ktrdr("status", SYMBOLS[7], "--json").document["series"]) == 2
    gaps = ktrdr("gaps")
    assert gaps.code == 3
    assert len(gaps.out.splitlines()) < 45
    assert "382 gaps in 382 of 382 series (382 missing)" in gaps.out.splitlines()[-1]
    assert len(ktrdr("gaps", "--all").out.splitlines()) > 382
    ktrdr("status", "NOPE").is_error(2, "NOPE")


def test_a_missing_permission_is_one_line(data: Path, ktrdr: Any) -> None:
    """Nine series that lack the same are one paragraph; another what_to_show is another."""
    made_universe(data, ktrdr, 9, "1d")
    with (data / "universe.yaml").open("a") as file:
        file.write("  EURUSD: {timeframes: [1d], start: 2024-01-02}\n")
    at = datetime.now(tz=UTC).replace(microsecond=0)
    ledger = Ledger(StoreLayout(data).ledger)
    for number, symbol in enumerate((*SYMBOLS[:9], "EURUSD")):
        ledger.attempts.record(
            *(
                f"{symbol}|1d",
                Interval(datetime(2024, 1, 2, tzinfo=UTC), at + timedelta(days=1)),
                "blocked",
            ),
            error=f"{symbol}: No market data permissions",
            code=354,
            next_try_at=at + timedelta(days=1, minutes=number),
            at=at + timedelta(seconds=number),
        )
    ledger.close()
    for command in ("status", "gaps"):
        blocked = [one for one in ktrdr(command).out.splitlines() if one.startswith("blocked: ")]
        assert len(blocked) == 2, blocked
        assert "and 1 more (9 series, SMART STK TRADES)" in blocked[0]
        assert f"next attempt at {at + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}" in blocked[0]
        assert blocked[1].startswith("blocked: EURUSD 1d: EURUSD: No market data permissions")
