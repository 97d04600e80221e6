"""The README and the pages describe what exists: links, settings, commands, reasons, documents."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer

import ktrdr_pipelines
from ktrdr_pipelines.app.views.documents import ResultDocument
from ktrdr_pipelines.cli.main import app
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.domain.coverage import ProofKind
from ktrdr_pipelines.domain.planning.empty_ranges import StatementKind
from ktrdr_pipelines.domain.planning.gaps import GapReason
from ktrdr_pipelines.domain.plausibility import FindingKind
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import READERS
from ktrdr_pipelines.errors import ExitCode
from ktrdr_pipelines.gaps.windows import WindowState
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.simulator.market.listings import listings
from ktrdr_pipelines.simulator.market.simulated_instruments import SecurityType
from ktrdr_pipelines.store.catalog.sql import TABLES
from ktrdr_pipelines.store.ledger.schema import LEDGER_VERSION
from tests.support.archives import unpack
from tests.support.command_line import ktrdr_in_process

ROOT = Path(ktrdr_pipelines.__file__).parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "ktrdr_pipelines" / "docs"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
STORE = ROOT / "tests" / "fixtures" / "store_v9.tar.gz"

MOST_LINES = 150
"""Lines of the README up to the section for developers."""

MOST_BYTES = 200 * 1024
"""Size of a picture."""

NO_SETTINGS = {"IB_READONLY", "IB_CLIENT_ID", "LIVE_REPORT"}
"""Variables that pages name and that are no settings: older ones, and one of the live tests."""

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_VARIABLE = re.compile(r"\b(?:IB|KTRDR)_[A-Z_]+[A-Z]\b")

COMMANDS: dict[str, Any] = {
    name: command
    for group, one in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for name, command in [
        (group, one),
        *((f"{group} {sub}", below) for sub, below in getattr(one, "commands", {}).items()),
    ]
}
"""The commands by their names, those of a group included."""


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", text)


def blocks(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a page in a language."""
    return [code for kind, code in _FENCE.findall(page.read_text("utf-8")) if kind == language]


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {one.replace(" ", "-") for one in kept}


def broken_links(page: Path, *, pictures: bool) -> list[str]:
    """Return the relative links of a page, or its pictures, that lead nowhere."""
    broken = []
    for match in _LINK.finditer(prose(page.read_text("utf-8"))):
        target, _, anchor = match[1].partition("#")
        if match[0].startswith("!") != pictures or re.match(r"[a-z]+:", match[1]):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(match[1])
    return broken


def options(command: Any) -> set[str]:
    """Return the options of a command that its help shows."""
    return {
        name
        for one in command.params
        for name in one.opts
        if name.startswith("--") and not getattr(one, "hidden", False)
    }


def section(page: Path, heading: str) -> str:
    """Return the text under a heading, up to the next one of the same or a higher level."""
    text = page.read_text("utf-8")
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start is not None, heading
    end = re.search(rf"^#{{1,{len(start[1])}}} ", text[start.end() :], re.MULTILINE)
    return text[start.end() :][: end.start() if end else None]


def ticked(text: str) -> set[str]:
    """Return what stands in backticks, and the words of it."""
    whole = re.findall(r"`([^`\n]+)`", prose(text))
    return {*whole, *(word for one in whole for word in re.findall(r"[\w-]+", one))}


def unknown_in(line: str) -> list[str]:
    """Return what a command line of a page names that does not exist."""
    words = re.findall(r"\bktrdr ([a-z][a-z-]*(?: [a-z]+)?)([^;|&#`]*)", line)
    unknown = []
    for named, rest in words:
        first = named.split()[0]
        name = named if named in COMMANDS else first
        if name not in COMMANDS:
            unknown.append(f"ktrdr {first}")
            continue
        known = options(COMMANDS[name]) | {"--help", "--version"}
        if name == "universe add":
            known |= {f"--{field.replace('_', '-')}" for field in (*READERS, "FIELD")}
        unknown += [one for one in re.findall(r"(?<!\S)\[?(--[\w-]+)", rest) if one not in known]
    return unknown


