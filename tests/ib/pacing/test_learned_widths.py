"""Learned widths in the shared record: all processes share them, and they outlast restarts."""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ktrdr_pipelines.domain.planning.width_learning import (
    LearnedWidth,
    WidthBounds,
    WidthSample,
    measured,
    started,
)
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacing.learned_widths import (
    LearnedWidths,
    learned_widths,
    text_of,
    width_in,
)
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter

KIND = "1m STK 6.5h TRADES"
NOW = datetime(2026, 1, 5, tzinfo=UTC)


def answered(bars: int, took_s: float) -> Callable[[LearnedWidth | None], LearnedWidth]:
    """Return a change that records a response to a request of one session."""

    def change(known: LearnedWidth | None) -> LearnedWidth:
        now_s = NOW.timestamp()
        known = known or started(KIND, now_s)
        sample = WidthSample(bars, took_s)
        return measured(known, 1, sample, now_s=now_s, bounds=WidthBounds(5.0))

    return change


def test_processes_share_what_they_learn_over_restarts_of_the_machine(tmp_path: Path) -> None:
    """Each change is one step; another run of the machine and another thread read the same."""
    for boot in ("first", "second", "third"):
        with closing(
            LearnedWidths(lambda boot=boot: RateLimiter(tmp_path, boot=boot))  # type: ignore[misc]
        ) as widths:
            widths.update(KIND, answered(390, 0.5))
            widths.close()
            known = widths.known()[KIND]
    assert len(known.best.samples) == 3
    assert round(known.best.bars_per_s) == 780
    assert width_in(text_of(known)) == known


def test_a_text_without_usable_numbers_is_none() -> None:
    """Whatever was damaged: a width that cannot be read is learned anew."""
    text = text_of(answered(390, 0.5)(None))
    assert width_in(text) is not None
    for good, bad in (('"width": 1', '"width": Infinity'), ("0.5", "NaN"), ('"since": ', '"x": ')):
        assert good in text
        assert width_in(text.replace(good, bad)) is None


def test_they_hold_for_a_week(tmp_path: Path) -> None:
    """Reading creates no record; one that cannot be read is none; conservative pacing has none."""
    config = GatewayConfig(state_dir=tmp_path)
    assert learned_widths(config, NOW) == {}
    assert not RateLimiter.of(config).exists
    widths = LearnedWidths.of(config)
    assert widths is not None
    with closing(widths):
        widths.update(KIND, answered(390, 0.5))
    with closing(RateLimiter.of(config)) as record:
        record.remember(lambda memory, database: memory.learn_width(database, "5m", "{"))
    assert set(learned_widths(config, NOW + timedelta(days=6))) == {KIND}
    assert learned_widths(config, NOW + timedelta(days=8)) == {}
    assert learned_widths(config, NOW - timedelta(days=1)) == {}
    assert LearnedWidths.of(GatewayConfig(state_dir=tmp_path, conservative=True)) is None
