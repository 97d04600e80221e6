"""Which bars are implausible, and what two responses to one request have in common."""

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ktrdr_pipelines.domain.bars import BAR_SCHEMA, micros, timestamps
from ktrdr_pipelines.domain.instruments import SecType, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.domain.plausibility import (
    Disagreement,
    DisagreementKind,
    Finding,
    FindingKind,
    explained,
    findings_of,
    implausible_rows,
    reconciled,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from tests.support.fake_gateway import stock

OPEN = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)

MINUTE = timedelta(minutes=1)

REQUEST = BarRequest(Series(stock(), Timeframe.M1), None, "1 D")

GOOD = {
    "open": 10.0,
    "high": 11.0,
    "low": 9.0,
    "close": 10.0,
    "volume": 5.0,
    "average": 10.0,
    "bar_count": 3,
}


def key(minute: int) -> int:
    """Return the timestamp of a minute."""
    return micros(OPEN + minute * MINUTE)


def table(bars: dict[int, dict[str, Any]]) -> pa.Table:
    """Return bars of minutes, with good values except for the given ones."""
    rows = [
        {"ts": OPEN + minute * MINUTE, "session_date": OPEN.date(), **GOOD, **other}
        for minute, other in bars.items()
    ]
    return pa.Table.from_pylist(rows, schema=BAR_SCHEMA)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, None),
        ({"volume": None, "average": None, "bar_count": None}, None),
        ({"volume": 0.0, "bar_count": 0}, None),
        ({"open": 9.0, "close": 11.0}, None),
        ({"high": 999_999_999_999.0}, None),
        ({"high": 1e12}, FindingKind.PRICE_SIZE),
        ({"open": 1e308, "high": 1e308}, FindingKind.PRICE_SIZE),
        ({"close": float("nan")}, FindingKind.PRICE_SIZE),
        ({"close": None}, FindingKind.PRICE_SIZE),
        ({"close": 0.0}, FindingKind.PRICE_SIGN),
        ({"close": -5.0, "low": -6.0}, FindingKind.PRICE_SIGN),
        ({"high": 8.0}, FindingKind.PRICE_RANGE),
        ({"open": 12.0}, FindingKind.PRICE_RANGE),
        ({"open": 8.0}, FindingKind.PRICE_RANGE),
        ({"close": 12.0}, FindingKind.PRICE_RANGE),
        ({"close": 8.0}, FindingKind.PRICE_RANGE),
        ({"volume": -5.0}, FindingKind.VOLUME),
        ({"volume": 1e308}, FindingKind.VOLUME),
        ({"volume": float("nan")}, FindingKind.VOLUME),
        ({"volume": 9e17}, None),
        ({"average": 1e308}, FindingKind.PRICE_SIZE),
        ({"average": -1e308}, FindingKind.PRICE_SIZE),
        ({"average": float("inf")}, FindingKind.PRICE_SIZE),
        ({"average": 0.0}, None),
        ({"bar_count": -7}, FindingKind.BAR_COUNT),
    ],
)
def test_implausible_values_have_a_kind(values: dict[str, Any], kind: FindingKind | None) -> None:
    """Values that are not available are plausible."""
    bars = table({0: {}, 1: values})
    assert implausible_rows(bars, SecType.STK).tolist() == [False, kind is not None]
    if kind is not None:
        assert [one.kind for one in findings_of(bars, [key(1)], SecType.STK)] == [kind]


@pytest.mark.parametrize("sec_type", [*SecType, None])
def test_the_kind_of_instrument_decides_whether_a_price_may_be_negative(
    sec_type: SecType | None,
) -> None:
    """Crude oil was at minus 37 dollars in April 2020."""
    oil = {"open": -37.5, "high": -36.0, "low": -40.0, "close": -37.0}
    may_be = sec_type in {SecType.FUT, None}
    assert implausible_rows(table({0: oil}), sec_type).tolist() == [not may_be]


def test_a_count_that_could_not_be_stored_is_a_finding() -> None:
    """The stored values are plausible then."""
    bars = table({0: {"bar_count": None}})
    (found,) = findings_of(bars, [key(0)], SecType.STK)
    assert found.kind is FindingKind.BAR_COUNT
    damaged, known = explained(bars, SecType.STK, [found])
    assert (damaged.tolist(), known) == ([False], [found])


def test_a_finding_explains_its_values_only() -> None:
    """Another value, or another bar, is damage; a finding without its bar is left out."""
    bars = table({0: {"close": -5.0}, 1: {"close": -5.0}, 2: {}})
    known = findings_of(bars, [key(0)], SecType.STK)
    damaged, found = explained(bars, SecType.STK, [*known, Finding(key(9), *known[0][1:])])
    assert (damaged.tolist(), found) == ([False, True, False], known)
    damaged, found = explained(table({0: {"close": -6.0}}), SecType.STK, known)
    assert (damaged.tolist(), found) == ([True], [])
    assert explained(table({0: {}}), SecType.STK, known)[1] == []


