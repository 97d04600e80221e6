"""The widths of requests that all processes have learned of one gateway, in its shared record.

Not here: how they are learned (``domain.planning.width_learning``).
"""

from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from sqlite3 import Connection

from ktrdr_pipelines.domain.planning.width_learning import LearnedWidth
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.gateway_memory import SharedMemory
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter


class LearnedWidths:
    """The learned widths of a gateway; a ``domain.planning.width_learning.WidthMemory``.

    Args:
        open_record: opens the gateway's rate limiter, which holds the shared record.
    """

    def __init__(self, open_record: Callable[[], RateLimiter]) -> None:
        self._open_record = open_record
        self._opened: RateLimiter | None = None

    @classmethod
    def of(cls, config: GatewayConfig) -> "LearnedWidths | None":
        """Return those of a configured gateway; None where it is to keep to the safe plan."""
        return None if config.conservative else cls(lambda: RateLimiter.of(config))

    def known(self) -> Mapping[str, LearnedWidth]:
        """Return what is remembered, by kind of series; reading creates nothing.

        Raises:
            DiskError: the shared record cannot be used.
        """
        if not self._record.exists:
            return {}
        texts = self._record.remember(lambda memory, database: memory.widths(database))
        read = {kind: LearnedWidth.from_text(text) for kind, text in texts.items()}
        return {kind: known for kind, known in read.items() if known is not None}

    def update(
        self, kind: str, change: Callable[[LearnedWidth | None], LearnedWidth]
    ) -> LearnedWidth:
        """Replace what is remembered of a kind, as one step among all processes; return it.

        Raises:
            DiskError: the shared record cannot be used.
        """

        def act(memory: SharedMemory, database: Connection) -> LearnedWidth:
            text = memory.widths(database).get(kind)
            changed = change(None if text is None else LearnedWidth.from_text(text))
            memory.learn_width(database, kind, changed.to_text())
            return changed

        return self._record.remember(act)

    def close(self) -> None:
        """Close the shared record; the next use opens it again, in any thread."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def _record(self) -> RateLimiter:
        if self._opened is None:
            self._opened = self._open_record()
        return self._opened


def learned_widths(config: GatewayConfig, real_now: datetime) -> Mapping[str, LearnedWidth]:
    """Return the learned widths that hold at a moment of real time, by kind of series.

    Raises:
        DiskError: the shared record cannot be used.
    """
    if (widths := LearnedWidths.of(config)) is None:
        return {}
    with closing(widths):
        known = widths.known()
    return {kind: one for kind, one in known.items() if one.is_valid(real_now.timestamp())}
