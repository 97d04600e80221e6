"""ktrdr adjust: deciding on prices, undoing it, listing, and what queries return then."""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.domain.adjustments import AdjustmentKind
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import open_store, store_version
from ktrdr_pipelines.store.ledger.ledger import Ledger
from tests.support.archives import unpack

DAYS = ("--start", "2024-01-02", "--end", "2024-01-06")
DECIDED = ("--ratio", "100", "--from", "2024-01-04", "--note", "pounds became pence")
EARLIER = Path(__file__).parents[2] / "fixtures" / "store_v9.tar.gz"


@pytest.fixture
def loaded(ktrdr: Any, store: Path, gateway: Any) -> Path:
    """Return a store with four daily bars of AAPL."""
    assert ktrdr("load", "AAPL", "1d", *DAYS).code == 0
    return store


@pytest.fixture
def closes(ktrdr: Any) -> Callable[..., list[float]]:
    """Return a function that queries the closes of AAPL, by default as readers get them."""

    def query(source: str = "bars_1d", column: str = "close") -> list[float]:
        sql = f"SELECT {column} FROM {source} WHERE symbol = 'AAPL' ORDER BY ts"  # noqa: S608
        return [row[column] for row in ktrdr("query", sql, "--json").rows]

    return query


def test_bars_before_a_date_are_multiplied_when_they_are_read(
    ktrdr: Any, loaded: Path, closes: Callable[..., list[float]]
) -> None:
    """At once, in all views, bit for bit; the files and the raw views keep what was stored."""
    path = loaded / "bars" / "symbol=AAPL" / "timeframe=1d" / "all.parquet"
    content, before, volumes = path.read_bytes(), closes(), closes(column="volume")
    result = ktrdr("adjust", "AAPL", *DECIDED)
    assert (result.code, result.err) == (0, "")
    assert "before 2024-01-04 (2 bars of 1d)" in result.out
    assert "prices by 100, volumes by 0.01" in result.out
    assert "`ktrdr adjust AAPL --remove 1` undoes it" in result.out
    expected = [before[0] * 100, before[1] * 100, *before[2:]]
    assert closes() == closes("bars") == closes("series('AAPL', '1d')") == expected
    assert closes("raw_1d") == before
    assert closes(column="volume") == [volumes[0] * 0.01, volumes[1] * 0.01, *volumes[2:]]
    assert path.read_bytes() == content


def test_an_adjustment_is_undone(
    ktrdr: Any, loaded: Path, closes: Callable[..., list[float]]
) -> None:
    """Bars are read as before, and the record of it stays."""
    before = closes()
    ktrdr("adjust", "AAPL", *DECIDED)
    result = ktrdr("adjust", "AAPL", "--remove")
    assert (result.code, "pounds became pence" in result.out) == (0, True)
    assert closes() == before
    document = ktrdr("adjust", "AAPL", "--json").document
    assert [one["removed_at"] is not None for one in document["adjustments"]] == [True]
    (row,) = ktrdr("query", "FROM adjustments", "--json").rows
    assert row["removed_at"] is not None
    assert "AAPL: 1 adjustment, all removed" in ktrdr("status").out
    ktrdr("adjust", "AAPL", "--remove").is_error(2, "the numbers: none")


def test_the_document_has_what_was_recorded(ktrdr: Any, loaded: Path) -> None:
    """It has the adjustment, the bars that it concerns, and all adjustments of the symbol."""
    document = ktrdr("adjust", "AAPL", *DECIDED, "--json").document
    recorded = document["recorded"]
    assert recorded | {"found_at": "", "old_until": ""} == {
        "number": 1,
        "kind": "manual",
        "ratio": 100.0,
        "volume_ratio": 0.01,
        "effective": "2024-01-04",
        "estimated": False,
        "found_at": "",
        "old_until": "",
        "evidence": "decided by a person",
        "note": "pounds became pence",
        "removed_at": None,
    }
    assert (document["symbol"], document["bars"], document["removed"]) == ("AAPL", {"1d": 2}, None)
    assert document["adjustments"] == [recorded]
    document = ktrdr("adjust", "AAPL", "--remove", "1", "--json").document
    assert (document["recorded"], document["removed"]["number"]) == (None, 1)
    assert document["adjustments"] == [document["removed"]]


