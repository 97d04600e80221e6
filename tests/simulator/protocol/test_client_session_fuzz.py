"""Arbitrary bytes and fields from a client, in any pieces."""

import struct
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.protocol.client_session import ClientSession, Send
from ktrdr_pipelines.simulator.protocol.messages import ContractRequest, HeadRequest, HistoryRequest
from ktrdr_pipelines.simulator.requests.answers import answer
from ktrdr_pipelines.simulator.requests.request_limits import GatewayRules
from ktrdr_pipelines.simulator.requests.validation import Setting
from tests.support.examples import examples

NOW = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)
MARKET = SyntheticMarket(seed=1)
TYPES = [3, 4, 5, 6, 7, 9, 17, 20, 25, 49, 61, 62, 71, 74, 76, 87, 90, 92, 99, 12_345]

texts = st.one_of(
    st.sampled_from(["", "0", "1", "-1", "AAPL", "STK", "SMART", "USD", "TRADES", "1 D", "1 min"]),
    st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=8),
)
messages = st.tuples(st.sampled_from(TYPES), st.lists(texts, max_size=22))
noise = st.binary(max_size=24)


def framed(type_id: int, fields: list[str]) -> bytes:
    """Return the bytes of a message, without the code under test."""
    payload = "".join(f"{value}\0" for value in (type_id, *fields)).encode()
    return struct.pack(">I", len(payload)) + payload


def actions_of(stream: bytes, cuts: list[int]) -> list[object]:
    """Return the actions after a stream in the pieces that some cuts make."""
    session = ClientSession(GatewayRules(), account="SIM000001", now=lambda: NOW)
    positions = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    actions = [
        action for at, to in pairwise(positions) for action in session.receive(stream[at:to])
    ]
    sent = b"".join(action.data for action in actions if isinstance(action, Send))
    return [sent, *(action for action in actions if not isinstance(action, Send))]


@given(
    sent=st.lists(messages, max_size=5),
    tail=noise,
    cuts=st.lists(st.integers(0, 2_000), max_size=6),
)
@examples(150)
def test_a_stream_means_the_same_however_it_is_split(
    sent: list[tuple[int, list[str]]], tail: bytes, cuts: list[int]
) -> None:
    """After a greeting any bytes give the same actions, whatever their pieces."""
    hello = b"API\0" + struct.pack(">I", 9) + b"v100..226"
    start = framed(71, ["2", "5", ""])
    stream = hello + start + b"".join(framed(*each) for each in sent) + tail
    assert actions_of(stream, cuts) == actions_of(stream, [])


@given(
    fields=st.lists(texts, min_size=10, max_size=10),
    texts_of_request=st.tuples(
        st.sampled_from(["", "20240109-21:00:00", "20240109 21:00:00", "x"]),
        st.sampled_from(["1 min", "1 hour", "1 day", "1W", "x"]),
        st.sampled_from(["1 D", "3 D", "1 M", "60", "0 D", "9999 Y"]),
        st.sampled_from(["TRADES", "BID_ASK", "SCHEDULE", "AGGTRADES", "x"]),
    ),
    flags=st.tuples(st.booleans(), st.booleans(), st.integers(-1, 3)),
    con_id=st.integers(-(2**40), 2**40),
)
@examples(120)
def test_any_request_gets_one_response(
    fields_of: Any,
    split_frames: Any,
    *,
    fields: list[str],
    texts_of_request: Any,
    flags: Any,
    con_id: int,
) -> None:
    """Every request gets complete frames that carry its id."""
    names = ("symbol", "sec_type", "last_trade_date", "multiplier", "exchange", "currency")
    chosen = dict(zip(names, fields, strict=False))
    contract = fields_of("AAPL", **(chosen if con_id % 2 else {"con_id": con_id}))
    end, size, duration, what = texts_of_request
    use_rth, keep, style = flags
    setting = Setting(MARKET, 178, int(NOW.timestamp()))
    requests = (
        ContractRequest(7, contract),
        HeadRequest(7, contract, use_rth, what, style),
        HistoryRequest(
            *(7, contract, end, size, duration, use_rth, what, style), keep_up_to_date=keep
        ),
    )
    for request in requests:
        frames = split_frames(answer(setting, request).data)
        assert frames
        assert all("7" in frame[1:4] for frame in frames)
