"""Which market a gateway answers from: recorded bars where there is a folder, else invented."""

from pathlib import Path

from ktrdr_pipelines.simulator.market import Market
from ktrdr_pipelines.simulator.replay import ReplayMarket
from ktrdr_pipelines.simulator.synthetic import SyntheticMarket


def open_market(bars_folder: Path | None, seed: int) -> Market:
    """Open the recorded bars of a folder, or the synthetic market of a seed.

    Raises:
        SimulatorError: the folder holds no recorded bars, or one of its files is malformed.
    """
    return SyntheticMarket(seed) if bars_folder is None else ReplayMarket(bars_folder)
