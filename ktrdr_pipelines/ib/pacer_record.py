"""The requests of every process to one gateway: what was sent, what is open, who waits.

Each operation is one short transaction, begun as a writer, so that decisions of several processes
follow one another. Stamps are seconds since the machine started; rows of another start of the
machine count for nothing. Not here: the rules (``core.pacing``, ``core.turns``), the file
(``ib.pacer_file``), waiting (``ib.pacer``).
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ktrdr_pipelines.core.breaker import depth_of
from ktrdr_pipelines.core.inflight import Sample
from ktrdr_pipelines.core.pacing import PacedRequest, Pacing, RequestKind
from ktrdr_pipelines.core.turns import Turn, Waiting, next_pause_s, turn
from ktrdr_pipelines.ib.pacer_file import PacerFile
from ktrdr_pipelines.ib.pacer_memory import PacerMemory, Vitals
from ktrdr_pipelines.ib.pacer_rows import RequestRows
from ktrdr_pipelines.ib.pacer_upkeep import forget_future, last_pause, prune, set_pause
from ktrdr_pipelines.limits import IbLimitsRegistry

LONGEST_SLEEP_S = 10.0
"""How long a waiting request may sleep before it looks again whether its turn has come."""

SILENCE_S = LONGEST_SLEEP_S + 5.0
"""How long one that does not look again still stands before others; its process may be dead."""

PRUNE_S = 5.0
"""How often one process drops rows that matter no more."""

_INSERT = (
    "INSERT INTO requests (boot, owner, state, at, until, kind, contract, identical, weight,"
    " small, tail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
T = TypeVar("T")


class Sending:
    """A message to be written once to the gateway's socket, when its turn has come."""

    def __init__(self, write: Callable[[], None], clock: Callable[[], float]) -> None:
        self._write, self._clock = write, clock
        self.at: float | None = None

    def written_at(self) -> float:
        """Write it, if it is not written yet, and return the time after it."""
        if self.at is None:
            self._write()
            self.at = self._clock()
        return self.at


@dataclass(frozen=True, slots=True)
class Place:
    """What an attempt came to: the number of its row, its turn, and whether it was sent.

    ``is_paused`` says that what keeps it is a pause after a violation. The turn of what was sent
    is the time at which it was.
    """

    number: int
    turn: Turn
    sent: bool
    is_paused: bool = False


