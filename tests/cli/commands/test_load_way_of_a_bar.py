"""The number of modules that a bar passes from the gateway's message to its Parquet file."""

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa

import ktrdr_pipelines

PACKAGE = Path(ktrdr_pipelines.__file__).parent
MOST = 20
"""Modules that take or return a table of bars; two of them compare it with held bars. With
`ib.protocol.transport` and `ib.connection.accounts`, which pass on its message, and with
`cli.commands.load`, `cli.load_report`, `sync.runner`, `sync.series_loader` and
`domain.planning.chunks`, which lead to
its request, these are 27."""


def has_bars(value: object, depth: int = 0) -> bool:
    """Return whether a value is a table of bars, or holds one in a collection or in slots."""
    if isinstance(value, pa.Table):
        return value.num_rows > 0
    if depth == 3:
        return False
    if isinstance(value, list | tuple):
        return any(has_bars(one, depth + 1) for one in value[:10])
    names = getattr(type(value), "__slots__", ()) if "ktrdr" in type(value).__module__ else ()
    return any(has_bars(getattr(value, name, None), depth + 1) for name in names)


class ModulesWithBars:
    """Records the modules of the package with a function that takes or returns bars."""

    def __init__(self) -> None:
        self.modules: dict[str, str] = {}

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        code = frame.f_code
        if event not in {"call", "return"} or not code.co_filename.startswith(str(PACKAGE)):
            return
        module = Path(code.co_filename).relative_to(PACKAGE).with_suffix("").as_posix()
        if module.split("/")[0] == "simulator" or module.startswith("store/catalog"):
            return
        taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        values = [value] if event == "return" else [frame.f_locals.get(name) for name in taken]
        if module not in self.modules and any(map(has_bars, values)):
            self.modules[module] = code.co_qualname


def test_one_bar_passes_few_modules(ktrdr: Any, store: Path, gateway: Any) -> None:
    """The modules are counted while one daily bar is loaded."""
    seen = ModulesWithBars()
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        result = ktrdr(
            "load", "AAPL", "1d", "--start", "2024-01-02", "--end", "2024-01-03", "--json"
        )
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    assert (result.code, result.document["series"][0]["added"]) == (0, 1)
    assert {"ib/protocol/bar_messages", "sync/engine/series_run", "store/bars/bar_file"} <= {
        *seen.modules
    }
    assert len(seen.modules) <= MOST, seen.modules
