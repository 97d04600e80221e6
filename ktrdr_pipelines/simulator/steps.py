"""Which bar sizes a duration may be asked with: the tables of steps, selectable.

Source: both tables of IB (``IbLimitsRegistry``, grade O); the texts and ``invalid step: 1`` for a
day of seconds are live (grade L). The wide table contradicts itself: ``5 D`` of ``1 day`` works
(grade L), so of its rows only the smallest bar binds.
"""

from collections.abc import Callable
from enum import StrEnum

from ktrdr_pipelines.limits import DurationRange, IbLimitsRegistry
from ktrdr_pipelines.simulator.durations import Duration
from ktrdr_pipelines.simulator.sizes import BarSize

TOO_LONG = "Time length exceed max."


class DurationTable(StrEnum):
    """How strict a gateway is about durations and bar sizes.

    ``safe`` is IB's older table of a few thousand bars, ``wide`` its current one, ``any`` asks
    nothing but the longest duration of each unit.
    """

    SAFE = "safe"
    WIDE = "wide"
    ANY = "any"


def step_refusal(table: DurationTable, duration: Duration, size: BarSize) -> str | None:
    """Say in IB's words why a bar size may not be asked with a duration; None if it may."""
    return _REFUSALS[table](duration, size)


def _safe(duration: Duration, size: BarSize) -> str | None:
    rows = _rows(IbLimitsRegistry.SAFE_STEPS.value, duration)
    if not rows:
        return TOO_LONG
    fits = any(row.smallest_bar_s <= size.seconds <= row.largest_bar_s for row in rows)
    return None if fits else _invalid(size)


def _wide(duration: Duration, size: BarSize) -> str | None:
    rows = _rows(IbLimitsRegistry.WIDE_STEPS.value, duration)
    if not rows:
        return TOO_LONG
    return None if any(row.smallest_bar_s <= size.seconds for row in rows) else _invalid(size)


def _any(_: Duration, __: BarSize) -> str | None:
    return None


def _rows(table: tuple[DurationRange, ...], duration: Duration) -> list[DurationRange]:
    return [row for row in table if row.unit == duration.unit and duration.count <= row.most]


def _invalid(size: BarSize) -> str:
    return f"invalid step: {size.seconds}"


_REFUSALS: dict[DurationTable, Callable[[Duration, BarSize], str | None]] = {
    DurationTable.SAFE: _safe,
    DurationTable.WIDE: _wide,
    DurationTable.ANY: _any,
}
