"""Benchmarks as values: what is measured, what it should reach, and its reference; the table.

Other processes disturb a measurement in one direction only, so of several rounds the best counts;
of what is required, the worst.
What is compared with a reference is a ratio of two figures of one run, which hardly depends on the
machine.
"""

import compileall
import json
import os
import platform
import resource
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import ktrdr_pipelines
from tests.support.time_limits import killed_after

FALLEN = 0.5
"""The share of its reference at which a ratio has fallen too far."""


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table: a figure, what it should reach, and in which direction it is better.

    ``reach`` is None where a figure only informs.

    ``is_compared``: with its reference, as a ratio of two figures of one run that hardly depends on
    what else the machine does. ``is_required``: to miss it is a fault, not only slow.
    """

    key: str
    what: str
    reach: float | None
    more_is_better: bool = True
    unit: str = ""
    is_compared: bool = True
    is_required: bool = False

    def of_rounds(self, one: float, other: float) -> float:
        """Return the figure that counts of two rounds: the better, of the less disturbed round.

        Of what is required the worse counts: no disturbance excuses a fault.
        """
        return max(one, other) if self.more_is_better != self.is_required else min(one, other)

    def is_met(self, now: float) -> bool:
        """Return whether a figure reaches the target."""
        if self.reach is None:
            return True
        return now >= self.reach if self.more_is_better else now <= self.reach

    def share_of(self, reference: float, now: float) -> float:
        """Return how much is left of a reference: below 1 the figure is worse."""
        return now / reference if self.more_is_better else reference / max(now, 1e-9)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A measurement that yields the figures of some targets, by their keys."""

    targets: Sequence[Target]
    measure: Callable[[], Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Result:
    """The figure of a target that counts of all rounds; ``reference`` is None without one."""

    target: Target
    now: float
    reference: float | None = None

    @property
    def has_failed(self) -> bool:
        """Return whether it has fallen to half of its reference, or misses what is required."""
        if self.reference is not None and self.target.share_of(self.reference, self.now) <= FALLEN:
            return True
        return self.target.is_required and not self.target.is_met(self.now)

    def document(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        target = self.target
        return {
            "key": target.key,
            "what": target.what,
            "now": round(self.now, 4),
            "unit": target.unit,
            "reach": target.reach,
            "more_is_better": target.more_is_better,
            "met": target.is_met(self.now),
            "reference": self.reference,
        }


@dataclass(frozen=True, slots=True)
class References:
    """The ratios that earlier code reached, in a file with those of other groups.

    The file has for each group how its ratios were ``made``, and the ``ratios`` by key.
    """

    path: Path
    group: str

    def ratios(self) -> Mapping[str, float]:
        """Return the ratios of the group by key, none before the first were written."""
        ratios: dict[str, float] = self._groups().get(self.group, {"ratios": {}})["ratios"]
        return ratios

    def write(self, results: Sequence[Result], made: Mapping[str, str]) -> None:
        """Replace the references of the keys that were measured, and keep the others."""
        measured = {one.target.key: round(one.now, 3) for one in results if one.target.is_compared}
        written = {"made": dict(made), "ratios": {**self.ratios(), **measured}}
        groups = {**self._groups(), self.group: written}
        self.path.write_text(json.dumps(groups, indent=2) + "\n", "utf-8")

    def _groups(self) -> dict[str, Any]:
        groups: dict[str, Any] = json.loads(self.path.read_text("utf-8"))
        return groups


def results_of(
    benchmark: Benchmark, *, rounds: int, references: Mapping[str, float]
) -> list[Result]:
    """Measure a benchmark, and again while a figure has failed and rounds are left.

    Without references all rounds are measured.
    """
    best: dict[str, float] = {}
    results: list[Result] = []
    for _ in range(rounds):
        found = benchmark.measure()
        best = {
            target.key: target.of_rounds(best.get(target.key, found[target.key]), found[target.key])
            for target in benchmark.targets
        }
        results = [
            Result(target, best[target.key], references.get(target.key))
            for target in benchmark.targets
        ]
        if references and not any(one.has_failed for one in results):
            break
    return results


def rows_of(results: Sequence[Result]) -> list[list[str]]:
    """Return the table of results as texts, its heading first; references where there are any."""
    has_references = any(one.reference is not None for one in results)
    rows = [["what", "now", "reach", *(["reference"] if has_references else []), ""]]
    for one in results:
        target = one.target
        unit = f" {target.unit}" if target.unit else ""
        sign = ">=" if target.more_is_better else "<="
        reach = "" if target.reach is None else f"{sign} {_number(target.reach)}{unit}"
        outcome = "failed" if one.has_failed else "met" if target.is_met(one.now) else "missed"
        now = _number(one.now)
        if outcome == "missed" and now == _number(target.reach):  # two digits would look met
            now = f"{one.now:.4f}"
        rows.append(
            [
                *(target.what, f"{now}{unit}", reach),
                *([_number(one.reference)] if has_references else []),
                outcome if reach or one.has_failed else "",
            ]
        )
    return rows


def markdown_of(results: Sequence[Result]) -> str:
    """Return the table as the README has it."""
    heading, *rows = rows_of(results)
    rule = ["---", *("--:" for _ in heading[1:-1]), "---"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, rule, *rows))


def write_table(path: Path, group: str, text: str) -> None:
    """Replace what a page has between the marks of a group's table.

    Raises:
        ValueError: the page lacks the marks.
    """
    begin, end = f"<!-- benchmarks of {group} -->", f"<!-- end of {group} -->"
    before, begun, rest = path.read_text("utf-8").partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"{path} has no marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def show(title: str, results: Sequence[Result]) -> None:
    """Print the table to the terminal."""
    heading, *rows = rows_of(results)
    table = Table(title=title, title_justify="left")
    for position, name in enumerate(heading):
        table.add_column(name, justify="right" if 0 < position < len(heading) - 1 else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def machine() -> str:
    """Return the processors, the system and the Python of this machine."""
    model = platform.processor() or platform.machine()
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return (
        f"{os.cpu_count()} cores of {model}, {platform.system()}, "
        f"Python {platform.python_version()}"
    )


@dataclass(frozen=True, slots=True)
class CommandCost:
    """What a command printed, and the seconds that it and its children took, of all processors."""

    output: str
    cpu_s: float


def as_installed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a command that runs compiled, as installers leave it.

    Where Python may not write bytecode, each start would compile all modules again.
    """
    _compile_package()
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, **environment}


@cache
def _compile_package() -> None:
    compileall.compile_dir(Path(ktrdr_pipelines.__file__).parent, quiet=2)


def cost_of_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    longest_s: float = 600.0,
    accepted: Sequence[int] = (0,),
) -> CommandCost:
    """Run a command with more environment variables, and return its cost.

    Raises:
        RuntimeError: it ended with none of the accepted exit codes; the text ends with its output.
        TimeoutError: it did not end in time.
    """
    with tempfile.TemporaryFile("w+") as output:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            command,
            env=as_installed(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        with killed_after(longest_s, [process], " ".join(command)):
            process.wait()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        text = output.read()
    if process.returncode not in accepted:
        end = text[-2000:]
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}\n{end}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return CommandCost(text, cpu_s)


def _number(number: float | None) -> str:
    if number is None:
        return ""
    return f"{number:.3g}" if abs(number) < 0.1 and number else f"{number:.2f}"


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines() if path.exists() else []
