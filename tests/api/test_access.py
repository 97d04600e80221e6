"""Which requests are let in: hosts, the token, origins, and the type and size of bodies."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message

from ktrdr_pipelines.api.access import MOST_BODY_BYTES, AccessGuard, AccessRules, is_loopback

TOKEN = "a secret of some length"  # noqa: S105  (of the tests)
URL = "http://127.0.0.1:8000"
JSON = {"Content-Type": "application/json"}


async def echo(request: Request) -> JSONResponse:
    """Return how long the body of a request is."""
    return JSONResponse({"bytes": len(await request.body())})


APP = Starlette(
    routes=[Route(one, echo, methods=["GET", "POST"]) for one in ("/a", "/api/v1/health")]
)


def sent(
    method: str = "GET", path: str = "/a", rules: AccessRules | None = None, **options: Any
) -> httpx.Response:
    """Send a request through the guard."""
    transport = httpx.ASGITransport(AccessGuard(APP, rules or AccessRules()))

    async def main() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def code(response: httpx.Response) -> tuple[int, str | None]:
    """Return the status of a response, and the code of the error in its envelope."""
    document = response.json()
    return response.status_code, (document.get("error") or {}).get("code")


@pytest.mark.parametrize(
    ("host", "rules", "accepted"),
    [
        ("127.0.0.1:8000", AccessRules(), True),
        ("LocalHost", AccessRules(), True),
        ("[::1]:1", AccessRules(), True),
        ("evil.com", AccessRules(), False),
        ("localhost.evil.com", AccessRules(), False),
        ("127.0.0.1:8000@evil.com", AccessRules(), False),
        ("192.168.1.5", AccessRules(), False),
        ("", AccessRules(), False),
        ("192.168.1.5:80", AccessRules("192.168.1.5"), True),
        ("[fd00::5]", AccessRules("fd00::5"), True),
        ("box.local", AccessRules(allowed_hosts=("Box.local",)), True),
        ("192.168.1.5", AccessRules("0.0.0.0"), True),  # noqa: S104
        ("box.local", AccessRules("0.0.0.0"), False),  # noqa: S104
    ],
)
def test_a_foreign_host_is_refused(host: str, rules: AccessRules, accepted: bool) -> None:
    """A server on all addresses accepts addresses in figures, which no rebinding needs."""
    response = sent(rules=rules, headers={"Host": host})
    assert code(response) == ((200, None) if accepted else (403, "ACCESS-ForeignHost"))


@pytest.mark.parametrize(
    ("authorization", "accepted"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer {TOKEN}", True),
        (f"Basic {TOKEN}", False),
        (f"Bearer {TOKEN}x", False),
        ("Bearer \xe4\xf6", False),
        ("Bearer", False),
        (None, False),
    ],
)
def test_a_token_is_needed_where_one_is_set(authorization: str | None, accepted: bool) -> None:
    """Every path but the liveness; the answer says which scheme, and never the token."""
    rules = AccessRules(token=TOKEN)
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    response = sent(rules=rules, headers=headers)
    assert response.status_code == (200 if accepted else 401)
    assert sent(path="/api/v1/health", rules=rules).status_code == 200
    assert TOKEN not in repr(rules)
    if not accepted:
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
        assert TOKEN not in response.text


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        ({}, True),
        ({"Origin": URL}, True),
        ({"Origin": URL, "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://localhost:3000"}, False),
        ({"Origin": "http://127.0.0.1:8001"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
    ],
)
def test_another_site_cannot_write(headers: dict[str, str], accepted: bool) -> None:
    """It may send a read, whose answer a browser does not give it."""
    written = sent("POST", headers=headers)
    assert code(written) == ((200, None) if accepted else (403, "ACCESS-ForeignOrigin"))
    assert sent("GET", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"content": b"{}", "headers": JSON}, (200, None)),
        (
            {"content": b"{}", "headers": {"Content-Type": "APPLICATION/json; charset=utf-8"}},
            (200, None),
        ),
        ({}, (200, None)),
        ({"content": b"{}"}, (415, "REQUEST-UnsupportedType")),
        (
            {"content": b"{}", "headers": {"Content-Type": "text/plain"}},
            (415, "REQUEST-UnsupportedType"),
        ),
        ({"data": {"symbol": "AAPL"}}, (415, "REQUEST-UnsupportedType")),
        ({"content": b"x" * MOST_BODY_BYTES, "headers": JSON}, (200, None)),
        ({"content": b"x" * (MOST_BODY_BYTES + 1), "headers": JSON}, (413, "REQUEST-TooLarge")),
    ],
)
def test_a_body_is_json_and_short(
    options: dict[str, Any], expected: tuple[int, str | None]
) -> None:
    """Each body that is let in arrives whole."""
    response = sent("POST", **options)
    assert code(response) == expected
    if response.status_code == 200:
        assert response.json()["bytes"] == len(options.get("content", b""))


def test_a_long_body_in_chunks_is_not_read_to_its_end() -> None:
    """It states no length; it is refused as soon as it is too long."""
    chunks: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        for number in range(1000):
            chunks.append(number)
            yield b"x" * 1024

    response = sent("POST", content=endless(), headers=JSON)
    assert code(response) == (413, "REQUEST-TooLarge")
    assert len(chunks) < 100


def test_a_body_without_an_end_is_waited_for_only_so_long() -> None:
    """It would keep the server from ending."""

    async def main() -> list[Message]:
        answers: list[Message] = []
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [
                (b"host", b"localhost"),
                (b"content-type", b"application/json"),
                (b"content-length", b"9"),
            ],
        }
        first: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Message:
            return first.pop() if first else await asyncio.get_running_loop().create_future()

        async def send(message: Message) -> None:
            answers.append(message)

        await AccessGuard(APP, AccessRules(), body_s=0.01)(scope, receive, send)
        return answers

    start, body = asyncio.run(main())
    assert start["status"] == 408
    assert json.loads(body["body"])["error"]["code"] == "REQUEST-Timeout"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.0.0.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("192.168.1.5", False),
        ("box.local", False),
    ],
)
def test_an_address_of_this_machine_alone_is_known(host: str, expected: bool) -> None:
    """A name is taken to be reached from elsewhere."""
    assert is_loopback(host) is expected
