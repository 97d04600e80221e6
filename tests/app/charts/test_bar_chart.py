"""Charts of bars: where bars and missing ranges lie on the axis, and its ticks."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow.compute as pc
import pytest

from ktrdr_pipelines.app.charts.bar_chart import BarChart, axis_positions
from ktrdr_pipelines.app.reading.readiness import MissingRange
from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.errors import IncompleteError, UnknownSymbolError, UsageError
from tests.support.readable import ReadableStore

Chart = Callable[..., BarChart]
T0 = datetime(2024, 1, 2, tzinfo=UTC)
DAYS = np.arange(20, dtype=np.int64) * 86_400_000_000 + 1_704_153_600_000_000


def lacking(first: int, end: int, bars: int) -> MissingRange:
    """Return a range of days that lacks bars."""
    days = (T0 + timedelta(days=one) for one in (first, end))
    return MissingRange(*days, sessions=bars, bars=bars, reason="missing")


def test_closed_time_takes_no_room(readable: ReadableStore, chart: Chart) -> None:
    """Bars of a complete range stand one width apart, over nights, weekends and holidays."""
    readable.fill("AAPL", "1h", "2024-06-24", "2024-07-06")
    found = chart("AAPL", "1h", "2024-06-28", "2024-07-06")
    assert len(found) == 7 * 4 + 4  # the session of 3 July is short
    assert np.diff(found.at).tolist() == [1.0] * (len(found) - 1)
    assert (found.shades, found.width) == ((), len(found))


def test_a_missing_session_has_the_room_of_its_bars(readable: ReadableStore, chart: Chart) -> None:
    """It lies between the bars around it, with its reason and how many bars it lacks."""
    readable.fill("AAPL", "1h", "2024-06-03", "2024-07-06", without=["2024-06-12"])
    found = chart("AAPL", "1h", "2024-06-03")
    (shade,) = found.shades or ()
    before = found.days.tolist().index(date(2024, 6, 13))
    assert (shade.missing.reason, shade.missing.bars) == ("missing", 7)
    assert (shade.first, shade.end) == (before, before + 7)
    assert found.at[before] == before + 7.5
    assert found.is_to_scale


def test_bars_that_are_held_are_not_lacking() -> None:
    """Of a sparse session some are shown; only the others are said to be missing."""
    times = np.array([micros(T0 + timedelta(days=one)) for one in range(6)])
    _, (shade,), _ = axis_positions(times, [lacking(1, 4, 10)])
    assert shade.lacking == 7


def test_the_newest_200_bars_and_what_is_missing_after_them(
    readable: ReadableStore, chart: Chart
) -> None:
    """Without a start the axis ends at now: what has not been loaded since is shaded."""
    readable.fill("AAPL", "1d", "2023-01-03", "2024-07-01")
    found = chart("AAPL", "1d")
    (shade,) = found.shades or ()
    assert len(found) == 200
    assert shade.missing.bars == 4
    assert shade.end == found.width == 204
    assert len(chart("AAPL", "1d", end="2024-01-03")) == 200


def test_dates_are_session_dates_and_instants_are_instants(
    readable: ReadableStore, chart: Chart
) -> None:
    """The start is included, the end is not, as in all commands."""
    readable.fill("EURUSD", "1h", "2024-06-24", "2024-07-06")
    day = chart("EURUSD", "1h", "2024-06-26", "2024-06-27")
    assert {str(one) for one in day.days} == {"2024-06-26"}
    assert str(day.local_times()[0]) == "2024-06-25T17:15:00.000000"
    part = chart("EURUSD", "1h", "2024-06-26T10:00:00Z", "2024-06-26T12:00:00Z")
    assert len(part) == 2
    assert part.first == datetime(2024, 6, 26, 10, tzinfo=UTC)


def test_ranges_are_bounded_and_never_vanish() -> None:
    """A long range leaves room for the bars, and a short one among many bars stays visible."""
    many = np.arange(10_000, dtype=np.int64) * 86_400_000_000 + DAYS[0]
    _, (long,), width = axis_positions(DAYS, [lacking(20, 4_000, 3_980)])
    assert (long.first, long.end) == (20.0, width)
    assert width - 20 == pytest.approx(3)
    (_, (short,), _) = axis_positions(many[10:], [lacking(9, 10, 1)])
    assert short.end - short.first == pytest.approx(0.005 * 9_990)
    ranges = [lacking(at + 20, at + 21, 500) for at in range(200)]
    at, _, width = axis_positions(DAYS, ranges)
    assert width == pytest.approx(40)
    assert at[-1] == 19.5


def test_a_range_in_which_bars_are_held_lies_over_them() -> None:
    """A sparse session has room for what it lacks after the bars that it has."""
    at, (sparse, after), width = axis_positions(DAYS, [lacking(2, 5, 5), lacking(7, 9, 1)])
    assert (sparse.first, sparse.end) == (2.0, 7.0)
    assert (after.first, after.end) == (9.0, 11.0)  # all bars of it are held
    assert (at[4], at[5], width) == (4.5, 7.5, 22.0)


@pytest.mark.parametrize(
    ("timeframe", "first", "ticks"),
    [
        ("5m", "2024-07-05", [("09:30", "Fri 5 Jul 2024"), ("10:00", ""), ("11:00", "")]),
        ("1h", "2024-06-20", [("20 Jun", "2024"), ("21 Jun", ""), ("24 Jun", "")]),
        ("1d", "2023-11-27", [("Dec", "2023"), ("Jan", "2024"), ("Feb", "")]),
        ("1w", "2023-01-02", [("Jan", "2023"), ("Apr", ""), ("Jul", "")]),
    ],
)
def test_ticks_are_beginnings_in_the_time_of_the_exchange(
    readable: ReadableStore,
    chart: Chart,
    timeframe: str,
    first: str,
    ticks: list[tuple[str, str]],
) -> None:
    """Hours of a session, sessions, months or quarters, and their day or year where it changes."""
    readable.fill("AAPL", timeframe, first, "2024-07-06")
    found = chart("AAPL", timeframe, first)
    labels = found.ticks()
    assert [(one.text, one.context) for one in labels[:3]] == ticks
    assert 3 <= len(labels) <= 14
    assert found.zone == "America/New_York"
    assert np.diff([one.at for one in labels]).min() > found.width / 24


def test_prices_are_on_todays_basis_or_as_stored(readable: ReadableStore, chart: Chart) -> None:
    """--raw draws the file."""
    bars = readable.fill("AAPL", "1d", "2024-06-03", "2024-06-29")
    readable.split("AAPL", 0.5, "2024-07-01")
    stored = pc.max(bars["high"]).as_py()
    assert chart("AAPL", "1d", raw=True).high.max() == stored
    assert chart("AAPL", "1d").high.max() == stored / 2


def test_what_a_symbol_lacks_that_left_the_universe_is_not_known(
    readable: ReadableStore, chart: Chart
) -> None:
    """Its bars are drawn, and nothing is called complete."""
    readable.fill("MSFT", "1d", "2024-06-03", "2024-06-29")
    (readable.root / "universe.yaml").write_text("symbols: {AAPL: {start: 2023-01-02}}\n")
    found = chart("MSFT", "1d", "2024-06-10", "2024-06-15")
    assert (len(found), found.shades, found.zone) == (5, None, "UTC")


def test_a_range_without_bars_is_an_error_that_says_whose(
    readable: ReadableStore, chart: Chart
) -> None:
    """Where bars are missing the work is not complete; where none can lie the range is wrong."""
    readable.fill("AAPL", "1d", "2024-06-03", "2024-06-29")
    with pytest.raises(IncompleteError, match=r"--start 2024-01-02.*newest one is of 2024-06-28"):
        chart("AAPL", "1d", "2024-01-02", "2024-02-01")
    with pytest.raises(IncompleteError, match=r"AAPL 1h: the store has no bars of it\. Hint"):
        chart("AAPL", "1h")
    with pytest.raises(UsageError, match="no bar lies there") as weekend:
        chart("AAPL", "1d", "2024-06-08", "2024-06-10")
    assert weekend.value.exit_code == 2
    for wrong in (("AAPL", "2m"), ("AAPL", "1d", "2024-06-28", "2024-06-03")):
        with pytest.raises(UsageError):
            chart(*wrong)
    with pytest.raises(UnknownSymbolError, match="Did you mean AAPL"):
        chart("APPL", "1d")
