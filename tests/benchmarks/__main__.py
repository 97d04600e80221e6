"""Print the table of a group of benchmarks, gateway or store: ``python -m tests.benchmarks store``.

The small form takes a minute or two, compares every ratio with the reference beside this file, and
fails when one has fallen to half of it.
"""

# ruff: noqa: T201  (it prints)

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from tests.benchmarks import gateway, store
from tests.benchmarks.measuring import (
    Benchmark,
    References,
    Result,
    machine,
    markdown_of,
    results_of,
    show,
    write_table,
)

REFERENCE = Path(__file__).with_name("reference.json")
README = Path(__file__).parents[2] / "README.md"
_ROUNDS_OF_SMALL = 3


class Group(Protocol):
    """A group of benchmarks, in its full or its small form."""

    def __call__(self, *, small: bool) -> Sequence[Benchmark]:
        """Return the benchmarks."""
        ...


GROUPS: Mapping[str, Group] = {"gateway": gateway.benchmarks, "store": store.benchmarks}


def main() -> int:
    """Run a group, and return 1 if a figure has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("group", choices=sorted(GROUPS))
    parser.add_argument("--small", action="store_true", help="compare ratios with the reference")
    parser.add_argument("--only", default="", help="measure keys that contain this text only")
    parser.add_argument("--rounds", type=int, help="rounds of which the best counts [default: 1]")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--markdown", action="store_true", help="print the table of the README")
    parser.add_argument(
        "--record",
        action="store_true",
        help="write what the small form measures as the reference; without --small, after the rest",
    )
    parser.add_argument(
        "--readme", action="store_true", help="write the table and the machine into the README"
    )
    given = parser.parse_args()
    if given.readme and given.only:
        parser.error("--readme takes the table of all figures, without --only")
    results = _measure(parser, given, small=given.small)
    command = f"python -m tests.benchmarks {given.group}{' --small' if given.small else ''}"
    if given.json:
        documents = [one.document() for one in results]
        print(json.dumps({"machine": machine(), "results": documents}, indent=2))
    elif given.markdown:
        print(markdown_of(results))
    else:
        show(f"{given.group}, {machine()}", results)
    on = f"{datetime.now(tz=UTC):%Y-%m-%d}"
    if given.readme:
        text = f"`{command}` on {machine()}, {on}:\n\n{markdown_of(results)}"
        write_table(README, given.group, text)
    if given.record:
        small = results if given.small else _measure(parser, given, small=True)
        made = {
            "command": f"python -m tests.benchmarks {given.group} --small --record",
            "machine": machine(),
            "on": on,
        }
        References(REFERENCE, given.group).write(small, made)
    return int(any(one.has_failed for one in results))


def _measure(
    parser: argparse.ArgumentParser, given: argparse.Namespace, *, small: bool
) -> list[Result]:
    """Measure the chosen figures of a form."""
    references = References(REFERENCE, given.group)
    is_compared = small and not given.record
    chosen = [
        one
        for one in GROUPS[given.group](small=small)
        if any(given.only in target.key for target in one.targets)
    ]
    if not chosen:
        parser.error(f"no key of {given.group} contains {given.only!r}")
    results: list[Result] = []
    for one in chosen:
        print(f"measuring {one.targets[0].what} ...", file=sys.stderr)
        found = results_of(
            one,
            rounds=given.rounds or (_ROUNDS_OF_SMALL if small else 1),
            references=references.ratios() if is_compared else {},
        )
        results += found
        figures = ", ".join(f"{each.target.key} {each.now:.3g}" for each in found)
        print(f"  {figures}", file=sys.stderr)
    return results


if __name__ == "__main__":
    sys.exit(main())