def command_lines(page: Path) -> Iterator[str]:
    """Yield the commands that a page names in backticks or in blocks of shell commands."""
    text = page.read_text("utf-8")
    spans = re.findall(r"`([^`]+)`", prose(text))
    lines = [line for code in blocks(page, "sh") for line in code.splitlines()]
    for one in (*spans, *lines):
        if "ktrdr " in one:
            yield " ".join(one.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file of the project and, where it names one, to a heading in it."""
    assert broken_links(page, pictures=False) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_picture_is_there(page: Path) -> None:
    """The files lie where the pages look for them."""
    assert broken_links(page, pictures=True) == []


def test_every_picture_is_shown_and_small() -> None:
    """No picture is committed that no page shows, and a reader loads each quickly."""
    shown = {
        (page.parent / match[1]).resolve()
        for page in PAGES
        for match in _LINK.finditer(prose(page.read_text("utf-8")))
        if match[0].startswith("!")
    }
    pictures = {*(DOCS / "pictures").glob("*.png")}
    assert pictures == shown
    assert {path.name for path in pictures if path.stat().st_size > MOST_BYTES} == set()


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """The checks above fail where there is something to find."""
    page = tmp_path / "page.md"
    page.write_text("# One two\n[a](#one-two) [b](#two) [c](other.md) ![d](d.png) [e](https://e)\n")
    assert broken_links(page, pictures=False) == ["#two", "other.md"]
    assert broken_links(page, pictures=True) == ["d.png"]


def test_every_page_is_linked() -> None:
    """A reader finds each page from the README, directly or by one more link."""
    linked = {
        (page.parent / match.partition("#")[0]).resolve()
        for page in PAGES
        for match in _LINK.findall(prose(page.read_text("utf-8")))
    }
    assert {page.name for page in PAGES if page != README and page not in linked} == set()


def test_the_readme_is_short_for_users() -> None:
    """It has at most 150 lines up to the section for developers."""
    lines = README.read_text("utf-8").splitlines()
    assert lines.index("## Development") <= MOST_LINES


def test_the_readme_has_the_commands_of_a_newcomer() -> None:
    """They are those that ``.ci/run`` runs."""
    wanted = (
        "python -m pip install -e . && ktrdr demo",
        "python -m pip install -e '.[dev]' && python -m pytest",
    )
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    for line in wanted:
        assert f"{line}\n" in README.read_text("utf-8")
        assert line in script


def test_every_setting_is_documented_with_its_default() -> None:
    """In the table of the page on settings, and no other."""
    text = (DOCS / "settings.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", text, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, tuple):
            default = f"{default[0]}-{default[1]}"
        if isinstance(default, str | int | float) and default != "":
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert rows[name.upper()] == f"`{shown}`"


def test_pages_name_only_settings_that_exist() -> None:
    """A variable in any page is a setting, or one that the pages say is none."""
    known = {name.upper() for name in Settings.model_fields} | NO_SETTINGS
    named = {name for page in PAGES for name in _VARIABLE.findall(page.read_text("utf-8"))}
    assert named - known == set()


def test_every_command_and_option_is_documented() -> None:
    """Each command has a section of its own, which names its options."""
    page = DOCS / "commands.md"
    for name, command in COMMANDS.items():
        group = name.split()[0]
        text = section(page, f"ktrdr {group}")
        assert f"ktrdr {name}" in text or name == "universe"
        named = set(re.findall(r"(?<![\w-])--[\w-]+", text))
        wanted = options(command) - {"--json", "--data"}  # common to all, under Commands
        if name == "update":
            assert "of `load`" in text
        assert wanted - named == set(), name
    assert "`--data DIR`" in section(page, "Commands")


def test_the_readme_names_every_command() -> None:
    """In its table, and no other."""
    rows = re.findall(r"^\| (`.+?) \|", section(README, "Commands"), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)}
    assert listed == {name for name in COMMANDS if " " not in name}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_commands_and_options_that_exist(page: Path) -> None:
    """In sentences and in blocks of shell commands."""
    found = {line: unknown_in(line) for line in command_lines(page)}
    assert {line: unknown for line, unknown in found.items() if unknown} == {}


def test_an_unknown_command_or_option_is_found() -> None:
    """The check above fails where there is something to find."""
    assert unknown_in("ktrdr lod AAPL") == ["ktrdr lod"]
    assert unknown_in("ktrdr load AAPL 1h --sart 2024-01-01") == ["--sart"]
    assert unknown_in("ktrdr universe add X --sec-typ CASH") == ["--sec-typ"]
    assert unknown_in("ktrdr universe add X --sec-type CASH && ktrdr gaps --all") == []


@pytest.mark.parametrize(
    ("page", "heading", "values"),
    [
        (README, "Why is a bar missing?", list(GapReason)),
        (DOCS / "gaps.md", "Reasons", [*GapReason, *ProofKind]),
        (DOCS / "gaps.md", "Statements", list(StatementKind)),
        (DOCS / "dagster.md", "Assets and windows", list(WindowState)),
        (DOCS / "disk-format.md", "Implausible values", list(FindingKind)),
        (DOCS / "universe.md", "Fields", list(READERS)),
        (DOCS / "commands.md", "Commands", list(Timeframe)),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_every_value_that_a_user_meets_is_explained(
    page: Path, heading: str, values: list[str]
) -> None:
    """Reasons, kinds, states and fields, in the section that is about them."""
    named = ticked(section(page, heading))
    assert {str(value) for value in values} - named == set()


def test_each_reason_is_a_row_of_its_table() -> None:
    """The tables of reasons have no other rows."""
    reasons = {str(one) for one in GapReason}
    for page, heading in ((README, "Why is a bar missing?"), (DOCS / "gaps.md", "Reasons")):
        table = section(page, heading).split("| reason |", 1)[1].split("\n\n", 1)[0]
        assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == reasons


def test_every_exit_code_is_documented() -> None:
    """In the page on commands."""
    codes = re.findall(r"^\| (\d) \|", section(DOCS / "commands.md", "Exit codes"), re.MULTILINE)
    assert {int(code) for code in codes} == {int(code) for code in ExitCode}


def test_what_dagster_shows_is_documented(tmp_path: Path) -> None:
    """Assets, sensors, schedules and checks, by the names that the UI has."""
    settings = Settings(ktrdr_data=tmp_path / "data", ktrdr_state=tmp_path / "state")
    repository = build_defs(settings).get_repository_def()
    checks = {key.name for key in repository.asset_graph.asset_check_keys}
    names = {
        *(key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()),
        *(one.name for one in repository.sensor_defs),
        *(one.name for one in repository.schedule_defs),
        *checks,
    }
    assert names - ticked((DOCS / "dagster.md").read_text("utf-8")) == set()


def test_every_symbol_of_the_simulated_gateway_is_documented() -> None:
    """So that a newcomer's own universe has no symbol that it refuses."""
    named = ticked(section(DOCS / "commands.md", "ktrdr simulate"))
    keys = {one.key for one in listings() if one.sec_type is SecurityType.FX}
    keys |= {one.symbol for one in listings() if one.sec_type is not SecurityType.FX}
    assert keys - named == set()


def test_every_table_and_column_of_the_catalog_is_documented() -> None:
    """In the page on queries."""
    with duckdb.connect() as connection:
        connection.execute(TABLES)
        rows = connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal"
        ).fetchall()
    text = section(DOCS / "querying.md", "Tables")
    for table, column in rows:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{table}` |"))
        assert f"`{column}`" in line, table


def test_the_page_on_upgrading_knows_this_version() -> None:
    """A new version of the ledger has its row."""
    rows = re.findall(
        r"^\| (\d+) \|", section(DOCS / "upgrading.md", "Which stores open"), re.MULTILINE
    )
    assert max(map(int, rows)) == LEDGER_VERSION


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpack a small store where the README expects that of the demo."""
    root = tmp_path / "data" / "demo"
    unpack(STORE, root)
    monkeypatch.setenv("KTRDR_DATA", str(root))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return root


@pytest.fixture
def document(store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Return a function that runs a command over the store and returns its JSON document."""
    assert store.is_dir()
    ktrdr = ktrdr_in_process(capsys)
    return lambda *arguments: ktrdr(*arguments, "--json").document


def test_the_recipes_of_the_readme_run(document: Callable[..., Any]) -> None:
    """As pasted, and each returns bars of what it is about."""
    document("repair")
    by_sql, by_path = blocks(README, "python")
    names: dict[str, Any] = {}
    exec(compile(by_sql, "README.md", "exec"), names)  # noqa: S102  (the recipes, as users run them)
    names["db"].close()
    bars, closes = names["bars"], names["closes"]
    assert bars["ts"].is_monotonic_increasing
    assert "AAPL" in closes.columns
    assert closes["session_date"].is_unique
    exec(compile(by_path, "README.md", "exec"), names)  # noqa: S102  (as above)
    assert "AAPL" in set(names["closes"]["symbol"])
    hours = names["hours"].dropna(subset=["closes_at_1d"])
    assert (hours["closes_at_1d"] <= hours["closes_at"]).all()
    assert len(hours) > 0
    assert len(names["joined"]) > 0
    joined = names["joined"]
    assert (joined["session_date"].dt.date < joined["at"].dt.date).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("gaps",),
        ("plan",),
        ("verify",),
        ("repair",),
        ("init",),
        ("universe", "check"),
        ("universe", "add", "TSLA"),
    ],
    ids=" ".join,
)
def test_the_keys_of_documents_are_documented(
    document: Callable[..., Any], arguments: tuple[str, ...]
) -> None:
    """Those of the document, and those of its series, certificates and gaps."""
    found = document(*arguments)
    common = set(ResultDocument.model_fields)
    assert common <= {*found}
    assert common <= ticked(section(DOCS / "commands.md", "JSON"))
    keys = {*found} - common
    for name in ("series", "certificates", "gaps"):
        if isinstance(found.get(name), list):
            keys |= {key for one in found[name] for key in one}
    named = ticked(section(DOCS / "commands.md", f"ktrdr {arguments[0]}"))
    assert keys - named == set()
