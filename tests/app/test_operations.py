"""Operations: loads in the background, joined, cancelled, remembered, and told after a restart."""

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.app import operations as module
from ktrdr_pipelines.app.operations import Operations
from ktrdr_pipelines.app.views.load_documents import LoadStatus, OperationDocument, OperationState
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    DiskError,
    GatewayUnreachableError,
    StoppingError,
    UnknownOperationError,
    UnknownSymbolError,
    UsageError,
)
from ktrdr_pipelines.store.bars import filing
from ktrdr_pipelines.store.claim_owners import living_owner
from ktrdr_pipelines.store.layout import StoreLayout
from tests.support.loading import World
from tests.support.workspaces import FakeWorkspace, workspace_of

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
FIRST, END = date(2024, 6, 3), date(2024, 6, 15)
RANGE: dict[str, Any] = {"mode": "full", "start": FIRST, "end": END}


class Gate:
    """Holds requests for bars once a number of them was let through."""

    def __init__(self, made: World, after: int = 0) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()
        self._left = after
        made.harness.gateway.before_response = self._pass

    def open(self) -> None:
        """Let all requests through."""
        self._open.set()

    async def _pass(self, _: object) -> None:
        if self._left > 0:
            self._left -= 1
            return
        self.reached.set()
        while not self._open.is_set():  # noqa: ASYNC110  (one gate serves several loops)
            await asyncio.sleep(0.001)


@contextmanager
def operations_of(made: World, **options: Any) -> Iterator[Operations]:
    """Run operations over the store and the gateway of a world."""
    with Operations(lambda: workspace_of(made), **options) as running:
        yield running


def records_in(layout: StoreLayout) -> dict[str, Any]:
    """Return the operations on disk by id."""
    return {
        path.stem: json.loads(path.read_text())["operation"]
        for path in layout.operations.glob("*.json")
    }


def test_a_load_runs_in_the_background(world: MakeWorld) -> None:
    """It is told while it runs, at its end with its result, and by the next process."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    gate = Gate(made)
    with operations_of(made) as running:
        started = running.start_load("AAPL", "1h", **RANGE, description="the first")
        assert gate.reached.wait(60)
        known = running.get(started.id)
        assert known.state is OperationState.RUNNING
        assert known.progress.requests_planned > known.progress.requests_done == 0
        assert running.wait(started.id, 0.0).state is OperationState.RUNNING
        gate.open()
        ended = running.wait(started.id)
        assert (ended.state, ended.description) == (OperationState.COMPLETED, "the first")
        (result,) = ended.results
        assert result.status is LoadStatus.SUCCESS
        assert ended.bars_held == result.new_bars == 70
        assert ended.progress.requests_done == result.requests_made
        assert ended.progress.saved_at is not None
        assert running.list().operations == (ended,)
        assert running.cancel(started.id) == ended
    made.check_complete()
    assert made.harness.layout.catalog.exists()
    with operations_of(made) as later:
        assert later.get(started.id) == ended
        assert later.list().operations == (ended,)


def test_bad_input_is_refused_at_once(world: MakeWorld) -> None:
    """Nothing is started, and an id of other things is no path."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    with operations_of(made) as running:
        with pytest.raises(UnknownSymbolError):
            running.start_load("MSFT", "1h")
        with pytest.raises(UsageError, match="reversed"):
            running.start_load("AAPL", "1h", start=END, end=FIRST)
        with pytest.raises(UsageError, match="no such mode"):
            running.start_load("AAPL", "1h", mode="all")
        for unknown in ("0" * 32, "../../store", ""):
            with pytest.raises(UnknownOperationError):
                running.get(unknown)
            with pytest.raises(UnknownOperationError):
                running.cancel(unknown)
            with pytest.raises(UnknownOperationError):
                running.wait(unknown)
        assert running.list().operations == ()
    with pytest.raises(StoppingError):
        running.start_load("AAPL", "1h")


