"""Rules for the names, the prose, the folders and the layers of the package."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import ktrdr_pipelines

PACKAGE = Path(ktrdr_pipelines.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGES = [ROOT / "README.md", *sorted((PACKAGE / "docs").rglob("*.md"))]
MOST_ENTRIES = 14
MOST_AT_TOP = 15
"""Entries of the package itself: the layers, and the few modules that all of them use."""
MOST_MODULES = 12

REPLACED = {
    "interval, range": "stretch stretches",
    "bar timestamps": "stamp stamps",
    "bounds": "hull hulls",
    "cover, covered, coverage": "settle settles settled settlement unsettled",
    "empty response, unconfirmed range, timeout": "silence silences silent doubt doubts doubted",
    "sparse session": "suspect suspects suspected",
    "failed attempts": "tries tried vain",
    "series state, series status, series files, gap index": (
        "outlook facts standing standings holding holdings page pages look looks book books"
    ),
    "run context, series run, chunk run, load options": (
        "means desk case cases work manner manners given"
    ),
    "source session, retry policy, requester, pending requests, dispatch, gateway status": (
        "keeper patience asker asking question questions inbox notes"
    ),
    "rate limiter, permit, queue entry, send time, sent request, concurrency": (
        "pacer slot slots place places turn turns hit hits flight"
    ),
    "transport, disconnect reason, no listener": "wire ending nobody",
    "file index, encode, reconcile, check, invalid": (
        "mirror mirrors mirrored packing packed recount examine examined insane"
    ),
    "materialization, metadata": "telling picture",
    "entry point, gaps, selection": "edge edges hole holes choosing",
    "response mutation, injected errors": "bending falsehoods smalltalk retelling",
    "poll": "knock knocks",
    "reason, hint, fix": "came remedy well mend mends mended",
    "unconfirmed": "unproved",
}
"""What to write, and the parts of names that it replaces."""

WORD_FOR = {old: new for new, olds in REPLACED.items() for old in olds.split()}

FOREIGN = frozenset(
    {
        "slots",  # of dataclasses
        "__slots__",
        "pack",  # of struct
        "page_checksum_verification",  # of pyarrow
        "write_page_checksum",
        "data_page_offset",
        "dictionary_page_offset",
        "has_dictionary_page",
        "pad_edge",  # of rich
        "reqHeadTimeStamp",  # of ib_async
        "cancelHeadTimeStamp",
        "free_concurrency_slots_for_run",  # of dagster
        "Page",  # of playwright
        "new_page",
    }
)
"""Names that other projects chose."""

PHRASES = {
    r"nobody|whoever|anybody": "name the actor",
    r"in vain": "failed",
    r"what (was|is) answered": "the response",
    r"stamp axis|axis of stamps": "bar timestamps",
    r"put off|set aside|left alone": "deferred, quarantined, skipped",
    r"proofs? of emptiness|emptiness proof": "confirmed empty",
    r"the (pacer|desk|keeper|inbox|outlook)": "rate limiter, run context, source session, dispatch",
    r"to mend|mended|remedy": "fix, hint",
    r"unproved": "unconfirmed",
}
"""Phrases that no docstring, message or page has, and what to write."""


def parts_of(name: str) -> list[str]:
    """Return the words that a snake_case or CamelCase name is made of, in lower case."""
    return [one.lower() for one in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield every identifier of a module with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def replaced_names(source: str) -> list[str]:
    """Return the identifiers that hold a replaced word, with line and what to write."""
    return [
        f"line {line}: {name} (write: {WORD_FOR[part]})"
        for line, name in names_in(source)
        if name not in FOREIGN and name != "case"  # the statement
        for part in parts_of(name)
        if part in WORD_FOR
    ]


def texts_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield the docstrings, messages and comments of a module with their lines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def paragraphs_of(page: str) -> Iterator[tuple[int, str]]:
    """Yield the paragraphs of a page, less its code, with the lines they begin at."""
    line = 1
    for paragraph in page.split("\n\n"):
        yield line, " ".join(re.sub(r"`[^`]*`", "", paragraph).split())
        line += paragraph.count("\n") + 2


def replaced_phrases(texts: Iterator[tuple[int, str]]) -> list[str]:
    """Return the phrases that are replaced, with line and what to write."""
    return [
        f"line {line}: {found[0]} (write: {word})"
        for line, text in texts
        for phrase, word in PHRASES.items()
        if (found := re.search(rf"\b({phrase})\b", text, re.IGNORECASE))
    ]


def modules_used(source: str) -> dict[str, set[str]]:
    """Return by class of a module the project modules whose names the class uses."""
    tree = ast.parse(source)
    origin = {
        alias.asname or alias.name: str(node.module)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ktrdr_pipelines")
        for alias in node.names
    }
    return {
        one.name: {
            origin[node.id]
            for node in ast.walk(one)
            if isinstance(node, ast.Name) and node.id in origin
        }
        for one in tree.body
        if isinstance(one, ast.ClassDef)
    }


def crowded(package: Path) -> list[str]:
    """Return the folders of a package with more entries than a reader takes in at a glance."""
    folders = [package, *(one for one in package.rglob("*") if one.is_dir())]
    found = []
    for folder in folders:
        entries = [
            one
            for one in folder.iterdir()
            if (one.suffix == ".py" and one.name != "__init__.py")
            or (one.is_dir() and (one / "__init__.py").exists() and one.name != "docs")
        ]
        if len(entries) > (MOST_AT_TOP if folder == PACKAGE else MOST_ENTRIES):
            found.append(f"{folder.name}: {len(entries)} entries")
    return found


TESTS = ROOT / "tests"
OF_THE_WHOLE = frozenset({"benchmarks", "fixtures", "integration", "live", "support"})
"""Folders of tests that belong to no folder of the package."""


def misplaced(tests: Path, package: Path) -> list[str]:
    """Return the test modules that are not named after a module, folder or page that they test.

    ``store/bars/footer.py`` is tested by ``tests/store/bars/test_footer.py``, and by modules whose
    names go on from there (``test_footer_damage.py``).
    """
    found = []
    for path in sorted(tests.rglob("test_*.py")):
        place = path.relative_to(tests)
        if len(place.parts) == 1 or place.parts[0] in OF_THE_WHOLE:
            continue
        folder = package / place.parent
        names = {one.stem for one in folder.glob("*") if one.suffix in {"", ".py", ".md"}}
        tested = place.stem.removeprefix("test_")
        if not any(tested == name or tested.startswith(f"{name}_") for name in names):
            found.append(str(place))
    return found


EDGES = ("cli", "defs", "api")
"""Packages that take what they work with from a workspace."""

ASSEMBLED = frozenset(
    {
        "BarStore",
        "GapIndex",
        "Ledger",
        "LoadManager",
        "RangeDiscovery",
        "SeriesStates",
        "from_settings",
        "memory_of",
        "open_ledger",
        "open_source",
    }
)
"""What only the workspace makes: store, ledger, gap index, load manager, the gateway's settings."""


