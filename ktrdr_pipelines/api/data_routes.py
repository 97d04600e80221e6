"""Routes of the data: symbols, timeframes, bars, ranges, gaps and loads.

Reads come from the store alone; only ``/data/load`` uses the gateway.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Final

from fastapi import Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ConfigDict

from ktrdr_pipelines.api.api_context import (
    ApiContext,
    Bound,
    Context,
    Count,
    Flag,
    RequestBody,
    Symbol,
    SymbolInPath,
    TimeframeInPath,
    errors,
    router,
)
from ktrdr_pipelines.api.bar_formats import BarFormat, accepted_format, written
from ktrdr_pipelines.api.envelopes import Envelope, answer
from ktrdr_pipelines.api.local_bars import BarsWanted, SeriesGapsDocument, gaps_of_series, read_local
from ktrdr_pipelines.api.operation_routes import LoadRequested, Preference, load_responses, loaded
from ktrdr_pipelines.app.views.bar_documents import (
    BarsDocument,
    RangeDocument,
    SymbolDocument,
    TimeframeDocument,
)
from ktrdr_pipelines.app.views.load_documents import DataLoadResult
from ktrdr_pipelines.domain.planning.jobs import Mode
from ktrdr_pipelines.domain.timeframes import Timeframe

routes: Final = router("data")


class DataLoadRequest(RequestBody):
    """What to load; ``start_date`` is included, ``end_date`` is not."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"symbol": "AAPL", "timeframe": "1d", "mode": "tail"}]},
    )

    symbol: Symbol
    timeframe: Timeframe
    mode: Mode = Mode.TAIL
    start_date: Bound | None = None
    end_date: Bound | None = None


class RangeRequest(RequestBody):
    """The series whose range is wanted."""

    symbol: Symbol
    timeframe: Timeframe


@routes.get(
    "/symbols", response_model=Envelope[tuple[SymbolDocument, ...]], responses=errors()
)
async def symbols(context: Context) -> Response:
    """Return all symbols that have bars, also those that have left the universe."""
    return answer(await context.fast(context.ib.symbols))


@routes.get(
    "/timeframes", response_model=Envelope[tuple[TimeframeDocument, ...]], responses=errors()
)
async def timeframes(context: Context) -> Response:
    """Return all timeframes."""
    return answer(await context.fast(context.ib.timeframes))


@routes.post(
    "/data/range", response_model=Envelope[RangeDocument], responses=errors(body=True)
)
async def data_range(context: Context, wanted: RangeRequest) -> Response:
    """Return the first and the last bar held of a series, and their number."""
    return answer(await context.fast(context.ib.data_range, wanted.symbol, wanted.timeframe))


@routes.post("/data/load", response_model=Envelope[DataLoadResult], responses=load_responses())
async def data_load(
    context: Context,
    wanted: DataLoadRequest,
    prefer: Annotated[str | None, Header(description="`respond-async` for 202 at once")] = None,
) -> Response:
    """Load a series, and answer when that has ended: what is held stays, what is missing comes.

    The load goes on if the client is gone. A partial load is a success with an error,
    `DATA-PartialLoad`.
    """
    request = LoadRequested(
        wanted.symbol,
        wanted.timeframe,
        wanted.mode,
        wanted.start_date,
        wanted.end_date,
        "/data/load",
    )
    return await loaded(context, request, DataLoadResult, Preference.of(prefer))


_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_BARS_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The bars, in the format that `Accept` prefers.",
        "content": {
            BarFormat.ARROW.media_type: _BINARY,
            BarFormat.PARQUET.media_type: _BINARY,
            BarFormat.CSV.media_type: {"schema": {"type": "string"}},
        },
        "headers": {
            "Vary": {"schema": {"type": "string"}, "required": True},
            "Link": {
                "schema": {"type": "string"},
                "description": "The bars that follow, where `limit` left some out.",
            },
        },
    },
    **errors(406, 409),
}


@routes.get(
    "/data/{symbol}/{timeframe}",
    response_model=Envelope[BarsDocument],
    responses=_BARS_RESPONSES,
)
async def bars(  # noqa: PLR0913, PLR0917  (a parameter of the query each)
    request: Request,
    context: Context,
    symbol: SymbolInPath,
    timeframe: TimeframeInPath,
    start_date: Annotated[Bound | None, Query(description="First session date, or instant")] = None,
    end_date: Annotated[
        Bound | None, Query(description="The first session date, or instant, not wanted")
    ] = None,
    trading_hours_only: Annotated[
        Flag, Query(description="Only bars inside sessions of the instrument's calendar")
    ] = False,
    include_extended: Annotated[
        Flag, Query(description="All bars of the symbol, in spite of `trading_hours_only`")
    ] = False,
    limit: Annotated[Count | None, Query(description="The oldest so many of the bars")] = None,
    last: Annotated[Count | None, Query(description="The newest so many of the bars")] = None,
    points: Annotated[Flag, Query(description="JSON has each bar as an object, too")] = False,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Return bars of the store, on today's price basis. Sends no request to the gateway."""
    kind = accepted_format(accept)
    wanted = BarsWanted(
        symbol,
        timeframe,
        start=start_date,
        end=end_date,
        in_sessions=trading_hours_only and not include_extended,
        limit=limit,
        last=last,
    )
    found = await context.slow(read_local, context.store, context.open_workspace, wanted)
    pieces = written(found.bars, kind, found.metadata, points=points)
    name = f"{symbol}_{timeframe}.{kind.ending}"
    headers = {"Vary": "Accept", "Content-Disposition": f'inline; filename="{name}"'}
    if found.next_start is not None:
        following = request.url.include_query_params(start_date=found.next_start)
        headers["Link"] = f'<{following.path}?{following.query}>; rel="next"'
    return StreamingResponse(
        _streamed(context, pieces), media_type=kind.media_type, headers=headers
    )


async def _streamed(context: ApiContext, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield pieces that are made in the slow pool, one at a time."""
    while (piece := await context.slow(next, pieces, None)) is not None:
        if piece:
            yield piece


@routes.get(
    "/data/{symbol}/{timeframe}/gaps", response_model=Envelope[SeriesGapsDocument], responses=errors()
)
async def gaps(context: Context, symbol: SymbolInPath, timeframe: TimeframeInPath) -> Response:
    """Return what is missing of a series, and why."""
    return answer(await context.slow(gaps_of_series, context.store, symbol, timeframe))
