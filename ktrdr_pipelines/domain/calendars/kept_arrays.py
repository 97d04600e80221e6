"""Arrays that take long to compute, kept between processes where the program offers a place.

The libraries of calendars need half a second for the sessions of one exchange, and a second to be
imported. The domain reads no files: a program sets a store of arrays (``keep_arrays_in``), which
returns only what the same code and the same libraries computed.

Not here: the files (``app.services.array_files``), what is computed (``domain.calendars.registry``,
``domain.calendars.arrays``).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

Arrays = Mapping[str, "np.ndarray"]
"""Arrays by name; one named ``zone`` holds the IANA name of the time zone that they depend on."""


class ArrayStore(Protocol):
    """Keeps arrays; what it returns is what would be computed now."""

    def read(self, name: str) -> Arrays | None:
        """Return what was kept under a name; None if it is missing, damaged or outdated."""

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep arrays under a name. Where that is impossible, nothing is kept, without an error."""


_stores: list[ArrayStore] = []


def keep_arrays_in(store: ArrayStore | None) -> None:
    """Keep arrays of this process in a store from now on; with None, keep none."""
    _stores[:] = [] if store is None else [store]


def kept_arrays(name: str, compute: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of a name as they were kept; else compute and keep them."""
    for store in _stores:
        found = store.read(name)
        if found is not None:
            return found
    arrays = compute()
    for store in _stores:
        store.write(name, arrays)
    return arrays
