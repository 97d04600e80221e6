"""The job ``load_bars``: several timeframes in one run, by a configuration."""

import asyncio
import signal
import threading
from collections.abc import Callable
from typing import Any

import dagster as dg
import pytest

from ktrdr_pipelines.defs.runs.load_job import LOAD_JOB, LOAD_OP
from ktrdr_pipelines.defs.runs.tags import CAUSE, KILLED, REQUESTS
from ktrdr_pipelines.domain.planning.responses import BarRequest
from ktrdr_pipelines.errors import GatewayError, RequestRejectedError


def run_job(location: Any, **config: Any) -> Any:
    """Run the job with a configuration, as the Launchpad does."""
    overrides = config.pop("overrides", {})
    job = location.defs(**overrides).resolve_job_def(LOAD_JOB)
    return job.execute_in_process(
        run_config={"ops": {LOAD_OP: {"config": config}}},
        instance=location.instance,
        raise_on_error=False,
    )


def tags_of(location: Any, result: Any) -> dict[str, str]:
    """Return the tags of a run."""
    [run] = location.instance.get_runs(dg.RunsFilter(run_ids=[result.run_id]))
    return dict(run.tags)


def test_several_timeframes_are_loaded_and_their_windows_materialized(location: Any) -> None:
    """Each window with bars has one event; a second run requests and reports nothing."""
    wanted = {"symbols": ["AAPL"], "timeframes": ["1d", "1h"], "start": "2025-01-01"}
    first = run_job(location, **wanted)
    assert first.success
    for timeframe in ("1d", "1h"):
        windows = location.materialized(timeframe, first.run_id)
        assert set(windows) == {"AAPL|2025", "AAPL|2026"}
        assert (windows["AAPL|2025"][1], windows["AAPL|2026"][1]) == ("complete", "open")
    tags = tags_of(location, first)
    assert tags["bars/symbols"] == "AAPL"
    assert tags["bars/windows"] == "2025-01-01 to now"
    assert tags["ktrdr/timeframe"] == "1d, 1h"
    assert int(tags[REQUESTS]) > 0
    requests = len(location.history())
    again = run_job(location, **wanted)
    assert again.success
    assert location.materialized("1d", again.run_id) == {}
    assert len(location.history()) == requests


def test_without_a_configuration_all_of_the_universe_is_loaded(location: Any) -> None:
    """Every symbol in each of its timeframes, from the start that the universe gives."""
    location.write_universe(
        "defaults: {timeframes: [1d], start: 2026-03-02}\n"
        "windows: {yearly: 2020}\nsymbols: {AAPL: {}, MSFT: {timeframes: [1d, 1h]}}"
    )
    assert run_job(location).success
    found = {one: set(location.materialized(one)) for one in ("1d", "1h")}
    assert found == {"1d": {"AAPL|2026", "MSFT|2026"}, "1h": {"MSFT|2026"}}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"symbols": ["AAPL", "NOPE"]}, "symbol 'NOPE': not in the universe"),
        ({"timeframes": ["2m"]}, "2m"),
        ({"start": "yesterday"}, "start yesterday: neither a date nor an instant"),
        ({"start": "2026-02-01", "end": "2026-01-01"}, "they are reversed"),
        ({"end": "2999-01-01"}, "end 2999-01-01"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(
    location: Any, failure_text: Callable[[Any], str], config: dict[str, Any], text: str
) -> None:
    """The failure names the field, and nothing is requested."""
    requests = len(location.history())
    result = run_job(location, **config)
    assert not result.success
    assert text in failure_text(result)
    assert len(location.history()) == requests


def test_the_launchpad_refuses_unknown_modes_and_fields(location: Any) -> None:
    """Before a run starts, with the allowed values."""
    for config in ({"mode": "all"}, {"simbols": ["AAPL"]}):
        with pytest.raises(dg.DagsterInvalidConfigError, match=r"mode|simbols"):
            run_job(location, **config)


def test_a_series_that_fails_is_named_and_the_others_are_loaded(
    location: Any, failing_ib: Callable[..., Any], failure_text: Callable[[Any], str]
) -> None:
    """The run fails; windows of the others are materialized."""

    def fails(request: BarRequest) -> GatewayError | None:
        if request.series.symbol == "AAPL":
            return RequestRejectedError(str(request), reason="refused by the test")
        return None

    result = run_job(
        location, timeframes=["1d"], start="2026-01-01", overrides={"ib": failing_ib(fails)}
    )
    text = failure_text(result)
    assert "1 of 2 series are not complete:\nAAPL 1d: " in text
    assert "refused by the test" in text
    assert set(location.materialized("1d")) == {"MSFT|2026"}


def test_a_run_that_is_terminated_keeps_what_it_saved(
    location: Any, failing_ib: Callable[..., Any]
) -> None:
    """A signal ends it, as a click on Terminate does; the next run goes on."""
    count = 0

    def interrupted(request: BarRequest) -> GatewayError | None:
        nonlocal count
        count += 1
        if count == 1:
            return None
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as the system does
        loop: Any = asyncio.get_running_loop()
        for _ in range(600):  # until the main thread has cancelled the load
            if any(getattr(one._callback, "__name__", "") == "cancel" for one in loop._ready):
                return None
            threading.Event().wait(0.05)
        raise AssertionError("the load was not cancelled within 30 s")

    wanted = {"timeframes": ["1d"], "start": "2026-01-01"}
    result = run_job(location, **wanted, overrides={"ib": failing_ib(interrupted)})
    assert not result.success
    assert tags_of(location, result)[CAUSE] == KILLED
    assert run_job(location, **wanted).success
    assert set(location.materialized("1d")) == {"AAPL|2026", "MSFT|2026"}
