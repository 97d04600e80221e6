"""ktrdr universe rename, check and load: the contract id decides what a symbol is."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.hours import Hours
from ktrdr_pipelines.simulator.market.market import BarQuery, PricedBars, What
from ktrdr_pipelines.simulator.market.simulated_instruments import SimulatedInstrument
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.server import running_simulator

LATER = "2024-01-11T20:00:30+00:00"
WEEK = ("--start", "2024-01-02", "--end", "2024-01-06")
LONGER = ("--start", "2024-01-02", "--end", "2024-01-10")


class ChangedMarket:
    """A market in which some contracts have other fields, or are not listed any more."""

    def __init__(self, changes: dict[str, dict[str, str] | None]) -> None:
        self._market = SyntheticMarket(seed=1)
        self._originals: dict[SimulatedInstrument, SimulatedInstrument] = {}
        for one in self._market.instruments():
            change = changes.get(one.key, {})
            if change is not None:
                self._originals[replace(one, **change)] = one

    @property
    def jumps_at_splits(self) -> bool:
        return self._market.jumps_at_splits

    def instruments(self) -> Sequence[SimulatedInstrument]:
        return list(self._originals)

    def hours(self, instrument: SimulatedInstrument, *, use_rth: bool) -> Hours:
        return self._market.hours(self._originals[instrument], use_rth=use_rth)

    def bars(self, instrument: SimulatedInstrument, query: BarQuery) -> PricedBars:
        return self._market.bars(self._originals[instrument], query)

    def head(self, instrument: SimulatedInstrument, what: What, *, use_rth: bool) -> int | None:
        return self._market.head(self._originals[instrument], what, use_rth=use_rth)

    def default_now(self) -> datetime | None:
        return self._market.default_now()


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch, new_budget: Callable[[], None]) -> Callable[..., Any]:
    """Return a context manager in which the gateway lists some contracts otherwise."""

    @contextmanager
    def run(**changes: dict[str, str] | None) -> Iterator[None]:
        new_budget()
        with running_simulator(ChangedMarket(changes), now=LATER) as server:
            monkeypatch.setenv("IB_PORT", str(server.port))
            yield

    return run


@pytest.fixture
def loaded(ktrdr: Any, store: Path, gateway: Any) -> Path:
    """Return a store with a few bars of AAPL."""
    assert ktrdr("load", "AAPL", "1d", *WEEK).code == 0
    return store


def entry_of(store: Path, symbol: str) -> str:
    """Return the line of an entry."""
    lines = (store / "universe.yaml").read_text().splitlines()
    return next(line.strip() for line in lines if line.strip().startswith(f"{symbol}:"))


NEW = {"symbol": "APLX", "local_symbol": "APLX"}


def test_a_contract_that_got_another_symbol_is_loaded_on_and_renamed(
    ktrdr: Any, loaded: Path, changed: Any
) -> None:
    """The gateway finds it by its id, before the rename and after it; no bar comes twice."""
    with changed(AAPL=NEW):
        first = ktrdr("load", "AAPL", "1d", *LONGER)
        assert (first.code, "APLX" in first.err) == (0, True), first.err
        renamed = ktrdr("universe", "rename", "AAPL", "APLX", "--json").document
        con_id = renamed["contract_id"]
        assert renamed["fields"]["symbol"] == {
            "value": "APLX",
            "derived": True,
            "origin": "derived",
        }
        assert renamed["fields"]["con_id"] == {"value": con_id, "derived": False, "origin": "set"}
        assert entry_of(loaded, "APLX") == f"APLX: {{con_id: {con_id}}}"
        assert ktrdr("universe", "check").code == 0
        second = ktrdr("load", "APLX", "1d", "--start", "2023-12-28", "--end", "2024-01-10")
        assert (second.code, second.err.count("now names")) == (0, 0), second.err
    [count] = ktrdr("query", "SELECT count(*) n FROM series('APLX', '1d')", "--json").rows
    assert count["n"] == 8


def test_another_contract_under_the_old_symbol_is_refused(
    ktrdr: Any, loaded: Path, changed: Any
) -> None:
    """Neither its bars nor those of the renamed contract are loaded until the entry is clear."""
    with changed(AAPL=NEW, MSFT={"symbol": "AAPL"}):
        result = ktrdr("load", "AAPL", "1d", *LONGER)
        assert result.code == 1
        assert "con_id" in result.err + result.out
        assert ktrdr("universe", "rename", "AAPL", "APLX").code == 0
        assert ktrdr("load", "APLX", "1d", *LONGER).code == 0


@pytest.mark.parametrize(
    ("change", "entry"),
    [
        (NEW, "{symbol: APLX}"),
        ({"primary_exchange": "NYSE"}, "{primary_exchange: NYSE}"),
        ({"primary_exchange": "NYSE"}, "{primary_exchange: NASDAQ}"),
    ],
)
def test_check_accepts_what_load_accepts(
    ktrdr: Any, loaded: Path, changed: Any, change: dict[str, str], entry: str
) -> None:
    """A corrected symbol, and a primary exchange that moved, name the same contract."""
    path = loaded / "universe.yaml"
    path.write_text(path.read_text().replace("AAPL: {}", f"AAPL: {entry}"))
    with changed(AAPL=change):
        check = ktrdr("universe", "check", "--json")
        assert (check.code, check.document["complete"]) == (0, True)
        loading = ktrdr("load", "AAPL", "1d", *LONGER)
        assert loading.code == 0, loading.err


def test_an_entry_that_names_another_contract_is_refused_by_load(
    ktrdr: Any, loaded: Path, changed: Any
) -> None:
    """The bars of two instruments are never mixed, whatever the key is."""
    path = loaded / "universe.yaml"
    path.write_text(path.read_text().replace("AAPL: {}", "AAPL: {symbol: MSFT}"))
    with changed():
        result = ktrdr("load", "AAPL", "1d", *LONGER)
    assert result.code == 1
    assert "con_id" in result.err + result.out


def test_hours_that_differ_from_those_of_other_timeframes_are_refused_by_both(
    ktrdr: Any, loaded: Path, changed: Any
) -> None:
    """Bars of regular hours on disk, and all hours in the entry."""
    path = loaded / "universe.yaml"
    path.write_text(path.read_text().replace("AAPL: {}", "AAPL: {use_rth: false}"))
    with changed():
        result = ktrdr("load", "AAPL", "1h", *WEEK)
        assert result.code == 1
        assert "use_rth True, not False" in result.err + result.out
    assert ktrdr("universe", "check").code == 1


def test_a_delisted_contract_is_ended_and_stays_queryable(
    ktrdr: Any, loaded: Path, changed: Any
) -> None:
    """The error names the command; after it nothing is requested or missing."""
    with changed(AAPL=None):
        lost = ktrdr("load", "AAPL", "1d", *LONGER)
        assert lost.code != 0
        assert "ktrdr universe set AAPL ended=true" in lost.err + lost.out
        assert ktrdr("universe", "set", "AAPL", "ended=true", "timeframes=1d").code == 0
        assert entry_of(loaded, "AAPL") == "AAPL: {timeframes: [1d], ended: true}"
        after = ktrdr("load", "AAPL", "1d", *LONGER, "--json")
        assert (after.code, after.document["series"][0]["requests"]) == (0, 0)
    check = ktrdr("universe", "check", "--json").document
    assert check["symbols"]["AAPL"]["ended"]["value"] is True
    assert ktrdr("gaps", "AAPL", "1d").code == 0
    [count] = ktrdr("query", "SELECT count(*) n FROM bars", "--json").rows
    assert count["n"] == 4


def test_rename_writes_the_symbol_that_is_told(ktrdr: Any, loaded: Path) -> None:
    """Without a known contract, the gateway is asked for the old symbol, and the text says so."""
    assert ktrdr("universe", "rename", "AAPL", "APLX", "--symbol", "APLY").code == 0
    assert "con_id: " in entry_of(loaded, "APLX")
    assert "symbol: APLY" in entry_of(loaded, "APLX")
    result = ktrdr("universe", "rename", "MSFT", "MSF")
    assert "ktrdr universe set MSF symbol=SYMBOL" in result.out
    assert entry_of(loaded, "MSF") == "MSF: {symbol: MSFT}"
