"""Loads by HTTP: in all modes, waited for or not, partial, cancelled, dropped and interrupted."""

import asyncio
import json
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from ktrdr_pipelines.simulator.faults.fault_file import parse_faults
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour

LOAD = {"symbol": "MSFT", "timeframe": "1h", "mode": "full"}
ASYNC = {"Prefer": "wait=5, Respond-Async"}
NOW = "2024-01-10T20:00:30+00:00"


def loaded(client: httpx.Client, path: str = "data", **body: Any) -> dict[str, Any]:
    """Load, and return the envelope."""
    response = client.post(f"/api/v1/{path}/load", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_all_modes_load_what_they_say(gateway: Any, client: httpx.Client) -> None:
    """Full, then the older part, then what a new session adds; nothing is requested twice."""
    found = loaded(client, symbol="AAPL", timeframe="1d", mode="full", start_date="2024-01-04")
    assert (found["success"], found["error"]) == (True, None)
    data = found["data"]
    assert (data["status"], data["fetched_bars"], data["cached_before"]) == ("success", 4, False)
    assert data["start_time"] == "2024-01-04T00:00:00Z"
    assert data["merged_file"].endswith("all.parquet")
    older = loaded(client, "ib", symbol="AAPL", timeframe="1d", mode="backfill")["data"]
    assert older["cached_before"] is True
    assert older["new_bars"] == 2
    assert "gaps_analyzed" not in older
    again = loaded(client, "ib", symbol="AAPL", timeframe="1d", mode="full")["data"]
    assert (again["status"], again["requests_made"]) == ("success", 0)
    document = client.get("/api/v1/data/AAPL/1d").json()["data"]
    assert document["dates"][0] == "2024-01-02T00:00:00Z"
    assert document["metadata"]["count"] == 6
    tail = loaded(client, symbol="AAPL", timeframe="1h", mode="tail")
    assert tail["success"], tail


def test_a_partial_load_is_a_success_with_an_error(
    store: Path, environment: dict[str, str], helpers: Any
) -> None:
    """What the gateway did not return is missing with its reason; what it returned is saved."""
    environment["IB_TIMEOUT"] = "1"
    faults = parse_faults("faults: [{fault: silence, kind: history, nth: 2}]", "faults")
    with running_simulator(now=NOW, behaviour=Behaviour(faults=faults)) as gateway:
        environment["IB_PORT"] = str(gateway.port)
        with helpers.served(environment) as client:
            assert loaded(client, symbol="AAPL", timeframe="1d", mode="full")["success"]
            found = loaded(
                client, symbol="AAPL", timeframe="1m", mode="full", start_date="2024-01-02"
            )
    assert found["success"] is True
    assert found["data"]["status"] == "partial", found
    assert found["error"]["code"] == "DATA-PartialLoad"
    assert found["data"]["missing"]


def test_without_a_gateway_a_load_fails_and_says_why(client: httpx.Client) -> None:
    """As in the original, the answer is 200, and the envelope has the reason."""
    found = loaded(client, "ib", symbol="AAPL", timeframe="1d")
    assert found["success"] is False
    assert found["data"]["status"] == "failed"
    assert found["error"]["code"] == "IB-Unreachable"


def test_a_load_is_not_waited_for_if_that_is_preferred(
    held: Any, client: httpx.Client, helpers: Any
) -> None:
    """The operation is told while it runs; an identical request joins it; it can be cancelled."""
    response = client.post("/api/v1/data/load", json=LOAD, headers=ASYNC)
    assert response.status_code == 202
    assert response.headers["Preference-Applied"] == "respond-async"
    path = response.headers["Location"]
    assert held.is_reached.wait(60)
    joined = client.post("/api/v1/data/load", json=LOAD, headers=ASYNC)
    assert joined.headers["Location"] == path
    running = client.get(path).json()["data"]
    assert running["state"] == "running"
    assert running["progress"]["requests_planned"] >= 1
    assert client.get("/api/v1/health").status_code == 200  # nothing waits for the load
    cancelled = client.delete(path)
    assert cancelled.status_code in {200, 202}
    held.let_go.set()
    ended = helpers.wait_for(lambda: (one := client.get(path).json()["data"])["ended_at"] and one)
    assert ended["state"] == "cancelled"
    assert client.delete(path).status_code == 200
    listed = client.get("/api/v1/operations").json()["data"]["operations"]
    assert [one["id"] for one in listed] == [ended["id"]]


def test_a_load_goes_on_when_its_client_is_gone(
    held: Any, client: httpx.Client, helpers: Any
) -> None:
    """It ends as if the client had waited."""
    with pytest.raises(httpx.ReadTimeout):
        client.post("/api/v1/ib/load", json=LOAD, timeout=httpx.Timeout(60, read=0.5))
    assert held.is_reached.wait(60)
    held.let_go.set()

    def ended() -> Any:
        (one,) = client.get("/api/v1/operations").json()["data"]["operations"]
        return one["ended_at"] and one

    found = helpers.wait_for(ended)
    assert found["state"] == "completed"
    assert found["results"][0]["status"] == "success"


def test_many_that_wait_for_a_load_keep_no_other_waiting(
    held: Any, client: httpx.Client, helpers: Any
) -> None:
    """A load that ends is answered although a hundred clients wait for one that does not."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=None)
        options: Any = {"base_url": client.base_url, "timeout": 60, "limits": limits}
        async with httpx.AsyncClient(**options) as many:
            waiting = [
                asyncio.create_task(many.post("/api/v1/data/load", json=LOAD)) for _ in range(100)
            ]
            await asyncio.to_thread(held.is_reached.wait)
            other = await many.post("/api/v1/data/load", json={**LOAD, "symbol": "AAPL"})
            assert other.json()["success"]
            assert not any(one.done() for one in waiting)
            held.let_go.set()
            answers = await asyncio.gather(*waiting)
        assert {one.json()["data"]["status"] for one in answers} == {"success"}
        assert len({one.text for one in answers}) == 1

    asyncio.run(main())
    names = [one.name for one in threading.enumerate()]
    assert sum(name.startswith("rest-") for name in names) < 20


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_stopped_answers_and_ends(
    store: Path, held: Any, environment: dict[str, str], helpers: Any, signum: int
) -> None:
    """The load is interrupted, the request that waits for it is answered, the exit code is 0."""
    answers: list[httpx.Response] = []
    with helpers.serve_process(environment) as server:
        client = threading.Thread(
            target=lambda: answers.append(server.client.post("/api/v1/data/load", json=LOAD))
        )
        client.start()
        assert held.is_reached.wait(60)
        code, err = server.end(signum)
        client.join()
    assert code == 0
    assert [line for line in err.splitlines() if not line.startswith("Clock: ")] == []
    assert answers[0].json()["error"]["code"] == "OPERATION-Interrupted"


@pytest.mark.slow
def test_operations_of_a_killed_server_are_interrupted(
    store: Path, held: Any, environment: dict[str, str], helpers: Any
) -> None:
    """The next server says so; what was saved is in the store."""
    with helpers.serve_process(environment) as server:
        response = server.client.post("/api/v1/data/load", json=LOAD, headers=ASYNC)
        assert held.is_reached.wait(60)
        server.process.kill()
        server.process.wait(timeout=60)
    with helpers.serve_process(environment) as server:
        found = server.client.get(response.headers["Location"]).json()["data"]
        assert found["state"] == "interrupted"
        assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"symbol": "NOPE", "timeframe": "1d"}, 404, "symbol"),
        ({"symbol": "AAPL", "timeframe": "2h"}, 422, "timeframe"),
        ({"symbol": "AAPL", "timeframe": "1d", "mode": "all"}, 422, "mode"),
        ({"symbol": "AAPL", "timeframe": "1d", "start": "2024-01-09T14:30:00"}, 422, "start"),
        ({"symbol": "AAPL", "timeframe": "1d", "start": 5}, 422, "start"),
        (
            {"symbol": "AAPL", "timeframe": "1d", "start": "2024-01-09", "end": "2024-01-03"},
            422,
            "start",
        ),
        ({"symbol": "AAPL", "timeframe": "1d", "end": "2031-01-03"}, 422, "end"),
        ({"symbol": "AAPL", "timeframe": "1d", "begin": "2024-01-09"}, 422, "begin"),
        ({"timeframe": "1d"}, 422, "symbol"),
        ([], 422, "body"),
        ("{", 400, "body"),
    ],
    ids=json.dumps,
)
def test_a_wrong_value_is_refused_and_named(
    filled: httpx.Client, body: Any, status: int, field: str
) -> None:
    """Before anything is requested."""
    text = body if isinstance(body, str) else json.dumps(body)
    response = filled.post(
        "/api/v1/ib/load", content=text, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["details"]["field"] == field
    assert response.json()["success"] is False


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_operation_is_not_found(filled: httpx.Client, method: str) -> None:
    """With its id in the error."""
    response = filled.request(method, "/api/v1/operations/0123")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "OPERATION-Unknown"
    assert "0123" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("state/settings.json", "{garbage", "CONFIG-Unusable"),
        ("universe.yaml", "symbols: [1, 2", "STORE-InvalidUniverse"),
        ("store.json", "", "STORE-Unusable"),
    ],
)
def test_what_was_edited_badly_is_named_until_it_is_right(
    client: httpx.Client, store: Path, name: str, text: str, code: str
) -> None:
    """The request is not to blame: no field of it is named, and the same one works later."""
    file = store / name
    before = file.read_bytes() if file.exists() else None
    (store / "state" / "universe.good.yaml").unlink(missing_ok=True)
    file.write_text(text)
    response = client.post("/api/v1/ib/load", json=LOAD)
    assert (response.status_code, response.json()["error"]["code"]) == (503, code)
    assert "field" not in response.json()["error"]["details"]
    if code == "CONFIG-Unusable":
        status = client.get("/api/v1/ib/status")
        assert (status.status_code, status.json()["error"]["code"]) == (503, code)
    if before is None:
        file.unlink()
    else:
        file.write_bytes(before)
    assert client.post("/api/v1/ib/load", json=LOAD).status_code == 200
