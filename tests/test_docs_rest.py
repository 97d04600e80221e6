"""The page about the REST API: its requests and its code run as they are printed."""

import json
import os
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import ktrdr_pipelines
from ktrdr_pipelines.api.access import AccessRules
from ktrdr_pipelines.api.rest_server import listening_socket, open_services, serving_in_thread
from ktrdr_pipelines.app.setup import UNIVERSE_EXAMPLE, make_workspace
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.settings import load_settings
from ktrdr_pipelines.simulator.server import running_simulator

PAGE = (Path(ktrdr_pipelines.__file__).parent / "docs" / "rest.md").read_text("utf-8")
URL = "http://127.0.0.1:8000"
CURL = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("curl")
]
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NOW = "2024-01-10T20:00:30+00:00"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve a store with daily bars of two symbols."""
    folder = tmp_path_factory.mktemp("rest")
    with pytest.MonkeyPatch.context() as patch, running_simulator(now=NOW) as gateway:
        for name in [one for one in os.environ if one.startswith(("KTRDR_", "IB_"))]:
            patch.delenv(name)
        patch.setenv("KTRDR_DATA", str(folder / "data"))
        patch.setenv("KTRDR_STATE", str(folder / "state"))
        patch.setenv("IB_PORT", str(gateway.port))
        (folder / "data").mkdir()
        text = (
            "defaults: {timeframes: [1h, 1d], start: 2024-01-02}\nsymbols: {AAPL: {}, MSFT: {}}\n"
        )
        (folder / "data" / "universe.yaml").write_text(text)
        settings = load_settings()
        make_workspace(settings, folder / "data", Origin.SIMULATED, example=UNIVERSE_EXAMPLE)
        listener = listening_socket("127.0.0.1", 0)
        with open_services() as context, serving_in_thread(context, AccessRules(), listener):
            found = f"http://127.0.0.1:{listener.getsockname()[1]}"
            load = {"symbol": "AAPL", "timeframe": "1d", "mode": "full", "end_date": "2024-01-10"}
            with httpx.Client(base_url=found, timeout=60) as client:
                assert client.post("/api/v1/data/load", json=load).json()["success"]
            yield found


def test_every_request_of_the_page_succeeds(url: str) -> None:
    """As curl would send it."""
    assert len(CURL) >= 6
    answers: list[dict[str, Any]] = []
    for line in CURL:
        begun = [one["data"]["id"] for one in answers if "progress" in one["data"]]
        answers.append(sent(line.replace("operations/ID", f"operations/{''.join(begun)}"), url))
    assert all(one["success"] for one in answers), answers
    (bars,) = [one["data"] for one in answers if "ohlcv" in one["data"]]
    assert len(bars["dates"]) == 2
    operation, cancelled = [one["data"] for one in answers if "progress" in one["data"]]
    assert (operation["kind"], operation["id"]) == ("load", cancelled["id"])
    pause = threading.Event()
    path = f"{url}/api/v1/operations/{operation['id']}"
    for _ in range(1000):
        if httpx.get(path, timeout=60).json()["data"]["ended_at"]:
            break
        pause.wait(0.05)


def sent(line: str, url: str) -> dict[str, Any]:
    """Send the request of a command line of curl."""
    words = shlex.split(line, comments=True)[1:]
    method, headers, body, address = "GET", {}, None, ""
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = words.pop(0)
            json.loads(body)
        elif word != "-s":
            address = word.replace(URL, url)
    response = httpx.request(method, address, headers=headers, content=body, timeout=60)
    assert response.status_code in {200, 202}, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_code_of_the_page_runs(url: str) -> None:
    """As pasted."""
    (code,) = PYTHON
    names: dict[str, Any] = {}
    exec(compile(code.replace(URL, url), "rest.md", "exec"), names)  # noqa: S102
    assert list(names["bars"].columns) == ["open", "high", "low", "close", "volume"]
    assert len(names["bars"]) == 6
