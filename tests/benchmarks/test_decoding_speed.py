"""The cost of a response from its bytes to bars, beside ib_async's own decoding of these bytes.

ib_async makes a Python object of each bar. Here the same bytes are cut into frames, freed of
account numbers, read, checked for rows that are no bars or implausible, and made an Arrow table.
"""

from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from ib_async.client import Client

from ktrdr_pipelines.domain.bars import moment
from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.ib.connection.accounts import AccountFilter
from ktrdr_pipelines.ib.protocol.bar_messages import (
    ReadBars,
    bars_of,
    history_of,
    reach_of,
    requested_interval,
)
from ktrdr_pipelines.ib.protocol.transport import FrameCutter
from tests.support.costs import costs
from tests.support.fake_gateway import dense_keys, stock

LONGEST = 222
"""Sessions of the longest response, 86,000 bars, during whose reading nothing else is read."""

LEAST = {1: 0.9, 30: 3.0, LONGEST: 3.0}
"""By sessions of minutes in a response, the least ratio to ib_async's speed: half of what it is."""

ROUNDS = 12
"""Responses read by each in turn, of which the fastest counts: it is the least disturbed one."""

READ_BYTES = 256 * 1024
"""What asyncio reads from a socket at once at most."""

SERIES = Series(stock(), Timeframe.M1)
FIRST_DAY = date(2024, 1, 2)


class Decoded:
    """Counts the bars that ib_async decodes, and drops them at the end of a response."""

    def __init__(self) -> None:
        self.bars: list[Any] = []
        self.count = 0

    def historicalData(self, _number: int, bar: Any) -> None:  # noqa: N802  (ib_async's name)
        self.bars.append(bar)

    def historicalDataEnd(self, _number: int, _start: str, _end: str) -> None:  # noqa: N802
        self.count, self.bars = len(self.bars), []


def ib_async_of(decoded: Decoded) -> Any:
    """Return ib_async's client after its handshake, without a socket."""
    client: Any = Client(decoded)
    client._serverVersion = client.decoder.serverVersion = 178
    client._apiReady = True
    return client


def response_of(sessions: int) -> tuple[bytes, int, datetime]:
    """Return the bytes of a response, its number of bars, and the requested end."""
    calendar = calendar_named("XNYS.RTH")
    keys = dense_keys(calendar.key, Timeframe.M1, FIRST_DAY, FIRST_DAY + timedelta(days=400))
    days = calendar.days_of(keys)
    keys = keys[days < np.unique(days)[sessions]]
    generator = np.random.default_rng(1)
    texts: list[str] = []
    for key, price in zip(keys.tolist(), 150 + generator.normal(0, 5, len(keys)), strict=True):
        prices = (price, price + 0.3, price - 0.3, price + 0.1)
        texts += (str(key // 1_000_000), *(f"{one:.2f}" for one in prices))
        texts += (str(generator.integers(100, 99_999)), f"{price:.3f}", "57")
    start, end = (moment(key) for key in (keys[0], keys[-1] + 3_600_000_000))
    reach = [f"{one:%Y%m%d %H:%M:%S} UTC" for one in (start, end)]
    body = "".join(f"{text}\0" for text in ("17", "1", *reach, len(keys), *texts)).encode()
    return len(body).to_bytes(4) + body, len(keys), end


def read(stream: bytes, accounts: AccountFilter, end: datetime, sessions: int) -> ReadBars:
    """Return what a stream of bytes with one response contains."""
    cutter = FrameCutter()
    pieces = (stream[at : at + READ_BYTES] for at in range(0, len(stream), READ_BYTES))
    (frame,) = (frame for piece in pieces for frame in cutter.feed(piece))
    history = history_of(accounts.cleaned(frame)[4:])
    assert reach_of(history) is not None
    return bars_of(history, SERIES, requested_interval(end, f"{sessions} D"))


@pytest.fixture
def accounts() -> AccountFilter:
    """Return the filter of a connection whose gateway has named an account."""
    made = AccountFilter()
    body = b"15\x001\x00DU1234567\x00"
    made.cleaned(len(body).to_bytes(4) + body)
    return made


@pytest.mark.parametrize("sessions", [1, 30, pytest.param(LONGEST, marks=pytest.mark.slow)])
def test_responses_are_read_faster_than_ib_async_decodes_them(
    sessions: int, accounts: AccountFilter, capsys: pytest.CaptureFixture[str]
) -> None:
    """The work of one processor, in the event loop; both read all bars."""
    stream, count, end = response_of(sessions)
    decoded = Decoded()
    client = ib_async_of(decoded)
    assert read(stream, accounts, end, sessions).bars.num_rows == count
    found = costs(
        {
            "own": lambda: read(stream, accounts, end, sessions),
            "ib_async": lambda: client._onSocketHasData(stream),
        },
        ROUNDS,
    )
    own_s, other_s = (found[name].cpu_ms / 1000 for name in ("own", "ib_async"))
    assert decoded.count == count
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{sessions:3} D, {count:6} bars: {own_s * 1e6:7.0f} us, {count / own_s:9.0f} bars/s;"
            f" ib_async {other_s * 1e6:7.0f} us, {count / other_s:9.0f} bars/s;"
            f" ratio {other_s / own_s:.2f}"
        )
    assert other_s / own_s >= LEAST[sessions]
