"""Loads as operations: start one, wait for it or not, and the routes that show and cancel them."""

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final, Self

from fastapi import Response

from ktrdr_pipelines.api.api_context import (
    PREFIX,
    ApiContext,
    Context,
    OperationInPath,
    errors,
    router,
)
from ktrdr_pipelines.api.envelopes import (
    Envelope,
    RequestError,
    RestError,
    answer,
    kind_code,
    kind_status,
    load_answer,
    range_error,
)
from ktrdr_pipelines.app.views.load_documents import (
    LoadResult,
    OperationDocument,
    OperationList,
    OperationState,
)
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UnknownOperationError, UsageError

routes: Final = router("operations")


@dataclass(frozen=True, slots=True)
class LoadRequested:
    """A load that a request asks for; ``path`` is where it came in."""

    symbol: str
    timeframe: Timeframe
    mode: Mode
    start: date | datetime | None
    end: date | datetime | None
    path: str


@dataclass(frozen=True, slots=True)
class Preference:
    """What a ``Prefer`` header (RFC 7240) asks for; what it does not know it ignores."""

    respond_async: bool = False

    @classmethod
    def of(cls, header: str | None) -> Self:
        """Return the preference of a header."""
        tokens = {one.partition(";")[0].strip().lower() for one in (header or "").split(",")}
        return cls(respond_async="respond-async" in tokens)


def load_responses() -> dict[int | str, dict[str, Any]]:
    """Return the documentation of what a load answers besides its result."""
    accepted = {
        "model": Envelope[OperationDocument],
        "description": "The load has begun; `Location` names its operation.",
        "headers": {
            "Location": {"schema": {"type": "string"}, "required": True},
            "Preference-Applied": {"schema": {"type": "string"}, "required": True},
        },
    }
    return {202: accepted, **errors(409, body=True)}


async def loaded(
    context: ApiContext,
    wanted: LoadRequested,
    document: type[LoadResult],
    preference: Preference,
) -> Response:
    """Start a load, and answer when it has ended, or at once if that is preferred.

    Args:
        context: the services.
        wanted: the load.
        document: the fields of the answer.
        preference: what the client prefers.

    Raises:
        UsageError: symbol, timeframe or range is not allowed.
    """
    try:
        operation = await context.fast(
            context.operations.start_load,
            wanted.symbol,
            wanted.timeframe,
            mode=wanted.mode,
            start=wanted.start,
            end=wanted.end,
            description=f"{wanted.path} {wanted.symbol} {wanted.timeframe} {wanted.mode}",
        )
    except UsageError as error:
        if type(error) is not UsageError:  # of the symbol, the universe, the store or the settings
            raise
        suffix = "_date" if wanted.path == "/data/load" else ""
        raise range_error(error, has_start=wanted.start is not None, suffix=suffix) from error
    if preference.respond_async:
        found = answer(operation, status=202)
        found.headers["Location"] = f"{PREFIX}/operations/{operation.id}"
        found.headers["Preference-Applied"] = "respond-async"
        return found
    return _end_answer(await context.ended(operation.id), document)


def _end_answer(ended: OperationDocument, document: type[LoadResult]) -> Response:
    """Return the answer for a load that has ended, with its result if it has one."""
    result = None
    if ended.results:
        fields = ended.results[0].model_dump(include=set(document.model_fields))
        result = document.model_validate(fields)
    if ended.state is OperationState.COMPLETED and result is not None:
        return load_answer(result)
    if ended.state in {OperationState.CANCELLED, OperationState.INTERRUPTED}:
        text = f"the load was {ended.state}; what was saved is kept"
        error = RestError(
            code=f"OPERATION-{ended.state.capitalize()}",
            message=text,
            details={"operation": ended.id},
        )
        return answer(result, status=200 if result else 409, error=error, success=False)
    if result is not None:
        return load_answer(result)
    cause = ended.error
    kind = "" if cause is None else cause.kind
    error = RestError(
        code=kind_code(kind) or "DATA-LoadFailed",
        message="the load failed" if cause is None else cause.message,
        details={} if cause is None else cause.model_dump(mode="json"),
    )
    return answer(None, status=kind_status(kind), error=error)


@routes.get("/operations", response_model=Envelope[OperationList], responses=errors())
async def operations(context: Context) -> Response:
    """Return the operations that are remembered, newest first."""
    return answer(await context.fast(context.operations.list))


@routes.get(
    "/operations/{operation_id}", response_model=Envelope[OperationDocument], responses=errors()
)
async def operation(context: Context, operation_id: OperationInPath) -> Response:
    """Return how far an operation is, or how it ended."""
    return answer(await context.fast(context.operations.get, operation_id))


@routes.delete(
    "/operations/{operation_id}",
    response_model=Envelope[OperationDocument],
    responses={
        202: {
            "model": Envelope[OperationDocument],
            "description": "It will end as soon as it has saved what it received.",
        },
        **errors(409),
    },
)
async def cancel_operation(context: Context, operation_id: OperationInPath) -> Response:
    """Cancel an operation; what it has received is saved. One that has ended stays as it is."""
    try:
        found = await context.fast(context.operations.cancel, operation_id)
    except UnknownOperationError:
        raise
    except UsageError as error:
        raise RequestError(
            error.what,
            reason=error.reason,
            hint=error.hint,
            status=409,
            code="OPERATION-OfAnotherProcess",
            field="operation_id",
        ) from error
    return answer(found, status=200 if found.is_ended else 202)
