"""The ledger's tables, and its file when it is missing, new, damaged or of another version."""

import sqlite3
import threading
import weakref
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.domain.calendars.gateway_schedules import LearnedDay, ScheduleSource
from ktrdr_pipelines.domain.calendars.session_extension import LateBar
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError, StoreError
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.gateway_records import WidthRecord
from ktrdr_pipelines.store.ledger.ledger import AttemptKind, HeadRecord, Ledger, series_key
from ktrdr_pipelines.store.ledger.marks import REFRESH_KEPT_DAYS, Refreshed
from ktrdr_pipelines.store.ledger.request_audit import RequestRecord
from ktrdr_pipelines.store.ledger.schema import LEDGER_VERSION

KEY = "AAPL|1m"
NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
HOUR = timedelta(hours=1)


def _hours(first: int, last: int) -> Interval:
    return Interval(NOW + first * HOUR, NOW + last * HOUR)


def _failed(ledger: Ledger, interval: Interval, kind: str, at: datetime) -> None:
    ledger.attempts.record(
        KEY, interval, kind, error="no response", code=None, next_try_at=at + HOUR, at=at
    )


def _request(at: datetime, rows: int, **other: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "series": KEY,
        "contract_id": 265598,
        "what_to_show": "TRADES",
        "gateway": "127.0.0.1:4002",
        "login": "login 1",
        "asked_end": None,
        "duration": "1 D",
        "sent_at": at,
        "took_s": 0.5,
        "outcome": "bars",
        "rows": rows,
    }
    return RequestRecord(**(fields | other))


def test_a_series_has_one_key(make: Any) -> None:
    """Symbol and timeframe."""
    assert series_key(make.series()) == KEY


def test_repeated_attempts_are_counted(ledger: Ledger) -> None:
    """Another attempt raises the count; error and next time are those of the last."""
    _failed(ledger, _hours(0, 1), "error", NOW)
    ledger.attempts.record(
        KEY, _hours(0, 1), "error", error="lost", code=1100, next_try_at=None, at=NOW + HOUR
    )
    (attempt,) = ledger.attempts.of(KEY)
    assert (attempt.failures, attempt.error, attempt.code) == (2, "lost", 1100)
    assert (attempt.first_at, attempt.last_at, attempt.next_try_at) == (NOW, NOW + HOUR, None)
    assert ledger.attempts.of("MSFT|1m") == []


def test_attempts_of_other_kinds_are_kept_apart(ledger: Ledger) -> None:
    """A "no data" does not hide an error at the same interval."""
    _failed(ledger, _hours(0, 1), "no_data", NOW)
    _failed(ledger, _hours(0, 1), "error", NOW)
    assert [one.kind for one in ledger.attempts.of(KEY)] == [AttemptKind.ERROR, AttemptKind.NO_DATA]
    with pytest.raises(ValueError, match="unknown_kind"):
        _failed(ledger, _hours(0, 1), "unknown_kind", NOW)


def test_covering_an_interval_clears_the_attempts_inside(ledger: Ledger) -> None:
    """An attempt that reaches beyond the interval stays."""
    for first, last in [(0, 1), (1, 2), (1, 4)]:
        _failed(ledger, _hours(first, last), "error", NOW)
    ledger.attempts.clear(KEY, _hours(0, 3))
    assert [one.interval for one in ledger.attempts.of(KEY)] == [_hours(1, 4)]


def test_a_claim_excludes_others_until_it_expires(ledger: Ledger) -> None:
    """Overlapping claims of others are refused as a whole."""
    assert ledger.claims.acquire(KEY, [_hours(0, 2)], "one", NOW, 60) == [_hours(0, 2)]
    wanted = [_hours(1, 3), _hours(2, 3)]
    assert ledger.claims.acquire(KEY, wanted, "two", NOW, 60) == [_hours(2, 3)]
    assert ledger.claims.acquire("MSFT|1m", wanted, "two", NOW, 60) == wanted
    later = NOW + timedelta(seconds=60)
    assert ledger.claims.live(KEY, later) == []
    assert ledger.claims.acquire(KEY, wanted, "three", later, 60) == wanted
    assert {one.owner for one in ledger.claims.live(KEY, later)} == {"three"}