def test_identical_loads_are_one(world: MakeWorld) -> None:
    """Another range or mode is another load; an ended one is not joined."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    gate = Gate(made)
    with operations_of(made) as running:
        first = running.start_load("AAPL", "1h", **RANGE)
        same = running.start_load("AAPL", "1h", mode="full", start="2024-06-03", end="2024-06-15")
        other = running.start_load("AAPL", "1h", mode="full", start=FIRST, end="2024-06-10")
        assert first.id == same.id != other.id
        gate.open()
        assert running.wait(first.id).state is OperationState.COMPLETED
        assert running.wait(other.id).state is OperationState.COMPLETED
        requests = made.harness.request_count
        again = running.wait(running.start_load("AAPL", "1h", **RANGE).id)
        assert again.id != first.id
        assert (again.results[0].requests_made, made.harness.request_count) == (0, requests)
    made.check_complete()


def test_a_cancelled_load_keeps_what_it_received(world: MakeWorld) -> None:
    """It ends when that is saved; cancelling again changes nothing."""
    made = world(RTH, Timeframe.M1, FIRST, END)
    gate = Gate(made, after=7)
    with operations_of(made) as running:
        started = running.start_load("AAPL", "1m", **RANGE)
        assert gate.reached.wait(60)
        for _ in range(3):
            running.cancel(started.id)
        ended = running.wait(started.id)
        assert ended.state is OperationState.CANCELLED
        (result,) = ended.results
        assert (result.status, result.requests_made) == (LoadStatus.PARTIAL, 7)
        assert "cancelled" in str(result.error_message)
        assert result.missing
        assert ended.bars_held == made.harness.store.rows(made.series) == result.new_bars == 7 * 390
    made.check()


def test_a_load_that_is_cancelled_at_once_ends(world: MakeWorld) -> None:
    """Whether it was queued, had just begun, or not yet."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    Gate(made)
    with operations_of(made, at_once=1) as running:
        first = running.start_load("AAPL", "1h", **RANGE)
        queued = running.start_load("AAPL", "1h", mode="tail")
        assert queued.state is OperationState.QUEUED
        assert running.cancel(queued.id).state is OperationState.CANCELLED
        assert running.cancel(first.id).id == first.id
        assert running.wait(first.id).state is OperationState.CANCELLED
        third = running.start_load("AAPL", "1h", mode="local", start=FIRST, end=END)
        assert running.wait(third.id).results[0].status is LoadStatus.PARTIAL


def test_closing_interrupts_and_saves(world: MakeWorld) -> None:
    """The running load is interrupted with what it received, the queued one without."""
    made = world(RTH, Timeframe.M1, FIRST, END)
    gate = Gate(made, after=7)
    with operations_of(made, at_once=1) as running:
        started = running.start_load("AAPL", "1m", **RANGE)
        queued = running.start_load("AAPL", "1m", mode="backfill", start=FIRST, end=END)
        assert gate.reached.wait(60)
    running.close()
    with operations_of(made) as later:
        states = {one.id: one for one in later.list().operations}
    assert {one.state for one in states.values()} == {OperationState.INTERRUPTED}
    assert states[queued.id].progress.requests_done == 0
    assert states[started.id].bars_held == made.harness.store.rows(made.series) == 7 * 390
    assert not list(made.harness.layout.locks.glob("owner-*.lock"))


