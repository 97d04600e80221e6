"""IbService: what a service tells of the gateway and of the data that it gave.

Statuses, ranges and lists come from the monitor, the ledger and the files, and cost no request.
Only ``load_data``, ``discover_symbol``, and checks without a monitor contact the gateway.

Not here: keeping a connection (``app.services.gateway_monitor``), loading (``app.data_manager``),
the gap filler (``app.services.gap_filler``).
"""

import asyncio
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final

from ktrdr_pipelines.app.services.gateway_monitor import (
    GatewayMonitor,
    GatewaySnapshot,
    snapshot_now,
)
from ktrdr_pipelines.app.services.gateway_settings import update_gateway_settings
from ktrdr_pipelines.app.views.bar_documents import (
    RangeDocument,
    SymbolDocument,
    TimeframeDocument,
)
from ktrdr_pipelines.app.views.ib_documents import (
    ClientIdRange,
    ConnectionDocument,
    ConnectionMetrics,
    DataMetrics,
    DataRange,
    DataRanges,
    DiscoveredSymbol,
    DiscoveredSymbols,
    IbCleanup,
    IbConfig,
    IbConfigUpdate,
    IbHealth,
    IbStatus,
    RateLimitDocument,
    SymbolRanges,
)
from ktrdr_pipelines.app.views.load_documents import LoadResult
from ktrdr_pipelines.app.workspace import Workspace, universe_file
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.domain.universe.fields import KEY_PATTERN, KEY_RULE
from ktrdr_pipelines.domain.universe.universe import Universe, parse_universe
from ktrdr_pipelines.errors import StoppingError, UnknownSymbolError, UsageError
from ktrdr_pipelines.ib.connection.strategy import Operation
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.settings import Settings, settings_sources
from ktrdr_pipelines.store.layout import store_origin
from ktrdr_pipelines.store.ledger.gateway_records import PinnedContract
from ktrdr_pipelines.store.ledger.request_audit import RequestTotals
from ktrdr_pipelines.store.store_summary import StoreSummary

if TYPE_CHECKING:
    from ktrdr_pipelines.ib.protocol.contract_messages import Candidate

_NAMES: Final = {
    Timeframe.M1: "1 minute",
    Timeframe.M5: "5 minutes",
    Timeframe.M15: "15 minutes",
    Timeframe.M30: "30 minutes",
    Timeframe.H1: "1 hour",
    Timeframe.H4: "4 hours",
    Timeframe.D1: "1 day",
    Timeframe.W1: "1 week",
}
_Held = Mapping[str, tuple[Timeframe, ...]]
_Listed = tuple[Universe, _Held, tuple[SymbolDocument, ...]]
"""The documents of all symbols, with the universe and the series that they were made of."""


