"""The synthetic market: pure, consistent over all sizes, and plausible."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.simulator.market.hours import Venue
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.requests.durations import SIZE_BY_KEY, SIZES, Window
from tests.support.examples import examples

MARKET = SyntheticMarket(seed=1)
BY_KEY = {each.key: each for each in MARKET.instruments()}
FIRST = int(datetime.fromisoformat("2006-01-01T00:00:00+00:00").timestamp())
LAST = int(datetime.fromisoformat("2030-01-01T00:00:00+00:00").timestamp())

KEYS = [
    *("AAPL", "SPY", "THIN", "BRK B", "SHOP.TSE", "EURUSD", "USDJPY"),
    *("ES", "ESH2010", "CLZ2021", "SPX.CBOE", "BTC.PAXOS"),
]
keys = st.sampled_from(KEYS)
moments = st.integers(FIRST // 60, LAST // 60).map(lambda minute: minute * 60)
spans = st.integers(1, 20 * 24 * 60).map(lambda minutes: minutes * 60)


def bars(key: str, size: str, start_s: int, end_s: int, **other: Any) -> PricedBars:
    """Return the bars of a window: by default in regular hours of ``MARKET``."""
    what = other.get("what", What.MIDPOINT if BY_KEY[key].venue is Venue.FX else What.TRADES)
    window, use_rth = Window(start_s, end_s), other.get("use_rth", True)
    market: SyntheticMarket = other.get("market", MARKET)
    return market.bars(BY_KEY[key], BarQuery(what, SIZE_BY_KEY[size], use_rth, window))


def column(found: PricedBars, name: str) -> list[float]:
    """Return a column as plain numbers."""
    return getattr(found, name).tolist()


def assert_same(one: PricedBars, other: PricedBars) -> None:
    """Check that two responses are equal in every column."""
    for name in ("start", "open", "high", "low", "close"):
        assert column(one, name) == column(other, name)
    assert (one.volume is None) == (other.volume is None)
    if one.volume is not None:
        assert column(one, "volume") == column(other, "volume")
        assert column(one, "count") == column(other, "count")
        assert column(one, "average") == column(other, "average")


def assert_aggregates(longer: PricedBars, shorter: PricedBars, group: Any) -> None:
    """Check each longer bar against the shorter ones that ``group`` assigns to it."""
    assert sorted(set(group)) == list(range(len(longer)))
    for at in range(len(longer)):
        rows = np.flatnonzero(group == at)
        assert longer.open[at] == shorter.open[rows[0]]
        assert longer.high[at] == shorter.high[rows].max()
        assert longer.low[at] == shorter.low[rows].min()
        assert longer.close[at] == shorter.close[rows[-1]]
        if longer.volume is not None:
            assert longer.volume[at] == pytest.approx(shorter.volume[rows].sum(), rel=1e-12)
            assert longer.count[at] == shorter.count[rows].sum()
        if longer.volume is not None and longer.average is not None:
            weighted = (shorter.average[rows] * shorter.volume[rows]).sum()
            assert longer.average[at] * longer.volume[at] == pytest.approx(weighted, rel=1e-6)


@given(
    key=keys,
    end_s=moments,
    span_s=spans,
    size=st.sampled_from([size.key for size in SIZES if 60 < size.seconds < 86_400]),
    use_rth=st.booleans(),
)
@examples(60)
def test_intraday_sizes_aggregate_exactly(
    *, key: str, end_s: int, span_s: int, size: str, use_rth: bool
) -> None:
    """A longer bar is the aggregate of the minutes from its start to the next one's."""
    minutes = bars(key, "1m", end_s - span_s, end_s, use_rth=use_rth)
    longer = bars(key, size, end_s - span_s, end_s, use_rth=use_rth)
    assert (len(longer) == 0) == (len(minutes) == 0)
    group = np.searchsorted(longer.start, minutes.start, side="right") - 1
    assert_aggregates(longer, minutes, np.maximum(group, 0))


@given(keys, moments, spans, st.booleans())
@examples(40)
def test_days_aggregate_their_minutes_exactly(
    key: str, end_s: int, span_s: int, use_rth: bool
) -> None:
    """A daily bar is the aggregate of its session's minutes inside the window."""
    minutes = bars(key, "1m", end_s - span_s, end_s, use_rth=use_rth)
    days = bars(key, "1d", end_s - span_s, end_s, use_rth=use_rth)
    hours = MARKET.hours(BY_KEY[key], use_rth=use_rth)
    labels = hours.labels[hours.owners(minutes.start)] * 86_400
    assert_aggregates(days, minutes, np.searchsorted(days.start, labels))