def test_some_run_at_once_and_the_others_wait(world: MakeWorld) -> None:
    """Each is run in the end."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    gate = Gate(made)
    with operations_of(made, at_once=2) as running:
        days = range(4, 9)
        started = [
            running.start_load("AAPL", "1d", mode="full", start=FIRST, end=date(2024, 6, day))
            for day in days
        ]
        states = [running.get(one.id).state for one in started]
        assert states.count(OperationState.RUNNING) == 2
        assert states.count(OperationState.QUEUED) == 3
        gate.open()
        ended = [running.wait(one.id) for one in started]
    assert {one.state for one in ended} == {OperationState.COMPLETED}
    assert {one.results[0].status for one in ended} == {LoadStatus.SUCCESS}


def test_trouble_of_a_load_is_told(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that is away is the error of its result; a full disk that of the operation."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    made.harness.gateway.mutate = lambda *_: GatewayUnreachableError("connect", reason="away")
    with operations_of(made) as running:
        away = running.wait(running.start_load("AAPL", "1d", **RANGE).id)
        assert away.state is OperationState.FAILED
        assert away.results[0].status is LoadStatus.FAILED
        assert away.error == away.results[0].error
        assert away.error is not None
        assert away.error.kind == "GatewayUnreachableError"
        made.harness.gateway.mutate = None
        some = {"mode": "full", "start": FIRST, "end": date(2024, 6, 8)}
        running.wait(running.start_load("AAPL", "1d", **some).id)
        made.harness.gateway.mutate = lambda *_: GatewayUnreachableError("connect", reason="away")
        partial = running.wait(running.start_load("AAPL", "1d", **RANGE).id)
        assert (partial.state, partial.bars_held) == (OperationState.COMPLETED, 5)
        assert partial.results[0].status is LoadStatus.PARTIAL
        assert partial.error == away.error
        made.harness.gateway.mutate = None

        def refuse(*_: object, **__: object) -> None:
            raise DiskError("cannot write", reason="No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(filing.BarFiles, "write", refuse)
            full = running.wait(running.start_load("AAPL", "1d", **RANGE).id)
        assert (full.state, full.bars_held) == (OperationState.FAILED, 5)
        assert full.error is not None
        assert full.error.kind == "DiskError"
        assert running.wait(running.start_load("AAPL", "1d", **RANGE).id).bars_held == 10


def test_a_defect_ends_its_operation_alone(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its traceback, and the next operation runs."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    with operations_of(made) as running:
        with monkeypatch.context() as patch:
            patch.setattr(module, "SeriesLoads", lambda *_, **__: 1 / 0)
            failed = running.wait(running.start_load("AAPL", "1d", **RANGE).id)
        assert failed.state is OperationState.FAILED
        assert failed.error is not None
        assert "ZeroDivisionError" in failed.error.message
        assert any(record.exc_info for record in caplog.records)
        assert running.wait(running.start_load("AAPL", "1d", **RANGE).id).bars_held == 10


def test_operations_go_on_where_they_cannot_be_recorded(
    world: MakeWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """The load is done, and told by its own process."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    made.harness.layout.state.mkdir(exist_ok=True)
    made.harness.layout.operations.write_text("in the way")
    with operations_of(made) as running:
        ended = running.wait(running.start_load("AAPL", "1d", **RANGE).id)
        assert (ended.state, ended.bars_held) == (OperationState.COMPLETED, 10)
    assert "is not recorded" in caplog.text


def test_an_update_loads_the_universe(world: MakeWorld) -> None:
    """It is what the command does; series that needed nothing are left out of the results."""
    made = world(RTH, Timeframe.D1, FIRST, END, now=None)
    made.harness.gateway.time = made.wanted.end + timedelta(days=2)
    with operations_of(made) as running:
        with pytest.raises(UnknownSymbolError):
            running.start_update("MSFT")
        first = running.start_update("AAPL")
        ended = running.wait(first.id)
        assert (ended.kind, ended.symbol) == ("update", None)
        assert {one.timeframe for one in ended.results} >= {"1d"}
        (daily,) = (one for one in ended.results if one.timeframe == "1d")
        assert (daily.new_bars > 0, daily.status) == (True, LoadStatus.SUCCESS)
        again = running.wait(running.start_update("AAPL").id)
        assert "1d" not in {one.timeframe for one in again.results}


