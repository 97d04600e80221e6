"""The eight timeframes: names, lengths, and whether their bars have times or dates.

Not here: the spans in which a timeframe is expected to have bars (``domain.calendars.sessions``).
"""

from datetime import timedelta
from enum import StrEnum

from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.limits import IbLimitsRegistry


class Timeframe(StrEnum):
    """Length of a bar, by its usual short name."""

    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    M30 = "30m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"
    W1 = "1w"

    @property
    def seconds(self) -> int:
        """Length in seconds; a week is seven days."""
        return _SECONDS[self]

    @property
    def length(self) -> timedelta:
        """Length as a duration."""
        return timedelta(seconds=_SECONDS[self])

    @property
    def is_intraday(self) -> bool:
        """Whether bar timestamps are times rather than dates."""
        return _SECONDS[self] < _DAY_S

    @property
    def is_yearly_filed(self) -> bool:
        """Whether the store keeps one file a year (1m, 5m) rather than one for all."""
        return self in {Timeframe.M1, Timeframe.M5}

    @property
    def ib_bar_size(self) -> str:
        """The gateway's name for this bar size."""
        return IbLimitsRegistry.BAR_SIZES.value[self.value]


_DAY_S = 86_400
_SECONDS = {
    Timeframe.M1: 60,
    Timeframe.M5: 300,
    Timeframe.M15: 900,
    Timeframe.M30: 1_800,
    Timeframe.H1: 3_600,
    Timeframe.H4: 14_400,
    Timeframe.D1: _DAY_S,
    Timeframe.W1: 7 * _DAY_S,
}


def timeframe_named(name: str) -> Timeframe:
    """Return the timeframe of a name.

    Raises:
        UsageError: there is no such timeframe.
    """
    if name not in list(Timeframe):
        allowed = f"Allowed are {', '.join(Timeframe)}"
        raise UsageError(f"timeframe {name!r}", reason="no such timeframe", hint=allowed)
    return Timeframe(name)
