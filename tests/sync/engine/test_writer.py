"""Stores that are moved, deleted or replaced during a load, and what is claimed ahead."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.reports import Quiet
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import StoreReplacedError
from ktrdr_pipelines.gaps import catalog_refresh as catalog
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.catalog import catalog as store_catalog
from ktrdr_pipelines.store.claim_owners import CLAIM_S, Claimant, claiming
from ktrdr_pipelines.store.layout import StoreLayout, create_store, open_store
from ktrdr_pipelines.store.ledger.ledger import Ledger, open_ledger, series_key
from ktrdr_pipelines.store.maintenance.rename import rename
from ktrdr_pipelines.store.maintenance.repair import repair
from ktrdr_pipelines.sync.engine.source_session import RetryPolicy
from ktrdr_pipelines.sync.engine.writer import SeriesWriter
from tests.support.loading import World

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
JUNE = date(2024, 6, 3), date(2024, 6, 29)
MARK = datetime(2024, 6, 3, tzinfo=UTC)


def writer_of(
    store: BarStore, series: Series, claimant: Claimant, *, clock: Callable[[], datetime]
) -> SeriesWriter:
    """Return a writer of a series."""
    return SeriesWriter(
        store,
        claimant,
        series,
        identity=identity_of(series, contract_id=1, origin=Origin.IB),
        again=None,
        clocks=RetryPolicy(clock=clock),
        progress=Quiet(),
        threads=ThreadPoolExecutor(1),
    )


def move_away(layout: StoreLayout) -> Path:
    """Move the store to another path."""
    return layout.root.rename(layout.root.with_name("moved"))


def replace(layout: StoreLayout) -> Path:
    """Move the store away and create another in its place, whose ledger is in use."""
    moved = move_away(layout)
    other = create_store(layout.root, Origin.IB)
    with closing(Ledger(other.ledger)) as ledger:
        ledger.kept_fresh.record("MSFT|1d", MARK)
    return moved


def copy_in_place(layout: StoreLayout) -> Path:
    """Put a copy, with the same id, where the store was."""
    moved = move_away(layout)
    shutil.copytree(moved, layout.root)
    return moved


def delete_and_create(layout: StoreLayout) -> None:
    """Delete the store and create another at its path; inodes may be reused."""
    shutil.rmtree(layout.root)
    create_store(layout.root, Origin.IB)


def empty_and_create(layout: StoreLayout) -> None:
    """Create another store in the same folder."""
    for path in layout.root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    create_store(layout.root, Origin.IB)


def switch_bars(layout: StoreLayout) -> Path:
    """Replace the folder of bars, as a mount would; the rest of the store stays."""
    moved = layout.bars.rename(layout.root.with_name("other-bars"))
    layout.bars.mkdir()
    return moved


WAYS = [move_away, replace, copy_in_place, delete_and_create, empty_and_create, switch_bars]
"""Ways in which a store is not at its path any more."""


def everything(root: Path) -> dict[str, bytes]:
    """Return the files below a folder without locks and the ledger, which ``dump`` compares."""
    if not root.exists():
        return {}
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".lock" and not path.name.startswith("ledger.")
    }


def dump(layout: StoreLayout) -> list[str]:
    """Return all rows of the ledger at a path."""
    if not layout.ledger.exists():
        return []
    with closing(sqlite3.connect(layout.ledger)) as connection:
        return list(connection.iterdump())


def before_response(layout: StoreLayout, number: int, way: Callable[..., object]) -> Callable:
    """Return a callback that replaces the store before the n-th response and records the result."""
    count = iter(range(1, 10_000))
    found: dict[str, object] = {}

    async def act(_: BarRequest) -> None:
        if next(count) == number:
            way(layout)
            found.update(files=everything(layout.root), rows=dump(layout))

    act.found = found  # type: ignore[attr-defined]
    return act


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [1, 6, 19])
def test_a_run_fails_and_writes_nothing_into_another_store(
    world: MakeWorld, way: Callable[..., object], number: int
) -> None:
    """Before the first save, between saves, at the end: the new contents stay unchanged."""
    made = world(RTH, Timeframe.M1, *JUNE)
    layout = made.harness.layout
    act = before_response(layout, number, way)
    made.harness.gateway.before_response = act
    made.harness.gateway.concurrency = 1
    with pytest.raises(StoreReplacedError, match=r"is not the one that was opened") as caught:
        made.load()
    assert str(layout.root) in str(caught.value)
    assert everything(layout.root) == act.found["files"]
    if way is not switch_bars:  # its ledger is still that of the store
        assert dump(layout) == act.found["rows"]


@pytest.mark.parametrize("way", [move_away, replace, copy_in_place])
def test_saved_bars_stay_in_the_store_that_was_opened(
    world: MakeWorld, way: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moved store is complete, and a load continues where the run ended."""
    monkeypatch.setattr("ktrdr_pipelines.sync.engine.writer._EVERY_S", 0.0)
    made = world(RTH, Timeframe.M1, *JUNE)
    made.harness.gateway.before_response = before_response(made.harness.layout, 8, way)
    made.harness.gateway.concurrency = 1
    with pytest.raises(StoreReplacedError):
        made.load()
    moved = open_store(made.harness.layout.root.with_name("moved"))
    assert repair(moved).quarantined == ()
    made.harness.layout = moved
    made.harness.ledger = open_ledger(moved)
    held = made.harness.store.rows(made.series)
    assert held > 0
    made.check()
    made.harness.gateway.before_response = None
    assert made.load().is_complete
    made.check_complete()