def test_the_end_of_a_process_interrupts_its_operations(world: MakeWorld) -> None:
    """One of a living process is told as it is, and cannot be cancelled from here."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    made.load()
    with operations_of(made) as running:
        started = running.wait(running.start_load("AAPL", "1h", **RANGE).id)
    layout = made.harness.layout
    path = layout.operations / f"{started.id}.json"
    record = json.loads(path.read_text())
    record["operation"] |= {"state": "running", "ended_at": None, "results": [], "bars_held": None}
    with living_owner(layout) as owner, operations_of(made) as other:
        path.write_text(json.dumps(record | {"owner": owner}))
        assert other.get(started.id).state is OperationState.RUNNING
        assert other.wait(started.id, 0.01).state is OperationState.RUNNING
        with pytest.raises(UsageError, match="another process"):
            other.cancel(started.id)
    with operations_of(made) as other:
        found = other.get(started.id)
        assert other.list().operations == (found,)
        assert other.cancel(started.id) == other.wait(started.id) == found
    assert (found.state, found.bars_held) == (OperationState.INTERRUPTED, 70)
    assert found.ended_at is not None
    assert records_in(layout)[started.id]["state"] == "interrupted"


def test_damaged_records_are_left_out(world: MakeWorld, caplog: pytest.LogCaptureFixture) -> None:
    """The others are listed; what is no record's name is not read."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    with operations_of(made) as running:
        started = running.wait(running.start_load("AAPL", "1h", mode="local").id)
    folder = made.harness.layout.operations
    (folder / f"{'a' * 32}.json").write_text("{")
    (folder / f"{'b' * 32}.json").write_text("[1]")
    unknown = {"owner": "x", "written_at": "2024-01-01T00:00:00Z", "operation": {"state": "odd"}}
    (folder / f"{'c' * 32}.json").write_text(json.dumps(unknown))
    (folder / "notes.json").write_text("{")
    (folder / f"{'d' * 32}.json").mkdir()
    with operations_of(made) as later:
        assert [one.id for one in later.list().operations] == [started.id]
        with pytest.raises(UnknownOperationError):
            later.get("a" * 32)
    assert caplog.text.count("no record") == 2


def test_old_operations_are_forgotten(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """By number and by age."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    monkeypatch.setattr(module, "MOST_KEPT", 3)

    def read_local(running: Operations, day: int) -> OperationDocument:
        made.harness.gateway.time += timedelta(minutes=1)
        end = date(2024, 6, day)
        started = running.start_load("AAPL", "1h", mode="local", start=FIRST, end=end)
        return running.wait(started.id)

    with operations_of(made) as running:
        ids = [read_local(running, day).id for day in range(4, 9)]
        assert set(records_in(made.harness.layout)) == set(ids[-3:])
        assert [one.id for one in running.list().operations] == ids[:1:-1]
        made.harness.gateway.time += timedelta(days=31)
        last = read_local(running, 9).id
        assert set(records_in(made.harness.layout)) == {last}


def test_an_ended_operation_keeps_no_workspace(world: MakeWorld) -> None:
    """Each one holds files open; two hundred of them would reach the limit of a process."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    opened: list[weakref.ref[FakeWorkspace]] = []

    def open_workspace() -> FakeWorkspace:
        workspace = workspace_of(made)
        opened.append(weakref.ref(workspace))
        return workspace

    with Operations(open_workspace) as running:
        started = [running.start_load("AAPL", "1h", mode=mode).id for mode in ("local", "full")]
        ended = [running.wait(one) for one in started]
        for thread in threading.enumerate():
            if thread.name.startswith("ktrdr-operation"):
                thread.join()
        gc.collect()
        assert len(opened) >= 2
        assert [one() for one in opened if one() is not None] == []
        assert [running.get(one) for one in started] == ended


def test_operations_are_started_inside_a_running_event_loop(world: MakeWorld) -> None:
    """A server's handlers do; a client that goes away does not stop the load."""
    made = world(RTH, Timeframe.D1, FIRST, END)

    async def handler(running: Operations) -> OperationDocument:
        started = running.start_load("AAPL", "1d", **RANGE)
        client = asyncio.create_task(asyncio.to_thread(running.wait, started.id, 60.0))
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        return await asyncio.to_thread(running.wait, started.id)

    with operations_of(made) as running:
        assert asyncio.run(handler(running)).results[0].status is LoadStatus.SUCCESS


def test_many_loads_renew_the_catalog_a_few_times(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not due after each; closing brings it up to date."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    renewed: list[int] = []

    class Counted(FakeWorkspace):
        def is_catalog_due(self) -> bool:
            return False

        def renew_catalog(self) -> None:
            renewed.append(made.harness.store.rows(made.series))
            super().renew_catalog()

    universe = workspace_of(made).universe
    with Operations(lambda: Counted(made.harness, universe)) as running:
        for day in range(4, 15):
            days = {"start": date(2024, 6, day - 1), "end": date(2024, 6, day)}
            running.wait(running.start_load("AAPL", "1d", mode="full", **days).id)
        assert renewed == []
    assert renewed == [9]
    running.close()
    assert renewed == [9]
