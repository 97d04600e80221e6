"""The time of a sensor tick over a large store, as ratios within one run.

500 symbols, 8 timeframes, 20 years: 4,000 series in 23,000 files. The files exist and are checked,
but hold nothing: the file index has the rows of full ones.
"""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from ktrdr_pipelines.defs.resources import IbResource, StoreResource
from ktrdr_pipelines.defs.schedules import request_tails
from ktrdr_pipelines.defs.sensors.gap_sensor import gap_sensor
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.session_grid import session_grid
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import (
    Instrument,
    Origin,
    SecType,
    Series,
    WhatToShow,
    identity_of,
)
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex, Memory, SeriesGaps
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import Footer
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.file_index import IndexedFile, fingerprint, indexed_file
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from tests.support.costs import cost_of

SYMBOLS = 500
FIRST, LAST = 2004, 2023
NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)


def _instrument(number: int) -> Instrument:
    is_fx = number % 10 == 0
    return Instrument(
        symbol=f"S{number:03d}",
        ib_symbol=f"S{number:03d}",
        sec_type=SecType.CASH if is_fx else SecType.STK,
        exchange="SMART",
        currency="USD",
        what_to_show=WhatToShow.MIDPOINT if is_fx else WhatToShow.TRADES,
        use_rth=not is_fx,
        calendar="FX" if is_fx else "XNYS.RTH",
        timeframes=tuple(Timeframe),
        start=date(FIRST, 1, 1),
    )


UNIVERSE = [Series(_instrument(n), timeframe) for n in range(SYMBOLS) for timeframe in Timeframe]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> StoreLayout:
    """Return a large store that is complete but for one day of one series."""
    layout = create_store(tmp_path_factory.mktemp("large"), Origin.IB)
    indexed: dict[tuple[str, Timeframe, int], IndexedFile] = {}
    with closing(Ledger(layout.ledger)) as ledger:
        for series in UNIVERSE:
            rows = {}
            folder = layout.series_folder(series.symbol, series.timeframe)
            folder.mkdir(parents=True)
            for stem, first, end in _files(series.timeframe):
                path = folder / f"{stem}.parquet"
                path.write_bytes(b"x")
                key = (series.instrument.calendar, series.timeframe, first)
                if key not in indexed:
                    indexed[key] = _indexed(series, path, first, end)
                rows[layout.relative(path)] = replace(indexed[key], fingerprint=fingerprint(path))
            ledger.files.record(series_key(series), rows)
    return layout


def _files(timeframe: Timeframe) -> list[tuple[str, int, int]]:
    if not timeframe.is_yearly_filed:
        return [("all", FIRST, LAST + 1)]
    return [(str(year), year, year + 1) for year in range(FIRST, LAST + 1)]


def _indexed(series: Series, path: Path, first: int, end: int) -> IndexedFile:
    calendar = calendar_named(series.instrument.calendar)
    spans = session_grid(calendar, series.timeframe)
    low, high = np.searchsorted(spans.days, [np.datetime64(f"{y}-01-01") for y in (first, end)])
    days = spans.days[low:high].astype(object).tolist()
    rows = dict(zip(days, spans.bars[low:high].tolist(), strict=True))
    interval = interval_between(calendar, series.timeframe, date(first, 1, 1), date(end, 1, 1))
    identity = identity_of(series, contract_id=1, origin=Origin.IB)
    coverage = Coverage(IntervalSet([interval]))
    return indexed_file(fingerprint(path), Footer(identity, coverage, sum(rows.values()), rows))


def _read_all(layout: StoreLayout) -> int:
    """Stat every file and read every row of the file index."""
    count = 0
    for series in UNIVERSE:
        with os.scandir(layout.series_folder(series.symbol, series.timeframe)) as entries:
            count += sum(entry.stat().st_size for entry in entries)
    with closing(Ledger(layout.ledger)) as ledger:
        return count + len(ledger.files.all())


def _best_s(act: Callable[[], object]) -> float:
    """Return the least processor time of several runs, in which other processes do not count."""
    return cost_of(act).cpu_ms / 1000


