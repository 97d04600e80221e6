"""Which contract a symbol stands for: learned once, pinned, and refused when it drifts.

Not here: asking the gateway (``ib.source``), files (``store.bars.bar_store``).
"""

from ktrdr_pipelines.domain.instruments import Identity, Series, identity_of
from ktrdr_pipelines.errors import ContractUnknownError, ForeignIdentityError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.layout import store_origin
from ktrdr_pipelines.sync.engine.source_session import SourceSession


async def learn_identity(
    source_session: SourceSession, store: BarStore, series: Series
) -> Identity:
    """Say what the bars of a series are on the connected gateway.

    Raises:
        ForeignIdentityError: the store holds another contract, another kind or other bars under
            this symbol.
        GatewayError: the gateway does not know the contract, or could not be asked.
    """
    instrument = series.instrument
    try:
        contract_id = await source_session.ask(lambda source: source.contract_id(instrument))
    except ContractUnknownError as error:
        raise _gone(error, store, series) from error
    origin = (await source_session.source()).origin
    identity = identity_of(series, contract_id=contract_id, origin=origin)
    stored = store.identity(series)
    if stored is not None and stored != identity:
        raise ForeignIdentityError(
            f"bars of {identity} cannot go into the files of {series}",
            reason=f"they hold {stored}",
            hint="Give the instrument another symbol in the universe, or load it into another "
            "store: ktrdr init with KTRDR_DATA set to a new folder",
        )
    pinned = store.ledger.pinned_contract(series.symbol, origin)
    if pinned is None:
        store.ledger.pin_contract(
            series.symbol, origin, contract_id, str(identity), source_session.retry_policy.clock()
        )
    elif pinned != contract_id:
        raise ForeignIdentityError(
            f"{series.symbol} stands for contract id {pinned}",
            reason=f"the gateway now says {contract_id}",
            hint="If the instrument was replaced, give the new one another symbol; if the "
            "universe is too vague, set con_id or primary_exchange there",
        )
    return identity


def _gone(error: ContractUnknownError, store: BarStore, series: Series) -> ContractUnknownError:
    """Say what it means that a gateway does not know a contract which it knew before."""
    known = known_contract(store, series)
    if known is None:
        return error
    return ContractUnknownError(
        error.what,
        reason=f"{error.reason}, though it was contract {known} before",
        hint="If it was delisted or has expired, say `end:` with its last session date in the "
        f"universe, or run `ktrdr universe retire {series.symbol}`: its bars stay. During the "
        "gateway's nightly reset this can be wrong; it is asked again",
        code=error.code,
    )


def known_contract(store: BarStore, series: Series) -> int | None:
    """Give the contract id of a series as far as the store knows it, asking nobody."""
    stored = store.identity(series)
    if stored is not None:
        return stored.contract_id
    origin = store_origin(store.layout)
    return store.ledger.pinned_contract(series.symbol, origin) if origin else None
