"""``ktrdr probe``: whether the gateway at hand behaves as this project believes.

Not here: asking (``ib.probe``), the beliefs (``ib.probe_facts``).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ktrdr_pipelines.cli.output import AsJson, note, say, say_json, say_table
from ktrdr_pipelines.errors import ExitCode

if TYPE_CHECKING:
    from ktrdr_pipelines.ib.probe import Finding, Probe


def probe(
    out: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Where the record of all frames goes (JSON lines)."),
    ] = Path("ktrdr-probe.jsonl"),
    as_json: AsJson = False,
) -> None:
    """Ask the gateway about what is believed of real ones and not certain.

    Some twenty-five small requests, one after another, within the budget of all runs. Prints what
    was expected and what came, and writes a record without account numbers, user names or
    addresses, which you can show to others and replay.

    Exit codes: 0 everything was asked (whatever came), 1 no gateway, or the record cannot be
    written, 2 bad usage, 3 not everything was asked: the gateway went away, or does not know an
    instrument.
    """
    from ktrdr_pipelines.cli.stopping import run_stoppable
    from ktrdr_pipelines.ib.capture import check_writable, write_capture
    from ktrdr_pipelines.ib.config import GatewayConfig
    from ktrdr_pipelines.ib.probe import probe as ask
    from ktrdr_pipelines.settings import load_settings

    config = GatewayConfig.from_settings(load_settings())
    check_writable(out)
    came = run_stoppable(ask(config, on_finding=_Told().note))
    write_capture(out, came.capture)
    tell(came, config.gateway, out, as_json=as_json)
    raise typer.Exit(ExitCode.DONE if came.is_whole else ExitCode.INCOMPLETE)


class _Told:
    """Says how far the asking has come."""

    def __init__(self) -> None:
        self._facts = 0

    def note(self, finding: "Finding") -> None:
        self._facts += 1
        what = "asked" if finding.was_asked else f"not asked ({finding.seen})"
        note(f"{self._facts:>2} {what}: {finding.fact.name}")


def tell(came: "Probe", gateway: str, out: Path, *, as_json: bool) -> None:
    """Print what came of all facts."""
    told = [_document(finding) for finding in came.findings]
    if as_json:
        say_json({"gateway": gateway, "capture": str(out), "facts": told})
    else:
        columns = {"fact": "fold", "grade": "left", "expected": "fold", "seen": "fold"}
        rows = [[*(one[name] for name in columns), one["agrees"]] for one in told]
        say_table(columns | {"agrees": "left"}, rows)
        say(f"record of {len(came.capture.frames)} frames: {out}")


def _document(finding: "Finding") -> dict[str, Any]:
    fact = finding.fact
    nothing = "not known" if finding.was_asked else "not asked"
    agrees = {True: "yes", False: "NO", None: "learned" if finding.known else nothing}
    return {
        "fact": fact.name,
        "grade": fact.grade,
        "expected": fact.expected,
        "seen": finding.seen,
        "agrees": agrees[finding.agrees],
    }
