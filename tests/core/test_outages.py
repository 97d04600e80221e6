"""Outages: many failures are one, and a success of the right kind ends them."""

from datetime import UTC, datetime, timedelta

from ktrdr_pipelines.defs.sensors.alert_sensor import Ended, after

AT = datetime(2024, 6, 3, 14, tzinfo=UTC)


def failed(work: str, cause: str, minute: int = 0) -> Ended:
    """Make work that failed."""
    return Ended(work, AT + timedelta(minutes=minute), failed=True, cause=cause, text=cause)


def well(work: str, *, requested: bool = False) -> Ended:
    """Make work that ended well."""
    return Ended(work, AT, requested=requested)


def test_many_failures_of_the_gateway_are_one_outage() -> None:
    """Whatever work meets it, and in whatever shape, it is one gateway that is away."""
    turn = after(
        {},
        [
            failed("bars/1m", "GatewayUnreachableError"),
            failed("bars/1d AAPL", "GatewayRestingError", 1),
            failed("tails", "ClientIdInUseError", 2),
        ],
    )
    [outage] = turn.begun
    assert (outage.name, outage.since, outage.failures) == ("gateway", AT, 3)
    again = after(turn.status, [failed("bars/1h", "GatewayUnreachableError", 3)])
    assert again.begun == ()
    assert again.status["gateway"].failures == 4


def test_only_an_answer_ends_an_outage_of_the_gateway() -> None:
    """A run that asked nothing proves nothing."""
    status = after({}, [failed("bars/1m", "GatewayUnreachableError")]).status
    assert after(status, [well("bars/1m")]).over == ()
    turn = after(status, [well("bars/1d", requested=True)])
    assert [one.name for one in turn.over] == ["gateway"]
    assert turn.status == {}


def test_what_fails_by_itself_ends_by_itself() -> None:
    """Unexplained windows of one series, and a run that died, have nothing to do with others."""
    status = after({}, [failed("bars/1d AAPL", "IncompleteError"), failed("tails", "")]).status
    assert set(status) == {"bars/1d AAPL", "tails"}
    turn = after(status, [well("bars/1d MSFT", requested=True), well("tails")])
    assert [one.name for one in turn.over] == ["tails"]
    assert set(turn.status) == {"bars/1d AAPL"}


def test_what_begins_and_ends_between_two_looks_alerts_no_listener() -> None:
    """It is over before anybody could be told."""
    turn = after({}, [failed("bars/1d AAPL", "BadAnswerError"), well("bars/1d AAPL")])
    assert (turn.begun, turn.over, turn.status) == ((), (), {})
