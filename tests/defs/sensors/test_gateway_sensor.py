"""The gateway sensor: it polls an unreachable gateway, and starts deferred requests afterwards."""

import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.resources import IbResource
from ktrdr_pipelines.defs.runs.tags import SYMBOL
from ktrdr_pipelines.defs.sensors.gateway_sensor import gateway_sensor
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases

NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)


@pytest.fixture
def closed_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def tick(location: Any) -> Callable[..., Any]:
    """Return a function that ticks the sensor, with the location's gateway or another port."""

    def run(now: datetime = NOW, port: int | None = None) -> Any:
        defs = location.defs()
        resources = dict(defs.resources)
        if port is not None:
            fields = resources["ib"].model_dump() | {"port": port}
            resources["ib"] = IbResource(**fields)
        context = dg.build_sensor_context(
            instance=location.instance, resources=resources, definitions=defs
        )
        return gateway_sensor(Timeframe, location.windows(), lambda: now)(context)

    return run


def said(result: Any) -> str:
    """Return the reason that a tick without runs gives."""
    reason = result if isinstance(result, dg.SkipReason) else result.skip_reason
    return str(reason.skip_message)


def test_a_gateway_without_a_recorded_absence_is_not_polled(
    location: Any, tick: Callable[..., Any]
) -> None:
    """No connection is made."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        skipped = tick(port=server.getsockname()[1])
        assert skipped.skip_message == "no outage of the gateway is recorded"
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_failed_poll_confirms_the_absence(
    location: Any, tick: Callable[..., Any], closed_port: int
) -> None:
    """The absence counts from now on, and the skip reason says since when it lasts."""
    location.note_absence(NOW - timedelta(minutes=9), "nothing listens", closed_port)
    first = tick(port=closed_port)
    [event] = first.asset_events  # the first poll that fails is observed
    assert (event.asset_key.path, event.metadata["reachable"].value) == (["gateway"], False)
    text = said(first)
    assert "still unreachable, since 2026-06-12 11:51:00Z" in text
    known = location.absence(closed_port)
    assert known is not None
    assert (known.since, known.seen_at) == (NOW - timedelta(minutes=9), NOW)
    assert known.is_believed(NOW + timedelta(minutes=5))


def test_a_gateway_without_free_client_ids_for_runs_is_unreachable(
    location: Any, tick: Callable[..., Any]
) -> None:
    """Runs of that range would fail, although other ranges have free ids."""
    location.note_absence(NOW - timedelta(minutes=2), "client id 101 is in use")
    leases = ClientIdLeases(GatewayConfig.from_settings(location.settings).folder)
    held = [leases.lease((101, 110)) for _ in range(10)]
    text = said(tick())
    assert "still unreachable" in text
    assert "client ids 101 to 110" in text
    for lease in held:
        lease.release()
    tick()
    assert location.absence().ended_at == NOW


def test_deferred_requests_become_due_on_recovery(location: Any, tick: Callable[..., Any]) -> None:
    """Attempts deferred for hours are due now, and the tick requests the first runs."""
    location.note_absence(NOW - timedelta(minutes=2), "nothing listens")
    interval = Interval(datetime(2023, 3, 1, tzinfo=UTC), datetime(2026, 6, 12, tzinfo=UTC))
    for symbol in ("AAPL", "MSFT"):
        for timeframe in ("1d", "1h"):
            location.store.ledger.attempts.record(
                f"{symbol}|{timeframe}",
                interval,
                "error",
                error="nothing listens",
                code=None,
                next_try_at=NOW + timedelta(hours=6),
                at=NOW,
            )
    result = tick()
    assert [request.tags[SYMBOL] for request in result.run_requests] == ["AAPL+MSFT"] * 2
    assert (
        "the gateway is reachable again (unreachable since 2026-06-12 11:58:00Z); "
        "4 deferred requests are due now" in result.cursor
    )
    assert location.absence().ended_at == NOW
    assert said(tick()) == "no outage of the gateway is recorded"


def defer(location: Any, key: str, until: datetime, at: datetime = NOW) -> None:
    """Record a failed attempt of a series that is deferred until a time."""
    location.store.ledger.attempts.record(
        key,
        Interval(datetime(2023, 3, 1, tzinfo=UTC), datetime(2026, 6, 12, tzinfo=UTC)),
        "error",
        error="nothing listens",
        code=None,
        next_try_at=until,
        at=at,
    )


def test_a_recovery_found_by_another_store_makes_earlier_attempts_due(
    location: Any, tick: Callable[..., Any]
) -> None:
    """Attempts that failed after the recovery stay deferred."""
    location.note_absence(NOW - timedelta(minutes=2), "nothing listens")
    location.end_absence(NOW - timedelta(minutes=1))
    until = NOW + timedelta(hours=6)
    defer(location, "AAPL|1d", until, at=NOW - timedelta(minutes=2))
    defer(location, "MSFT|1d", until, at=NOW)
    assert "; 1 deferred requests are due now" in tick().cursor
    assert said(tick()) == "no outage of the gateway is recorded"
    [due], [waiting] = (location.store.ledger.attempts.of(key) for key in ("AAPL|1d", "MSFT|1d"))
    assert (due.next_try_at, waiting.next_try_at) == (NOW, until)


def test_an_old_outage_makes_nothing_due(location: Any, tick: Callable[..., Any]) -> None:
    """What it deferred became due then."""
    location.note_absence(NOW - timedelta(days=3), "nothing listens")
    location.end_absence(NOW - timedelta(days=2))
    defer(location, "AAPL|1d", NOW + timedelta(hours=6), at=NOW - timedelta(days=3))
    assert said(tick()) == "no outage of the gateway is recorded"


def test_an_outage_that_ends_in_the_future_makes_nothing_due(
    location: Any, tick: Callable[..., Any]
) -> None:
    """It was recorded by a clock that was ahead, and says nothing about later attempts."""
    location.note_absence(NOW + timedelta(days=30), "nothing listens")
    location.end_absence(NOW + timedelta(days=30, minutes=1))
    for minutes in range(3):
        now = NOW + timedelta(minutes=minutes)
        until = now + timedelta(hours=6)
        defer(location, "AAPL|1d", until, at=now)
        assert tick(now=now).skip_message == "no outage of the gateway is recorded"
        [waiting] = location.store.ledger.attempts.of("AAPL|1d")
        assert waiting.next_try_at == until


def test_the_record_of_an_earlier_version_is_moved_to_the_gateways(
    location: Any, tick: Callable[..., Any], closed_port: int
) -> None:
    """Its times are kept, and its file in the store is deleted."""
    path = location.layout.state / "gateway-away.json"
    since, seen_at = NOW - timedelta(hours=1), NOW - timedelta(minutes=9)
    fields = {"since": since.isoformat(), "seen_at": seen_at.isoformat(), "text": "no response"}
    path.write_text(json.dumps(fields))
    assert "still unreachable, since 2026-06-12 11:00:00Z" in said(tick(port=closed_port))
    known = location.absence(closed_port)
    assert known is not None
    assert (known.since, known.seen_at) == (since, NOW)
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"since": 1, "seen_at": 2, "text": 3}'])
def test_an_unreadable_record_of_an_earlier_version_is_deleted(
    location: Any, tick: Callable[..., Any], content: str
) -> None:
    """It counts as no absence."""
    path = location.layout.state / "gateway-away.json"
    path.write_text(content)
    assert said(tick()) == "no outage of the gateway is recorded"
    assert not path.exists()
    assert location.absence() is None
