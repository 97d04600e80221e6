"""The output of loads, without a gateway: progress bars, notes, gaps and their reasons."""

import asyncio
import io
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from ktrdr_pipelines.cli.entry_point import Stopped, run_stoppable, stoppable
from ktrdr_pipelines.cli.load_report import MOST_GAPS, exit_code_of, joined_gaps, print_report
from ktrdr_pipelines.cli.progress import (
    MOST_SHOWN,
    CollectedMessages,
    LoadTally,
    TerminalProgress,
    load_progress,
)
from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.reports import SeriesReport
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ContractUnknownError,
    CorruptFileError,
    DiskError,
    EntitlementError,
    GatewayTimeoutError,
    StoreError,
)

SESSIONS = calendar_named("XNYS.RTH")


def series(timeframe: Timeframe = Timeframe.D1, symbol: str = "AAPL") -> Series:
    """Return a series of regular hours."""
    return Series(
        Instrument(
            symbol=symbol,
            ib_symbol=symbol,
            sec_type=SecType.STK,
            exchange="SMART",
            currency="USD",
            what_to_show=WhatToShow.TRADES,
            use_rth=True,
            calendar="XNYS.RTH",
            timeframes=(timeframe,),
            start=date(2020, 1, 1),
        ),
        timeframe,
    )


def days(first: str, end: str) -> Interval:
    """Return an interval of timestamps of whole days."""
    return Interval(*(datetime.fromisoformat(day).replace(tzinfo=UTC) for day in (first, end)))


def missing(*intervals: Interval, timeframe: Timeframe = Timeframe.D1) -> IntervalSet:
    """Return all timestamps that are expected in some intervals."""
    grid = session_grid(calendar_named("XNYS.RTH"), timeframe)
    spans = IntervalSet(span.interval for one in intervals for span in grid.spans_in(one))
    return spans & IntervalSet(intervals)


def test_gaps_are_joined_over_nights_and_weekends() -> None:
    """Consecutive missing sessions are one gap; a session between them makes it two."""
    hours = series(Timeframe.H1)
    week = missing(days("2024-01-02", "2024-01-13"), timeframe=Timeframe.H1)
    assert len(week) == 9
    assert len(joined_gaps(hours, week, SESSIONS)) == 1
    without_friday = week - IntervalSet([days("2024-01-05", "2024-01-06")])
    assert len(joined_gaps(hours, without_friday, SESSIONS)) == 2
    assert joined_gaps(hours, IntervalSet(), SESSIONS) == []


def test_failures_take_precedence_over_gaps() -> None:
    """Exit codes: 0 complete, 3 with a gap, 1 where a series or the catalog failed."""
    whole, gap = SeriesReport(series()), missing(days("2024-01-02", "2024-01-03"))
    torn = SeriesReport(series(), unexplained=gap)
    broken = SeriesReport(series(), error=CorruptFileError("a file"))
    assert exit_code_of([whole]) == 0
    assert exit_code_of([whole, torn]) == 3
    assert exit_code_of([whole, torn, broken]) == 1
    assert exit_code_of([whole], DiskError("the catalog")) == 1


