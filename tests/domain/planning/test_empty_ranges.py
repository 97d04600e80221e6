"""Evidence: what statements prove together, what one never proves, and where data begin."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.empty_ranges import (
    CONFIRM_AFTER,
    MANY,
    NEIGHBOURS,
    STATEMENT_DAYS,
    Neighbours,
    Proof,
    Statement,
    StatementKind,
    Verdict,
    beginning,
    judge,
    neighbours_of,
)
from tests.support.examples import examples

NOON = datetime(2024, 6, 10, 12, tzinfo=UTC)
"""A time from which statements within hours fall on one UTC date."""

DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)

RANGE = Interval(datetime(2024, 6, 4, 4, tzinfo=UTC), datetime(2024, 6, 5, 4, tzinfo=UTC))

EMPTY, AROUND, OLDER = StatementKind.EMPTY, StatementKind.AROUND, StatementKind.OLDER

FULL, THIN, UNKNOWN = Neighbours.FULL, Neighbours.THIN, Neighbours.UNKNOWN


def statement(
    kind: StatementKind,
    after: timedelta = timedelta(0),
    request: str | None = None,
    *,
    controlled: bool = True,
    timeframe: str = "1m",
) -> Statement:
    """Return a statement, of a request of its own unless one is named."""
    at = NOON + after
    return Statement(RANGE, kind, timeframe, at, request or f"{kind} {at}", controlled)


def verdict(
    *statements: Statement,
    contradicted: bool = False,
    neighbours: Neighbours = UNKNOWN,
    short_run: bool = True,
    was_proved: bool = False,
) -> Verdict:
    """Return the verdict of statements."""
    return judge(
        statements,
        contradicted=contradicted,
        neighbours=neighbours,
        short_run=short_run,
        was_proved=was_proved,
    )


@pytest.mark.parametrize("neighbours", Neighbours)
def test_nothing_is_proved_without_statements(neighbours: Neighbours) -> None:
    """Nor is there a time at which something could be confirmed."""
    assert verdict(neighbours=neighbours) == Verdict(Proof.NONE)
    assert verdict(neighbours=neighbours, contradicted=True) == Verdict(Proof.NONE)
    assert not verdict().is_proved


def test_a_bar_alone_is_no_statement_of_emptiness() -> None:
    """A daily bar with volume can only contradict it."""
    assert verdict(statement(StatementKind.TRADED)) == Verdict(Proof.NONE)


@pytest.mark.parametrize("kind", [kind for kind in StatementKind if kind != "traded"])
@pytest.mark.parametrize(
    ("neighbours", "short_run", "contradicted"),
    [
        (FULL, True, False),
        (FULL, False, True),
        (THIN, True, False),
        (THIN, False, True),
        (UNKNOWN, False, False),
        (UNKNOWN, True, True),
    ],
)
def test_one_statement_proves_nothing(
    kind: StatementKind, neighbours: Neighbours, *, short_run: bool, contradicted: bool
) -> None:
    """Whatever its kind and the neighbours: removing expectation takes two."""
    one = verdict(
        statement(kind), neighbours=neighbours, short_run=short_run, contradicted=contradicted
    )
    assert one.proof in {Proof.UNCONFIRMED, Proof.CONTRADICTED}
    assert not one.is_proved
    assert one.next_at is not None
    assert one.next_at >= NOON + CONFIRM_AFTER


@pytest.mark.parametrize("kind", [AROUND, EMPTY])
def test_one_statement_can_be_confirmed_after_a_quarter_of_an_hour(kind: StatementKind) -> None:
    """That is the time between two statements of which one is a response without bars."""
    assert timedelta(minutes=15) == CONFIRM_AFTER
    one = verdict(statement(kind), neighbours=THIN)
    assert one == Verdict(Proof.UNCONFIRMED, NOON + CONFIRM_AFTER)


@pytest.mark.parametrize("neighbours", [THIN, UNKNOWN])
@pytest.mark.parametrize("timeframe", ["1m", "1d"])
def test_two_responses_with_bars_on_both_sides_need_no_waiting(
    neighbours: Neighbours, timeframe: str
) -> None:
    """The second may be of another timeframe, and may come a second later."""
    two = verdict(
        statement(AROUND),
        statement(AROUND, timedelta(seconds=1), timeframe=timeframe),
        neighbours=neighbours,
    )
    assert two == Verdict(Proof.CONFIRMED)
    assert two.is_proved
    assert not two.is_voidable


def test_statements_of_one_request_count_once() -> None:
    """However many there are, and of whatever kinds."""
    one = verdict(
        *(statement(AROUND, n * MINUTE, "the request") for n in range(40)), neighbours=THIN
    )
    assert one.proof is Proof.UNCONFIRMED
    mixed = verdict(
        statement(AROUND, request="the request"),
        statement(EMPTY, 20 * MINUTE, "the request"),
        statement(StatementKind.BEGINS, 20 * MINUTE, "the request"),
        neighbours=THIN,
    )
    assert mixed.proof is Proof.UNCONFIRMED


def test_a_short_run_beside_full_neighbours_is_contradicted() -> None:
    """Where an instrument trades in every session, an empty one takes three days."""
    two = (statement(AROUND), statement(AROUND, MINUTE))
    found = verdict(*two, neighbours=FULL)
    assert found.proof is Proof.CONTRADICTED
    assert found.next_at == datetime(2024, 6, 11, tzinfo=UTC)
    three = verdict(*two, statement(AROUND, DAY), statement(AROUND, 2 * DAY), neighbours=FULL)
    assert three == Verdict(Proof.DISPUTED)
    assert three.is_proved


def test_a_halt_of_weeks_is_confirmed_where_two_responses_have_bars_around_it() -> None:
    """Full neighbours do not contradict a run of a week or more."""
    two = (statement(AROUND), statement(AROUND, MINUTE))
    assert verdict(*two, neighbours=FULL, short_run=False) == Verdict(Proof.CONFIRMED)


@pytest.mark.parametrize(
    ("after", "controlled", "is_proved"),
    [
        (14 * MINUTE, True, False),
        (15 * MINUTE - timedelta(seconds=1), True, False),
        (15 * MINUTE, True, True),
        (16 * MINUTE, True, True),
        (16 * MINUTE, False, False),
        (300 * DAY, False, False),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("neighbours", [THIN, UNKNOWN])
def test_a_response_without_bars_confirms_one_with_bars_around(
    after: timedelta, neighbours: Neighbours, *, controlled: bool, is_proved: bool, is_first: bool
) -> None:
    """A quarter of an hour apart, whichever came first, with a control."""
    kinds = (EMPTY, AROUND) if is_first else (AROUND, EMPTY)
    statements = (
        statement(kinds[0], controlled=controlled),
        statement(kinds[1], after, controlled=controlled),
    )
    found = verdict(*statements, neighbours=neighbours)
    assert found.is_proved == is_proved
    assert found.proof is (Proof.CONFIRMED if is_proved else Proof.UNCONFIRMED)
    assert found.is_voidable == is_proved


@pytest.mark.parametrize(
    ("after", "first", "second", "is_proved"),
    [
        (14 * MINUTE, True, True, False),
        (15 * MINUTE, True, True, True),
        (16 * MINUTE, True, True, True),
        (16 * MINUTE, False, True, False),
        (16 * MINUTE, True, False, False),
        (16 * MINUTE, False, False, False),
    ],
)
def test_two_responses_without_bars_confirm_each_other_among_thin_neighbours(
    after: timedelta, *, first: bool, second: bool, is_proved: bool
) -> None:
    """A thin instrument has such sessions; each needs its control, and one had older bars."""
    statements = (statement(OLDER, controlled=first), statement(EMPTY, after, controlled=second))
    found = verdict(*statements, neighbours=THIN)
    assert found.is_proved == is_proved
    assert found.is_voidable == is_proved


@pytest.mark.parametrize("neighbours", [FULL, UNKNOWN])
def test_two_responses_without_bars_prove_nothing_elsewhere(neighbours: Neighbours) -> None:
    """Where no response had bars around the range it takes three days."""
    two = (statement(OLDER), statement(EMPTY, 16 * MINUTE))
    assert verdict(*two, neighbours=neighbours).proof is Proof.CONTRADICTED
    three = verdict(
        statement(OLDER), statement(EMPTY, DAY), statement(EMPTY, 2 * DAY), neighbours=neighbours
    )
    assert three == Verdict(Proof.DISPUTED, is_voidable=True)


@pytest.mark.parametrize("neighbours", Neighbours)
def test_responses_without_any_bar_alone_prove_something_only_when_they_are_many(
    neighbours: Neighbours,
) -> None:
    """By chance a gateway returns none a few times, whatever the time between them."""
    few = [statement(EMPTY, n * DAY / 2) for n in range(MANY - 1)]
    assert not verdict(*few, neighbours=neighbours).is_proved
    assert not verdict(*few, few[0], neighbours=neighbours).is_proved
    assert verdict(*few, statement(EMPTY, 9 * DAY), neighbours=neighbours).is_proved
    assert verdict(*few[:6], statement(OLDER, 9 * DAY), neighbours=neighbours).is_proved


def test_many_responses_without_any_bar_must_be_of_three_days() -> None:
    """A gateway may hide dates from all requests for hours, so each day needs its share."""
    for days in (1, 2, 3):
        many = [statement(EMPTY, n % days * DAY + n * MINUTE) for n in range(4 * MANY)]
        found = verdict(*many, neighbours=THIN)
        assert found.is_proved is (days == 3)
        if not found.is_proved:
            assert found.next_at == datetime(2024, 6, 10 + days, tzinfo=UTC)


def test_a_day_with_too_few_of_many_responses_is_due_again_soon() -> None:
    """Twelve responses on three days are four a day."""
    few = [statement(EMPTY, n * MINUTE) for n in range(3)]
    assert verdict(*few, neighbours=THIN).next_at == few[-1].said_at + CONFIRM_AFTER


def test_a_part_of_a_session_needs_fewer_statements() -> None:
    """The session has bars, and those of the next session cover the part in the end."""
    two = [statement(EMPTY), statement(EMPTY, 16 * MINUTE)]
    how = {"contradicted": False, "short_run": True}
    assert judge(two, neighbours=THIN, is_part=True, **how).is_proved
    assert not judge(two, neighbours=FULL, is_part=True, **how).is_proved
    assert not judge(two, neighbours=THIN, **how).is_proved


def test_many_responses_without_bars_in_a_burst_prove_nothing() -> None:
    """Sixty in three seconds may share one failure of the gateway."""
    burst = [statement(EMPTY, timedelta(seconds=n / 20)) for n in range(60)]
    for neighbours in Neighbours:
        assert not verdict(*burst, neighbours=neighbours).is_proved


def test_a_short_run_beside_full_neighbours_is_not_confirmed_by_a_response_without_bars() -> None:
    """Around and empty are two statements, and full neighbours contradict both."""
    found = verdict(statement(AROUND), statement(EMPTY, 16 * MINUTE), neighbours=FULL)
    assert found.proof is Proof.CONTRADICTED


def three_days(kind: StatementKind, *, controlled: bool = True) -> list[Statement]:
    """Make statements on three UTC dates."""
    return [statement(kind, n * DAY, controlled=controlled) for n in range(3)]


@pytest.mark.parametrize("by_bar", [True, False])
@pytest.mark.parametrize("kind", [AROUND, OLDER])
@pytest.mark.parametrize("neighbours", Neighbours)
def test_what_held_data_contradict_is_disputed_after_three_days(
    kind: StatementKind, neighbours: Neighbours, *, by_bar: bool
) -> None:
    """Held bars, or a daily bar with volume, raise what a proof takes, and do not prevent it."""
    against = [statement(StatementKind.TRADED, -DAY)] if by_bar else []
    for count in (1, 2):
        some = verdict(
            *three_days(kind)[:count], *against, contradicted=not by_bar, neighbours=neighbours
        )
        assert some.proof is Proof.CONTRADICTED
        assert some.next_at == datetime(2024, 6, 10 + count, tzinfo=UTC)
    found = verdict(*three_days(kind), *against, contradicted=not by_bar, neighbours=neighbours)
    assert found == Verdict(Proof.DISPUTED, is_voidable=kind is OLDER)


def test_days_without_a_control_do_not_count() -> None:
    """A gateway that returned no bars at all on a day proves nothing about the range."""
    found = verdict(*three_days(EMPTY, controlled=False), contradicted=True)
    assert found == Verdict(Proof.CONTRADICTED, NOON + 2 * DAY + CONFIRM_AFTER)


def test_hours_of_one_day_are_one_day() -> None:
    """Statements of one day may share one failure of the gateway."""
    hours = [statement(AROUND, n * timedelta(hours=3)) for n in range(4)]
    found = verdict(*hours, contradicted=True)
    assert found == Verdict(Proof.CONTRADICTED, datetime(2024, 6, 11, tzinfo=UTC))


def test_just_before_midnight_the_next_day_is_a_quarter_of_an_hour_away() -> None:
    """Minutes after it, a statement of the next date does not count yet."""
    late = statement(AROUND, timedelta(hours=11, minutes=55))
    found = verdict(late, contradicted=True)
    assert found.next_at == late.said_at + CONFIRM_AFTER


def test_a_dispute_that_three_days_of_bars_suffice_for_is_not_voidable() -> None:
    """A response without bars beside them adds nothing, so refuting it takes nothing away."""
    more = statement(EMPTY, DAY + MINUTE)
    found = verdict(*three_days(AROUND), more, contradicted=True)
    assert found == Verdict(Proof.DISPUTED)
    two = three_days(AROUND)[:2]
    found = verdict(*two, statement(EMPTY, 2 * DAY), contradicted=True)
    assert found == Verdict(Proof.DISPUTED, is_voidable=True)


def test_schedules_and_head_timestamps_count_for_no_day() -> None:
    """Neither is a response for the range."""
    schedules = [statement(StatementKind.CLOSED, n * DAY) for n in range(4)]
    assert not verdict(*schedules, contradicted=True).is_proved
    heads = [statement(StatementKind.HEAD, n * DAY) for n in range(4)]
    assert not verdict(*heads, contradicted=True).is_proved


@pytest.mark.parametrize("neighbours", Neighbours)
def test_a_closed_day_with_bars_around_it_is_confirmed(neighbours: Neighbours) -> None:
    """The contract's own schedule is one statement, a response with bars around the other."""
    found = verdict(statement(StatementKind.CLOSED), statement(AROUND), neighbours=neighbours)
    assert found == Verdict(Proof.CONFIRMED)