def test_the_factor_of_volumes_may_be_given(
    ktrdr: Any, loaded: Path, closes: Callable[..., list[float]]
) -> None:
    """Prices alone, and volumes alone, can be in another unit."""
    before, volumes = closes(), closes(column="volume")
    ktrdr("adjust", "AAPL", *DECIDED, "--volume-ratio", "1")
    assert closes(column="volume") == volumes
    assert closes()[0] == before[0] * 100
    ktrdr("adjust", "AAPL", "--remove")
    options = ("--ratio", "1", "--volume-ratio", "100", *DECIDED[2:])
    assert ktrdr("adjust", "AAPL", *options).code == 0
    assert closes() == before
    assert closes(column="volume") == [volumes[0] * 100, volumes[1] * 100, *volumes[2:]]


def test_a_fraction_is_exact(ktrdr: Any, loaded: Path) -> None:
    """One third is the quotient of the two numbers, and its volume ratio the inverse."""
    document = ktrdr("adjust", "AAPL", "--ratio", "1/3", *DECIDED[2:], "--json").document
    assert document["recorded"]["ratio"] == 1 / 3
    assert document["recorded"]["volume_ratio"] == 1 / (1 / 3)


def test_several_adjustments_are_undone_by_their_numbers(
    ktrdr: Any, loaded: Path, closes: Callable[..., list[float]]
) -> None:
    """They multiply each other; without a number, none of several is chosen."""
    before = closes()
    ktrdr("adjust", "AAPL", *DECIDED)
    ktrdr("adjust", "AAPL", "--ratio", "0.5", "--from", "2024-01-05", "--note", "and halved")
    assert closes() == [before[0] * 50, before[1] * 50, before[2] * 0.5, before[3]]
    ktrdr("adjust", "AAPL", "--remove").is_error(2, "1, 2", "--remove NUMBER")
    ktrdr("adjust", "AAPL", "--remove", "7").is_error(2, "1, 2")
    assert ktrdr("adjust", "AAPL", "--remove", "1").code == 0
    assert closes() == [before[0] * 0.5, before[1] * 0.5, before[2] * 0.5, before[3]]
    listed = ktrdr("adjust", "AAPL").out
    assert "pounds became pence" in listed
    assert "and halved" in listed