def test_ten_gaps_are_listed_and_the_rest_counted(capsys: Any) -> None:
    """Every other day is missing: ten intervals, the number of the others, and each reason once."""
    sessions = calendar_named("XNYS.RTH").sessions(date(2024, 1, 1), date(2024, 2, 1))
    gaps = [days(str(one.day), str(one.day + timedelta(days=1))) for one in sessions[::2]]
    refused = EntitlementError("bars of AAPL", reason="354 not subscribed", code=354)
    report = SeriesReport(
        series(), unexplained=IntervalSet(gaps), failures=(refused, refused, refused)
    )
    print_report([report], CollectedMessages(), calendars=Calendars(), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert f"{len(gaps)} intervals unexplained:" in lines
    assert len([line for line in lines if line.startswith("  AAPL 1d  2024-01-")]) == MOST_GAPS
    assert f"  and {len(gaps) - MOST_GAPS} more; --json lists all" in lines
    assert "  AAPL 1d: bars of AAPL: 354 not subscribed (3 times)" in lines


def printed(capsys: Any, report: SeriesReport) -> str:
    """Return what a load of one series prints."""
    print_report([report], CollectedMessages(), calendars=Calendars(), as_json=False)
    return " ".join(capsys.readouterr().out.split())


def document(capsys: Any, report: SeriesReport) -> Any:
    """Return the JSON document of a load of one series."""
    print_report([report], CollectedMessages(), calendars=Calendars(), as_json=True)
    return json.loads(capsys.readouterr().out)


def test_a_gap_over_several_sessions_is_one_interval(capsys: Any) -> None:
    """Its dates are inclusive; the lines after it have the reason, and that saved bars are kept."""
    gap = missing(days("2024-01-02", "2024-01-06"))
    silent = GatewayTimeoutError("bars of AAPL", reason="no answer in 2 s")
    text = printed(capsys, SeriesReport(series(), unexplained=gap, failures=(silent,)))
    assert "1 interval unexplained: AAPL 1d 2024-01-02 to 2024-01-05" in text
    assert "AAPL 1d: bars of AAPL: no answer in 2 s" in text
    assert "What was saved is kept; the same command requests the rest." in text


def test_a_gap_without_a_failure_has_a_reason_too(capsys: Any) -> None:
    """If no request failed and nothing is unconfirmed, no response has covered it."""
    gap = missing(days("2024-01-02", "2024-01-03"))
    text = printed(capsys, SeriesReport(series(), unexplained=gap))
    assert "AAPL 1d incomplete" in text
    assert "no response has covered it yet" in text


def test_an_instrument_without_data_is_reported_as_no_data(capsys: Any) -> None:
    """The reason is that of ktrdr gaps, with the time of the next attempt."""
    gap = missing(days("2024-01-02", "2024-01-03"))
    at = datetime(2024, 1, 10, 15, 7, tzinfo=UTC)
    text = printed(capsys, SeriesReport(series(), unexplained=gap, no_data_until=at))
    assert "AAPL 1d: no_data, the gateway has no data of it at all" in text
    assert "next attempt at 2024-01-10T15:07:00Z" in text
    assert "no response has covered it yet" not in text


def test_unconfirmed_ranges_have_a_time(capsys: Any) -> None:
    """The line has their number, the time and what confirms them; the exit code is 3."""
    gap = missing(days("2024-01-02", "2024-01-04"), days("2024-01-08", "2024-01-09"))
    at = datetime(2024, 1, 10, 15, 7, tzinfo=UTC)
    report = SeriesReport(series(), unexplained=gap, unconfirmed=gap, confirmed_at=at)
    assert exit_code_of([report]) == 3
    text = printed(capsys, report)
    assert "AAPL 1d unconfirmed" in text
    assert (
        "2 unconfirmed ranges, returned without bars, to be confirmed at "
        "2024-01-10T15:07:00Z by `ktrdr update`, a sensor or the same command" in text
    )
    assert "no response has covered it yet" not in text
    found = document(capsys, report)
    assert (found["exit_code"], found["complete"]) == (3, False)
    assert found["series"][0]["confirmed_at"] == "2024-01-10T15:07:00Z"
    assert "2 returned without bars can be confirmed at 2024-01-10 15:07Z" in report.summary


def test_ranges_beside_unconfirmed_ones_have_a_reason_too(capsys: Any) -> None:
    """A load that lacks more than unconfirmed ranges is incomplete."""
    gap = missing(days("2024-01-02", "2024-01-03"), days("2024-01-08", "2024-01-09"))
    first = missing(days("2024-01-02", "2024-01-03"))
    at = datetime(2024, 1, 10, 15, 7, tzinfo=UTC)
    report = SeriesReport(series(), unexplained=gap, unconfirmed=first, confirmed_at=at)
    text = printed(capsys, report)
    assert "AAPL 1d incomplete" in text
    assert "1 unconfirmed range, returned without bars" in text
    assert "no response has covered it yet" in text


def test_sparse_sessions_are_reported(capsys: Any) -> None:
    """They are in the text and in the document; the exit code is 3."""
    report = SeriesReport(series(), sparse=missing(days("2024-01-02", "2024-01-03")))
    assert exit_code_of([report]) == 3
    text = printed(capsys, report)
    assert "AAPL 1d sparse" in text
    assert "1 sparse session, with far fewer bars than the neighboring sessions" in text
    assert "suspect" not in text
    assert document(capsys, report)["series"][0]["sparse"] == [
        {"start": "2024-01-02T00:00:00Z", "end": "2024-01-03T00:00:00Z"}
    ]


def test_bars_at_other_prices_are_reported(capsys: Any) -> None:
    """The text has the ratio, the range and the command; the exit code is 3."""
    found = Disagreement(
        datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC), 2, 0.25
    )
    report = SeriesReport(series(), disagreements=(found,))
    assert exit_code_of([report]) == 3
    text = printed(capsys, report)
    assert "AAPL 1d other prices" in text
    assert "were returned again at 0.25 times their price" in text
    assert "ktrdr load AAPL 1d --refresh" in text
    assert document(capsys, report)["series"][0]["disagreements"] == [
        {
            "first": "2024-01-02T00:00:00Z",
            "last": "2024-01-03T00:00:00Z",
            "bars": 2,
            "ratio": 0.25,
        }
    ]


