"""Splits: one price basis by the gateway's clock, in every size and kind of bars."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ib_async import IB

from ktrdr_pipelines.errors import UsageError
from ktrdr_pipelines.simulator.market.market import BarQuery, Market, PricedBars, What
from ktrdr_pipelines.simulator.market.recorded import ReplayMarket
from ktrdr_pipelines.simulator.market.splits import Split, SplitMarket, read_splits, stock_keys
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import HistoryRequest
from ktrdr_pipelines.simulator.requests.durations import SIZE_BY_KEY, Window
from ktrdr_pipelines.simulator.requests.live_updates import LiveBars
from ktrdr_pipelines.simulator.server import SimulatorServer, open_market, running_simulator
from ktrdr_pipelines.simulator.variants import MarketVariants
from tests.simulator.ib_async_session import AAPL, EURUSD, history, run_session
from tests.support.examples import examples
from tests.support.recordings import RECORDED, Row, write

PLAIN = SyntheticMarket(seed=1)
KEYS = ("1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w")
EX_DATE = date(2024, 1, 10)
MIDNIGHT = datetime(2024, 1, 10, 5, tzinfo=UTC)
"""The start of the ex-date in New York."""
SECOND = timedelta(seconds=1)
HALF_TICK = 0.005 + 1e-9
PRICES = ("open", "high", "low", "close")


def seconds(moment: datetime) -> int:
    """Return a moment in seconds since 1970."""
    return int(moment.timestamp())


def splitting(*splits: tuple[str, date, float], market: Market = PLAIN) -> SplitMarket:
    """Return a market with splits."""
    return SplitMarket(market, [Split(*split) for split in splits])


def served(
    market: Market,
    size: str,
    start: datetime,
    end: datetime,
    *,
    now: datetime | None = None,
    key: str = "AAPL",
    what: What = What.TRADES,
    use_rth: bool = True,
) -> PricedBars:
    """Return bars as they are served at a moment; None is the window's end."""
    (instrument,) = (each for each in market.instruments() if each.key == key)
    window = Window(seconds(start), seconds(end))
    now_s = None if now is None else seconds(now)
    return market.bars(instrument, BarQuery(what, SIZE_BY_KEY[size], use_rth, window, now_s))


def assert_same(one: PricedBars, other: PricedBars) -> None:
    """Check that two responses are equal bit for bit."""
    for name in ("start", *PRICES, "volume", "average", "count"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None)
        assert first is None or first.tolist() == second.tolist()


def assert_on_basis(bars: PricedBars, plain: PricedBars, ratio: float) -> None:
    """Check that bars are the plain ones, divided by a ratio and on the tick."""
    assert bars.start.tolist() == plain.start.tolist()
    for name in PRICES:
        found = getattr(bars, name)
        assert np.abs(found - getattr(plain, name) / ratio).max() <= HALF_TICK
        assert found.tolist() == np.round(found, 2).tolist()


@pytest.mark.parametrize("size", KEYS)
@pytest.mark.parametrize("what", [What.TRADES, What.ADJUSTED_LAST, What.MIDPOINT, What.ASK])
def test_all_older_bars_are_restated_from_the_ex_date_on(size: str, what: What) -> None:
    """Until a second before midnight in New York bars are the old ones; from then on none is."""
    market = splitting(("AAPL", EX_DATE, 4))
    start, end = datetime(2023, 12, 18, tzinfo=UTC), datetime(2024, 1, 9, 18, 30, 20, tzinfo=UTC)
    plain = served(PLAIN, size, start, end, what=what)
    assert_same(served(market, size, start, end, now=MIDNIGHT - SECOND, what=what), plain)
    bars = served(market, size, start, end, now=MIDNIGHT, what=what)
    assert_on_basis(bars, plain, 4)
    if what in {What.MIDPOINT, What.ASK}:
        assert bars.volume is None
        return
    assert bars.volume is not None
    assert plain.volume is not None
    assert bars.volume.tolist() == (4 * plain.volume).tolist()
    assert bars.average is not None
    assert plain.average is not None
    assert np.abs(bars.average - plain.average / 4).max() <= HALF_TICK
    assert np.all((bars.low <= bars.average) & (bars.average <= bars.high))
    assert np.array_equal(bars.count, plain.count)