class IbService:
    """The gateway and its data, for the threads of a service; every method opens the store anew.

    Args:
        open_workspace: opens the store with the settings of now, once for each call.
        monitor: the monitor of the gateway, from whose last check ``get_status`` and ``get_health``
            answer at once; without one they make a check of their own, by connecting.
        summary: the summary of the store that the caller shares.
        clock: returns real time.
    """

    def __init__(
        self,
        open_workspace: Callable[[], Workspace] = Workspace.open,
        *,
        monitor: GatewayMonitor | None = None,
        summary: StoreSummary | None = None,
        clock: Callable[[], datetime] = system_now,
    ) -> None:
        self._open_workspace = open_workspace
        self._monitor = monitor
        self._summary = summary or StoreSummary(clock)
        self._clock = clock
        self._guard = threading.Lock()
        self._found: dict[str, DiscoveredSymbol] = {}
        self._listed: _Listed | None = None
        self._discoveries = _Discoveries()

    def __repr__(self) -> str:
        return f"IbService({self._monitor or 'without a monitor'})"

    def close(self) -> None:
        """Cancel the discoveries that run, and refuse others; the rest of the service stays."""
        self._discoveries.close()

    def get_status(self) -> IbStatus:
        """Return the state of the gateway's connection and of the requests to it.

        Raises:
            KtrdrError: the store cannot be read; without a monitor, the state folder cannot.
        """
        workspace = self._open_workspace()
        seen, now = self._snapshot(workspace), self._clock()
        return IbStatus(
            connection=ConnectionDocument(
                connected=seen.connected,
                host=seen.host,
                port=seen.port,
                client_id=seen.client_id,
                connection_time=seen.connected_at,
                checked_at=seen.checked_at,
            ),
            connection_metrics=ConnectionMetrics(
                total_connections=seen.connections,
                failed_connections=seen.failures,
                last_connect_time=seen.last_connect_at,
                last_disconnect_time=seen.last_disconnect_at,
                uptime_seconds=seen.uptime_s(now),
            ),
            data_metrics=_data_metrics(_totals(self._summary, workspace)),
            ib_available=seen.connected,
        )

    def get_health(self) -> IbHealth:
        """Return whether the gateway responds and data come in.

        Raises: as ``get_status``.
        """
        workspace = self._open_workspace()
        seen, totals = self._snapshot(workspace), _totals(self._summary, workspace)
        return _health_of(seen, totals)

    def is_connected(self) -> bool:
        """Return whether the monitor's gateway responded at its last check; no check is made."""
        return self._monitor is not None and self._monitor.snapshot().connected

    def get_config(self) -> IbConfig:
        """Return the configuration of the gateway.

        Raises:
            KtrdrError: a setting is wrong, or there is no store.
        """
        return _config_of(self._open_workspace().settings)

    def update_config(
        self, host: str | None = None, port: int | None = None, client_id: int | None = None
    ) -> IbConfigUpdate:
        """Change the gateway of this store; None leaves a setting as it is.

        The monitor connects to another gateway at once, runs and loads with their next connection.

        Args:
            host: of the gateway.
            port: of the gateway.
            client_id: the first client id of operation ``api``.

        Raises:
            SettingFixedError: the environment sets it, which takes precedence over the file.
            SettingsError: a value is not allowed.
            StoreError: the file of the settings cannot be written.
        """
        layout = self._open_workspace().layout
        before, after = update_gateway_settings(layout, host=host, port=port, client_id=client_id)
        is_other = (before.ib_host, before.ib_port) != (after.ib_host, after.ib_port)
        if before != after and self._monitor is not None:
            self._monitor.reconnect()
        return IbConfigUpdate(
            previous_config=_config_of(before),
            new_config=_config_of(after),
            reconnect_required=is_other,
        )

    def cleanup_connections(self) -> IbCleanup:
        """Close the connection that the monitor keeps; it connects anew at once.

        A check of the monitor in flight ends first. Each load, check and discovery closes its own
        connection when it ends, so none of them is ever left, and those that run stay open.
        """
        message = "every load and check closes its own connection: none was left open"
        closed = None
        if self._monitor is not None:
            closed = self._monitor.drop()
            if closed is not None:
                message = f"{message}; that of the monitor, client id {closed}, was closed"
            message = f"{message}; the monitor connects again now"
        ids = () if closed is None else (closed,)
        return IbCleanup(connections_closed=len(ids), client_ids=ids, message=message)

    def get_data_ranges(
        self, symbols: Sequence[str], timeframes: Sequence[str | Timeframe]
    ) -> DataRanges:
        """Return the first and the last bar held of series, and the recorded beginnings of data.

        Files, ledger and recorded head timestamps answer; nothing is requested.

        Raises:
            UsageError: a symbol or timeframe is unknown.
            StoreError: a file or the ledger cannot be read.
        """
        workspace, wanted = self._open_workspace(), [_timeframe(one) for one in timeframes]
        held = self._held(workspace)
        heads = workspace.ledger.heads.all(workspace.gateway_config.gateway)
        answers, known, missing = [], 0, 0
        for symbol in dict.fromkeys(symbols):
            self._require_symbol(workspace, symbol, held)
            ranges: dict[str, DataRange | None] = {}
            for timeframe in wanted:
                is_held = timeframe in held.get(symbol, ())
                found = _data_range(workspace, symbol, timeframe, heads) if is_held else None
                ranges[timeframe.value] = found
                known += found is not None and found.cached
                missing += found is None
            answers.append(SymbolRanges(symbol=symbol, ranges=ranges))
        return DataRanges(
            symbols=tuple(answers),
            requested_timeframes=tuple(one.value for one in wanted),
            cache_stats={"cached": known, "missing": missing},
        )

    def load_data(  # noqa: PLR0917  (the signature of the original)
        self,
        symbol: str,
        timeframe: str,
        mode: str = "tail",
        start: date | datetime | str | None = None,
        end: date | datetime | str | None = None,
    ) -> LoadResult:
        """Load bars of a series from the gateway into the store; return when they are saved.

        Raises:
            UsageError: symbol, timeframe, mode or a bound is wrong.
            StoreError: the store cannot be used.
        """
        from ktrdr_pipelines.app.data_manager import DataManager

        manager = DataManager(self._open_workspace())
        return manager.load_with_result(symbol, timeframe, start, end, mode=mode).result

    def symbols(self) -> tuple[SymbolDocument, ...]:
        """Return all symbols that have bars on disk, whether they are in the universe or not.

        Raises:
            KtrdrError: the store or the universe cannot be read.
        """
        workspace = self._open_workspace()
        universe, held = _universe(self._summary, workspace), self._held(workspace)
        with self._guard:
            if (
                self._listed is None
                or self._listed[0] is not universe
                or self._listed[1] is not held
            ):
                documents = tuple(
                    _symbol_document(symbol, universe.instruments.get(symbol), timeframes)
                    for symbol, timeframes in held.items()
                )
                self._listed = universe, held, documents
            return self._listed[2]

    def timeframes(self) -> tuple[TimeframeDocument, ...]:
        """Return all timeframes, short ones first."""
        return tuple(
            TimeframeDocument(id=one.value, name=name, description=f"bars of {name}")
            for one, name in _NAMES.items()
        )

    def discover_symbol(
        self,
        symbol: str,
        force_refresh: bool = False,  # noqa: FBT001, FBT002  (the signature of the original)
    ) -> DiscoveredSymbol:
        """Return the contract of a symbol as the gateway describes it.

        A known contract is answered from the ledger. That of a symbol of the universe is pinned
        there when it is first described; that of another symbol, whose fields are derived as for a
        new entry of the universe, is remembered by this object alone.

        Raises:
            UsageError: it cannot be a symbol.
            GatewayError: the gateway does not respond, or knows no or several such contracts.
            StoppingError: the service was closed.
            ForeignIdentityError: the store holds another contract under this symbol.
        """
        workspace = self._open_workspace()
        if not force_refresh:
            known = self._known_contracts(workspace).get(symbol)
            if known is not None:
                return known
        instruments = _universe(self._summary, workspace).instruments
        is_new = symbol not in instruments
        instrument = _derived(symbol) if is_new else instruments[symbol]
        found = self._discoveries.run(workspace, instrument, pins=not is_new)
        document = DiscoveredSymbol(
            symbol=symbol,
            instrument_type=found.sec_type,
            exchange=found.primary_exchange or found.exchange,
            currency=found.currency,
            description=str(found),
            con_id=found.contract_id,
            discovered_at=self._clock(),
        )
        if is_new:
            with self._guard:
                self._found[symbol] = document
        return document

    def discovered_symbols(self) -> DiscoveredSymbols:
        """Return all contracts that the store knows, and those discovered by this object.

        Raises:
            KtrdrError: the store or the universe cannot be read.
        """
        known = self._known_contracts(self._open_workspace())
        return DiscoveredSymbols(symbols=tuple(known.values()), total=len(known))

    def data_range(self, symbol: str, timeframe: str | Timeframe) -> RangeDocument:
        """Return the first and the last bar held of a series; null where it has none.

        Raises:
            UsageError: the symbol or timeframe is unknown.
            StoreError: a file or the ledger cannot be read.
        """
        workspace, wanted = self._open_workspace(), _timeframe(timeframe)
        self._require_symbol(workspace, symbol, self._held(workspace))
        found = workspace.store.bounds(symbol, wanted)
        first, last, count = found or (None, None, 0)
        return RangeDocument(
            symbol=symbol,
            timeframe=wanted.value,
            start_date=first,
            end_date=last,
            point_count=count,
        )

    def _snapshot(self, workspace: Workspace) -> GatewaySnapshot:
        """Return what the monitor saw last; without one, the result of a check made now."""
        if self._monitor is not None:
            return self._monitor.snapshot()
        from ktrdr_pipelines.sync.loader import run_to_end

        return run_to_end(snapshot_now(workspace.gateway_config, self._clock))

    def _held(self, workspace: Workspace) -> _Held:
        return self._summary.series(workspace.layout, workspace.ledger)

    def _require_symbol(self, workspace: Workspace, symbol: str, held: _Held) -> None:
        """Refuse a symbol that has neither bars nor an entry in the universe."""
        if symbol not in held:
            _universe(self._summary, workspace).instrument(symbol)

    def _known_contracts(self, workspace: Workspace) -> dict[str, DiscoveredSymbol]:
        instruments = _universe(self._summary, workspace).instruments
        pinned = workspace.ledger.contracts.pinned(store_origin(workspace.layout))
        found = {
            symbol: _discovered(symbol, row, instruments.get(symbol))
            for symbol, row in pinned.items()
        }
        with self._guard:
            return {**self._found, **found}


