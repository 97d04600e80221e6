"""The widths of requests that all processes have learned of one gateway, in its shared record.

Not here: how they are learned (``domain.planning.width_learning``).
"""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import datetime
from sqlite3 import Connection
from typing import Any

from ktrdr_pipelines.domain.planning.width_learning import (
    STEPS,
    LearnedWidth,
    TimeUnderLoad,
    Trial,
    WidthSample,
)
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
        read = {kind: width_in(text) for kind, text in texts.items()}
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
            changed = change(None if text is None else width_in(text))
            memory.learn_width(database, kind, text_of(changed))
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


def text_of(known: LearnedWidth) -> str:
    """Return what is known of a kind of series as JSON."""
    trials = {
        str(width): {
            "samples": [[one.bars, round(one.took_s, 4), one.at_once] for one in trial.samples],
            "probes": list(trial.probes),
            "sent": trial.sent,
            "retry_at": trial.retry_at,
            "rejections": trial.rejections,
            "failures": trial.failures,
            "why": trial.why,
            "loads": [
                [load, one.count, round(one.mean_s, 4), one.last]
                for load, one in trial.loads.items()
            ],
            "responses": trial.responses,
        }
        for width, trial in known.trials.items()
    }
    return json.dumps(
        {
            "width": known.width,
            "since": known.since,
            "learned_at": known.learned_at,
            "trials": trials,
        }
    )


def width_in(text: str) -> LearnedWidth | None:
    """Return what ``text_of`` wrote; None if it cannot be read."""
    try:
        document = json.loads(text)
        trials = {int(width): _trial_in(one) for width, one in document["trials"].items()}
        known = LearnedWidth(
            int(document["width"]), float(document["since"]), float(document["learned_at"]), trials
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    times_s = [one.took_s for trial in trials.values() for one in trial.samples]
    times_s += [one.mean_s for trial in trials.values() for one in trial.loads.values()]
    is_sound = all(map(math.isfinite, (known.since, *times_s)))
    return known if is_sound and known.width in STEPS else None


def _trial_in(document: Mapping[str, Any]) -> Trial:
    return Trial(
        samples=tuple(
            WidthSample(int(bars), float(took_s), int(at_once))
            for bars, took_s, at_once in document["samples"]
        ),
        probes=tuple(float(at) for at in document["probes"]),
        sent=int(document["sent"]),
        retry_at=float(document["retry_at"]),
        rejections=int(document["rejections"]),
        failures=int(document["failures"]),
        why=str(document["why"]),
        loads={
            int(load): TimeUnderLoad(int(count), float(mean_s), int(last))
            for load, count, mean_s, last in document.get("loads", ())
        },
        responses=int(document.get("responses", 0)),
    )
