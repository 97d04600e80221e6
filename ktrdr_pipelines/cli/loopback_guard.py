"""Refuses what a page of another site sends to a web server on this machine.

A browser lets any page send requests to ``http://localhost:3000``. Same-origin rules do not help
against a name that its owner points at 127.0.0.1 (DNS rebinding), nor for websockets, forms and
images. So the guard reads what the browser says of a request before any application code runs:

* ``Host`` names this machine by a loopback name, and there is one ``Host`` header;
* ``Origin``, where there is one, is a page of this machine;
* ``Sec-Fetch-Site`` is not ``cross-site``, but for a person who follows a link. GraphQL over GET
  executes mutations, and a browser sends no ``Origin`` with an image.

Not here: the server (``cli.dagster_services``).
"""

import re
from collections.abc import Iterable
from typing import Final

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_LOOPBACK: Final = rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?"
_HOST: Final = re.compile(_LOOPBACK)
_ORIGIN: Final = re.compile(rb"https?://" + _LOOPBACK)

Headers = Iterable[tuple[bytes, bytes]]


class LoopbackGuard:
    """ASGI middleware: answers HTTP and websocket requests of other sites with 400.

    Names are compared byte by byte. Other spellings of a loopback address (``127.1``,
    ``LOCALHOST``, ``localhost.``) are refused: no browser sends them unasked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        reason = refusal(scope["headers"]) if scope["type"] in {"http", "websocket"} else None
        if reason is None:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(f"{reason}\n", status_code=400)(scope, receive, send)


def refusal(headers: Headers) -> str | None:
    """Return why a request with these headers is refused, or None."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    hosts, origins = found.get(b"host", []), found.get(b"origin", [])
    if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
        return "Host is not localhost, 127.0.0.1 or [::1]"
    if len(origins) > 1 or not all(map(_ORIGIN.fullmatch, origins)):
        return "Origin is another site"
    sites = found.get(b"sec-fetch-site", [])
    if b"cross-site" in sites and not _follows_link(found):
        return "Sent by a page of another site"
    return None


def _follows_link(found: dict[bytes, list[bytes]]) -> bool:
    """Say whether a request opens a page in a tab of its own, and not in a frame."""
    mode, target = found.get(b"sec-fetch-mode"), found.get(b"sec-fetch-dest")
    return mode == [b"navigate"] and target == [b"document"]
