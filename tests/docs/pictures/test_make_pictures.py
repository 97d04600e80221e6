"""The program that makes the pictures, without a browser."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from ktrdr_pipelines.docs.pictures.make_pictures import (
    BLOCKED,
    LOADS,
    MATERIALIZED,
    UNIVERSE,
    Folder,
    Glyph,
    PicturesError,
    complete_windows,
    find_browser,
    small,
    terminal_html,
    terminal_output,
)
from ktrdr_pipelines.domain.universe.universe import parse_universe


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Return a folder for commands, with settings in the environment that they must not see."""
    monkeypatch.setenv("KTRDR_DATA", "/elsewhere")
    monkeypatch.setenv("IB_PORT", "7496")
    return Folder(tmp_path)


def test_a_missing_browser_is_reported_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it is looked for or given."""
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(PicturesError, match=r"no browser is installed: chromium.*apt install"):
        find_browser(None)
    with pytest.raises(PicturesError, match="no browser is installed: /nonexistent/it"):
        find_browser(Path("/nonexistent/it"))


def test_the_given_browser_is_used_or_the_first_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that packages install it with."""
    for name in ("google-chrome", "chromium-browser", "mine"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_browser(tmp_path / "mine") == tmp_path / "mine"
    assert find_browser(None) == tmp_path / "chromium-browser"


def test_commands_see_no_settings_of_the_user(folder: Folder) -> None:
    """Neither a gateway nor a store; their state lies in the folder too."""
    shown = terminal_output(
        [
            sys.executable,
            "-c",
            "import os; print([n for n in os.environ if n[:3] in {'IB_', 'KTR'}])",
        ],
        folder,
    )
    assert shown.strip() == b"['KTRDR_STATE']"


def test_commands_run_in_a_terminal_and_paths_are_shortened(folder: Folder) -> None:
    """The output is that of a terminal, with paths as in a clone."""
    program = "import os, sys; print(sys.stdout.isatty(), os.getcwd() + '/data/demo')"
    output = terminal_output([sys.executable, "-c", program], folder)
    assert folder.shortened(output).strip() == b"True data/demo"


def test_a_command_that_fails_is_reported(folder: Folder) -> None:
    """With its output, and no picture is made of it."""
    with pytest.raises(PicturesError, match="no such thing"):
        terminal_output([sys.executable, "-c", "import sys; sys.exit('no such thing')"], folder)


def test_rows_of_a_terminal_become_a_page() -> None:
    """Characters with one look are joined, and none is taken for HTML."""
    row = [
        Glyph("<", "green", bold=True),
        Glyph("b", "green", bold=True),
        Glyph("&"),
        Glyph("x", "00d75f"),
    ]
    page = terminal_html([row, [Glyph("z")]])
    assert '<span style="color:#98c379;font-weight:bold">&lt;b</span>' in page
    assert '<span style="color:#d7dae0">&amp;</span>' in page
    assert '<span style="color:#00d75f">x</span>\n' in page
    assert page.endswith(">z</span></pre>")


def test_a_screenshot_becomes_a_small_png_of_the_same_size() -> None:
    """Its colours are few."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save(file, format="PNG")
    with Image.open(io.BytesIO(small(file.getvalue(), 8))) as image:
        assert image.size == (300, 200)
        assert len(image.getcolors()) == 8


def test_the_store_of_the_pictures_has_whole_windows_and_gaps() -> None:
    """Of symbols in the universe, the shown window among them."""
    universe = parse_universe(UNIVERSE, "universe.yaml")
    loaded = {symbol for symbols, _first, _last in LOADS for symbol in symbols}
    known = {series.symbol for series in universe.series()}
    assert loaded < known
    assert {*BLOCKED} < loaded
    assert any(
        MATERIALIZED[0] in symbols and first[:4] <= MATERIALIZED[1] and last is None
        for symbols, first, last in LOADS
    )
    assert complete_windows(2026) == 3 * 8 + 2 * 6 + 2 * 4 + 5 + 3 * 2
