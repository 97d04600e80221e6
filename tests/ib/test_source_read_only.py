"""The connection to the gateway sends no orders."""

import ast
from pathlib import Path

from ib_async.client import Client

import ktrdr_pipelines.ib

PACKAGE = Path(ktrdr_pipelines.ib.__file__).parent
TREES = {
    str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
}
ALLOWED = {
    "cancelHeadTimeStamp",
    "cancelHistoricalData",
    "reqContractDetails",
    "reqCurrentTime",
    "reqHeadTimeStamp",
    "reqHistoricalData",
    "replace",  # of paths and texts
}
IMPORTED = {
    "ib_async.client.Client",
    "ib_async.contract.Contract",
    "ib_async.decoder.Decoder",
}
SENDING = {
    name
    for name in dir(Client)
    if name.startswith(("req", "cancel", "place", "exercise", "request", "replace", "send"))
}


def test_only_requests_are_sent() -> None:
    """No module names a sending method of ib_async's client other than these requests."""
    named = {
        path: {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for path, tree in TREES.items()
    }
    assert set.union(*named.values()) >= ALLOWED
    forbidden = {path: names & SENDING - ALLOWED for path, names in named.items()}
    assert {path: names for path, names in forbidden.items() if names} == {}


def test_no_module_with_orders_is_imported() -> None:
    """ib_async's order module and its IB class are not imported."""
    imported = {
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
    }
    assert {name for name in imported if name.startswith("ib_async")} == IMPORTED


def test_the_list_of_sending_methods_is_not_empty() -> None:
    """The client still has the forbidden methods under these names."""
    assert {"placeOrder", "cancelOrder", "reqGlobalCancel", "exerciseOptions"} <= SENDING
