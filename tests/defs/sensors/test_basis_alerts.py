"""Alerts about re-basings and changes of unit: one each, whatever happens in between."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.defs.runs.tags import CAUSE
from ktrdr_pipelines.defs.sensors.basis_alerts import Told, basis_alerts
from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.alert_ticks import AlertTicker

AT = datetime(2024, 6, 10, 14, tzinfo=UTC)
SPLIT = Adjustment(
    number=1,
    ratio=0.25,
    volume_ratio=4.0,
    kind=AdjustmentKind.SPLIT,
    effective=date(2024, 6, 10),
    is_estimated=False,
    found_at=AT,
    old_until=AT - timedelta(days=1),
    evidence="5 bars of AAPL 1d",
)


def found(minutes: float = 0.0, **changes: Any) -> Adjustment:
    """Return a split that was found some minutes after ``AT``."""
    return replace(SPLIT, found_at=AT + timedelta(minutes=minutes), **changes)


def unit(
    ratio: float = 100.0, kind: DisagreementKind = DisagreementKind.UNIT, days: int = 0
) -> Disagreement:
    """Return bars in another unit."""
    first = AT + timedelta(days=days)
    return Disagreement(first, first + timedelta(days=4), 5, ratio, kind)


class Sent:
    """What was sent by the ticks of a test, with the state between them as a cursor has it."""

    def __init__(self) -> None:
        self.told = Told(AT - timedelta(hours=1))

    def tick(
        self,
        adjustments: dict[str, tuple[Adjustment, ...]] | None = None,
        units: dict[str, tuple[Disagreement, ...]] | None = None,
        *,
        most: int = 2,
    ) -> list[tuple[str, list[str]]]:
        """Return the events of one tick, and the symbols of each."""
        self.told = Told.of_fields(json.loads(json.dumps(self.told.to_fields())))
        now = AT + timedelta(days=30)
        alerts, self.told = basis_alerts(
            self.told, adjustments or {}, units or {}, now=now, most=most
        )
        return [(one.event, [str(item["symbol"]) for item in one.items]) for one in alerts]


@pytest.fixture
def sent() -> Sent:
    """Return ticks that have told nothing yet."""
    return Sent()


def test_a_rebasing_is_alerted_once(sent: Sent) -> None:
    """A later one of the same symbol is another."""
    assert sent.tick({"AAPL": (found(),)}) == [("rebasing", ["AAPL"])]
    assert sent.tick({"AAPL": (found(),)}) == []
    both = (found(), found(10, number=2, ratio=0.5))
    assert sent.tick({"AAPL": both}) == [("rebasing", ["AAPL"])]
    assert sent.tick({"AAPL": both}) == []


def test_rebasings_of_several_symbols_are_one_alert(sent: Sent) -> None:
    """Each of them is in it once."""
    known = {"AAPL": (found(),), "NVDA": (found(1, ratio=0.1),)}
    assert sent.tick(known) == [("rebasing", ["AAPL", "NVDA"])]
    assert sent.tick(known) == []


def test_a_rebasing_that_becomes_visible_late_is_alerted(sent: Sent) -> None:
    """Processes record adjustments in another order than they found them."""
    late = {"NVDA": (found(60, ratio=0.1),)}
    assert sent.tick(late) == [("rebasing", ["NVDA"])]
    assert sent.tick({**late, "AAPL": (found(30),)}) == [("rebasing", ["AAPL"])]
    assert sent.tick({**late, "AAPL": (found(30),)}) == []


def test_neither_a_lost_ledger_nor_a_rename_alerts_again(sent: Sent) -> None:
    """An adjustment is known by when it was found."""
    assert sent.tick({"FB": (found(),)}) == [("rebasing", ["FB"])]
    assert sent.tick({}) == []
    assert sent.tick({"META": (found(),)}) == []
    newer = {"META": (found(), found(60 * 24 * 9, number=2))}
    assert sent.tick(newer) == [("rebasing", ["META"])]
    assert sent.tick(newer) == []


def test_what_was_found_before_the_sensor_began_is_not_alerted(sent: Sent) -> None:
    """A new history of Dagster over an old store alerts nothing."""
    assert sent.tick({"AAPL": (found(-61),)}) == []
    assert sent.tick({"AAPL": (found(-59),)}) == [("rebasing", ["AAPL"])]


def test_what_a_person_decided_is_not_alerted(sent: Sent) -> None:
    """The person knows."""
    assert sent.tick({"AAPL": (found(kind=AdjustmentKind.MANUAL),)}) == []


def test_a_clock_that_was_ahead_hides_nothing(sent: Sent) -> None:
    """An adjustment from the future is alerted once, and later ones are too."""
    ahead = {"AAPL": (found(60 * 24 * 400),)}
    assert sent.tick(ahead) == [("rebasing", ["AAPL"])]
    assert sent.tick(ahead) == []
    later = {**ahead, "NVDA": (found(60 * 24 * 31),)}
    assert sent.tick(later) == [("rebasing", ["NVDA"])]
    assert sent.tick(later) == []


def test_a_change_of_unit_is_alerted_once_for_all_timeframes(sent: Sent) -> None:
    """Whatever is found of it later; once it was resolved, a new one is alerted."""
    first = {"AAPL|1d": (unit(),)}
    assert sent.tick(units=first) == [("unit-change", ["AAPL"])]
    more = {**first, "AAPL|1h": (unit(days=1), unit(days=2)), "AAPL|1d": (unit(), unit(days=1))}
    assert sent.tick(units=more) == []
    assert sent.tick(units={"AAPL|1h": (unit(days=1),)}) == []
    assert sent.tick() == []
    assert sent.tick(units=first) == [("unit-change", ["AAPL"])]


def test_prices_and_volumes_up_and_down_are_different_changes(sent: Sent) -> None:
    """Each is alerted."""
    up = {"AAPL|1d": (unit(),)}
    assert sent.tick(units=up) == [("unit-change", ["AAPL"])]
    back = {"AAPL|1d": (unit(), unit(0.01, days=9))}
    assert sent.tick(units=back) == [("unit-change", ["AAPL"])]
    lots = {**back, "AAPL|1h": (unit(0.01, DisagreementKind.VOLUME),)}
    assert sent.tick(units=lots) == [("unit-change", ["AAPL"])]
    assert sent.tick(units=lots) == []


def test_what_one_tick_may_not_send_is_sent_by_the_next(sent: Sent) -> None:
    """Nothing is told that was not sent."""
    adjustments, units = {"AAPL": (found(),)}, {"NVDA|1d": (unit(),)}
    assert sent.tick(adjustments, units, most=0) == []
    assert sent.tick(adjustments, units, most=1) == [("rebasing", ["AAPL"])]
    assert sent.tick(adjustments, units, most=1) == [("unit-change", ["NVDA"])]
    assert sent.tick(adjustments, units) == []


# --- the sensor ----------------------------------------------------------------------------------


class Ticker(AlertTicker):
    """Ticks the sensor over the store of a layout."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, layout: StoreLayout) -> None:
        super().__init__(folder, instance, layout.root)
        self.layout = layout


