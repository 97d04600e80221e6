"""Bars, symbols, ranges and gaps by HTTP, from the store alone."""

import io

from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
BARS = "/api/v1/data/AAPL/1h"


def data(response: httpx.Response) -> Any:
    """Return the document of a successful answer."""
    assert response.status_code == 200, response.text
    found = response.json()
    assert found["success"] is True
    assert found["error"] is None
    return found["data"]


def test_all_symbols_with_bars_are_listed(
    gateway: Any, client: httpx.Client, store: Path
) -> None:
    """Those that left the universe among them; they stay readable."""
    for symbol, timeframe in (("AAPL", "1d"), ("AAPL", "1h"), ("MSFT", "1d")):
        body = {"symbol": symbol, "timeframe": timeframe, "mode": "full"}
        assert client.post("/api/v1/data/load", json=body).json()["success"]
    listed = data(client.get("/api/v1/symbols"))
    assert {one["symbol"]: one["available_timeframes"] for one in listed} == {
        "AAPL": ["1h", "1d"],
        "MSFT": ["1d"],
    }
    assert all(one["in_universe"] for one in listed)
    (store / "universe.yaml").write_text("symbols: {AAPL: {start: 2024-01-02}}\n")
    listed = data(client.get("/api/v1/symbols"))
    assert {one["symbol"] for one in listed if not one["in_universe"]} == {"MSFT"}
    left = data(client.get("/api/v1/data/MSFT/1d"))
    assert len(left["dates"]) == 6
    assert left["metadata"]["complete"] is None
    assert client.get("/api/v1/data/MSFT/1d?trading_hours_only=true").status_code == 409


def test_timeframes_and_ranges(filled: httpx.Client) -> None:
    """A series without bars has null, a timeframe of a list that is unknown is refused."""
    assert [one["id"] for one in data(filled.get("/api/v1/timeframes"))] == [
        *("1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w")
    ]
    body = {"symbol": "AAPL", "timeframe": "1d"}
    found = data(filled.post("/api/v1/data/range", json=body))
    assert (found["start_date"], found["point_count"]) == ("2024-01-02T00:00:00Z", 6)
    found = data(filled.post("/api/v1/data/range", json={**body, "timeframe": "1w"}))
    assert (found["start_date"], found["point_count"]) == (None, 0)
    ranges = data(filled.get("/api/v1/ib/ranges?symbols=AAPL,MSFT&timeframes=1d,1h"))
    by_symbol = {one["symbol"]: one["ranges"] for one in ranges["symbols"]}
    assert by_symbol["MSFT"]["1h"] is None
    assert by_symbol["AAPL"]["1d"]["earliest_date"] == "2024-01-02T00:00:00Z"
    assert len(data(filled.get("/api/v1/ib/ranges"))["symbols"]) == 3
    wrong = filled.get("/api/v1/ib/ranges?timeframes=1d,2h")
    assert wrong.status_code == 422
    assert wrong.json()["error"]["details"]["field"] == "timeframes"


def test_bars_are_the_same_in_every_format(filled: httpx.Client) -> None:
    """Streamed, and equal when read back."""
    found = data(filled.get(f"{BARS}?points=true"))
    arrow = filled.get(BARS, headers={"Accept": f"{ARROW}, application/json;q=0.5"})
    assert arrow.headers["Content-Type"] == ARROW
    assert arrow.headers["Vary"] == "Accept"
    with pa.ipc.open_stream(arrow.content) as stream:
        table = stream.read_all()
    parquet = filled.get(BARS, headers={"Accept": PARQUET})
    assert pq.read_table(io.BytesIO(parquet.content)).equals(table)
    rows = zip(*(table[name].to_pylist() for name in found["points"][0] if name != "timestamp"))
    assert [tuple(row) for row in found["ohlcv"]] == list(rows)
    lines = filled.get(BARS, headers={"Accept": "text/*"}).text.splitlines()
    assert lines[0] == "date,open,high,low,close,volume"
    assert len(lines) == table.num_rows + 1
    assert lines[1].startswith(found["dates"][0])
    refused = filled.get(BARS, headers={"Accept": "text/html"})
    assert refused.status_code == 406
    assert ARROW in refused.json()["error"]["details"]["offered"]