def test_a_claim_is_renewed_by_its_owner(ledger: Ledger) -> None:
    """Claiming again moves the expiry."""
    ledger.claims.acquire(KEY, [_hours(0, 1)], "one", NOW, 60)
    later = NOW + timedelta(seconds=50)
    assert ledger.claims.acquire(KEY, [_hours(0, 1)], "one", later, 60) == [_hours(0, 1)]
    (claim,) = ledger.claims.live(KEY, NOW + timedelta(seconds=70))
    assert claim.expires_at == later + timedelta(seconds=60)


def test_claims_are_released(ledger: Ledger) -> None:
    """An owner releases some intervals, a series, or all."""
    for key in (KEY, "MSFT|1m"):
        ledger.claims.acquire(key, [_hours(0, 1), _hours(1, 2)], "one", NOW, 60)
    ledger.claims.acquire(KEY, [_hours(5, 6)], "two", NOW, 60)
    ledger.claims.release("one", KEY, [_hours(0, 1)])
    assert [c.interval for c in ledger.claims.live(KEY, NOW)] == [_hours(1, 2), _hours(5, 6)]
    ledger.claims.release("one", KEY)
    assert [c.owner for c in ledger.claims.live(KEY, NOW)] == ["two"]
    assert len(ledger.claims.live("MSFT|1m", NOW)) == 2
    ledger.claims.release("one")
    assert ledger.claims.live("MSFT|1m", NOW) == []


def test_the_audit_has_the_last_response_with_bars(ledger: Ledger) -> None:
    """Empty responses, other contracts and other gateways do not count."""
    contract = (265598, "TRADES", "127.0.0.1:4002")
    assert ledger.requests.last_answered(*contract) is None
    ledger.requests.record(_request(NOW, 390))
    ledger.requests.record(_request(NOW + HOUR, 0))
    ledger.requests.record(_request(NOW + HOUR, 5, gateway="127.0.0.1:7496"))
    ledger.requests.record(_request(NOW + HOUR, 5, contract_id=1))
    assert ledger.requests.last_answered(*contract) == NOW


def test_the_audit_is_counted_and_pruned(ledger: Ledger) -> None:
    """Requests are counted by series and time, and kept for 90 days."""
    old = NOW - timedelta(days=91)
    ledger.requests.record(_request(old, 1))
    ledger.requests.record(_request(NOW, 1, asked_end=NOW - HOUR, code=162, proved="1 day"))
    ledger.requests.record(_request(NOW + HOUR, 1, series="MSFT|1m"))
    assert ledger.requests.count() == 3
    assert ledger.requests.count(KEY) == 2
    assert ledger.requests.count(KEY, NOW) == 1
    assert ledger.requests.count(since=NOW) == 2
    assert ledger.requests.prune(NOW) == 1
    newest, older = ledger.requests.newest(10)
    assert newest.series == "MSFT|1m"
    assert older == _request(NOW, 1, asked_end=NOW - HOUR, code=162, proved="1 day")
    assert ledger.requests.newest(1) == [newest]


def test_heads_are_recorded_even_when_unknown(ledger: Ledger) -> None:
    """A gateway without a head timestamp is not asked again at once."""
    contract = (265598, "TRADES", "127.0.0.1:4002")
    assert ledger.heads.of(*contract) is None
    ledger.heads.record(*contract, head=None, asked_at=NOW)
    assert ledger.heads.of(*contract) == HeadRecord(None, NOW)
    ledger.heads.record(*contract, head=NOW - 1000 * HOUR, asked_at=NOW + HOUR)
    assert ledger.heads.of(*contract) == HeadRecord(NOW - 1000 * HOUR, NOW + HOUR)


def test_contracts_are_pinned_by_origin(ledger: Ledger) -> None:
    """The contract id of a simulator is not that of the real gateway."""
    assert ledger.contracts.of("AAPL", Origin.IB) is None
    ledger.contracts.pin("AAPL", Origin.IB, 265598, "Apple", NOW)
    assert ledger.contracts.of("AAPL", Origin.IB) == 265598
    assert ledger.contracts.of("AAPL", Origin.SIMULATED) is None


def test_a_lost_ledger_is_created_again(ledger: Ledger) -> None:
    """Even if the file is removed under an open connection."""
    _failed(ledger, _hours(0, 1), "error", NOW)
    for path in ledger.path.parent.glob("ledger.sqlite*"):
        path.unlink()
    assert ledger.attempts.of(KEY) == []
    _failed(ledger, _hours(0, 1), "error", NOW)
    assert len(ledger.attempts.of(KEY)) == 1


