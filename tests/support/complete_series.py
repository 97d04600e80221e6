"""Series saved with all their bars, for tests of what is missing."""

from collections.abc import Iterable
from datetime import date, timedelta
from pathlib import Path

from ktrdr_pipelines.domain.bars import micros
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.calendars.sessions import interval_between
from ktrdr_pipelines.domain.coverage import Coverage
from ktrdr_pipelines.domain.instruments import Origin, Series, identity_of
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.store.bars.bar_store import BarStore
from tests.support.fake_gateway import bars_at, dense_keys


def save_complete(
    store: BarStore, series: Series, first: date, end: date, *, without: Iterable[date] = ()
) -> Path:
    """Save and cover every bar of session dates ``[first, end)``, except of some dates.

    Returns: the first file that was written.
    """
    calendar = calendar_named(series.instrument.calendar)
    keys = dense_keys(calendar.key, series.timeframe, first, end)
    covered = IntervalSet([interval_between(calendar, series.timeframe, first, end)])
    for day in without:
        left_out = interval_between(calendar, series.timeframe, day, day + timedelta(days=1))
        covered -= IntervalSet([left_out])
        keys = keys[(keys < micros(left_out.start)) | (keys >= micros(left_out.end))]
    bars = bars_at(keys, calendar, daily=not series.timeframe.is_intraday)
    identity = identity_of(series, contract_id=1, origin=Origin.IB)
    return store.save(series, identity, bars, Coverage(covered)).files[0]
