"""One ``ktrdr up`` a store: two daemons over one history would start every run twice.

Not here: the port of the web UI (``cli.processes``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ktrdr_pipelines.errors import StoreError
from ktrdr_pipelines.store.atomic import disk_errors, make_folder
from ktrdr_pipelines.store.layout import StoreLayout


def refuse_second(root: Path) -> None:
    """Refuse to go on where a ``ktrdr up`` runs over the store in a folder.

    Raises:
        StoreError: one does; the text says where its web UI is.
    """
    layout = StoreLayout(root)
    if _lock(layout).exists():
        with only_one(layout):
            pass


@contextmanager
def only_one(layout: StoreLayout, url: str = "") -> Iterator[None]:
    """Be the only ``ktrdr up`` over a store until the end of the block; a killed one frees it.

    Args:
        layout: of the store.
        url: of the web UI, for the one that is refused.

    Raises:
        StoreError: there is another one.
    """
    lock = FileLock(_lock(layout), timeout=0)
    with disk_errors(_lock(layout)):
        make_folder(layout.locks)
        try:
            lock.acquire()
        except Timeout as error:
            raise StoreError(
                f"ktrdr up over {layout.root}",
                came=f"another one runs over this store already {_where(layout)}".rstrip(),
                remedy="Use that one, or end it first",
            ) from error
    try:
        if url:
            _address(layout).write_text(url, encoding="utf-8")
        yield
    finally:
        lock.release()


def _where(layout: StoreLayout) -> str:
    try:
        return f"at {_address(layout).read_text(encoding='utf-8')}"
    except OSError:
        return ""


def _lock(layout: StoreLayout) -> Path:
    return layout.locks / "up.lock"


def _address(layout: StoreLayout) -> Path:
    return layout.state / "up.url"
