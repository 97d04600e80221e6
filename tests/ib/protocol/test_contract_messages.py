"""Contracts of futures as real gateways describe them: dates in the zone of the login.

Literal fields, shortened: https://github.com/ib-api-reloaded/ib_async/issues/128 (MES, GC),
https://github.com/erdewit/ib_insync/issues/605 (Asia/Shanghai),
https://github.com/pst-group/pysystemtrade/issues/1244 (GB).
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import pytest

from ktrdr_pipelines.domain.instruments import Instrument, SecType
from ktrdr_pipelines.errors import BadAnswerError, ContractAmbiguousError
from ktrdr_pipelines.ib.protocol.contract_messages import candidate_of, chosen
from tests.support.recorded_frames import MES_DETAILS

TAIL = (*("", "0", "0", "2147483647", "MES", "IND", "67", "20260320", "", "1", "1", "1"),)
"""What follows the hours: rules, no tags, group, underlying, market rule, real expiration date."""


def mes(last_trade: str | None = None, *, expires: str | None = None) -> list[str]:
    """Return the fields of MES, with another last trade date or real expiration date."""
    fields = [*MES_DETAILS.split(","), *TAIL]
    if last_trade is not None:
        fields[4] = last_trade
    if expires is not None:
        fields[35] = expires
    return fields


def gold(local: str, contract_id: int, last_trade: str) -> list[str]:
    """Return the first fields of a message of gold."""
    fields = [
        *("10", "9", "GC", "FUT", last_trade, "0", "", "COMEX", "USD", local, "GC", "GC"),
        *(str(contract_id), "0.1", "100", "", "COMEX", "1", "17340715", "Gold", "", "202602"),
    ]
    return [*fields, "", "", "", "US/Eastern", "", ""]


GOLD = [
    gold("GCG6", 693609539, "20260225 19:30:00 Europe/Zurich"),
    gold("GCZ5", 397594951, "20251229 19:30:00 Europe/Zurich"),
    gold("GCF6", 760200558, "20260128 19:30:00 Europe/Zurich"),
]


@pytest.fixture
def future(aapl: Instrument) -> Callable[..., Instrument]:
    """Return a function that makes the instrument of a future."""

    def make(symbol: str, exchange: str, day: date | None, **other: Any) -> Instrument:
        return replace(
            aapl,
            symbol=symbol,
            ib_symbol=symbol,
            sec_type=SecType.FUT,
            exchange=exchange,
            calendar="GLOBEX.EQUITY",
            last_trade_date=day,
            **other,
        )

    return make


@pytest.mark.parametrize(
    ("text", "expires", "day"),
    [
        ("20260320 14:30:00 Europe/Zurich", "20260320", date(2026, 3, 20)),
        ("20260320 14:30:00 Europe/Zurich", "", date(2026, 3, 20)),
        ("20260320 21:30:00 Asia/Shanghai", "", date(2026, 3, 20)),
        # 16:00 in Chicago on the 20th: the next day in Shanghai and in Tokyo.
        ("20260321 05:00:00 Asia/Shanghai", "", date(2026, 3, 20)),
        ("20260321 06:00:00 Japan", "20260320", date(2026, 3, 20)),
        ("20260320 13:30:00 GB", "", date(2026, 3, 20)),
        ("20260320", "", date(2026, 3, 20)),
        ("20260320", "20260320", date(2026, 3, 20)),
        # A zone that is not known: the real expiration date stands beside it.
        ("20260321 05:00:00 CST", "20260320", date(2026, 3, 20)),
    ],
)
def test_a_last_trade_date_is_that_of_the_exchange(
    future: Callable[..., Instrument], text: str, expires: str, day: date
) -> None:
    """In every zone of the login the date of the universe fits."""
    found = candidate_of(mes(text, expires=expires), 178)
    assert found.last_trade_date == f"{day:%Y%m%d}"
    assert chosen(future("MES", "CME", day), [found]).contract_id == 750150186
    assert found.trading_hours.startswith("20251222:1700-20251223:1600;")


def test_a_date_as_the_gateway_writes_it_fits_too(future: Callable[..., Instrument]) -> None:
    """An entry copied from the gateway's window is accepted."""
    found = candidate_of(mes("20260321 05:00:00 Asia/Shanghai"), 178)
    assert chosen(future("MES", "CME", date(2026, 3, 21)), [found]) is found


