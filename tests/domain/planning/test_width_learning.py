"""What is learned of the width of requests from single responses."""

from ktrdr_pipelines.domain.planning.width_learning import (
    LearnedWidth,
    Trial,
    WidthBounds,
    WidthSample,
    may_probe,
    measured,
    probed,
    refused,
    started,
    without_outcome,
)


def trial_of(*times: tuple[float, int, int]) -> Trial:
    """Return the trial of responses: so many seconds each, under a load, so many of them."""
    trial = Trial()
    for took_s, at_once, count in times:
        for _ in range(count):
            trial = trial.after(WidthSample(390, took_s, at_once))
    return trial


def test_the_wait_is_what_responses_take_longer_than_under_less_load() -> None:
    """It is unknown for a load that was not seen, and nothing for the least one."""
    trial = trial_of((0.5, 4, 10), (1.2, 9, 10))
    waits_s = [trial.wait_s(at_once) for at_once in (4, 9, 30)]
    assert [one if one is None else round(one, 6) for one in waits_s] == [0.0, 0.7, None]


def test_a_gateway_that_has_become_fast_is_measured_anew() -> None:
    """Single quick responses come from a cache; so many in a row do not."""
    cached = trial_of((8.0, 8, 10), (0.5, 8, 3))
    assert next(iter(cached.loads.values())).mean_s == 8.0
    faster = trial_of((8.0, 8, 4), (1.0, 8, 300))
    assert next(iter(faster.loads.values())).mean_s == 1.0
    assert faster.wait_s(8) == 0.0


def test_a_width_is_not_preferred_for_a_queue_in_which_all_wait() -> None:
    """A start with five in flight at a gateway of one worker, for which two sessions cost triple.

    Beside the wait of four others, the second session seems to cost little.
    """
    kind, bounds = "1m STK 6.5h TRADES", WidthBounds.of(45.0)
    one_s, two_s = 0.07, 0.21

    def after_round(known: LearnedWidth, at_once: int) -> LearnedWidth:
        wait_s = (at_once - 1) * one_s
        for _ in range(3):
            sample = WidthSample(390, wait_s + one_s, at_once)
            known = measured(known, 1, sample, now_s=0.0, bounds=bounds)
        if may_probe(known, 0.0, bounds) != 2:
            return known
        sample = WidthSample(780, wait_s + two_s, at_once)
        return measured(probed(known, 2, 0.0), 2, sample, now_s=0.0, bounds=bounds)

    known = started(kind, 0.0)
    for _ in range(18):
        known = after_round(known, at_once=5)
    assert (known.width, known.trials[2].why) == (1, "")
    for _ in range(18):
        known = after_round(known, at_once=1)
    assert (known.width, known.trials[2].why) == (1, "slower")


def test_a_response_beside_less_load_shows_that_nothing_waits() -> None:
    """One response suffices, of less than half as many in flight; in a queue it is much quicker."""
    assert trial_of((0.9, 1, 1), (1.0, 6, 10)).shows_no_queue(4)
    assert not trial_of((0.2, 1, 1), (1.0, 6, 10)).shows_no_queue(4)
    assert not trial_of((0.9, 4, 1), (1.0, 6, 10)).shows_no_queue(4)


def test_a_width_is_undecided_until_enough_responses_compare_it() -> None:
    """The best one and one that was decided on are not, whatever was measured."""
    bounds = WidthBounds.of(45.0)
    known = started("1m STK 6.5h TRADES", 0.0)
    for _ in range(100):
        known = measured(known, 1, WidthSample(390, 0.1, 1), now_s=0.0, bounds=bounds)
    assert known.undecided == ()
    known = probed(known, 2, 0.0)
    assert known.undecided == ()
    known = measured(known, 2, WidthSample(780, 0.1, 1), now_s=0.0, bounds=bounds)
    assert (known.width, known.undecided) == (1, (2,))
    known = measured(probed(known, 2, 0.0), 2, WidthSample(780, 0.1, 1), now_s=0.0, bounds=bounds)
    assert (known.width, known.undecided) == (2, ())
    assert refused(known, 2, 0.0, "refused").undecided == ()


def test_probes_without_an_outcome_end() -> None:
    """Where responses say nothing about a width, some two dozen probes are sent, and no more."""
    bounds, sent = WidthBounds.of(45.0), 0
    known = started("1m STK 6.5h TRADES", 0.0)
    for _ in range(6):
        known = measured(known, 1, WidthSample(390, 0.5, 2), now_s=0.0, bounds=bounds)
    while sent < 100 and may_probe(known, 0.0, bounds) == 2:
        known = without_outcome(probed(known, 2, 0.0), 2, 0.0)
        sent += 1
    assert (sent, known.trials[2].why) == (24, "unclear")