def test_a_closed_day_alone_or_with_bars_in_it_is_not_confirmed() -> None:
    """A contract's own schedule is one statement, and held bars contradict it."""
    assert not verdict(statement(StatementKind.CLOSED), neighbours=THIN).is_proved
    both = (statement(StatementKind.CLOSED), statement(AROUND))
    assert verdict(*both, contradicted=True).proof is Proof.CONTRADICTED
    assert verdict(*both, statement(StatementKind.TRADED)).proof is Proof.CONTRADICTED


def test_a_closed_day_and_a_response_without_bars_are_two_statements_among_thin_neighbours() -> (
    None
):
    """They need a quarter of an hour between them and a control."""
    apart = statement(EMPTY, 16 * MINUTE)
    found = verdict(statement(StatementKind.CLOSED), apart, neighbours=THIN)
    assert found == Verdict(Proof.CONFIRMED, is_voidable=True)
    near = verdict(statement(StatementKind.CLOSED), statement(EMPTY, 14 * MINUTE), neighbours=THIN)
    assert near.proof is Proof.UNCONFIRMED


def test_a_head_and_a_response_without_bars_are_two_statements_among_thin_neighbours() -> None:
    """A head timestamp is one statement; a response is the other."""
    found = verdict(statement(StatementKind.HEAD), statement(EMPTY, 16 * MINUTE), neighbours=THIN)
    assert found == Verdict(Proof.CONFIRMED, is_voidable=True)
    lone = verdict(statement(StatementKind.HEAD), neighbours=THIN)
    assert lone == Verdict(Proof.UNCONFIRMED, NOON + CONFIRM_AFTER)


