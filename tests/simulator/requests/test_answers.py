"""Which requests are refused, and how the bars of the others are cut, dated and written."""

from datetime import datetime
from typing import Any

import pytest

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.messages import ContractRequest
from ktrdr_pipelines.simulator.requests.answers import answer

SERVICE = "Historical Market Data Service error message:"


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"bar_size": "1 mins"}, 321, "Error validating request.-'bK' : cause - Historical data"),
        ({"bar_size": "1 sec"}, 321, "bar size setting is invalid"),
        ({"bar_size": "4 mins"}, 321, "20 mins, 30 mins, 1 hour, 2 hours, 3 hours, 4 hours, 8 h"),
        ({"duration": "23 H"}, 321, "integer{SPACE}unit (S|D|W|M|Y)"),
        ({"duration": "0 D"}, 321, "duration is invalid"),
        ({"duration": "1D"}, 321, "integer{SPACE}unit (S|D|W|M|Y)"),
        ({"duration": "366 D"}, 321, "longer than 365 days must be made in years"),
        ({"duration": "86401 S"}, 321, "greater than 86400 seconds rejected"),
        ({"what": "LAST"}, 321, "what to show"),
        ({"keep_up_to_date": True, "end": "20240109-21:00:00"}, 321, "with live updates"),
        ({"end": "yesterday"}, 10314, "End Date/Time"),
        ({"end": "20240110 10:00:00 Mars/Base"}, 10314, "End Date/Time"),
        ({"end": "20240230-10:00:00"}, 10314, "End Date/Time"),
        ({"end": "00010101-10:00:00"}, 10314, "End Date/Time"),
        ({"end": "20240110-10:00:00 UTC"}, 10314, "End Date/Time"),
        ({"end": "19801201-21:00:00"}, 162, "HMDS query returned no data: AAPL@SMART Trades"),
        ({"end": "19701201-21:00:00"}, 162, "HMDS query returned no data: AAPL@SMART Trades"),
        ({"bar_size": "1 min", "duration": "68 Y", "use_rth": False}, 162, "Time length exceed"),
    ],
)
def test_requests_are_refused_with_the_gateways_text(
    requester: Any, changes: dict[str, Any], code: int, text: str
) -> None:
    """Each invalid request gets code and text of a live gateway."""
    arguments = {"key": "AAPL", "size": "1 hour", "duration": "1 D"}
    names = {"bar_size": "size"}
    response = requester.bars(
        **(arguments | {names.get(key, key): value for key, value in changes.items()})
    )
    assert response.bars == []
    assert response.errors[0][0] == code
    assert text in response.errors[0][1]


def test_trades_of_a_pair_are_refused(requester: Any) -> None:
    """FX has no trades; the text names the pair as the data farm does."""
    response = requester.bars("EURUSD", "5 mins", "1 D", what="TRADES")
    assert response.errors == [
        (
            162,
            f"{SERVICE}No historical market data for EUR/CASH@FXSUBPIP Last 300",
        )
    ]


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"symbol": "NOSUCH"}, 200, "No security definition has been found for the request"),
        ({"currency": "EUR"}, 200, "No security definition"),
        ({"sec_type": "FUT"}, 200, "No security definition"),
        ({"exchange": "LSE"}, 200, "No security definition"),
        ({"exchange": ""}, 321, "Please enter exchange"),
        (
            {"symbol": "EUR", "sec_type": "CASH", "exchange": "IDEALPRO", "currency": ""},
            200,
            "ambi",
        ),
    ],
)
def test_unknown_and_ambiguous_contracts_get_no_bars(
    requester: Any, fields_of: Any, *, changes: dict[str, Any], code: int, text: str
) -> None:
    """A request for data must match one instrument."""
    contract = fields_of("AAPL", **changes)
    response = requester.bars("AAPL", "1 hour", "1 D", contract=contract)
    assert response.errors[0][0] == code
    assert text in response.errors[0][1]