def _universe(summary: StoreSummary, workspace: Workspace) -> Universe:
    return summary.universe(workspace.layout, universe_file(workspace.layout))


def _totals(summary: StoreSummary, workspace: Workspace) -> RequestTotals:
    return summary.requests(workspace.layout, workspace.ledger)


def _health_of(seen: GatewaySnapshot, totals: RequestTotals) -> IbHealth:
    report = None if seen.report is None else seen.report.document
    is_fetching = not totals.last_failed
    message = None
    if report is None:
        message = "the gateway has not been checked yet"
    elif report.error is not None:
        message = report.error.message
    elif not seen.connected:
        message = "the connection to the gateway has ended"
    elif not is_fetching:
        message = f"the last request for data failed: {totals.last_outcome}"
    return IbHealth(
        healthy=seen.connected and is_fetching,
        connection_ok=seen.connected,
        data_fetching_ok=is_fetching,
        last_successful_request=totals.last_answered_at,
        error_message=message,
        checked_at=seen.checked_at,
        round_trip_ms=report.round_trip_ms if report else None,
        last_answer_age_s=report.last_answer_age_s if report else None,
        concurrency=report.concurrency if report else None,
        breaker=report.breaker if report else None,
        troubles=report.troubles if report else (),
        error=report.error if report else None,
    )


