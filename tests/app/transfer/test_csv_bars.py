"""Rows of CSV files become exactly the bars that they state; all others are named by line."""

import io
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.app.transfer.csv_bars import ParsedBars, parse_csv
from ktrdr_pipelines.app.transfer.mapping import CsvShape, TimeOf
from ktrdr_pipelines.domain.bars import empty_bars, moment, timestamps
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import UsageError
from tests.support.readable import random_bars

NOW = datetime(2024, 7, 5, 21, tzinfo=UTC)
NEW_YORK = "America/New_York"
OPEN = datetime(2024, 1, 2, 14, 30, tzinfo=UTC)


def parse(
    text: str, timeframe: str = "1m", *, calendar: str = "XNYS.RTH", **shape: Any
) -> ParsedBars:
    """Parse a text."""
    return parse_csv(
        io.StringIO(text, newline=""),
        CsvShape(**shape),
        Timeframe(timeframe),
        calendar=calendar_named(calendar),
        now=NOW,
    )


def starts(found: ParsedBars) -> list[datetime]:
    """Return the timestamps of bars."""
    return [moment(key) for key in timestamps(found.bars).tolist()]


@pytest.mark.parametrize(
    ("header", "row", "zone"),
    [
        ("date,open,high,low,close,volume", "2024-01-02T14:30:00Z,1,2,0.5,1.5,10", None),
        (
            "timestamp,open,high,low,close,volume",
            "2024-01-02 14:30:00+00:00,1,2,0.5,1.5,10.0",
            None,
        ),
        (",Open,High,Low,Close,Volume", "2024-01-02 09:30:00-05:00,1,2,0.5,1.5,10", None),
        ("Unnamed: 0;O;H;L;C;V", "2024-01-02 09:30;1;2;0.5;1.5;10", NEW_YORK),
        ("Date\tTime\tOpen\tHigh\tLow\tClose\tVol", "20240102\t0930\t1\t2\t.5\t1.5\t10", NEW_YORK),
        (
            "<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<VOL>",
            "2024.01.02,14:30:00,1,2,5e-1,1.5,10",
            "UTC",
        ),
        ("time,close,open,low,high,volume", "1704205800,1.5,1,0.5,2,10", None),
        ("Datetime,Volume,open,high,low,close", "1704205800000,10,1,2,0.5,1.5", None),
        ("ts,open,high,low,close,volume", "1704205800000000000,1,2,0.5,1.5,1e1", None),
        ("DATETIME,OPEN,HIGH,LOW,CLOSE,VOLUME", "2024/01/02 9:30:00.000,1,2,0.5,1.5,10", NEW_YORK),
        ("date,open,high,low,close,volume", '"202401021430"," 1 ",2,0.5,1.5,10', "UTC"),
        ("date,time,o,h,l,c,v", "20240102,93000,1,2,0.5,1.5,10", NEW_YORK),
    ],
)
def test_headers_separators_and_times_of_other_programs_are_read(
    header: str, row: str, zone: str | None
) -> None:
    """All state the same bar."""
    found = parse(f"{header}\r\n{row}\r\n", zone=zone)
    assert (found.rows, found.bad, found.ignored) == (1, (), ())
    (bar,) = found.bars.to_pylist()
    assert bar == {
        "ts": OPEN,
        "session_date": date(2024, 1, 2),
        "open": 1.0,
        "high": 2.0,
        "low": 0.5,
        "close": 1.5,
        "volume": 10.0,
        "average": None,
        "bar_count": None,
    }


