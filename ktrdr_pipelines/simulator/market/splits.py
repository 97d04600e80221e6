"""Stock splits: the file that lists them, and a market whose bars follow them.

IB serves the bars of a stock adjusted for the splits that are known on the day of the request
(grade O). A ``SplitMarket`` does so by the gateway's clock: from the start of an ex-date on, which
is midnight in the exchange's zone, all older sessions have prices divided by the ratio and volumes
multiplied by it, and before that moment they have not. The moment, and that quotes are adjusted
like trades, are not documented (grade P).

A recording has the prices as traded, which jump at the ex-date by themselves: only the sessions
before it are adjusted. The prices of the synthetic market know no splits: there the sessions from
the ex-date on are adjusted as well, so that what trades does jump.

Bars are always computed from the unadjusted ones, by the product of all ratios, and rounded once.

Not here: bars that are restated for other reasons (the fault ``restated``).
"""

import csv
import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from math import inf, prod
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np

from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.market.bar_arrays import Bars, aggregated
from ktrdr_pipelines.simulator.market.hours import DAY_S, Hours
from ktrdr_pipelines.simulator.market.market import BarQuery, Market, PricedBars, Prices, What
from ktrdr_pipelines.simulator.market.simulated_instruments import SecurityType, SimulatedInstrument
from ktrdr_pipelines.simulator.requests.durations import DAY, BarSize

_HEADER = ("symbol", "ex_date", "ratio")
_EPOCH = date(1970, 1, 1)
_AVERAGE_DIGITS = 8
_NOT_AVAILABLE = IbLimitsRegistry.NO_MARKET_DATA_VALUE.value


@dataclass(frozen=True, slots=True)
class Split:
    """One split of a stock.

    Attributes:
        symbol: the key of the stock in its market, such as ``AAPL`` or ``SHOP.TSE``.
        ex_date: the first session that trades on the new basis.
        ratio: how many new shares one old share becomes: 4 for 4:1, 0.05 for 1:20.

    Raises:
        ValueError: the ratio is not a finite number above 0.
    """

    symbol: str
    ex_date: date
    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio < inf:
            raise ValueError(f"ratio={self.ratio} is not a finite number above 0")

    @property
    def ex_day(self) -> int:
        """The ex-date in days since 1970."""
        return (self.ex_date - _EPOCH).days

    def starts_s(self, zone: str) -> int:
        """Return the start of the ex-date in a zone, in seconds since 1970."""
        return int(datetime.combine(self.ex_date, time.min, ZoneInfo(zone)).timestamp())


class SplitMarket:
    """A market whose stocks split; everything else is that of the market within.

    ``BarQuery.now_s`` decides which splits are known. Weeks and months of a recorded stock that
    splits are aggregated from its adjusted days: a recorded one may hold two price bases.

    Args:
        market: the market within.
        splits: in any order; those of one symbol multiply.

    Raises:
        ValueError: a symbol is not that of a stock of the market.
    """

    jumps_at_splits = True

    def __init__(self, market: Market, splits: Iterable[Split]) -> None:
        self._market = market
        self._splits: dict[str, list[Split]] = {}
        known = stock_keys(market)
        for split in splits:
            if split.symbol not in known:
                raise ValueError(f"{split.symbol} is no stock of {market!r}")
            self._splits.setdefault(split.symbol, []).append(split)

    def __repr__(self) -> str:
        return f"SplitMarket({self._market!r}, {sorted(self._splits)})"

    def instruments(self) -> Sequence[SimulatedInstrument]:
        """Return those of the market."""
        return self._market.instruments()

    def hours(self, instrument: SimulatedInstrument, *, use_rth: bool) -> Hours:
        """Return those of the market."""
        return self._market.hours(instrument, use_rth=use_rth)

    def default_now(self) -> datetime | None:
        """Return that of the market."""
        return self._market.default_now()

    def head(self, instrument: SimulatedInstrument, what: What, *, use_rth: bool) -> int | None:
        """Return that of the market: no split changes it."""
        return self._market.head(instrument, what, use_rth=use_rth)

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        """Return the bars of a query, oldest first, on the price basis of its ``now_s``."""
        splits = self._splits_of(instrument)
        if not splits:
            return self._market.bars(instrument, query)
        if self._market.jumps_at_splits and query.size > DAY:
            days = self.bars(instrument, replace(query, size=DAY))
            hours = self.hours(instrument, use_rth=query.use_rth)
            return _aggregated_days(days, query.size, hours)
        bars = self._market.bars(instrument, query)
        now_s = query.window.end_s if query.now_s is None else query.now_s
        known = [split for split in splits if split.starts_s(instrument.zone) <= now_s]
        if not self._market.jumps_at_splits:
            ratios = np.full(len(bars), prod(split.ratio for split in known))
        else:
            ratios = np.ones(len(bars))
            for split in known:
                # A dated bar starts at midnight UTC of its date.
                is_dated, zone = query.size.is_dated, instrument.zone
                first_s = split.ex_day * DAY_S if is_dated else split.starts_s(zone)
                ratios[bars.start < first_s] *= split.ratio
        return _adjusted(bars, ratios, instrument.min_tick, query.what)

    def _splits_of(self, instrument: SimulatedInstrument) -> list[Split]:
        if instrument.sec_type is not SecurityType.STOCK:
            return []
        return self._splits.get(instrument.key, [])


def stock_keys(market: Market) -> frozenset[str]:
    """Return the keys of the stocks of a market: the symbols that splits may have."""
    stocks = (each for each in market.instruments() if each.sec_type is SecurityType.STOCK)
    return frozenset(each.key for each in stocks)


