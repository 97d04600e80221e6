"""The code that tests of several processes run in those processes, by mode.

Not a test module: ``python -m tests.store.bars.store_processes MODE FOLDER NUMBER``.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_file import write_file
from ktrdr_pipelines.store.bars.bar_store import BarStore, read_bars, read_footer
from ktrdr_pipelines.store.catalog.catalog import rebuild_catalog
from ktrdr_pipelines.store.layout import StoreLayout, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger, series_key
from tests.store.conftest import Make

make = Make()
START = datetime(2023, 12, 31, 21, tzinfo=UTC)
NOW = datetime(2024, 6, 3, tzinfo=UTC)
FX = make.series(Timeframe.M5, "EURUSD", "FX")
STOCK = make.series(Timeframe.M1)


def report(number: int) -> None:
    """Write a number to the test."""
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


def in_workers(work: Callable[[int], None], count: int) -> None:
    """Run work in several child processes at once, each with its number."""
    make.run(FX, START, 1)  # children inherit the calendar: their time goes into the work
    children = []
    for number in range(count):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                work(number)
            except BaseException:  # noqa: BLE001  (the edge of the child process)
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def save(layout: StoreLayout, number: int) -> None:
    """Save the hours of a week in several processes, each hour in one of them."""

    def work(worker: int) -> None:
        with closing(Ledger(layout.ledger)) as ledger:
            store = BarStore(layout, ledger)
            for hour in range(worker, 90, number):
                make.save(store, FX, make.run(FX, START + timedelta(hours=hour), 12, hour + 1.0))

    in_workers(work, number)


def claim(layout: StoreLayout, number: int) -> None:
    """Claim as many of the same intervals as possible in several processes, and report them."""

    def work(worker: int) -> None:
        with closing(Ledger(layout.ledger)) as ledger:
            for hour in range(200):  # all in one order, so that they meet
                start = START + timedelta(hours=hour)
                wanted = [Interval(start, start + timedelta(hours=1))]
                if ledger.claims.acquire(series_key(FX), wanted, f"worker {worker}", NOW, 3600):
                    report(hour)

    in_workers(work, number)


def rewrite(layout: StoreLayout, number: int) -> None:
    """Replace all bars repeatedly, each time all by one value, and rebuild the catalog."""
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        for turn in range(number):
            report(turn)
            first = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
            make.save(store, STOCK, make.run(STOCK, first, 500 + turn, turn + 1.0))
            rebuild_catalog(layout, [STOCK.instrument], NOW)


def refile(layout: StoreLayout, number: int) -> None:
    """Write one file again and again, each time all bars by one value, of which as many are more.

    These values and numbers take the same bytes, so that pages lie where those of the version
    before lay, if nothing is done about it.
    """
    (path,) = layout.bar_files(STOCK.symbol, STOCK.timeframe)
    first = datetime(2024, 6, 3, 13, 30, tzinfo=UTC)
    versions = []
    for turn in range(31):
        bars = make.run(STOCK, first, 500 + turn, float(turn))
        versions.append((bars, replace(read_footer(path), rows=bars.num_rows)))
    for turn in range(number):
        write_file(path, *versions[turn % len(versions)])


def kill(layout: StoreLayout, number: int) -> None:
    """Kill writers at random moments; each time every footer must match the bars of its file."""
    chosen = random.Random(1)
    make.run(FX, START, 1)  # children inherit the calendar: their time goes into saving
    took_s = _seconds_of_a_save(layout)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for turn in range(number):
        child = os.fork()
        if child == 0:
            _save_for_ever(layout, turn)
        assert not signal.sigtimedwait({signal.SIGCHLD}, chosen.uniform(0.2, 4) * took_s), "it died"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        signal.sigwait({signal.SIGCHLD})
        _check(layout)
    report(len(_timestamps(layout)))


def inherit(layout: StoreLayout, number: int) -> None:
    """Use one ledger before a fork and on both sides of it."""
    ledger = Ledger(layout.ledger)
    wanted = [Interval(START + timedelta(hours=n), START + timedelta(hours=n + 1)) for n in (0, 1)]
    assert ledger.claims.acquire(series_key(FX), wanted[:1], "parent", NOW, 3600)
    with ledger.database.reading() as inherited:
        pass
    child = os.fork()
    if child == 0:
        granted = ledger.claims.acquire(series_key(FX), wanted, "child", NOW, 3600)
        with ledger.database.reading() as own:
            os._exit(0 if granted == wanted[1:] and own is not inherited else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    ledger.claims.release("parent")
    report(len(ledger.claims.live(series_key(FX), NOW)) + number)


def _seconds_of_a_save(layout: StoreLayout) -> float:
    """Return how long one save takes in a child, whose first save is the slowest."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _save(layout, 0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.monotonic() - started


def _save_for_ever(layout: StoreLayout, turn: int) -> None:
    hour = turn
    while True:
        hour += 5
        _save(layout, hour)


def _save(layout: StoreLayout, hour: int) -> None:
    with closing(Ledger(layout.ledger)) as ledger:
        first = START + timedelta(hours=hour % 24 - 12)
        make.save(BarStore(layout, ledger), FX, make.run(FX, first, 12, hour + 1.0))


def _check(layout: StoreLayout) -> None:
    for path in layout.bar_files(FX.symbol, FX.timeframe):
        bars = read_bars(path)
        assert read_footer(path).coverage == make.covering(FX, bars), path
    with closing(Ledger(layout.ledger)) as ledger:
        store = BarStore(layout, ledger)
        assert store.coverage(FX) == make.covering(FX, store.read(FX))


def _timestamps(layout: StoreLayout) -> list[datetime]:
    with closing(Ledger(layout.ledger)) as ledger:
        timestamps: list[datetime] = BarStore(layout, ledger).read(FX)["ts"].to_pylist()
        return timestamps


MODES: dict[str, Callable[[StoreLayout, int], None]] = {
    "save": save,
    "claim": claim,
    "rewrite": rewrite,
    "refile": refile,
    "kill": kill,
    "inherit": inherit,
}

if __name__ == "__main__":
    mode, folder, count = sys.argv[1:]
    MODES[mode](open_store(Path(folder)), int(count))
