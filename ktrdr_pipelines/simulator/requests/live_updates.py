"""The updates of live bars that follow the response to a historical request: message 90.

Source: IB sends the newest bar about every five seconds (grade O). When a bar is complete, IB sends
it for the last time and then the next one. Both clients replace a bar whose date they have, and
append one with a later date (grade S).
"""

from dataclasses import dataclass, field, replace

from ktrdr_pipelines.simulator.protocol import replies
from ktrdr_pipelines.simulator.protocol.bar_encoding import bar_rows
from ktrdr_pipelines.simulator.protocol.messages import HistoryRequest
from ktrdr_pipelines.simulator.requests.answers import bars_of, style_of
from ktrdr_pipelines.simulator.requests.durations import Duration, Unit
from ktrdr_pipelines.simulator.requests.refusals import RefusedError
from ktrdr_pipelines.simulator.requests.validation import Setting, read_history

EVERY_S = 5.0
"""Seconds between updates (grade O)."""

_RECENT = {True: Duration(2, Unit.MONTHS), False: Duration(2, Unit.DAYS)}
"""The duration within which a bar that still changes began; the key: whether bars are dated."""


@dataclass(slots=True)
class LiveBars:
    """The newest bar that was sent to a client, from which the next updates follow.

    ``start`` is the bar timestamp, ``row`` its texts.
    """

    request: HistoryRequest
    start: int = -1
    row: tuple[str, ...] = field(default=())

    def fresh(self, setting: Setting) -> bytes:
        """Return an update for every bar that changed or was added since the last call."""
        try:
            parsed = read_history(setting, self.request)
        except RefusedError:
            return b""  # a future that ended meanwhile has no more updates
        recent = replace(parsed, duration=_RECENT[parsed.size.is_dated])
        bars = bars_of(setting, recent, use_rth=self.request.use_rth)
        rows = list(bar_rows(bars, style_of(parsed, self.request)))
        starts = bars.start.tolist()
        changed = [
            (start, row)
            for start, row in zip(starts, rows, strict=True)
            if start >= self.start and row != self.row
        ]
        if changed:
            self.start, self.row = changed[-1]
        return b"".join(
            replies.historical_update(self.request.request_id, row) for _, row in changed
        )
