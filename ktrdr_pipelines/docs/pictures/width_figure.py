"""The figure of requests in flight over time, from a simulation (``loaded_gateway``)."""

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from ktrdr_pipelines.docs.pictures.loaded_gateway import (
    Adaptive,
    Arrival,
    LoadedGateway,
    simulate,
)

SECONDS = 300.0
CHANGE_S = 150.0
GATEWAY = LoadedGateway(6, noise=0.3, load=0.1, changes=((CHANGE_S, 12),), seed=3)
"""Six at a time, later twelve; times spread by 30 %, 10 % slower for each request that waits."""

_WINDOW_S = 15.0
_BLUE, _ORANGE, _GREY = "#1f77b4", "#d95f02", "#777777"


def width_figure() -> bytes:
    """Return the figure as PNG."""
    arrivals = simulate(GATEWAY, Adaptive(), seconds=SECONDS)
    figure = Figure(figsize=(8.0, 4.4), dpi=90, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    times = [each.at for each in arrivals]
    above.step(times, [each.limit for each in arrivals], where="post", color=_BLUE, linewidth=1.2)
    above.set_ylabel("requests in flight")
    below.plot(times, _rates(arrivals), color=_ORANGE, linewidth=1.2)
    below.set_ylabel("requests a second")
    below.set_xlabel("seconds since the first request")
    for axes in (above, below):
        axes.step(
            [0.0, CHANGE_S, SECONDS],
            [GATEWAY.workers, GATEWAY.changes[0][1], GATEWAY.changes[0][1]],
            where="post",
            color=_GREY,
            linestyle="--",
            linewidth=1.0,
            label="what the gateway can serve",
        )
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, SECONDS)
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    above.legend(loc="upper left", frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _rates(arrivals: Sequence[Arrival]) -> list[float]:
    """Return the responses a second of the last seconds, at each response."""
    rates, first = [], 0
    for number, each in enumerate(arrivals):
        while each.at - arrivals[first].at > _WINDOW_S:
            first += 1
        rates.append((number + 1 - first) / min(_WINDOW_S, max(each.at, 1.0)))
    return rates
