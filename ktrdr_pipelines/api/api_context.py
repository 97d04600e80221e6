"""What the routes share: the services, the threads that they run in, and fields of requests.

A route is a coroutine that runs a service in a thread of one of four pools: for what is fast, for
reads of bars, for what waits for the gateway, and for what waits for a part of this system, so that
none waits for the others. Loads run in the threads of ``app.operations``; what waits for one needs
no thread.
"""

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Annotated, Any, Final, ParamSpec, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from ktrdr_pipelines.api.envelopes import ErrorEnvelope, RequestError
from ktrdr_pipelines.app.operations import Operations
from ktrdr_pipelines.app.reading.bar_reader import Store
from ktrdr_pipelines.app.services.gap_filler import GapFillerService
from ktrdr_pipelines.app.services.ib_service import IbService
from ktrdr_pipelines.app.services.system_status import SystemService
from ktrdr_pipelines.app.views.load_documents import OperationDocument
from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN

P = ParamSpec("P")
T = TypeVar("T")

PREFIX: Final = "/api/v1"

_FAST_THREADS: Final = 4
_SLOW_THREADS: Final = 4
_GATEWAY_THREADS: Final = 4
_CONTROL_THREADS: Final = 2


def _pool(threads: int, name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix=f"rest-{name}")