def _config_of(settings: Settings) -> IbConfig:
    first, last = settings.client_ids[Operation.API]
    limits = IbLimitsRegistry
    return IbConfig(
        host=settings.ib_host,
        port=settings.ib_port,
        client_id_range=ClientIdRange(min=first, max=last),
        timeout=settings.ib_timeout,
        readonly=True,
        rate_limit=RateLimitDocument(
            pacing=settings.ib_pacing.value,
            max_requests=limits.WINDOW_MOST.value,
            period_s=limits.WINDOW_S.value,
            max_identical_s=limits.IDENTICAL_S.value,
            concurrency=limits.CONCURRENCY.value,
        ),
        sources={
            name: source.value
            for name, source in settings_sources(settings).items()
            if name.startswith("ib_")
        },
    )


def _data_metrics(totals: RequestTotals) -> DataMetrics:
    share = totals.answered / totals.requests if totals.requests else 0.0
    return DataMetrics(
        total_requests=totals.requests,
        successful_requests=totals.answered,
        failed_requests=totals.failed,
        total_bars_fetched=totals.bars,
        success_rate=round(100 * share, 2),
    )


def _data_range(
    workspace: Workspace,
    symbol: str,
    timeframe: Timeframe,
    heads: dict[tuple[int, str], datetime],
) -> DataRange | None:
    found = workspace.store.bounds(symbol, timeframe)
    if found is None:
        return None
    first, last, _ = found
    rows = workspace.store.files.of_symbol(symbol, timeframe).values()
    identity = next(iter(rows)).identity
    head = heads.get((identity.contract_id, identity.what_to_show))
    return DataRange(
        earliest_date=first,
        latest_date=last,
        total_days=(last - first).days,
        cached=head is not None,
        earliest_available=head,
    )


