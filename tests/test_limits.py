"""Every limit again, as literals from IB's pages, so that a wrong number cannot pass by sharing.

Source: https://interactivebrokers.github.io/tws-api/historical_limitations.html,
https://interactivebrokers.github.io/tws-api/historical_bars.html,
https://interactivebrokers.github.io/tws-api/message_codes.html,
https://ibkrcampus.com/campus/ibkr-api-page/twsapi-doc/.
"""

import pytest

from ktrdr_pipelines.limits import Backoff, CodeClass, IbLimitsRegistry, Limit

SCALARS = {
    "SMALL_BAR_MAX_S": 30,
    "SMALL_BAR_HISTORY_DAYS": 180,
    "FUTURES_HISTORY_DAYS": 730,
    "IDENTICAL_S": 15.0,
    "SAME_CONTRACT_MOST": 5,
    "SAME_CONTRACT_S": 2.0,
    "WINDOW_MOST": 60,
    "WINDOW_S": 600.0,
    "WINDOW_RESERVE": 6,
    "WINDOW_LENT": 4,
    "CLOCK_DRIFT": 0.001,
    "BID_ASK_WEIGHT": 2,
    "MAX_OPEN_HISTORICAL": 50,
    "MESSAGE_JITTER_S": 0.1,
    "MESSAGES_PER_S": 50,
    "MESSAGE_STRIKES": 3,
    "MARGIN": 0.05,
    "CONCURRENCY": 6,
    "CONCURRENCY_RANGE": (1, 45),
    "PACING_PAUSE_S": Backoff(60.0, 600.0),
    "BREAKER_PAUSE_S": Backoff(30.0, 600.0),
    "RETRY_PAUSE_S": Backoff(2.0, 60.0),
    "FARM_PROBE_PAUSE_S": Backoff(30.0, 300.0),
    "RERUN_PAUSE_S": Backoff(300.0, 21_600.0, factor=4.0),
    "MAX_CLIENTS": 32,
    "CLIENT_ID_ATTEMPTS": 3,
    "CLIENT_ID_PAUSE_S": 1.5,
    "CONNECT_PAUSE_S": Backoff(3.0, 60.0),
    "SERVER_VERSIONS": (157, 178),
    "FINAL_LAG_S": 1800,
    "BAR_LAG_S": 5,
    "HEAD_CACHE_S": 24 * 3600,
    "PROBE_CACHE_S": 30 * 24 * 3600,
    "WIDTH_CACHE_S": 24 * 3600,
    "LEARNED_WIDTH_S": 7 * 24 * 3600,
    "REFUSED_WIDTH_S": 30 * 24 * 3600,
    "CONFIRM_AFTER_S": 900.0,
    "STATEMENT_COUNTS_DAYS": 20,
    "VOIDED_WITHIN_S": 86_400,
    "EMPTY_RECENT_DAYS": 30,
    "EMPTY_OLD_DAYS": 365,
    "NO_MARKET_DATA_VALUE": -1,
    "UNSET_VALUES": (
        2147483647.0,
        9.223372036854775807e18,
        1.7014118346046923e38,
        1.7976931348623157e308,
    ),
}
TABLES = {
    "TRY_AGAIN_S": {
        "error": Backoff(5 * 60, 24 * 3600),
        "no_data": Backoff(24 * 3600, 30 * 24 * 3600),
        "probed": Backoff(24 * 3600, 30 * 24 * 3600),
        "contradicted": Backoff(24 * 3600, 30 * 24 * 3600),
        "sparse": Backoff(900, 24 * 3600),
        "blocked": Backoff(24 * 3600, 24 * 3600),
        "unknown": Backoff(3600, 7 * 24 * 3600),
        "basis": Backoff(900, 3600),
    },
    "BAR_SIZES": {
        "1m": "1 min",
        "5m": "5 mins",
        "15m": "15 mins",
        "30m": "30 mins",
        "1h": "1 hour",
        "4h": "4 hours",
        "1d": "1 day",
        "1w": "1 week",
    },
    "BAR_SIZE_STRINGS": {
        "1m": ("1 min", "1 mins"),
        "5m": ("5 mins", "5 min"),
        "15m": ("15 mins", "15 min"),
        "30m": ("30 mins", "30 min"),
        "1h": ("1 hour", "1 hours"),
        "4h": ("4 hours", "4 hour"),
        "1d": ("1 day", "1D"),
        "1w": ("1 week", "1W"),
    },
    "SAFE_DAYS": {
        "1m": 1,
        "5m": 7,
        "15m": 7,
        "30m": 30,
        "1h": 30,
        "4h": 30,
        "1d": 365,
        "1w": 365,
    },
    "CONTAINER_PORTS": {"container live": 4003, "container paper": 4004},
    "PORTS": {"gateway live": 4001, "gateway paper": 4002, "TWS live": 7496, "TWS paper": 7497},
    "CLIENT_ID_RANGES": {
        "api": (1, 10),
        "batch": (11, 50),
        "gap_filler": (101, 110),
        "data_manager": (111, 120),
        "cli": (201, 250),
        "tests": (251, 298),
    },
    "GAP_THRESHOLDS_S": {
        "1m": 300,
        "5m": 900,
        "15m": 2700,
        "30m": 5400,
        "1h": 10800,
        "4h": 43200,
        "1d": 86400,
        "1w": 604800,
    },
}
SAFE_STEPS = """
    60 S: 1 to 60
    120 S: 1 to 120
    1800 S: 1 to 1800
    3600 S: 5 to 3600
    14400 S: 10 to 10800
    28800 S: 30 to 28800
    1 D: 60 to 86400
    2 D: 120 to 86400
    1 W: 180 to 604800
    1 M: 1800 to 2592000
    1 Y: 86400 to 2592000
"""
WIDE_STEPS = """
    86400 S: 1 to 60
    365 D: 5 to 3600
    52 W: 10 to 14400
    12 M: 30 to 28800
    68 Y: 60 to 86400
"""
CODES = {
    100: "pacing",
    165: "connection",
    166: "rejected",
    200: "contract",
    321: "rejected",
    322: "retry",
    326: "connection",
    354: "entitlement",
    366: "cancelled",
    386: "rejected",
    502: "connection",
    504: "connection",
    507: "connection",
    1100: "pause",
    1101: "resume",
    1102: "resume",
    1300: "connection",
    2103: "pause",
    2104: "notice",
    2105: "pause",
    2110: "pause",
    2106: "notice",
    2107: "notice",
    2108: "notice",
    2157: "pause",
    2158: "notice",
    2174: "notice",
    2188: "notice",
    10090: "notice",
    10167: "notice",
    10089: "entitlement",
    10141: "entitlement",
    10168: "entitlement",
    10186: "entitlement",
    10187: "entitlement",
    10197: "entitlement",
    10314: "rejected",
}
HMDS = "Historical Market Data Service error message:"
TEXTS = [
    (162, f"{HMDS}HMDS query returned no data: AAPL@SMART Trades", "no_data"),
    (162, f"{HMDS}Historical data request pacing violation", "pacing"),
    (162, f"{HMDS}HMDS query timed out: AAPL@SMART Trades", "retry"),
    (162, "HMDS-Abfrage ergab keine Daten: AAPL@SMART Trades", "no_data"),
    (162, f"{HMDS}API historical data query cancelled: 7", "cancelled"),
    (162, f"{HMDS}No market data permissions for ISLAND STK. Requested feed", "entitlement"),
    (
        162,
        f"{HMDS}Trading TWS session is connected from a different IP address",
        "entitlement",
    ),
    (162, f"{HMDS}Time length exceed max.", "too_long"),
    (162, f"{HMDS}invalid step", "too_long"),
    (321, "Error validating request.-'bM' : cause - Time length exceed max.", "too_long"),
    (321, "Error validating request.-'bM' : cause - invalid step: 1", "too_long"),
    (321, "cause - Historical data requests for durations longer than 365 days", "too_long"),
    (321, "cause - Historical data request for durations longer than 52 weeks", "too_long"),
    (162, "Mensaje de error de los servicios de datos de mercado:INVALID STEP: 1", "too_long"),
    (162, "Historical data request for greater than 86400 seconds rejected.", "too_long"),
    (321, "cause - Historical data request for greater than 86400 seconds", "too_long"),
    (321, "Error validating request.-'bM' : cause - Bar size", "rejected"),
    (
        162,
        f"{HMDS}No historical market data for EUR/CASH@FXSUBPIP Last 300",
        "rejected",
    ),
    (162, f"{HMDS}an unknown error", "retry"),
    (162, "", "retry"),
    (165, "Historical Market Data Service query message:HMDS server disconnect", "connection"),
    (165, "... query message:HMDS server connection was successful.", "notice"),
    (322, "Only 50 simultaneous API historical data requests allowed.", "retry"),
    (322, "Duplicate ticker ID", "rejected"),
    (322, "", "retry"),
    (165, "Historical Market Data Service query message:HMDS server disconnect", "connection"),
    (321, "Error validating request.-'bM' : cause - Invalid duration", "rejected"),
]
UNKNOWN = [
    (2100, "notice"),
    (2137, "notice"),
    (2199, "notice"),
    (2099, "rejected"),
    (2200, "rejected"),
    (399, "rejected"),
    (10148, "rejected"),
    (-1, "rejected"),
]


