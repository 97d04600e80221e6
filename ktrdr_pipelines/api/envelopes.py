"""The envelope of every answer, and the status and code of every error.

An answer is ``{"success": bool, "data": object | null, "error": {...} | null}``. The error has a
``code`` such as ``IB-Unreachable``, a ``message`` and ``details``; where a value of the request is
wrong, ``details.field`` names it.

Not here: the documents in ``data`` (``app.views``), refusing requests (``api.access``).
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import compile_path

from ktrdr_pipelines import errors
from ktrdr_pipelines.app.views.documents import ErrorDocument
from ktrdr_pipelines.app.views.load_documents import LoadResult, LoadStatus
from ktrdr_pipelines.errors import KtrdrError, UsageError

_logger = logging.getLogger(__name__)

T = TypeVar("T")

JSON_TYPE: Final = "application/json"

INVALID_RANGE: Final = "REQUEST-InvalidRange"
"""The code of ranges whose ends are valid each by itself, which OpenAPI cannot exclude."""


class RestError(BaseModel):
    """Why a request was refused, or did not do all that it asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: str
    message: str
    details: dict[str, Any]


class Envelope(BaseModel, Generic[T]):
    """An answer. A partial load is a success that has an error: ``DATA-PartialLoad``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: bool
    data: T | None
    error: RestError | None


class ErrorEnvelope(BaseModel):
    """An answer to a request that failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: bool
    data: None
    error: RestError


class RequestError(KtrdrError):
    """A request that the API refuses.

    Args:
        status: the HTTP status.
        code: the code of the error in the envelope.
        field: the field of the request that is wrong, if one is.
        details: what else the error's details hold.
        headers: headers of the answer.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int,
        code: str,
        reason: str = "",
        hint: str = "",
        field: str | None = None,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what, reason=reason, hint=hint)
        self.status = status
        self.code = code
        named = {} if field is None else {"field": field}
        self.details: dict[str, Any] = {**named, **(details or {})}
        self.headers = dict(headers or {})


def range_error(error: UsageError, *, has_start: bool, suffix: str = "") -> RequestError:
    """Return the error of a range that cannot be: reversed, in the future, without a known session.

    Args:
        error: the error of the range.
        has_start: whether the request has a start.
        suffix: what the names of its fields have after ``start`` and ``end``.
    """
    is_end = error.what.startswith("end") or not has_start
    return RequestError(
        error.what,
        reason=error.reason,
        hint=error.hint,
        status=422,
        code=INVALID_RANGE,
        field=f"{'end' if is_end else 'start'}{suffix}",
    )


_STATUS_AND_CODE: Final[tuple[tuple[type[KtrdrError], int, str], ...]] = (
    (errors.UnknownSymbolError, 404, "DATA-UnknownSymbol"),
    (errors.UnknownOperationError, 404, "OPERATION-Unknown"),
    (errors.SettingFixedError, 409, "CONFIG-FixedByEnvironment"),
    (errors.SettingValueError, 422, "CONFIG-InvalidValue"),
    (errors.SettingsError, 503, "CONFIG-Unusable"),
    (errors.StoppingError, 503, "SERVER-Stopping"),
    (errors.UniverseError, 503, "STORE-InvalidUniverse"),
    (errors.NoStoreError, 503, "STORE-Missing"),
    (errors.UsageError, 422, "REQUEST-Invalid"),
    (errors.StoreError, 503, "STORE-Unusable"),
    (errors.ContractUnknownError, 404, "IB-ContractUnknown"),
    (errors.ContractAmbiguousError, 409, "IB-ContractAmbiguous"),
    (errors.IncompleteError, 409, "DATA-Incomplete"),
    (errors.GatewayError, 503, "IB-Error"),
)
"""The status and the code of errors, the first that fits; ``gateway_code`` has those of IB."""


def error_code(error: KtrdrError) -> str:
    """Return the code of an error."""
    return kind_code(type(error).__name__) or _found(error)[1]


def kind_code(kind: str) -> str | None:
    """Return the code of an error of the gateway by the name of its class, else None.

    ``GatewayUnreachableError`` is ``IB-Unreachable``, ``EntitlementError`` ``IB-Entitlement``.
    """
    found = getattr(errors, kind, None)
    if not (isinstance(found, type) and issubclass(found, errors.GatewayError)):
        return None
    return f"IB-{kind.removeprefix('Gateway').removesuffix('Error') or 'Error'}"


def kind_status(kind: str) -> int:
    """Return the status of an error by the name of its class; 500 if it is none of the project's.

    An operation keeps the name of the error that it ended with.
    """
    found = getattr(errors, kind, None)
    if isinstance(found, type):
        for one, status, _ in _STATUS_AND_CODE:
            if issubclass(found, one):
                return status
    return 500


def _found(error: KtrdrError) -> tuple[int, str]:
    if isinstance(error, RequestError):
        return error.status, error.code
    for kind, status, code in _STATUS_AND_CODE:
        if isinstance(error, kind):
            return status, code
    return 500, "INTERNAL-Error"


def api_error(error: KtrdrError) -> RestError:
    """Return an error as the envelope holds it; its details have its kind and its parts."""
    document = ErrorDocument.of(error).model_dump(exclude={"message"})
    details = {name: value for name, value in document.items() if value not in {"", None}}
    if isinstance(error, RequestError):
        details.update(error.details)
    elif isinstance(error, errors.UnknownSymbolError):
        details["field"] = "symbol"
    elif isinstance(error, errors.SettingValueError):
        details["field"] = error.field
    elif isinstance(error, errors.SettingFixedError):
        details["variable"] = error.variable
        details["field"] = {"IB_HOST": "host", "IB_PORT": "port"}.get(error.variable, "client_id")
    return RestError(code=error_code(error), message=str(error), details=details)


def answer(
    data: Any, *, status: int = 200, error: RestError | None = None, success: bool | None = None
) -> Response:
    """Return the answer with a document, or with a list of them.

    Args:
        data: a document of ``app.views``, a sequence of them, or None.
        status: the HTTP status.
        error: the error of the envelope.
        success: by default, whether there is no error.
    """
    good = error is None if success is None else success
    envelope = Envelope[Any](success=good, data=data, error=error)
    return Response(envelope.model_dump_json(), status_code=status, media_type=JSON_TYPE)


def failure(error: KtrdrError) -> Response:
    """Return the answer for an error."""
    found = answer(None, status=_found(error)[0], error=api_error(error))
    if isinstance(error, RequestError):
        found.headers.update(error.headers)
    return found


def load_answer(result: LoadResult) -> Response:
    """Return the answer for a load that ended: always 200, as the envelope tells how it ended."""
    if result.status is LoadStatus.SUCCESS:
        return answer(result)
    partial = result.status is LoadStatus.PARTIAL
    cause = result.error
    text = result.error_message or "bars of the range are missing"
    details: dict[str, Any] = {} if cause is None else cause.model_dump(mode="json")
    code = "DATA-PartialLoad" if partial else "DATA-LoadFailed"
    if cause is not None and not partial:
        code = kind_code(cause.kind) or code
    error = RestError(code=code, message=text, details=details)
    return answer(result, error=error, success=partial)


def install_error_handlers(app: FastAPI) -> None:
    """Make an app answer every error by an envelope."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(KtrdrError, _failed)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, KtrdrError)  # noqa: S101  (as registered)
    found = failure(error)
    if found.status_code == 500:
        _logger.error("A request failed", exc_info=error)
    return found


