"""The ledger's statements and disagreements: stored, voided, moved with their symbol."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.empty_ranges import WITHOUT_BARS, Statement, StatementKind
from ktrdr_pipelines.domain.plausibility import Disagreement
from ktrdr_pipelines.store.layout import StoreLayout
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.store.ledger.statements import KEPT_DAYS
from ktrdr_pipelines.store.maintenance.rename import rename, retire

NOW = datetime(2024, 6, 3, 20, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
HERE, THERE = "127.0.0.1:4002", "127.0.0.1:7496"
FOUND = Disagreement(NOW - 5 * DAY, NOW - DAY, 30, 0.5)


def statement(
    kind: StatementKind = StatementKind.EMPTY,
    day: int = 0,
    *,
    request: str | None = None,
    said_at: datetime = NOW,
    controlled: bool = False,
    reaches_past: bool = False,
) -> Statement:
    """Return a statement about a day."""
    start = datetime(2024, 5, 1, 4, tzinfo=UTC) + day * DAY
    return Statement(
        Interval(start, start + DAY),
        kind,
        "1h",
        said_at,
        request or f"request {day}",
        controlled,
        reaches_past,
    )


@pytest.mark.parametrize("kind", StatementKind)
@pytest.mark.parametrize("controlled", [True, False])
@pytest.mark.parametrize("reaches_past", [True, False])
def test_statements_are_read_as_they_were_recorded(
    ledger: Ledger, kind: StatementKind, *, controlled: bool, reaches_past: bool
) -> None:
    """Each field, to the microsecond."""
    one = statement(
        kind,
        said_at=NOW + timedelta(microseconds=7),
        controlled=controlled,
        reaches_past=reaches_past,
    )
    ledger.statements.record("AAPL", HERE, [one], NOW)
    assert ledger.statements.of("AAPL") == [one]
    assert ledger.statements.of("MSFT") == []


def test_statements_are_read_oldest_first(ledger: Ledger) -> None:
    """By the gateway's clock, in whatever order they were recorded."""
    newer, older = statement(day=1, said_at=NOW + HOUR), statement(day=2)
    ledger.statements.record("AAPL", HERE, [newer], NOW)
    ledger.statements.record("AAPL", HERE, [older], NOW)
    assert ledger.statements.of("AAPL") == [older, newer]


def test_a_control_that_comes_later_replaces_what_was_recorded(ledger: Ledger) -> None:
    """The same statement of the same request is stored once."""
    one = statement()
    ledger.statements.record("AAPL", HERE, [one], NOW)
    ledger.statements.record("AAPL", HERE, [replace(one, controlled=True)], NOW + HOUR)
    assert ledger.statements.of("AAPL") == [replace(one, controlled=True)]


def test_one_request_may_make_several_statements(ledger: Ledger) -> None:
    """About other intervals, or of another kind."""
    several = [
        statement(request="one"),
        statement(StatementKind.AROUND, request="one"),
        statement(day=1, request="one"),
        statement(request="two"),
    ]
    ledger.statements.record("AAPL", HERE, several, NOW)
    found = ledger.statements.of("AAPL")
    assert len(found) == 4
    assert all(one in found for one in several)


def test_statements_outlive_the_process(ledger: Ledger) -> None:
    """Another connection reads them."""
    ledger.statements.record("AAPL", HERE, [statement(), statement(StatementKind.AROUND, 1)], NOW)
    ledger.disagreements.record("AAPL|1m", FOUND, NOW)
    ledger.close()
    with closing(Ledger(ledger.path)) as again:
        assert again.statements.of("AAPL") == [statement(), statement(StatementKind.AROUND, 1)]
        assert again.disagreements.all() == {"AAPL|1m": (FOUND,)}