@pytest.mark.parametrize(
    ("timeframe", "text", "zone", "day"),
    [
        ("1d", "2024-01-02", None, date(2024, 1, 2)),
        ("1d", "20240102", NEW_YORK, date(2024, 1, 2)),
        ("1d", "2024-01-02 00:00:00", None, date(2024, 1, 2)),
        ("1d", "2024-01-02T00:00:00Z", NEW_YORK, date(2024, 1, 2)),
        ("1d", "2024-01-02 00:00:00-05:00", None, date(2024, 1, 2)),
        ("1d", "2024-01-02T05:00:00Z", NEW_YORK, date(2024, 1, 2)),
        ("1d", "1704153600", None, date(2024, 1, 2)),
        ("1w", "2024-01-05", None, date(2024, 1, 1)),
        ("1w", "2024-01-01", None, date(2024, 1, 1)),
    ],
)
def test_dates_need_no_time_zone(timeframe: str, text: str, zone: str | None, day: date) -> None:
    """A week is that of its Monday; midnight is a date where it is stated, or where it is local."""
    found = parse(f"date,open,high,low,close\n{text},1,2,0.5,1.5\n", timeframe, zone=zone)
    assert found.bad == ()
    assert starts(found) == [datetime(day.year, day.month, day.day, tzinfo=UTC)]
    assert found.without == ("volume", "average", "bar_count")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2024-01-02T14:30:00Z,1,2,0.5", "has 4 values, the file 6 columns"),
        ("02.01.2024 14:30,1,2,0.5,1.5,1", "is no time that can be read"),
        ("2024-02-30T14:30:00Z,1,2,0.5,1.5,1", "is no time that can be read"),
        ("2024-01-02T14:30:00Z,x,2,0.5,1.5,1", "open is 'x', not a number"),
        ("2024-01-02T14:30:00Z,1,1_0,0.5,1.5,1", "high is '1_0', not a number"),
        ("2024-01-02T14:30:00Z,1,2,NaN,1.5,1", "low is missing"),
        ("2024-01-02T14:30:00Z,1,2,0.5,,1", "close is missing"),
        ("2024-01-02T14:30:00Z,1,inf,0.5,1.5,1", "high is infinite"),
        ("2024-01-02T14:30:00Z,1,0.4,0.5,1.5,1", "high 0.4 is below low 0.5"),
        ("2024-01-02T14:30:00Z,3,2,0.5,1.5,1", "open 3.0 is not between low 0.5 and high 2.0"),
        ("2024-01-02T14:30:00Z,1,2,0.5,1.5,-7", "volume is -7.0"),
        ("2024-01-02T14:30:07Z,1,2,0.5,1.5,1", "no 1m bar begins at 2024-01-02 14:30:07"),
        ("2024-01-02,1,2,0.5,1.5,1", "has a date without a time"),
        ("2024-08-02T14:30:00Z,1,2,0.5,1.5,1", "2024-08-02 14:30:00 is in the future"),
        ("2024-03-10 02:30,1,2,0.5,1.5,1", "does not exist in America/New_York"),
        ("2023-11-05 01:30,1,2,0.5,1.5,1", "is twice in America/New_York"),
    ],
)
def test_a_row_that_is_no_bar_is_named_by_its_line(line: str, said: str) -> None:
    """And left out; the others are kept."""
    good = "2024-01-02T15:00:00Z,1,2,0.5,1.5,1\n"
    text = f"date,open,high,low,close,volume\n\n{good}{line}\n"
    found = parse(text, zone=NEW_YORK)
    assert [(one.line, said in one.reason) for one in found.bad] == [(4, True)], found.bad
    assert (found.rows, found.bars.num_rows) == (2, 1)


def test_milliseconds_are_no_date_of_another_century() -> None:
    """1701011220000 looks like the date 1701-01-12, too."""
    row = "1701011220000,1,2,1,1"
    found = parse(f"ts,open,high,low,close\n{row}\n", calendar="FX", zone="UTC")
    assert starts(found) == [datetime(2023, 11, 26, 15, 7, tzinfo=UTC)]


@pytest.mark.parametrize(
    ("timeframe", "time", "said"),
    [
        ("1h", "2024-01-02T15:30:00Z", "no 1h bar ends at 2024-01-02 15:30:00"),
        ("4h", "2024-01-02T18:00:00Z", "no 4h bar ends at 2024-01-02 18:00:00"),
        ("1h", "2024-03-10 02:30", "does not exist in America/New_York"),
        ("1h", "0001-01-01T00:00:00Z", "is no time that can be read"),
        ("1d", "0024-01-02", "is no time that can be read"),
        ("1h", "9999-12-31 23:30", "is no time that can be read"),
    ],
)
def test_a_row_whose_bar_would_have_to_be_guessed_is_bad(
    timeframe: str, time: str, said: str
) -> None:
    """Its end is that of no bar, or its time stands for a missing one; the others are kept."""
    good = "2024-01-02" if timeframe == "1d" else "2024-01-02T17:00:00Z"
    text = f"date,open,high,low,close\n{good},1,2,0.5,1.5\n{time},1,2,0.5,1.5\n"
    found = parse(text, timeframe, zone=NEW_YORK, time_of=TimeOf.END)
    assert [(one.line, said in one.reason) for one in found.bad] == [(3, True)], found.bad
    assert found.bars.num_rows == 1