def test_a_range_is_cut_as_asked(filled: httpx.Client) -> None:
    """Dates are session dates; the oldest so many can be continued; the newest so many."""
    whole = data(filled.get(BARS))["dates"]
    days = data(filled.get(f"{BARS}?start_date=2024-01-04&end_date=2024-01-06"))
    assert days["dates"] == [one for one in whole if "2024-01-04" <= one[:10] <= "2024-01-05"]
    assert days["metadata"]["complete"] is True
    instants = data(
        filled.get(f"{BARS}?start_date=2024-01-04T15:00:00Z&end_date=2024-01-04T11:00:00-05:00")
    )
    assert instants["dates"] == ["2024-01-04T15:00:00Z"]
    assert data(filled.get(f"{BARS}?last=3"))["dates"] == whole[-3:]
    read: list[str] = []
    response = filled.get(f"{BARS}?limit=7&end_date=2024-01-06")
    while True:
        read += data(response)["dates"]
        if "Link" not in response.headers:
            break
        response = filled.get(response.links["next"]["url"])
        assert len(data(response)["dates"]) <= 7
    assert read == [one for one in whole if one[:10] <= "2024-01-05"]
    first = data(filled.get("/api/v1/data/AAPL/1d?limit=2"))["metadata"]
    assert (first["truncated"], first["next_start"]) == (True, "2024-01-04")


def test_an_empty_range_has_no_bars(filled: httpx.Client) -> None:
    """With the right types, and what it lacks."""
    found = data(filled.get(f"{BARS}?start_date=2023-01-01&end_date=2023-02-01"))
    assert (found["dates"], found["ohlcv"], found["metadata"]["count"]) == ([], [], 0)
    table = pq.read_table(
        io.BytesIO(filled.get(f"{BARS}?end_date=2023-01-01", headers={"Accept": PARQUET}).content)
    )
    assert table.schema.field("ts").type == pa.timestamp("us", tz="UTC")
    missing = data(filled.get("/api/v1/data/AAPL/1m"))["metadata"]
    assert missing["complete"] is False
    assert missing["missing"][0]["reason"] == "missing"
    gaps = data(filled.get("/api/v1/data/AAPL/1m/gaps"))
    assert gaps["gaps"][0]["reason"] == "missing"
    assert data(filled.get("/api/v1/data/AAPL/1d/gaps"))["gaps"] == []


def test_hours_of_the_calendar(filled: httpx.Client) -> None:
    """All bars of this symbol are in sessions; the flag that keeps the others has precedence."""
    whole = data(filled.get(BARS))["dates"]
    for query in ("trading_hours_only=true", "trading_hours_only=true&include_extended=true"):
        assert data(filled.get(f"{BARS}?{query}"))["dates"] == whole


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/api/v1/data/NOPE/1d", 404, "symbol"),
        ("/api/v1/data/AAPL/3m", 404, "timeframe"),
        ("/api/v1/data/A$B/1d", 404, "symbol"),
        ("/api/v1/data/NOPE/1d/gaps", 404, "symbol"),
        ("/api/v1/data/AAPL/1d?start_date=2024-01-04T10:00:00", 422, "start_date"),
        ("/api/v1/data/AAPL/1d?start_date=yesterday", 422, "start_date"),
        ("/api/v1/data/AAPL/1d?start_date=2024-01-05&end_date=2024-01-02", 422, "start_date"),
        ("/api/v1/data/AAPL/1d?limit=0", 422, "limit"),
        ("/api/v1/data/AAPL/1d?last=1.5", 422, "last"),
        ("/api/v1/data/AAPL/1d?last=1&limit=1", 422, "last"),
        ("/api/v1/data/AAPL/1d?points=perhaps", 422, "points"),
        ("/api/v1/data/AAPL/1d?start=2024-01-04", 422, "start"),
        ("/api/v1/data/AAPL/1d?last=1&last=2", 422, "last"),
        ("/api/v1/ib/ranges?symbols=AAPL,NOPE", 404, "symbol"),
    ],
)
def test_a_wrong_value_is_refused_and_named(
    filled: httpx.Client, path: str, status: int, field: str
) -> None:
    """No traceback, no HTML, and the field."""
    response = filled.get(path)
    assert response.status_code == status, response.text
    assert response.json()["error"]["details"]["field"] == field