def response(bars: dict[int, dict[str, Any]], *positions: tuple[int, int]) -> Response:
    """Return a response with impossible intervals, given as minutes."""
    made = table(bars)
    return Response(
        REQUEST,
        made,
        None,
        impossible=IntervalSet(
            Interval(OPEN + start * MINUTE, OPEN + end * MINUTE) for start, end in positions
        ),
        implausible=tuple(timestamps(made)[implausible_rows(made, SecType.STK)].tolist()),
    )


def reconciled_minutes(
    first: Response, second: Response | None
) -> tuple[list[int], list[int], list[int]]:
    """Return the minutes that both have bars of, that are implausible, and that are impossible."""
    both = reconciled(first, second, MINUTE)
    assert both is not None
    inside = [n for n in range(10) if OPEN + n * MINUTE in both.impossible]
    minutes = (timestamps(both.bars) - key(0)) // 60_000_000
    return minutes.tolist(), [(one - key(0)) // 60_000_000 for one in both.implausible], inside


ODD, OTHER = {"close": -5.0}, {"close": -6.0}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # A clean second response is used alone.
        (response({0: {}, 2: {}}, (1, 2)), response({0: {}, 1: {}, 2: {}}), ([0, 1, 2], [], [])),
        (response({0: {}, 1: ODD}), response({0: {}, 1: {}}), ([0, 1], [], [])),
        # What was returned twice with the same values is kept.
        (response({0: {}, 1: ODD}), response({0: {}, 1: ODD}), ([0, 1], [1], [])),
        # What is implausible and differs is neither kept nor covered.
        (response({0: {}, 1: ODD}), response({0: {}, 1: OTHER}), ([0], [], [1])),
        (response({0: {}, 1: {}, 2: ODD}), response({0: {}, 1: ODD, 2: {}}), ([0, 2], [], [1])),
        # An implausible bar that was not returned again leaves its interval uncovered.
        (response({0: {}, 1: ODD, 2: {}}), response({0: {}, 2: {}}), ([0, 2], [], [1])),
        # An impossible row shows that there is a bar: without one its interval is uncovered.
        (response({0: {}, 2: {}}, (1, 2)), response({0: {}, 2: {}}), ([0, 2], [], [1])),
        (response({0: {}, 2: {}}, (1, 2)), response({0: {}, 2: {}}, (1, 2)), ([0, 2], [], [1])),
        (response({0: {}, 1: {}}), response({0: {}, 2: {}}, (1, 2)), ([0, 2], [], [1])),
        # Without bars in the second, the first counts except for implausible bars.
        (response({0: {}, 1: ODD, 4: {}}, (2, 4)), None, ([0, 4], [], [1, 2, 3])),
    ],
)
def test_two_responses_are_reconciled(
    first: Response, second: Response | None, expected: tuple[list[int], list[int], list[int]]
) -> None:
    """Each rule by an example: bars, implausible bars and uncovered intervals."""
    assert reconciled_minutes(first, second) == expected


def test_without_a_bar_left_there_is_no_response() -> None:
    """A bar returned once, or each time with other values, does not count."""
    assert reconciled(response({0: ODD}), None, MINUTE) is None
    assert reconciled(response({0: ODD}), response({0: OTHER}), MINUTE) is None


def test_values_of_the_second_response_count() -> None:
    """Plausible bars that differ are revisions."""
    both = reconciled(
        response({0: {}, 2: {}}, (1, 2)), response({0: {"close": 10.5}, 1: {}}), MINUTE
    )
    assert both is not None
    assert np.array_equal(both.bars["close"].to_numpy(), [10.5, 10.0])


FIRST = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "ratio", "said", "command"),
    [
        (DisagreementKind.PRICE, 0.5, "0.5 times", "`ktrdr load AAPL 1m --refresh`"),
        (
            DisagreementKind.UNIT,
            100.0,
            "another unit",
            "`ktrdr adjust AAPL --ratio 100 --from 2024-06-03 --note TEXT`",
        ),
        (DisagreementKind.VOLUME, 0.01, "lots of 100", "`ktrdr load AAPL 1m --refresh`"),
    ],
)
def test_the_text_of_a_disagreement_names_bars_and_command(
    kind: DisagreementKind, ratio: float, said: str, command: str
) -> None:
    """It has the times, the ratio and what a user can do."""
    text = Disagreement(FIRST, FIRST + 5 * MINUTE, 6, ratio, kind).text_for("AAPL 1m")
    assert "2024-06-03 13:30Z" in text
    assert said in text
    assert command in text