def test_an_empty_file_becomes_a_ledger(layout: StoreLayout) -> None:
    """A crash may leave one."""
    layout.ledger.write_bytes(b"")
    with closing(Ledger(layout.ledger)) as ledger:
        assert ledger.attempts.of(KEY) == []


def test_a_file_that_is_no_ledger_is_corrupt(layout: StoreLayout) -> None:
    """The error hints at repair."""
    layout.ledger.write_bytes(b"junk" * 1000)
    with pytest.raises(CorruptFileError, match=r"ledger\.sqlite.*ktrdr repair"):
        Ledger(layout.ledger).attempts.of(KEY)


def test_damaged_pages_are_corrupt(ledger: Ledger) -> None:
    """In use and when the ledger is checked."""
    for number in range(500):
        ledger.requests.record(_request(NOW + number * HOUR, 1))
    ledger.close()
    data = bytearray(ledger.path.read_bytes())
    data[8192:-4096] = b"\xff" * (len(data) - 4096 - 8192)
    ledger.path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="ktrdr repair"):
        ledger.check()
    with pytest.raises(CorruptFileError, match="ktrdr repair"):
        ledger.requests.newest(1000)


def test_a_newer_ledger_is_refused(ledger: Ledger) -> None:
    """Its tables are not changed."""
    ledger.attempts.of(KEY)
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute(f"PRAGMA user_version = {LEDGER_VERSION + 1}")
    with pytest.raises(StoreError, match=rf"version {LEDGER_VERSION + 1}.*newer ktrdr"):
        ledger.attempts.of(KEY)


def test_an_older_ledger_is_migrated(ledger: Ledger) -> None:
    """Its rows stay, and missing tables are created."""
    ledger.heads.record(1, "TRADES", "gateway", head=NOW, asked_at=NOW)
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("DROP TABLE confirmed")
        connection.execute("PRAGMA user_version = 1")
    ledger.confirmed.record(KEY, {NOW.date(): 17}, NOW)
    assert ledger.confirmed.of(KEY) == {NOW.date(): 17}
    assert ledger.confirmed.all() == {KEY: {NOW.date(): 17}}
    assert ledger.heads.all("gateway") == {(1, "TRADES"): NOW}


def test_columns_that_an_older_ledger_lacks_are_added(ledger: Ledger) -> None:
    """Version 6 had no offset in the audit: old rows have 0, new ones what is given."""
    ledger.requests.record(_request(NOW, 1))
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("ALTER TABLE requests DROP COLUMN clock_offset_s")
        connection.execute("DROP TABLE kept_fresh")
        connection.execute("PRAGMA user_version = 6")
    ledger.requests.record(_request(NOW + HOUR, 2, clock_offset_s=-86_400.0))
    assert [one.clock_offset_s for one in ledger.requests.newest(10)] == [-86_400.0, 0.0]
    assert [one.rows for one in ledger.requests.newest(10)] == [2, 1]
    assert ledger.kept_fresh.all() == {}
    ledger.check()


def test_the_mark_of_a_series_kept_fresh_never_moves(ledger: Ledger) -> None:
    """The first save of a series sets it."""
    ledger.kept_fresh.record(KEY, NOW)
    ledger.kept_fresh.record(KEY, NOW + HOUR)
    ledger.kept_fresh.record(KEY, NOW - HOUR)
    ledger.kept_fresh.record(f"{KEY}x", NOW + HOUR)
    assert ledger.kept_fresh.all() == {KEY: NOW, f"{KEY}x": NOW + HOUR}


def test_a_failed_transaction_leaves_nothing(ledger: Ledger) -> None:
    """No part of a claim is kept."""

    def intervals() -> Any:
        yield _hours(0, 1)
        raise RuntimeError("the caller broke")

    with pytest.raises(RuntimeError):
        ledger.claims.acquire(KEY, intervals(), "one", NOW, 60)
    assert ledger.claims.live(KEY, NOW) == []
    assert ledger.claims.acquire(KEY, [_hours(0, 1)], "one", NOW, 60) == [_hours(0, 1)]


