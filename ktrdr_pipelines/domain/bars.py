"""The Arrow table of bars that all parts of the project use, and how two of them merge.

Not here: which bars of a response are kept (``domain.planning.evaluation``), files
(``store.bars.bar_store``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

VALUES = ("open", "high", "low", "close", "volume", "average", "bar_count")

BAR_SCHEMA = pa.schema(
    [
        pa.field("ts", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("session_date", pa.date32(), nullable=False),
        pa.field("open", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("close", pa.float64()),
        pa.field("volume", pa.float64()),
        pa.field("average", pa.float64()),
        pa.field("bar_count", pa.int32()),
    ]
)
"""One row a bar: ``ts`` is its start (1d: midnight UTC of the session date, 1w: of its Monday);
``session_date`` the trading day (1w: the date in the gateway's response); prices in the
instrument's currency; volume, average and bar_count null where the gateway returns "not available".
"""

STORED_SCHEMA = BAR_SCHEMA.append(pa.field("basis", pa.int16(), nullable=False))
"""Bars as they are stored: as returned, each with its price basis.

``basis`` is the number of the last adjustment of the symbol that its prices include
(``domain.adjustments``), 0 for none, ``UNCONFIRMED`` where that is not known.
"""

UNCONFIRMED: Final = -1
"""The basis of bars of which it is not known which adjustments their prices include."""


@dataclass(frozen=True, slots=True)
class Merge:
    """The result of merging two tables.

    ``revised`` holds the older bars that were replaced by bars with other values; ``added`` is the
    number of bars with new timestamps, ``rebased`` that of bars whose basis has changed.
    """

    bars: pa.Table
    revised: pa.Table
    added: int
    rebased: int = 0


def empty_bars() -> pa.Table:
    """Return a table without bars."""
    return BAR_SCHEMA.empty_table()


def timestamps(bars: pa.Table) -> np.ndarray:
    """Return ``ts`` as int64 microseconds since 1970 UTC."""
    whole = _whole(bars, "ts")
    if whole.null_count or not len(whole):
        return np.asarray(whole.view(pa.int64()).to_numpy(zero_copy_only=False))
    return np.frombuffer(whole.buffers()[1], np.int64, len(whole), 8 * whole.offset)


def session_bounds(bars: pa.Table) -> tuple[date, date]:
    """Return the session dates of the first and the last bar; there must be one."""
    whole = _whole(bars, "session_date")
    return whole[0].as_py(), whole[len(whole) - 1].as_py()


def _whole(bars: pa.Table, name: str) -> pa.Array:
    """Return a column as one array, which takes a fraction of the time of a chunked one."""
    column = bars[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def micros(moment: datetime) -> int:
    """Return an aware moment as whole microseconds since 1970 UTC."""
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def moment(timestamp: int) -> datetime:
    """Return the aware moment of whole microseconds since 1970 UTC."""
    return _EPOCH + timedelta(0, 0, int(timestamp))


def bars_between(bars: pa.Table, start: datetime, end: datetime) -> pa.Table:
    """Return the bars of a sorted table whose timestamp lies in ``[start, end)``."""
    low, high = np.searchsorted(timestamps(bars), [micros(start), micros(end)])
    return bars.slice(int(low), int(high - low))


def sorted_unique(bars: pa.Table) -> pa.Table:
    """Return bars sorted by timestamp; of several with the same one the last is kept."""
    keys = timestamps(bars)
    if _is_rising(keys):
        return bars
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    return bars.take(pa.array(order[last]))


def _is_rising(keys: np.ndarray) -> bool:
    """Return whether timestamps are sorted and unique."""
    return bool((keys[1:] > keys[:-1]).all())


def with_basis(bars: pa.Table, basis: int) -> pa.Table:
    """Return bars in the columns of ``STORED_SCHEMA``, all on one basis unless they have theirs."""
    if bars.schema.equals(STORED_SCHEMA):
        return bars
    if "basis" not in bars.schema.names:
        column = pa.repeat(pa.scalar(basis, pa.int16()), bars.num_rows)
        is_plain = bars.schema.metadata is None and bars.schema.equals(BAR_SCHEMA)
        bars = bars.append_column(STORED_SCHEMA.field("basis"), column)
        if is_plain:
            return bars
    bars = bars.select(STORED_SCHEMA.names)
    return bars if bars.schema.equals(STORED_SCHEMA) else bars.cast(STORED_SCHEMA)


def basis_of(bars: pa.Table) -> np.ndarray:
    """Return the basis of each stored bar as int16."""
    return np.asarray(_whole(bars, "basis").to_numpy(zero_copy_only=False))


def unconfirmed_where(bars: pa.Table, chosen: np.ndarray) -> pa.Table:
    """Return stored bars with an unconfirmed basis where a mask of shape (n,) is true."""
    basis = np.where(chosen, UNCONFIRMED, basis_of(bars)).astype(np.int16)
    position = STORED_SCHEMA.get_field_index("basis")
    return bars.set_column(position, STORED_SCHEMA.field(position), pa.array(basis))


def basis_runs(bars: pa.Table) -> list[tuple[int, int, int]]:
    """Return the runs of stored bars on one basis.

    Returns: of each the first timestamp and the first after it, int64 microseconds, and the basis.
    """
    keys, basis = timestamps(bars), basis_of(bars)
    if not len(keys):
        return []
    starts = np.flatnonzero(np.concatenate(([True], basis[1:] != basis[:-1])))
    firsts = np.minimum.reduceat(keys, starts).tolist()
    ends = (np.maximum.reduceat(keys, starts) + 1).tolist()
    return list(zip(firsts, ends, basis[starts].tolist(), strict=True))


def merge_bars(
    old: pa.Table, new: pa.Table, on_one_basis: Callable[[pa.Table], pa.Table] | None = None
) -> Merge:
    """Merge two sorted tables; the newer bar wins, the older one is a revision if it differs.

    Bars are identified by ``ts`` alone: two bars of equal values are two bars. Stored bars of
    different bases are compared after ``on_one_basis``, up to the rounding of their prices.
    """
    if not old.num_rows:
        return Merge(new, old, new.num_rows)
    bars, rivals, winners = _replaced(old, new)
    if not rivals.num_rows:
        return Merge(bars, rivals, new.num_rows)
    differs, rebased = _differs(rivals, winners), np.zeros(rivals.num_rows, dtype=bool)
    if "basis" in old.schema.names:
        rebased = basis_of(rivals) != basis_of(winners)
    if rebased.any() and on_one_basis is not None:
        is_other = ~_is_about_same(rivals, winners, on_one_basis)
        # The values of a bar on an unconfirmed basis may be compared either way.
        is_unknown = (basis_of(rivals) == UNCONFIRMED) | (basis_of(winners) == UNCONFIRMED)
        is_other &= np.asarray(differs) | ~is_unknown
        differs = pa.array(np.where(rebased, is_other, differs))
    added = new.num_rows - rivals.num_rows
    return Merge(bars, rivals.filter(differs), added, int(rebased.sum()))


def _replaced(old: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Return two sorted tables merged, the older bars that are replaced, and those in their place.

    Most often the new bars follow the old ones, or are all the bars between two of them: then
    nothing is copied.
    """
    old_keys, new_keys = timestamps(old), timestamps(new)
    if len(new_keys) and _is_rising(old_keys) and _is_rising(new_keys):
        low, high = old_keys.searchsorted(new_keys[0]), old_keys.searchsorted(new_keys[-1], "right")
        at = old_keys[low:high].searchsorted(new_keys)
        is_again = np.zeros(len(new_keys), dtype=bool)
        inside = at < high - low
        is_again[inside] = old_keys[low:high][at[inside]] == new_keys[inside]
        if np.count_nonzero(is_again) == high - low:
            bars = pa.concat_tables([old.slice(0, low), new, old.slice(high)])
            winners = new if is_again.all() else new.filter(pa.array(is_again))
            return bars, old.slice(low, high - low), winners
    replaced = np.isin(old_keys, new_keys, assume_unique=True)
    bars = sorted_unique(pa.concat_tables([old.filter(pa.array(~replaced)), new]))
    winners = new.filter(pa.array(np.isin(new_keys, old_keys, assume_unique=True)))
    return bars, old.filter(pa.array(replaced)), winners


def _differs(left: pa.Table, right: pa.Table) -> pa.ChunkedArray | pa.Array:
    """Return for each row whether any value differs; null equals null."""
    differs = pa.array(np.zeros(left.num_rows, dtype=bool))
    for name in VALUES:
        a, b = left[name], right[name]
        if not a.null_count and not b.null_count:
            differs = pc.or_(differs, pc.not_equal(a, b))
            continue
        same = pc.or_kleene(
            pc.fill_null(pc.equal(a, b), False),  # noqa: FBT003  (a scalar, not a flag)
            pc.and_(pc.is_null(a), pc.is_null(b)),
        )
        differs = pc.or_(differs, pc.invert(same))
    return differs


_ROUNDED: Final = {"volume": 1.0, "bar_count": 0.0}
_ROUNDED_PRICE: Final = 0.0051
"""By how much a value is rounded at most, before it is multiplied: a price to a cent, a volume to a
share either way."""

_CORRECTED: Final = {"volume": 0.02, "bar_count": 0.0}
_CORRECTED_PRICE: Final = 1e-3
"""Distance of two values, as a share, that counts as none: sums of rounded parts."""


def _is_about_same(
    left: pa.Table, right: pa.Table, on_one_basis: Callable[[pa.Table], pa.Table]
) -> np.ndarray:
    """Return for each row whether the values are the same on one basis, up to rounding.

    Null equals null.
    """
    alike = np.ones(left.num_rows, dtype=bool)
    products = [on_one_basis(one) for one in (left, right)]
    for name in VALUES:
        a, b = (_floats(one, name) for one in products)
        rounded = np.zeros(len(a))
        for stored, product in zip((left, right), (a, b), strict=True):
            raw, factor = _floats(stored, name), np.ones(len(a))
            np.divide(product, raw, out=factor, where=raw != 0)
            rounded += _ROUNDED.get(name, _ROUNDED_PRICE) * np.abs(factor)
        near = np.abs(a - b) <= np.maximum(
            rounded, _CORRECTED.get(name, _CORRECTED_PRICE) * np.abs(b)
        )
        alike &= near | (np.isnan(a) & np.isnan(b))
    return alike


def _floats(bars: pa.Table, name: str) -> np.ndarray:
    """Return a column as float64, NaN where it is null."""
    return np.asarray(bars[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def is_flat(bars: pa.Table) -> np.ndarray:
    """Return for each bar whether it only fills an interval without a trade.

    Some gateways fill such intervals with bars of one price, volume 0 and count 0 (grade L). A bar
    whose volume is not available is not flat, nor is one that counts a trade.
    """
    untraded = is_untraded(bars)
    if not untraded.any():
        return untraded
    one_price = pc.and_(
        pc.equal(bars["high"], bars["low"]), pc.equal(bars["open"], bars["close"])
    ).to_numpy()
    return np.asarray(untraded & one_price)


def is_untraded(bars: pa.Table) -> np.ndarray:
    """Return for each bar whether nothing was traded in it: volume 0, and no trade counted.

    A volume that is not available proves nothing; less than a lot may be given as 0, with a count.
    """
    volumes = _whole(bars, "volume").to_numpy(zero_copy_only=False)  # NaN where it is null
    no_volume = np.asarray(volumes == 0.0)
    if not no_volume.any():
        return np.asarray(no_volume)
    return np.asarray(no_volume & pc.equal(pc.fill_null(bars["bar_count"], 0), 0).to_numpy())


def without_flat(bars: pa.Table) -> pa.Table:
    """Return the bars that are not flat."""
    flat = is_flat(bars)
    return bars.filter(pa.array(~flat)) if flat.any() else bars


def rows_per_session(bars: pa.Table) -> dict[date, int]:
    """Return the number of bars by session date."""
    counts = pc.value_counts(bars["session_date"])
    return {item["values"]: item["counts"] for item in counts.to_pylist()}