def test_where_responses_begin_proves_nothing_by_itself() -> None:
    """A response that was cut short begins late too, each time."""
    often = [statement(StatementKind.BEGINS, n * DAY) for n in range(2)]
    assert not verdict(*often, neighbours=THIN).is_proved


def test_where_a_response_begins_counts_beside_another_statement() -> None:
    """It has bars on one side, so a response without bars or with bars around is another."""
    begins = statement(StatementKind.BEGINS)
    assert verdict(begins, statement(AROUND, MINUTE), neighbours=THIN) == Verdict(Proof.CONFIRMED)
    found = verdict(begins, statement(EMPTY, 16 * MINUTE), neighbours=UNKNOWN)
    assert found == Verdict(Proof.CONFIRMED, is_voidable=True)
    near = verdict(begins, statement(EMPTY, 14 * MINUTE), neighbours=UNKNOWN)
    assert near.proof is Proof.UNCONFIRMED


@pytest.mark.parametrize(
    ("one", "is_voidable"), [(statement(AROUND), False), (statement(EMPTY, controlled=True), True)]
)
def test_one_statement_renews_a_proof_that_has_expired(
    one: Statement, *, is_voidable: bool
) -> None:
    """What two or three statements proved before takes one more, not all again."""
    for neighbours in Neighbours:
        found = verdict(one, neighbours=neighbours, was_proved=True)
        assert found == Verdict(Proof.CONFIRMED, is_voidable=is_voidable)
    found = verdict(one, contradicted=True, was_proved=True)
    assert found == Verdict(Proof.DISPUTED, is_voidable=is_voidable)


