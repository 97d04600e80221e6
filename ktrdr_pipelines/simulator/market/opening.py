"""Which market a gateway answers from: recorded bars, invented ones, or none at all."""

from pathlib import Path

from ktrdr_pipelines.simulator.market.market import Market
from ktrdr_pipelines.simulator.market.recorded import ReplayMarket
from ktrdr_pipelines.simulator.market.synthetic import SyntheticMarket
from ktrdr_pipelines.simulator.variants import MarketVariants


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