def test_another_date_is_another_contract(future: Callable[..., Instrument]) -> None:
    """The hint names the fitting date and the id."""
    found = candidate_of(mes("20260321 05:00:00 Asia/Shanghai", expires=""), 178)
    with pytest.raises(BadAnswerError) as caught:
        chosen(future("MES", "CME", date(2026, 3, 19)), [found])
    assert 'last_trade_date: "20260320"' in caught.value.hint
    assert "con_id: 750150186" in caught.value.hint


def test_a_matching_contract_id_decides(future: Callable[..., Instrument]) -> None:
    """The date is ignored then; another id is another contract."""
    found = candidate_of(mes("20260321 05:00:00 CST", expires=""), 178)
    entry = future("MES", "CME", date(2026, 3, 18), contract_id=750150186)
    assert chosen(entry, [found]) is found
    with pytest.raises(BadAnswerError, match="the gateway returned MES FUT"):
        chosen(replace(entry, contract_id=1), [found])


def test_one_of_several_is_chosen_by_its_date_or_id(future: Callable[..., Instrument]) -> None:
    """Contracts arrive in any order; without date and id they are ambiguous."""
    candidates = [candidate_of(fields, 178) for fields in GOLD]
    by_date = chosen(future("GC", "COMEX", date(2026, 1, 28)), candidates)
    assert by_date.local_symbol == "GCF6"
    by_id = chosen(future("GC", "COMEX", None, contract_id=397594951), candidates)
    assert by_id.local_symbol == "GCZ5"
    with pytest.raises(ContractAmbiguousError) as caught:
        chosen(future("GC", "COMEX", None), candidates)
    assert caught.value.hint.endswith("20251229 or 20260128 or 20260225")


def test_the_date_of_the_exchange_decides_between_dates_as_written(
    future: Callable[..., Instrument],
) -> None:
    """Of daily contracts, one is written with the date of the next one."""
    candidates = [
        candidate_of(gold("GCA", 1, "20260226 05:00:00 Asia/Shanghai"), 178),
        candidate_of(gold("GCB", 2, "20260227 05:00:00 Asia/Shanghai"), 178),
    ]
    by_date = chosen(future("GC", "COMEX", date(2026, 2, 26)), candidates)
    assert by_date.local_symbol == "GCB"


@pytest.mark.parametrize("text", ["202603", "2026-03-20", ""])
def test_a_hint_names_only_a_valid_date(future: Callable[..., Instrument], text: str) -> None:
    """The universe accepts a date of eight digits, or the id."""
    found = candidate_of(mes(text, expires=""), 178)
    with pytest.raises(BadAnswerError) as caught:
        chosen(future("MES", "CME", date(2026, 3, 19)), [found])
    assert caught.value.hint.endswith("symbol, currency or con_id: 750150186.")


def test_an_unknown_zone_without_an_expiration_date_is_reported(
    harness: Any, future: Callable[..., Instrument]
) -> None:
    """Without a real expiration date the written date counts, and the zone is reported."""
    entry = future("MES", "CME", date(2026, 3, 20))

    def respond(client: Any, fields: list[str]) -> None:
        message = mes("20260320 21:30:00 CST", expires="")
        message[1] = fields[2]
        client.send(*message)
        client.send(52, 1, fields[2])

    async def ask(source: Any) -> tuple[int, tuple[str, ...]]:
        return await source.contract_id(entry), source.notices.zones

    assert harness(ask, contract=respond) == (750150186, ("CST",))
