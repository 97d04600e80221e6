"""What the gateway has refused for lack of a permission, and which requests that concerns.

A refusal concerns one exchange, security type and what_to_show, and is retried after a day. If
another session of the login receives the data, or a disclaimer must be accepted, it concerns every
request, and only for minutes.

Not here: recognizing such errors (``ib.protocol.error_codes``), the record
(``ib.pacing.shared_state``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from sqlite3 import Connection

from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.errors import EntitlementError
from ktrdr_pipelines.ib.pacing.gateway_memory import LONGEST_BLOCK_S, Block, SharedMemory
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.protocol.contract_messages import Candidate
from ktrdr_pipelines.ib.protocol.error_codes import concerns_session

BLOCKED_S, SESSION_BLOCKED_S = LONGEST_BLOCK_S, 300.0
"""Seconds that a refusal counts: for a missing permission, and for a session elsewhere."""

_EVERYTHING = "everything"


def wall_s() -> float:
    """Return this machine's time in seconds since 1970."""
    return system_now().timestamp()


@dataclass(frozen=True, slots=True)
class Entitlement:
    """What a permission is for: listing exchange, security type and what_to_show."""

    exchange: str
    sec_type: str
    what_to_show: str

    def __str__(self) -> str:
        return f"{self.exchange} {self.sec_type} {self.what_to_show}"


def entitlement_of(instrument: Instrument, contract: Candidate) -> Entitlement:
    """Return the permission that the bars of an instrument need."""
    return Entitlement(
        contract.primary_exchange or contract.exchange,
        contract.sec_type,
        instrument.what_to_show.value,
    )


class Entitlements:
    """The refusals of one gateway; those of other processes count from the first check on."""

    def __init__(self, rate_limiter: RateLimiter, *, clock: Callable[[], float] = wall_s) -> None:
        self._rate_limiter, self._clock = rate_limiter, clock
        self._blocks: dict[str, Block] | None = None
        self._met: set[str] = set()

    def check(self, entitlement: Entitlement, what: str, *, probes: bool = False) -> None:
        """Refuse a request whose permission was refused before and still counts as missing.

        Args:
            entitlement: what the request needs.
            what: the request, for the error.
            probes: only refusals that this connection received itself count.

        Raises:
            EntitlementError: it was refused, and it is too early to request it again.
            DiskError: the shared record cannot be used.
        """
        now = self._clock()
        for name in (_EVERYTHING, str(entitlement)):
            if name not in self._known() or (probes and name not in self._met):
                continue
            self._blocks = None  # ktrdr doctor may have made all processes forget it since
            block = self._known().get(name)
            if block is None or block.until <= now:
                continue
            error = EntitlementError(
                what,
                reason=f"not requested: {block.entitlement} was refused ({block.reason})",
                hint=f"It is requested again in {(block.until - now) / 60:.0f} min; once the "
                "permission is granted, 'ktrdr doctor' clears such refusals at once",
                code=block.code,
            )
            error.was_sent = False
            error.entitlement, error.retry_in_s = str(entitlement), block.until - now
            raise error

    def note(self, entitlement: Entitlement, error: EntitlementError) -> None:
        """Record a refusal, and add the permission, its duration and a hint to the error.

        Raises:
            DiskError: the shared record cannot be used.
        """
        is_session = concerns_session(error.code, error.reason)
        name = _EVERYTHING if is_session else str(entitlement)
        lasts_s = SESSION_BLOCKED_S if is_session else BLOCKED_S
        block = Block(name, error.reason, error.code, self._clock() + lasts_s)
        error.entitlement, error.retry_in_s = str(entitlement), lasts_s
        if not is_session:
            error.hint = f"{error.hint} The missing permission is {entitlement}"
        self._known()[name] = block
        self._met.add(name)
        self._rate_limiter.remember(lambda memory, database: memory.block(database, block))

    def granted(self, entitlement: Entitlement) -> None:
        """Remove refusals that a response has shown to be over.

        Raises:
            DiskError: the shared record cannot be used.
        """
        for name in (_EVERYTHING, str(entitlement)):
            if self._known().pop(name, None) is not None:
                self._met.discard(name)
                self._forget(name)

    def _forget(self, name: str) -> None:
        def forget(memory: SharedMemory, database: Connection) -> None:
            memory.allow(database, name)

        self._rate_limiter.remember(forget)

    def _known(self) -> dict[str, Block]:
        if self._blocks is None:
            now = self._clock()
            blocks = self._rate_limiter.remember(
                lambda memory, database: memory.blocks(database, now)
            )
            self._blocks = {block.entitlement: block for block in blocks}
        return self._blocks
