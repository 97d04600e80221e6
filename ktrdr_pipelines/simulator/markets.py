"""Which market a gateway answers from: recorded bars, invented ones, or none at all."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ktrdr_pipelines.simulator.hours import Hours
from ktrdr_pipelines.simulator.instruments import Instrument
from ktrdr_pipelines.simulator.market import BarQuery, Market, PricedBars, What
from ktrdr_pipelines.simulator.replay import ReplayMarket
from ktrdr_pipelines.simulator.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.variants import MarketVariants


class EmptyMarket:
    """A market without instruments, of a gateway that answers from a record alone."""

    def __repr__(self) -> str:
        return "EmptyMarket()"

    def instruments(self) -> Sequence[Instrument]:
        """Return nothing."""
        return ()

    def hours(self, instrument: Instrument, *, use_rth: bool) -> Hours:
        """Refuse: nothing trades here."""
        raise LookupError(instrument.key, use_rth)

    def bars(self, instrument: Instrument, query: BarQuery) -> PricedBars:
        """Refuse: nothing trades here."""
        raise LookupError(instrument.key, query)

    def head(self, instrument: Instrument, what: What, *, use_rth: bool) -> int | None:
        """Refuse: nothing trades here."""
        raise LookupError(instrument.key, what, use_rth)

    def default_now(self) -> datetime | None:
        """Return the machine's own time."""
        return None


def open_market(
    bars_folder: Path | None,
    seed: int,
    variants: MarketVariants = MarketVariants(),  # noqa: B008 - immutable
) -> Market:
    """Open the recorded bars of a folder, or the synthetic market of a seed and its variants.

    Raises:
        SimulatorError: the folder holds no recorded bars, or one of its files is malformed.
    """
    return SyntheticMarket(seed, variants) if bars_folder is None else ReplayMarket(bars_folder)
