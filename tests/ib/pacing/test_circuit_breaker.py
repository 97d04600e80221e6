"""The circuit breaker as a pure state machine."""

from datetime import UTC, datetime, timedelta

import pytest

from ktrdr_pipelines.ib.pacing.circuit_breaker import (
    BELIEVED,
    MOST_FAILURES,
    Absence,
    Availability,
    Breaker,
    BreakerState,
    Depth,
    admission,
    availability,
    failed,
    seen_absent,
    succeeded,
)
from ktrdr_pipelines.limits import IbLimitsRegistry

FIRST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.first_s
LONGEST_PAUSE_S = IbLimitsRegistry.BREAKER_PAUSE_S.value.longest_s


def failing(
    times: int,
    breaker: Breaker | None = None,
    now: float = 100.0,
    depth: Depth = Depth.CONNECTION,
) -> Breaker:
    """Let requests fail one after another, each sent when the one before had failed."""
    breaker = breaker or Breaker()
    for number in range(times):
        breaker = failed(breaker, sent_at=now + number, now=now + number, depth=depth)
    return breaker


def test_a_few_failures_leave_it_closed() -> None:
    """One less than the limit stops nothing."""
    breaker = failing(MOST_FAILURES - 1)
    assert breaker.state is BreakerState.CLOSED
    assert admission(breaker, 200, probe_s=10).wait_s == 0


def test_enough_failures_in_a_row_open_it() -> None:
    """Then nothing passes until the pause is over."""
    breaker = failing(MOST_FAILURES)
    assert breaker.state is BreakerState.OPEN
    opened_at = 100.0 + MOST_FAILURES - 1
    assert admission(breaker, opened_at + 1, probe_s=10).wait_s == FIRST_PAUSE_S - 1


def test_failures_that_were_under_way_together_are_one() -> None:
    """A hang that takes forty requests down is one failure."""
    breaker = Breaker()
    for number in range(40):
        breaker = failed(breaker, sent_at=100, now=130 + number / 100)
    assert (breaker.state, breaker.failures) == (BreakerState.CLOSED, 1)


def test_after_the_pause_one_request_attempts() -> None:
    """The first that asks passes, the next waits for its end."""
    breaker = failing(MOST_FAILURES)
    first = admission(breaker, breaker.until, probe_s=45)
    assert first.wait_s == 0
    assert first.breaker.state is BreakerState.HALF_OPEN
    assert admission(first.breaker, breaker.until + 5, probe_s=45).wait_s == 40


