"""DataManager: local first, the gateway only for what is incomplete, and what is missing."""

import asyncio
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ktrdr_pipelines.app.data_manager import DataManager, Loaded
from ktrdr_pipelines.app.views.load_documents import LoadStatus
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import (
    ConnectionLostError,
    DiskError,
    EntitlementError,
    GatewayUnreachableError,
    NoStoreError,
    UnknownSymbolError,
    UsageError,
)
from ktrdr_pipelines.store.bars import filing
from tests.support.fake_gateway import utc
from tests.support.loading import World
from tests.support.workspaces import FakeWorkspace, workspace_of

MakeWorld = Callable[..., World]
RTH = "XNYS.RTH"
FIRST, END = date(2024, 6, 3), date(2024, 6, 15)


def manager_of(made: World) -> DataManager:
    """Return a manager over the store and the gateway of a world."""
    return DataManager(workspace_of(made))


def unreachable(*_: object) -> GatewayUnreachableError:
    """Return the error of a gateway that is away."""
    return GatewayUnreachableError("connect", reason="no listener")


def test_local_reads_what_is_held_and_never_contacts_a_gateway(world: MakeWorld) -> None:
    """An empty store gives an empty frame of the right types, and says what is missing."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    workspace = workspace_of(made)
    found = DataManager(workspace).load_with_result("AAPL", "1h", FIRST, END)
    assert (workspace.managers, made.harness.gateway.opened) == ([], 0)
    assert found.result.status is LoadStatus.PARTIAL
    assert (found.result.merged_file, found.result.start_time) == ("", None)
    assert found.frame.empty
    assert found.frame.index.name == "ts"
    assert str(found.frame.index.dtype).endswith(", UTC]")
    assert found.frame["close"].dtype == "float64"
    attrs = found.frame.attrs
    assert (attrs["complete"], attrs["status"]) == (False, "partial")
    assert [one[2] for one in attrs["missing"]] == ["missing"]
    made.load()
    whole = DataManager(workspace).load("AAPL", "1h", FIRST, END)
    assert len(whole) == 70
    assert whole.dtypes.tolist() == found.frame.dtypes.tolist()
    assert (whole.attrs["complete"], whole.attrs["missing"], whole.attrs["error"]) == (
        True,
        [],
        None,
    )
    assert workspace.managers == []


@pytest.mark.parametrize("timeframe", [Timeframe.M5, Timeframe.H1, Timeframe.D1])
def test_what_is_missing_is_requested_once(world: MakeWorld, timeframe: Timeframe) -> None:
    """The second load opens no connection."""
    made = world(RTH, timeframe, FIRST, END)
    manager = manager_of(made)
    found = manager.load_with_result("AAPL", str(timeframe), FIRST, END, mode="full").result
    made.check_complete()
    stored = made.harness.store.read(made.series)["ts"].to_pylist()
    assert found.status is LoadStatus.SUCCESS
    assert (found.start_time, found.end_time) == (stored[0], stored[-1])
    assert (found.cached_before, found.fetched_bars >= len(stored)) == (False, True)
    assert (found.new_bars, found.gaps_analyzed, found.segments_fetched) == (len(stored), 1, 1)
    assert found.requests_made == found.ib_requests_made > 0
    assert (made.harness.layout.root / found.merged_file).is_file()
    opened, again = made.harness.gateway.opened, None
    for mode in ("tail", "backfill", "full", "local"):
        again = manager.load_with_result("AAPL", str(timeframe), FIRST, END, mode=mode)
        assert again.result.status is LoadStatus.SUCCESS
        assert (again.result.requests_made, again.result.cached_before) == (0, True)
    assert made.harness.gateway.opened == opened
    assert again is not None
    assert again.frame.index.tolist() == [pd.Timestamp(one) for one in stored]


def test_without_bounds_the_whole_series_is_meant(world: MakeWorld) -> None:
    """One bound alone leaves the other side open."""
    made = world(RTH, Timeframe.D1, FIRST, END, now=utc(2024, 6, 14, 23))
    manager = manager_of(made)
    assert len(manager.load("AAPL", "1d", mode="tail")) == 10
    assert len(manager.load("AAPL", "1d", "2024-06-10")) == 5
    assert len(manager.load("AAPL", "1d", end=date(2024, 6, 10))) == 5
    assert manager.load("AAPL", "1d", end="2020-01-06").empty


def test_a_gateway_that_is_away_leaves_what_is_held(world: MakeWorld) -> None:
    """Without bars the load has failed; with some it is partial, and the error says why."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    manager = manager_of(made)
    made.harness.gateway.mutate = unreachable
    failed = manager.load_with_result("AAPL", "1h", FIRST, END, mode="full")
    assert failed.result.status is LoadStatus.FAILED
    assert failed.result.error is not None
    assert failed.result.error.kind == "GatewayUnreachableError"
    assert "no listener" in failed.frame.attrs["error"]
    assert failed.frame.empty
    made.harness.gateway.mutate = None
    manager.load("AAPL", "1h", FIRST, date(2024, 6, 8), mode="full")
    made.harness.gateway.mutate = unreachable
    partial = manager.load_with_result("AAPL", "1h", FIRST, END, mode="full")
    assert (partial.result.status, partial.result.cached_before) == (LoadStatus.PARTIAL, True)
    assert len(partial.frame) == 35
    assert [(one.start.date(), one.end.date()) for one in partial.missing] == [
        (date(2024, 6, 10), date(2024, 6, 14))
    ]
    assert not partial.is_complete
    held = manager.load_with_result("AAPL", "1h", FIRST, date(2024, 6, 8), mode="full")
    assert (held.result.status, held.result.error) == (LoadStatus.SUCCESS, None)


