"""No output and no file holds the account of a gateway that names it everywhere.

The account is composed here, so that no file of the project contains one.
"""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ktrdr_pipelines.simulator.faults.faults import Fault, FaultPlan, FaultRule, Occasion
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour

NUMBER = "7654321"
ACCOUNT = "U" + NUMBER
OTHER = "DU" + "1122334"
NOW = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)

UNIVERSE = """\
defaults: {timeframes: [1h, 1d], start: 2024-01-02}
symbols:
  AAPL: {}
  MSFT: {}
  SPY: {}
  QQQ: {}
  NVDA: {}
  EURUSD: {timeframes: [1h]}
"""

ERRORS = {
    "AAPL": 321,
    "MSFT": 162,
    "SPY": 10187,
    "QQQ": 354,
    "NVDA": 4711,
}
"""What requests of each symbol are refused with at first."""


def text_of(code: int) -> str:
    """Return a message with the account in every form that a text may have."""
    prefix = "Historical Market Data Service error message:" if code == 162 else ""
    return (
        f"{prefix}Error for {ACCOUNT}, {ACCOUNT.lower()}; account {NUMBER} of [{OTHER}] "
        f"acct_{ACCOUNT}_x"
    )


def refusals() -> FaultPlan:
    """Refuse the first requests for bars, a contract and a head timestamp."""
    rules = [
        FaultRule(Fault.ERROR, symbol=symbol, times=2, settings={"code": code}, text=text_of(code))
        for symbol, code in ERRORS.items()
    ]
    others = [
        FaultRule(
            Fault.ERROR, occasion=occasion, times=1, settings={"code": 200}, text=text_of(200)
        )
        for occasion in (Occasion.CONTRACT, Occasion.HEAD)
    ]
    return FaultPlan([*rules, *others])


@dataclass
class Outputs:
    """Runs commands as processes of their own, and keeps their output."""

    folder: Path
    environ: dict[str, str]
    printed: list[str] = field(default_factory=list)

    def ktrdr(self, *arguments: str) -> int:
        """Run a command; return its exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "ktrdr_pipelines.cli.main", *arguments],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env=self.environ,
            cwd=self.folder,
        )
        self.printed += [done.stdout, done.stderr]
        return done.returncode

    def everything(self) -> dict[str, bytes]:
        """Return all bytes that were written or printed, by path."""
        files = [one for one in self.folder.rglob("*") if one.is_file()]
        written = {str(one.relative_to(self.folder)): one.read_bytes() for one in files}
        return written | {"printed": "\n".join(self.printed).encode()}


@pytest.fixture
def gateway() -> Iterator[SimulatorServer]:
    """Run a gateway that looks like a real one, and that refuses many requests."""
    behaviour = Behaviour(faults=refusals())
    with running_simulator(now=NOW, account=f"{ACCOUNT},{OTHER}", behaviour=behaviour) as server:
        yield server


@pytest.fixture
def outputs(tmp_path: Path, gateway: SimulatorServer) -> Outputs:
    """Make a store in a folder that holds everything that is written."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "universe.yaml").write_text(UNIVERSE)
    (tmp_path / "tmp").mkdir()
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("KTRDR_", "IB_"))
    }
    offset_s = (NOW - datetime.now(tz=UTC)) / timedelta(seconds=1)
    environ |= {
        "KTRDR_DATA": str(tmp_path / "data"),
        "KTRDR_STATE": str(tmp_path / "state"),
        "KTRDR_CLOCK_OFFSET_S": str(offset_s),
        "IB_PORT": str(gateway.port),
        "IB_TIMEOUT": "20",
        "IB_MAX_RETRIES": "0",
        "KTRDR_WAIT": "0",
        "TMPDIR": str(tmp_path / "tmp"),
        "HOME": str(tmp_path),
    }
    return Outputs(tmp_path, environ)


