"""Uncertain facts about Interactive Brokers, each checked by one request.

Grades are those of the project's facts: L seen in published captures, R reverse-engineered, C
reported by others, O documented where documents disagree, T tried elsewhere, "?" open. All dates
but the newest minutes lie in the past, so that any gateway can respond.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from ib_async.contract import Contract

from tests.live.conftest import Live, Seen

pytestmark = pytest.mark.live

APPLE = Contract(
    secType="STK", symbol="AAPL", exchange="SMART", primaryExchange="NASDAQ", currency="USD"
)
EURO = Contract(secType="CASH", symbol="EUR", exchange="IDEALPRO", currency="USD")

Judge = Callable[[Seen], bool | None]
"""Whether the response agrees with the fact; None where nothing is expected."""


@dataclass(frozen=True)
class Fact:
    """A fact, its grade, what is expected, the request, and how the response is judged."""

    name: str
    grade: str
    expected: str
    judge: Judge = field(repr=False)
    end: str = ""
    duration: str = "1 D"
    size: str = "1 hour"
    contract: Contract = APPLE
    what: str = "TRADES"
    dates: int = 2
    is_head: bool = False


def moments(seen: Seen) -> list[datetime]:
    """Return the timestamps of bars within a day."""
    return [datetime.fromtimestamp(int(text), UTC) for text in seen.timestamps]


def days_are(*expected: str) -> Judge:
    """Expect bars of these days alone."""
    return lambda seen: sorted({f"{one:%Y%m%d}" for one in moments(seen)}) == list(expected)


def first_clocks_are(*expected: str) -> Judge:
    """Expect the first bars at these times of the day (UTC)."""
    return lambda seen: [f"{one:%H:%M}" for one in moments(seen)[: len(expected)]] == list(expected)


def code_is(code: int, part: str = "") -> Judge:
    """Expect a code, with a part of its text."""
    return lambda seen: any(
        one == code and part.casefold() in text.casefold() for one, text in seen.codes
    )


def count_is(least: int, most: int | None = None) -> Judge:
    """Expect so many bars: between two numbers, or exactly one."""
    return lambda seen: least <= len(seen.rows) <= (least if most is None else most)


def no_expectation(_: Seen) -> None:
    """Expect nothing."""


FACTS = [
    Fact(
        "1 D before the open",
        "?",
        "the session before, or 162",
        no_expectation,
        "20230706-12:00:00",
    ),
    Fact(
        "3 D to a Sunday are 3 sessions",
        "L",
        "20230705 to 20230707",
        days_are("20230705", "20230706", "20230707"),
        "20230709-16:00:00",
        "3 D",
    ),
    Fact("1 D on a holiday", "L", "the session before", days_are("20230703"), "20230704-16:00:00"),
    Fact(
        "first hours of a session",
        "L",
        "09:30 and 10:00 in New York",
        first_clocks_are("13:30", "14:00"),
        "20230705-20:00:00",
    ),
    Fact(
        "an end inside a bar",
        "L",
        "a partial last bar, of 14:00",
        lambda seen: f"{moments(seen)[-1]:%H:%M}" == "14:00",
        "20230705-14:10:00",
        size="30 mins",
    ),
    Fact(
        "date of the week of Good Friday",
        "L",
        "its last session, 20230406",
        lambda seen: "20230406" in seen.timestamps,
        "20230415-00:00:00",
        "3 W",
        "1 week",
    ),
    Fact("5 D of 1 day", "L", "5 bars", count_is(5), "20230708-00:00:00", "5 D", "1 day"),
    Fact(
        "1 W of 1 min (wide table)",
        "O",
        "some 1,380 bars",
        count_is(1300, 2000),
        "20230708-00:00:00",
        "1 W",
        "1 min",
    ),
    Fact(
        "S durations across sessions",
        "L",
        "24 bars: seconds of trading",
        count_is(24),
        "20230706-14:00:00",
        "7200 S",
        "5 mins",
    ),
    Fact(
        "head in epoch form",
        "T",
        "seconds since 1970",
        lambda seen: len(seen.head) > 8 and seen.head.lstrip("-").isdigit(),
        is_head=True,
    ),
    Fact(
        "head in text form",
        "T",
        "date and time",
        lambda seen: ":" in seen.head,
        dates=1,
        is_head=True,
    ),
    Fact(
        "reaching past the oldest bar",
        "C",
        "nothing, or what there is",
        no_expectation,
        "19801222-00:00:00",
        "1 M",
        "1 day",
    ),
    Fact(
        "bar size '1 mins'", "R", "refused by 321", code_is(321), "20230705-20:00:00", size="1 mins"
    ),
    Fact(
        "bar size '1 sec'",
        "R",
        "refused by 321",
        code_is(321),
        "20230705-20:00:00",
        "60 S",
        "1 sec",
    ),
    Fact(
        "bar size '1 hours'",
        "R",
        "refused by 321",
        code_is(321),
        "20230705-20:00:00",
        size="1 hours",
    ),
    Fact("duration '23 H'", "L", "refused by 321", code_is(321), "20230705-20:00:00", "23 H"),
    Fact("an end that is no moment", "O", "refused by 10314", code_is(10314), "20230199-99:99:99"),
    Fact("an end without a zone", "O", "notice 2174 and bars", code_is(2174), "20230705 16:00:00"),
    Fact(
        "ADJUSTED_LAST with an end",
        "O",
        "refused by 321",
        code_is(321),
        "20230705-20:00:00",
        size="1 day",
        what="ADJUSTED_LAST",
    ),
    Fact(
        "zone of a SCHEDULE",
        "L",
        "a field of its own",
        lambda seen: "/" in seen.zone,
        "20230708-00:00:00",
        "5 D",
        "1 day",
        what="SCHEDULE",
    ),
    Fact(
        "volume of MIDPOINT",
        "L",
        "-1 in every bar",
        lambda seen: {float(row[5]) for row in seen.rows} == {-1.0},
        "20230705-20:00:00",
        "2 D",
        contract=EURO,
        what="MIDPOINT",
    ),
    Fact(
        "useRTH of currencies is of no effect",
        "R",
        "all hours of the day",
        count_is(20, 25),
        "20230706-21:00:00",
        contract=EURO,
        what="MIDPOINT",
    ),
    Fact(
        "TRADES of currencies",
        "L",
        "162, no historical market data",
        code_is(162, "no historical market data for"),
        "20230705-20:00:00",
        contract=EURO,
    ),
    Fact(
        "timestamps in text form",
        "O",
        "depends on a setting of the gateway",
        no_expectation,
        "20230705-20:00:00",
        dates=1,
    ),
    Fact(
        "the newest minutes",
        "O",
        "bars; 2188 where they lag",
        no_expectation,
        "",
        "3600 S",
        "1 min",
    ),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_a_fact(live: Live, fact: Fact) -> None:
    """Report what was returned, and fail where it is not what is expected."""
    seen = live.run(
        lambda client: client.seen(
            fact.contract,
            fact.size,
            fact.duration,
            end=fact.end,
            what=fact.what,
            dates=fact.dates,
            is_head=fact.is_head,
        )
    )
    agrees = fact.judge(seen)
    live.note(f"{fact.name} (grade {fact.grade})", fact.expected, seen)
    assert agrees is not False, f"expected {fact.expected}, saw {seen}"
