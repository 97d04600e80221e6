"""Invalid and unexpected responses."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.domain.bars import timestamps
from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    BadAnswerError,
    GatewayUnreachableError,
)
from ktrdr_pipelines.ib.protocol.bar_messages import History, bars_of
from ktrdr_pipelines.ib.source import GatewaySource
from ktrdr_pipelines.store.bars.filing import EVER
from tests.support.costs import LINEAR_IN_EIGHT, growth


def test_a_response_to_an_unknown_request_is_dropped(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Bars with an unknown request id change nothing."""

    def with_stray(client: Any, fields: list[str]) -> None:
        client.raw(replies.history(4711, replies.bar(replies.first, close=99.0)))
        replies.send_bars(client, fields)

    answer = harness(lambda source: source.bars(minute_request), bars=with_stray)
    assert answer.bars["close"].to_pylist() == [10.5, 10.5]


def test_a_second_response_is_dropped(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """The first complete response counts."""

    def twice(client: Any, fields: list[str]) -> None:
        replies.send_bars(client, fields)
        client.raw(replies.history(fields[1], replies.bar(replies.first, close=99.0)))

    async def ask(source: GatewaySource) -> Any:
        answer = await source.bars(minute_request)
        await source.health()
        return answer

    assert harness(ask, bars=twice).bars["close"].to_pylist() == [10.5, 10.5]


@pytest.mark.parametrize(
    ("case", "fields_after_id"),
    [
        ("fewer bars than said", ["", "", 2, *range(8)]),
        ("more bars than said", ["", "", 1, *range(16)]),
        ("a cut bar", ["", "", 1, 1_767_623_400, 10, 11]),
        ("no number of bars", ["", "", "", *range(8)]),
        ("a negative number of bars", ["", "", -1]),
        ("nothing but the id", []),
    ],
)
def test_a_response_of_another_shape_is_invalid(
    harness: Any, minute_request: BarRequest, replies: Any, case: str, *, fields_after_id: list[Any]
) -> None:
    """A response that does not hold the stated bars is an error, never a shorter response."""
    with pytest.raises(BadAnswerError):
        harness(
            lambda source: source.bars(minute_request),
            bars=lambda client, fields: client.send(17, fields[1], *fields_after_id),
        )


@pytest.mark.parametrize(
    "bars",
    [
        [(1_767_623_400, "nan", 11, 9, 10, 1, 1, 1)],
        [(1_767_623_400, 10, "1.7976931348623157E308", 9, 10, 1, 1, 1)],
        [(1_767_623_400, 10, 11, 9, 10, "nan", 1, 1)],
        [(1_767_623_400, 10, 11, 9, 10, 1, 1, 1.5)],
        [(1_767_623_401, 10, 11, 9, 10, 1, 1, 1)],
        [("20260105", 10, 11, 9, 10, 1, 1, 1)],
        [(0, 10, 11, 9, 10, 1, 1, 1)],
        [(1_767_623_400_000, 10, 11, 9, 10, 1, 1, 1)],
        [(1_767_623_400, 10, 11, 9, 10, 1, 1, 1), (1_767_623_400, 10, 11, 9, 10.5, 1, 1, 1)],
    ],
)
def test_a_response_without_a_valid_bar_is_an_error(response_of: Any, bars: Any) -> None:
    """Without a valid bar the response is an error, and covers nothing."""
    with pytest.raises(BadAnswerError, match="an invalid response") as caught:
        response_of(*bars)
    assert caught.value.retry


_GOOD = [(1_767_623_400 + 60 * n, 10, 11, 9, 10, 1, 1, 1) for n in range(6)]


@pytest.mark.parametrize(
    "row",
    [
        (4_102_444_740, 10, 11, 9, 10, 1, 1, 1),
        ("\u0661767623520", 10, 11, 9, 10, 1, 1, 1),
        (1_767_623_520, "1_0.5", 11, 9, 10, 1, 1, 1),
        (1_767_623_520, "1e999", 11, 9, 10, 1, 1, 1),
        (1_767_623_520, 10, 11, "", 10, 1, 1, 1),
        (1_767_623_520, 10, 11, 9, 10, "1_000", 1, 1),
        (1_767_623_520, 10, 11, 9, 10, 1, "+1", 1),
        (1_767_623_521, 10, 11, 9, 10, 1, 1, 1),
        ("1767623520.0", 10, 11, 9, 10, 1, 1, 1),
        (1_767_623_520_000, 10, 11, 9, 10, 1, 1, 1),
        (0, 10, 11, 9, 10, 1, 1, 1),
        (1_767_623_520, 10, 11, 9, "1.7976931348623157E308", 1, 1, 1),
        (1_767_623_520, 10, 11, 9, 10, 1, 1, "1.5"),
    ],
)
def test_an_invalid_row_is_reported_as_an_impossible_range(response_of: Any, row: Any) -> None:
    """The other rows are returned, with the interval in which the bar may lie."""
    rows = [*_GOOD[:2], row, *_GOOD[3:]]
    answer = response_of(*rows)
    assert answer.bars.num_rows == 5
    (gap,) = answer.impossible
    assert gap.start.timestamp() == 1_767_623_520
    assert gap.end.timestamp() == 1_767_623_580
    assert answer.implausible == ()


def impossible_ranges(answer: Any) -> list[tuple[float, float]]:
    """Return the impossible ranges in seconds after the first good bar; open ends are infinite."""
    first = _GOOD[0][0]
    ends = EVER.start, EVER.end

    def seconds(moment: datetime) -> float:
        if moment in ends:
            return -math.inf if moment == EVER.start else math.inf
        return moment.timestamp() - first

    return [(seconds(part.start), seconds(part.end)) for part in answer.impossible]


def at(minute: int, *, of: int | None = None) -> tuple[Any, ...]:
    """Return a good bar of a minute, with the values of another one if given."""
    close = 10 + (minute if of is None else of) / 100
    return (_GOOD[0][0] + 60 * minute, 10, 11, 9, close, 1, 1, 1)


def minutes_of(answer: Any) -> list[int]:
    """Return the minutes of the returned bars."""
    return [(int(key) // 1_000_000 - _GOOD[0][0]) // 60 for key in timestamps(answer.bars)]


def test_different_bars_of_one_timestamp_are_dropped(response_of: Any) -> None:
    """Neither is returned; the other bars are."""
    answer = response_of(*_GOOD, (_GOOD[2][0], 10, 11, 9, 10.5, 1, 1, 1), _GOOD[4])
    assert minutes_of(answer) == [0, 1, 3, 4, 5]
    assert impossible_ranges(answer) == [(120, 180), (360, math.inf)]


def test_a_repeated_timestamp_leaves_both_minutes_open(response_of: Any) -> None:
    """One of two rows with one timestamp belongs to another minute: neither is covered."""
    answer = response_of(at(0), at(1), at(2), at(2, of=3), at(4), at(5))
    assert minutes_of(answer) == [0, 1, 4, 5]
    assert impossible_ranges(answer) == [(120, 240)]


@pytest.mark.parametrize(
    ("rows", "left", "expected"),
    [
        ([at(0), at(1), at(-1000, of=2), *map(at, range(3, 8))], [0, 1, 3], [(120, 180)]),
        ([at(0), at(1), at(700, of=2), *map(at, range(3, 8))], [0, 1, 3], [(120, 180)]),
        ([at(700, of=0), *map(at, range(1, 8))], [1, 2, 3], [(-math.inf, 60)]),
        ([*map(at, range(7)), at(-1000, of=7)], [0, 1, 2], [(420, math.inf)]),
        ([at(0), at(1), at(6, of=2), *map(at, range(3, 8))], [0, 1, 3], [(120, 180), (360, 420)]),
    ],
)
def test_a_timestamp_out_of_order_is_dropped(
    response_of: Any, rows: Any, left: list[int], expected: Any
) -> None:
    """The row is dropped, and its position in the response is not covered."""
    answer = response_of(*rows)
    assert minutes_of(answer)[: len(left)] == left
    assert set(minutes_of(answer)) <= set(range(8))
    assert impossible_ranges(answer) == expected


def test_one_row_far_older_than_requested_is_dropped(
    response_of: Any, minute_request: BarRequest
) -> None:
    """The other bars are kept; everything before them stays open."""
    ends_at = datetime.fromtimestamp(_GOOD[0][0], UTC) + timedelta(hours=1)
    request = replace(minute_request, ends_at=ends_at)
    ancient = (_GOOD[0][0] - 400 * 86_400, *_GOOD[0][1:])
    answer = response_of(ancient, *_GOOD[1:], request=request)
    assert minutes_of(answer) == [1, 2, 3, 4, 5]
    assert impossible_ranges(answer) == [(-math.inf, 60)]


def test_only_older_bars_are_normal(response_of: Any, minute_request: BarRequest) -> None:
    """A contract without recent trades returns its last bars, however old."""
    ends_at = datetime.fromtimestamp(_GOOD[0][0], UTC) + timedelta(days=900)
    answer = response_of(*_GOOD, request=replace(minute_request, ends_at=ends_at))
    assert minutes_of(answer) == [0, 1, 2, 3, 4, 5]
    assert impossible_ranges(answer) == []


def test_a_timestamp_after_the_requested_end_covers_nothing_before_it(
    response_of: Any, minute_request: BarRequest
) -> None:
    """Bars that continue without a pause after the end are accepted."""
    ends_at = datetime.fromtimestamp(_GOOD[0][0], UTC) + timedelta(minutes=4)
    request = replace(minute_request, ends_at=ends_at)
    assert impossible_ranges(response_of(*_GOOD, request=request)) == []
    answer = response_of(at(0), at(1), at(2), at(90, of=3), request=request)
    assert impossible_ranges(answer) == [(180, 5400)]


def test_a_timestamp_a_day_after_the_requested_end_is_dropped(
    response_of: Any, minute_request: BarRequest
) -> None:
    """No bar begins so late, so the row is invalid."""
    ends_at = datetime.fromtimestamp(_GOOD[0][0], UTC) + timedelta(minutes=4)
    request = replace(minute_request, ends_at=ends_at)
    answer = response_of(at(0), at(1), at(2), at(2 * 1440, of=3), request=request)
    assert minutes_of(answer) == [0, 1, 2]
    assert impossible_ranges(answer) == [(180, math.inf)]


def test_newest_first_is_an_order_too(response_of: Any) -> None:
    """The range of an invalid row lies between its neighbours."""
    bad = (at(3)[0], "nan", *at(3)[2:])
    answer = response_of(at(5), at(4), bad, at(2), at(1), at(0))
    assert minutes_of(answer) == [0, 1, 2, 4, 5]
    assert impossible_ranges(answer) == [(180, 240)]


def test_unordered_rows_with_an_invalid_one_cover_nothing(response_of: Any) -> None:
    """In unordered rows an invalid one leaves everything open."""
    bad = (at(3)[0], "nan", *at(3)[2:])
    answer = response_of(at(5), at(1), bad, at(4), at(0), at(2))
    assert minutes_of(answer) == [0, 1, 2, 4, 5]
    assert impossible_ranges(answer) == [(-math.inf, math.inf)]


def test_one_good_row_of_many_is_returned(response_of: Any) -> None:
    """Only a response without any valid row is refused."""
    bad = [(at(minute)[0], "ten", *at(minute)[2:]) for minute in range(6)]
    answer = response_of(*bad[:3], at(3), *bad[4:])
    assert minutes_of(answer) == [3]
    assert impossible_ranges(answer) == [(-math.inf, 180), (240, math.inf)]
    with pytest.raises(BadAnswerError, match="none of 6 rows is a bar"):
        response_of(*bad)


def test_a_bad_value_among_thousands_is_found_fast(response_of: Any) -> None:
    """Reading a column is linear in its length."""

    def respond(count: int) -> None:
        rows = [(_GOOD[0][0] + 60 * n, *["12345"] * 4, "67890", 12345, 123) for n in range(count)]
        rows[-1] = (rows[-1][0], "12345x", *rows[-1][2:])
        assert response_of(*rows).bars.num_rows == count - 1

    assert growth(respond, 2_500, 20_000, rounds=2) < LINEAR_IN_EIGHT


def test_a_week_may_have_a_date_in_the_future(
    response_of: Any, aapl: Instrument, minute_request: BarRequest
) -> None:
    """On a Tuesday the current week may have the date of its Friday."""
    series = Series(aapl, Timeframe.W1)
    tuesday = datetime(2026, 1, 6, 20, tzinfo=UTC)
    request = replace(minute_request, series=series, ends_at=tuesday, duration="2 W")
    answer = response_of(("20260102", *_GOOD[0][1:]), ("20260109", *_GOOD[0][1:]), request=request)
    assert answer.bars.num_rows == 2
    assert not answer.impossible


@pytest.mark.parametrize("given", ["20260113", "2026010", "20260231", "\u0662\u0660260107", "x"])
def test_an_invalid_date_is_an_impossible_range(
    response_of: Any, aapl: Instrument, minute_request: BarRequest, given: str
) -> None:
    """An invalid date of a daily bar is an impossible range, too."""
    series = Series(aapl, Timeframe.D1)
    thursday = datetime(2026, 1, 8, 22, tzinfo=UTC)
    request = replace(minute_request, series=series, ends_at=thursday, duration="3 D")
    dates = "20260106", given, "20260108"
    answer = response_of(*((one, *_GOOD[0][1:]) for one in dates), request=request)
    (gap,) = answer.impossible
    assert gap.start == datetime(2026, 1, 7, tzinfo=UTC)
    assert gap.end == datetime(2026, 1, 8, tzinfo=UTC)


@pytest.mark.parametrize("sec_type", list(SecType))
def test_only_a_future_may_have_a_price_below_zero(aapl: Instrument, sec_type: SecType) -> None:
    """The price is kept for every type, and plausible for a future only."""
    instrument = replace(aapl, sec_type=sec_type)
    rows = [at(0), (at(1)[0], -3, -2, -5, -4, 1, -3.5, 1), (at(2)[0], 0, 0, 0, 0, 1, 0, 1)]
    history = History("", "", len(rows), [str(value) for row in rows for value in row])
    implausible = bars_of(history, Series(instrument, Timeframe.M1)).implausible
    stamps_of_both = tuple(at(minute)[0] * 1_000_000 for minute in (1, 2))
    assert implausible == (() if sec_type is SecType.FUT else stamps_of_both)


@pytest.mark.parametrize(
    ("row", "column", "kept"),
    [
        ((10, 9, 11, 10, 1, 1, 1), "high", 9.0),
        ((10, 11, 9, 0, 1, 1, 1), "close", 0.0),
        ((10, 11, -6, -5, 1, 1, 1), "close", -5.0),
        ((1e308, 1e308, 9, 10, 1, 1, 1), "open", 1e308),
        ((10, 11, 9, 12, 1, 1, 1), "close", 12.0),
        ((8, 11, 9, 10, 1, 1, 1), "open", 8.0),
        ((10, "1e12", 9, 10, 1, 1, 1), "high", 1e12),
        ((10, 11, 9, 10, -5, 1, 1), "volume", -5.0),
        ((10, 11, 9, 10, 1, 1, 3_000_000_000), "bar_count", None),
        ((10, 11, 9, 10, 1, 1, -7), "bar_count", None),
    ],
)
def test_an_implausible_bar_is_kept_and_reported(
    response_of: Any, *, row: Any, column: str, kept: Any
) -> None:
    """No value is changed, and a count that is too large refuses no response."""
    rows = [*_GOOD[:2], (_GOOD[2][0], *row), *_GOOD[3:]]
    answer = response_of(*rows)
    assert answer.bars.num_rows == 6
    assert answer.bars[column].to_pylist()[2] == kept
    assert answer.implausible == (_GOOD[2][0] * 1_000_000,)
    assert not answer.impossible


@pytest.mark.parametrize("column", ["volume", "average", "bar_count"])
def test_minus_one_is_not_available(response_of: Any, column: str) -> None:
    """-1 is null, and plausible."""
    row = [10, 11, 9, 10, 1, 1, 1]
    row[{"volume": 4, "average": 5, "bar_count": 6}[column]] = -1
    rows = [*_GOOD[:2], (_GOOD[2][0], *row), *_GOOD[3:]]
    answer = response_of(*rows)
    assert answer.bars[column].to_pylist()[2] is None
    assert answer.implausible == ()


def test_bars_of_a_smaller_size_are_an_error(
    response_of: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Minutes in response to a request for hours are refused."""
    request = replace(minute_request, series=Series(minute_request.series.instrument, Timeframe.H1))
    minutes = [replies.bar(1_767_623_400 + 60 * index) for index in range(5)]
    with pytest.raises(BadAnswerError, match="sooner than 1h after another"):
        response_of(*minutes, request=request)


@pytest.mark.parametrize(("index", "other"), [(2, "MSFT"), (8, "MXN")])
def test_another_contract_is_an_error(
    harness: Any, aapl: Instrument, replies: Any, *, index: int, other: str
) -> None:
    """Another symbol or currency is refused."""
    with pytest.raises(BadAnswerError, match=other):
        harness(
            lambda source: source.contract_id(aapl), contract=replies.details_with({index: other})
        )


def test_a_pinned_contract_is_identified_by_its_id(
    harness: Any, aapl: Instrument, replies: Any
) -> None:
    """With an id in the universe another id is refused, and the symbol ignored."""
    pinned = replace(aapl, contract_id=4711)
    with pytest.raises(BadAnswerError, match="265598"):
        harness(lambda source: source.contract_id(pinned), contract=replies.details_with({}))
    renamed = replace(aapl, contract_id=265598, ib_symbol="APPLE")
    assert harness(lambda source: source.contract_id(renamed)) == 265598


@pytest.mark.parametrize("given", ["1767571200", "2026-01-05", "20261301", "", "2026010"])
def test_a_daily_bar_needs_a_date(
    response_of: Any, aapl: Instrument, minute_request: BarRequest, replies: Any, *, given: str
) -> None:
    """Any text but yyyymmdd is invalid."""
    request = replace(minute_request, series=Series(aapl, Timeframe.D1))
    with pytest.raises(BadAnswerError):
        response_of(replies.bar(given), request=request)


def test_a_response_of_another_kind_is_an_error(harness: Any, minute_request: BarRequest) -> None:
    """A head timestamp is no response to a request for bars."""
    with pytest.raises(BadAnswerError, match="message 88"):
        harness(
            lambda source: source.bars(minute_request),
            bars=lambda client, fields: client.send(88, fields[1], 345479400),
        )


@pytest.mark.parametrize("text", ["yesterday", "19801212", "19801212 soon"])
def test_a_head_that_is_no_moment_is_an_error(harness: Any, aapl: Instrument, text: str) -> None:
    """A head timestamp with an unclear zone is refused."""
    with pytest.raises(BadAnswerError, match="head timestamp"):
        harness(
            lambda source: source.head(aapl),
            head=lambda client, fields: client.send(88, fields[1], text),
        )


@pytest.mark.parametrize("text", ["2147483647", "4102444800", "20991231-00:00:00"])
def test_a_head_in_the_future_is_an_error(harness: Any, aapl: Instrument, text: str) -> None:
    """It would excuse all missing bars before it."""
    with pytest.raises(BadAnswerError, match="oldest data in the future"):
        harness(
            lambda source: source.head(aapl),
            head=lambda client, fields: client.send(88, fields[1], text),
        )


def test_an_invalid_contract_id_is_an_error(harness: Any, aapl: Instrument, replies: Any) -> None:
    """Contract details without a positive id are refused."""
    with pytest.raises(BadAnswerError, match="contract id 0"):
        harness(lambda source: source.contract_id(aapl), contract=replies.details_with({12: "0"}))


@pytest.mark.parametrize("epoch", [0, -5, 1_767_623_400_000, 10**30])
def test_an_impossible_time_ends_the_connection(harness: Any, epoch: int) -> None:
    """Milliseconds or an invalid time end the connection."""
    with pytest.raises(GatewayUnreachableError, match="does not speak"):
        harness(lambda source: source.health(), time=lambda client, _: client.send(49, 1, epoch))


def test_unexpected_frames_are_ignored(
    harness: Any, minute_request: BarRequest, replies: Any
) -> None:
    """Orders, accounts and unknown messages change nothing."""

    def chatty(client: Any, fields: list[str]) -> None:
        client.send(5, 1, "an open order that was not requested")
        client.send(6, 2, "NetLiquidation", "1000", "USD", "DU" + "1234567")
        client.send(999, "a message of a later version")
        replies.send_bars(client, fields)

    assert harness(lambda source: source.bars(minute_request), bars=chatty).bars.num_rows == 2
