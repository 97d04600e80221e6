"""How long after the close of a minute its bar can be queried, watched from outside."""

# ruff: noqa: S608, T201  (its output is its interface; its SQL holds symbols of a benchmark only)

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from ktrdr_pipelines.domain.calendars.registry import calendar_named
from ktrdr_pipelines.domain.instruments import Origin
from ktrdr_pipelines.simulator.server import running_simulator
from ktrdr_pipelines.store.layout import StoreLayout, create_store
from tests.benchmarks.measuring import cost_of_command
from tests.benchmarks.running_up import POLL_S, Up, running_up
from tests.benchmarks.stores import closed_sessions
from tests.support.time_limits import killed_after

STOCKS = """
AAPL MSFT AMZN GOOGL GOOG META NVDA TSLA NFLX INTC AMD CSCO ADBE PYPL QQQ JPM BAC V MA JNJ PG KO
XOM WMT DIS IBM GE BA CAT HD UNH F T ON SPY IWM DIA GLD
"""
PAIRS = """
EURUSD GBPUSD USDJPY USDCHF AUDUSD USDCAD NZDUSD EURGBP EURJPY EURCHF GBPJPY AUDJPY
"""
_MINUTE = timedelta(minutes=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def universe_text(symbols: Sequence[str], start: str) -> str:
    """Return a universe of symbols that want 1m, 1h and 1d from a date on."""
    entries = "\n".join(f"  {symbol!r}: {{}}" for symbol in symbols)
    return f"defaults: {{timeframes: [1m, 1h, 1d], start: {start}}}\nsymbols:\n{entries}\n"


@dataclass
class Watch:
    """Observations of a store: the delay of each new minute, in seconds.

    Args:
        layout: the store.
        symbols: those that are watched.
        ahead_s: by how many seconds market time is ahead of real time.
        since: market time; delays of minutes that closed before are not recorded.
    """

    layout: StoreLayout
    symbols: Sequence[str]
    ahead_s: float = 0.0
    since: datetime = _EPOCH
    delays_s: list[float] = field(default_factory=list)
    _newest: dict[str, datetime] = field(default_factory=dict)
    _modified_ns: dict[Path, int] = field(default_factory=dict)

    def look(self) -> None:
        """Query each series whose newest file changed, and record the delay of each new minute."""
        for symbol in self.symbols:
            files = sorted(
                (self.layout.bars / f"symbol={symbol}" / "timeframe=1m").glob("*.parquet")
            )
            if not files:
                continue
            modified_ns = files[-1].stat().st_mtime_ns
            if self._modified_ns.get(files[-1]) == modified_ns:
                continue
            newest = self._newest_of(symbol)
            if newest is None:
                continue
            self._modified_ns[files[-1]] = modified_ns
            seen_at, before = self._now(), self._newest.get(symbol)
            if before is not None and newest > before:
                self._record(before, newest, seen_at)
            self._newest[symbol] = newest

    def _record(self, before: datetime, newest: datetime, seen_at: datetime) -> None:
        """Record the delay of each new minute; after a night only the newest ones count."""
        first = max(before, newest - 10 * _MINUTE) + _MINUTE
        while first <= newest:
            if first + _MINUTE >= self.since:
                self.delays_s.append((seen_at - first - _MINUTE).total_seconds())
            first += _MINUTE

    def _newest_of(self, symbol: str) -> datetime | None:
        """Return the start of the newest minute of a symbol in the catalog."""
        try:
            with duckdb.connect(str(self.layout.catalog), read_only=True) as catalog:
                recent = self._now() - timedelta(hours=1)
                ((newest_us,),) = catalog.execute(
                    f"SELECT epoch_us(max(ts)) FROM series('{symbol}', '1m') WHERE ts > ?", [recent]
                ).fetchall()
        except duckdb.Error:
            return None
        return None if newest_us is None else _EPOCH + timedelta(microseconds=newest_us)

    def _now(self) -> datetime:
        """Return market time."""
        return datetime.now(tz=UTC) + timedelta(seconds=self.ahead_s)


@dataclass(frozen=True, slots=True)
class LiveMarket:
    """A store over a simulated gateway whose market is open, whatever the time is.

    The day so far is loaded; history since ``start`` of the universe is not.
    """

    layout: StoreLayout
    symbols: Sequence[str]
    environment: dict[str, str]
    ahead_s: float


@contextmanager
def live_market(folder: Path, port: int, *, symbols: int, start: str) -> Iterator[LiveMarket]:
    """Serve a simulated gateway on a port, an hour after the open of the last session."""
    layout = create_store(folder / "data", Origin.SIMULATED)
    names = [*PAIRS.split(), *STOCKS.split()][:symbols]
    layout.universe.write_text(universe_text(names, start), encoding="utf-8")
    day = closed_sessions()[-1]
    [session] = calendar_named("XNYS.RTH").sessions(day, day + timedelta(days=1))
    ahead = session.opens_at + timedelta(hours=1) - datetime.now(tz=UTC)
    ahead_s = ahead // _MINUTE * 60  # bars of the market close at full minutes of real time, too
    command = [sys.executable, "-m", __name__, str(port), str(ahead_s)]
    gateway = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert gateway.stdout is not None
        with killed_after(60, [gateway], "the start of the simulated gateway"):
            if not gateway.stdout.readline():
                raise RuntimeError(f"{' '.join(command)} did not start")
        environment = {
            "KTRDR_DATA": str(layout.root),
            "KTRDR_STATE": str(folder / "state"),
            "KTRDR_CLOCK_OFFSET_S": str(ahead_s),
            "IB_HOST": "127.0.0.1",
            "IB_PORT": str(port),
        }
        load = [sys.executable, "-m", "ktrdr_pipelines.cli.main", "load"]
        what = [",".join(names), "1m,1h,1d", "--start", day.isoformat()]
        cost_of_command([*load, *what], environment, accepted=(0, 3))
        yield LiveMarket(layout, names, environment, ahead_s)
    finally:
        gateway.terminate()
        with killed_after(60, [gateway], "the end of the simulated gateway"):
            gateway.communicate()


def delays_s(port: int, *, symbols: int, minutes: float) -> list[float]:
    """Return how long after the close of each new minute its bar could be queried.

    The history of all symbols is loaded at the same time.

    Args:
        port: of the UI; the next one is that of the simulated gateway.
        symbols: 50 at most.
        minutes: how long to watch, from a minute after the UI responds.
    """
    start = f"{datetime.now(tz=UTC).year - 2}-01-01"
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as name,
        live_market(Path(name), port + 1, symbols=symbols, start=start) as market,
        running_up(Path(name), market.environment, port) as up,
    ):
        up.wait_until_painted()
        # What closed before the first tick of the schedule comes a minute later.
        since = datetime.now(tz=UTC) + timedelta(seconds=market.ahead_s) + _MINUTE
        watch = Watch(market.layout, market.symbols, market.ahead_s, since)
        _watch_for(up, watch, 60 + 60 * minutes)
        return watch.delays_s


def _watch_for(up: Up, watch: Watch, seconds: float) -> None:
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        watch.look()
        if up.process.poll() is not None:
            raise RuntimeError(f"`ktrdr up` exited: {up.log.read_text()[-2000:]}")
        time.sleep(POLL_S)


def _serve(port: int, ahead_s: float) -> None:
    """Serve a simulated gateway, whose clock is ahead of this machine's, until terminated."""
    now = datetime.now(tz=UTC) + timedelta(seconds=ahead_s)
    with running_simulator(now=now, port=port):
        print("ready", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), float(sys.argv[2]))