def assembled(source: str) -> list[str]:
    """Return the calls of a module that make a part of a workspace, with their lines."""
    tree = ast.parse(source)
    imported = {
        alias.asname: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if imported.get(name, name) in ASSEMBLED:
                found.append((node.lineno, imported.get(name, name)))
    return [f"line {line}: {name}" for line, name in sorted(found)]


def test_names_are_made_of_the_words_of_the_glossary() -> None:
    """One word for one thing, so that a reader learns it once."""
    found = {path: replaced_names(path.read_text()) for path in MODULES}
    found |= {path.parent / path.stem: replaced_names(path.stem) for path in MODULES}
    assert {str(path): names for path, names in found.items() if names} == {}


def test_prose_uses_the_words_of_the_glossary() -> None:
    """Docstrings, messages, comments, the README and the docs do, and name the actor."""
    found = {path: replaced_phrases(texts_in(path.read_text())) for path in MODULES}
    found |= {path: replaced_phrases(paragraphs_of(path.read_text())) for path in PAGES}
    assert {str(path): phrases for path, phrases in found.items() if phrases} == {}


def test_folders_show_their_contents_at_a_glance() -> None:
    """No folder of the package has more than fourteen modules and packages."""
    assert crowded(PACKAGE) == []


def test_tests_stand_where_the_package_stands() -> None:
    """Each test module is named after the module that it tests, in the same folder."""
    assert misplaced(TESTS, PACKAGE) == []


def test_a_misplaced_test_is_found(tmp_path: Path) -> None:
    """The check above fails where there is something to find."""
    for name in ["store/test_bars.py", "store/bars/test_footer_damage.py", "store/test_footer.py"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert misplaced(tmp_path, PACKAGE) == ["store/test_footer.py"]


def test_no_class_needs_the_whole_house() -> None:
    """A class uses names of at most twelve modules of the project."""
    found = {
        f"{path.stem}.{name}": len(modules)
        for path in MODULES
        for name, modules in modules_used(path.read_text()).items()
        if len(modules) > MOST_MODULES
    }
    assert found == {}


def test_a_class_that_needs_many_modules_is_found() -> None:
    """The check above fails where there is something to find."""
    lines = [f"from ktrdr_pipelines.m{n} import f{n} as g{n}" for n in range(MOST_MODULES + 1)]
    body = "\n".join(f"        g{n}()" for n in range(MOST_MODULES + 1))
    used = modules_used("\n".join([*lines, "class A:", "    def a(self):", body]))
    assert len(used["A"]) == MOST_MODULES + 1


def makers_of(name: str, sources: dict[str, str]) -> set[str]:
    """Return the modules, of some by name, that call a class."""
    return {
        module
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    }


def test_one_place_turns_verdicts_into_proofs() -> None:
    """A load calls a range empty there alone, by the verdict of ``domain.planning.empty_ranges``.

    The others read, cut and join proofs, or make those of the user.
    """
    sources = {path.stem: path.read_text() for path in MODULES}
    known = {"coverage", "footer", "acknowledgement"}
    assert makers_of("Emptiness", sources) - known == {"open_ranges"}
    assert makers_of("judge", sources) == {"evidence"}


def test_each_file_name_has_one_meaning() -> None:
    """A module is named like another one only where it is the command of that subject."""
    paths: dict[str, list[Path]] = {}
    for path in MODULES:
        if path.name != "__init__.py" and path.parent != PACKAGE / "cli" / "commands":
            paths.setdefault(path.name, []).append(path)
    assert [same for same in paths.values() if len(same) > 1] == []


def test_each_class_name_has_one_meaning() -> None:
    """No two modules define a public class of one name."""
    owners: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(path.stem)
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}


def test_the_edges_take_what_they_work_with_from_a_workspace() -> None:
    """So that a store, its gap index and its loads are put together in one place."""
    folders = [PACKAGE / name for name in EDGES if (PACKAGE / name).is_dir()]
    assert len(folders) >= 2
    modules = [path for folder in folders for path in folder.rglob("*.py")]
    found = {path: assembled(path.read_text()) for path in modules}
    assert {str(path): calls for path, calls in found.items() if calls} == {}


def test_a_store_that_is_put_together_by_hand_is_found() -> None:
    """The check above fails where there is something to find, however it is imported."""
    assert assembled(
        "from ktrdr_pipelines.store.bars.bar_store import BarStore as Bars\n"
        "from ktrdr_pipelines.store.ledger import ledger\n"
        "store = Bars(layout, ledger.open_ledger(layout))\n"
        "config = GatewayConfig.from_settings(settings)\n"
        "store: BarStore = workspace.store\n"
    ) == ["line 3: BarStore", "line 3: open_ledger", "line 4: from_settings"]
    assert assembled((PACKAGE / "app" / "workspace.py").read_text())


def test_a_replaced_word_is_found(tmp_path: Path) -> None:
    """The checks above fail where there is something to find."""
    assert len(replaced_names("class GapBook:\n    def first_stamps(self, hull): ...\n")) == 3
    assert replaced_names("bookings = case_study_of(framework)\n") == [
        f"line 1: case_study_of (write: {WORD_FOR['case']})"
    ]
    found = replaced_phrases(texts_in('"""What\nnobody has."""\nx = f"{1} put off"  # in vain\n'))
    assert len(found) == 3
    for number in range(MOST_ENTRIES + 1):
        (tmp_path / f"m{number}.py").touch()
    assert crowded(tmp_path) == [f"{tmp_path.name}: {MOST_ENTRIES + 1} entries"]
