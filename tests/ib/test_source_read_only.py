"""The connection to the gateway is read-only for ever."""

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
def test_only_questions_are_sent(path: Path) -> None:
    """No module names a method of ib_async's client that sends anything but these questions."""
    names = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    assert names & SENDING <= ALLOWED | {"replace"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_nothing_that_knows_orders_is_imported(path: Path) -> None:
    """Neither ib_async's order module nor its IB class, which can place them, is used."""
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    allowed = {"ib_async.client.Client", "ib_async.contract.Contract", "ib_async.decoder.Decoder"}
    assert {name for name in imported if name.startswith("ib_async")} <= allowed


def test_the_list_of_sending_methods_is_not_empty() -> None:
    """The client still has the methods that are forbidden, under the names looked for."""
    assert {"placeOrder", "cancelOrder", "reqGlobalCancel", "exerciseOptions"} <= SENDING
