"""A client that sends frames over a plain socket, also those that no real client sends."""

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ktrdr_pipelines.simulator.faults.fault_file import parse_faults
from ktrdr_pipelines.simulator.market.market import Market
from ktrdr_pipelines.simulator.server import SimulatorServer, running_simulator
from ktrdr_pipelines.simulator.simulated_gateway import Behaviour
from ktrdr_pipelines.simulator.variants import Variants

Frame = list[str]

AAPL = ("0", "AAPL", "STK", "", "0.0", "", "", "SMART", "", "USD", "", "")
END = "20240109-21:00:00"
WAIT_S = 60.0


def framed(*fields: object) -> bytes:
    """Return the bytes of a message, without the code under test."""
    payload = "".join(f"{value}\0" for value in fields).encode()
    return struct.pack(">I", len(payload)) + payload


@dataclass
class RawClient:
    """A connected socket; frames that were read on the way to another one are in ``seen``."""

    sock: socket.socket
    seen: list[Frame] = field(default_factory=list)

    def send(self, *fields: object) -> None:
        self.sock.sendall(framed(*fields))

    def bars(self, number: int, *, size: str = "1 hour", end: str = END, **other: str) -> None:
        """Request bars."""
        options = {"duration": "1 D", "what": "TRADES", "rth": "1"} | other
        texts = (end, size, options["duration"], options["rth"], options["what"], "2", "0", "")
        self.send(20, number, *AAPL, 0, *texts)

    def head(self, number: int, what: str = "TRADES") -> None:
        """Request a head timestamp."""
        self.send(87, number, *AAPL, 0, 1, what, 2)

    def cancel(self, number: int) -> None:
        """Cancel a request for bars."""
        self.send(25, 1, number)

    def frame(self) -> Frame | None:
        """Read one frame; None at the end of the connection."""
        body = self.payload()
        return None if body is None else body.decode().split("\0")[:-1]

    def payload(self) -> bytes | None:
        """Read the bytes of one frame; None at the end of the connection."""
        header = self._exactly(4)
        return None if header is None else self._exactly(struct.unpack(">I", header)[0])

    def until(self, kind: int, number: int | None = None) -> Frame:
        """Read until a message of a kind, or an error of a code, arrives."""
        while (frame := self.frame()) is not None:
            self.seen.append(frame)
            is_error = frame[0] == "4"
            found = int(frame[3]) if is_error else int(frame[0])
            named = frame[2] if is_error else frame[1]
            if found == kind and (number is None or named == str(number)):
                return frame
        raise AssertionError(f"closed before {kind}: {self.seen[-5:]}")

    def is_ended(self) -> bool:
        """Read to the end of the connection."""
        try:
            while (frame := self.frame()) is not None:
                self.seen.append(frame)
        except ConnectionError:
            return True
        return True

    def receives_none_of(self, *kinds: int) -> bool:
        """Return whether no message of some kinds arrives before the response to a time request."""
        self.send(49, 1)
        before = len(self.seen)
        self.until(49)
        return not {int(frame[0]) for frame in self.seen[before:]} & set(kinds)

    def _exactly(self, count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                return None
            data += piece
        return bytes(data)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait until a condition of a server in another thread holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def raw_client(server: SimulatorServer, client_id: int = 1) -> Iterator[RawClient]:
    """Connect, complete the handshake and start the API with a client id."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_S) as sock:
        sock.sendall(b"API\0\0\0\0\tv157..178" + framed(71, 2, client_id, ""))
        client = RawClient(sock)
        yield client


@contextmanager
def faulty_gateway(
    market: Market,
    faults: str,
    *,
    now: str,
    variants: Variants = Variants(),  # noqa: B008 - immutable
) -> Iterator[tuple[SimulatorServer, RawClient]]:
    """Run a gateway with the entries of a fault file, and a client of it."""
    behaviour = Behaviour(faults=parse_faults(f"faults: [{faults}]", "faults"), variants=variants)
    with (
        running_simulator(market, now=now, behaviour=behaviour) as server,
        raw_client(server) as client,
    ):
        yield server, client


def closes(frame: Frame) -> list[str]:
    """Return the closing prices of message 17."""
    return frame[9::8]


def dates(frame: Frame) -> list[str]:
    """Return the timestamps of message 17."""
    return frame[5::8]
