"""One client's session, without a socket."""

import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktrdr_pipelines.simulator.protocol.client_session import (
    Abandon,
    Action,
    ClientSession,
    Close,
    Refuse,
    Send,
    Serve,
    Stage,
)
from ktrdr_pipelines.simulator.protocol.messages import ContractRequest, HeadRequest, HistoryRequest
from ktrdr_pipelines.simulator.protocol.replies import ApiError
from ktrdr_pipelines.simulator.requests.request_limits import GatewayRules
from tests.simulator.rawclient import framed

SplitFrames = Callable[[bytes], list[list[str]]]

NOW = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)
CONTRACT = ("0", "AAPL", "STK", "", "0.0", "", "", "SMART", "", "USD", "", "")
HISTORY = ("20240110-20:00:00", "1 hour", "1 D", "1", "TRADES", "2", "0", "")
FUZZ = st.lists(st.binary(max_size=40), max_size=8)


def hello(offer: bytes = b"v157..178") -> bytes:
    """Return a greeting and an offer of versions."""
    return b"API\0" + struct.pack(">I", len(offer)) + offer


def new_session(rules: GatewayRules | None = None) -> ClientSession:
    """Return a session before its greeting."""
    return ClientSession(rules or GatewayRules(), account="SIM000001", now=lambda: NOW)


def started(rules: GatewayRules | None = None, client_id: int = 5) -> ClientSession:
    """Return a session after startApi."""
    session = new_session(rules)
    session.receive(hello() + framed(71, 2, client_id, ""))
    return session


def sent(actions: list[Action], split_frames: SplitFrames) -> list[list[str]]:
    """Return the fields of all frames to send."""
    return split_frames(b"".join(action.data for action in actions if isinstance(action, Send)))


def history(request_id: int) -> bytes:
    """Return the bytes of a historical request."""
    return framed(20, request_id, *CONTRACT, 0, *HISTORY)


def test_the_handshake_sends_version_and_time_only(split_frames: SplitFrames) -> None:
    """One frame of two fields follows the greeting; the rest waits for startApi."""
    assert sent(new_session().receive(hello()), split_frames) == [["178", "20240110 15:00:30 EST"]]


@pytest.mark.parametrize(
    ("offer", "version"),
    [(b"v157..178", 178), (b"v100..226", 178), (b"v100..157", 157), (b"v160..163", 163)],
)
def test_the_highest_common_version_is_spoken(offer: bytes, version: int) -> None:
    """The gateway supports 157 to 178, and takes the highest offered."""
    session = new_session()
    session.receive(hello(offer))
    assert session.version == version


@pytest.mark.parametrize("offer", [b"v100..156", b"v179..226"])
def test_a_client_without_a_common_version_is_closed(offer: bytes) -> None:
    """Without a common version the gateway closes."""
    assert new_session().receive(hello(offer)) == [Close()]


def test_start_up_replies_come_in_a_real_gateways_order(split_frames: SplitFrames) -> None:
    """Accounts, next id, then three farms; 15 and 9 have exactly three fields."""
    session = new_session()
    session.receive(hello())
    frames = sent(session.receive(framed(71, 2, 5, "")), split_frames)
    assert frames[:2] == [["15", "1", "SIM000001"], ["9", "1", "1"]]
    assert [fields[3] for fields in frames[2:]] == ["2104", "2106", "2158"]
    assert all(len(fields) == 6 for fields in frames[2:])


def test_requests_before_start_api_are_ignored() -> None:
    """No request gets a response before the client names its id."""
    session = new_session()
    session.receive(hello())
    assert session.receive(framed(49, 1) + history(1)) == []


def test_a_client_id_in_use_is_326_and_then_closed(split_frames: SplitFrames) -> None:
    """The second client of an id gets 326 after startApi, and its socket is closed."""
    rules = GatewayRules()
    started(rules)
    second = new_session(rules)
    second.receive(hello())
    actions = second.receive(framed(71, 2, 5, ""))
    assert sent(actions, split_frames)[0][2:4] == ["-1", "326"]
    assert actions[-1] == Close()


def test_a_client_id_is_free_again_once_its_holder_left() -> None:
    """The id belongs to the connected socket."""
    rules = GatewayRules()
    started(rules).leave()
    assert started(rules).stage is Stage.READY


def test_at_most_32_clients_are_connected(split_frames: SplitFrames) -> None:
    """The 33rd client is refused and closed."""
    rules = GatewayRules()
    sessions = [started(rules, client_id) for client_id in range(33)]
    assert [session.stage for session in sessions] == [Stage.READY] * 32 + [Stage.CLOSED]