@pytest.fixture
def ticker(tmp_path: Path) -> Iterator[Ticker]:
    """Return the sensor over a store and an instance of its own."""
    home = tmp_path / "home"
    home.mkdir()
    layout = create_store(tmp_path / "data")
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        yield Ticker(tmp_path, instance, layout)


def record(
    layout: StoreLayout, adjustment: Adjustment | None, *units: tuple[str, Disagreement]
) -> None:
    """Record what a load found."""
    with closing(Ledger(layout.ledger)) as ledger:
        ledger.adjustments.record({} if adjustment is None else {"AAPL": (adjustment,)})
        for minutes, (key, one) in enumerate(units):
            ledger.disagreements.record(key, one, AT + timedelta(minutes=minutes))


def test_the_sensor_alerts_a_rebasing_once_over_restarts(ticker: Ticker) -> None:
    """The document has the adjustment with its evidence, and the log a line."""
    assert ticker.tick() == "nothing is failing"
    record(ticker.layout, replace(SPLIT, found_at=system_now()))
    text = ticker.tick()
    assert "the gateway has re-based: AAPL" in text
    assert "multiplied by 0.25" in text
    for _ in range(2):
        assert ticker.tick() == "nothing is failing"
    (alert,) = ticker.alerts()
    assert (alert["event"], alert["store"]) == ("rebasing", str(ticker.layout.root))
    (one,) = alert["adjustments"]
    assert (one["symbol"], one["number"], one["ratio"], one["volume_ratio"]) == (
        "AAPL",
        1,
        0.25,
        4.0,
    )
    assert (one["effective"], one["evidence"]) == ("2024-06-10", "5 bars of AAPL 1d")


