"""The REST API as an ASGI application.

Not here: the server that runs it (``api.rest_server``).
"""

from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from ktrdr_pipelines.api import data_routes, ib_routes, operation_routes, system_routes
from ktrdr_pipelines.api.access import LIVENESS, AccessGuard, AccessRules
from ktrdr_pipelines.api.api_context import ApiContext, Context, errors, router
from ktrdr_pipelines.api.envelopes import ErrorEnvelope, install_error_handlers
from ktrdr_pipelines.api.metrics import MetricsMiddleware, RestMetrics
from ktrdr_pipelines.api.reference import SECURITY_POLICY, reference_html

_DESCRIPTION: Final = """\
Bars of Interactive Brokers from a local store, and loads into it.

Every answer is `{"success", "data", "error"}`. A partial load is a success that has an error,
`DATA-PartialLoad`. Times are in UTC; the end of an interval is exclusive.
"""

metrics_route: Final = router("system", prefix="")


@metrics_route.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {}}}, **errors()},
)
async def prometheus_metrics(request: Request, context: Context) -> Response:
    """Return the metrics in the text format of Prometheus."""
    found: RestMetrics = request.app.state.metrics
    return Response(await context.fast(found.text), media_type=CONTENT_TYPE_LATEST)


async def reference(request: Request) -> HTMLResponse:
    """Return the description of all requests, for a browser."""
    text = reference_html(request.app.openapi())
    return HTMLResponse(text, headers={"Content-Security-Policy": SECURITY_POLICY})


def build_app(context: ApiContext, rules: AccessRules) -> FastAPI:
    """Return the application; it does not close the services.

    Args:
        context: the services.
        rules: which requests are let in.
    """
    app = FastAPI(
        title="ktrdr",
        summary="A local store of Interactive Brokers bars",
        description=_DESCRIPTION,
        version=version("ktrdr-pipelines"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.metrics = metrics = RestMetrics(context.system.metrics)
    for one in (data_routes, ib_routes, operation_routes, system_routes):
        app.include_router(one.routes)
    app.include_router(metrics_route)
    app.add_route("/docs", reference, include_in_schema=False)
    install_error_handlers(app)
    app.add_middleware(AccessGuard, rules=rules)
    app.add_middleware(MetricsMiddleware, metrics=metrics)  # the outer one
    if rules.token is not None:
        _require_token(app)
    return app


def _require_token(app: FastAPI) -> None:
    """Say in the OpenAPI document that every request but one needs the token."""
    plain = app.openapi

    def with_token() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
            schemes["token"] = {"type": "http", "scheme": "bearer"}
            document["security"] = [{"token": []}]
            refused = {
                "description": "The token is missing or wrong.",
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{ErrorEnvelope.__name__}"}
                    }
                },
            }
            for path, methods in document["paths"].items():
                for one in methods.values():
                    if path == LIVENESS:
                        one["security"] = []
                    else:
                        one["responses"]["401"] = refused
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = with_token  # type: ignore[method-assign]  # as FastAPI's documentation does