def test_an_end_in_the_last_second_of_a_minute_is_that_of_the_minute() -> None:
    """Some programs write 10:59:59 for the end of the bar from 10 to 11."""
    row = "2024-01-02T15:59:59Z,1,2,0.5,1.5"
    found = parse(f"date,open,high,low,close\n{row}\n", "1h", time_of=TimeOf.END)
    assert starts(found) == [datetime(2024, 1, 2, 15, tzinfo=UTC)]


def test_lines_within_quotation_marks_are_all_named() -> None:
    """None of them disappears in the row that a stray quotation mark makes of them."""
    row = "2024-01-0{},1,2,0.5,1.5,1\n"
    rows = "".join(row.format(day) for day in (3, 4))
    text = f'date,open,high,low,close,volume\n{row.format(2)}"{rows}{row.format(5)}'
    found = parse(text, "1d")
    assert (found.rows, len(found.bars), [one.line for one in found.bad]) == (4, 1, [3, 4, 5])
    assert "a quotation mark of line 3" in found.bad[0].reason


def test_rows_of_one_time_are_one_bar_only_if_they_are_the_same() -> None:
    """Of different ones none is taken, as none is known to be right; order does not matter."""
    row = "2024-01-02T{}:00Z,1,2,0.5,{},1\n"
    text = "".join(
        [
            "date,open,high,low,close,volume\n",
            row.format("15:00", 1.5),
            row.format("14:31", 1.5),
            row.format("15:00", 1.5),
            row.format("14:32", 1.5),
            row.format("14:32", 1.6),
        ]
    )
    found = parse(text)
    assert [one.minute for one in starts(found)] == [31, 0]
    assert (found.repeated, found.was_sorted) == (1, False)
    assert [one.line for one in found.bad] == [5, 6]
    assert "with different values, in lines 5, 6" in found.bad[0].reason


def test_prices_that_were_rounded_apart_are_kept_as_they_are() -> None:
    """Factors of splits leave an open that is above the high by the last digit of a float."""
    found = parse(
        "date,open,high,low,close\n2024-01-02,128.77,128.76999999999998,127.8,128\n", "1d"
    )
    assert found.bad == ()
    assert found.bars["open"].to_pylist() == [128.77]


def test_a_missing_value_stays_missing() -> None:
    """Empty, or -1, which is the gateway's word for it; other columns are told, not read."""
    text = "date,open,high,low,close,volume,wap,trades,Adj Close\n"
    text += (
        "2024-01-02T15:00:00Z,1,2,0.5,1.5,-1,,7,1.1\n2024-01-02T15:01:00Z,1,2,0.5,1.5,,1.2,-1,1\n"
    )
    found = parse(text)
    assert (found.bad, found.ignored) == ((), ("Adj Close",))
    assert found.bars.select(["volume", "average", "bar_count"]).to_pydict() == {
        "volume": [None, None],
        "average": [None, 1.2],
        "bar_count": [7, None],
    }