def _adjusted(bars: PricedBars, ratios: Prices, min_tick: float, what: What) -> PricedBars:
    """Divide prices by the ratio of each bar, and multiply volumes by it.

    A bar with the ratio 1 stays bit for bit. Prices are rounded to the tick and are at least one,
    volumes to whole shares. A volume of 0 or -1 stays: it states that there was no trade, or that
    the volume is not available.
    """
    is_adjusted = ratios != 1
    if not is_adjusted.any():
        return bars
    ticks_per_unit = round(1 / min_tick)

    def price(column: Prices) -> Prices:
        ticks = np.maximum(np.rint(column / ratios * ticks_per_unit), 1)
        return np.where(is_adjusted, ticks / ticks_per_unit, column)

    high, low = price(bars.high), price(bars.low)

    def average(column: Prices) -> Prices:
        # Its bar's extremes were rounded, and an average lies between them.
        found = np.clip(np.round(column / ratios, _AVERAGE_DIGITS), low, high)
        return np.where(is_adjusted, found, column)

    # BID_ASK has the time-averaged bid as its open, and the time-averaged ask as its close.
    first_last = average if what is What.BID_ASK else price
    volume = bars.volume
    if volume is not None:
        # A bar with trades keeps a share: a volume of 0 would state that there was none.
        shares = np.maximum(np.rint(volume * ratios), 1)
        volume = np.where(is_adjusted & (volume > 0), shares, volume)
    return replace(
        bars,
        open=first_last(bars.open),
        high=high,
        low=low,
        close=first_last(bars.close),
        volume=volume,
        average=None if bars.average is None else average(bars.average),
    )


def _aggregated_days(days: PricedBars, size: BarSize, hours: Hours) -> PricedBars:
    """Build recorded weeks or months of days; recordings have neither average nor count."""
    none = np.zeros(len(days), np.int64)
    at = np.searchsorted(hours.labels, days.start // DAY_S)
    volume = none if days.volume is None else days.volume
    longer = aggregated(
        Bars(
            start=days.start,
            session=np.minimum(at, len(hours.labels) - 1).astype(np.int64),
            open=days.open,
            high=days.high,
            low=days.low,
            close=days.close,
            # A day without a volume makes that of its week not available.
            volume=np.where(volume == _NOT_AVAILABLE, np.nan, volume),
            turnover=none,
            count=none,
        ),
        size,
        hours,
    )
    open_, high, low, close = (
        np.asarray(column, np.float64)
        for column in (longer.open, longer.high, longer.low, longer.close)
    )
    known = np.where(np.isnan(longer.volume), _NOT_AVAILABLE, longer.volume)
    volume_or_none = None if days.volume is None else known
    return PricedBars(longer.start, open_, high, low, close, volume=volume_or_none)


def read_splits(path: Path, symbols: Collection[str]) -> tuple[Split, ...]:
    """Read a CSV file of splits with the header ``symbol,ex_date,ratio``.

    Args:
        path: the file.
        symbols: those that are allowed (``stock_keys``).

    Raises:
        UsageError: the file cannot be read, or something in it is wrong; file, line and field are
            named.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "`ktrdr simulate --help` has the columns of a file of splits"
        raise UsageError(f"read splits of {path}", reason=reason, hint=hint) from error
    found: list[Split] = []
    for number, fields in _lines(text, path):
        split = _split(_Line(path, number, fields), symbols)
        if any((one.symbol, one.ex_date) == (split.symbol, split.ex_date) for one in found):
            reason = f"{split.symbol} has two splits on {split.ex_date}"
            raise _bad(path, number, "ex_date", reason=reason, hint="Remove one")
        found.append(split)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the file: its number and its fields."""

    path: Path
    number: int
    fields: list[str]

    def error(self, field: str, hint: str) -> UsageError:
        text = self.fields[_HEADER.index(field)]
        return _bad(self.path, self.number, field, reason=f"is {text!r}", hint=hint)


def _lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of every line after the header, without blank ones."""
    reader = csv.reader(text.splitlines(), strict=True)
    header = ",".join(_HEADER)
    is_first = True
    try:
        for raw in reader:
            fields = [field.strip() for field in raw]
            if is_first and fields != list(_HEADER):
                reason = f"is {','.join(fields)!r}"
                raise _bad(path, 1, reason=reason, hint=f"The header must be {header}")
            if not is_first and any(fields):
                if len(fields) != len(_HEADER):
                    reason = f"has {len(fields)} fields"
                    raise _bad(path, reader.line_num, reason=reason, hint=f"It must have {header}")
                yield reader.line_num, fields
            is_first = False
    except csv.Error as error:
        raise _bad(path, reader.line_num, reason=f"is not CSV: {error}", hint="") from error
    if is_first:
        raise _bad(path, 1, reason="is empty", hint=f"The header must be {header}")


def _split(line: _Line, symbols: Collection[str]) -> Split:
    symbol, day_text, ratio_text = line.fields
    if symbol not in symbols:
        near = difflib.get_close_matches(symbol, symbols, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise line.error("symbol", f"{hint}It must be a stock of the market")
    try:
        day = date.fromisoformat(day_text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != day_text:
        raise line.error("ex_date", "It must be a date such as 2020-08-31")
    try:
        return Split(symbol, day, float(ratio_text))
    except ValueError:
        hint = "It must be the new shares for one old share: 4 for 4:1, 0.05 for 1:20"
        raise line.error("ratio", hint) from None


def _bad(path: Path, number: int, field: str = "", *, reason: str, hint: str) -> UsageError:
    where = f", {field}" if field else ""
    return UsageError(f"{path}, line {number}{where}", reason=reason, hint=hint)