def _symbol_document(
    symbol: str, instrument: Instrument | None, timeframes: tuple[Timeframe, ...]
) -> SymbolDocument:
    if instrument is None:
        name = kind = exchange = ""
    else:
        is_pair = instrument.sec_type is SecType.CASH
        name = instrument.ib_symbol + (f".{instrument.currency}" if is_pair else "")
        kind = instrument.sec_type.value
        exchange = instrument.primary_exchange or instrument.exchange
    return SymbolDocument(
        symbol=symbol,
        name=name or symbol,
        type=kind,
        exchange=exchange,
        available_timeframes=tuple(one.value for one in timeframes),
        in_universe=instrument is not None,
    )


def _discovered(
    symbol: str, pinned: PinnedContract, instrument: Instrument | None
) -> DiscoveredSymbol:
    return DiscoveredSymbol(
        symbol=symbol,
        instrument_type=instrument.sec_type.value if instrument else "",
        exchange=(instrument.primary_exchange or instrument.exchange) if instrument else "",
        currency=instrument.currency if instrument else "",
        description=pinned.description,
        con_id=pinned.contract_id,
        discovered_at=pinned.pinned_at,
    )


def _timeframe(text: str | Timeframe) -> Timeframe:
    with suppress(ValueError):
        return Timeframe(text)
    raise UsageError(
        f"timeframe {text!r}",
        reason="there is no such timeframe",
        hint=f"Timeframes are {', '.join(Timeframe)}",
    )


def _derived(symbol: str) -> Instrument:
    """Return the instrument that a new entry of the universe without fields would mean."""
    if not re.fullmatch(KEY_PATTERN, symbol):
        raise UnknownSymbolError(f"symbol {symbol!r}", reason=KEY_RULE)
    text = f"symbols:\n  {json.dumps(symbol)}: {{}}\n"
    return parse_universe(text, "the universe").instrument(symbol)


class _Discoveries:
    """Runs discoveries, each in the thread of its caller, and cancels them when it is closed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = set()
        self._closed = False

    def close(self) -> None:
        """Cancel what runs, and refuse others."""
        with self._guard:
            self._closed = True
            for loop, task in self._running:
                loop.call_soon_threadsafe(task.cancel)

    def run(self, workspace: Workspace, instrument: Instrument, *, pins: bool) -> "Candidate":
        """Return the contract of an instrument; ``pins`` is as in ``sync.discovery``.

        Raises:
            StoppingError: this was closed.
        """
        from ktrdr_pipelines.sync.loader import run_to_end

        reason = "this process is being stopped"
        stopping = StoppingError(f"discover {instrument.symbol}", reason=reason)

        async def main() -> "Candidate":
            task = asyncio.current_task()
            assert task is not None  # noqa: S101  (a coroutine that runs has a task)
            entry = asyncio.get_running_loop(), task
            with self._guard:
                if self._closed:
                    raise stopping
                self._running.add(entry)
            try:
                return await _discover(workspace, instrument, pins=pins)
            finally:
                with self._guard:
                    self._running.discard(entry)

        try:
            return run_to_end(main())
        except asyncio.CancelledError:
            raise stopping from None


async def _discover(workspace: Workspace, instrument: Instrument, *, pins: bool) -> "Candidate":
    """Connect, and return the contract of an instrument; ``pins`` is as in ``sync.discovery``."""
    from ktrdr_pipelines.ib.source import open_source
    from ktrdr_pipelines.sync.discovery.contracts import described_contract, pinned_in
    from ktrdr_pipelines.sync.engine.source_session import RetryPolicy, SourceSession

    config, clock = workspace.gateway_config, workspace.clock
    policy = RetryPolicy(
        max_retries=config.max_retries,
        delay_s=config.retry_delay_s,
        clock=clock.real_now,
        clock_offset_s=clock.offset_s,
    )
    series = Series(instrument, instrument.timeframes[0])
    pinned = pinned_in(workspace.layout) if pins else None
    async with SourceSession(
        lambda: open_source(config, Operation.API, pinned=pinned), policy
    ) as session:
        return await described_contract(session, workspace.store, series, pins=pins)
