"""ktrdr export: files of bars that were loaded."""

from pathlib import Path
from typing import Any


def test_bars_are_exported(ktrdr: Any, store: Path, gateway: Any, tmp_path: Path) -> None:
    """One file a series; what has no bars is told, and nothing is overwritten unasked."""
    ktrdr("load", "AAPL", "1d,1h", "--start", "2024-01-02", "--end", "2024-01-06")
    out = str(tmp_path / "out")
    found = ktrdr("export", "AAPL", "--out", out, "--json").document
    assert (found["complete"], found["exit_code"], found["folder"]) == (True, 0, out)
    assert [(one["timeframe"], one["bars"]) for one in found["series"]] == [("1h", 28), ("1d", 4)]
    assert found["series"][1]["first"] == "2024-01-02T00:00:00Z"
    days = (tmp_path / "out" / "AAPL_1d.csv").read_text().splitlines()
    assert days[0] == "ts,open,high,low,close,volume"
    assert [one.split(",")[0] for one in days[1:]] == [f"2024-01-0{day}" for day in (2, 3, 4, 5)]
    ktrdr("export", "AAPL", "--out", out).is_error(2, "AAPL_1h.csv and 1 more exist")
    done = ktrdr("export", "AAPL,MSFT", "1d", "--out", out, "--overwrite", "--tz", "Asia/Tokyo")
    assert done.code == 3
    assert "AAPL_1d.csv" in done.out
    assert "MSFT 1d: no bars of this period are on disk" in done.err


def test_symbols_that_have_left_the_universe_are_exported(
    ktrdr: Any, store: Path, gateway: Any, tmp_path: Path
) -> None:
    """As long as they have bars; unknown ones are refused before anything is written."""
    ktrdr("load", "MSFT", "1d", "--start", "2024-01-02", "--end", "2024-01-06")
    text = (store / "universe.yaml").read_text().replace("  MSFT: {}\n", "")
    (store / "universe.yaml").write_text(text)
    out = tmp_path / "out"
    assert ktrdr("export", "MSFT", "--out", str(out)).code == 0
    assert [one.name for one in out.iterdir()] == ["MSFT_1d.csv"]
    ktrdr("export", "MSFT,XYZ", "--out", str(out), "--overwrite").is_error(2, "XYZ")
    ktrdr("export", "AAPL", "--out", str(out)).is_error(2, "no bars on disk")