def test_data_requests_are_served() -> None:
    """Contract, head and historical requests are decoded and returned to be served."""
    session = started()
    contract = session.receive(framed(9, 8, 1, *CONTRACT, 0, "", "", ""))
    head = session.receive(framed(87, 2, *CONTRACT, 0, 1, "TRADES", 2))
    bars = session.receive(history(3))
    requests = [action.request for action in contract + head + bars if isinstance(action, Serve)]
    assert [type(request) for request in requests] == [
        ContractRequest,
        HeadRequest,
        HistoryRequest,
    ]
    assert isinstance(requests[2], HistoryRequest)
    assert (requests[2].duration, requests[2].use_rth) == ("1 D", True)
    assert requests[2].contract.symbol == "AAPL"


def test_the_51st_open_request_is_322_over_all_clients() -> None:
    """Historical and head requests of all clients share fifty slots."""
    rules = GatewayRules()
    clients = [started(rules, client_id) for client_id in (1, 2)]
    for number in range(50):
        message = history(number) if number % 2 else framed(87, number, *CONTRACT, 0, 1, "T", 2)
        assert isinstance(clients[number % 2].receive(message)[0], Serve)
    (refused,) = clients[0].receive(history(99))
    assert isinstance(refused, Refuse)
    assert refused.error.code == 322
    assert "Only 50 simultaneous API historical data requests allowed." in refused.error.text


def test_a_head_request_keeps_its_slot_until_it_is_cancelled() -> None:
    """A served head timestamp counts as open until message 90."""
    rules = GatewayRules()
    session = started(rules)
    (serve,) = session.receive(framed(87, 1, *CONTRACT, 0, 1, "TRADES", 2))
    assert isinstance(serve, Serve)
    session.answered(serve.request)
    assert len(rules.open_requests) == 1
    session.receive(framed(90, 1))
    assert not rules.open_requests


def test_leaving_frees_open_requests() -> None:
    """The requests of a disconnected client do not count."""
    rules = GatewayRules()
    session = started(rules)
    session.receive(history(1))
    session.leave()
    assert not rules.open_requests


@pytest.mark.parametrize(
    ("message", "code"),
    [(history(1), 386), (framed(87, 1, *CONTRACT, 0, 1, "TRADES", 2), 322)],
)
def test_a_ticker_id_in_flight_cannot_be_used_again(message: bytes, code: int) -> None:
    """A second request with an open id is refused: 386 for history, 322 for others."""
    session = started()
    session.receive(history(1))
    (refused,) = session.receive(message)
    assert isinstance(refused, Refuse)
    assert refused.error.code == code


def test_cancelling_in_flight_is_162_and_afterwards_366() -> None:
    """A cancel is confirmed once; a second one finds no request."""
    session = started()
    session.receive(history(4))
    cancelled = (
        "Historical Market Data Service error message:API historical data query cancelled: 4"
    )
    nothing = "No historical data query found for ticker id:4"
    assert session.receive(framed(25, 1, 4)) == [Abandon(4, ApiError(162, cancelled, 4))]
    assert session.receive(framed(25, 1, 4)) == [Abandon(4, ApiError(366, nothing, 4))]


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (framed(61, 1), ["62", "1"]),
        (framed(5, 1), ["53", "1"]),
        (framed(16, 1), ["53", "1"]),
        (framed(99, 0), ["102"]),
        (framed(7, 3, 9, 0, "", "", "", "", "", ""), ["55", "1", "9"]),
        (framed(62, 1, 3, "All", "NoSuchTag"), ["64", "1", "3"]),
        (framed(74, 1, 4, "SIM000001", ""), ["72", "1", "4"]),
        (framed(92, 5, "SIM000001", ""), ["94", "5", "0.0", "0.0", "0.0"]),
        (framed(8, 1, 1), ["9", "1", "1"]),
        (framed(17, 1), ["15", "1", "SIM000001"]),
        (framed(49, 1), ["49", "1", str(int(NOW.timestamp()))]),
    ],
)
def test_account_requests_get_a_response(
    message: bytes, reply: list[str], split_frames: SplitFrames
) -> None:
    """Requests of a client's start-up get a response at once."""
    assert sent(started().receive(message), split_frames) == [reply]


@pytest.mark.parametrize(
    ("message", "row", "end"),
    [
        (framed(6, 2, 1, ""), ["6", "2"], ["54", "1", "SIM000001"]),
        (framed(76, 1, 8, "SIM000001", "", 0), ["73", "1", "8", "SIM000001", ""], ["74", "1", "8"]),
        (
            framed(62, 1, 3, "All", "NetLiquidation"),
            ["63", "1", "3", "SIM000001"],
            ["64", "1", "3"],
        ),
    ],
)
def test_the_account_is_sent_row_by_row(
    message: bytes, row: list[str], end: list[str], split_frames: SplitFrames
) -> None:
    """Updates, summary and updates by model hold the requested values, then their end."""
    *rows, last = sent(started().receive(message), split_frames)
    values = [fields for fields in rows if "NetLiquidation" in fields]
    assert [fields[: len(row)] for fields in values] == [row]
    at = values[0].index("NetLiquidation")
    assert values[0][at + 1 : at + 3] == ["1000000.00", "USD"]
    assert last == end