def test_traded_prices_jump_at_the_ex_date() -> None:
    """What was served on the day before and on the ex-date differs by the ratio, as at IB."""
    market = splitting(("AAPL", EX_DATE, 4))
    days = [datetime(2024, 1, day, tzinfo=UTC) for day in (9, 10, 11)]
    (before,) = served(market, "1d", *days[:2]).close
    after = served(market, "1d", *days[1:])
    assert before / after.open[0] == pytest.approx(4, rel=0.03)
    assert_on_basis(after, served(PLAIN, "1d", *days[1:]), 4)
    both = served(market, "1d", days[0], days[2])
    assert both.close[0] == pytest.approx(before / 4, abs=HALF_TICK)
    assert both.close[1] == after.close[0]


def test_a_reverse_split_raises_prices_and_keeps_a_share_of_every_trade() -> None:
    """Volumes are whole and at least one; a bar without a trade keeps none."""
    market = splitting(("THIN", EX_DATE, 0.05))
    start, end = datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 9, 21, tzinfo=UTC)
    plain = served(PLAIN, "1m", start, end, key="THIN")
    bars = served(market, "1m", start, end, now=MIDNIGHT, key="THIN")
    assert_on_basis(bars, plain, 0.05)
    assert bars.volume is not None
    assert plain.volume is not None
    shares = np.maximum(np.rint(plain.volume * 0.05), 1)
    assert bars.volume.tolist() == shares.tolist()
    tiny = served(splitting(("THIN", EX_DATE, 1e-4)), "1m", start, end, now=MIDNIGHT, key="THIN")
    assert tiny.volume is not None
    assert set(tiny.volume.tolist()) == {1.0}


def test_several_splits_multiply_and_are_rounded_once() -> None:
    """Two in a week are seen one after the other, and together give the product."""
    market = splitting(("AAPL", EX_DATE, 7), ("AAPL", date(2024, 1, 12), 0.5))
    start, end = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 9, 21, tzinfo=UTC)
    plain = served(PLAIN, "1h", start, end)
    for day, ratio in ((10, 7.0), (11, 7.0), (12, 3.5), (16, 3.5)):
        bars = served(market, "1h", start, end, now=datetime(2024, 1, day, 12, tzinfo=UTC))
        assert bars.close.tolist() == (np.rint(plain.close / ratio * 100) / 100).tolist()


def test_a_split_begins_at_midnight_of_its_exchange() -> None:
    """In London five hours before New York, in summer time an hour earlier in UTC."""
    moments = {
        ("VOD", date(2024, 1, 10)): datetime(2024, 1, 10, 0, tzinfo=UTC),
        ("VOD", date(2024, 7, 10)): datetime(2024, 7, 9, 23, tzinfo=UTC),
        ("SHOP.TSE", date(2024, 7, 10)): datetime(2024, 7, 10, 4, tzinfo=UTC),
    }
    for (key, day), moment in moments.items():
        market = splitting((key, day, 2))
        start, end = moment - timedelta(days=20), moment - timedelta(days=2)
        plain = served(PLAIN, "1d", start, end, key=key)
        assert_same(served(market, "1d", start, end, key=key, now=moment - SECOND), plain)
        assert_on_basis(served(market, "1d", start, end, key=key, now=moment), plain, 2)


def test_nothing_else_of_the_market_changes() -> None:
    """Other instruments, head timestamps and hours are those of the market within."""
    market = splitting(("SHOP", EX_DATE, 10), ("AAPL", EX_DATE, 4))
    start, end = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 12, tzinfo=UTC)
    for key in ("SHOP.TSE", "MSFT", "ESH2024", "EURUSD"):
        what = What.MIDPOINT if key == "EURUSD" else What.TRADES
        assert_same(
            served(market, "1h", start, end, key=key, what=what),
            served(PLAIN, "1h", start, end, key=key, what=what),
        )
    assert market.instruments() == PLAIN.instruments()
    assert market.default_now() is None
    aapl = next(each for each in PLAIN.instruments() if each.key == "AAPL")
    assert market.hours(aapl, use_rth=True) is PLAIN.hours(aapl, use_rth=True)
    head = PLAIN.head(aapl, What.TRADES, use_rth=True)
    assert market.head(aapl, What.TRADES, use_rth=True) == head


