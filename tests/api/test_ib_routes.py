"""The gateway by HTTP: its state, its configuration, and contracts."""

import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from ktrdr_pipelines.api.rest_server import listening_socket


def data(response: httpx.Response) -> Any:
    """Return the document of a successful answer."""
    assert response.status_code == 200, response.text
    assert response.json()["success"] is True
    return response.json()["data"]


def test_the_state_of_a_gateway_that_responds(
    gateway: Any, client: httpx.Client, helpers: Any
) -> None:
    """With the fields of the original; checks and loads are counted."""
    status = helpers.wait_for(
        lambda: (one := data(client.get("/api/v1/ib/status")))["ib_available"] and one
    )
    assert status["connection"]["connected"] is True
    assert status["connection"]["port"] == gateway.port
    assert status["connection_metrics"]["total_connections"] >= 1
    assert status["data_metrics"]["success_rate"] == 0
    health = data(client.get("/api/v1/ib/health"))
    assert (health["healthy"], health["error_message"]) == (True, None)
    assert client.get("/api/v1/system/ib-status").json()["data"].keys() == status.keys()
    cleaned = data(client.post("/api/v1/ib/cleanup"))
    assert cleaned["connections_closed"] == len(cleaned["client_ids"])
    body = {"symbol": "AAPL", "timeframe": "1d", "mode": "full"}
    assert client.post("/api/v1/ib/load", json=body).json()["success"]
    counted = helpers.wait_for(
        lambda: (
            (one := data(client.get("/api/v1/ib/status"))["data_metrics"])["total_requests"] and one
        )
    )
    assert counted["success_rate"] == 100.0
    assert counted["total_bars_fetched"] >= 6


def test_the_state_of_a_gateway_that_is_away(client: httpx.Client, helpers: Any) -> None:
    """The state is told at once; what needs the gateway is not available."""
    health = helpers.wait_for(
        lambda: (one := data(client.get("/api/v1/ib/health")))["checked_at"] and one
    )
    assert (health["healthy"], health["connection_ok"]) == (False, False)
    assert health["error_message"]
    refused = client.post("/api/v1/ib/symbols/discover", json={"symbol": "AAPL"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "IB-Unreachable"


def test_contracts_are_discovered(gateway: Any, client: httpx.Client) -> None:
    """One of the universe, one that is not in it, and one that the gateway does not know."""
    path = "/api/v1/ib/symbols/discover"
    found = data(client.post(path, json={"symbol": "AAPL"}))
    assert (found["symbol"], found["instrument_type"]) == ("AAPL", "STK")
    assert found["con_id"] > 0
    again = data(client.post(path, json={"symbol": "AAPL", "force_refresh": True}))
    assert again["con_id"] == found["con_id"]
    known = data(client.get("/api/v1/ib/symbols/discovered"))
    assert [one["symbol"] for one in known["symbols"]] == ["AAPL"]
    unknown = client.post(path, json={"symbol": "NOSUCH"})
    assert unknown.status_code == 404, unknown.text
    assert unknown.json()["error"]["code"] in {"IB-ContractUnknown", "DATA-UnknownSymbol"}


def test_the_configuration_can_be_changed(
    environment: dict[str, str], store: Path, helpers: Any
) -> None:
    """It is kept in the store, and says whether it needs another connection."""
    del environment["IB_PORT"]
    with helpers.served(environment) as client, pytest.MonkeyPatch.context() as patch:
        before = data(client.get("/api/v1/ib/config"))
        assert before["sources"]["ib_port"] == "default"
        port = helpers.free_port()
        changed = data(client.put("/api/v1/ib/config", json={"port": port}))
        assert changed["previous_config"]["port"] == before["port"]
        assert (changed["new_config"]["port"], changed["reconnect_required"]) == (port, True)
        after = data(client.get("/api/v1/ib/config"))
        assert (after["port"], after["sources"]["ib_port"]) == (port, "file")
        changed = data(client.put("/api/v1/ib/config", json={"client_id": 3}))
        assert (changed["reconnect_required"], after["readonly"]) == (False, True)
        assert changed["new_config"]["client_id_range"]["min"] == 3
        patch.setenv("IB_PORT", str(port))
        fixed = client.put("/api/v1/ib/config", json={"port": port + 1})
    assert fixed.status_code == 409
    assert fixed.json()["error"]["code"] == "CONFIG-FixedByEnvironment"
    details = fixed.json()["error"]["details"]
    assert (details["variable"], details["field"]) == ("IB_PORT", "port")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"port": 0}, "port"),
        ({"port": "4002"}, "port"),
        ({"port": True}, "port"),
        ({"host": "http://localhost/"}, "host"),
        ({"client_id": 0}, "client_id"),
        ({"timeout": 5}, "timeout"),
    ],
)
def test_a_wrong_configuration_is_refused(
    filled: httpx.Client, body: dict[str, Any], field: str
) -> None:
    """And its field is named."""
    response = filled.put("/api/v1/ib/config", json=body)
    assert response.status_code == 422
    assert response.json()["error"]["details"]["field"] == field


