"""Fault files: reading, and the errors of invalid ones."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ktrdr_pipelines.errors import SimulatorError
from ktrdr_pipelines.simulator.faults.fault_file import parse_faults, read_faults
from ktrdr_pipelines.simulator.faults.faults import Fault, Occasion


def test_an_entry_is_read_with_all_its_keys() -> None:
    """Selectors and settings are read; missing ones have defaults."""
    [rule] = parse_faults(
        """
        faults:
          - fault: error
            kind: head
            symbol: AAPL
            from: 2024-01-10T15:00:00Z
            until: 2024-01-11T00:00:00+01:00
            nth: [2, 4]
            times: 1
            probability: 0.5
            code: 354
            text: Not subscribed.
        """,
        "faults.yaml",
    ).rules
    assert (rule.fault, rule.occasion, rule.symbol) == (Fault.ERROR, Occasion.HEAD, "AAPL")
    assert (rule.start, rule.until) == (
        datetime(2024, 1, 10, 15, tzinfo=UTC),
        datetime(2024, 1, 10, 23, tzinfo=UTC),
    )
    assert (rule.nth, rule.times, rule.probability) == (frozenset({2, 4}), 1, 0.5)
    assert (rule.number("code"), rule.text) == (354, "Not subscribed.")


@pytest.mark.parametrize(
    ("text", "line", "key", "reason"),
    [
        ("", 1, "", "is empty"),
        ("faults: [", 1, "", "is not YAML"),
        ("faults:\n  - {fault: silence}\n bad", 3, "", "is not YAML"),
        ("seed: 1", 1, "", "has no faults"),
        ("- a", 1, "", "is no mapping"),
        ("faults: 7", 1, "faults", "is no list"),
        ("seed: x\nfaults: []", 1, "seed", "whole number"),
        ("faults: []\nsede: 1", 2, "sede", "Did you mean seed"),
        ("faults:\n  - {nth: 1}", 2, "faults", "names no fault"),
        ("faults:\n  - {fault: silent}", 2, "fault", "Did you mean silence"),
        ("faults:\n  - {fault: silence, fault: cut}", 2, "fault", "is there twice"),
        ("faults:\n  - fault: silence\n    tiems: 1", 3, "tiems", "Did you mean times"),
        ("faults:\n  - {fault: silence, seconds: 1}", 2, "seconds", "not a known key"),
        ("faults:\n  - {fault: silence, nth: 0}", 2, "nth", "whole number from 1"),
        ("faults:\n  - {fault: silence, nth: [1, x]}", 2, "nth", "whole number from 1"),
        ("faults:\n  - {fault: silence, times: -1}", 2, "times", "whole number from 1"),
        ("faults:\n  - {fault: silence, probability: 2}", 2, "probability", "at most 1"),
        ("faults:\n  - {fault: silence, from: noon}", 2, "from", "an instant"),
        ("faults:\n  - {fault: silence, from: 2024-01-10T15:00:00}", 2, "from", "an instant"),
        ("faults:\n  - {fault: silence, symbol: [A]}", 2, "symbol", "no single value"),
        ("faults:\n  - {fault: partial, kind: head}", 2, "kind", "can meet history"),
        ("faults:\n  - {fault: late, seconds: soon}", 2, "seconds", "a number"),
        ("faults:\n  - {fault: late, seconds: 0}", 2, "seconds", "above 0"),
        ("faults:\n  - {fault: cut, share: 1.5}", 2, "share", "at most 1"),
        ("faults:\n  - {fault: error, code: 1.5}", 2, "code", "whole number"),
        ("faults:\n  - {fault: error, code: .inf}", 2, "code", "a number"),
        ("faults:\n  - {fault: error, code: inf}", 2, "code", "whole number"),
        ("faults:\n  - {fault: error, code: nan}", 2, "code", "whole number"),
        ("faults:\n  - {fault: late, seconds: nan}", 2, "seconds", "above 0"),
        ("faults:\n  - {fault: clock_off, minutes: nan}", 2, "minutes", "from -525600 to 525600"),
        ("faults:\n  - {fault: clock_off, minutes: inf}", 2, "minutes", "from -525600 to 525600"),
        ("faults:\n  - {fault: clock_off, minutes: 0}", 2, "minutes", "not 0"),
        ("faults:\n  - {fault: clock_off, nth: 2}", 2, "nth", "not a known key"),
        ("faults:\n  - {fault: silence, kind: connect, symbol: A}", 2, "symbol", "of no effect"),
        ("faults:\n  - {fault: silence, kind: time, symbol: A}", 2, "symbol", "of no effect"),
        (
            "faults:\n- fault: cut\n  from: 2024-01-02T15:00Z\n  until: 2024-01-02T16:00+01:00",
            *(4, "until", "not later than `from:`"),
        ),
        ("faults:\n  - {fault: link_lost, code: 1103}", 2, "code", "1101 or 1102"),
        ("faults:\n  - {fault: partial, bars_from: x}", 2, "bars_from", "not a known key"),
        ("faults:\n  - {fault: restated, bars_from: 2024-01-02}", 2, "bars_from", "an instant"),
        (
            "faults:\n- fault: restated\n  bars_from: 2024-01-02T15Z\n  bars_until: 2024-01-02T15Z",
            *(4, "bars_until", "not later than `bars_from:`"),
        ),
    ],
)
def test_an_error_names_its_line_and_key(text: str, line: int, key: str, reason: str) -> None:
    """An error names file, line and key, then the reason."""
    with pytest.raises(SimulatorError) as refused:
        parse_faults(text, "faults.yaml")
    number = f", {key}" if key else ""
    assert refused.value.what == f"faults.yaml, line {line}{number}"
    assert reason in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error names the file and the reason."""
    with pytest.raises(SimulatorError, match=r"none\.yaml.*No such file"):
        read_faults(tmp_path / "none.yaml")