@given(keys, moments, st.integers(1, 900), st.booleans())
@examples(25)
def test_weeks_and_months_aggregate_their_days_exactly(
    key: str, end_s: int, span_days: int, use_rth: bool
) -> None:
    """A longer bar is the aggregate of its days and carries the date of the last."""
    start_s = end_s - span_days * 86_400
    days = bars(key, "1d", start_s, end_s, use_rth=use_rth)
    weeks = bars(key, "1w", start_s, end_s, use_rth=use_rth)
    group = np.searchsorted(weeks.start, days.start)
    assert_aggregates(weeks, days, group)
    mondays = (weeks.start // 86_400 + 3) // 7
    assert len(set(mondays.tolist())) == len(weeks)
    months = bars(key, "1mo", start_s, end_s, use_rth=use_rth)
    assert_aggregates(months, days, np.searchsorted(months.start, days.start))
    names = {f"{datetime.fromtimestamp(start, UTC):%Y%m}" for start in months.start.tolist()}
    assert len(names) == len(months)


@given(keys, moments, spans, spans)
@examples(30)
def test_a_bar_does_not_depend_on_the_request(
    key: str, start_s: int, before_s: int, after_s: int
) -> None:
    """Minutes are the same in one request or two, and in a new market or a used one."""
    end_s = start_s + after_s
    whole = bars(key, "1m", start_s - before_s, end_s, market=SyntheticMarket(seed=1))
    parts = [bars(key, "1m", *cut) for cut in ((start_s - before_s, start_s), (start_s, end_s))]
    joined = [value for part in parts for value in column(part, "close")]
    assert joined == column(whole, "close")


def test_another_seed_is_another_market() -> None:
    """The seed decides every price."""
    one, other = (
        bars("AAPL", "1d", FIRST, FIRST + 40 * 86_400, market=SyntheticMarket(seed))
        for seed in (1, 2)
    )
    assert column(one, "start") == column(other, "start")
    assert column(one, "close") != column(other, "close")


@given(keys, moments, st.sampled_from(["1m", "1h", "1d", "1w"]))
@examples(30)
def test_bars_are_possible(key: str, end_s: int, size: str) -> None:
    """Prices lie on the tick, the average between low and high, and starts increase."""
    found = bars(key, size, end_s - 5 * 86_400, end_s, use_rth=False)
    tick = BY_KEY[key].min_tick
    for name in ("open", "high", "low", "close"):
        prices = getattr(found, name)
        assert np.array_equal(np.round(prices / tick) / round(1 / tick), prices)
        assert np.all((found.low <= prices) & (prices <= found.high))
    assert np.all(found.low > 0)
    assert np.all(np.diff(found.start) > 0)
    if found.volume is not None and key != "SPX.CBOE":
        assert np.all(found.volume > 0)
        assert np.all((found.low - 1e-6 <= found.average) & (found.average <= found.high + 1e-6))


@given(
    key=keys,
    minute_s=moments,
    minutes=st.integers(1, 90),
    size=st.sampled_from(["1s", "5s", "10s", "15s", "30s"]),
)
@examples(40)
def test_minutes_are_made_of_their_seconds(
    *, key: str, minute_s: int, minutes: int, size: str
) -> None:
    """Prices, volume and trades of bars below a minute add up to the minutes exactly."""
    end_s = minute_s + 60 * minutes
    small = bars(key, size, minute_s, end_s, use_rth=False)
    whole = bars(key, "1m", minute_s, end_s, use_rth=False)
    assert len(small) == len(whole) * 60 // SIZE_BY_KEY[size].seconds
    small, whole = (replace(each, average=None) for each in (small, whole))
    group = np.searchsorted(whole.start, small.start, side="right") - 1
    assert_aggregates(whole, small, group)


@given(keys.filter(lambda key: key != "SPX.CBOE"), moments, st.sampled_from(["1h", "1d", "1w"]))
@examples(30)
def test_bid_ask_bars_average_their_minutes(key: str, end_s: int, size: str) -> None:
    """Open and close are the mean bid and ask, high and low the extremes of ask and bid."""
    start_s = end_s - 9 * 86_400
    minutes, longer = (bars(key, each, start_s, end_s, what=What.BID_ASK) for each in ("1m", size))
    bid, ask = (bars(key, size, start_s, end_s, what=what) for what in (What.BID, What.ASK))
    assert column(longer, "high") == column(ask, "high")
    assert column(longer, "low") == column(bid, "low")
    assert longer.volume is None
    if len(minutes) and len(longer) == 1:
        assert longer.open[0] == pytest.approx(minutes.open.mean(), rel=1e-7)
        assert longer.close[0] == pytest.approx(minutes.close.mean(), rel=1e-7)
    assert np.all((longer.low < longer.open) & (longer.open < longer.close))


def test_contracts_stand_beside_their_chain() -> None:
    """Each later month is dearer, and trading ends at the last trade date."""
    first = int(datetime.fromisoformat("2023-12-14T14:30:00+00:00").timestamp())
    last = int(datetime.fromisoformat("2023-12-18T00:00:00+00:00").timestamp())
    chain, december, march = (
        bars(key, "1m", first, last, use_rth=False) for key in ("ES", "ESZ2023", "ESH2024")
    )
    assert column(chain, "start") == column(march, "start")
    end = datetime.fromtimestamp(int(december.start[-1]) + 60, UTC)
    assert end == datetime(2023, 12, 15, 14, 30, tzinfo=UTC)
    until = len(december)
    assert set((march.close[:until] - december.close).tolist()) == {7 * 3 * 0.25}
    assert set((march.close - chain.close).tolist()) == {7 * (4 * 12 + 3) * 0.25}


@pytest.mark.parametrize("key", ["EURUSD", "AAPL", "ES", "BTC.ZEROHASH"])
def test_bid_is_below_and_ask_above_the_middle(key: str) -> None:
    """Quotes lie around the midpoint in every size."""
    for size in ("1m", "1h", "1d", "1w"):
        bid, mid, ask = (
            bars(key, size, FIRST, FIRST + 10 * 86_400, what=what)
            for what in (What.BID, What.MIDPOINT, What.ASK)
        )
        for name in ("open", "high", "low", "close"):
            assert np.all(getattr(bid, name) < getattr(mid, name))
            assert np.all(getattr(ask, name) > getattr(mid, name))


def test_a_thin_stock_has_minutes_without_trades() -> None:
    """Most minutes of a session have no bar, and the day has one."""
    start_s = int(datetime.fromisoformat("2024-01-09T05:00:00+00:00").timestamp())
    minutes = bars("THIN", "1m", start_s, start_s + 86_400)
    assert 60 < len(minutes) < 130
    assert len(bars("THIN", "1d", start_s, start_s + 86_400)) == 1
    assert len(bars("AAPL", "1m", start_s, start_s + 86_400)) == 390


@given(moments, st.integers(1, 59), st.sampled_from(["AAPL", "EURUSD"]))
@examples(30)
def test_a_cut_minute_lies_within_the_whole_one(minute_s: int, seconds: int, key: str) -> None:
    """The part of a minute so far is consistent with the whole minute."""
    whole = bars(key, "1m", minute_s, minute_s + 60)
    so_far = bars(key, "1m", minute_s, minute_s + seconds)
    assert column(so_far, "start") == column(whole, "start")
    if len(whole):
        assert so_far.open[0] == whole.open[0]
        assert whole.low[0] <= so_far.low[0] <= so_far.high[0] <= whole.high[0]


def test_cached_days_are_the_same() -> None:
    """Cached daily bars equal those of a new market."""
    for _ in range(2):
        again = bars("JPM", "1d", FIRST, FIRST + 3_650 * 86_400)
    fresh = bars("JPM", "1d", FIRST, FIRST + 3_650 * 86_400, market=SyntheticMarket(seed=1))
    assert_same(again, fresh)
    assert len(again) > 2_500


def test_daily_moves_are_plausible() -> None:
    """The standard deviation of a session is about that of its listing."""
    closes = bars("MSFT", "1d", FIRST, LAST).close
    assert 0.012 < np.std(np.diff(np.log(closes))) < 0.022


def test_markets_reach_far_into_the_future() -> None:
    """The clock may be set to any year until 2045."""
    end = datetime.fromisoformat("2044-06-30T00:00:00+00:00")
    found = bars("AAPL", "1d", int((end - timedelta(days=365)).timestamp()), int(end.timestamp()))
    assert len(found) in range(249, 254)
