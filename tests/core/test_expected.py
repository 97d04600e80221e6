"""How many bars a session has at most."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.core.calendars import calendar_named
from ktrdr_pipelines.core.expected import expected_bars
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.timeframes import Timeframe

DAY = timedelta(days=1)
KEYS = ["XNYS.RTH", "XNYS.ETH", "XTKS.RTH", "XHKG.RTH", "XNSE.RTH", "FX", "GLOBEX.EQUITY"]


@pytest.mark.parametrize(
    ("key", "day", "counts"),
    [
        ("XNYS.RTH", "2024-11-27", {"1m": 390, "5m": 78, "15m": 26, "30m": 13, "1h": 7, "1d": 1}),
        ("XNYS.RTH", "2024-11-29", {"1m": 210, "5m": 42, "30m": 7, "1h": 4, "1d": 1}),
        ("XNYS.ETH", "2024-11-27", {"1m": 960, "1h": 16, "4h": 4}),
        ("XNYS.ETH", "2024-11-29", {"1m": 780, "1h": 13}),
        ("XTKS.RTH", "2024-11-01", {"1m": 300, "5m": 60, "30m": 10, "1h": 6}),
        ("XTKS.RTH", "2024-11-05", {"1m": 330, "5m": 66, "30m": 11, "1h": 7}),
        ("XHKG.RTH", "2024-12-23", {"1m": 330, "1h": 6}),
        ("XHKG.RTH", "2024-12-24", {"1m": 150, "1h": 3}),
        ("XNSE.RTH", "2024-05-08", {"1m": 375, "30m": 13, "1h": 7}),
        ("FX", "2024-03-11", {"1m": 1425, "1h": 24, "1d": 1}),
        ("CRYPTO", "2024-03-10", {"1m": 1440, "1h": 24, "4h": 6}),
        ("GLOBEX.EQUITY", "2021-06-25", {"1m": 1365, "1h": 23}),
        ("GLOBEX.EQUITY", "2021-06-28", {"1m": 1380, "1h": 23}),
        ("GLOBEX.GRAINS", "2024-05-08", {"1m": 1055}),
    ],
)
def test_bars_of_a_session(key: str, day: str, counts: dict[str, int]) -> None:
    """Half days, short first and last hours and breaks count as the exchange's clock says."""
    first = date.fromisoformat(day)
    found = {
        name: expected_bars(calendar_named(key), Timeframe(name), first, first + DAY).tolist()
        for name in counts
    }
    assert found == {name: [count] for name, count in counts.items()}


def test_a_week_counts_at_its_last_session() -> None:
    """Thanksgiving's week ends on Friday, the week before Good Friday on Thursday."""
    calendar = calendar_named("XNYS.RTH")
    found = expected_bars(calendar, Timeframe.W1, date(2024, 3, 25), date(2024, 4, 6))
    assert found.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 1]


def test_a_stretch_that_cuts_a_week_counts_what_lies_in_it() -> None:
    """The last session of a week decides, whether or not it is asked for."""
    calendar = calendar_named("XNYS.RTH")
    assert expected_bars(calendar, Timeframe.W1, date(2024, 4, 1), date(2024, 4, 4)).sum() == 0


def test_where_no_session_is_known_nothing_is_counted() -> None:
    """An empty stretch and an unknown calendar give empty arrays, not errors."""
    for timeframe in Timeframe:
        unknown = expected_bars(
            calendar_named("GATEWAY:UTC"), timeframe, date(2024, 1, 1), date(2025, 1, 1)
        )
        weekend = expected_bars(
            calendar_named("XNYS.RTH"), timeframe, date(2024, 3, 9), date(2024, 3, 11)
        )
        assert len(unknown) == len(weekend) == 0


def counted_by_hand(calendar: SessionCalendar, timeframe: Timeframe, place: int) -> int:
    """Count the cells of the clock that hold a minute of trading, one minute after another."""
    opens, closes = int(calendar.opens[place]), int(calendar.closes[place])
    minutes = np.arange(opens, closes, 60_000_000)
    for start, end in calendar.breaks[np.searchsorted(calendar.breaks[:, 0], opens) :][:3]:
        minutes = minutes[(minutes < start) | (minutes >= end)]
    ahead = datetime.fromtimestamp(opens / 1e6, UTC).astimezone(ZoneInfo(calendar.zone)).utcoffset()
    assert ahead is not None
    wall = minutes + int(ahead.total_seconds()) * 1_000_000
    return len(np.unique(wall // (timeframe.seconds * 1_000_000)))


@given(
    st.sampled_from(KEYS),
    st.sampled_from([Timeframe.M1, Timeframe.M30, Timeframe.H1, Timeframe.H4]),
    st.dates(date(2005, 1, 1), date(2026, 1, 1)),
)
def test_counts_are_those_of_a_minute_by_minute_walk(
    key: str, timeframe: Timeframe, day: date
) -> None:
    """The arithmetic over arrays agrees with counting minutes."""
    calendar = calendar_named(key)
    found = expected_bars(calendar, timeframe, day, day + 5 * DAY)
    low = int(np.searchsorted(calendar.days, np.datetime64(day)))
    assert found.tolist() == [
        counted_by_hand(calendar, timeframe, low + place) for place in range(len(found))
    ]
