"""When automatic work rebuilds the catalog: seldom where that costs much."""

import os
from dataclasses import replace
from datetime import timedelta

import pytest

from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.gaps.catalog_refresh import is_catalog_due
from ktrdr_pipelines.store.layout import StoreLayout
from tests.support.fake_gateway import stock, utc

NOW = utc(2024, 7, 1)


def test_a_store_without_a_catalog_gets_one(layout: StoreLayout) -> None:
    """However large the universe, and however small."""
    assert is_catalog_due(layout, [], NOW)
    assert is_catalog_due(layout, [stock(f"S{number}") for number in range(500)], NOW)


@pytest.mark.parametrize(
    ("symbols", "age_s", "is_due"),
    [
        (3, 5, True),
        (500, 100, False),
        (500, 250, True),
        (500, -60, True),
    ],
)
def test_the_age_of_a_rebuild_grows_with_the_universe(
    layout: StoreLayout, symbols: int, age_s: float, is_due: bool
) -> None:
    """24 series after each run, 4,000 every few minutes; a catalog from the future is rebuilt."""
    layout.catalog.touch()
    changed_at = (NOW - timedelta(seconds=age_s)).timestamp()
    os.utime(layout.catalog, (changed_at, changed_at))
    one = replace(stock(), timeframes=tuple(Timeframe))
    assert is_catalog_due(layout, [one] * symbols, NOW) is is_due