def test_an_expired_proof_is_not_renewed_by_nothing_or_without_a_control() -> None:
    """Nor by a head or a schedule, which are no responses for the range."""
    assert verdict(was_proved=True) == Verdict(Proof.NONE)
    assert not verdict(statement(EMPTY, controlled=False), was_proved=True).is_proved
    assert not verdict(statement(StatementKind.HEAD), was_proved=True).is_proved
    assert not verdict(statement(StatementKind.CLOSED), was_proved=True).is_proved


@st.composite
def statements(draw: st.DrawFn, days: int = 6) -> list[Statement]:
    """Generate statements of several requests; those of one request have one time."""
    moments = draw(st.lists(st.integers(0, days * 1440), min_size=1, max_size=5))
    made = []
    for number, minutes in enumerate(moments):
        kinds = draw(st.lists(st.sampled_from(list(StatementKind)), min_size=1, max_size=3))
        made += [
            statement(kind, minutes * MINUTE, str(number), controlled=draw(st.booleans()))
            for kind in kinds
        ]
    return draw(st.permutations(made))


judged = st.fixed_dictionaries(
    {
        "contradicted": st.booleans(),
        "neighbours": st.sampled_from(Neighbours),
        "short_run": st.booleans(),
    }
)


@given(statements(), judged)
@examples(500)
def test_one_request_never_removes_expectation(made: list[Statement], how: dict[str, bool]) -> None:
    """Statements of one request prove nothing, whatever their kinds and times."""
    one = [replace(statement, request="one") for statement in made]
    assert not judge(one, **how).is_proved


