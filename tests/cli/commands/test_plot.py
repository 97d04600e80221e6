"""ktrdr plot: the file that it writes, its document, and what it refuses."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

DAYS = ("--start", "2024-01-02", "--end", "2024-01-10")


@pytest.fixture
def daily(ktrdr: Any, store: Path, gateway: Any) -> Path:
    """Return a store with the daily bars of a week."""
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    return store


def test_the_file_and_its_document(ktrdr: Any, daily: Path, tmp_path: Path) -> None:
    """The chart is written, and the document says what it shows."""
    path = tmp_path / "aapl.png"
    document = ktrdr("plot", "AAPL", "1d", *DAYS, "--out", str(path), "--json").document
    assert imread(BytesIO(path.read_bytes()), format="png").shape[:2] == (700, 1200)
    assert document.pop("market_clock_offset_s") == 0
    assert document == {
        "complete": True,
        "exit_code": 0,
        "path": str(path),
        "format": "png",
        "symbol": "AAPL",
        "timeframe": "1d",
        "bars": 6,
        "form": "candles",
        "bars_per_column": 1,
        "start": "2024-01-02T00:00:00Z",
        "end": "2024-01-09T00:00:00Z",
        "zone": "America/New_York",
        "raw": False,
        "gaps": [],
    }


def test_what_is_missing_is_counted(
    ktrdr: Any, daily: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an end the chart shows what has not been loaded since, and exits with 0."""
    monkeypatch.chdir(tmp_path)
    result = ktrdr("plot", "AAPL", "1d")
    assert result.code == 0
    assert "6 bars of AAPL 1d drawn as candles: AAPL_1d.png" in result.out
    assert "1 range shaded, in which" in result.out
    assert (tmp_path / "AAPL_1d.png").stat().st_size > 10_000
    document = ktrdr("plot", "AAPL", "1d", "--json").document
    assert document["complete"] is False
    assert document["gaps"][0]["start"] == "2024-01-10T00:00:00Z"
    assert document["gaps"][0]["reason"] == "missing"


def test_a_file_is_replaced_in_one_step(ktrdr: Any, daily: Path, tmp_path: Path) -> None:
    """Nothing but the file is left, also where it existed."""
    folder = tmp_path / "images"
    folder.mkdir()
    for suffix in ("svg", "pdf", "PNG", "svg"):
        assert ktrdr("plot", "AAPL", "1d", "--out", str(folder / f"a.{suffix}")).code == 0
    assert sorted(one.name for one in folder.iterdir()) == ["a.PNG", "a.pdf", "a.svg"]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("AAPL", "1d", "--out", "a.jpg"), 2, ("a.jpg", ".jpg", "png", "svg", "pdf")),
        (("AAPL", "1d", "--out", "chart"), 2, ("chart", "no suffix", "png")),
        (("AAPL", "1d", "--out", "no/where.png"), 1, ("no/where.png", "there is no folder no")),
        (("AAPL", "1h"), 3, ("AAPL 1h", "no bars", "ktrdr load AAPL 1h")),
        (("AAPL", "1d", "--start", "2024-01-06", "--end", "2024-01-08"), 2, ("no bar lies",)),
        (("APPL", "1d"), 2, ("APPL", "Did you mean AAPL")),
    ],
)
def test_what_cannot_be_drawn_is_an_error(
    ktrdr: Any, daily: Path, arguments: tuple[str, ...], code: int, parts: tuple[str, ...]
) -> None:
    """The message names what is wrong and what to do, and no file is written."""
    ktrdr("plot", *arguments).is_error(code, *parts, "Hint")