def test_a_symbol_without_adjustments_says_so(ktrdr: Any, store: Path) -> None:
    """Nothing is written."""
    result = ktrdr("adjust", "AAPL")
    assert (result.code, "has no adjustment" in result.out) == (0, True)
    document = ktrdr("adjust", "AAPL", "--json").document
    assert (document["adjustments"], document["statement"]) == ([], "")
    assert not (store / "history").exists()


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--ratio", "nan", *DECIDED[2:]), ("--ratio nan", "not a finite number above 0")),
        (("--ratio", "inf", *DECIDED[2:]), ("--ratio inf", "not a finite number above 0")),
        (("--ratio", "0", *DECIDED[2:]), ("--ratio 0", "not a finite number above 0")),
        (("--ratio", "-2", *DECIDED[2:]), ("--ratio -2", "not a finite number above 0")),
        (("--ratio", "1/0", *DECIDED[2:]), ("--ratio 1/0", "not a finite number above 0")),
        (("--ratio", "half", *DECIDED[2:]), ("--ratio half", "0.25")),
        (("--ratio", "5e-324", *DECIDED[2:]), ("--ratio 5e-324", "--volume-ratio")),
        ((*DECIDED, "--volume-ratio", "0"), ("--volume-ratio 0", "not a finite number above 0")),
        (("--ratio", "1", *DECIDED[2:]), ("times 1",)),
        (DECIDED[:4], ("--note is missing",)),
        ((*DECIDED[:4], "--note", "  "), ("--note is missing",)),
        (DECIDED[:2] + DECIDED[4:], ("--from is missing",)),
        (DECIDED[2:], ("--ratio is missing",)),
        (("--volume-ratio", "100"), ("--ratio is missing",)),
        (("--ratio", "2", "--from", "soon", "--note", "x"), ("--from soon", "session date")),
        (("--ratio", "2", "--from", "2024-01-04T10:00:00Z", "--note", "x"), ("an instant",)),
        (("--remove", *DECIDED), ("--remove with --ratio",)),
        (("1",), ("without --remove", "--remove 1")),
        (("1", *DECIDED), ("without --remove",)),
    ],
)
def test_invalid_options_are_refused_and_change_nothing(
    ktrdr: Any, store: Path, options: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    """They are bad usage; the error names the option and what is allowed."""
    ktrdr("adjust", "AAPL", *options).is_error(2, *parts)
    assert not (store / "history").exists()


@pytest.mark.parametrize("symbol", ["NONE", "aapl", "../AAPL", ""])
def test_an_unknown_symbol_is_refused(ktrdr: Any, loaded: Path, symbol: str) -> None:
    """It is neither in the universe nor has bars."""
    for options in ((), DECIDED, ("--remove",)):
        ktrdr("adjust", symbol, *options).is_error(2, "not in the universe")
    assert not (loaded / "history").exists()


def test_a_date_without_a_session_is_fine(
    ktrdr: Any, loaded: Path, closes: Callable[..., list[float]]
) -> None:
    """A weekend stands for the session after it."""
    before = closes()
    options = ("--ratio", "2", "--from", "2024-01-07", "--note", "a Sunday")
    assert ktrdr("adjust", "AAPL", *options).code == 0
    assert closes() == [close * 2 for close in before]


def test_a_symbol_that_left_the_universe_can_be_adjusted(
    ktrdr: Any, loaded: Path, closes: Callable[..., list[float]]
) -> None:
    """Its bars are still queried."""
    before = closes()
    (loaded / "universe.yaml").write_text("symbols: {MSFT: {}}\n")
    assert ktrdr("adjust", "AAPL", *DECIDED).code == 0
    assert closes()[0] == before[0] * 100
    assert "AAPL: 1 adjustment" in ktrdr("status").out
    assert ktrdr("adjust", "AAPL", "--remove").code == 0
    assert closes() == before


def test_a_store_of_an_earlier_version_is_upgraded(
    ktrdr: Any, store: Path, closes: Callable[..., list[float]]
) -> None:
    """Listing leaves it as it is; an adjustment makes it one of this version, with a catalog."""
    shutil.rmtree(store)
    unpack(EARLIER, store)
    assert ktrdr("adjust", "AAPL").code == 0
    layout = open_store(store)
    assert store_version(layout) == 1
    assert ktrdr("repair").code == 0
    before = closes("bars_1h")
    assert ktrdr("adjust", "AAPL", "--ratio", "2", "--from", "2049-01-01", "--note", "x").code == 0
    assert store_version(layout) == 2
    assert closes("bars_1h") == [close * 2 for close in before] != []


def test_a_decision_resolves_what_was_reported(ktrdr: Any, loaded: Path) -> None:
    """A change of the unit of prices, or of volumes if only these are multiplied."""
    at = datetime(2024, 1, 4, tzinfo=UTC)
    with closing(Ledger(open_store(loaded).ledger)) as ledger:
        for days, kind in enumerate(DisagreementKind):
            found = Disagreement(at, at, 4, 100.0, kind)
            ledger.disagreements.record("AAPL|1d", found, at + timedelta(days=days))
        every = frozenset(DisagreementKind)

        def left() -> set[DisagreementKind]:
            return {one.kind for one in ledger.disagreements.of("AAPL|1d", every)}

        ktrdr("adjust", "AAPL", *DECIDED)
        assert left() == {DisagreementKind.PRICE, DisagreementKind.VOLUME}
        ktrdr("adjust", "AAPL", "--ratio", "1", "--volume-ratio", "100", *DECIDED[2:])
        assert left() == {DisagreementKind.PRICE}


def test_a_rebasing_that_was_found_cannot_be_removed(ktrdr: Any, loaded: Path) -> None:
    """The error says what replaces the bars that it concerns."""
    ktrdr("adjust", "AAPL", *DECIDED)
    with closing(Ledger(open_store(loaded).ledger)) as ledger:
        history = BarStore(open_store(loaded), ledger).bases.history
        (one,) = history.of("AAPL")
        history.write("AAPL", [replace(one, kind=AdjustmentKind.SPLIT)])
    ktrdr("adjust", "AAPL", "--remove", "1").is_error(2, "none", "--refresh")
