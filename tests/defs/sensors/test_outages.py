"""Outages: many failures are one, and a success of the right kind ends them."""

from datetime import UTC, datetime, timedelta

from ktrdr_pipelines.defs.sensors.alert_sensor import Ended, after

AT = datetime(2024, 6, 3, 14, tzinfo=UTC)


def failed(work: str, cause: str, minute: int = 0) -> Ended:
    """Make work that failed."""
    return Ended(work, AT + timedelta(minutes=minute), failed=True, cause=cause, text=cause)


def succeeded(work: str, *, used_gateway: bool = False) -> Ended:
    """Make work that ended well."""
    return Ended(work, AT, used_gateway=used_gateway)


def test_many_failures_of_the_gateway_are_one_outage() -> None:
    """Whatever work meets it, and in whatever shape, it is one gateway that is away."""
    change = after(
        {},
        [
            failed("bars/1m", "GatewayUnreachableError"),
            failed("bars/1d AAPL", "GatewayRestingError", 1),
            failed("tails", "ClientIdInUseError", 2),
        ],
    )
    [outage] = change.begun
    assert (outage.name, outage.since, outage.failures) == ("gateway", AT, 3)
    again = after(change.open_outages, [failed("bars/1h", "GatewayUnreachableError", 3)])
    assert again.begun == ()
    assert again.open_outages["gateway"].failures == 4


def test_only_an_answer_ends_an_outage_of_the_gateway() -> None:
    """A run that asked nothing proves nothing."""
    known = after({}, [failed("bars/1m", "GatewayUnreachableError")]).open_outages
    assert after(known, [succeeded("bars/1m")]).over == ()
    change = after(known, [succeeded("bars/1d", used_gateway=True)])
    assert [one.name for one in change.over] == ["gateway"]
    assert change.open_outages == {}


def test_what_fails_by_itself_ends_by_itself() -> None:
    """Unexplained windows of one series, and a run that died, have nothing to do with others."""
    known = after({}, [failed("bars/1d AAPL", "IncompleteError"), failed("tails", "")]).open_outages
    assert set(known) == {"bars/1d AAPL", "tails"}
    change = after(known, [succeeded("bars/1d MSFT", used_gateway=True), succeeded("tails")])
    assert [one.name for one in change.over] == ["tails"]
    assert set(change.open_outages) == {"bars/1d AAPL"}


def test_what_begins_and_ends_between_two_looks_alerts_nobody() -> None:
    """It is over before anybody could be told."""
    change = after({}, [failed("bars/1d AAPL", "BadAnswerError"), succeeded("bars/1d AAPL")])
    assert (change.begun, change.over, change.open_outages) == ((), (), {})


def test_an_error_that_an_earlier_version_recorded_belongs_to_its_outage() -> None:
    """Runs of before the update are read after it."""
    change = after({}, [failed("bars/1m", "GatewaySilentError"), failed("tails", "OutageError")])
    assert [one.name for one in change.begun] == ["gateway"]