def account_forms() -> Iterator[tuple[str, bytes]]:
    """Yield the forms of the accounts: several encodings, and unsalted hashes."""
    for account in (ACCOUNT, OTHER):
        forms = (account, account.lower(), account.lstrip("DU"))
        for form in forms:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
                yield f"{form} in {encoding}", form.encode(encoding)
    listed = ",".join(sorted((ACCOUNT, OTHER)))
    for form in (ACCOUNT, OTHER, ACCOUNT.lower(), OTHER.lower(), listed):
        for prefix in ("", "ktrdr-pipelines account:"):
            for kind in ("md5", "sha1", "sha224", "sha256", "sha512", "blake2b", "blake2s"):
                digest = hashlib.new(kind, f"{prefix}{form}".encode())
                yield f"{kind} of {prefix}{form}", digest.hexdigest()[:12].encode()
                yield f"{kind} of {prefix}{form}, raw", digest.digest()[:8]


@pytest.mark.slow
def test_nothing_that_is_written_or_printed_names_the_account(
    outputs: Outputs, gateway: SimulatorServer
) -> None:
    """Store, ledger, catalog, state, logs and every output are searched, with all free pages."""
    assert outputs.ktrdr("init") == 0
    codes = [outputs.ktrdr("load", symbol, "1d,1h") for symbol in ERRORS]
    assert set(codes) <= {1, 3}
    gateway.notify(2104, f"Market data farm connection is OK:usfarm {ACCOUNT}")
    gateway.faults = FaultPlan(
        [
            FaultRule(Fault.LINK_LOST, symbol="MSFT", times=1, settings={"seconds": 0.5}),
            *refusals().rules,
        ]
    )
    commands = [
        ("update",),
        ("load", "AAPL,EURUSD,MSFT", "1d,1h", "--json"),
        ("health",),
        ("health", "--json"),
        ("doctor",),
        ("doctor", "--json"),
        ("status",),
        ("status", "--json"),
        ("gaps", "--json"),
        ("gaps",),
        ("plan", "--json"),
        ("ranges", "AAPL", "--json"),
        ("query", "FROM requests", "--json"),
        ("query", "FROM requests", "--csv"),
        ("query", "FROM gaps", "--json"),
        ("verify", "--json"),
    ]
    for command in commands:
        assert outputs.ktrdr(*command) in {0, 1, 3}, (command, outputs.printed[-2:])
    written = outputs.everything()
    assert {
        "data/ktrdr.duckdb",
        "data/state/ledger.sqlite",
        "state/logins.json",
    } <= written.keys()
    held = [
        (name, what)
        for what, one in account_forms()
        for name, data in written.items()
        if one in data
    ]
    assert held == []
    assert b"(account)" in written["printed"]
    assert b"(account)" in written["data/state/ledger.sqlite"]
    with closing(sqlite3.connect(outputs.folder / "data" / "state" / "ledger.sqlite")) as ledger:
        logins = {row[0] for row in ledger.execute("SELECT login FROM requests")}
    assert logins == {"login 1"}
    assert set(json.loads(written["state/logins.json"]).values()) == {1}


def test_queries_distinguish_two_logins(outputs: Outputs, gateway: SimulatorServer) -> None:
    """The audit has a number for the login of each request."""
    gateway.lift_faults()
    assert outputs.ktrdr("init") == 0
    assert outputs.ktrdr("load", "AAPL", "1d") == 0
    with running_simulator(now=NOW, account=OTHER) as other:
        outputs.environ["IB_PORT"] = str(other.port)
        assert outputs.ktrdr("load", "MSFT", "1d") == 0
    query = "SELECT DISTINCT login, split_part(series, '|', 1) AS symbol FROM requests ORDER BY ALL"
    assert outputs.ktrdr("query", query, "--json") == 0
    assert json.loads(outputs.printed[-2])["rows"] == [
        {"login": "login 1", "symbol": "AAPL"},
        {"login": "login 2", "symbol": "MSFT"},
    ]
