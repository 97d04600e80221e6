"""The system, the gap filler and the server itself by HTTP."""

from pathlib import Path
from typing import Any

import httpx


def data(response: httpx.Response) -> Any:
    """Return the document of a successful answer."""
    assert response.status_code == 200, response.text
    return response.json()["data"]


def test_the_state_of_the_system(filled: httpx.Client) -> None:
    """Store, gateway and gap filler, which does not run without Dagster."""
    assert data(filled.get("/api/v1/health"))["alive"] is True
    found = data(filled.get("/api/v1/system/system-status"))
    assert (found["origin"], found["symbols"], found["series"]) == ("simulated", 3, 4)
    assert found["ib"]["connection"]["host"] == "127.0.0.1"
    status = data(filled.get("/api/v1/system/gap-filler-status"))
    assert status["running"] is False
    assert set(status["symbols"]) == {"AAPL", "MSFT", "EURUSD"}


def test_the_gap_filler_is_switched_where_there_is_one(filled: httpx.Client) -> None:
    """Before `ktrdr up` has run there is none, and the error says so."""
    for action in ("start", "stop"):
        refused = filled.post(f"/api/v1/system/gap-filler/{action}")
        assert refused.status_code == 409
        assert refused.json()["error"]["code"] == "GAPFILLER-NotSetUp"
        assert "ktrdr up" in refused.json()["error"]["message"]


def test_a_forced_scan_fills_the_gaps_without_dagster(
    gateway: Any, client: httpx.Client, helpers: Any
) -> None:
    """By an update, which is an operation like a load."""
    found = data(client.post("/api/v1/system/gap-filler/force-scan"))
    assert found["sensor_woken"] is False
    path = f"/api/v1/operations/{found['operation']['id']}"
    ended = helpers.wait_for(lambda: (one := data(client.get(path)))["ended_at"] and one)
    assert ended["state"] == "completed", ended
    assert len(data(client.get("/api/v1/symbols"))) == 3


def test_another_store_at_the_path_is_refused(
    client: httpx.Client, store: Path, environment: dict[str, str], helpers: Any
) -> None:
    """Bars of one store beside loads into another would be a mixture; put back, it is served."""
    moved = store.with_name("moved")
    store.rename(moved)
    helpers.make_store(environment)
    body = {"symbol": "AAPL", "timeframe": "1d"}
    for response in (
        client.get("/api/v1/symbols"),
        client.get("/api/v1/data/AAPL/1d"),
        client.get("/api/v1/system/system-status"),
        client.post("/api/v1/ib/load", json=body),
    ):
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (503, "STORE-Unusable"), response.url
        assert "not the one that was opened" in error["message"]
    store.rename(store.with_name("other"))
    moved.rename(store)
    assert client.get("/api/v1/symbols").status_code == 200