@given(
    ratio=st.floats(0.02, 50),
    what=st.sampled_from([What.TRADES, What.MIDPOINT, What.BID, What.ASK]),
    size=st.sampled_from(["5m", "1h", "4h", "1d", "1w"]),
    use_rth=st.booleans(),
    cut_minutes=st.integers(0, 3_000),
)
@examples(25)
def test_prices_of_all_sizes_agree(
    *, ratio: float, what: What, size: str, use_rth: bool, cut_minutes: int
) -> None:
    """A longer bar has the first, extreme and last prices of its adjusted minutes."""
    market = splitting(("AAPL", date(2024, 1, 11), ratio))
    end = datetime(2024, 1, 13, tzinfo=UTC) - timedelta(minutes=cut_minutes)
    around: dict[str, Any] = {"what": what, "use_rth": use_rth, "now": datetime.now(UTC)}
    start = datetime(2024, 1, 8, tzinfo=UTC)
    minutes, longer = (served(market, each, start, end, **around) for each in ("1m", size))
    starts = longer.start
    if SIZE_BY_KEY[size].is_dated:
        # All minutes are of one week; a day in New York ends before midnight UTC less five hours.
        days = (minutes.start - 5 * 3_600) // 86_400 * 86_400
        group = np.searchsorted(starts, days) if size == "1d" else np.zeros_like(minutes.start)
    else:
        group = np.maximum(np.searchsorted(starts, minutes.start, side="right") - 1, 0)
    for at in range(len(longer)):
        rows = np.flatnonzero(group == at)
        assert longer.open[at] == minutes.open[rows[0]]
        assert longer.high[at] == minutes.high[rows].max()
        assert longer.low[at] == minutes.low[rows].min()
        assert longer.close[at] == minutes.close[rows[-1]]
    if longer.average is not None:
        assert np.all((longer.low <= longer.average) & (longer.average <= longer.high))


def test_bid_ask_bars_are_adjusted_with_their_averages() -> None:
    """Open and close, the mean bid and ask, lie within the extremes and are not on the tick."""
    market = splitting(("AAPL", EX_DATE, 3))
    start, end = datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 9, 21, tzinfo=UTC)
    arguments = ("1h", start, end)
    plain = served(PLAIN, *arguments, what=What.BID_ASK)
    bars = served(market, *arguments, what=What.BID_ASK, now=MIDNIGHT)
    for name, exact in (("open", 1e-6), ("close", 1e-6), ("high", 0.0051), ("low", 0.0051)):
        assert np.abs(getattr(bars, name) - getattr(plain, name) / 3).max() < exact
    assert np.all((bars.low <= bars.open) & (bars.open < bars.close) & (bars.close <= bars.high))


DAYS: list[Row] = [
    (date(2024, 1, 8), 100.0, 104.0, 99.0, 101.0, 10.0),
    (date(2024, 1, 9), 101.0, 103.0, 97.0, 102.03, 11.0),
    (date(2024, 1, 10), 25.613, 27.0, 25.0, 26.0, 40.0),
    (date(2024, 1, 11), 26.0, 26.5, 24.0, 25.0, 44.0),
]
"""As traded: the price falls to a quarter on the third day."""


def test_recorded_prices_jump_by_themselves(tmp_path: Path) -> None:
    """Only the sessions before the ex-date are adjusted; the others stay bit for bit."""
    write(tmp_path, "AAPL", "1d", DAYS)
    market = splitting(("AAPL", EX_DATE, 4), market=ReplayMarket(tmp_path))
    start, end = datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 12, tzinfo=UTC)
    bars = served(market, "1d", start, end)
    assert bars.open.tolist() == [25.0, 25.25, 25.613, 26.0]
    assert bars.close.tolist() == [25.25, 25.51, 26.0, 25.0]
    assert bars.volume is not None
    assert bars.volume.tolist() == [40.0, 44.0, 40.0, 44.0]
    before = served(market, "1d", start, datetime(2024, 1, 9, 21, tzinfo=UTC))
    assert before.close.tolist() == [101.0, 102.03]