def test_an_id_of_a_range_that_the_environment_sets_is_refused(
    environment: dict[str, str], store: Path, helpers: Any
) -> None:
    """It is the id that is wrong, not the settings."""
    with helpers.served({**environment, "IB_CLIENT_ID_BATCH": "11-50"}) as client:
        response = client.put("/api/v1/ib/config", json={"client_id": 20})
    assert response.status_code == 422, response.text
    error = response.json()["error"]
    assert (error["code"], error["details"]["field"]) == ("CONFIG-InvalidValue", "client_id")
    assert "IB_CLIENT_ID_BATCH=11-50" in error["message"]


def test_a_gateway_that_hangs_keeps_no_bars_waiting(
    environment: dict[str, str], store: Path, helpers: Any
) -> None:
    """Nor the end of the server, at which discoveries are cancelled and answered."""
    answers: list[httpx.Response] = []
    with listening_socket("127.0.0.1", 0) as silent, ExitStack() as stack:
        hanging = {"IB_PORT": str(silent.getsockname()[1]), "IB_TIMEOUT": "600"}
        with helpers.served({**environment, **hanging}) as client:

            def discover(symbol: str) -> None:
                own = stack.enter_context(httpx.Client(base_url=client.base_url, timeout=600))
                body = {"symbol": symbol}
                answers.append(own.post("/api/v1/ib/symbols/discover", json=body))

            threads = [threading.Thread(target=discover, args=(f"X{n}",)) for n in range(6)]
            for one in threads:
                one.start()
            helpers.wait_for(lambda: names("rest-gateway") >= 4)
            assert client.get("/api/v1/data/AAPL/1d").status_code == 200
            assert client.get("/api/v1/ib/ranges").status_code == 200
        for one in threads:
            one.join()
    codes = {(one.status_code, one.json()["error"]["code"]) for one in answers}
    assert codes == {(503, "SERVER-Stopping")}


def test_loads_work_with_a_single_client_id(
    gateway: Any, client: httpx.Client, helpers: Any
) -> None:
    """The monitor leaves it to them, and they use it one after the other."""
    changed = client.put("/api/v1/ib/config", json={"client_id": 5000}).json()["data"]
    assert changed["new_config"]["client_id_range"] == {"min": 5000, "max": 5000}
    headers = {"Prefer": "respond-async"}
    paths = [
        client.post("/api/v1/ib/load", json=body, headers=headers).headers["Location"]
        for body in (
            {"symbol": "AAPL", "timeframe": "1d", "mode": "full"},
            {"symbol": "MSFT", "timeframe": "1d", "mode": "full"},
            {"symbol": "AAPL", "timeframe": "1h", "mode": "full"},
        )
    ]

    def ended() -> Any:
        found = [client.get(path).json()["data"] for path in paths]
        return all(one["ended_at"] for one in found) and found

    found = helpers.wait_for(ended)
    assert [one["state"] for one in found] == ["completed"] * 3
    assert helpers.wait_for(
        lambda: client.get("/api/v1/ib/status").json()["data"]["connection"]["connected"]
    )


def names(prefix: str) -> int:
    """Return how many threads have a name that begins so."""
    return sum(one.name.startswith(prefix) for one in threading.enumerate())
