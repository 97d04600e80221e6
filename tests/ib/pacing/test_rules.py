"""When requests may be sent: the rules, the order of waiting requests, and pauses."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.ib.pacing.rules import (
    OpenRequests,
    PacedRequest,
    Pacing,
    RequestKind,
    Rule,
    Scope,
    SendTime,
    SentRequest,
    Waiting,
    earliest,
    next_pause_s,
    pacing_of,
    send_time,
    weight_of,
)

RULES = pacing_of().rules
STRICT = pacing_of(conservative=True).rules


def bars(end: object = 0, *, contract: str = "1", **other: Any) -> PacedRequest:
    """Return a request for minute bars."""
    return PacedRequest(RequestKind.BARS, contract, f"{contract}|{end}", **other)


def small(end: object = 0, **other: Any) -> PacedRequest:
    """Return a request for small bars."""
    return bars(end, small=True, **other)


def head(contract: str) -> PacedRequest:
    """Return a request for a head timestamp."""
    return PacedRequest(RequestKind.HEAD, contract, f"head|{contract}", small=True)


def test_a_first_request_does_not_wait() -> None:
    """A first request does not wait."""
    assert earliest(RULES, [], small()) < 0


def test_an_identical_request_waits_fifteen_seconds_and_a_margin() -> None:
    """Contract, end, duration, bar size, what_to_show and hours make two requests identical."""
    assert earliest(RULES, [SentRequest(100, bars(1))], bars(1)) == pytest.approx(115.75)


def test_another_end_is_another_request() -> None:
    """Neighbouring chunks of a series are not identical."""
    assert earliest(RULES, [SentRequest(100, bars(1))], bars(2)) < 100


def test_five_requests_of_one_contract_are_sent_at_once() -> None:
    """The sixth small request of a contract waits until the first is two seconds old."""
    sent = [SentRequest(100 + n / 10, small(n)) for n in range(5)]
    assert earliest(RULES, sent[:4], small(9)) < 100
    assert earliest(RULES, sent, small(9)) == pytest.approx(102.002)
    assert earliest(RULES, sent, small(9, contract="2")) < 100


def test_the_ten_minute_window_is_used_in_full() -> None:
    """The 61st small request waits until the first is ten minutes old."""
    sent = [SentRequest(1000 + n, small(n, contract=str(n), tail=True)) for n in range(60)]
    assert earliest(RULES, sent[:59], small("x", tail=True)) < 1059
    assert earliest(RULES, sent, small("x", tail=True)) == pytest.approx(1600.6)
    assert earliest(RULES, sent, small("x")) == pytest.approx(1600.6)


def test_a_request_counts_from_before_it_is_sent_until_a_window_after_its_response() -> None:
    """Without a response its deadline counts; the message rate counts from sending."""
    sent = [SentRequest(1000, small(n, contract=str(n)), 1030 + n) for n in range(60)]
    assert earliest(RULES, sent, small("x", tail=True)) == pytest.approx(1630.6)
    assert earliest(RULES, sent[:47], small("x")) == pytest.approx(1001.1)
    assert earliest(RULES, sent[:1], small(0, contract="0")) == pytest.approx(1045.75)
    one = [SentRequest(1000, small(n), 1020) for n in range(5)]
    assert earliest(RULES, one, small("x")) == pytest.approx(1022.002)


def test_backfills_leave_a_reserve_to_tails() -> None:
    """54 are sent at once; four more follow evenly over the window, and tails take all 60."""
    sent: list[SentRequest] = []
    for n in range(59):
        at = max(1000.0, earliest(RULES, sent, small(n, contract=str(n))))
        sent.append(SentRequest(at, small(n, contract=str(n))))
    times = [one.at - 1000 for one in sent]
    assert times == pytest.approx([0] * 47 + [1.1] * 7 + [151.25, 301.4, 451.55, 600.6, 600.6])
    for taken in (54, 57):
        now = sent[taken - 1].at
        tails = [SentRequest(now, small(n, contract=str(n), tail=True)) for n in range(taken, 60)]
        assert earliest(RULES, [*sent[:taken], *tails[:-1]], small("x", tail=True)) <= now + 1.1
        assert earliest(RULES, [*sent[:taken], *tails], small("x", tail=True)) > now + 100


def test_bid_ask_counts_twice() -> None:
    """Half as many requests of BID_ASK fill the window."""
    assert (weight_of("BID_ASK"), weight_of("TRADES")) == (2, 1)
    sent = [SentRequest(1000 + n, tail(n, weight=2)) for n in range(29)]
    assert earliest(RULES, sent, tail("x", weight=2)) < 1029
    assert earliest(RULES, [*sent, SentRequest(1030, tail(30))], tail("x")) < 1030
    assert earliest(RULES, [*sent, SentRequest(1030, tail(30))], tail("x", weight=2)) == (
        pytest.approx(1600.6)
    )


def tail(n: object, **other: Any) -> PacedRequest:
    """Return a small tail request of a contract of its own."""
    return small(n, contract=str(n), tail=True, **other)


def test_heads_obey_the_small_bar_rules() -> None:
    """A head counts in the window."""
    sent = [SentRequest(1000 + n, replace(head(str(n)), tail=n >= 54)) for n in range(60)]
    assert earliest(RULES, sent[:53], head("x")) < 1053
    assert earliest(RULES, sent, head("x")) == pytest.approx(1600.6)


def test_minutes_and_longer_are_not_under_the_hard_rules() -> None:
    """A hundred requests for minutes in a second wait for the message rate only."""
    sent = [SentRequest(1000 + n / 100, bars(n)) for n in range(100)]
    assert earliest(RULES, sent, bars("x")) == pytest.approx(1000.53 + 1.1)


def test_longer_bars_do_not_use_up_the_small_window() -> None:
    """Longer bars do not count for small ones."""
    sent = [SentRequest(1000 + n, bars(n)) for n in range(100)]
    assert earliest(RULES, sent, small("x")) < 1100


def test_conservative_puts_everything_under_the_hard_rules() -> None:
    """Minutes wait for the window, and none of them for another."""
    sent = [SentRequest(1000 + n, bars(n, contract=str(n), tail=True)) for n in range(60)]
    assert earliest(STRICT, sent[:59], bars("x", tail=True)) < 1059
    assert earliest(STRICT, sent, bars("x")) == pytest.approx(1600.6)
    assert earliest(STRICT, sent[:1], bars("x")) < 1000


def test_contract_requests_are_under_the_message_rate_only() -> None:
    """They wait neither for bars nor for each other."""
    contract = PacedRequest(RequestKind.CONTRACT, "1", "1")
    assert (
        earliest(STRICT, [SentRequest(1000, bars()), SentRequest(1000, contract)], contract) < 1000
    )


@st.composite
def requests(draw: st.DrawFn) -> PacedRequest:
    """Draw a request of few different ones, so that rules apply often."""
    return PacedRequest(
        draw(st.sampled_from([RequestKind.BARS, RequestKind.HEAD])),
        contract := draw(st.sampled_from(["1", "2"])),
        f"{contract}|{draw(st.integers(0, 3))}",
        weight=draw(st.integers(1, 2)),
        small=draw(st.booleans()),
    )


def breaks(rules: tuple[Rule, ...], sent: list[SentRequest]) -> list[str]:
    """Return the rules that a history breaks, by every window that ends at a request."""
    broken = []
    for rule in rules:
        bound = [one for one in sent if rule.binds(one.request)]
        for last in bound:
            inside = [
                one
                for one in bound
                if last.at - rule.window_s + 1e-6 < one.at <= last.at
                and rule.counts(one.request, last.request)
            ]
            if sum(rule.weight(one.request) for one in inside) > rule.most:
                broken.append(rule.name)
    return broken


@given(st.lists(st.tuples(requests(), st.floats(0, 3)), max_size=60), st.booleans())
def test_sending_at_the_earliest_time_breaks_no_rule(
    requested: list[tuple[PacedRequest, float]], conservative: bool
) -> None:
    """For any requests at any times, no window holds more than its rule allows."""
    rules = (
        *pacing_of(conservative=conservative).rules,
        Rule("few", 5, 40.0, small_only=not conservative, weighted=True),
    )
    sent: list[SentRequest] = []
    now = 1000.0
    for request, pause_s in requested:
        now += pause_s
        sent.append(SentRequest(max(now, earliest(rules, sent, request)), request))
    assert breaks(rules, sent) == []


@given(st.lists(st.tuples(requests(), st.floats(0, 60)), max_size=30), st.randoms())
def test_the_order_of_sent_requests_does_not_matter(
    placed: list[tuple[PacedRequest, float]], random: Any
) -> None:
    """The earliest time is the same for any order of sent requests, future ones included."""
    sent = [SentRequest(at, request) for request, at in placed]
    shuffled = random.sample(sent, len(sent))
    assert earliest(STRICT, sent, small()) == earliest(STRICT, shuffled, small())


@pytest.fixture
def ask() -> Any:
    """Return a function that computes the send time of a request of "me" at time 100."""

    def run(request: PacedRequest, pacing: Pacing | None = None, **given: Any) -> SendTime:
        held = {
            owner: OpenRequests.of([bars(n) for n in range(count)])
            for owner, count in given.items()
        }
        return send_time(
            pacing or pacing_of(),
            me=Waiting(50, "me", 100, request),
            sent=[],
            open_requests=held,
            others=run.others,  # type: ignore[attr-defined]
            now=100,
        )

    run.others = []  # type: ignore[attr-defined]
    return run


def test_a_free_permit_is_taken_now(ask: Any) -> None:
    """With five of six permits taken the next request is sent at once."""
    assert ask(bars(), a=5).is_now(100)


def test_minutes_wait_for_a_permit(ask: Any) -> None:
    """With all permits taken a due request waits."""
    assert ask(bars(), a=3, b=3) == SendTime(100, has_permit=False)


def test_heads_do_not_count_against_the_concurrency(ask: Any) -> None:
    """They count among the open requests only."""
    assert ask(head("1"), a=6).is_now(100)


def test_open_historical_requests_are_limited(ask: Any) -> None:
    """The margin leaves 47 open historical requests."""
    assert pacing_of().most_open == 47
    assert ask(head("1"), a=46).has_permit
    assert not ask(head("1"), a=47).has_permit
    contract = PacedRequest(RequestKind.CONTRACT, "1", "1")
    assert ask(contract, a=47).has_permit


def test_a_tail_goes_before_backfills_that_came_first(ask: Any) -> None:
    """The last permit goes to the tail."""
    ask.others = [Waiting(1, "other", 90, bars(1)), Waiting(2, "other", 90, bars(2))]
    assert ask(bars("tail", tail=True), a=5).has_permit
    assert not ask(bars("more"), a=5).has_permit


def test_among_tails_the_first_goes_first(ask: Any) -> None:
    """Tails keep their order."""
    ask.others = [Waiting(1, "other", 90, bars(1, tail=True))]
    assert not ask(bars("tail", tail=True), a=5).has_permit


def test_an_owner_with_less_goes_first(ask: Any) -> None:
    """A process without open requests goes before a busy one."""
    ask.others = [Waiting(n, "busy", 90, bars(n)) for n in range(20)]
    assert ask(bars("mine"), busy=5).has_permit


def test_two_owners_take_turns(ask: Any) -> None:
    """A new process waits for the other's first request, not for all of them."""
    ask.others = [Waiting(n, "busy", 90, bars(n)) for n in range(20)]
    assert ask(bars("mine"), a=4).has_permit
    assert not ask(bars("mine"), a=5).has_permit


