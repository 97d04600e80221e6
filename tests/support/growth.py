"""How the cost of work grows with its size: a ratio within one run, whatever the machine."""

from collections.abc import Callable

LINEAR_IN_EIGHT = 24
"""What eight times the work may cost: eight times is linear, sixty-four the square."""


def growth(seconds: Callable[[int], float], small: int, large: int, attempts: int = 4) -> float:
    """Give the cost of the large work over that of the small, each the least of some tries.

    Small and large take turns, so that a machine that slows down for a while slows both.
    """
    pairs = [(seconds(small), seconds(large)) for _ in range(attempts)]
    return min(high for _, high in pairs) / min(low for low, _ in pairs)
