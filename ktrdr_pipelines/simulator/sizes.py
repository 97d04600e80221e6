"""The bar sizes that are served, and on which grid their bars start.

The grid is the local clock: hours on the local hour, four hours on local midnight; the first bar
of a session starts at its open wherever the grid lies (a US stock: 09:30, then 10:00).
"""

from dataclasses import dataclass

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.hours import DAY_S

WEEK_S = 7 * DAY_S

_SECONDS = {
    "1m": 60,
    "5m": 300,
    "15m": 900,
    "30m": 1_800,
    "1h": 3_600,
    "4h": 14_400,
    "1d": DAY_S,
    "1w": WEEK_S,
}


@dataclass(frozen=True, slots=True, order=True)
class BarSize:
    """One bar size: its length, the project's key and the text clients ask with."""

    seconds: int
    key: str
    text: str

    @property
    def is_dated(self) -> bool:
        """Whether its bars carry a date instead of a time: days and weeks."""
        return self.seconds >= DAY_S


SIZES = tuple(
    BarSize(_SECONDS[key], key, text) for key, text in IbLimitsRegistry.BAR_SIZES.value.items()
)
"""Every size served, from the shortest to the longest."""

SIZE_BY_TEXT = {size.text: size for size in SIZES}
SIZE_BY_KEY = {size.key: size for size in SIZES}

MINUTE = SIZE_BY_KEY["1m"]
DAY = SIZE_BY_KEY["1d"]
WEEK = SIZE_BY_KEY["1w"]