def test_a_gateway_that_dies_in_the_middle_leaves_what_was_saved(world: MakeWorld) -> None:
    """What came before is in the frame; the rest is missing with the reason."""
    made = world(RTH, Timeframe.M1, FIRST, END)
    made.harness.retries = 0
    answered: list[object] = []

    def mutate(request: object, bars: Any) -> Any:
        answered.append(request)
        return bars if len(answered) < 5 else ConnectionLostError("bars", reason="it closed")

    made.harness.gateway.mutate = mutate
    found = manager_of(made).load_with_result("AAPL", "1m", FIRST, END, mode="full")
    assert found.result.status is LoadStatus.PARTIAL
    assert len(found.frame) == found.result.new_bars > 0
    assert "it closed" in str(found.result.error_message)
    assert found.result.missing
    made.check()


def test_a_refused_range_is_missing_for_its_reason(world: MakeWorld) -> None:
    """The result says what the gateway said, and when the next attempt is due."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    made.harness.gateway.mutate = lambda *_: EntitlementError("no permission")
    found = manager_of(made).load_with_result("AAPL", "1h", FIRST, END, mode="full").result
    assert found.status is LoadStatus.FAILED
    assert [one.reason for one in found.missing] == ["blocked"]
    assert found.missing[0].detail == "no permission"
    assert found.next_try_at is not None
    local = manager_of(made).load_with_result("AAPL", "1h", FIRST, END).result
    assert [one.reason for one in local.missing] == ["blocked"]
    assert "1 blocked" in str(local.error_message)


def test_a_tail_is_complete_although_older_bars_are_missing(world: MakeWorld) -> None:
    """The result is of what the mode loads; the frame says what its whole range lacks."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    manager = manager_of(made)
    manager.load("AAPL", "1d", date(2024, 6, 6), date(2024, 6, 8), mode="full")
    tail = manager.load_with_result("AAPL", "1d", FIRST, END, mode="tail")
    assert (tail.result.status, tail.result.missing) == (LoadStatus.SUCCESS, ())
    assert (tail.is_complete, tail.frame.attrs["complete"]) == (False, False)
    assert [one.start for one in tail.missing] == [utc(2024, 6, 3)]
    whole = manager.load_with_result("AAPL", "1d", FIRST, END, mode="backfill")
    assert (whole.is_complete, whole.result.segments_fetched, len(whole.frame)) == (True, 1, 10)


