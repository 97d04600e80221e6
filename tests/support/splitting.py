"""A market whose gateway re-bases its bars, as IB does after a split, and checks of one basis."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import basis_of, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.planning.jobs import Job, Mode, RequestedBy
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.planning.responses import BarRequest, NoData, Response
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import GatewayError
from tests.support.fake_gateway import (
    FakeGateway,
    TrueBars,
    dense_keys,
    series_of,
    stock,
    true_bars_of,
)
from tests.support.loading import Harness, MakeHarness

TICK = 0.01
_PRICES = ("open", "high", "low", "close", "average")
CALENDAR = "XNYS.RTH"


def rebased(bars: pa.Table, factor: float) -> pa.Table:
    """Return bars with their prices times a factor, in ticks, and their volumes inversely."""
    if factor == 1:
        return bars
    for name in (*_PRICES, "volume"):
        place = bars.schema.get_field_index(name)
        values = bars[name].to_numpy()
        is_price = name != "volume"
        values = np.round(values * factor, 2) if is_price else np.round(values / factor)
        bars = bars.set_column(place, bars.schema.field(place), pa.array(values))
    return bars


@dataclass
class SplitMarket:
    """One stock at several timeframes whose gateway serves all bars on the basis of its clock.

    ``splits`` are the price factors by the moment from which the gateway serves them.
    """

    harness: Harness
    series: Mapping[Timeframe, Series]
    splits: dict[datetime, float] = field(default_factory=dict)

    @property
    def gateway(self) -> FakeGateway:
        return self.harness.gateway

    def factor(self, at: datetime | None = None) -> float:
        """Return the factor of all prices that the gateway serves at a moment, by default now."""
        at = at or self.gateway.time
        return float(np.prod([one for since, one in self.splits.items() if since <= at]))

    def serve(
        self, request: BarRequest, bars: pa.Table
    ) -> pa.Table | NoData | Response | GatewayError:
        """Return the response of the gateway."""
        return rebased(bars, self.factor())

    def run(
        self,
        *timeframes: Timeframe,
        mode: Mode = Mode.TAIL,
        requested_by: RequestedBy = RequestedBy.SENSOR,
    ) -> list[SeriesReport]:
        """Load series of the stock."""
        return self.harness.run(
            *(Job(self.series[one], mode, requested_by=requested_by) for one in timeframes)
        )

    def check(self) -> None:
        """Check what a reader sees: one basis, the stored values times a factor, no bar wrong."""
        factor = None
        for timeframe in self.series:
            seen = self._seen(timeframe)
            if not seen.num_rows:
                continue
            # One basis: every bar is the same multiple of the bar as first traded.
            if factor is None:
                ratios = seen["close"].to_numpy() / self._traded(timeframe)["close"].to_numpy()
                factor = self._nearest(float(np.median(ratios)))
            self._check_prices(timeframe, self._traded(timeframe)["close"].to_numpy() * factor)

    def check_today(self) -> None:
        """Check also that the basis is that of the gateway now."""
        self.check()
        for timeframe in self.series:
            served = rebased(self._traded(timeframe), self.factor())
            self._check_prices(timeframe, served["close"].to_numpy())

    def _seen(self, timeframe: Timeframe) -> pa.Table:
        """Return what a reader sees of a series, after a check that it is stored times a factor."""
        store, series = self.harness.store, self.series[timeframe]
        seen, raw = store.read(series), self._known(timeframe)
        assert timestamps(seen).tolist() == timestamps(raw).tolist()
        known = store.bases.of(series.symbol)
        for number in np.unique(basis_of(raw)):
            rows = pa.array(basis_of(raw) == number)
            times = 1.0
            for later in known[int(number) :]:
                times *= later.ratio
            for name in _PRICES:
                stored = raw.filter(rows)[name].to_numpy() * times
                assert np.array_equal(seen.filter(rows)[name].to_numpy(), stored)
        return seen

    def _known(self, timeframe: Timeframe) -> pa.Table:
        """Return the stored bars on a known basis."""
        raw = self.harness.store.read_raw(self.series[timeframe])
        return raw.filter(pa.array(basis_of(raw) >= 0))

    def _traded(self, timeframe: Timeframe) -> pa.Table:
        """Return the same bars as they were first traded."""
        keys = timestamps(self._known(timeframe))
        traded = self.gateway.true_bars["AAPL", timeframe].bars
        return traded.take(pa.array(np.searchsorted(timestamps(traded), keys)))

    def _check_prices(self, timeframe: Timeframe, expected: np.ndarray) -> None:
        """Check what a reader sees up to the rounding of stored, expected and compared prices."""
        seen = self.harness.store.read(self.series[timeframe])["close"].to_numpy()
        times = seen / self._known(timeframe)["close"].to_numpy()
        distance = np.abs(seen - expected)
        assert np.all(distance <= TICK / 2 * (1 + times) + 1e-4 * expected), (
            timeframe,
            distance.max(),
        )

    def _nearest(self, ratio: float) -> float:
        """Return the factor of the gateway at some moment that is nearest to a ratio."""
        moments = [datetime.min.replace(tzinfo=self.gateway.time.tzinfo), *self.splits]
        return min((self.factor(at) for at in moments), key=lambda one: abs(np.log(one / ratio)))


def split_market(
    harness: MakeHarness,
    timeframes: Iterable[Timeframe],
    now: datetime,
    *,
    first: date,
    end: date,
) -> SplitMarket:
    """Return a stock that trades from one session date to another, all of which is wanted."""
    instrument = stock(calendar=CALENDAR)
    calendar = calendar_named(CALENDAR)
    chosen = tuple(timeframes)
    minutes = true_bars_of(dense_keys(CALENDAR, Timeframe.M1, first, end), Timeframe.M1, calendar)
    true_bars = {
        ("AAPL", one): _priced(
            true_bars_of(dense_keys(CALENDAR, one, first, end), one, calendar), minutes
        )
        for one in {*chosen, Timeframe.D1}
    }
    gateway = FakeGateway(true_bars, now)
    wanted = replace(instrument, start=first, timeframes=chosen)
    market = SplitMarket(harness(gateway), {one: series_of(wanted, one) for one in chosen})
    gateway.mutate = market.serve
    return market


def _priced(true_bars: TrueBars, minutes: TrueBars) -> TrueBars:
    """Return bars with the prices and volumes of the minutes in them: a walk around 2,000."""
    rng = np.random.default_rng(1)
    count = len(minutes.opens)
    steps = rng.normal(0, 0.0004, count)
    steps[1:][np.diff(minutes.opens) > 60_000_000] += rng.normal(
        0, 0.01, int((np.diff(minutes.opens) > 60_000_000).sum())
    )
    closes = np.round(2_000 * np.exp(np.cumsum(steps)), 2)
    opens = np.append(closes[:1], closes[:-1])
    volumes = rng.integers(100, 5_000, count).astype(float)
    first = minutes.opens.searchsorted(true_bars.opens)
    high, low = np.maximum(opens, closes), np.minimum(opens, closes)
    values = {
        "open": opens[first],
        "high": np.maximum.reduceat(high, first),
        "low": np.minimum.reduceat(low, first),
        "close": closes[np.append(first[1:], count) - 1],
        "volume": np.add.reduceat(volumes, first),
    }
    values["average"] = np.round((values["high"] + values["low"]) / 2, 2)
    bars = true_bars.bars
    for name, column in values.items():
        place = bars.schema.get_field_index(name)
        bars = bars.set_column(place, bars.schema.field(place), pa.array(column))
    return replace(true_bars, bars=bars)
