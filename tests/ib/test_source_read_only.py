"""The connection to the gateway sends no orders."""

import ast
from pathlib import Path

import pytest
from ib_async.client import Client

import ktrdr_pipelines.ib

PACKAGE = Path(ktrdr_pipelines.ib.__file__).parent
ALLOWED = {
    "cancelHeadTimeStamp",
    "cancelHistoricalData",
    "reqContractDetails",
    "reqCurrentTime",
    "reqHeadTimeStamp",
    "reqHistoricalData",
}
SENDING = {
    name
    for name in dir(Client)
    if name.startswith(("req", "cancel", "place", "exercise", "request", "replace", "send"))
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_only_requests_are_sent(path: Path) -> None:
    """No module names a sending method of ib_async's client other than these requests."""
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert names & SENDING <= ALLOWED | {"replace"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_with_orders_is_imported(path: Path) -> None:
    """ib_async's order module and its IB class are not imported."""
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    allowed = {"ib_async.client.Client", "ib_async.contract.Contract", "ib_async.decoder.Decoder"}
    assert {name for name in imported if name.startswith("ib_async")} <= allowed


def test_the_list_of_sending_methods_is_not_empty() -> None:
    """The client still has the forbidden methods under these names."""
    assert {"placeOrder", "cancelOrder", "reqGlobalCancel", "exerciseOptions"} <= SENDING