def test_details_of_several_fitting_contracts_are_all_listed(
    requester: Any, fields_of: Any, split_frames: Any
) -> None:
    """A contract request returns every match, then the end."""
    contract = fields_of("EURUSD", currency="")
    frames = split_frames(answer(requester.setting(), ContractRequest(3, contract)).data)
    assert [fields[8] for fields in frames[:-1]] == ["USD", "GBP", "JPY", "CHF"]
    assert frames[-1] == ["52", "1", "3"]


def test_a_contract_id_alone_names_an_instrument(requester: Any, fields_of: Any) -> None:
    """An id and an exchange are enough."""
    (apple,) = [each for each in requester.market.instruments() if each.key == "AAPL"]
    contract = fields_of("", con_id=apple.con_id)
    assert len(requester.bars("AAPL", "1 hour", "1 D", contract=contract).bars) == 7


def test_contract_ids_are_unique_and_the_same_in_every_market(synthetic: SyntheticMarket) -> None:
    """Ids depend on type and symbol only, and fit 32 bits."""
    ids = [each.con_id for each in synthetic.instruments()]
    assert len(set(ids)) == len(ids) > 50
    assert max(ids) < 2**31
    assert ids == [each.con_id for each in SyntheticMarket(seed=2).instruments()]


def test_an_end_without_a_zone_is_in_the_gateways_zone(requester: Any) -> None:
    """Warning 2174 is first, then the bars until 11:00 New York, the gateway's zone."""
    response = requester.bars("AAPL", "1 hour", "1 D", "20240109 11:00:00")
    assert [code for code, _ in response.errors] == [2174]
    assert [text[9:14] for text in response.dates] == ["09:30", "10:00"]
    assert response.end == "20240109 11:00:00 US/Eastern"


def test_an_end_without_a_date_is_today(requester: Any) -> None:
    """Today in the named zone, as the gateway's text about ends says."""
    response = requester.bars("AAPL", "1 hour", "1 D", "11:00:00 US/Eastern")
    assert (response.end, response.errors) == ("20240110 11:00:00 US/Eastern", [])
    assert requester.bars("AAPL", "1 hour", "1 D", "09:00:00 Asia/Tokyo").end.startswith(
        "20240110 19:"
    )
    assert requester.bars("AAPL", "1 hour", "1 D", "25:00:00").errors[0][0] == 10314


def test_the_forms_of_an_end_agree(requester: Any) -> None:
    """UTC with a dash and any named zone mean the same moment."""
    forms = (
        "20240109-21:00:00",
        "20240109 16:00:00 US/Eastern",
        "20240109 16:00:00 America/New_York",
        "20240109 22:00:00 Europe/Amsterdam",
    )
    answers = [requester.bars("AAPL", "1 hour", "1 D", end) for end in forms]
    assert all(each == answers[0] for each in answers)
    assert len(answers[0].bars) == 7


def test_no_bar_is_later_than_now(requester: Any) -> None:
    """An end in the future returns bars up to now; message 17 states the requested end."""
    response = requester.bars("AAPL", "1 hour", "1 D", "20240120-21:00:00")
    assert response.dates[-1] == "20240110 15:00:00 US/Eastern"
    assert response.end == "20240120 16:00:00 US/Eastern"
    assert response.bars == requester.bars("AAPL", "1 hour", "1 D").bars


def test_the_newest_bar_is_partial(requester: Any) -> None:
    """Thirty seconds into an hour its bar holds half a minute."""
    newest = requester.bars("AAPL", "1 hour", "1 D").bars[-1]
    minute = requester.bars("AAPL", "1 min", "1 D").bars[-1]
    assert newest == minute
    whole = requester.bars("AAPL", "1 min", "60 S", "20240109-20:01:00").bars[-1]
    half = requester.bars("AAPL", "1 min", "60 S", "20240109-20:00:30").bars[-1]
    assert half[0] == whole[0]
    assert half[1] == whole[1]
    assert float(half[5]) < float(whole[5])


