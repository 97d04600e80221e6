"""Any order of saves gives what a dictionary would hold."""

import tempfile
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_bars, read_footer
from ktrdr_pipelines.store.layout import create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.examples import examples

START = datetime(2023, 12, 31, 21, tzinfo=UTC)
"""Two hours before the FX year turns, so that saves fall on both sides."""

STEP = timedelta(minutes=5)
SLOTS = 36

SAVES = st.lists(
    st.tuples(
        st.integers(0, SLOTS - 1),
        st.integers(1, 12),
        st.integers(0, 3),
        st.sets(st.integers(0, 11)),
    ),
    max_size=8,
)
"""Each: first slot, number of slots, value (0: proved empty), slots inside without a bar."""


def _slot(number: int) -> datetime:
    return START + number * STEP


@examples(40)
@given(saves=SAVES)
def test_saves_equal_a_dictionary(make: Any, saves: list[tuple[int, int, int, set[int]]]) -> None:
    """Bars and coverage are what a naive model says, in every file by itself and in all."""
    series = make.series(Timeframe.M5, "EURUSD", "FX")
    values: dict[datetime, float] = {}
    covered: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        layout = create_store(Path(folder))
        with closing(Ledger(layout.ledger)) as ledger:
            store = BarStore(layout, ledger)
            for number, (first, count, value, missing) in enumerate(saves):
                slots = range(first, first + count)
                interval = Interval(_slot(first), _slot(first + count))
                if value:
                    times = [_slot(one) for one in slots if one - first not in missing]
                    bars = make.bars(series, times, float(value))
                    coverage = Coverage(IntervalSet([interval]))
                    values |= dict.fromkeys(times, float(value))
                    covered |= dict.fromkeys(slots, "bars")
                else:
                    bars = make.bars(series, [])
                    proof = Emptiness(interval, START + timedelta(days=1, seconds=number))
                    coverage = Coverage(empty=(proof,))
                    covered |= {s: "empty" for s in slots if covered.get(s) != "bars"}
                store.save(series, make.identity(series), bars, coverage)
            _compare(store, series, values, covered)


def _compare(
    store: BarStore, series: Any, values: dict[datetime, float], covered: dict[int, str]
) -> None:
    read = store.read(series)
    assert dict(zip(read["ts"].to_pylist(), read["close"].to_pylist(), strict=True)) == values
    assert read["ts"].to_pylist() == sorted(values)
    assert store.rows(series) == len(values)
    coverage = store.coverage(series)
    assert _slots_of(coverage) == covered
    together: dict[int, str] = {}
    for path in store.layout.bar_files(series.symbol, series.timeframe):
        inside = _slots_of(read_footer(path).coverage)
        assert not together.keys() & inside.keys()
        together |= inside
        assert {_number(ts) for ts in read_bars(path)["ts"].to_pylist()} <= inside.keys()
    assert together == covered


def _slots_of(coverage: Coverage) -> dict[int, str]:
    empty = IntervalSet(proof.interval for proof in coverage.empty)
    assert not coverage.bars & empty
    return {
        number: "bars" if _slot(number) in coverage.bars else "empty"
        for number in range(2 * SLOTS)
        if _slot(number) in coverage.bars | empty
    }


def _number(ts: datetime) -> int:
    return int((ts - START) / STEP)