def test_an_old_store_without_an_id_is_checked_too(world: MakeWorld) -> None:
    """Its marker gets the version alone, and a store that takes its place is another one."""
    made = world(RTH, Timeframe.D1, *JUNE)
    layout = made.harness.layout
    layout.marker.write_text('{"format_version": 1, "origin": "ib"}')
    made.harness.layout = open_store(layout.root)
    made.load()
    assert json.loads(layout.marker.read_text()) == {"format_version": 2, "origin": "ib"}

    def replace_by_old(layout: StoreLayout) -> None:
        text = layout.marker.read_text()
        delete_and_create(layout)
        layout.marker.write_text(text)

    made = World(made.harness, made.series, made.wanted)
    (layout.bars / "symbol=AAPL" / "timeframe=1d" / "all.parquet").unlink()
    made.harness.gateway.before_response = before_response(layout, 1, replace_by_old)
    with pytest.raises(StoreReplacedError):
        made.load()
    assert list(layout.bars.rglob("*.parquet")) == []


def test_a_store_that_is_not_open_may_be_moved(world: MakeWorld) -> None:
    """A load at the new path knows all held bars; two paths to one store are one store."""
    made = world(RTH, Timeframe.D1, *JUNE)
    made.load()
    moved = move_away(made.harness.layout)
    alias = moved.with_name("alias")
    alias.symlink_to(moved)
    for root in (moved, alias):
        made.harness.layout = open_store(root)
        made.harness.ledger = open_ledger(made.harness.layout)
        assert made.load().requests == 0
    made.harness.layout.root.unlink()


@pytest.mark.parametrize("way", WAYS)
def test_no_other_work_continues_in_a_replaced_store(
    world: MakeWorld, way: Callable[..., object]
) -> None:
    """Repair, rename, catalog and gap index refuse a store that is not the one they opened."""
    made = world(RTH, Timeframe.D1, *JUNE)
    made.load()
    layout = made.harness.layout
    layout.universe.write_text("symbols: {AAPL: {}}\n")
    ledger = open_ledger(layout)
    store = BarStore(layout, ledger)
    index = GapIndex(store, ledger.calendars(), "fake:1")
    identity, bars = store.identity(made.series), store.read(made.series)
    way(layout)
    before = everything(layout.root), dump(layout)
    instruments, now = [made.series.instrument], made.harness.gateway.time
    if way is not switch_bars:  # a user may have replaced the bars before a repair
        with pytest.raises(StoreReplacedError):
            repair(layout, instruments, now)
    for act in (
        lambda: rename(layout, "AAPL", "APPL2", now),
        lambda: catalog.renew_catalog(index, instruments, now),
        lambda: store_catalog.rebuild_catalog(layout, instruments, now),
        lambda: store.save(made.series, identity, bars, Coverage()),
    ):
        with pytest.raises(StoreReplacedError):
            act()
    assert (everything(layout.root), dump(layout)) == before