def limit(name: str) -> Limit[object]:
    """Return a limit by its name."""
    found: Limit[object] = getattr(IbLimitsRegistry, name)
    return found


def steps(name: str) -> list[str]:
    """Return a table of durations in the form of the literals above."""
    return [
        f"{step.most} {step.unit}: {step.smallest_bar_s} to {step.largest_bar_s}"
        for step in getattr(IbLimitsRegistry, name).value
    ]


def test_pauses_grow_from_the_first_to_the_longest() -> None:
    """By the number of failures or by the last pause; jitter adds up to half."""
    backoff = Backoff(30.0, 600.0)
    assert [backoff.delay_s(failures) for failures in range(1, 8)] == [30, 60, 120, 240, 480] + [
        600
    ] * 2
    assert backoff.delay_s(10_000) == 600
    assert [backoff.delay_s(2, jitter) for jitter in (0.0, 0.5, 1.0)] == [60, 75, 90]
    assert [backoff.after_s(last_s) for last_s in (0.0, 30.0, 45.0, 400.0)] == [30, 60, 90, 600]
    assert [Backoff(5.0, 100.0, factor=4.0).delay_s(failures) for failures in (1, 2, 3, 4)] == [
        5,
        20,
        80,
        100,
    ]


def test_another_first_pause_is_never_shortened() -> None:
    """It may be longer than the longest one."""
    assert Backoff(2.0, 60.0).starting(1.5).delay_s(2) == 3
    assert [Backoff(2.0, 60.0).starting(90.0).delay_s(failures) for failures in (1, 2)] == [90, 90]


