"""Routes of the system as a whole, of the gap filler, and of the server itself."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Final

from fastapi import Response

from ktrdr_pipelines.api.api_context import ApiContext, Context, errors, router
from ktrdr_pipelines.api.envelopes import Envelope, RequestError, answer
from ktrdr_pipelines.app.views.documents import Document
from ktrdr_pipelines.app.views.ib_documents import IbStatus
from ktrdr_pipelines.app.views.service_documents import ForcedScan, GapFillerStatus, SystemStatus
from ktrdr_pipelines.errors import UsageError

routes: Final = router("system")


class Liveness(Document):
    """The server runs. Whether the gateway does is in ``/ib/health``."""

    alive: bool
    version: str


_ALIVE: Final = Liveness(alive=True, version=version("ktrdr-pipelines"))


@routes.get("/health", response_model=Envelope[Liveness], responses=errors())
async def health() -> Response:
    """Return that the server runs; it needs no token."""
    return answer(_ALIVE)


@routes.get("/system/ib-status", response_model=Envelope[IbStatus], responses=errors())
async def system_ib_status(context: Context) -> Response:
    """Return the same as `/ib/status`."""
    return answer(await context.fast(context.ib.get_status))


@routes.get(
    "/system/gap-filler-status", response_model=Envelope[GapFillerStatus], responses=errors()
)
async def gap_filler_status(context: Context) -> Response:
    """Return whether the gap filler runs, and what it found and filled."""
    return answer(await context.fast(context.gap_filler.status))


@routes.get("/system/system-status", response_model=Envelope[SystemStatus], responses=errors())
async def system_status(context: Context) -> Response:
    """Return the state of the store, the gateway and the gap filler."""
    return answer(await context.fast(context.system.status))


@routes.post(
    "/system/gap-filler/start", response_model=Envelope[GapFillerStatus], responses=errors(409)
)
async def start_gap_filler(context: Context) -> Response:
    """Switch the gap filler on; it runs while `ktrdr up` does."""
    return await _switched(context, context.gap_filler.start)


@routes.post(
    "/system/gap-filler/stop", response_model=Envelope[GapFillerStatus], responses=errors(409)
)
async def stop_gap_filler(context: Context) -> Response:
    """Switch the gap filler off; runs that it has launched go on."""
    return await _switched(context, context.gap_filler.stop)


async def _switched(context: ApiContext, switch: Callable[[], GapFillerStatus]) -> Response:
    try:
        return answer(await context.control(switch))
    except UsageError as error:  # `ktrdr up` has never run over the store
        raise RequestError(
            error.what,
            reason=error.reason,
            hint=error.hint,
            status=409,
            code="GAPFILLER-NotSetUp",
        ) from error


@routes.post(
    "/system/gap-filler/force-scan", response_model=Envelope[ForcedScan], responses=errors()
)
async def force_scan(context: Context) -> Response:
    """Make deferred gaps due, and wake the gap filler; without `ktrdr up`, begin an update."""
    return answer(await context.control(context.gap_filler.force_scan))