@pytest.mark.parametrize(
    ("text", "shape", "said"),
    [
        ("", {}, "it is empty"),
        ("2024-01-02,1,2,0.5,1.5,1\n", {}, "`header: time,open"),
        ("date,open,high,close\n", {}, "no column for low"),
        ("date,open,open,high,low,close\n", {}, "two columns are named 'open'"),
        ("a,open,high,low,close\n", {}, "no column for time"),
        (
            "date,open,high,low,close,vol\n",
            {"columns": {"volume": "Lots"}},
            "no column 'Lots', which the mapping file states as the volume",
        ),
        (
            "date,open,high,low,close\n2024-01-02 14:30,1,2,1,1\n",
            {},
            "line 2: .*no time zone.*--timezone",
        ),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_state(
    text: str, shape: dict[str, Any], said: str
) -> None:
    """Nothing is guessed."""
    with pytest.raises(UsageError, match=said):
        parse(text, **shape)


def test_other_shapes_can_be_stated() -> None:
    """Names of columns, no names at all, a decimal comma, and a format of times."""
    found = parse(
        "Moment;A;B;C;D\n02.01.2024 09:30;1,0;2,0;0,5;1,5\n",
        zone=NEW_YORK,
        decimal=",",
        date_format="%d.%m.%Y %H:%M",
        columns={"time": "Moment", "open": "A", "high": "B", "low": "C", "close": "D"},
    )
    assert (found.bad, starts(found), found.bars["close"].to_pylist()) == ((), [OPEN], [1.5])
    bare = parse(
        "20240102 093000;1;2;0.5;1.5;9\n",
        zone=NEW_YORK,
        header=(*("time", "open", "high", "low", "close", "volume"),),
    )
    assert (starts(bare), bare.bars["volume"].to_pylist(), bare.rows) == ([OPEN], [9.0], 1)


@pytest.mark.parametrize(
    ("timeframe", "calendar", "first", "end"),
    [
        ("1m", "XNYS.RTH", date(2023, 11, 20), date(2023, 11, 28)),
        ("1h", "XNYS.RTH", date(2023, 11, 20), date(2023, 11, 28)),
        ("4h", "XNYS.RTH", date(2023, 10, 30), date(2023, 11, 10)),
        ("30m", "XTKS.RTH", date(2024, 1, 4), date(2024, 1, 12)),
        ("1h", "FX", date(2023, 10, 30), date(2023, 11, 10)),
        ("1d", "XNYS.RTH", date(2023, 11, 20), date(2023, 12, 28)),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_times_may_state_the_end_of_a_bar(
    timeframe: str, calendar: str, first: date, end: date, zone: str
) -> None:
    """Also of those that a break or a close cuts short, on half days and as clocks change."""
    kind, sessions = Timeframe(timeframe), calendar_named(calendar)
    bars = random_bars(sessions, kind, first, end)
    keys = timestamps(bars).tolist()
    stops = [session.closes_at for session in sessions.sessions(first, end)]
    stops += [moment(int(pause)) for pause in sessions.breaks[:, 0]]
    lines = ["date,open,high,low,close"]
    prices = bars.select(["open", "high", "low", "close"]).to_pylist()
    for at, (key, row) in enumerate(zip(keys, prices, strict=True)):
        start = moment(key)
        stop = min(one for one in stops if one > start)
        if kind is Timeframe.D1:
            text = str(sessions.sessions(start.date(), end)[0].day)
        else:
            after = keys[at + 1] if at + 1 < len(keys) else key + kind.seconds * 1_000_000
            last = min(stop, moment(after), moment(key + kind.seconds * 1_000_000))
            text = last.isoformat()
        lines.append(",".join([text, *(repr(one) for one in row.values())]))
    found = parse("\n".join(lines), timeframe, calendar=calendar, zone=zone, time_of=TimeOf.END)
    assert found.bad == ()
    assert found.bars.select(["ts", "session_date", "close"]).equals(
        bars.select(["ts", "session_date", "close"])
    )


@given(st.text(alphabet='0123456789-:.,;TZ +\n\r"eabopenhighlwcsvumdt', max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Each row is a bar, a bad row or a repeated one; a file that is none is a clear error."""
    try:
        found = parse(f"date,open,high,low,close\n{text}", zone="UTC")
    except UsageError:
        return
    assert found.bars.num_rows + len(found.bad) + found.repeated == found.rows
    assert found.bars.schema == empty_bars().schema


def test_a_file_without_rows_has_no_bars() -> None:
    """It is no error."""
    found = parse("date,open,high,low,close,volume\n")
    assert (found.rows, found.bars.num_rows, found.bars.schema) == (
        0,
        0,
        pa.schema(empty_bars().schema),
    )
