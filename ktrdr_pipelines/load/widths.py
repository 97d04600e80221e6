"""How wide a request may be, as one run has learned it from requests that were never answered.

Not here: how requests are cut (``core.plan``).
"""

from ktrdr_pipelines.core.plan import narrower
from ktrdr_pipelines.core.timeframes import Timeframe


class Widths:
    """The most sessions (1w: weeks) of a request that works, by timeframe."""

    def __init__(self) -> None:
        self._most: dict[Timeframe, int] = {}

    def __repr__(self) -> str:
        known = ", ".join(f"{timeframe} {most}" for timeframe, most in self._most.items())
        return f"Widths({known or 'as planned'})"

    def most(self, timeframe: Timeframe) -> int | None:
        """Give the most sessions that may be asked for at once, or None where nothing is known."""
        return self._most.get(timeframe)

    def narrow(self, timeframe: Timeframe, sessions: int) -> bool:
        """Take in that so many sessions at once got no answer; say whether fewer can be asked.

        Several requests that were open at once narrow it once.
        """
        fewer = narrower(timeframe, sessions)
        if fewer is None:
            return False
        self._most[timeframe] = min(fewer, self._most.get(timeframe, fewer))
        return True
