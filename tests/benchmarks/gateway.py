"""How much of a gateway loads use: its workers, its budget, its best widths, and processor time.

Every figure is measured with loads over a loopback socket to a gateway of its own in another
process (``tests.support.timed_gateway``), which is not the product's simulator. Loads start cold:
nothing is known of the gateway.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate

from ib_async.decoder import Decoder

from tests.benchmarks.loads import Load, Manner, load_of, run_loads, run_together, stocks
from tests.benchmarks.measuring import Benchmark, Target
from tests.support.costs import cost_of
from tests.support.timed_gateway import (
    SERVER_VERSION,
    Law,
    PreparedBars,
    Served,
    running_gateway,
)

_CAPACITY_A_S, _SMALL_CAPACITY_A_S = 15.0, 10.0
"""Responses a second of the gateways: below the 45 messages a second that a client may send, and in
the small form also below what a busy machine leaves to it."""

_ROUNDS, _SMALL_ROUNDS, _COLD_ROUNDS = 90, 45, 20
"""Requests of a load for each worker, and how many of them are the start, in which much of the
capacity is being found."""

_WORKERS = (1, 3, 6, 12, 24)
_PENALTY, _NOISE = 0.1, 0.3
_FIRST = "2021-01-04"
_MINUTES = 390
_WARM_UP = Load(stocks(1), _FIRST, "2021-01-11")

_WINDOW_S, _WINDOW_MOST, _PACED, _PROCESSES = 600.0, 60, 76, 4

_WIDER_IS_BETTER = ((1, 0.104), (20, 0.18), (40, 0.9))
"""Seconds by sessions where most of a response's time is the same up to a width."""

_ONE_DAY_IS_BEST = ((1, 0.15), (5, 2.075))
"""A quarter of what is published: 1 D of 1m 0.6 s, 5 D 8.3 s, 6 D no response at all."""


def benchmarks(*, small: bool) -> list[Benchmark]:
    """Return the benchmarks of the gateway; the small form takes a minute or two."""
    if small:
        return [
            _workers(6, 0.0, rounds=_SMALL_ROUNDS, capacity_a_s=_SMALL_CAPACITY_A_S),
            _budget(0.03),
            _width("wider", "wider is better", _WIDER_IS_BETTER, sessions=3_000),
            _narrow_requests(sessions=120),
            _wide_requests(symbols=2),
        ]
    return [
        *(_workers(number, noise) for noise in (0.0, _NOISE) for number in _WORKERS),
        _budget(0.1),
        _width("wider", "wider is better", _WIDER_IS_BETTER, sessions=6_000),
        _width("published", "1 D is best, as published", _ONE_DAY_IS_BEST, sessions=900),
        _narrow_requests(sessions=300),
        _wide_requests(symbols=6),
    ]


def _narrow(service_s: float) -> list[tuple[int, float]]:
    """Return points of a law for which requests of one session bring most bars a second."""
    return [(1, service_s), (2, 3 * service_s), (100, 300 * service_s)]


