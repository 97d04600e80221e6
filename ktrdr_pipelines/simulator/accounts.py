"""What the gateway says of its one account: some money, no positions.

Source: the decoders of ``ib_async`` 2.1.0 and ``ibapi`` 10 (grade S); which values an account
has is a choice of IB's long list (grade P).
"""

from ktrdr_pipelines.simulator import wire

CURRENCY = "USD"
VALUES = {
    "AccountType": "INDIVIDUAL",
    "NetLiquidation": "1000000.00",
    "TotalCashValue": "1000000.00",
    "SettledCash": "1000000.00",
    "AvailableFunds": "1000000.00",
    "BuyingPower": "4000000.00",
    "GrossPositionValue": "0.00",
    "UnrealizedPnL": "0.00",
    "RealizedPnL": "0.00",
}
"""The values of the account, by IB's tags; all but the type are money."""

_ALL_TAGS = "All"


def _currency(tag: str) -> str:
    return "" if tag == "AccountType" else CURRENCY


def updates(account: str, clock: str) -> bytes:
    """Tell every value, the time of it (``HH:MM``) and the end."""
    values = [
        wire.message((6, 2, tag, value, _currency(tag), account)) for tag, value in VALUES.items()
    ]
    ends = (wire.message((8, 1, clock)), wire.message((54, 1, account)))
    return b"".join([*values, *ends])


def summary(request_id: int, account: str, tags: str) -> bytes:
    """Tell the asked values, comma-separated tags or ``All``, and the end."""
    wanted = set(VALUES) if tags == _ALL_TAGS else set(tags.split(","))
    rows = [
        wire.message((63, 1, request_id, account, tag, value, _currency(tag)))
        for tag, value in VALUES.items()
        if tag in wanted
    ]
    return b"".join([*rows, wire.message((64, 1, request_id))])


def updates_multi(request_id: int, account: str, model: str) -> bytes:
    """Tell every value of one account and model, and the end."""
    rows = [
        wire.message((73, 1, request_id, account, model, tag, value, _currency(tag)))
        for tag, value in VALUES.items()
    ]
    return b"".join([*rows, wire.message((74, 1, request_id))])


def positions() -> bytes:
    """End the list of positions, which is empty."""
    return wire.message((62, 1))


def positions_multi(request_id: int) -> bytes:
    """End the list of one account's and model's positions, which is empty."""
    return wire.message((72, 1, request_id))


def profit(request_id: int) -> bytes:
    """Tell the profit of the day, unrealized and realized: there is none."""
    return wire.message((94, request_id, 0.0, 0.0, 0.0))