def test_the_last_bar_is_cut_at_the_requested_end(requester: Any) -> None:
    """A bar that the end cuts holds only the minutes before it."""
    hour = requester.bars("AAPL", "1 hour", "1 D", "20240109 11:20:00 US/Eastern").bars[-1]
    minutes = requester.bars("AAPL", "1 min", "1 D", "20240109 11:20:00 US/Eastern").bars[-20:]
    assert (hour[0][9:14], minutes[0][0][9:14]) == ("11:00", "11:00")
    assert hour[1] == minutes[0][1]
    assert float(hour[2]) == max(float(bar[2]) for bar in minutes)
    assert float(hour[3]) == min(float(bar[3]) for bar in minutes)
    assert hour[4] == minutes[-1][4]
    assert int(hour[5]) == sum(int(bar[5]) for bar in minutes)


def test_the_first_bar_is_cut_at_the_start_of_the_duration(requester: Any) -> None:
    """A bar that the start cuts keeps its timestamp."""
    cut = requester.bars("AAPL", "1 hour", "2400 S", "20240109 12:00:00 US/Eastern").bars
    whole = requester.bars("AAPL", "1 hour", "3600 S", "20240109 12:00:00 US/Eastern").bars
    assert [bar[0] for bar in cut] == [bar[0] for bar in whole]
    assert int(cut[0][5]) < int(whole[0][5])
    assert cut[0][4] == whole[0][4]


def test_dates_have_the_requested_format(requester: Any) -> None:
    """Format 2 is epoch seconds, others have the exchange's zone; days are always dates."""
    texts = requester.bars("AAPL", "1 hour", "1 D", "20240109-21:00:00").dates
    epochs = requester.bars("AAPL", "1 hour", "1 D", "20240109-21:00:00", format_date=2).dates
    assert texts[0] == "20240109 09:30:00 US/Eastern"
    assert int(epochs[0]) == datetime.fromisoformat("2024-01-09T09:30:00-05:00").timestamp()
    for size in ("1 day", "1 week"):
        assert requester.bars("AAPL", size, "1 D", "20240109-21:00:00", format_date=2).dates == [
            "20240109"
        ]


def test_fx_volume_average_and_count_are_minus_one(requester: Any) -> None:
    """Values that FX and quotes do not have are -1, not 0."""
    assert {tuple(bar[5:]) for bar in requester.bars("EURUSD", "1 hour", "1 D").bars} == {
        ("-1", "-1", "-1")
    }
    assert requester.bars("AAPL", "1 hour", "1 D", what="BID").bars[0][5:] == ["-1", "-1", "-1"]


def test_head_timestamps_have_the_requested_format(requester: Any) -> None:
    """Format 1 is UTC with a dash, format 2 epoch seconds."""
    assert requester.head("AAPL", "TRADES").head == "19801212-14:30:00"
    assert requester.head("AAPL", "TRADES", use_rth=False).head == "19801212-09:00:00"
    assert requester.head("EURUSD", "MIDPOINT", format_date=2).head == "1110320100"
    assert requester.head("EURUSD", "TRADES").errors[0][0] == 162
    assert requester.head("AAPL", "LAST").errors[0][0] == 321


def test_the_head_is_the_first_bar_of_every_size(requester: Any) -> None:
    """A request over the listing date starts with the head."""
    for key in ("META", "THIN", "GBPUSD"):
        what = "MIDPOINT" if len(key) == 6 else "TRADES"
        head = int(requester.head(key, what, format_date=2).head)
        end = datetime.fromtimestamp(head + 9 * 86_400).astimezone().strftime("%Y%m%d-%H:%M:%S")
        first = requester.bars(key, "1 min", "1 M", end, format_date=2).dates[0]
        assert int(first) == head