def _series_gaps(layout: StoreLayout, memory: Memory, now: datetime = NOW) -> list[SeriesGaps]:
    with closing(Ledger(layout.ledger)) as ledger:
        index = GapIndex(BarStore(layout, ledger), Calendars(), "gateway", memory=memory)
        return index.series_gaps(UNIVERSE, now)


@pytest.mark.slow
def test_the_gap_index_costs_little_more_than_reading_the_file_index(
    filled: StoreLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first evaluation costs some times as much, later ones less."""
    files = sum(1 for _ in filled.bars.rglob("*.parquet"))
    assert files == 23_000
    memory = Memory()
    assert not any(found.gaps for found in _series_gaps(filled, memory))
    plain = _best_s(lambda: _read_all(filled))
    cold = _best_s(lambda: _series_gaps(filled, Memory()))
    warm = _best_s(lambda: _series_gaps(filled, memory))
    closing_now = iter(NOW.replace(day=day, hour=22) for day in (2, 3, 4))
    closed = _best_s(lambda: _series_gaps(filled, memory, next(closing_now)))
    with capsys.disabled():
        times = f"plain {plain:.2f} s, cold {cold:.2f} s, warm {warm:.2f} s, closed {closed:.2f} s"
        print(f"\n{len(UNIVERSE)} series, {files} files: {times}")  # noqa: T201  (it reports)
    assert cold < 10 * plain
    assert warm < 2 * plain
    assert closed < 6 * plain


@pytest.mark.slow
def test_only_what_changed_is_read_again(filled: StoreLayout) -> None:
    """A file that changed is an error of its series; all other series are unchanged."""
    memory = Memory()
    before = _series_gaps(filled, memory)
    path = filled.series_folder("S007", Timeframe.M5) / "2010.parquet"
    path.write_bytes(b"changed")
    after = _series_gaps(filled, memory)
    changed = [new.series for old, new in zip(before, after, strict=True) if old is not new]
    assert [str(series) for series in changed] == ["S007 5m"]
    assert str(path) in str(after[UNIVERSE.index(changed[0])].error)


@pytest.mark.slow
def test_a_sensor_tick_costs_little_more_than_reading_the_file_index(
    filled: StoreLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Universe, gap index, runs and partitions: a whole tick, with nothing and with much due.

    On a store that lacks the year after its last bars every series is due, and 24 runs are
    requested.
    """
    entries = "".join(f"  S{number:03d}: {{}}\n" for number in range(SYMBOLS))
    names = ", ".join(Timeframe)
    filled.universe.write_text(
        f"defaults: {{timeframes: [{names}], start: {FIRST}-01-01}}\n"
        f"windows: {{1m: {FIRST}-01, yearly: {FIRST}}}\nsymbols:\n{entries}"
    )
    settings = Settings(ktrdr_data=filled.root, ktrdr_state=tmp_path)
    ib, store = IbResource.of(settings), StoreResource(data_dir=str(filled.root))
    windows = store.universe().windows
    resources = {"ib": ib, "store": store}
    with dg.DagsterInstance.ephemeral() as instance:
        for timeframe in Timeframe:
            symbols = [f"S{number:03d}" for number in range(SYMBOLS)]
            instance.add_dynamic_partitions(f"symbols_{timeframe}", symbols)

        def tick(now: datetime) -> dg.SensorResult:
            context = dg.build_sensor_context(instance=instance, resources=resources)
            result = gap_sensor(tuple(Timeframe), windows, lambda: now)(context)
            assert isinstance(result, dg.SensorResult)
            return result

        idle = tick(NOW)
        assert not idle.run_requests
        assert "nothing is missing in 4000 series" in str(idle.skip_reason)
        plain = _best_s(lambda: _read_all(filled))
        nothing = _best_s(lambda: tick(NOW))
        later = NOW.replace(year=NOW.year + 1)
        assert len(tick(later).run_requests or ()) == 24
        much = _best_s(lambda: tick(later))
        tails = _best_s(lambda: request_tails(instance, ib, store, NOW))
    with capsys.disabled():
        times = f"nothing due {nothing:.2f} s, all due {much:.2f} s, tails {tails:.2f} s"
        print(f"\na tick over {SYMBOLS} x {len(Timeframe)} series: {times}")  # noqa: T201
    assert nothing < 5 * plain
    assert much < 8 * plain
    assert tails < 5 * plain