def test_a_request_that_is_not_due_takes_no_permit(ask: Any) -> None:
    """A request that is not due yet takes no permit."""
    ask.others = [Waiting(1, "other", 110, bars(1))]
    assert ask(bars("mine"), a=5).has_permit


def test_a_promised_time_counts_as_sent(ask: Any) -> None:
    """An identical request ahead in the queue delays a later one."""
    ask.others = [Waiting(1, "other", 110, bars(1))]
    assert ask(bars(1)).at == pytest.approx(125.75)


def test_pauses_double_while_violations_stay_close() -> None:
    """From one minute to ten, and back to one after a while without violations."""
    lengths, last = [], None
    for _ in range(6):
        last = next_pause_s(last, since_s=1)
        lengths.append(last)
    assert lengths == [60, 120, 240, 480, 600, 600]
    assert next_pause_s(600, since_s=601) == 60


def test_scaling_changes_time_and_nothing_else() -> None:
    """Scaled rules have the same counts in shorter windows."""
    scaled = pacing_of().scaled(0.01)
    assert [rule.most for rule in scaled.rules] == [rule.most for rule in RULES]
    assert scaled.horizon_s(small=True) == pytest.approx(6.006)
    assert scaled.horizon_s(small=False) == pytest.approx(0.1575)


def test_the_rules_stay_below_what_is_documented() -> None:
    """The documented limits: 15 s, 5 in 2 s, 60 in 600 s, 50 messages a second."""
    limits = {
        "identical": (1, 15),
        "same contract": (5, 2),
        "window": (60, 600),
        "backfills": (60, 600),
    }
    for rule in RULES:
        most, window_s = limits.get(rule.name, (50, 1))
        assert rule.most + rule.lent <= most
        assert rule.window_s >= window_s
        assert (rule.most, rule.window_s) != (most, window_s)
    assert replace(RULES[0], scope=Scope.GATEWAY).scope is Scope.GATEWAY