def test_volumes_in_another_unit_are_reported(capsys: Any) -> None:
    """The text has the bars, the unit and the command; the load is complete."""
    first, last = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC)
    found = Disagreement(first, last, 2, 0.01, DisagreementKind.VOLUME)
    report = SeriesReport(series(), volume_jumps=(found,))
    assert exit_code_of([report]) == 0
    text = printed(capsys, report)
    assert "AAPL 1d complete" in text
    assert "in lots of 100, the others in shares" in text
    assert "ktrdr load AAPL 1d --refresh" in text
    [one] = document(capsys, report)["series"][0]["volume_jumps"]
    assert (one["first"], one["bars"], one["ratio"]) == ("2024-01-02T00:00:00Z", 2, 0.01)


def test_bars_on_an_unconfirmed_basis_are_reported(capsys: Any) -> None:
    """With their number and the time of the next request; nothing else is said of their gap."""
    gap = missing(days("2024-01-02", "2024-01-03"))
    at = datetime(2024, 1, 10, 15, 7, tzinfo=UTC)
    report = SeriesReport(
        series(), unexplained=gap, unconfirmed_bars=3, unconfirmed_basis=gap, basis_due_at=at
    )
    assert exit_code_of([report]) == 3
    assert "3 bars on an unconfirmed price basis" in report.summary
    text = printed(capsys, report)
    assert "AAPL 1d unconfirmed basis" in text
    assert "AAPL 1d: 3 bars on an unconfirmed price basis" in text
    assert "requests them again at 2024-01-10T15:07:00Z" in text
    assert "no response has covered it yet" not in text
    more = gap | missing(days("2024-01-04", "2024-01-05"))
    text = printed(capsys, replace(report, unexplained=more))
    assert "AAPL 1d incomplete" in text
    assert "no response has covered it yet" in text
    text = printed(capsys, replace(report, deferred=gap, next_try_at=at))
    assert "after failed attempts" not in text


