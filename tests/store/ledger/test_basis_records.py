"""The ledger's index of adjustments, and its record of when bases were confirmed."""

from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from ktrdr_pipelines.store.ledger.basis_records import BasisCheck
from ktrdr_pipelines.store.ledger.ledger import Ledger

NOW = datetime(2024, 6, 3, 20, 30, 15, 123456, tzinfo=UTC)
DAY = date(2024, 6, 3)
CHECK = BasisCheck(
    basis=2,
    established_on=date(2024, 6, 3),
    confirmed_at=NOW,
    next_session=date(2024, 6, 4),
    requested_on=date(2024, 6, 3),
    requests=1,
    stated_ratio=1 / 7,
    stated_bars=5,
    stated_by="AAPL 1d, 5 D",
    stated_at=NOW,
)


def test_adjustments_are_read_as_recorded(ledger: Ledger, make: Any) -> None:
    """By symbol, in the order of their numbers."""
    of_aapl = (make.split(1, 1 / 7), replace(make.split(2, 20.0), removed_at=NOW, note="§ 4"))
    recorded = {"AAPL": of_aapl, "MSFT": (make.split(1, 0.5),)}
    ledger.adjustments.record(recorded)
    assert ledger.adjustments.all() == recorded
    assert ledger.adjustments.of("AAPL") == of_aapl
    assert ledger.adjustments.of("TSLA") == ()
    assert ledger.adjustments.counts() == {"AAPL": 2, "MSFT": 1}
    assert [ledger.adjustments.count(one) for one in ("AAPL", "TSLA")] == [2, 0]


def test_adjustments_are_replaced_by_as_many_or_more_and_never_by_fewer(
    ledger: Ledger, make: Any
) -> None:
    """The ledger has the only copy of those that are lost."""
    one, two = make.split(1, 0.25), make.split(2, 0.5)
    ledger.adjustments.record({"AAPL": (one,), "MSFT": (two,)})
    ledger.adjustments.record({"AAPL": (one, two)})
    removed = (one, replace(two, removed_at=NOW))
    ledger.adjustments.record({"AAPL": removed})
    for fewer in ((one,), ()):
        ledger.adjustments.record({"AAPL": fewer})
    assert ledger.adjustments.of("AAPL") == removed
    assert ledger.adjustments.of("MSFT") == (two,)


def test_retired_symbols_are_not_listed(ledger: Ledger, make: Any) -> None:
    """Their rows are kept under a name that no symbol has."""
    ledger.adjustments.record({"AAPL": (make.split(1, 0.25),)})
    ledger.move_symbol("AAPL", "AAPL@1")
    assert ledger.adjustments.all() == {}
    assert ledger.adjustments.of("AAPL@1") == (make.split(1, 0.25),)


def test_a_check_is_read_as_it_was_changed(ledger: Ledger) -> None:
    """Every field; a symbol that was never checked has an empty one."""
    checks = ledger.basis_checks
    assert checks.of("AAPL") == BasisCheck()
    assert checks.all() == {}
    assert checks.change("AAPL", lambda known: replace(CHECK, requests=known.requests + 1)) == CHECK
    assert checks.of("AAPL") == CHECK
    changed = checks.change("AAPL", lambda known: replace(known, stated_ratio=None))
    assert checks.all() == {"AAPL": changed}
    assert checks.of("MSFT") == BasisCheck()


def test_only_checks_with_a_statement_are_pending(ledger: Ledger) -> None:
    """A re-basing that a single response showed."""
    ledger.basis_checks.change("AAPL", lambda _: CHECK)
    ledger.basis_checks.change("MSFT", lambda _: BasisCheck(basis=1))
    assert ledger.basis_checks.stated() == {"AAPL": CHECK}
    assert "0.142857 times" in CHECK.statement
    assert BasisCheck().statement == ""


def test_within_a_block_others_commit_after_it_and_own_changes_are_seen(ledger: Ledger) -> None:
    """What another connection commits during the block counts from its end on."""
    with closing(Ledger(ledger.path)) as other:

        def established() -> list[date | None]:
            return [ledger.basis_checks.of(symbol).established_on for symbol in ("AAPL", "MSFT")]

        assert established() == [None, None]
        before = ledger.version()
        with ledger.as_of_now(), ledger.as_of_now():
            other.basis_checks.change("AAPL", lambda one: replace(one, established_on=DAY))
            assert established() == [None, None]
            assert ledger.version() == before
        assert established() == [DAY, None]
        with ledger.as_of_now():
            ledger.basis_checks.change("MSFT", lambda one: replace(one, established_on=DAY))
            assert established() == [DAY, DAY]