def test_statements_that_are_too_old_to_count_are_dropped(ledger: Ledger) -> None:
    """By the time they were recorded, when newer ones are."""
    ledger.statements.record("AAPL", HERE, [statement(day=1)], NOW)
    ledger.statements.record("AAPL", HERE, [statement(day=2)], NOW + DAY)
    ledger.statements.record("MSFT", HERE, [statement(day=3)], NOW + KEPT_DAYS * DAY)
    assert len(ledger.statements.of("AAPL")) == 2
    ledger.statements.record("MSFT", HERE, [], NOW + KEPT_DAYS * DAY + HOUR)
    assert ledger.statements.of("AAPL") == [statement(day=2)]


# --- voiding -------------------------------------------------------------------------------------


def test_empty_responses_of_a_period_are_voided(ledger: Ledger) -> None:
    """Of every symbol of the gateway; both ends of the period count."""
    moments = [-25 * HOUR, -24 * HOUR, timedelta(0), 24 * HOUR, 25 * HOUR]
    made = [statement(day=n, said_at=NOW + after) for n, after in enumerate(moments)]
    ledger.statements.record("AAPL", HERE, made, NOW)
    ledger.statements.record("MSFT", HERE, [made[2]], NOW)
    voided = ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW)
    assert voided.keys() == {"AAPL", "MSFT"}
    assert sorted(voided["AAPL"]) == sorted(one.interval for one in made[1:4])
    assert voided["MSFT"] == [made[2].interval]
    assert ledger.statements.of("AAPL") == [made[0], made[4]]
    assert ledger.statements.of("MSFT") == []


def test_a_void_statement_is_not_voided_again(ledger: Ledger) -> None:
    """The second time no interval is returned."""
    ledger.statements.record("AAPL", HERE, [statement()], NOW)
    assert ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW)
    assert ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW) == {}


def test_other_statements_and_other_gateways_stay(ledger: Ledger) -> None:
    """Statements about bars are not void, and each gateway is judged by itself."""
    others = [statement(kind) for kind in StatementKind if kind not in WITHOUT_BARS]
    ledger.statements.record("AAPL", HERE, others, NOW)
    ledger.statements.record("MSFT", THERE, [statement()], NOW)
    assert ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW) == {}
    assert len(ledger.statements.of("AAPL")) == len(others)
    assert ledger.statements.of("MSFT") == [statement()]


def test_the_same_interval_is_named_once(ledger: Ledger) -> None:
    """Although several responses for it become void."""
    made = [statement(request=str(n), said_at=NOW + n * HOUR) for n in range(3)]
    ledger.statements.record("AAPL", HERE, made, NOW)
    voided = ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW)
    assert voided == {"AAPL": [made[0].interval]}


def test_void_statements_are_kept_for_display(ledger: Ledger) -> None:
    """With the time at which they became void."""
    ledger.statements.record("AAPL", HERE, [statement()], NOW)
    ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW + HOUR)
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        rows = connection.execute("SELECT symbol, kind, voided_at FROM statements").fetchall()
    assert rows == [("AAPL", "empty", int((NOW + HOUR).timestamp()) * 1_000_000)]


def test_statements_after_a_refutation_count(ledger: Ledger) -> None:
    """Voiding ends with the period."""
    ledger.statements.record("AAPL", HERE, [statement(request="before")], NOW)
    ledger.statements.void_empty(HERE, NOW - DAY, NOW, NOW)
    after = statement(request="after", said_at=NOW + HOUR)
    ledger.statements.record("AAPL", HERE, [after], NOW + HOUR)
    assert ledger.statements.of("AAPL") == [after]


def test_statements_about_beginnings_are_read_for_all_symbols(ledger: Ledger) -> None:
    """Beginnings and empty responses, without void ones."""
    begins, empty = statement(StatementKind.BEGINS), statement(day=1)
    others = [
        statement(StatementKind.AROUND),
        statement(StatementKind.HEAD),
        statement(StatementKind.TRADED),
    ]
    ledger.statements.record("AAPL", HERE, [begins, empty, *others], NOW)
    ledger.statements.record("MSFT", THERE, [empty], NOW)
    ledger.statements.record("IBM", THERE, others, NOW)
    found = ledger.statements.beginnings()
    assert found.keys() == {"AAPL", "MSFT"}
    assert set(found["AAPL"]) == {begins, empty}
    ledger.statements.void_empty(THERE, NOW - DAY, NOW + DAY, NOW)
    assert ledger.statements.beginnings().keys() == {"AAPL"}


