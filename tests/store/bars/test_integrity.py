"""Damage: every changed bit of a bar file is detected, and no damaged file passes as valid."""

import json
import random
import shutil
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Origin, Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import CorruptFileError
from ktrdr_pipelines.store.bars.bar_file import (
    has_true_digest,
    is_as_written,
    read_bars,
    read_file,
    read_footer,
    write_file,
)
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, store_origin
from ktrdr_pipelines.store.ledger.file_index import fingerprint, known_by
from ktrdr_pipelines.store.maintenance.file_checks import (
    ROUND_DAYS,
    check_files,
    damaged_files,
    due_files,
)
from ktrdr_pipelines.store.maintenance.inspection import Checked, check_file
from ktrdr_pipelines.store.maintenance.repair import repair
from tests.support.older_files import make_older, within_data
from tests.support.rewriting import Rewrite, by_arrow, by_duckdb, by_pandas, unchanged

NOW = datetime(2024, 8, 1, 12, tzinfo=UTC)
FIRST, END = date(2024, 6, 3), date(2024, 6, 8)


def saved(store: BarStore, make: Any, timeframe: Timeframe = Timeframe.M1) -> tuple[Series, Path]:
    """Save a week of bars, and return the series and its file."""
    series: Series = make.series(timeframe)
    make.save(store, series, make.bars(series, make.true_ends(series, FIRST, END)))
    [path] = store.layout.bar_files(series.symbol, timeframe)
    return series, path


def checked(store: BarStore, series: Series, path: Path) -> Checked:
    """Check a file as ``verify`` does."""
    known = store.ledger.files.of(f"{series.symbol}|{series.timeframe}")
    return check_file(
        path,
        series.symbol,
        series.timeframe,
        known=known_by(known.get(store.layout.relative(path))),
        calendar=calendar_named(series.instrument.calendar),
        origin=store_origin(store.layout),
    )


def flip(path: Path, content: bytes, position: int) -> None:
    """Change one bit of a file, keeping its times as a failing disk does."""
    data = bytearray(content)
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


def count_undetected(store: BarStore, make: Any, timeframe: Timeframe, flips: int) -> int:
    """Flip one bit after another, and count those that a check does not detect."""
    series, path = saved(store, make, timeframe)
    content, chosen = path.read_bytes(), random.Random(7)
    assert checked(store, series, path).damage == ""
    undetected = 0
    for position in chosen.sample(range(8 * len(content)), flips):
        flip(path, content, position)
        undetected += not checked(store, series, path).damage
    return undetected


@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.D1, Timeframe.W1])
def test_every_changed_bit_is_detected(store: BarStore, make: Any, timeframe: Timeframe) -> None:
    """Wherever it lies: bars, pages, statistics, names, footer, digests, magic bytes."""
    assert count_undetected(store, make, timeframe, 60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("timeframe", [Timeframe.M1, Timeframe.M5, Timeframe.H1, Timeframe.D1])
def test_every_changed_bit_of_4000_is_detected(
    store: BarStore, make: Any, timeframe: Timeframe
) -> None:
    """1,000 of each of four timeframes."""
    assert count_undetected(store, make, timeframe, 1000) == 0


@pytest.mark.parametrize("step", [97, pytest.param(5, marks=pytest.mark.slow)])
def test_any_bit_of_a_footer_may_be_wrong(store: BarStore, make: Any, step: int) -> None:
    """Reading returns bars or an error that names the file, and never another error."""
    series, path = saved(store, make, Timeframe.D1)
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    first = 8 * (len(content) - footer)
    for position in range(first, 8 * len(content), step):
        flip(path, content, position)
        assert checked(store, series, path).damage
        for use in (read_bars, read_footer, is_as_written):
            try:
                use(path)
            except CorruptFileError as error:
                assert path.name in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    "junk",
    [b"", b"PAR1", b"PAR1PAR1", b"\x00" * 4096, b"PAR1" + b"\xff" * 64 + b"PAR1", b"{}" * 999],
)
def test_a_file_that_is_no_parquet_is_named(store: BarStore, make: Any, junk: bytes) -> None:
    """Empty files and truncated magic bytes included."""
    series, path = saved(store, make)
    path.write_bytes(junk)
    assert checked(store, series, path).wrong
    with pytest.raises(CorruptFileError, match=r"2024\.parquet"):
        store.coverage(series)


rewriting = pytest.mark.parametrize("rewrite", [by_arrow, by_pandas, by_duckdb])


def with_a_price_changed(bars: pa.Table) -> pa.Table:
    """Raise one close by a hundredth, so that every bar stays plausible."""
    closes = bars["close"].to_pylist()
    closes[100] += 0.01
    position = bars.schema.get_field_index("close")
    highs = pc.add(bars["high"], 1.0)
    bars = bars.set_column(bars.schema.get_field_index("high"), bars.schema.field("high"), highs)
    return bars.set_column(position, bars.schema.field("close"), pa.array(closes))


