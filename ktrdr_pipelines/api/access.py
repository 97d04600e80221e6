"""Who may send which requests: hosts, origins, the token, and the size and type of bodies.

A browser lets any site send requests to ``http://localhost:8000``, and a name that its owner points
at 127.0.0.1 (DNS rebinding) passes same-origin rules. So headers are checked before any other code
runs, in this order: ``Host``, token, ``Origin``, type and size of the body.

Not here: errors of a request that is let in (``api.envelopes``).
"""

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ktrdr_pipelines.api.envelopes import JSON_TYPE, RequestError, failure

LIVENESS: Final = "/api/v1/health"
"""The path that needs no token: it tells only that the server runs."""

MOST_BODY_BYTES: Final = 64 * 1024

BODY_S: Final = 10.0
"""Seconds in which a body must have come: one without an end would keep the server from ending."""

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]+)(?::[0-9]{1,5})?")
_NAME: Final = re.compile(r"\[[0-9a-f:.]+\]|[a-z0-9_.-]+")
_OWN_SITES: Final = frozenset({"same-origin", "none"})
_LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})


def is_loopback(host: str) -> bool:
    """Return whether a server that listens on a host is reached from this machine alone."""
    if host == "localhost":
        return True
    address = _address(host)
    return address is not None and address.is_loopback


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What a server accepts.

    Args:
        host: the address that it listens on.
        allowed_hosts: further names by which clients may call it.
        token: the token that every request needs, or None.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)

    def accepts_host(self, value: str) -> bool:
        """Return whether the value of a ``Host`` header names this server.

        A server that listens on all addresses also accepts every address in figures: rebinding
        needs a name.
        """
        match = _HOST.fullmatch(value.lower())
        if match is None:
            return False
        name = match[1]
        if name in _LOOPBACK_NAMES or name in {_bracketed(one) for one in self._names}:
            return True
        bound = _address(self.host)
        return bound is not None and bound.is_unspecified and _address(name) is not None

    def accepts_token(self, authorization: str | None) -> bool:
        """Return whether an ``Authorization`` header has the token; the time tells nothing."""
        if self.token is None:
            return True
        scheme, _, sent = (authorization or "").partition(" ")
        same = hmac.compare_digest(sent.strip().encode("latin-1"), self.token.encode())
        return same and scheme.lower() == "bearer"

    @property
    def unusable_names(self) -> tuple[str, ...]:
        """The allowed hosts that no ``Host`` header can have: with a port, a space or a pattern."""
        names = self.allowed_hosts
        return tuple(one for one in names if _NAME.fullmatch(_bracketed(one.lower())) is None)

    @property
    def _names(self) -> Iterable[str]:
        return (self.host.lower(), *(one.lower() for one in self.allowed_hosts))


class AccessGuard:
    """ASGI middleware that answers what the rules refuse, and passes on the rest.

    Args:
        app: what answers the requests that are let in.
        rules: the rules.
        body_s: seconds in which a body must have come.
    """

    def __init__(self, app: ASGIApp, rules: AccessRules, *, body_s: float = BODY_S) -> None:
        self._app = app
        self._rules = rules
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        headers = _Headers(scope)
        try:
            self._check(scope, headers)
            async with asyncio.timeout(self._body_s):
                body = await _body(headers, receive) if headers.has_body else b""
        except RequestError as error:
            await failure(error)(scope, receive, send)
            return
        except TimeoutError:
            await failure(_too_slow(self._body_s))(scope, receive, send)
            return
        await self._app(scope, _replayed(body, receive) if headers.has_body else receive, send)

    def _check(self, scope: Scope, headers: "_Headers") -> None:
        """Raise the error of the first rule that a request breaks."""
        hosts = headers.all("host")
        if len(hosts) != 1 or not self._rules.accepts_host(hosts[0]):
            raise RequestError(
                "Host",
                reason="it names another server",
                hint="Use 127.0.0.1 or localhost, or start the server with --allow-host NAME",
                status=403,
                code="ACCESS-ForeignHost",
                field="Host",
            )
        is_open = scope["path"] == LIVENESS
        if not is_open and not self._rules.accepts_token(headers.one("authorization")):
            raise RequestError(
                "Authorization",
                reason="the token is missing or wrong",
                hint="Send Authorization: Bearer TOKEN with the value of KTRDR_API_TOKEN",
                status=401,
                code="ACCESS-TokenRequired",
                field="Authorization",
                headers={"WWW-Authenticate": 'Bearer realm="ktrdr"'},
            )
        if scope["method"] not in _READING:
            _refuse_other_sites(headers, hosts[0])
        if headers.has_body and headers.media_type != JSON_TYPE:
            raise RequestError(
                "Content-Type",
                reason=f"a body must be {JSON_TYPE}",
                status=415,
                code="REQUEST-UnsupportedType",
                field="Content-Type",
                headers={"Accept": JSON_TYPE},
            )


class _Headers:
    """The headers of a request, by their names in lower case."""

    def __init__(self, scope: Scope) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            self._values.setdefault(name.decode("latin-1").lower(), []).append(
                value.decode("latin-1")
            )

    def all(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def one(self, name: str) -> str | None:
        found = self.all(name)
        return found[0] if len(found) == 1 else None

    @property
    def length(self) -> int | None:
        text = self.one("content-length")
        return int(text) if text is not None and text.isdecimal() else None

    @property
    def has_body(self) -> bool:
        return bool(self.length) or "transfer-encoding" in self._values

    @property
    def media_type(self) -> str:
        return (self.one("content-type") or "").partition(";")[0].strip().lower()


def _refuse_other_sites(headers: _Headers, host: str) -> None:
    """Refuse a request to change something that another site's script or form has sent."""
    own = {f"http://{host}".lower(), f"https://{host}".lower()}
    foreign = [one for one in headers.all("origin") if one.lower() not in own]
    sites = [one for one in headers.all("sec-fetch-site") if one not in _OWN_SITES]
    if foreign or sites:
        name = "Origin" if foreign else "Sec-Fetch-Site"
        raise RequestError(
            name,
            reason="a script or a form of another site sent the request",
            status=403,
            code="ACCESS-ForeignOrigin",
            field=name,
        )


async def _body(headers: _Headers, receive: Receive) -> bytes:
    """Read the body; one that is too long is not read on."""
    if (headers.length or 0) > MOST_BODY_BYTES:
        raise _too_long()
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":  # the client is gone
            return b""
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MOST_BODY_BYTES:
            raise _too_long()
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_long() -> RequestError:
    return RequestError(
        "body",
        reason=f"it is longer than {MOST_BODY_BYTES} bytes",
        status=413,
        code="REQUEST-TooLarge",
        field="body",
        headers={"Connection": "close"},
    )


def _too_slow(body_s: float) -> RequestError:
    return RequestError(
        "body",
        reason=f"it had not come in {body_s:g} s",
        status=408,
        code="REQUEST-Timeout",
        field="body",
        headers={"Connection": "close"},
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a channel that gives a body that was read already, and then what comes next."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def _bracketed(host: str) -> str:
    """Return a host as a ``Host`` header has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