@given(st.lists(st.tuples(st.integers(0, 899), st.booleans()), max_size=30), judged)
@examples(500)
def test_responses_without_bars_within_a_quarter_of_an_hour_never_remove_expectation(
    moments: list[tuple[int, bool]], how: dict[str, bool]
) -> None:
    """However many there are, and whatever the neighbours."""
    made = [
        statement(EMPTY, timedelta(seconds=seconds), str(number), controlled=controlled)
        for number, (seconds, controlled) in enumerate(moments)
    ]
    assert not judge(made, **how).is_proved


@given(statements(days=1), judged)
@examples(500)
def test_contradicted_ranges_are_never_proved_in_two_days(
    made: list[Statement], how: dict[str, bool]
) -> None:
    """Held data or full neighbours take responses with a control on three dates."""
    dates = {one.said_at.date() for one in made}
    assert len(dates) < STATEMENT_DAYS
    assert not judge(made, **(how | {"contradicted": True})).is_proved
    if StatementKind.CLOSED not in {one.kind for one in made}:
        full = {"neighbours": FULL, "short_run": True}
        assert not judge(made, **(how | full)).is_proved


@given(statements(), judged)
@examples(500)
def test_a_proof_rests_on_two_requests_and_counts_its_days(
    made: list[Statement], how: dict[str, bool]
) -> None:
    """A proof has two requests, a dispute three dates; what stays open has a time."""
    found = judge(made, **how)
    traded = any(one.kind is StatementKind.TRADED for one in made)
    counting = [
        one
        for one in made
        if one.kind in {AROUND, StatementKind.BEGINS}
        or (one.kind in {EMPTY, OLDER} and one.controlled)
    ]
    said_by = {one.request for one in made if one.kind is not StatementKind.TRADED}
    if found.is_proved:
        assert len(said_by) > 1
        assert found.next_at is None
        assert not found.is_voidable or any(one.kind in {EMPTY, OLDER} for one in counting)
    if found.proof is Proof.DISPUTED:
        assert len({one.said_at.date() for one in counting}) >= STATEMENT_DAYS
    if found.proof is Proof.CONFIRMED:
        assert not how["contradicted"]
        assert not traded
    if found.proof in {Proof.UNCONFIRMED, Proof.CONTRADICTED}:
        assert found.next_at is not None
        assert found.next_at >= min(one.said_at for one in made) + CONFIRM_AFTER