def test_recorded_bars_before_several_splits_have_the_product(tmp_path: Path) -> None:
    """Each session is adjusted for the later splits only."""
    write(tmp_path, "AAPL", "1d", DAYS)
    splits = (("AAPL", date(2024, 1, 11), 0.5), ("AAPL", EX_DATE, 4.0))
    market = splitting(*splits, market=ReplayMarket(tmp_path))
    start, end = datetime(2024, 1, 8, tzinfo=UTC), datetime(2024, 1, 12, tzinfo=UTC)
    assert served(market, "1d", start, end).open.tolist() == [50.0, 50.5, 51.23, 26.0]


def test_a_flat_bar_stays_one() -> None:
    """A minute without a trade has one price and no volume on any basis."""
    flat = SyntheticMarket(1, MarketVariants(flat_bars=frozenset({"THIN"})))
    start, end = datetime(2024, 1, 9, 14, tzinfo=UTC), datetime(2024, 1, 9, 21, tzinfo=UTC)
    bars = served(
        splitting(("THIN", EX_DATE, 0.05), market=flat), "1m", start, end, now=MIDNIGHT, key="THIN"
    )
    assert bars.volume is not None
    empty = bars.volume == 0
    assert empty.sum() > 200
    assert bars.high[empty].tolist() == bars.low[empty].tolist()


def test_a_recorded_week_of_a_split_is_built_of_adjusted_days(tmp_path: Path) -> None:
    """Its extremes are those of one basis, whatever week was recorded."""
    write(tmp_path, "AAPL", "1d", DAYS)
    write(tmp_path, "AAPL", "1w", [(date(2024, 1, 12), 100.0, 104.0, 24.0, 25.0, 105.0)])
    market = splitting(("AAPL", EX_DATE, 4), market=ReplayMarket(tmp_path))
    start, end = datetime(2024, 1, 6, tzinfo=UTC), datetime(2024, 1, 13, tzinfo=UTC)
    for size in ("1w", "1mo"):
        week = served(market, size, start, end)
        row = [getattr(week, name).tolist() for name in (*PRICES, "volume")]
        assert row == [[25.0], [27.0], [24.0], [25.0], [168.0]]
        assert week.start.tolist() == [seconds(datetime(2024, 1, 11, tzinfo=UTC))]
    assert len(served(market, "1w", start - timedelta(days=90), start)) == 0


def test_a_volume_that_is_not_available_stays_so(tmp_path: Path) -> None:
    """-1 is not multiplied, and a week with such a day has none either."""
    rows: list[Any] = [(*row[:5], None if at == 1 else row[5]) for at, row in enumerate(DAYS)]
    write(tmp_path, "AAPL", "1d", rows)
    market = splitting(("AAPL", EX_DATE, 4), market=ReplayMarket(tmp_path))
    start, end = datetime(2024, 1, 6, tzinfo=UTC), datetime(2024, 1, 13, tzinfo=UTC)
    days, weeks = (served(market, size, start, end).volume for size in ("1d", "1w"))
    assert days is not None
    assert days.tolist() == [40.0, -1.0, 40.0, 44.0]
    assert weeks is not None
    assert weeks.tolist() == [-1.0]


def test_a_connected_client_sees_the_new_basis_once_the_clock_has_come() -> None:
    """Over a socket, while the clock is moved across the ex-date: the tail overlaps the old bars.

    This is the way for other tests: a ``SplitMarket`` for ``running_simulator``, and
    ``clock.set``.
    """
    market = splitting(("AAPL", EX_DATE, 4))

    async def session(ib: IB) -> None:
        before = await history(ib, AAPL, "1 day", "3 D", endDateTime="")
        pair = await history(ib, EURUSD, "1 day", "2 D")
        server.clock.set(datetime(2024, 1, 11, 1, tzinfo=UTC))
        after = await history(ib, AAPL, "1 day", "4 D", endDateTime="")
        assert [bar.date.day for bar in after] == [5, 8, 9, 10]
        for old, new in zip(before, after[:3], strict=True):
            assert new.date == old.date
            assert new.close == pytest.approx(old.close / 4, abs=HALF_TICK)
            assert new.volume == 4 * old.volume
            assert new.average == pytest.approx(old.average / 4, abs=HALF_TICK)
        past = await history(ib, AAPL, "1 day", "1 D")  # a request with an end
        assert past[0].close == after[2].close
        again = await history(ib, EURUSD, "1 day", "3 D")
        assert [bar.close for bar in again[1:]] == [bar.close for bar in pair]

    server: SimulatorServer
    with running_simulator(market, now=datetime(2024, 1, 10, 1, tzinfo=UTC)) as server:
        run_session(server, session)