class PacerRecord:
    """One process's access to the shared record.

    Args:
        folder: where the file lies.
        boot: name of this run of the machine.
        owner: name of who asks through this object, unlike any other's.
        pacing: the rules.
        clock: seconds since the machine started.
    """

    def __init__(
        self, folder: Path, *, boot: str, owner: str, pacing: Pacing, clock: Callable[[], float]
    ) -> None:
        self._file = PacerFile(folder, on_loss=self._start_over)
        self._boot, self._owner = boot, owner
        self._pacing, self._clock = pacing, clock
        self._memory = PacerMemory(boot)
        self._pruned_at = -PRUNE_S
        self._is_begun = False
        self.places = pacing.in_flight

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        self._file.close()

    def attempt(
        self, request: PacedRequest, number: int | None, sending: Sending, *, hold_s: float
    ) -> Place:
        """Send now if the rules allow it, else stand in line until the earliest time.

        It is written inside the transaction, and its stamp is taken after that: no process writes
        between another's decision and its message, so the rules hold at the socket however long
        a process stands still.

        Args:
            request: what is to be sent.
            number: the row of an earlier attempt, or None.
            sending: writes it; what was written in an attempt that failed later is only noted.
            hold_s: how long the place stays taken after sending if it is never given back.

        Raises:
            RecordBusyError: another process is writing; try again in a moment.
        """
        with self._transaction() as database:
            now = self._clock()
            self._prune(database, now)
            mine = self._stand(database, request, number, now)
            chance = self._turn(database, request, mine, now)
            sent = sending.at is not None or chance.is_now(now)
            if sent:
                chance = Turn(sending.written_at(), has_place=True)
            paused_until = last_pause(database, self._boot).until
            state = "open" if sent else "waiting"
            at = chance.at
            until = at + hold_s if sent else now + SILENCE_S
            database.execute(
                "UPDATE requests SET state = ?, at = ?, until = ? WHERE number = ?",
                (state, at, until, mine),
            )
        return Place(mine, chance, sent, is_paused=now < paused_until == chance.at)

    def release(self, number: int) -> None:
        """Give a place back: the gateway has said something about the request."""
        with self._transaction() as database:
            self._release(database, number)

    def answered(self, number: int, size: str, sent_at: float) -> None:
        """Give a place back: bars came, and say how busy the gateway is."""
        with self._transaction() as database:
            now = self._clock()
            held = RequestRows(database, self._boot).held(now).values()
            metered = sum(request.is_metered for requests in held for request in requests)
            sample = Sample(sent_at, now, metered)
            self._release(database, number)
            flight = self._memory.answered(database, size, sample)
            if self._pacing.adapts:
                self.places = flight.places(now)

    def remember(self, act: Callable[[PacerMemory, sqlite3.Connection], T]) -> T:
        """Read or write what all processes remember of the gateway."""
        with self._transaction() as database:
            return act(self._memory, database)

    def vitals(self) -> Vitals:
        """Say how the gateway is, as all processes together know it."""
        with self._transaction() as database:
            now = self._clock()
            paused_until = last_pause(database, self._boot).until
            vitals = self._memory.vitals(database, now)
            return replace(vitals, paused_s=max(paused_until - now, 0.0))

    def shorten(self, number: int, *, hold_s: float) -> None:
        """Keep a place only a little longer: the request was cancelled."""
        with self._transaction() as database:
            database.execute(
                "UPDATE requests SET until = min(until, ?) WHERE number = ?",
                (self._clock() + hold_s, number),
            )

    def withdraw(self, number: int) -> None:
        """Take back a request that was never sent."""
        with self._transaction() as database:
            database.execute("DELETE FROM requests WHERE number = ?", (number,))

    def pause(self) -> float:
        """Pause all requests of all processes after a violation; give the seconds from now.

        Several complaints about the same burst make one pause.
        """
        with self._transaction() as database:
            now = self._clock()
            last = last_pause(database, self._boot)
            if last.length_s is not None and last.until > now:
                return last.until - now
            length_s = next_pause_s(last.length_s, now - last.until)
            set_pause(database, self._boot, until=now + length_s, length_s=length_s)
            return length_s

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction; the first looks whether the record is of this run of the machine."""
        with self._file.transaction() as database:
            if not self._is_begun:
                forget_future(database, self._boot, now=self._clock(), patience_s=SILENCE_S)
                self._is_begun = True
            yield database

    def _release(self, database: sqlite3.Connection, number: int) -> None:
        which = (number,)
        row = database.execute("SELECT kind FROM requests WHERE number = ?", which).fetchone()
        if row is not None:
            database.execute("UPDATE requests SET state = 'done' WHERE number = ?", which)
            self._memory.lives(database, depth_of(RequestKind(row[0])))

    def _stand(
        self, database: sqlite3.Connection, request: PacedRequest, number: int | None, now: float
    ) -> int:
        """Give the number of this request in the line, at its end if it has none (any more)."""
        row = database.execute("SELECT 1 FROM requests WHERE number = ?", (number,)).fetchone()
        if row is not None and number is not None:
            return number
        return self._insert(database, request, "waiting", now, until=now + SILENCE_S)

    def _insert(
        self,
        database: sqlite3.Connection,
        request: PacedRequest,
        state: str,
        at: float,
        *,
        until: float,
    ) -> int:
        asked = (request.kind.value, request.contract, request.identical)
        kind = (request.weight, request.small, request.tail)
        values = (self._boot, self._owner, state, at, until, *asked, *kind)
        return int(database.execute(_INSERT, values).lastrowid or 0)

    def _turn(
        self, database: sqlite3.Connection, request: PacedRequest, mine: int, now: float
    ) -> Turn:
        rows = RequestRows(database, self._boot, but=mine)
        if self._pacing.adapts:
            self.places = self._memory.flight(database).places(now)
        chance = turn(
            replace(self._pacing, in_flight=self.places),
            me=Waiting(mine, self._owner, now, request),
            sent=rows.sent(self._pacing, request, now),
            open_requests=rows.held(now),
            others=rows.waiting(now),
            now=now,
        )
        if request.kind is RequestKind.MESSAGE:
            return chance
        paused_until = last_pause(database, self._boot).until
        return Turn(max(chance.at, paused_until), chance.has_place)

    def _prune(self, database: sqlite3.Connection, now: float) -> None:
        """Drop what can matter to nobody, now and then."""
        if now - self._pruned_at >= PRUNE_S:
            self._pruned_at = now
            horizon_s = self._pacing.horizon_s(small=True)
            prune(database, self._boot, now=now, horizon_s=horizon_s)

    def _start_over(self, database: sqlite3.Connection) -> None:
        """Begin after a loss as if the budget had just been used up.

        Small requests wait a whole window; everything waits as long as an identical request
        would have to.
        """
        now = self._clock()
        everything = PacedRequest(
            RequestKind.BARS, "", "", weight=IbLimitsRegistry.WINDOW_MOST.value, small=True
        )
        self._insert(database, everything, "done", now, until=now)
        cool_down_s = self._pacing.horizon_s(small=False)
        set_pause(database, self._boot, until=now + cool_down_s, length_s=cool_down_s)