@pytest.mark.parametrize(
    "message",
    [
        *(framed(14, 1, 5), framed(15, 1, 1), framed(59, 1, 3)),
        *(framed(6, 2, 0, ""), framed(63, 1, 3), framed(64, 1), framed(75, 1, 4), framed(77, 1, 5)),
    ],
)
def test_settings_and_ended_subscriptions_get_no_response(
    message: bytes, split_frames: SplitFrames
) -> None:
    """Log level, order binding and market data type, and the ends of account updates."""
    assert sent(started().receive(message), split_frames) == []


@pytest.mark.parametrize("message", [framed(3, 11, "x"), framed(4, 1, 11), framed(21, 2, 11)])
def test_orders_are_refused_as_read_only(message: bytes, split_frames: SplitFrames) -> None:
    """No order is accepted."""
    (error,) = sent(started().receive(message), split_frames)
    assert error[2:4] == ["11", "321"]
    assert "Read-Only" in error[4]


def test_an_unknown_message_type_is_an_error(split_frames: SplitFrames) -> None:
    """The session continues after a message of an unknown type."""
    session = started()
    (error,) = sent(session.receive(framed(1234, "x")), split_frames)
    assert error[3] == "321"
    assert session.stage is Stage.READY


@pytest.mark.parametrize("message", [framed("abc"), framed(20, "x"), framed(25, 1), framed(9)])
def test_an_unreadable_message_is_320(message: bytes, split_frames: SplitFrames) -> None:
    """Invalid fields are refused, and the session continues."""
    session = started()
    (error,) = sent(session.receive(message), split_frames)
    assert error[3] == "320"
    assert session.stage is Stage.READY


@pytest.mark.parametrize("message", [b"\0\0\0\0", b"\x7f\0\0\0", struct.pack(">I", 3) + b"abc"])
def test_a_malformed_frame_is_507_and_closed(message: bytes, split_frames: SplitFrames) -> None:
    """After an invalid frame the stream cannot be read."""
    actions = started().receive(message)
    assert sent(actions, split_frames)[0][2:4] == ["-1", "507"]
    assert actions[-1] == Close()


def test_errors_have_five_fields_for_clients_before_166(split_frames: SplitFrames) -> None:
    """Server version 166 added the sixth field."""
    session = new_session()
    session.receive(hello(b"v100..157"))
    frames = sent(session.receive(framed(71, 2, 5, "")), split_frames)
    assert {len(fields) for fields in frames[2:]} == {5}


def test_a_stream_may_arrive_byte_by_byte(split_frames: SplitFrames) -> None:
    """However the stream is split, the responses are the same."""
    stream = hello() + framed(71, 2, 5, "") + framed(61, 1) + framed(25, 1, 9)
    whole = new_session().receive(stream)
    session = new_session()
    pieces = [action for byte in stream for action in session.receive(bytes([byte]))]
    assert sent(pieces, split_frames) == sent(whole, split_frames)
    for at in range(len(stream)):
        split = new_session()
        actions = split.receive(stream[:at]) + split.receive(stream[at:])
        assert sent(actions, split_frames) == sent(whole, split_frames)


@given(FUZZ)
def test_garbage_instead_of_a_greeting_never_raises(pieces: list[bytes]) -> None:
    """Any bytes in place of a greeting at most end the session."""
    session = new_session()
    for piece in pieces:
        session.receive(piece)


@given(FUZZ)
def test_garbage_after_start_api_never_raises(pieces: list[bytes]) -> None:
    """Any bytes after startApi get a response, or end the session."""
    session = started()
    for piece in pieces:
        session.receive(struct.pack(">I", len(piece)) + piece)
        session.receive(piece)


@given(
    st.sampled_from([3, 4, 6, 7, 9, 20, 21, 25, 49, 58, 62, 71, 76, 87, 90]),
    st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6)),
)
def test_known_messages_of_any_fields_never_raise(type_id: int, fields: list[str]) -> None:
    """A known type with fields of any number and text is served, refused or unreadable."""
    started().receive(framed(type_id, *fields))


def test_the_protocol_needs_no_calendar_library() -> None:
    """Frames, messages and session do not import pandas, so that they import quickly."""
    code = (
        "import sys, ktrdr_pipelines.simulator.protocol.client_session as _; "
        "assert not {'pandas', 'exchange_calendars', 'pyarrow', 'asyncio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