def test_a_rebasing_is_reported_once_for_all_series(capsys: Any) -> None:
    """Two loads of one series report it once, too; it makes nothing incomplete."""
    found = Adjustment(
        number=1,
        ratio=0.25,
        volume_ratio=4.0,
        kind=AdjustmentKind.SPLIT,
        effective=date(2024, 1, 10),
        is_estimated=True,
        found_at=datetime(2024, 1, 10, 15, tzinfo=UTC),
        old_until=datetime(2024, 1, 9, 15, tzinfo=UTC),
        evidence="5 bars of AAPL 1d",
    )
    daily, hourly = (
        SeriesReport(series(one), adjustments=(found,)) for one in (Timeframe.D1, Timeframe.H1)
    )
    assert daily.then(daily).adjustments == (found,)
    assert exit_code_of([daily, hourly]) == 0
    print_report([daily, hourly], CollectedMessages(), calendars=Calendars(), as_json=False)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "re-based" in line)
    assert "split 1, effective about 2024-01-10: prices times 0.25, volumes times 4" in line
    assert "ktrdr load AAPL 1d,1h --refresh" in line
    assert document(capsys, daily)["series"][0]["adjustments"][0] == {
        "number": 1,
        "kind": "split",
        "ratio": 0.25,
        "volume_ratio": 4.0,
        "effective": "2024-01-10",
        "estimated": True,
        "found_at": "2024-01-10T15:00:00Z",
        "old_until": "2024-01-09T15:00:00Z",
        "evidence": "5 bars of AAPL 1d",
        "note": "",
        "removed_at": None,
    }


def test_prices_in_another_unit_are_reported(capsys: Any) -> None:
    """Apart from other prices in the document; the text has the command that decides."""
    first, last = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 3, tzinfo=UTC)
    unit = Disagreement(first, last, 5, 0.01, DisagreementKind.UNIT)
    report = SeriesReport(series(), disagreements=(unit,))
    assert exit_code_of([report]) == 3
    text = printed(capsys, report)
    assert "AAPL 1d other unit" in text
    assert "ktrdr adjust AAPL --ratio 0.01 --from 2024-01-02 --note TEXT" in text
    found = document(capsys, report)["series"][0]
    assert (found["disagreements"], len(found["unit_changes"])) == ([], 1)


def test_a_failure_to_rebuild_the_catalog_is_reported(capsys: Any) -> None:
    """The bars are saved, and cannot be queried from the tables yet."""
    print_report(
        [SeriesReport(series())],
        CollectedMessages(),
        DiskError("the catalog", reason="full"),
        calendars=Calendars(),
        as_json=False,
    )
    assert "The bars are saved; the catalog is not up to date" in capsys.readouterr().err


def test_progress_counts_requests_and_rows() -> None:
    """A plan adds requests to the bar of a series, and a response advances it."""
    with Progress(console=Console(file=io.StringIO())) as shown:
        progress = TerminalProgress(shown)
        progress.planned(series(), 3)
        progress.answered(series(), 1000)
        progress.planned(series(), 1)
        progress.saved(series())
        (task,) = shown.tasks
        assert (task.description, task.completed, task.total) == ("AAPL 1d", 1, 4)
        assert task.fields["rows"] == "1,000"


def test_a_load_has_a_total_with_an_estimate_of_the_time_that_is_left() -> None:
    """Series that have not begun count with what is expected of them, others with their plan."""
    now_s = [100.0]
    first, second, third = (series(symbol=f"S{number}") for number in range(3))
    tally = LoadTally({first: 10, second: 10, third: 10}, clock=lambda: now_s[0])
    assert (tally.total, tally.percent, tally.left_s) == (30, 0, None)
    tally.planned(first, 6)
    for _ in range(5):
        tally.answered(1000)
    now_s[0] += 50.0
    assert (tally.total, tally.percent, tally.left_s) == (26, 19, 210.0)
    assert str(tally) == "19 % of 26 requests, 5,000 bars, about 4 min left"
    tally.ended(third)
    assert tally.total == 16
    for _ in range(20):
        tally.answered(0)
    assert (tally.total, tally.percent, tally.left_s) == (25, 100, 0.0)


