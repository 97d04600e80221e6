"""ktrdr export and import-csv: bars to files of other programs, and from them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ktrdr_pipelines import open_store


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
    ktrdr("export", "AAPL,MSFT", "--out", out, "--overwrite").is_error(2, "MSFT: it has no bars")
    assert ktrdr("export", "AAPL", "1d,ALL", "--out", out, "--overwrite").code == 0
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


def test_a_folder_of_the_original_goes_through_unchanged(
    ktrdr: Any,
    store: Path,
    gateway: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    new_budget: Callable[[], None],
) -> None:
    """Imported, queried, continued from the gateway and exported, it is equal byte for byte."""
    period = ("--start", "2024-01-02", "--end", "2024-01-06")
    loads = (("AAPL", "1h,1d"), ("EURUSD", "1h"))
    originals = tmp_path / "ktrdr"
    originals.mkdir()
    for symbol, timeframes in loads:
        assert ktrdr("load", symbol, timeframes, *period).code == 0
        for timeframe in timeframes.split(","):
            frame = open_store(store).read_bars(symbol, timeframe).fillna({"volume": -1.0})
            frame.index.name = "date"
            path = originals / f"{symbol}_{timeframe}.csv"
            frame.to_csv(path, date_format="%Y-%m-%dT%H:%M:%SZ")
    wanted = {path.name: path.read_text() for path in originals.iterdir()}

    data = tmp_path / "new"
    data.mkdir()
    shutil.copy(store / "universe.yaml", data)
    monkeypatch.setenv("KTRDR_DATA", str(data))
    assert ktrdr("init").code == 0
    before = ktrdr("gaps", "--json").document["counts"]
    found = ktrdr("import-csv", str(originals), "--json").document
    assert (found["complete"], found["exit_code"], found["bad_rows"]) == (True, 0, 0)
    assert [one["name"] for one in found["files"]] == sorted(wanted)
    assert found["added"] == found["bars"] == sum(one.count("\n") - 1 for one in wanted.values())
    assert ktrdr("gaps", "--json").document["counts"] == before
    again = ktrdr("import-csv", str(originals), "--json").document
    assert (again["added"], again["changed"], again["bars"]) == (0, 0, found["bars"])

    sql = "SELECT origin, count(*) AS n FROM bars GROUP BY ALL ORDER BY ALL"
    assert ktrdr("query", sql, "--json").rows == [{"origin": "import", "n": found["bars"]}]
    imported = open_store(data).read_bars("AAPL", "1h")
    assert set(imported.pop("origin")) == {"import"}
    assert _exported(ktrdr, tmp_path / "first") == wanted

    new_budget()
    assert ktrdr("load", "AAPL", "1h", *period, "--wait", "1").code == 0
    held = open_store(data).read_bars("AAPL", "1h")
    assert set(held.pop("origin")) == {"simulated"}
    pd.testing.assert_frame_equal(held, imported)
    rows = ktrdr("query", sql, "--json").rows
    assert [one["origin"] for one in rows] == ["import", "simulated"]
    assert sum(one["n"] for one in rows) == found["bars"]
    assert _exported(ktrdr, tmp_path / "second") == wanted


def _exported(ktrdr: Any, out: Path) -> dict[str, str]:
    """Return the files of an export of all series in the layout of the original."""
    done = ktrdr("export", "AAPL,EURUSD", "--out", str(out), "--layout", "ktrdr")
    assert done.code == 0, done.all
    return {path.name: path.read_text() for path in out.iterdir()}


def test_what_is_not_imported_is_said(ktrdr: Any, store: Path, tmp_path: Path) -> None:
    """Bad rows by file and line, files with the reason; the exit code says how far it went."""
    folder = tmp_path / "files"
    folder.mkdir()
    good = "2024-01-02,1,2,0.5,1.5,10\n"
    rows = "".join(f"2024-01-03,1,0,0.5,1.5,{n}\n" for n in range(12))
    (folder / "AAPL_1d.csv").write_text(f"Date,Open,High,Low,Close,Volume\n{good}{rows}")
    (folder / "XYZ_1d.csv").write_text(f"Date,Open,High,Low,Close,Volume\n{good}")
    done = ktrdr("import-csv", str(folder))
    assert done.code == 3
    assert "1 bar added, 0 changed, 12 bad rows" in done.out
    assert "AAPL_1d.csv, line 3: high 0.0 is below low 0.5" in done.err
    assert "2 bad rows more" in done.err
    assert "`ktrdr universe add XYZ`" in done.err
    document = ktrdr("import-csv", str(folder), "--strict", "--json").document
    assert (document["exit_code"], document["complete"], document["bars"]) == (1, False, 0)
    assert [one["error"]["kind"] for one in document["files"]] == [
        *("UsageError", "UnknownSymbolError"),
    ]
    (folder / "XYZ_1d.csv").unlink()
    (folder / "AAPL_1d.csv").write_text(f"Date,Open,High,Low,Close,Volume\n{rows}")
    assert ktrdr("import-csv", str(folder)).code == 1  # every row is bad
    ktrdr("import-csv", str(tmp_path / "none")).is_error(2, "no such folder")
    ktrdr("import-csv", str(folder), "--tz", "Mars").is_error(2, "no such time zone")
