"""A REST server over the store of the environment, in a thread, and a client of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from ktrdr_pipelines.api.access import AccessRules
from ktrdr_pipelines.api.rest_server import listening_socket, open_services, serving_in_thread

NOW = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)
"""A Wednesday, 15:00:30 in New York: an open session."""

UNIVERSE = """\
defaults: {timeframes: [1h, 1d], start: 2024-01-02}
symbols:
  AAPL: {timeframes: [1m, 1h, 1d]}
  MSFT: {}
  EURUSD: {timeframes: [1h]}
"""


@contextmanager
def served_here(rules: AccessRules | None = None) -> Iterator[httpx.Client]:
    """Serve the store of the environment, as ``ktrdr serve`` does; yield a client."""
    listener = listening_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with ExitStack() as stack:
        context = stack.enter_context(open_services())
        stack.enter_context(serving_in_thread(context, rules or AccessRules(), listener))
        yield stack.enter_context(httpx.Client(base_url=url, timeout=60))


def free_port() -> int:
    """Return a port that no program listens on."""
    with listening_socket("127.0.0.1", 0) as listener:
        return int(listener.getsockname()[1])


def wait_for(holds: Callable[[], Any]) -> Any:
    """Poll until something holds, and return it; fail after a minute."""
    pause = threading.Event()
    for _ in range(3000):
        if found := holds():
            return found
        pause.wait(0.02)
    raise AssertionError("waited for a minute")