def test_every_thread_has_its_own_connection(ledger: Ledger) -> None:
    """Threads share the ledger, not the connection."""

    def record(number: int) -> None:
        for step in range(20):
            ledger.requests.record(_request(NOW + number * HOUR, step))

    threads = [threading.Thread(target=record, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.requests.count() == 80
    assert repr(ledger) == f"Ledger({ledger.path})"


def test_a_ledger_opens_its_file_on_first_use_and_frees_it_when_dropped(
    layout: StoreLayout,
) -> None:
    """No reference cycle keeps the connection open until a garbage collection."""
    ledger = Ledger(layout.ledger)
    assert not layout.ledger.exists()
    assert ledger.attempts.of(KEY) == []
    assert layout.ledger.exists()
    database = weakref.ref(ledger.database)
    del ledger
    assert database() is None


def test_a_refresh_is_recorded_until_it_ends_or_is_too_old(ledger: Ledger) -> None:
    """Received intervals count for a week; a completed refresh leaves no rows."""
    week = timedelta(days=REFRESH_KEPT_DAYS)
    parts = IntervalSet([_hours(0, 2), _hours(4, 6)])
    ledger.refreshes.record(KEY, parts, NOW)
    assert ledger.refreshes.of(KEY, NOW + week) == Refreshed(parts, NOW)
    assert ledger.refreshes.of(f"{KEY}x", NOW) is None
    ledger.refreshes.end(KEY, IntervalSet([_hours(3, 7)]))
    assert ledger.refreshes.of(KEY, NOW) == Refreshed(IntervalSet([_hours(0, 2)]), NOW)
    later = NOW + week + timedelta(seconds=1)
    assert ledger.refreshes.of(KEY, later) is None
    ledger.refreshes.record(f"{KEY}x", IntervalSet([_hours(0, 1)]), later)
    assert ledger.refreshes.of(KEY, NOW) is None


def test_widths_are_kept_by_gateway_and_timeframe(ledger: Ledger) -> None:
    """A later record replaces an earlier one."""
    ledger.widths.record("one:1", Timeframe.M5, WidthRecord(4, 1, NOW))
    ledger.widths.record("one:1", Timeframe.M5, WidthRecord(2, 2, NOW))
    assert ledger.widths.of("one:1") == {Timeframe.M5: WidthRecord(2, 2, NOW)}
    assert ledger.widths.of("two:1") == {}
    ledger.widths.remove("one:1", Timeframe.M5)
    assert ledger.widths.of("one:1") == {}


def test_sessions_are_kept_by_contract(ledger: Ledger) -> None:
    """Rows of version 6, which had no symbol, are kept and not read."""
    day = date(2024, 6, 20)
    closed = LearnedDay(day, ())
    ledger.schedules.record("XNYS.RTH", [closed], ScheduleSource.DETAILS, NOW)
    ledger.schedules.record("XNYS.RTH AAPL", [closed], ScheduleSource.DETAILS, NOW)
    assert ledger.schedules.all() == {"XNYS.RTH AAPL": [closed]}
    assert ledger.schedules.of("XNYS.RTH AAPL") == [closed]
    assert ledger.schedules.of("XNYS.RTH MSFT") == []
    assert ledger.calendars().changed() == {}


def test_votes_are_counted_withdrawn_and_moved(ledger: Ledger) -> None:
    """Three contracts with the same schedule of a date agree, while none is withdrawn."""
    day = date(2024, 6, 20)
    for symbol in ("AAA", "BBB", "CCC"):
        ledger.votes.record("XNYS.RTH", symbol, [LearnedDay(day, ())], NOW)
    ledger.votes.record("NOT.THERE", "AAA", [LearnedDay(day, ())], NOW)
    [shared] = ledger.votes.agreed()["XNYS.RTH"]
    assert (shared.stated, shared.symbols) == (LearnedDay(day, ()), ("AAA", "BBB", "CCC"))
    assert set(ledger.votes.agreed()) == {"XNYS.RTH"}
    ledger.move_symbol("AAA", "ZZZ")
    assert set(ledger.votes.of("XNYS.RTH")[day]) == {"BBB", "CCC", "ZZZ"}
    ledger.votes.withdraw("XNYS.RTH", [day], symbol="BBB")
    assert ledger.votes.agreed() == {}
    ledger.votes.withdraw("XNYS.RTH", [day])
    assert ledger.votes.of("XNYS.RTH") == {}


def test_the_latest_bar_after_a_close_is_kept(ledger: Ledger) -> None:
    """One that starts earlier does not replace it."""
    day = date(2024, 6, 20)
    ledger.late_bars.record("VIX", {day: LateBar(100, 200)})
    ledger.late_bars.record("VIX", {day: LateBar(90, 400)})
    assert ledger.late_bars.all() == {"VIX": {day: LateBar(100, 200)}}
    ledger.late_bars.record("VIX", {day: LateBar(110, 150)})
    assert ledger.late_bars.all() == {"VIX": {day: LateBar(110, 150)}}