def test_a_load_of_many_symbols_fits_a_terminal_of_80_columns() -> None:
    """Series that are loaded have a bar each, finished ones have none, and one line is for all."""
    many = [series(symbol=f"SYMBOL{number}") for number in range(191)]
    page = io.StringIO()
    screen = Console(file=page, width=80, height=60, force_terminal=True, color_system=None)
    with load_progress(shown=True, expected=dict.fromkeys(many, 20), screen=screen) as progress:
        for one in many[:150]:
            progress.planned(one, 20)
            for _ in range(20):
                progress.answered(one, 123_456)
            progress.ended(SeriesReport(one))
        for one in many[150:158]:
            progress.planned(one, 20)
            progress.answered(one, 123_456)
    last = page.getvalue().rpartition("SYMBOL150")[2]
    lines = f"SYMBOL150{last}".splitlines()
    assert len([line for line in lines if "SYMBOL" in line]) == 8
    assert "78 % of 3,820 requests, 371,355,648 bars, about" in lines[-2]
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in last


def test_a_load_without_a_terminal_prints_a_line_now_and_then(capsys: Any) -> None:
    """Once a minute at most, and only if more is done, or after ten minutes."""
    now_s = [0.0]
    tally = LoadTally({series(): 1000}, clock=lambda: now_s[0])
    messages = CollectedMessages(tally=tally)
    printed_at = []
    for second in range(0, 3000, 30):
        now_s[0] = float(second)
        messages.answered(series(), 10)
        if capsys.readouterr().err:
            printed_at.append(second)
    assert printed_at[0] == 270  # the tenth of 1,000 requests is the first percent
    assert all(after - before >= 60 for before, after in pairwise(printed_at))
    assert len(printed_at) == 10
    now_s[0] += 600.0
    messages.answered(series(), 10)
    assert capsys.readouterr().err == "10 % of 1,000 requests, 1,010 bars, about 9 h left\n"


def test_a_missing_permission_is_one_paragraph(capsys: Any) -> None:
    """It names the symbols that it concerns, what to do, and when it is requested again."""

    def refused(symbol: str, permission: str) -> EntitlementError:
        error = EntitlementError(
            f"bars of {symbol}",
            reason=f"162 No market data permissions for {permission}",
            hint="The account needs a Level 1 market data subscription. The missing permission is "
            f"{permission}",
            code=162,
        )
        error.entitlement, error.retry_in_s = permission, 86_400.0
        return error

    symbols = [f"S{number}" for number in range(10)]
    gap = IntervalSet([days("2024-01-02", "2024-01-03")])
    reports = [
        SeriesReport(
            series(timeframe, symbol),
            unexplained=gap,
            failures=(refused(symbol, "ISLAND STK TRADES"),),
        )
        for symbol in symbols
        for timeframe in (Timeframe.H1, Timeframe.D1)
    ]
    reports.append(SeriesReport(series(symbol="X"), error=refused("X", "NYSE STK TRADES")))
    print_report(reports, CollectedMessages(), calendars=Calendars(), as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "permission" in line] == [
        f"{permission} is not permitted, for {named}: 162 No market data permissions for "
        f"{permission}. The account needs a Level 1 market data subscription. ktrdr update and "
        "the sensors request it again in 24 h, ktrdr load immediately."
        for permission, named in (
            ("ISLAND STK TRADES", f"{', '.join(symbols[:8])} and 2 more"),
            ("NYSE STK TRADES", "X"),
        )
    ]


def test_of_many_series_those_are_listed_that_are_not_complete(capsys: Any) -> None:
    """The others are counted, and a reason that several failures share is printed once."""

    def unknown(symbol: str) -> ContractUnknownError:
        return ContractUnknownError(
            f"contract of {symbol}", reason="200 No security definition", hint="Check symbol."
        )

    complete = [
        SeriesReport(series(symbol=f"S{number}"), requests=3, rows=754, added=730)
        for number in range(188)
    ]
    failed = [SeriesReport(series(symbol=one), error=unknown(one)) for one in ("FB", "ESH24")]
    reports = [*complete[:90], *failed, *complete[90:]]
    print_report(reports, CollectedMessages(), calendars=Calendars(), as_json=False)
    text = capsys.readouterr().out
    assert "188 other series complete: 564 requests, 141,752 bars, 137,240 new" in text
    assert "S7 1d" not in text
    assert text.count("200 No security definition. Hint: Check symbol.") == 1
    assert "  ESH24 1d: contract of ESH24\n" in text
    print_report(complete[:40], CollectedMessages(), calendars=Calendars(), as_json=False)
    assert "S39 1d" in capsys.readouterr().out


