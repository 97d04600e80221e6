"""The growth of cost with size: a ratio within one run, independent of the machine."""

from collections.abc import Callable

LINEAR_IN_EIGHT = 24
"""The most that eight times the work may cost: linear is 8 times, quadratic 64 times."""


def growth(seconds: Callable[[int], float], small: int, large: int, attempts: int = 4) -> float:
    """Return the cost of large work over that of small work, each the least of several attempts.

    Small and large alternate, so that a temporary slowdown of the machine affects both.
    """
    pairs = [(seconds(small), seconds(large)) for _ in range(attempts)]
    return min(high for _, high in pairs) / min(low for low, _ in pairs)
