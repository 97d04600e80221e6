"""Who is told of waits: for a pause to end, for a link to come back, for another process's try.

Not here: showing them (``load.waits``).
"""

from collections.abc import Callable

OnWait = Callable[[str, float], None]
"""Takes in words what is waited for, and the seconds that it lasts at most."""


def untold(_why: str, _wait_s: float) -> None:
    """Tell nobody."""