@rewriting
def test_a_price_that_another_program_wrote_is_refused(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """With the footer kept or lost; no save copies it into a valid file either."""
    series, path = saved(store, make)
    rewrite(path, with_a_price_changed)
    assert "other values than were written" in checked(store, series, path).wrong
    left = path.read_bytes()
    with pytest.raises(CorruptFileError, match="other values"):
        store.coverage(series)
    with pytest.raises(CorruptFileError, match="other values"):
        make.save(store, series, make.run(series, datetime(2024, 6, 10, 13, 30, tzinfo=UTC), 5))
    assert path.read_bytes() == left
    assert "other values" in repair(store.layout, [series.instrument], NOW).quarantined[0].why


@rewriting
def test_a_rewritten_file_with_the_same_bars_is_written_anew(
    store: BarStore, make: Any, rewrite: Rewrite
) -> None:
    """Nothing is lost, but the bytes differ: a check reports that, and a repair fixes it."""
    series, path = saved(store, make)
    bars = read_bars(path)
    rewrite(path, unchanged)
    found = checked(store, series, path)
    assert (found.wrong, bool(found.altered)) == ("", True)
    assert store.coverage(series).bars == make.covering(series, bars).bars
    report = repair(store.layout, [series.instrument], NOW)
    assert (report.quarantined, report.fixed) == ((), (path,))
    assert is_as_written(path)
    assert read_bars(path).equals(bars)
    assert checked(store, series, path).damage == ""


@rewriting
def test_a_removed_day_hides_no_changed_price(store: BarStore, make: Any, rewrite: Rewrite) -> None:
    """The remaining sessions are checked one by one."""
    series, path = saved(store, make)

    def change(bars: pa.Table) -> pa.Table:
        kept = with_a_price_changed(bars)
        return kept.filter(pc.not_equal(kept["session_date"], pa.scalar(date(2024, 6, 5))))

    rewrite(path, change)
    with pytest.raises(CorruptFileError, match="of 2024-06-03 and 3 other session dates"):
        store.coverage(series)


def footer_of(path: Path) -> dict[str, Any]:
    """Return the footer of a file as JSON."""
    found: dict[str, Any] = json.loads(pq.read_metadata(path).metadata[b"ktrdr"])
    return found


def with_footer(path: Path, footer: dict[str, Any]) -> None:
    """Write the same bars with another footer."""
    bars = pq.read_table(path, partitioning=None).replace_schema_metadata(None)
    with pq.ParquetWriter(path, bars.schema, store_schema=False) as writer:
        writer.write_table(bars)
        writer.add_key_value_metadata({"ktrdr": json.dumps(footer)})


@pytest.mark.parametrize("is_older", [False, True])
@pytest.mark.parametrize("keeps_digests", [False, True])
def test_a_footer_rewritten_to_another_origin_is_refused(
    store: BarStore, make: Any, *, is_older: bool, keeps_digests: bool
) -> None:
    """With digests or without: the store has one origin."""
    series, path = saved(store, make)
    if is_older:
        make_older(store.layout, path)
    footer = footer_of(path)
    held = footer["identity"]["origin"]
    other = next(one for one in Origin if one != held)
    footer["identity"]["origin"] = other
    if not keeps_digests:
        footer.pop("seal", None)
        footer.pop("digests", None)
    with_footer(path, footer)
    found = checked(store, series, path)
    if is_older or keeps_digests:
        assert found.wrong
        with pytest.raises(CorruptFileError):
            store.coverage(series)
    else:  # the ledger has its digests and its identity
        assert found.footer is not None
        assert found.footer.identity.origin == held
    store.ledger.files.remove([store.layout.relative(path)])
    with pytest.raises(CorruptFileError):
        store.coverage(series)


@pytest.mark.parametrize("field", ["coverage", "rows", "sessions", "identity"])
def test_a_footer_that_was_changed_is_refused(store: BarStore, make: Any, field: str) -> None:
    """Its digest covers every field."""
    series, path = saved(store, make)
    footer = footer_of(path)
    changed = {
        "coverage": {"bars": [], "empty": []},
        "rows": footer["rows"] + 1,
        "sessions": {**footer["sessions"], "2024-06-10": 1},
        "identity": {**footer["identity"], "contract_id": 1},
    }
    with_footer(path, {**footer, field: changed[field]})
    with pytest.raises(CorruptFileError, match="changed since it was written"):
        read_file(path)
    assert "changed since it was written" in checked(store, series, path).wrong


def test_files_of_earlier_versions_are_read_as_they_are(store: BarStore, make: Any) -> None:
    """They get digests when they are next written, or by a repair with ``seal``."""
    series, path = saved(store, make)
    make_older(store.layout, path)
    bars = read_bars(path)
    assert has_true_digest(path) is None
    assert checked(store, series, path).damage == ""
    assert store.read_raw(series).equals(bars)
    left = path.read_bytes()
    assert repair(store.layout, [series.instrument], NOW).sealed == ()
    assert path.read_bytes() == left
    report = repair(store.layout, [series.instrument], NOW, seal=True)
    assert (report.sealed, report.fixed, report.quarantined) == ((path,), (), ())
    assert has_true_digest(path)
    assert read_bars(path).equals(bars)
    assert repair(store.layout, [series.instrument], NOW, seal=True).sealed == ()
    make_older(store.layout, path)
    make.save(store, series, make.run(series, datetime(2024, 6, 10, 13, 30, tzinfo=UTC), 5))
    assert has_true_digest(path)


def test_statistics_of_earlier_versions_are_compared(store: BarStore, make: Any) -> None:
    """Queries leave out row groups by them."""
    series, path = saved(store, make, Timeframe.D1)
    make_older(store.layout, path)
    content = path.read_bytes()
    greatest = pq.read_metadata(path).row_group(0).column(3).statistics.max_raw
    raw = pa.array([greatest]).buffers()[1].to_pybytes()
    position = content.rfind(raw)
    path.write_bytes(
        content[:position] + pa.array([1.5]).buffers()[1].to_pybytes() + content[position + 8 :]
    )
    assert "statistics" in checked(store, series, path).wrong


def test_a_file_that_was_copied_is_not_read_again(
    store: BarStore, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest shows that it is unchanged, whatever its times are."""
    series, path = saved(store, make)
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    copy.replace(path)
    monkeypatch.setattr("ktrdr_pipelines.store.bars.integrity.read_file", pytest.fail)
    assert store.coverage(series).bars


# --- recorded checks ---------------------------------------------------------------------------


def check_all(store: BarStore, series: Series, paths: list[Path], at: datetime = NOW) -> list[str]:
    """Check files of a series, and return the damage of each."""
    calendar = calendar_named(series.instrument.calendar)
    found = check_files(store, series.symbol, series.timeframe, paths, calendar=calendar, at=at)
    return [one.damage for _, one in found]


def test_damage_is_recorded_until_the_file_changes(store: BarStore, make: Any) -> None:
    """By name and fingerprint; a repair removes the record with the file."""
    series, path = saved(store, make)
    content = path.read_bytes()
    flip(path, content, 8 * within_data(path))
    assert check_all(store, series, [path]) != [""]
    name = store.layout.relative(path)
    assert list(damaged_files(store)) == [name]
    path.write_bytes(content)
    assert damaged_files(store) == {}
    flip(path, content, 8 * within_data(path))
    check_all(store, series, [path])
    [moved] = repair(store.layout, [series.instrument], NOW).quarantined
    assert moved.was == path
    assert damaged_files(store) == {}
    assert store.ledger.checks.all() == {}


def test_damage_found_by_a_save_or_a_read_is_recorded(store: BarStore, make: Any) -> None:
    """The file is not rewritten."""
    series, path = saved(store, make)
    content, name = path.read_bytes(), store.layout.relative(path)
    flip(path, content, 8 * within_data(path))
    left = path.read_bytes()
    store.ledger.files.record(  # bits change without a trace in size or time
        "AAPL|1m",
        {name: replace(store.ledger.files.of("AAPL|1m")[name], fingerprint=fingerprint(path))},
    )
    assert damaged_files(store) == {}
    with pytest.raises(CorruptFileError):
        make.save(store, series, make.run(series, datetime(2024, 6, 10, 13, 30, tzinfo=UTC), 5))
    assert list(damaged_files(store)) == [name]
    assert path.read_bytes() == left
    store.ledger.checks.remove([name])
    with pytest.raises(CorruptFileError):
        store.read(series)
    assert list(damaged_files(store)) == [name]


def test_a_month_of_daily_checks_reads_every_file(store: BarStore, make: Any) -> None:
    """A thirtieth a day, rounded up, the oldest check first."""
    series = make.series()
    for year in range(1980, 2025):
        make.save(store, series, make.run(series, datetime(year, 6, 5, 14, 30, tzinfo=UTC), 3))
    files = set(store.layout.bar_files("AAPL", Timeframe.M1))
    assert len(files) == 45
    read: list[Path] = []
    for day in range(ROUND_DAYS):
        due = due_files(store, Timeframe.M1)
        assert [len(paths) for paths in due.values()] == [2]
        for paths in due.values():
            assert check_all(store, series, paths, NOW + timedelta(days=day)) == ["", ""]
            read += paths
    assert set(read) == files
    assert set(read[:45]) == files
    assert due_files(store, Timeframe.H1) == {}


def test_digests_are_those_of_the_written_bars(
    layout: StoreLayout, store: BarStore, make: Any
) -> None:
    """Whatever digests the given footer has."""
    _, path = saved(store, make)
    footer, bars = read_file(path)
    written = write_file(path, bars.slice(0, 10), footer)
    assert written.seal is not None
    assert footer.seal is not None
    assert written.seal.bars != footer.seal.bars
    assert is_as_written(path)