# --- disagreements -------------------------------------------------------------------------------


def test_disagreements_are_kept_by_series_until_they_are_cleared(ledger: Ledger) -> None:
    """Oldest bars first; those of another series stay."""
    older = Disagreement(NOW - 9 * DAY, NOW - 8 * DAY, 3, 0.1)
    ledger.disagreements.record("AAPL|1m", FOUND, NOW)
    ledger.disagreements.record("AAPL|1m", older, NOW + HOUR)
    ledger.disagreements.record("MSFT|1m", FOUND, NOW)
    assert ledger.disagreements.of("AAPL|1m") == [older, FOUND]
    assert ledger.disagreements.of("AAPL|1d") == []
    assert ledger.disagreements.all() == {"AAPL|1m": (older, FOUND), "MSFT|1m": (FOUND,)}
    ledger.disagreements.clear("AAPL|1m")
    assert ledger.disagreements.of("AAPL|1m") == []
    assert ledger.disagreements.all() == {"MSFT|1m": (FOUND,)}


# --- symbols and versions ------------------------------------------------------------------------


def test_statements_and_disagreements_move_with_a_renamed_symbol(
    layout: StoreLayout, ledger: Ledger
) -> None:
    """Void ones stay void."""
    layout.universe.write_text("symbols:\n  AAPL: {}\n  MSFT: {}\n")
    kept, void = statement(StatementKind.AROUND), statement(day=1)
    ledger.statements.record("AAPL", HERE, [kept, void], NOW)
    ledger.statements.record("MSFT", THERE, [statement(day=2)], NOW)
    ledger.statements.void_empty(HERE, NOW - DAY, NOW + DAY, NOW)
    ledger.disagreements.record("AAPL|1m", FOUND, NOW)
    rename(layout, "AAPL", "APPL2", NOW)
    assert ledger.statements.of("APPL2") == [kept]
    assert ledger.statements.of("AAPL") == []
    assert ledger.statements.of("MSFT") == [statement(day=2)]
    assert ledger.disagreements.all() == {"APPL2|1m": (FOUND,)}


def test_a_reused_symbol_has_no_statements(layout: StoreLayout, ledger: Ledger) -> None:
    """Statements about a retired instrument are moved with it."""
    layout.universe.write_text("symbols:\n  AAPL: {}\n  MSFT: {}\n")
    ledger.statements.record("AAPL", HERE, [statement(StatementKind.AROUND)], NOW)
    ledger.disagreements.record("AAPL|1m", FOUND, NOW)
    move = retire(layout, "AAPL", NOW)
    assert ledger.statements.of("AAPL") == []
    assert ledger.disagreements.of("AAPL|1m") == []
    assert ledger.statements.of(move.target) == [statement(StatementKind.AROUND)]


def test_a_ledger_of_version_6_gets_the_tables(ledger: Ledger) -> None:
    """Its rows stay."""
    ledger.heads.record(1, "TRADES", HERE, head=NOW, asked_at=NOW)
    ledger.close()
    with closing(sqlite3.connect(ledger.path)) as connection:
        connection.execute("DROP TABLE statements")
        connection.execute("DROP TABLE disagreements")
        connection.execute("PRAGMA user_version = 6")
    assert ledger.statements.of("AAPL") == []
    ledger.statements.record("AAPL", HERE, [statement()], NOW)
    ledger.disagreements.record("AAPL|1m", FOUND, NOW)
    assert ledger.statements.of("AAPL") == [statement()]
    assert ledger.disagreements.of("AAPL|1m") == [FOUND]
    assert ledger.heads.all(HERE) == {(1, "TRADES"): NOW}
