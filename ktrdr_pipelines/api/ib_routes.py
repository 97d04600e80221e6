"""Routes of the gateway: status, health, configuration, ranges, loads and contracts."""

from typing import Annotated, Final

from fastapi import Header, Response
from pydantic import BeforeValidator, Field

from ktrdr_pipelines.api.api_context import (
    Bound,
    Context,
    RequestBody,
    Symbol,
    SymbolsInQuery,
    TimeframesInQuery,
    errors,
    number_in_json,
    router,
)
from ktrdr_pipelines.api.envelopes import Envelope, answer
from ktrdr_pipelines.api.operation_routes import LoadRequested, Preference, load_responses, loaded
from ktrdr_pipelines.app.views.ib_documents import (
    DataRanges,
    DiscoveredSymbol,
    DiscoveredSymbols,
    IbCleanup,
    IbConfig,
    IbConfigUpdate,
    IbHealth,
    IbStatus,
)
from ktrdr_pipelines.app.views.load_documents import LoadResult
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.timeframes import Timeframe

routes: Final = router("gateway")

_MOST_CLIENT_ID: Final = 2**31 - 1
_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_HOST: Final = rf"^({_LABEL}(\.{_LABEL})*|[0-9A-Fa-f:]{{2,39}})$"
"""A name or an address in figures: what a resolver of names refuses is refused here."""


class IbLoadRequest(RequestBody):
    """What to load. ``start`` is included, ``end`` is not; dates are session dates."""

    symbol: Symbol
    timeframe: Timeframe
    mode: Mode = Mode.TAIL
    start: Bound | None = None
    end: Bound | None = None


class ConfigChange(RequestBody):
    """What to change; a field that is left out, or null, stays as it is."""

    host: Annotated[str, Field(pattern=_HOST, max_length=253)] | None = None
    port: Annotated[int, Field(ge=1, le=65535), BeforeValidator(number_in_json)] | None = None
    client_id: (
        Annotated[int, Field(ge=1, le=_MOST_CLIENT_ID), BeforeValidator(number_in_json)] | None
    ) = None


class DiscoveryRequest(RequestBody):
    """The symbol whose contract is wanted; known ones are requested again only by force."""

    symbol: Symbol
    force_refresh: Annotated[bool, Field(strict=True)] = False


@routes.get("/ib/status", response_model=Envelope[IbStatus], responses=errors())
async def ib_status(context: Context) -> Response:
    """Return the state of the connection, and what happened to requests. Sends no request."""
    return answer(await context.fast(context.ib.get_status))


@routes.get("/ib/health", response_model=Envelope[IbHealth], responses=errors())
async def ib_health(context: Context) -> Response:
    """Return whether the gateway responds and data come in. Sends no request."""
    return answer(await context.fast(context.ib.get_health))


@routes.get("/ib/config", response_model=Envelope[IbConfig], responses=errors())
async def ib_config(context: Context) -> Response:
    """Return the configuration of the gateway, and where each value comes from."""
    return answer(await context.fast(context.ib.get_config))


@routes.put("/ib/config", response_model=Envelope[IbConfigUpdate], responses=errors(409, body=True))
async def change_config(context: Context, change: ConfigChange) -> Response:
    """Change the configuration of the store; it applies to the next connection.

    A value that the environment fixes is refused with 409, and the error names the variable.
    """
    return answer(
        await context.fast(
            context.ib.update_config,
            host=change.host,
            port=change.port,
            client_id=change.client_id,
        )
    )


@routes.post("/ib/cleanup", response_model=Envelope[IbCleanup], responses=errors())
async def clean_up(context: Context) -> Response:
    """Close connections that no load uses, and return their client ids."""
    return answer(await context.control(context.ib.cleanup_connections))


@routes.get("/ib/ranges", response_model=Envelope[DataRanges], responses=errors())
async def ib_ranges(
    context: Context, symbols: SymbolsInQuery = None, timeframes: TimeframesInQuery = None
) -> Response:
    """Return which bars are held of symbols. Sends no request."""

    def found() -> DataRanges:
        names = (
            [one.symbol for one in context.ib.symbols()]
            if symbols is None
            else list(dict.fromkeys(symbols.split(",")))
        )
        kinds = list(Timeframe) if timeframes is None else timeframes.split(",")
        return context.ib.get_data_ranges(names, list(dict.fromkeys(map(Timeframe, kinds))))

    return answer(await context.slow(found))


@routes.post(
    "/ib/load",
    response_model=Envelope[LoadResult],
    responses=load_responses(),
)
async def ib_load(
    context: Context,
    wanted: IbLoadRequest,
    prefer: Annotated[str | None, Header(description="`respond-async` for 202 at once")] = None,
) -> Response:
    """Load a series from the gateway, and answer when that has ended.

    The load goes on if the client is gone. A partial load is a success with an error,
    `DATA-PartialLoad`.
    """
    request = LoadRequested(
        wanted.symbol, wanted.timeframe, wanted.mode, wanted.start, wanted.end, "/ib/load"
    )
    return await loaded(context, request, LoadResult, Preference.of(prefer))


@routes.post(
    "/ib/symbols/discover",
    response_model=Envelope[DiscoveredSymbol],
    responses=errors(409, body=True),
)
async def discover_symbol(context: Context, wanted: DiscoveryRequest) -> Response:
    """Return the contract of a symbol; it is requested if it is not known yet."""
    return answer(
        await context.gateway(
            context.ib.discover_symbol, wanted.symbol, force_refresh=wanted.force_refresh
        )
    )


@routes.get(
    "/ib/symbols/discovered", response_model=Envelope[DiscoveredSymbols], responses=errors()
)
async def discovered_symbols(context: Context) -> Response:
    """Return all contracts that are known. Sends no request."""
    return answer(await context.fast(context.ib.discovered_symbols))
