"""The bar sizes that are served, and on which grid their bars start.

The grid is the local clock: hours on the local hour, four hours on local midnight; the first bar
of a session starts at its open wherever the grid lies (a US stock: 09:30, then 10:00).
"""

from dataclasses import dataclass

from ktrdr_pipelines.simulator.hours import DAY_S

WEEK_S = 7 * DAY_S
MONTH_S = 30 * DAY_S

_TABLE = """
1s  1     1 secs
5s  5     5 secs
10s 10    10 secs
15s 15    15 secs
30s 30    30 secs
1m  60    1 min
2m  120   2 mins
3m  180   3 mins
5m  300   5 mins
10m 600   10 mins
15m 900   15 mins
20m 1200  20 mins
30m 1800  30 mins
1h  3600  1 hour
2h  7200  2 hours
3h  10800 3 hours
4h  14400 4 hours
8h  28800 8 hours
"""


@dataclass(frozen=True, slots=True, order=True)
class BarSize:
    """One bar size: its length, a key that names files of recordings, the text of requests.

    The length of a month is nominal.
    """

    seconds: int
    key: str
    text: str

    @property
    def is_dated(self) -> bool:
        """Whether its bars carry a date instead of a time: days, weeks and months."""
        return self.seconds >= DAY_S

    def is_made_of(self, shorter: "BarSize") -> bool:
        """Say whether its bars are whole numbers of shorter ones."""
        if self.is_dated:
            return shorter.seconds < self.seconds and shorter.seconds <= DAY_S
        return shorter.seconds < self.seconds and self.seconds % shorter.seconds == 0


def _timed() -> list[BarSize]:
    lines = (line.split(maxsplit=2) for line in _TABLE.strip().splitlines())
    return [BarSize(int(seconds), key, text) for key, seconds, text in lines]


DAY = BarSize(DAY_S, "1d", "1 day")
WEEK = BarSize(WEEK_S, "1w", "1 week")
MONTH = BarSize(MONTH_S, "1mo", "1 month")

SIZES = (*_timed(), DAY, WEEK, MONTH)
"""Every size served, from the shortest to the longest."""

SIZE_BY_KEY = {size.key: size for size in SIZES}
SIZE_BY_TEXT = {size.text: size for size in SIZES} | {"1W": WEEK, "1M": MONTH}
"""Sizes by what requests call them; a gateway's own names of weeks and months fit too."""

LEGAL_SIZES = ", ".join({WEEK: "1W", MONTH: "1M"}.get(size, size.text) for size in SIZES)
"""The sizes as the refusal of another one lists them (grade L)."""

MINUTE = SIZE_BY_KEY["1m"]
