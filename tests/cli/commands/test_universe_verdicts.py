"""ktrdr universe check and ktrdr load judge each edit of an entry alike."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.store.layout import open_store
from ktrdr_pipelines.store.ledger.ledger import open_ledger

ACCEPTED = [
    "{symbol: ZZZZ}",  # the contract has another name, and no other contract has this one
    "{primary_exchange: NYSE}",
    "{calendar: GATEWAY}",
    "{delisted: 2024-01-04}",
    "{ended: true}",
]
REFUSED = [
    "{con_id: 1}",
    "{exchange: NASDAQ}",  # the same contract, and other trades
    "{primary_exchange: TSE}",  # in another currency
    "{sec_type: IND, exchange: CBOE}",
    "{what_to_show: MIDPOINT}",
    "{use_rth: false}",
]


@pytest.fixture
def edited(ktrdr: Any, store: Path, gateway: Any) -> Callable[[str], None]:
    """Load a few daily bars of AAPL; return what replaces its entry."""
    path = store / "universe.yaml"
    text = path.read_text()
    assert load(ktrdr, 6).code == 0
    return lambda entry: path.write_text(text.replace("AAPL: {}", f"AAPL: {entry}")) and None


def load(ktrdr: Any, end: int) -> Any:
    """Load daily bars of AAPL until a day of January 2024."""
    return ktrdr("load", "AAPL", "1d", "--start", "2024-01-02", "--end", f"2024-01-{end:02}")


def test_what_the_check_accepts_is_loaded(
    ktrdr: Any, edited: Callable[[str], None], new_budget: Callable[[], None]
) -> None:
    """Before and after a load that asks the gateway."""
    for entry in ACCEPTED:
        edited(entry)
        assert ktrdr("universe", "check").code == 0, entry
        new_budget()
        loaded = load(ktrdr, 10)
        assert loaded.code == 0, (entry, loaded.all)


def test_what_the_check_refuses_is_not_loaded(
    ktrdr: Any,
    store: Path,
    edited: Callable[[str], None],
    new_budget: Callable[[], None],
) -> None:
    """However often other commands have read the edit."""
    for entry in REFUSED:
        edited(entry)
        assert ktrdr("universe", "check").code == 1, entry
        new_budget()
        loaded = load(ktrdr, 10)
        assert loaded.code == 1, (entry, loaded.all)
        assert ktrdr("universe", "check").code == 1, entry
    [count] = ktrdr("query", "SELECT count(*) n FROM bars", "--json").rows
    assert count["n"] == 4
    # Where the ledger of an earlier version lacks the venue, the universe until now decides.
    edited("{}")
    assert ktrdr("status").code == 0
    with open_ledger(open_store(store)).database.writing() as connection:
        connection.execute("DELETE FROM venues")
    edited("{exchange: NASDAQ}")
    assert ktrdr("universe", "check").code == 1


def test_the_venue_follows_a_symbol_and_ends_with_its_bars(
    ktrdr: Any, edited: Callable[[str], None], new_budget: Callable[[], None]
) -> None:
    """A renamed symbol keeps it; a new instrument under a retired name has one of its own."""
    edited("{}")
    assert ktrdr("universe", "rename", "AAPL", "APLX").code == 0
    assert ktrdr("universe", "set", "APLX", "exchange=NASDAQ").code == 1
    assert ktrdr("universe", "retire", "APLX").code == 0
    assert ktrdr("universe", "add", "APLX", "--symbol", "AAPL", "--exchange", "NASDAQ").code == 0
    new_budget()
    assert ktrdr("load", "APLX", "1d", "--start", "2024-01-02", "--end", "2024-01-06").code == 0
    restored = ktrdr("universe", "restore", "APLX@1", "--as", "AAPL", "--json")
    assert restored.document["fields"]["exchange"]["value"] == "SMART"
    assert ktrdr("universe", "set", "AAPL", "exchange=NASDAQ").code == 1
