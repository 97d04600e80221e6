"""The one policy of how often and how soon a failed request is sent again.

Not here: the loop that tries again (``load.keeper``).
"""

from ktrdr_pipelines.errors import ClientIdInUseError, GatewayError, PacingError
from ktrdr_pipelines.limits import IbLimitsRegistry

LONGEST_DELAY_S = 60.0
"""Longest wait after an error that is not about pacing."""


def retry_delay_s(
    error: GatewayError, tries: int, *, max_retries: int, base_delay_s: float, jitter: float = 0.0
) -> float | None:
    """Give the seconds to wait before another try, or None where none is worth it.

    The wait doubles with each try, up to a longest that depends on the error.

    Args:
        error: what the last try ended with.
        tries: how many tries there were, at least 1.
        max_retries: tries allowed after the first.
        base_delay_s: wait after the first.
        jitter: from 0 to 1, how much of half the wait is added, so that many who failed together
            do not come back together.
    """
    if not error.retry or tries > max_retries:
        return None
    first_s, longest_s = base_delay_s, max(LONGEST_DELAY_S, base_delay_s)
    if isinstance(error, PacingError):
        first_s, longest_s = IbLimitsRegistry.PACING_PAUSE_S.value
    elif isinstance(error, ClientIdInUseError):
        first_s = max(base_delay_s, IbLimitsRegistry.CLIENT_ID_PAUSE_S.value)
    delay_s = min(first_s * 2.0 ** (tries - 1), longest_s)
    return max(delay_s * (1 + jitter / 2), error.retry_in_s)
