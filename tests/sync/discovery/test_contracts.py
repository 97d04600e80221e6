"""The contract of a symbol, known from the store without any request."""

from collections.abc import Callable
from datetime import date

import pytest

from ktrdr_pipelines.domain.calendars.registry import Calendars
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.index import GapIndex
from ktrdr_pipelines.store.layout import pin_origin
from ktrdr_pipelines.sync.discovery.contracts import known_contract
from tests.support.fake_gateway import dense_keys, utc
from tests.support.loading import World

RTH = "XNYS.RTH"
LISTED = date(2024, 10, 28)


@pytest.fixture
def listed_later(world: Callable[..., World]) -> World:
    """Make an interval before the listing of the contract, as its head timestamp states."""
    keys = dense_keys(RTH, Timeframe.D1, LISTED, date(2025, 6, 1))
    made = world(RTH, Timeframe.D1, date(2024, 10, 7), LISTED, keys=keys, now=utc(2025, 6, 1, 3))
    made.harness.gateway.head_at = utc(2024, 10, 28, 13, 30)
    return made


def test_an_interval_before_the_listing_is_explained_before_the_store_has_bars(
    listed_later: World,
) -> None:
    """Neither the report nor the gap index needs stored bars to identify the contract."""
    assert listed_later.load_until_confirmed().is_complete
    assert listed_later.harness.store.read(listed_later.series).num_rows == 0
    again = listed_later.load()
    assert (again.requests, again.is_complete) == (0, True)
    series, gateway = listed_later.series, listed_later.harness.gateway
    index = GapIndex(listed_later.harness.store, Calendars(), gateway.gateway)
    [found] = index.series_gaps([series], gateway.time)
    assert found.missing.clip(listed_later.wanted) == IntervalSet()


def test_contracts_that_differ_by_origin_are_not_known_before_the_first_bars(
    listed_later: World,
) -> None:
    """Until bars are stored, a contract counts if the gateways of all origins name it."""
    store, series = listed_later.harness.store, listed_later.series
    pin = store.ledger.contracts.pin
    assert known_contract(store, series) is None
    pin(series.symbol, Origin.IB, 265598, "AAPL", utc(2025, 1, 1))
    assert known_contract(store, series) == 265598
    pin(series.symbol, Origin.SIMULATED, 265598, "AAPL", utc(2025, 1, 1))
    assert store.ledger.contracts.all(None) == {series.symbol: 265598}
    pin(series.symbol, Origin.SIMULATED, 7, "AAPL", utc(2025, 1, 1))
    assert known_contract(store, series) is None
    assert store.ledger.contracts.all(None) == {}
    pin_origin(listed_later.harness.layout, Origin.IB)
    assert known_contract(store, series) == 265598
