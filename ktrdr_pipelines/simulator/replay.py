"""placeholder."""
from pathlib import Path
class ReplayMarket:  # temporary
    def __init__(self, folder: Path) -> None: ...
