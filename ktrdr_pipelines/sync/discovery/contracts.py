"""Which contract a symbol stands for: learned once, pinned, and refused when it changes.

Not here: the request for contract details (``ib.source``), files (``store.bars.bar_store``).
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from ktrdr_pipelines.domain.instruments import (
    HeldVenue,
    Identity,
    Instrument,
    Origin,
    Series,
    conflict_of,
    identity_of,
)
from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ContractUnknownError, ForeignIdentityError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import StoreLayout, store_origin
from ktrdr_pipelines.store.ledger.ledger import open_ledger

if TYPE_CHECKING:
    # What needs no gateway does not import the connection to one.
    from ktrdr_pipelines.ib.protocol.contract_messages import Candidate
    from ktrdr_pipelines.sync.engine.source_session import SourceSession


async def learn_identity(
    source_session: "SourceSession", store: BarStore, series: Series
) -> Identity:
    """Return the identity of a series' bars on the connected gateway, and pin its contract.

    Raises:
        ForeignIdentityError: the store holds another contract, another kind or other bars under
            this symbol.
        GatewayError: the gateway does not know the contract, or the request failed.
    """
    instrument = series.instrument
    try:
        contract_id = await source_session.ask(lambda source: source.contract_id(instrument))
    except ContractUnknownError as error:
        known = known_contract(store, series)
        if known is None:
            raise
        raise ContractUnknownError(
            error.what,
            reason=f"{error.reason}, although it was contract {known} before",
            hint="During the gateway's nightly reset this error can be temporary; it is retried "
            "later. If the instrument was delisted or has expired, say so in the universe: "
            f"`ktrdr universe set {series.symbol} ended=true`, or delisted=DATE with the date of "
            "its last session. Its bars stay and can be queried, and nothing more is requested",
            code=error.code,
        ) from error
    origin = (await source_session.source()).origin
    identity = identity_of(series, contract_id=contract_id, origin=origin)
    stored = store.identity(series)
    if stored is not None and stored != identity:
        raise ForeignIdentityError(
            f"adding bars of {identity} to the files of {series}",
            reason=f"the files hold {stored}",
            hint=_OTHER_SYMBOL,
        )
    for held in held_identities(store, series.symbol):
        if conflict := conflict_of(held, instrument, contract_id):
            raise ForeignIdentityError(
                f"adding bars of {identity} to those of {series.symbol}",
                reason=conflict,
                hint=_OTHER_SYMBOL,
            )
    _require_venue(store, instrument)
    pinned = store.ledger.contracts.of(series.symbol, origin)
    if pinned is None:
        store.ledger.contracts.pin(
            series.symbol, origin, contract_id, str(identity), source_session.retry_policy.clock()
        )
    elif pinned != contract_id:
        raise ForeignIdentityError(
            f"contract of {series.symbol}",
            reason=f"the gateway now returns id {contract_id}, but the store recorded {pinned}",
            hint="If the instrument was replaced, give the new one another symbol; if its entry "
            "in the universe is ambiguous, set con_id or primary_exchange there",
        )
    return identity


def _require_venue(store: BarStore, instrument: Instrument) -> None:
    """Refuse another venue than that of held bars; record the venue of a symbol without bars."""
    symbol, venue = instrument.symbol, store.ledger.venues.of(instrument.symbol)
    if venue is not None and (conflict := venue.conflict_with(instrument)):
        if next(held_identities(store, symbol), None) is not None:
            raise ForeignIdentityError(
                f"adding bars to those of {symbol}",
                reason=conflict,
                hint=f"Restore the previous value, run `ktrdr universe retire {symbol}` first, or "
                "give the instrument another symbol",
            )
        venue = None
    if venue is None:
        store.ledger.venues.record(symbol, HeldVenue.of(instrument))


_OTHER_SYMBOL = (
    "Give the instrument another symbol in the universe, or load it into another store: run "
    "`ktrdr init` with KTRDR_DATA set to a new folder. If it is the same contract under a new "
    "name, correct `symbol` in its entry, or set `con_id` to that of the bars"
)


async def described_contract(
    source_session: "SourceSession", store: BarStore, series: Series, *, pins: bool
) -> "Candidate":
    """Return a symbol's contract as the connected gateway describes it.

    Args:
        source_session: of a gateway.
        store: where its contract is pinned.
        series: any series of the symbol.
        pins: whether to pin the contract, with its description, to the symbol; False for a symbol
            that is not in the universe, which may become another instrument there.

    Raises: as ``learn_identity``.
    """
    identity = await learn_identity(source_session, store, series) if pins else None
    found = await source_session.ask(lambda source: _described(source, series.instrument))
    if identity is not None:
        at = source_session.retry_policy.clock()
        store.ledger.contracts.pin(
            series.symbol, identity.origin, found.contract_id, str(found), at
        )
    return found


async def _described(source: BarSource, instrument: Instrument) -> "Candidate":
    from ktrdr_pipelines.ib.source import GatewaySource  # noqa: PLC0415  (only where one is used)

    if not isinstance(source, GatewaySource):
        raise TypeError(f"{source!r} is no gateway, and describes no contracts")
    return await source.contract(instrument)


def held_identities(store: BarStore, symbol: str) -> Iterator[Identity]:
    """Yield the identity of each timeframe of a symbol that has files."""
    for timeframe in Timeframe:
        for row in store.files.of_symbol(symbol, timeframe).values():
            yield row.identity
            break


def pinned_contract(store: BarStore, symbol: str, origin: Origin | None) -> int | None:
    """Return the contract id of a symbol by its bars, else by the ledger; None if neither has it.

    Args:
        store: the store.
        symbol: the universe's key.
        origin: only bars of this origin count, and only contracts of its gateways.
    """
    for held in held_identities(store, symbol):
        if origin in {None, held.origin}:
            return held.contract_id
    return store.ledger.contracts.of(symbol, origin)


def pinned_in(layout: StoreLayout) -> Callable[[str, Origin], int | None]:
    """Return a function that looks up the contract id of a symbol and an origin in a store.

    It opens the ledger for each look-up: connections ask from threads of their own.
    """

    def pinned(symbol: str, origin: Origin) -> int | None:
        with closing(open_ledger(layout)) as ledger:
            return pinned_contract(BarStore(layout, ledger), symbol, origin)

    return pinned


def known_contract(store: BarStore, series: Series) -> int | None:
    """Return the contract id of a series from the store, None if the store does not know it."""
    stored = store.identity(series)
    if stored is not None:
        return stored.contract_id
    return store.ledger.contracts.of(series.symbol, store_origin(store.layout))
