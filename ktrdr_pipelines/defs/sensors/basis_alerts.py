"""Which re-basings and changes of unit are to be alerted, each once.

A re-basing concerns all timeframes of a symbol and is one adjustment. It is told by when it was
found, so that neither a rebuilt ledger nor a renamed symbol alerts it again. A change of unit is
one alert for all timeframes of a symbol, and may be alerted again once it was resolved.

Not here: sending alerts and the cursor of the sensor (``defs.sensors.alert_sensor``), finding
either (``sync.engine``).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.plausibility import Disagreement

_LATE: Final = timedelta(hours=1)
"""How much later than it was found an adjustment may become visible in the ledger."""

_NAMED_AT_MOST: Final = 5


@dataclass(frozen=True, slots=True)
class Told:
    """What was alerted already.

    ``since``: adjustments that were found before are never alerted. ``adjustments`` are the keys of
    those found since that were, ``units`` those of the changes of unit that are not resolved yet.
    """

    since: datetime
    adjustments: frozenset[str] = field(default=frozenset())
    units: frozenset[str] = field(default=frozenset())

    @classmethod
    def nothing(cls, seen_at: datetime) -> "Told":
        """Return that nothing was alerted that was found since, or shortly before, a moment."""
        return cls(seen_at - _LATE)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was alerted that could be found again."""
        return not self.adjustments and not self.units

    def to_fields(self) -> dict[str, Any]:
        """Return this as JSON fields."""
        return {
            "since": self.since.isoformat(),
            "adjustments": sorted(self.adjustments),
            "units": sorted(self.units),
        }

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> "Told":
        """Return what ``to_fields`` made fields of."""
        return cls(
            datetime.fromisoformat(fields["since"]),
            frozenset(fields["adjustments"]),
            frozenset(fields["units"]),
        )


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert to be sent: its event, a line for the log, and the items of its document."""

    event: str
    line: str
    name: str
    items: Sequence[Mapping[str, object]]

    def document(self, store: str) -> str:
        """Return the JSON document that the command reads."""
        return json.dumps({"event": self.event, "store": store, self.name: self.items}, default=str)


def basis_alerts(
    told: Told,
    adjustments: Mapping[str, Sequence[Adjustment]],
    changes: Mapping[str, Sequence[Disagreement]],
    *,
    now: datetime,
    most: int,
) -> tuple[list[Alert], Told]:
    """Return the alerts to be sent, and what is told once they are.

    Args:
        told: what was alerted.
        adjustments: all adjustments by symbol. Those that a person made are not alerted.
        changes: bars with prices or volumes in another unit, by ledger key of the series.
        now: this machine's time.
        most: the greatest number of alerts; further ones are returned by the next call.
    """
    by_change = _by_change(changes)
    told = replace(told, units=told.units & by_change.keys())
    alerts: list[Alert] = []
    found = _rebasings(told, adjustments)
    if found and len(alerts) < most:
        alerts.append(_rebasing_alert(found))
        told = _told_of(told, found, now)
    new = {change: ones for change, ones in by_change.items() if change not in told.units}
    if new and len(alerts) < most:
        alerts.append(_unit_alert(new))
        told = replace(told, units=frozenset(by_change))
    return alerts, told


_Found = Sequence[tuple[str, Adjustment]]


def _rebasings(told: Told, adjustments: Mapping[str, Sequence[Adjustment]]) -> _Found:
    """Return the re-basings that were not alerted yet, with their symbols."""
    return [
        (symbol, one)
        for symbol, ones in adjustments.items()
        for one in ones
        if one.kind is AdjustmentKind.SPLIT
        and one.found_at > told.since
        and _key(one.found_at, one.ratio) not in told.adjustments
    ]


def _told_of(told: Told, found: _Found, now: datetime) -> Told:
    newest = max(one.found_at for _, one in found)
    since = max(told.since, min(newest, now) - _LATE)
    keys = told.adjustments | {_key(one.found_at, one.ratio) for _, one in found}
    kept = (key for key in keys if datetime.fromisoformat(key.partition(" ")[0]) > since)
    return replace(told, since=since, adjustments=frozenset(kept))


def _key(found_at: datetime, ratio: float) -> str:
    return f"{found_at.isoformat()} {ratio!r}"


def _rebasing_alert(found: _Found) -> Alert:
    lines = [
        f"{symbol} (prices of older bars are multiplied by {one.ratio:.6g} when they are read, "
        f"volumes by {one.volume_ratio:.6g}; effective {one.effective})"
        for symbol, one in found
    ]
    items = [
        {
            "symbol": symbol,
            "number": one.number,
            "ratio": one.ratio,
            "volume_ratio": one.volume_ratio,
            "effective": one.effective.isoformat(),
            "estimated": one.is_estimated,
            "found_at": one.found_at.isoformat(),
            "evidence": one.evidence,
        }
        for symbol, one in found
    ]
    line = f"the gateway has re-based: {_joined(lines)}"
    return Alert("rebasing", line, "adjustments", items)


_Changes = Mapping[str, Mapping[str, Disagreement]]
"""The first bars of each change of unit, by its key and by timeframe."""


def _by_change(changes: Mapping[str, Sequence[Disagreement]]) -> _Changes:
    by_change: dict[str, dict[str, Disagreement]] = {}
    for key, ones in changes.items():
        symbol, _, timeframe = key.partition("|")
        for one in ones:
            change = f"{symbol} {one.kind} {'up' if one.ratio > 1 else 'down'}"
            by_change.setdefault(change, {}).setdefault(timeframe, one)
    return by_change


def _unit_alert(new: _Changes) -> Alert:
    lines, items = [], []
    for change, ones in new.items():
        symbol = change.partition(" ")[0]
        timeframe, first = min(ones.items(), key=lambda item: item[1].first)
        text = first.text_for(f"{symbol} {timeframe}")
        lines.append(f"{symbol} {', '.join(ones)}: {text}")
        items.append(
            {
                "symbol": symbol,
                "timeframes": list(ones),
                "kind": str(first.kind),
                "ratio": first.ratio,
                "first": first.first.isoformat(),
                "bars": first.bars,
                "text": text,
            }
        )
    return Alert("unit-change", f"a unit seems to have changed: {_joined(lines)}", "changes", items)


def _joined(lines: Sequence[str]) -> str:
    more = len(lines) - _NAMED_AT_MOST
    return "; ".join(lines[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