def test_the_sensor_alerts_a_change_of_unit_once(ticker: Ticker) -> None:
    """With the first session seen, and the command that lets a person decide."""
    record(ticker.layout, None, ("AAPL|1h", unit(days=1)), ("AAPL|1d", unit()))
    assert "a unit seems to have changed: AAPL" in ticker.tick()
    assert ticker.tick() == "nothing is failing"
    (alert,) = ticker.alerts()
    assert alert["event"] == "unit-change"
    (one,) = alert["changes"]
    assert (one["symbol"], sorted(one["timeframes"]), one["kind"]) == ("AAPL", ["1d", "1h"], "unit")
    assert (one["ratio"], one["first"]) == (100.0, "2024-06-10T14:00:00+00:00")
    assert "ktrdr adjust AAPL --ratio 100 --from 2024-06-10" in one["text"]


@dg.op
def failing() -> None:
    """Fail."""
    raise dg.Failure("disk full")


@dg.op
def succeeding() -> None:
    """Do nothing."""


@dg.job
def load() -> None:
    """Run the op."""
    failing()


@dg.job
def ok() -> None:
    """Do nothing."""
    succeeding()


def test_outages_are_alerted_first_and_the_rest_by_the_next_tick(ticker: Ticker) -> None:
    """A tick sends at most two alerts, as it may run the command for 20 s each."""
    load.execute_in_process(
        instance=ticker.instance, tags={CAUSE: "DiskError"}, raise_on_error=False
    )
    record(ticker.layout, replace(SPLIT, found_at=system_now()), ("AAPL|1d", unit()))
    assert "begins to fail: disk" in ticker.tick()
    assert "a unit seems to have changed" in ticker.tick()
    ticker.tick()
    assert [one["event"] for one in ticker.alerts()] == ["outage", "rebasing", "unit-change"]


def test_a_rebasing_found_by_a_run_that_the_sensor_has_seen_is_alerted(ticker: Ticker) -> None:
    """Runs that end between finding and telling move on what was seen of runs only."""
    ticker.tick()
    ok.execute_in_process(instance=ticker.instance)
    before = system_now()
    ticker.tick()
    record(ticker.layout, replace(SPLIT, found_at=before - timedelta(seconds=10)))
    assert "re-based" in ticker.tick()
    for _ in range(2):
        ok.execute_in_process(instance=ticker.instance)
        assert ticker.tick() == "nothing is failing"


def test_a_cursor_of_an_earlier_version_is_continued(ticker: Ticker) -> None:
    """What was found since its last tick is alerted."""
    now = system_now()
    seen_at = now - timedelta(days=2)
    ticker.cursor = json.dumps({"seen_at": seen_at.isoformat(), "outages": []})
    record(ticker.layout, replace(SPLIT, found_at=now - timedelta(days=1)))
    assert "re-based" in ticker.tick()
    assert len(ticker.alerts()) == 1


def test_a_store_that_cannot_be_read_loses_no_alert(ticker: Ticker) -> None:
    """The sensor goes on, and alerts once the store is back."""
    ticker.tick()
    record(ticker.layout, replace(SPLIT, found_at=system_now()))
    away = ticker.layout.root.with_name("away")
    ticker.layout.root.rename(away)
    assert ticker.tick() == "nothing is failing"
    away.rename(ticker.layout.root)
    assert "re-based" in ticker.tick()