@dataclass(frozen=True, slots=True)
class Pools:
    """The threads of the routes."""

    fast: ThreadPoolExecutor = field(default_factory=lambda: _pool(_FAST_THREADS, "fast"))
    slow: ThreadPoolExecutor = field(default_factory=lambda: _pool(_SLOW_THREADS, "slow"))
    gateway: ThreadPoolExecutor = field(default_factory=lambda: _pool(_GATEWAY_THREADS, "gateway"))
    control: ThreadPoolExecutor = field(default_factory=lambda: _pool(_CONTROL_THREADS, "control"))

    def close(self) -> None:
        """Wait until all threads have ended; what has not begun is dropped."""
        for one in (self.fast, self.slow, self.gateway, self.control):
            one.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class ApiContext:
    """The services that the routes call, and the threads that they run in."""

    ib: IbService
    gap_filler: GapFillerService
    system: SystemService
    operations: Operations
    store: Store
    open_workspace: Callable[[], Workspace]
    pools: Pools = field(default_factory=Pools)

    async def fast(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what takes milliseconds."""
        return await _in(self.pools.fast, lambda: call(*args, **kwargs))

    async def slow(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what reads many bars."""
        return await _in(self.pools.slow, lambda: call(*args, **kwargs))

    async def gateway(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for the gateway, which may hang."""
        return await _in(self.pools.gateway, lambda: call(*args, **kwargs))

    async def control(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits some seconds for a check of the gateway or a tick of the sensor to end."""
        return await _in(self.pools.control, lambda: call(*args, **kwargs))

    async def ended(self, operation_id: str) -> OperationDocument:
        """Wait until an operation has ended, without a thread: many clients may wait at once."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[OperationDocument] = loop.create_future()

        def set_ended(document: OperationDocument) -> None:
            if not ended.done():  # the client may be gone
                ended.set_result(document)

        def tell(document: OperationDocument) -> None:
            with suppress(RuntimeError):  # the server has ended before the load
                loop.call_soon_threadsafe(set_ended, document)

        await self.fast(self.operations.call_at_end, operation_id, tell)
        return await ended


async def _in(pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, call)


async def _context(request: Request) -> ApiContext:
    found: ApiContext = request.app.state.context
    return found


Context = Annotated[ApiContext, Depends(_context)]


async def _refuse_unknown_query(request: Request) -> None:
    """Refuse a parameter that the route does not have, or has twice: it would have no effect."""
    route: APIRoute = request.scope["route"]
    known = {one.alias for one in route.dependant.query_params}
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known or name in seen:
            reason = "given more than once" if name in seen else "no such parameter"
            hint = f"Known are {', '.join(sorted(known))}" if known else "There are none"
            raise RequestError(
                name, reason=reason, hint=hint, status=422, code="REQUEST-Invalid", field=name
            )
        seen.add(name)


def router(tag: str, prefix: str = PREFIX) -> APIRouter:
    """Return a router for the routes of one subject."""
    return APIRouter(prefix=prefix, tags=[tag], dependencies=[Depends(_refuse_unknown_query)])


_DESCRIPTIONS: Final = {
    400: "The body is not JSON.",
    403: "The Host is foreign, or a page of another site sent the request.",
    404: "There is no such path, symbol, timeframe or operation.",
    406: "No type that is accepted is offered; the error lists what is.",
    408: "The body did not come in time.",
    409: "The request contradicts what is set or runs now.",
    413: "The body is too long.",
    415: "The body is not application/json.",
    422: "A value is wrong; `error.details.field` names it.",
    500: "A defect; the log of the server has the details.",
    503: "The store, its settings or the gateway cannot be used now.",
}


def errors(*statuses: int, body: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of the errors of a route: those of all, and its own.

    Args:
        statuses: its own.
        body: whether it takes a body.
    """
    ofbody = (400, 408, 413, 415) if body else ()
    found = sorted({403, 404, 422, 500, 503, *ofbody, *statuses})
    return {
        status: {"model": ErrorEnvelope, "description": _DESCRIPTIONS[status]} for status in found
    }


_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")
_INSTANT: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?([Zz]|[+-]\d{2}:\d{2})?", re.ASCII
)
_FIRST: Final = datetime(1, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(9999, 12, 31, tzinfo=UTC)
_ALLOWED: Final = (
    "a session date, such as 2024-01-05, or an instant with a zone, such as 2024-01-05T14:30:00Z"
)


def _bound(value: object) -> date | datetime:
    text = value if isinstance(value, str) else ""
    if _DATE.fullmatch(text):
        return date.fromisoformat(text)
    if not _INSTANT.fullmatch(text):
        raise ValueError(f"it must be {_ALLOWED}")
    found = datetime.fromisoformat(text.replace(" ", "T").upper())
    if found.tzinfo is None:
        raise ValueError(f"an instant without a zone; it must be {_ALLOWED}")
    try:
        return found.astimezone(UTC)
    except OverflowError:  # the nearest that a datetime can hold
        return _FIRST if found.year == _FIRST.year else _LAST


def _boolean(value: object) -> object:
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if isinstance(value, bool):
        return value
    raise ValueError("it must be true or false")


def _whole(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]+", value):
        raise ValueError("it must be a whole number")
    return value


def number_in_json(value: object) -> object:
    """Return a number of a body as it is; 5.0 is a whole number there, "5" and true are none."""
    if isinstance(value, bool | str):
        raise ValueError("it must be a whole number")  # noqa: TRY004  (pydantic's own kind)
    return value


class RequestBody(BaseModel):
    """The body of a request; fields that it does not have are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_SYMBOL_TEXT: Final = f"^{KEY_PATTERN}$"
_TIMEFRAMES: Final = "|".join(Timeframe)

Symbol = Annotated[
    str, Field(pattern=_SYMBOL_TEXT, description="A symbol of the universe, as it is written there")
]
SymbolInPath = Annotated[
    str, Path(pattern=_SYMBOL_TEXT, description="A symbol that has bars, or of the universe")
]
TimeframeInPath = Annotated[Timeframe, Path(description="A timeframe")]
OperationInPath = Annotated[
    str, Path(pattern="^[A-Za-z0-9_-]{1,64}$", description="The id of an operation")
]
SymbolsInQuery = Annotated[
    str | None,
    Query(
        pattern=f"^{KEY_PATTERN}(,{KEY_PATTERN})*$",
        description="Symbols, separated by commas; by default all that have bars",
    ),
]
TimeframesInQuery = Annotated[
    str | None,
    Query(
        pattern=f"^({_TIMEFRAMES})(,({_TIMEFRAMES}))*$",
        description="Timeframes, separated by commas; by default all",
    ),
]
Bound = Annotated[
    date | datetime,
    PlainValidator(_bound),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "date-time"}]}
    ),
]
"""A session date, or an instant with a zone, which is then in UTC."""

Flag = Annotated[bool, BeforeValidator(_boolean)]
Count = Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(_whole)]