def lines(text: str) -> list[str]:
    """Return the lines of a literal."""
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("name", SCALARS)
def test_a_number_is_that_of_its_source(name: str) -> None:
    """Single values agree with the literal, in type too."""
    assert limit(name).value == SCALARS[name]
    assert type(limit(name).value) is type(SCALARS[name])


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_that_of_its_source(name: str) -> None:
    """Tables agree with the literals, entry by entry and in order."""
    assert list(limit(name).value.items()) == list(TABLES[name].items())


def test_the_safe_steps_are_the_conservative_table() -> None:
    """Each duration of the table has its smallest and its largest bar in seconds."""
    assert steps("SAFE_STEPS") == lines(SAFE_STEPS)


def test_the_wide_steps_are_the_current_table() -> None:
    """Each unit of the table has its most, its smallest and its largest bar in seconds."""
    assert steps("WIDE_STEPS") == lines(WIDE_STEPS)


@pytest.mark.parametrize("code", CODES)
def test_a_code_has_its_class_with_any_text(code: int) -> None:
    """A code that needs no text is classed without one, and every class is a known one."""
    assert IbLimitsRegistry.class_of(code, "") is CodeClass(CODES[code])
    assert IbLimitsRegistry.class_of(code, "any other text") is CodeClass(CODES[code])


