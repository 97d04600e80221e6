"""What is believed of real gateways and not certain, each with the request that shows it.

The beliefs and their grades are those of the project's facts about Interactive Brokers: L seen in
live captures, R reverse-engineered, C told by others, O documented where documents disagree, T
tried elsewhere, "?" unsettled. All dates but the newest minutes lie in the past, so that any
gateway can answer. Not here: judging (``ib.probe_facts``), asking (``ib.probe``).
"""

from ktrdr_pipelines.ib.probe_facts import (
    Fact,
    Trial,
    all_hours,
    all_missing,
    at_least,
    clock_or_trading,
    days_are,
    exactly,
    first_clocks,
    has_date,
    has_zone,
    is_code,
    is_epoch,
    is_wall,
    last_clock,
    learned,
    learned_days,
    learned_stamp,
)

_PAIR, _DAY, _HEAD = "EURUSD", "1 day", "head"

FACTS = (
    Fact(
        "1 D before the open",
        "?",
        "the previous session, or 162",
        Trial("20230706-12:00:00"),
        learned_days,
    ),
    Fact(
        "3 D to a Sunday are 3 sessions",
        "L",
        "20230705 to 20230707",
        Trial("20230709-16:00:00", "3 D"),
        days_are("20230705", "20230706", "20230707"),
    ),
    Fact(
        "1 D on a holiday",
        "L",
        "the session before: 20230703",
        Trial("20230704-16:00:00"),
        days_are("20230703"),
    ),
    Fact(
        "first hours of a session",
        "L",
        "09:30 and 10:00 in New York: 13:30, 14:00",
        Trial("20230705-20:00:00"),
        first_clocks("13:30", "14:00"),
    ),
    Fact(
        "an end inside a bar",
        "L",
        "a partial last bar, of 14:00",
        Trial("20230705-14:10:00", bar_size="30 mins"),
        last_clock("14:00"),
    ),
    Fact(
        "date of the week of Good Friday",
        "L",
        "its last session: 20230406",
        Trial("20230415-00:00:00", "3 W", "1 week"),
        has_date("20230406"),
    ),
    Fact("5 D of 1 day", "L", "5 bars", Trial("20230708-00:00:00", "5 D", _DAY), exactly(5)),
    Fact(
        "1 W of 1 min (wide table)",
        "O",
        "some 1,380 bars",
        Trial("20230708-00:00:00", "1 W", "1 min"),
        at_least(1300),
    ),
    Fact(
        "S durations across sessions",
        "?",
        "6 bars (clock) or 24 (trading)",
        Trial("20230706-14:00:00", "7200 S", "5 mins"),
        clock_or_trading,
    ),
    Fact("head in epoch form", "T", "seconds since 1970", Trial(kind=_HEAD), is_epoch),
    Fact("head in text form", "T", "date and time", Trial(kind=_HEAD, dates=1), is_wall),
    Fact(
        "reaching past the oldest bar",
        "C",
        "nothing, or what there is",
        Trial("19801222-00:00:00", "1 M", _DAY),
        learned,
    ),
    Fact(
        "bar size '1 mins'",
        "R",
        "refused by 321",
        Trial("20230705-20:00:00", bar_size="1 mins"),
        is_code(321),
    ),
    Fact(
        "bar size '1 sec'",
        "R",
        "refused by 321",
        Trial("20230705-20:00:00", "60 S", "1 sec"),
        is_code(321),
    ),
    Fact(
        "bar size '1 hours'",
        "R",
        "refused by 321",
        Trial("20230705-20:00:00", bar_size="1 hours"),
        is_code(321),
    ),
    Fact(
        "duration '23 H'",
        "L",
        "refused by 321",
        Trial("20230705-20:00:00", "23 H"),
        is_code(321),
    ),
    Fact(
        "an end that is no moment",
        "O",
        "refused by 10314",
        Trial("20230199-99:99:99"),
        is_code(10314),
    ),
    Fact(
        "an end without a zone",
        "O",
        "notice 2174 and bars",
        Trial("20230705 16:00:00"),
        is_code(2174),
    ),
    Fact(
        "ADJUSTED_LAST with an end",
        "O",
        "refused by 321",
        Trial("20230705-20:00:00", bar_size=_DAY, what_to_show="ADJUSTED_LAST"),
        is_code(321),
    ),
    Fact(
        "zone of a SCHEDULE",
        "L",
        "a field of its own",
        Trial("20230708-00:00:00", "5 D", _DAY, what_to_show="SCHEDULE"),
        has_zone,
    ),
    Fact(
        "volume of MIDPOINT",
        "L",
        "-1 in every bar",
        Trial("20230705-20:00:00", "2 D", symbol=_PAIR, what_to_show="MIDPOINT"),
        all_missing,
    ),
    Fact(
        "useRTH of currencies is of no effect",
        "R",
        "all 24 hours of the day",
        Trial("20230706-21:00:00", symbol=_PAIR, what_to_show="MIDPOINT"),
        all_hours,
    ),
    Fact(
        "TRADES of currencies",
        "L",
        "162, no historical market data",
        Trial("20230705-20:00:00", symbol=_PAIR),
        is_code(162, "no historical market data for"),
    ),
    Fact(
        "stamps of dates in text form",
        "O",
        "depends on a setting of the gateway",
        Trial("20230705-20:00:00", dates=1),
        learned_stamp,
    ),
    Fact(
        "the newest minutes",
        "O",
        "bars; 2188 where they lag",
        Trial("", "3600 S", "1 min"),
        learned,
    ),
)
"""Every belief that a gateway is asked about, each by one request."""