@given(statements(), judged, st.randoms(use_true_random=False))
@examples(200)
def test_the_order_of_statements_does_not_matter(
    made: list[Statement], how: dict[str, bool], dice: random.Random
) -> None:
    """They are ordered by their own times."""
    shuffled = list(made)
    dice.shuffle(shuffled)
    assert judge(made, **how) == judge(shuffled, **how)


HEAD, BEFORE = date(2019, 5, 1), date(2019, 4, 30)


def empty_before(days: Sequence[int], *, controlled: bool = True) -> list[tuple[date, Statement]]:
    """Return responses without bars for the sessions right before the head, on some days."""
    return [(HEAD, statement(EMPTY, day * DAY, controlled=controlled)) for day in days]


def test_data_begin_where_the_head_and_a_response_agree() -> None:
    """The head timestamp is one statement, a response that begins at it the other."""
    assert beginning([HEAD], HEAD, [], HEAD) == HEAD
    assert beginning([HEAD], HEAD, [], None) == HEAD
    assert beginning([date(2020, 1, 2), HEAD], HEAD, [], date(2020, 1, 2)) == HEAD


def test_neither_proves_a_beginning_alone() -> None:
    """Neither a head, nor any number of responses, nor two that differ."""
    assert beginning([], HEAD, [], HEAD) is None
    assert beginning([HEAD, HEAD, HEAD], None, [], HEAD) is None
    assert beginning([date(2019, 5, 2)], HEAD, [], date(2019, 5, 2)) is None


def test_an_older_bar_refutes_a_beginning() -> None:
    """Of any timeframe."""
    assert beginning([HEAD], HEAD, empty_before([0, 1, 2]), BEFORE) is None


def test_responses_without_bars_before_the_head_stand_in_on_three_days() -> None:
    """Some gateways return nothing to a request that reaches past their oldest bar."""
    assert beginning([], HEAD, empty_before([0, 1]), HEAD) is None
    assert beginning([], HEAD, empty_before([0, 0, 0, 1]), HEAD) is None
    assert beginning([], HEAD, empty_before([0, 1, 2]), HEAD) == HEAD
    assert beginning([], HEAD, empty_before([0, 1, 2], controlled=False), HEAD) is None
    elsewhere = [(date(2018, 1, 2), one) for _, one in empty_before([0, 1, 2])]
    assert beginning([], HEAD, elsewhere, HEAD) is None
    assert beginning([], None, empty_before([0, 1, 2]), HEAD) is None


