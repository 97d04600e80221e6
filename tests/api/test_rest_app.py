"""The application as a whole: its OpenAPI document, and envelopes for everything."""

import re
import socket
from pathlib import Path
from typing import Any

import httpx

import ktrdr_pipelines
from ktrdr_pipelines.api.access import AccessRules

PAGE = Path(ktrdr_pipelines.__file__).parent / "docs" / "rest.md"
TOKEN = "a secret of some length"  # noqa: S105  (of the tests)


def code(response: httpx.Response) -> tuple[int, str]:
    """Return the status of an error, and the code in its envelope."""
    document = response.json()
    assert document["success"] is False
    assert document["data"] is None
    return response.status_code, document["error"]["code"]


def test_every_request_is_described(filled: httpx.Client) -> None:
    """In the OpenAPI document with a model of its answer, and on the page about the API."""
    document = filled.get("/openapi.json").json()
    rows = re.findall(r"^\| ([A-Z]+) (`/.+?) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    listed = {
        (method, path.removeprefix("/api/v1"))
        for method, paths in rows
        for path in re.findall(r"`([^`]+)`", paths)
    }
    described = {
        (method.upper(), path.removeprefix("/api/v1"))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert listed == described
    for path, methods in document["paths"].items():
        for one in methods.values():
            assert {"403", "404", "422", "500"} <= one["responses"].keys()
            content = one["responses"]["200"]["content"]
            schema = content.get("application/json", content.get("text/plain"))
            assert "schema" in schema, path
    assert "swagger" in filled.get("/docs").text


def test_the_reference_needs_no_other_server(filled: httpx.Client) -> None:
    """A browser without the internet shows every request; nothing foreign is loaded."""
    response = filled.get("/docs")
    assert response.headers["Content-Type"].startswith("text/html")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
    text = response.text
    assert not re.search(r"<script|https?://|(?:src|href)=[\"']?//", text)
    document = filled.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"<b>{method.upper()}</b> <code>{path}</code>" in text
    anchors = set(re.findall(r'id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) <= anchors


def test_everything_is_answered_by_an_envelope(filled: httpx.Client) -> None:
    """What the router refuses, too."""
    assert code(filled.get("/")) == (404, "REQUEST-NoSuchPath")
    assert code(filled.get("/api/v1/symbols/")) == (404, "REQUEST-NoSuchPath")
    refused = filled.patch("/api/v1/ib/config")
    assert code(refused) == (405, "REQUEST-MethodNotAllowed")
    assert refused.headers["Allow"] == "GET, PUT"
    headers = {"Content-Type": "application/json"}
    path = "/api/v1/data/range"
    for body in (b"{", b"[" * 60_000):
        malformed = filled.post(path, content=body, headers=headers)
        assert code(malformed) == (400, "REQUEST-MalformedJson")
        assert malformed.json()["error"]["details"]["field"] == "body"
    assert code(filled.post(path, content=b"{}")) == (415, "REQUEST-UnsupportedType")
    long = filled.post(path, content=b" " * 70_000, headers=headers)
    assert code(long) == (413, "REQUEST-TooLarge")
    assert code(filled.get("/", headers={"Host": "evil.com"})) == (403, "ACCESS-ForeignHost")
    written = filled.post(path, json={}, headers={"Origin": "http://evil.com"})
    assert code(written) == (403, "ACCESS-ForeignOrigin")


def test_a_chunked_body_is_not_read_to_its_end(filled: httpx.Client) -> None:
    """It states no length; the answer comes while the client is still sending."""
    url = filled.base_url
    with socket.create_connection((url.host, url.port), timeout=30) as sent:
        sent.sendall(
            f"POST /api/v1/data/range HTTP/1.1\r\nHost: {url.host}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(70):
            sent.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        assert b" 413 " in sent.recv(4096).partition(b"\r\n")[0]


def test_a_token_protects_everything_but_the_liveness(
    environment: dict[str, str], store: Path, helpers: Any
) -> None:
    """And the OpenAPI document says so."""
    with helpers.served(environment, AccessRules(token=TOKEN)) as client:
        assert client.get("/api/v1/health").status_code == 200
        for path in ("/api/v1/symbols", "/docs", "/openapi.json", "/metrics", "/nowhere"):
            refused = client.get(path)
            assert code(refused) == (401, "ACCESS-TokenRequired")
            assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert client.get("/api/v1/symbols").json()["data"] == []
        document = client.get("/openapi.json").json()
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/api/v1/health"]["get"]["security"] == []
    assert "401" in document["paths"]["/api/v1/symbols"]["get"]["responses"]