def test_live_bars_are_restated_at_the_ex_date(
    new_requester: Any, fields_of: Any, split_frames: Any
) -> None:
    """The running week is sent again on the new basis as soon as the day begins."""
    request = HistoryRequest(1, fields_of("AAPL"), "", "1 week", "2 W", True, "TRADES", 2, True)
    requester = new_requester(splitting(("AAPL", EX_DATE, 4)))
    live, closes = LiveBars(request), []
    for now in (MIDNIGHT - SECOND, MIDNIGHT - SECOND, MIDNIGHT):
        requester.now = now.isoformat()
        closes.append([float(frame[5]) for frame in split_frames(live.fresh(requester.setting()))])
    assert closes[1] == []
    assert len(closes[2]) == 1
    assert closes[2][0] == pytest.approx(closes[0][-1] / 4, abs=HALF_TICK)


@pytest.mark.skipif(not RECORDED.is_dir(), reason="the sample bars are not beside the checkout")
@pytest.mark.parametrize(
    ("ex_date", "ratio", "day_before", "later"),
    [
        (date(2014, 6, 9), 7.0, date(2014, 6, 6), 4.0),
        (date(2020, 8, 31), 4.0, date(2020, 8, 28), 1.0),
    ],
)
@pytest.mark.parametrize(("size", "count"), [("1 min", 390), ("1 hour", 7), ("1 day", 1)])
def test_recorded_splits_of_apple(
    new_requester: Any,
    *,
    size: str,
    count: int,
    ex_date: date,
    ratio: float,
    day_before: date,
    later: float,
) -> None:
    """On the evening before bars are as traded, from the ex-date on the same bars are adjusted."""
    if size == "1 min" and ex_date.year == 2020:
        pytest.skip("minutes of 2020 were not recorded")
    market = open_market(RECORDED, 1, splits=RECORDED / "splits.csv")
    plain = new_requester(open_market(RECORDED, 1), now="2030-01-01T00:00:00+00:00")
    replay = new_requester(market)

    def rows(requester: Any, day: date, now: str = "") -> np.ndarray:
        requester.now = now or requester.now
        found = requester.bars("AAPL", size, "1 D", f"{day:%Y%m%d}-20:00:00").bars
        assert len(found) == count
        return np.array([[float(text) for text in bar[1:6]] for bar in found])

    as_traded = {day: rows(plain, day) for day in (day_before, ex_date)}
    evening = f"{ex_date}T03:59:59+00:00"
    assert rows(replay, day_before, evening).tolist() == as_traded[day_before].tolist()
    morning, afternoon = f"{ex_date}T04:00:00+00:00", f"{ex_date}T20:00:00+00:00"
    for now in (morning, afternoon):
        adjusted = rows(replay, day_before, now)
        assert np.abs(adjusted[:, :4] - as_traded[day_before][:, :4] / ratio).max() <= HALF_TICK
        assert adjusted[:, 4].tolist() == (as_traded[day_before][:, 4] * ratio).tolist()
    assert rows(replay, ex_date, afternoon).tolist() == as_traded[ex_date].tolist()
    # No jump is left between the two sessions, and years later both are on the newest basis.
    assert adjusted[-1, 3] == pytest.approx(as_traded[ex_date][0, 0], rel=0.03)
    newest = rows(replay, ex_date, "2021-04-01T00:00:00+00:00")
    off = np.abs(newest[:, :4] - as_traded[ex_date][:, :4] / later).max()
    assert off <= (HALF_TICK if later > 1 else 0)


HEADER = "symbol,ex_date,ratio\n"