SESSIONS = 300


def around(
    have: np.ndarray, empty: Sequence[int] = (), *, position: int = 150, expected: int = 7
) -> Neighbours:
    """Return the neighbours of the session at an index."""
    known_empty = np.zeros(len(have), dtype=bool)
    known_empty[list(empty)] = True
    return neighbours_of(np.full(len(have), expected), have, known_empty, position)


def sessions(*without: int, bars: int = 7) -> np.ndarray:
    """Return the bar counts of sessions, some of them without bars."""
    have = np.full(SESSIONS, bars)
    have[list(without)] = 0
    return have


@pytest.mark.parametrize("position", [0, 1, 150, SESSIONS - 2, SESSIONS - 1])
@pytest.mark.parametrize("bars", [4, 7])
def test_an_instrument_that_trades_in_every_session_has_full_neighbours(
    position: int, bars: int
) -> None:
    """Half of the expected bars are enough; the session itself does not count."""
    assert around(sessions(position, bars=bars), [position], position=position) is FULL


def test_few_bars_a_session_make_thin_neighbours() -> None:
    """Less than half of the expected bars, in the middle of all neighbours."""
    assert around(sessions(150, bars=3), [150]) is THIN
    assert around(sessions(150, bars=10), [150], expected=390) is THIN


def test_other_empty_sessions_make_thin_neighbours() -> None:
    """More than one in twenty; fewer may be halts or failures of the gateway."""
    assert around(sessions(150, 140), [150, 140]) is FULL
    assert around(sessions(150, 140, 145), [150, 140, 145]) is FULL
    assert around(sessions(150, 140, 145, 160), [150, 140, 145, 160]) is THIN


@pytest.mark.parametrize("length", [2, 5, 20, 60])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_halt_does_not_make_its_own_neighbours_thin(length: int, position: int) -> None:
    """A run of empty sessions counts once, whichever of them is judged."""
    run = list(range(150, 150 + length))
    assert around(sessions(*run), run, position=run[position]) is FULL


def test_unknown_sessions_are_no_neighbours() -> None:
    """Only sessions with bars count, and those that are stated to be empty."""
    have = np.zeros(SESSIONS, dtype=int)
    assert around(have) is UNKNOWN
    have[100:104] = 7
    assert around(have) is UNKNOWN
    have[104] = 7
    assert around(have) is FULL


def test_neighbours_are_the_nearest_known_ones() -> None:
    """What lies further away than twenty known sessions does not count."""
    have = sessions(150, bars=2)
    have[150 - NEIGHBOURS : 150 + NEIGHBOURS + 1] = 7
    have[150] = 0
    assert around(have, [150]) is FULL
    far = np.zeros(SESSIONS * 3, dtype=int)
    far[:20] = 7
    assert around(far, position=600) is UNKNOWN


def test_an_empty_session_with_bars_is_no_empty_session() -> None:
    """A later response returned bars of it."""
    assert around(sessions(150), [150, 130, 132, 134, 136, 138, 140]) is FULL


@given(
    st.lists(st.integers(0, 7), min_size=1, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60),
    st.integers(0, 59),
)
def test_full_neighbours_have_bars(have: list[int], empty: list[bool], position: int) -> None:
    """At least five sessions have bars, and half of them at least half of their bars."""
    held = np.array(have)
    position %= len(held)
    known = np.array(empty[: len(held)])
    found = neighbours_of(np.full(len(held), 7), held, known, position)
    others = np.delete(held, position)
    if found is FULL:
        assert np.count_nonzero(others) >= 5
        assert np.count_nonzero(others >= 4) >= np.count_nonzero(others) / 2 - 1
    if not others.any():
        assert found is UNKNOWN