async def _unexpected(request: Request, error: Exception) -> Response:
    _logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    text = f"an unexpected {type(error).__name__}; the log of the server has the details"
    return answer(
        None, status=500, error=RestError(code="INTERNAL-Error", message=text, details={})
    )


_HTTP_CODES: Final = {
    400: "REQUEST-MalformedJson",
    404: "REQUEST-NoSuchPath",
    405: "REQUEST-MethodNotAllowed",
}


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer for what the router refuses: an unknown path or method, or JSON nested too deeply."""
    assert isinstance(error, HTTPException)  # noqa: S101  (as registered)
    status = error.status_code
    text = {
        400: "body: it cannot be read as JSON",
        404: f"no such path: {request.url.path}. Hint: /docs lists all",
        405: f"{request.method} is not allowed here",
    }.get(status, str(error.detail))
    code = _HTTP_CODES.get(status, "REQUEST-Invalid")
    details = {"field": "body"} if status == 400 else {}
    found = answer(None, status=status, error=RestError(code=code, message=text, details=details))
    found.headers.update(error.headers or {})
    if status == 405:  # the router names those of one route alone
        found.headers["Allow"] = ", ".join(_methods(request))
    return found


def _methods(request: Request) -> list[str]:
    """Return the methods that the path of a request has."""
    app: FastAPI = request.app
    return sorted(
        method.upper()
        for template, methods in app.openapi()["paths"].items()
        if compile_path(template)[0].match(request.url.path)
        for method in methods
    ) or ["GET"]  # that of the documentation, which is not in itself


async def _invalid(_: Request, error: Exception) -> Response:
    """Answer for a request that its schema refuses; the field that is wrong is named.

    The status is 404 for a part of the path, 400 for a body that is not JSON, else 422.
    """
    assert isinstance(error, RequestValidationError)  # noqa: S101  (as registered)
    fields = [
        {"field": _field(one["loc"]), "in": str(one["loc"][0]), "reason": _reason(one)}
        for one in error.errors()
    ]
    first = fields[0]
    is_json = error.errors()[0]["type"] != "json_invalid"
    code, status = ("REQUEST-Invalid", 422) if is_json else ("REQUEST-MalformedJson", 400)
    if first["in"] == "path":
        code, status = "REQUEST-NoSuchPath", 404
    text = f"{first['field']}: {first['reason']}" if is_json else f"body: {first['reason']}"
    found = RestError(code=code, message=text, details={"field": first["field"], "fields": fields})
    return answer(None, status=status, error=found)


def _field(location: Sequence[Any]) -> str:
    names = [str(one) for one in location[1:] if not isinstance(one, int)]
    return ".".join(names) or str(location[0])


def _reason(found: Mapping[str, Any]) -> str:
    text = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        detail = found.get("ctx", {}).get("error", "")
        return f"it is not valid JSON ({detail})" if detail else "it is not valid JSON"
    if found["type"] == "extra_forbidden":
        return "no such field"
    value = found.get("input")
    if isinstance(value, str | int | float | bool) and found["type"] != "missing":
        return f"{text}, not {json.dumps(value)[:80]}"
    return text
