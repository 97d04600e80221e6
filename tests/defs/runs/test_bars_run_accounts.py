"""What a run writes to Dagster's home has no account number, although the gateway's texts do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from ktrdr_pipelines.simulator.faults.faults import Fault, FaultPlan, FaultRule
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour

ACCOUNT = "U" + "7654321"
NOW = "2026-06-12T12:00:00+00:00"


def test_the_history_of_a_failed_run_has_no_account_number(location: Any, tmp_path: Path) -> None:
    """Failures, events and logs hold the gateway's texts without it."""
    text = f"Error for {ACCOUNT}: {ACCOUNT.lower()} may not have this"
    refusal = FaultRule(Fault.ERROR, settings={"code": 321}, text=text)
    behaviour = Behaviour(faults=FaultPlan([refusal]))
    home = tmp_path / "dagster"
    home.mkdir()
    with (
        running_simulator(now=NOW, account=ACCOUNT, behaviour=behaviour) as gateway,
        dg.DagsterInstance.local_temp(str(home)) as instance,
    ):
        instance.add_dynamic_partitions("symbols_1d", ["AAPL", "MSFT"])
        settings = location.settings.model_copy(update={"ib_port": gateway.port})
        refused = replace(location, gateway=gateway, settings=settings, instance=instance)
        result = refused.run("1d", "AAPL|2026", "AAPL|2026")
    assert not result.success
    contents = [one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()]
    assert any(b"Error for (account): (account)" in data for data in contents)
    assert not any(ACCOUNT[1:].encode() in data for data in contents)
