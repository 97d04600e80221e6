"""Print the table of a group of benchmarks: ``python -m tests.benchmarks gateway``.

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

from tests.benchmarks import gateway
from tests.benchmarks.measuring import (
    Benchmark,
    References,
    Result,
    machine,
    markdown_of,
    results_of,
    show,
)

REFERENCE = Path(__file__).with_name("reference.json")
_ROUNDS_OF_SMALL = 3


class Group(Protocol):
    """A group of benchmarks, in its full or its small form."""

    def __call__(self, *, small: bool) -> Sequence[Benchmark]:
        """Return the benchmarks."""
        ...


GROUPS: Mapping[str, Group] = {"gateway": gateway.benchmarks}


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
        "--record", action="store_true", help="write what the small form measured as the reference"
    )
    given = parser.parse_args()
    references = References(REFERENCE, given.group)
    is_compared = given.small and not given.record
    chosen = [
        one
        for one in GROUPS[given.group](small=given.small)
        if any(given.only in target.key for target in one.targets)
    ]
    if not chosen:
        parser.error(f"no key of {given.group} contains {given.only!r}")
    results: list[Result] = []
    for one in chosen:
        print(f"measuring {one.targets[0].what} ...", file=sys.stderr)
        found = results_of(
            one,
            rounds=given.rounds or (_ROUNDS_OF_SMALL if given.small else 1),
            references=references.ratios() if is_compared else {},
        )
        results += found
        figures = ", ".join(f"{each.target.key} {each.now:.3g}" for each in found)
        print(f"  {figures}", file=sys.stderr)
    if given.json:
        documents = [one.document() for one in results]
        print(json.dumps({"machine": machine(), "results": documents}, indent=2))
    elif given.markdown:
        print(markdown_of(results))
    else:
        show(f"{given.group}, {machine()}", results)
    if given.record and given.small:
        made = {
            "command": f"python -m tests.benchmarks {given.group} --small --record",
            "machine": machine(),
            "on": f"{datetime.now(tz=UTC):%Y-%m-%d}",
        }
        references.write(results, made)
    return int(any(one.has_failed for one in results))


if __name__ == "__main__":
    sys.exit(main())