def test_lines_are_printed_above_the_progress_bars() -> None:
    """They are not wrapped."""
    entry = io.StringIO()
    with Progress(console=Console(file=entry, width=20)) as shown:
        TerminalProgress(shown).print_now("a line that is longer than the page is wide")
    assert "a line that is longer than the page is wide\n" in entry.getvalue()


def test_finished_series_are_hidden_among_many() -> None:
    """With many series only unfinished ones show a bar."""
    with Progress(console=Console(file=io.StringIO())) as shown:
        progress = TerminalProgress(shown)
        for at in range(MOST_SHOWN + 1):
            progress.planned(series(symbol=f"S{at}"), 1)
        progress.answered(series(symbol="S0"), 5)
        assert [task.visible for task in shown.tasks[:2]] == [False, True]
        progress.planned(series(symbol="S0"), 1)
        assert shown.tasks[0].visible


def test_without_a_terminal_there_is_no_progress(capsys: Any) -> None:
    """Notes are collected, each once."""
    with load_progress(shown=True) as progress:
        progress.planned(series(), 1)
        progress.answered(series(), 1)
        progress.noted(series(), "slow today")
        progress.noted(series(), "slow today")
    assert type(progress) is CollectedMessages
    assert progress.texts == {series(): ["slow today"]}
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def local_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Return a function that sets the local time zone."""

    def choose(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield choose
    monkeypatch.undo()
    time.tzset()


def test_the_end_of_a_wait_is_in_local_time_too(
    capsys: Any, local_zone: Callable[[str], None]
) -> None:
    """Where that differs from UTC."""
    local_zone("America/New_York")
    CollectedMessages().waiting("a reset", datetime(2026, 1, 5, 14, 39, tzinfo=UTC))
    assert capsys.readouterr().err == (
        "waiting until 2026-01-05T14:39:00Z (09:39:00 EST): a reset\n"
    )


def test_a_wait_is_printed_immediately(capsys: Any, local_zone: Callable[[str], None]) -> None:
    """It is, with a terminal and without."""
    local_zone("UTC")
    until = datetime(2026, 1, 5, 14, 39, tzinfo=UTC)
    line = "waiting until 2026-01-05T14:39:00Z: it is left alone"
    with load_progress(shown=True) as progress:
        progress.waiting("it is left alone", until)
        assert capsys.readouterr() == ("", f"{line}\n")
    entry = io.StringIO()
    with Progress(console=Console(file=entry, width=20)) as shown:
        TerminalProgress(shown).waiting("it is left alone", until)
    assert f"{line}\n" in entry.getvalue()


def test_a_signal_cancels_the_coroutine_and_waits_for_its_cleanup() -> None:
    """The cleanup is done before the command ends."""
    before = signal.getsignal(signal.SIGTERM)
    done = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await never()
        finally:
            done.append("tidied up")

    with stoppable(), pytest.raises(Stopped) as stopped:
        run_stoppable(work())
    assert done == ["tidied up"]
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_error_of_saving_takes_precedence_over_the_signal() -> None:
    """A stop that loses received bars is an error."""

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await never()
        finally:
            raise StoreError("the last bars")

    with stoppable(), pytest.raises(StoreError, match="the last bars"):
        run_stoppable(work())


async def never() -> None:
    """Wait until cancelled."""
    await asyncio.get_running_loop().create_future()