def test_a_file_of_splits_is_read(tmp_path: Path) -> None:
    """Several lines a symbol, in any order; blanks and a byte order mark do not matter."""
    path = tmp_path / "splits.csv"
    text = f"\ufeff{HEADER}AAPL,2020-08-31,4\n\n SHOP.TSE , 2022-06-29 ,10\nAAPL,2014-06-09,0.05\n"
    path.write_text(text, encoding="utf-8")
    assert read_splits(path, stock_keys(PLAIN)) == (
        Split("AAPL", date(2020, 8, 31), 4.0),
        Split("SHOP.TSE", date(2022, 6, 29), 10.0),
        Split("AAPL", date(2014, 6, 9), 0.05),
    )
    path.write_text(HEADER, encoding="utf-8")
    assert read_splits(path, stock_keys(PLAIN)) == ()
    assert isinstance(open_market(None, 1, splits=path), SplitMarket)


@pytest.mark.parametrize(
    ("text", "where", "reason"),
    [
        ("", "line 1", "is empty"),
        ("symbol,date,ratio\n", "line 1", "The header must be symbol,ex_date,ratio"),
        ("AAPL,2020-08-31,4\n", "line 1", "is 'AAPL,2020-08-31,4'"),
        (f"{HEADER}AAPL,2020-08-31\n", "line 2", "has 2 fields"),
        (f"{HEADER}AAPL,2020-08-31,4,x\n", "line 2", "has 4 fields"),
        (f"{HEADER}\nAAPLX,2020-08-31,4\n", "line 3, symbol", "Did you mean AAPL"),
        (f"{HEADER}aapl,2020-08-31,4\n", "line 2, symbol", "must be a stock"),
        (f"{HEADER}EURUSD,2020-08-31,4\n", "line 2, symbol", "must be a stock"),
        (f"{HEADER}AAPL,31.8.2020,4\n", "line 2, ex_date", "a date such as 2020-08-31"),
        (f"{HEADER}AAPL,20200831,4\n", "line 2, ex_date", "is '20200831'"),
        (f"{HEADER}AAPL,2020-02-30,4\n", "line 2, ex_date", "is '2020-02-30'"),
        (f"{HEADER}AAPL,2020-08-31,4:1\n", "line 2, ratio", "4 for 4:1, 0.05 for 1:20"),
        (f"{HEADER}AAPL,2020-08-31,0\n", "line 2, ratio", "is '0'"),
        (f"{HEADER}AAPL,2020-08-31,-4\n", "line 2, ratio", "is '-4'"),
        (f"{HEADER}AAPL,2020-08-31,nan\n", "line 2, ratio", "is 'nan'"),
        (f"{HEADER}AAPL,2020-08-31,inf\n", "line 2, ratio", "is 'inf'"),
        (f"{HEADER}AAPL,2020-08-31,\n", "line 2, ratio", "is ''"),
        (f'{HEADER}AAPL,2020-08-31,"4\n', "line 2", "is not CSV"),
        (f"{HEADER}AAPL,2020-08-31,4\nAAPL,2020-08-31,2\n", "line 3, ex_date", "two splits on"),
    ],
)
def test_an_invalid_file_of_splits_is_named_by_line_and_field(
    tmp_path: Path, text: str, where: str, reason: str
) -> None:
    """The error names file, line and field, then the reason or what is allowed."""
    path = tmp_path / "splits.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as refused:
        read_splits(path, stock_keys(PLAIN))
    assert refused.value.what == f"{path}, {where}"
    assert reason in str(refused.value)


def test_a_file_of_splits_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file, and one that is no text."""
    with pytest.raises(UsageError, match=r"none\.csv.*No such file"):
        read_splits(tmp_path / "none.csv", ())
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"binary\.csv.*utf-8"):
        read_splits(tmp_path / "binary.csv", ())


def test_a_split_that_makes_no_sense_is_refused() -> None:
    """A ratio that is no positive number, and a symbol that the market has no stock of."""
    for ratio in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ratio="):
            Split("AAPL", EX_DATE, ratio)
    with pytest.raises(ValueError, match="EURUSD is no stock of SyntheticMarket"):
        splitting(("EURUSD", EX_DATE, 2))