def _workers(
    workers: int,
    noise: float,
    *,
    rounds: int = _ROUNDS,
    capacity_a_s: float = _CAPACITY_A_S,
) -> Benchmark:
    """Return the benchmark of a gateway of unknown workers whose service slows under a queue."""
    load = load_of(stocks(3), _FIRST, rounds * workers // 3)
    law = Law(workers, _narrow(workers / capacity_a_s), _PENALTY, noise, first=_FIRST, end=load.end)
    key = f"workers-{workers}{'-noise' if noise else ''}"
    of = "1 worker" if workers == 1 else f"{workers} workers"
    what = f"share of an oracle, {of}{', 30 % noise' if noise else ''}"
    reach = 0.95 if 1 < workers < 24 else 0.90
    found = Target(key, f"{what}: after {_COLD_ROUNDS} rounds", reach)
    cold = Target(f"{key}-cold", "the same, from the first request on", reach)

    def measure() -> Mapping[str, float]:
        with running_gateway(law) as gateway:
            run_loads(gateway.port, [load])
            minutes = [one for one in gateway.report() if one.bar_size == "1 min"]
        ends_s = sorted(one.ended_s for one in minutes)
        started_s, last_sent_s = minutes[0].arrived_s, minutes[-1].arrived_s
        return {
            key: _share_of_oracle(minutes, law, ends_s[_COLD_ROUNDS * workers], last_sent_s),
            cold.key: _share_of_oracle(minutes, law, started_s, ends_s[-1]),
        }

    return Benchmark([found, cold], measure)


def _share_of_oracle(served: Sequence[Served], law: Law, from_s: float, until_s: float) -> float:
    """Return the sessions served between two moments as a share of what workers can serve.

    The oracle requests one session each, keeps every worker busy and nothing waiting: as many
    requests are in flight as there are workers, each sent the moment another ends. No client can be
    faster.
    """
    served_s = 0.0
    for one in served:
        within_s = min(one.ended_s, until_s) - max(one.begun_s, from_s)
        if within_s > 0 and one.bars:
            needed_s = one.service_s * one.sessions * law.mean_s(1) / law.mean_s(one.sessions)
            served_s += needed_s * within_s / (one.ended_s - one.begun_s)
    return served_s / law.workers / (until_s - from_s)


def _budget(factor: float) -> Benchmark:
    """Return the benchmark of the hard budget, its windows multiplied by a factor."""
    times = Target(
        "budget",
        "hard budget, 4 processes, 76 requests: of the ideal time",
        1.05,
        more_is_better=False,
    )
    broken = Target(
        "violations",
        "the same: violations that the gateway counts",
        0,
        more_is_better=False,
        is_compared=False,
        is_required=True,
    )
    window_s = _WINDOW_S * factor
    loads = [[load_of([symbol], _FIRST, _PACED // _PROCESSES)] for symbol in stocks(_PROCESSES)]
    law = Law(45, _narrow(0.02 * factor), first=_FIRST, end=loads[0][0].end)

    def measure() -> Mapping[str, float]:
        with running_gateway(law) as gateway:
            run_together(gateway.port, loads, Manner(hard_rules_by=factor))
            arrived_s = [one.arrived_s for one in gateway.report()]
        ideal_s = window_s * ((len(arrived_s) - 1) // _WINDOW_MOST)
        return {
            times.key: (arrived_s[-1] - arrived_s[0]) / ideal_s,
            broken.key: _violations(arrived_s, window_s),
        }

    return Benchmark([times, broken], measure)


def _violations(arrived_s: Sequence[float], window_s: float) -> int:
    """Return how many requests arrived less than a window after the sixtieth before them."""
    pairs = zip(arrived_s, arrived_s[_WINDOW_MOST:], strict=False)
    return sum(later - earlier < window_s for earlier, later in pairs)


def _width(
    key: str, what: str, service_s: Sequence[tuple[int, float]], *, sessions: int
) -> Benchmark:
    """Return the benchmark of the width of requests, for a gateway with a law of widths.

    Learning takes some hundred requests, once a week for all series of a kind. The last quarter of
    a load shows what was learned, the whole load also what learning costs.
    """
    symbols = max(1, sessions // 300)
    load = load_of(stocks(symbols), _FIRST, sessions // symbols)
    law = Law(4, service_s, first=_FIRST, end=load.end)
    learned = Target(
        f"width-{key}", f"bars a second of each request in flight, of the best width: {what}", 0.9
    )
    cold = Target(f"width-{key}-cold", "the same, from the first request on", None)
    widths = range(1, service_s[-1][0] + 1)
    best = max(width * _MINUTES / law.mean_s(width) for width in widths)

    def measure() -> Mapping[str, float]:
        with running_gateway(law) as gateway:
            run_loads(gateway.port, [load], Manner(settings={"IB_TIMEOUT": "5"}))
            served = gateway.report()
        return {
            learned.key: _bars_a_place_s(served[_last_quarter(served) :]) / best,
            cold.key: _bars_a_place_s(served) / best,
        }

    return Benchmark([learned, cold], measure)


def _bars_a_place_s(served: Sequence[Served]) -> float:
    """Return the bars of requests for each second that they were in flight."""
    return sum(one.bars for one in served) / sum(one.ended_s - one.begun_s for one in served)


def _last_quarter(served: Sequence[Served]) -> int:
    """Return the number of requests after which a quarter of the bars was still to be requested."""
    bars = list(accumulate(one.bars for one in served))
    return bisect_left(bars, bars[-1] * 0.75)


def _narrow_requests(*, sessions: int) -> Benchmark:
    """Return the benchmark of processor time for requests of one day."""
    one = Target(
        "cpu-one",
        "processor time a request of 1 D, one series",
        2,
        more_is_better=False,
        unit="ms",
        is_compared=False,
    )
    many = Target(
        "cpu-many", "the same, many series", 2, more_is_better=False, unit="ms", is_compared=False
    )
    decodes = Target(
        "cpu-decodes",
        "the same, as a multiple of ib_async's bare decode of it",
        3,
        more_is_better=False,
    )
    share = Target(
        "bars-1d",
        "bars a second at 1 D, of ib_async's decode (bound by 45 messages a second)",
        0.036,
        is_compared=False,
    )

    loads = [
        _WARM_UP,
        load_of(stocks(1, first=1), _FIRST, sessions),
        load_of(stocks(20, first=2), _FIRST, sessions // 20),
    ]
    law = Law(45, _narrow(0.02), first=_FIRST, end=loads[1].end)

    def measure() -> Mapping[str, float]:
        with running_gateway(law) as gateway:
            _, alone, together = run_loads(gateway.port, loads, Manner(days=1))
        decode_s = _decode_s_a_bar(sessions=1)
        return {
            one.key: alone.cpu_s / alone.requests * 1000,
            many.key: together.cpu_s / together.requests * 1000,
            decodes.key: together.cpu_s / together.bars / decode_s,
            share.key: alone.bars / alone.wall_s * decode_s,
        }

    return Benchmark([one, many, decodes, share], measure)


def _wide_requests(*, symbols: int) -> Benchmark:
    """Return the benchmark of bars a second where requests are wide, beside ib_async's decode."""
    share = Target(
        "bars-30d",
        "bars a second at 30 D, of ib_async's bare decode (bound by 45 messages a second)",
        0.9,
        is_compared=False,
    )
    work = Target("cpu-30d", "the same, of processor time", 0.9)

    loads = [_WARM_UP, load_of(stocks(symbols, first=1), _FIRST, 740)]

    def measure() -> Mapping[str, float]:
        with running_gateway(Law(45, first=_FIRST, end=loads[1].end)) as gateway:
            _, wide = run_loads(gateway.port, loads, Manner(days=42))
        decode_s = _decode_s_a_bar(sessions=30)
        return {
            share.key: wide.bars / wide.wall_s * decode_s,
            work.key: wide.bars / wide.cpu_s * decode_s,
        }

    return Benchmark([share, work], measure)


class _Nothing:
    """Takes the bars that ib_async has decoded, and does nothing with them."""

    def historicalData(self, _request_id: int, _bar: object) -> None:  # noqa: N802  (ib_async's)
        pass

    def historicalDataEnd(self, *_: object) -> None:  # noqa: N802  (as above)
        pass


def _decode_s_a_bar(sessions: int) -> float:
    """Return the processor time of ib_async for a bar in the frames of requests of a width."""
    frames = PreparedBars(_FIRST, "2021-10-01").messages(sessions)
    decoder = Decoder(_Nothing(), SERVER_VERSION)
    counts: list[int] = []

    def act() -> None:
        counts.clear()
        for frame in frames:
            fields = frame[4:].decode(errors="backslashreplace").split("\0")
            fields.pop()
            decoder.interpret(fields)
            counts.append(int(fields[4]))

    return cost_of(act, rounds=9).cpu_ms / 1000 / sum(counts)