def test_what_lies_before_the_start_of_the_universe_is_missing(world: MakeWorld) -> None:
    """It was never requested, so nothing says that there are no bars."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    manager = manager_of(made)
    manager.load("AAPL", "1d", FIRST, END, mode="full")
    assert manager.load("AAPL", "1d", FIRST, END).attrs["complete"]
    for end, bars in ((END, 10), (FIRST, 0)):
        frame = manager.load("AAPL", "1d", "2024-05-20", end)
        assert (len(frame), frame.attrs["complete"]) == (bars, False)
        ((start, _, reason),) = frame.attrs["missing"]
        assert (start[:10], reason) == ("2024-05-20", "before_start")


def test_an_open_session_is_no_gap(world: MakeWorld) -> None:
    """A series that is complete up to now is; what the session still lacks is listed."""
    made = world(RTH, Timeframe.H1, FIRST, END, now=utc(2024, 6, 14, 18, 10))
    manager = manager_of(made)
    found = manager.load_with_result("AAPL", "1h", mode="full")
    assert (found.result.status, found.is_complete) == (LoadStatus.SUCCESS, True)
    made.harness.gateway.time = utc(2024, 6, 14, 19, 40)
    later = manager.load_with_result("AAPL", "1h")
    assert (later.result.status, later.is_complete) == (LoadStatus.SUCCESS, True)
    assert [one.start for one in later.result.waiting] == [utc(2024, 6, 14, 18)]
    assert len(later.frame.attrs["waiting"]) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("MSFT", "1h", FIRST, END), "MSFT"),
        (("AAPL", "2h", FIRST, END), "timeframe '2h'"),
        (("AAPL", "1h", END, FIRST), "reversed"),
        (("AAPL", "1h", datetime(2024, 6, 3), None), "without a zone"),  # noqa: DTZ001
        (("AAPL", "1h", "yesterday", None), "start yesterday"),
        (("AAPL", "1h", None, "2030-01-01"), "in the future"),
        (("AAPL", "1w", "2024-06-04", "2024-06-06"), "no bar of this timeframe"),
    ],
)
@pytest.mark.parametrize("mode", ["local", "full"])
def test_bad_input_is_refused(
    world: MakeWorld, arguments: tuple[Any, ...], text: str, mode: str
) -> None:
    """Before anything is read or requested."""
    made = world(RTH, Timeframe.H1, FIRST, END)
    with pytest.raises(UsageError, match=text) as caught:
        manager_of(made).load(*arguments, mode=mode)
    assert isinstance(caught.value, UnknownSymbolError) == (arguments[0] == "MSFT")
    assert made.harness.gateway.opened == 0


def test_an_unknown_mode_is_refused(world: MakeWorld) -> None:
    """The error names those that there are."""
    with pytest.raises(UsageError, match="local, tail, backfill, full"):
        manager_of(world(RTH, Timeframe.H1, FIRST, END)).load("AAPL", "1h", mode="sideways")


def test_loads_work_inside_a_running_event_loop(world: MakeWorld) -> None:
    """A notebook's cell runs in one; a program may also await the load in its own."""
    made = world(RTH, Timeframe.D1, FIRST, END)

    async def cell() -> tuple[pd.DataFrame, Loaded]:
        manager = manager_of(made)
        frame = manager.load("AAPL", "1d", FIRST, END, mode="full")
        return frame, await manager.load_async("AAPL", "1d", FIRST, END, mode="full")

    frame, loaded = asyncio.run(cell())
    pd.testing.assert_frame_equal(frame, loaded.frame)


def test_a_cancelled_load_keeps_what_it_received(world: MakeWorld) -> None:
    """The task ends as cancelled, and the bars that had arrived are in the store."""
    made = world(RTH, Timeframe.M1, FIRST, END)
    answered: list[object] = []

    async def main() -> None:
        load = manager_of(made).load_async("AAPL", "1m", FIRST, END, mode="full")
        task = asyncio.ensure_future(load)

        async def cancel_after_some(request: object) -> None:
            answered.append(request)
            if len(answered) > 7:
                task.cancel()
                await asyncio.Event().wait()

        made.harness.gateway.before_response = cancel_after_some
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert made.harness.store.rows(made.series) > 0
    made.check()


def test_a_full_disk_is_an_error(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no trouble of the gateway's, and is raised."""
    made = world(RTH, Timeframe.D1, FIRST, END)

    def refuse(*_: object, **__: object) -> None:
        raise DiskError("cannot write", reason="No space left on device")

    monkeypatch.setattr(filing.BarFiles, "write", refuse)
    with pytest.raises(DiskError):
        manager_of(made).load("AAPL", "1d", FIRST, END, mode="full")


def test_each_call_opens_the_store_of_the_settings(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a workspace, an edited universe counts from the next call on."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    layout = made.harness.layout
    monkeypatch.setenv("KTRDR_DATA", str(layout.root))
    monkeypatch.setenv("KTRDR_STATE", str(layout.root / "state of user"))
    layout.universe.write_text("symbols: {AAPL: {timeframes: [1d]}}\n")
    manager = DataManager()
    made.load()
    assert len(manager.load("AAPL", "1d")) == 10
    with pytest.raises(UnknownSymbolError):
        manager.load("MSFT", "1d")
    layout.universe.write_text("symbols: {AAPL: {timeframes: [1d]}, MSFT: {}}\n")
    assert manager.load("MSFT", "1d").empty
    assert isinstance(workspace_of(made), FakeWorkspace)


def test_a_store_is_named_by_its_path(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As ``open_store`` takes it, also relative to the working folder, whatever is set."""
    made = world(RTH, Timeframe.D1, FIRST, END)
    root = made.harness.layout.root
    monkeypatch.setenv("KTRDR_DATA", str(tmp_path / "another"))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state of user"))
    monkeypatch.chdir(root.parent)
    made.harness.layout.universe.write_text("symbols: {AAPL: {timeframes: [1d]}}\n")
    made.load()
    for path in (root, str(root), root.name):
        assert len(DataManager(path).load("AAPL", "1d")) == 10
    with pytest.raises(NoStoreError, match="not a store") as caught:
        DataManager("missing").load("AAPL", "1d")
    assert caught.value.__context__ is None  # a traceback shows this error alone