def test_every_classed_code_is_tested() -> None:
    """A code that is added needs its literal here."""
    assert set(limit("CODES").value) == set(CODES)
    assert set(limit("CODE_TEXTS").value) == {162, 165, 321, 322}
    assert {str(kind) for kind in CodeClass} == {*CODES.values(), "no_data", "too_long"}


@pytest.mark.parametrize(("code", "text", "code_class"), TEXTS)
def test_the_text_decides_where_one_code_has_several_meanings(
    code: int, text: str, code_class: str
) -> None:
    """162, 165 and 322 are read by their text, whatever its case; unknown texts are retried."""
    assert IbLimitsRegistry.class_of(code, text) is CodeClass(code_class)
    assert IbLimitsRegistry.class_of(code, text.upper()) is CodeClass(code_class)


def test_every_text_that_decides_is_tested() -> None:
    """A hint that is added needs its line above."""
    hints = [hint for many in limit("CODE_TEXTS").value.values() for hint in many]
    for hint in hints:
        assert any(hint.part in text for _, text, _ in TEXTS), hint.part


@pytest.mark.parametrize("code", [420, 9999])
def test_a_pacing_violation_is_recognized_under_any_code(code: int) -> None:
    """The text of an unknown code decides."""
    text = "Invalid Real-time Query:Historical data request Pacing Violation"
    assert IbLimitsRegistry.class_of(code, text) is CodeClass("pacing")


@pytest.mark.parametrize(("code", "code_class"), UNKNOWN)
def test_an_unknown_code_is_a_refusal_unless_it_is_a_notice(code: int, code_class: str) -> None:
    """2100 to 2199 are notices; any other code ends the request that it names."""
    assert IbLimitsRegistry.class_of(code, "never seen") is CodeClass(code_class)


def test_client_id_ranges_do_not_overlap() -> None:
    """No id belongs to two operations, and none is 0."""
    ids = [
        number
        for first, last in limit("CLIENT_ID_RANGES").value.values()
        for number in range(first, last + 1)
    ]
    assert len(ids) == len(set(ids)) == 10 + 40 + 10 + 10 + 50 + 48
    assert min(ids) == 1


def test_every_limit_has_a_source_and_a_grade() -> None:
    """Each has a unit too, and is tested above."""
    limits = {n: v for n, v in vars(IbLimitsRegistry).items() if isinstance(v, Limit)}
    for name, one in limits.items():
        assert one.unit, name
        assert one.source, name
        assert one.grade in "OLRSCKP", name
        assert len(one.grade) == 1, name
    others = {"SAFE_STEPS", "WIDE_STEPS", "CODES", "CODE_TEXTS", "NO_DATA_FORM"}
    assert set(limits) == {*SCALARS, *TABLES, *others}


@pytest.mark.parametrize(
    ("text", "is_no_data"),
    [
        ("HMDS query returned no data: AAPL@SMART Trades", False),  # read by its English words
        ("la consulta no devolvi\u00f3 datos: EUR.USD@IDEALPRO Midpoint", True),
        ("nada: BRK B@SMART Bid_Ask.", True),
        ("sin datos para EUR/CASH@FXSUBPIP Last 300", False),
        ("violaci\u00f3n del ritmo", False),
        ("escriba a help@example.com", False),
    ],
)
def test_no_data_is_recognized_in_any_language(text: str, *, is_no_data: bool) -> None:
    """The text ends with symbol, exchange and what_to_show."""
    assert bool(limit("NO_DATA_FORM").value.search(text)) is is_no_data
