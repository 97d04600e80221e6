"""Bars whose values cannot be what was traded: which they are, and what two responses say of them.

A gateway's error, or a gateway's own truth: nobody can tell from one response. So such bars are
requested once more, and what comes twice the same is kept as it came, with a finding that says so.
Not here: rows that are no bars at all (``ib.history``), the findings (``store.findings``).
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ktrdr_pipelines.core.answers import Answer
from ktrdr_pipelines.core.bars import VALUES, moment, stamps
from ktrdr_pipelines.core.instruments import SecType
from ktrdr_pipelines.core.intervals import Interval, IntervalSet

_PRICES: Final = ("open", "high", "low", "close")
_MOST_PRICE: Final = 1e12
"""Price that no instrument has: the largest index levels and share prices lie below 1e7."""

_MAY_BE_NEGATIVE: Final = frozenset({SecType.FUT})
"""Kinds whose prices may be zero or below (crude oil in April 2020)."""


class Finding(NamedTuple):
    """A bar that is kept although its values are implausible: its stamp, and its values."""

    ts: int
    detail: str


def implausible_rows(bars: pa.Table, sec_type: SecType | None) -> np.ndarray:
    """Say of each bar whether its values are implausible.

    Args:
        bars: bars.
        sec_type: the kind of the instrument; None where it is not known: any sign is plausible.
    """
    values = {name: bars[name].to_numpy(zero_copy_only=False) for name in _PRICES}
    with np.errstate(invalid="ignore"):
        good = np.all([np.isfinite(values[name]) for name in _PRICES], axis=0)
        for name in _PRICES:
            good &= np.abs(values[name]) < _MOST_PRICE
            if sec_type is not None and sec_type not in _MAY_BE_NEGATIVE:
                good &= values[name] > 0
        for name in ("open", "close"):
            good &= (values["low"] <= values[name]) & (values[name] <= values["high"])
    for name in ("volume", "bar_count"):
        good &= pc.fill_null(pc.greater_equal(bars[name], 0), True).to_numpy()  # noqa: FBT003
    return np.asarray(~good)


def findings_of(bars: pa.Table, keys: Iterable[int]) -> list[Finding]:
    """Return what is remembered of some bars, named by their stamps."""
    wanted = np.isin(stamps(bars), list(keys))
    chosen = bars.filter(pa.array(wanted))
    columns = [chosen[name].to_pylist() for name in VALUES]
    return [
        Finding(int(key), " ".join(f"{name}={value!r}" for name, value in zip(VALUES, row)))  # noqa: B905
        for key, *row in zip(stamps(chosen).tolist(), *columns, strict=True)
    ]


def reconciled(first: Answer, second: Answer | None, length: timedelta) -> Answer:
    """Return what two responses to one request say together.

    The second stands, but for two kinds of places that are not covered: rows that were no bars,
    and implausible bars that did not come twice the same.

    Args:
        first: a response with impossible or implausible rows.
        second: the response to the same request; None where no bars came.
        length: of a bar.
    """
    if second is None:
        return _without(first, set(first.implausible), length)
    same = set(findings_of(first.bars, first.implausible)) & set(
        findings_of(second.bars, second.implausible)
    )
    once = set(second.implausible) - {one.ts for one in same}
    gone = set(first.implausible) - set(stamps(second.bars).tolist())
    return _without(second, once, length, missing=gone)


def _without(
    answer: Answer, dropped: set[int], length: timedelta, *, missing: Iterable[int] = ()
) -> Answer:
    """Return a response less some bars, whose places are not covered."""
    places = [Interval(moment(key), moment(key) + length) for key in (*dropped, *missing)]
    kept = ~np.isin(stamps(answer.bars), list(dropped))
    return replace(
        answer,
        bars=answer.bars.filter(pa.array(kept)),
        impossible=answer.impossible | IntervalSet(places),
        implausible=tuple(key for key in answer.implausible if key not in dropped),
    )