def test_an_open_ledger_keeps_the_log_of_another(world: MakeWorld) -> None:
    """Closing a ledger whose file was moved deletes nothing at its old path."""
    made = world(RTH, Timeframe.D1, *JUNE)
    layout = made.harness.layout
    ledger = open_ledger(layout)
    ledger.kept_fresh.record("AAPL|1d", MARK)
    made.harness.ledger.close()
    replace(layout)
    other = sqlite3.connect(layout.ledger)
    with closing(other):
        other.execute("INSERT INTO kept_fresh VALUES ('OTHER|1d', 1)")
        other.commit()
        log = layout.ledger_beside("-wal")
        assert log.stat().st_size > 0
        ledger.close()
        assert log.stat().st_size > 0
    assert {"OTHER|1d", "MSFT|1d"} <= set(Ledger(layout.ledger).kept_fresh.all())


def test_what_is_claimed_ahead_stays_claimed_until_it_is_not_needed(world: MakeWorld) -> None:
    """Other runs cannot claim it; a write releases only what was requested or fell away."""
    made = world(RTH, Timeframe.M1, *JUNE)
    store, now = made.harness.store, made.harness.gateway.now()
    days = [Interval(MARK + timedelta(days=n), MARK + timedelta(days=n + 1)) for n in range(5)]
    key = series_key(made.series)

    def live() -> list[Interval]:
        return [one.interval for one in store.ledger.claims.live(key, now)]

    with (
        claiming(store.layout, store.ledger) as claimant,
        claiming(store.layout, store.ledger) as other,
    ):
        writer = writer_of(store, made.series, claimant, clock=made.harness.gateway.now)
        assert other.claim_each(made.series, [days[3]], now)
        assert writer.claim(days[0], days[1:4])
        assert live() == days[:4]
        assert not other.claim_each(made.series, [days[1]], now)
        writer.commits.received(days[0])
        assert writer.claim(days[4], days[2:4])
        assert not writer.claim(days[3], days[2:3])
        writer.commits.received(days[4])
        asyncio.run(writer.commits.flush())
        assert live() == [days[2], days[3]]
        writer.release_ahead()
        writer.commits.commit()
        assert live() == [days[3]]


def test_what_is_claimed_once_more_is_not_released_by_the_write_of_before(
    world: MakeWorld,
) -> None:
    """It fell away and came back before the write: its bars are not on disk yet."""
    made = world(RTH, Timeframe.M1, *JUNE)
    store, now = made.harness.store, made.harness.gateway.now()
    days = [Interval(MARK + timedelta(days=n), MARK + timedelta(days=n + 1)) for n in range(4)]
    with claiming(store.layout, store.ledger) as claimant:
        writer = writer_of(store, made.series, claimant, clock=made.harness.gateway.now)
        assert writer.claim(days[0], days[1:3])
        assert writer.claim(days[3])
        assert writer.claim(days[1], days[2:3])
        writer.commits.received(days[0])
        asyncio.run(writer.commits.flush())
        live = store.ledger.claims.live(series_key(made.series), now)
        assert [one.interval for one in live] == days[1:]
        writer.commits.commit()


def test_a_claim_made_ahead_that_may_lapse_is_made_once_more(world: MakeWorld) -> None:
    """A gateway that is away for an hour ends it; another run may have claimed the interval."""
    made = world(RTH, Timeframe.M1, *JUNE)
    store, now = made.harness.store, made.harness.gateway.now()
    days = [Interval(MARK + timedelta(days=n), MARK + timedelta(days=n + 1)) for n in range(3)]
    times = [now]
    with (
        claiming(store.layout, store.ledger) as claimant,
        claiming(store.layout, store.ledger) as other,
    ):
        writer = writer_of(store, made.series, claimant, clock=lambda: times[-1])
        assert writer.claim(days[0], days[1:])
        times.append(now + timedelta(seconds=CLAIM_S + 1))
        assert other.claim_each(made.series, [days[1]], times[-1])
        assert not writer.claim(days[1])
        assert writer.claim(days[2])
        assert not other.claim_each(made.series, [days[2]], times[-1])
        writer.commits.commit()