def test_a_trial_that_never_ends_makes_room_for_another() -> None:
    """A process that dies while it tries leaves nobody waiting for ever."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert admission(trial, trial.until, probe_s=45).wait_s == 0


def test_a_failed_trial_doubles_the_pause_up_to_a_longest() -> None:
    """Half a minute, one, two, and never more than ten."""
    breaker, pauses = failing(MOST_FAILURES), []
    for _ in range(7):
        pauses.append(breaker.pause_s)
        trial = admission(breaker, breaker.until, probe_s=45).breaker
        breaker = failed(trial, sent_at=breaker.until, now=breaker.until + 30)
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_late_failures_do_not_prolong_the_pause() -> None:
    """What was sent before it opened changes nothing."""
    breaker = failing(MOST_FAILURES)
    assert failed(breaker, sent_at=99, now=110) == breaker


def test_connecting_does_not_make_good_that_bars_never_come() -> None:
    """Failures of bars count on through new connections and contracts; bars end them."""
    breaker = failing(MOST_FAILURES - 1, depth=Depth.DATA)
    assert succeeded(breaker, Depth.CONNECTION) == breaker
    assert succeeded(breaker, Depth.CONTRACTS) == breaker
    assert succeeded(breaker, Depth.DATA) == Breaker()
    assert failing(1, breaker, 200.0).state is BreakerState.OPEN


def test_a_shallow_answer_leaves_the_trial_to_the_next() -> None:
    """Half-open it stays; the next request tries at once, and its failure doubles the pause."""
    breaker = failing(MOST_FAILURES, depth=Depth.DATA)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    connected = succeeded(trial, Depth.CONNECTION)
    assert connected.state is BreakerState.HALF_OPEN
    second = admission(connected, breaker.until + 1, probe_s=45)
    assert second.wait_s == 0
    assert admission(second.breaker, breaker.until + 2, probe_s=45).wait_s == 44
    again = failed(second.breaker, sent_at=breaker.until + 1, now=200, depth=Depth.DATA)
    assert (again.state, again.until) == (BreakerState.OPEN, 200 + 2 * FIRST_PAUSE_S)


NOW = datetime(2026, 6, 12, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_a_gateway_of_which_nothing_is_known_may_be_tried() -> None:
    """Neither a closed breaker nor an absence that has ended stops a run."""
    ended = Absence(NOW - MINUTE, NOW - MINUTE, "nothing listens", ended_at=NOW)
    for absence in (None, ended):
        now = availability(Breaker(), absence, now_s=100, real_now=NOW)
        assert now == Availability()
        assert now.may_try


def test_an_absence_stops_runs_for_ten_minutes_after_it_was_last_seen() -> None:
    """Confirming it makes it count on; its start and its latest reason are told."""
    absence = seen_absent(None, NOW, "nothing listens")
    absence = seen_absent(absence, NOW + 5 * MINUTE, "no response")
    assert absence == Absence(NOW, NOW + 5 * MINUTE, "no response")
    told = availability(Breaker(), absence, now_s=100, real_now=NOW + 14 * MINUTE)
    assert not told.may_try
    assert str(told) == "the gateway is away since 2026-06-12 12:00:00Z: no response"
    assert (told.since, told.next_at) == (NOW, NOW + 5 * MINUTE + BELIEVED)
    assert availability(Breaker(), absence, now_s=100, real_now=NOW + 15 * MINUTE).may_try


@pytest.mark.parametrize("jump", [-timedelta(hours=1), timedelta(hours=1)])
def test_a_clock_that_jumps_costs_one_attempt(jump: timedelta) -> None:
    """No run waits for the hour to pass, and the next record counts by the new clock."""
    absence, now = seen_absent(None, NOW, "nothing listens"), NOW + jump
    assert availability(Breaker(), absence, now_s=100, real_now=now).may_try
    absence = seen_absent(absence, now, "nothing listens")
    assert absence.since == min(NOW, now)
    assert not availability(Breaker(), absence, now_s=100, real_now=now + MINUTE).may_try


def test_a_new_absence_has_a_start_of_its_own() -> None:
    """One that has ended is over."""
    ended = Absence(NOW, NOW, "nothing listens", ended_at=NOW + MINUTE)
    later = NOW + 2 * MINUTE
    assert seen_absent(ended, later, "no response") == Absence(later, later, "no response")


def test_an_open_breaker_stops_runs_until_its_pause_is_over() -> None:
    """Told in real moments, and measured by a clock that never jumps."""
    breaker = failing(MOST_FAILURES)
    opened_s = 100.0 + MOST_FAILURES - 1
    for real_now in (NOW, NOW - timedelta(days=1)):
        told = availability(breaker, None, now_s=opened_s + 10, real_now=real_now)
        assert str(told) == (
            "circuit breaker open after 5 consecutive failures; next attempt in 20 s"
        )
        assert told.since == real_now - timedelta(seconds=10)
        assert told.next_at == real_now + timedelta(seconds=20)
    assert availability(breaker, None, now_s=opened_s + 30, real_now=NOW).may_try


def test_a_half_open_breaker_stops_no_run() -> None:
    """Its requests wait for the one that probes."""
    breaker = failing(MOST_FAILURES)
    trial = admission(breaker, breaker.until, probe_s=45).breaker
    assert availability(trial, None, now_s=breaker.until + 5, real_now=NOW).may_try


def test_breaker_and_absence_together_give_one_answer() -> None:
    """The absence is told, and the later of the two moments."""
    breaker = failing(MOST_FAILURES)
    absence = Absence(NOW - 9 * MINUTE, NOW - 9 * MINUTE, "no response")
    told = availability(breaker, absence, now_s=breaker.until - 20, real_now=NOW)
    assert (str(told), told.next_at) == (str(absence), NOW + MINUTE)
    absence = Absence(NOW - 9 * MINUTE, NOW - BELIEVED + timedelta(seconds=5), "no response")
    told = availability(breaker, absence, now_s=breaker.until - 20, real_now=NOW)
    assert told.next_at == NOW + timedelta(seconds=20)
