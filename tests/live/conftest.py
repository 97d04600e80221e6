"""Requests to the gateway at IB_HOST and IB_PORT: ``pytest tests/live -m live -n 0``.

Each test states a fact, what is expected, and what the gateway returned; all of it is printed at
the end and written to the file that LIVE_REPORT names (``live-report.txt``). Requests go through
the product's own connection and budget. Account numbers are removed from frames before a test gets
them.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from ib_async.contract import Contract

from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.connection import GatewayConnection
from ktrdr_pipelines.ib.connection.strategy import IbConnectionStrategy
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.pacing.rules import RequestKind
from ktrdr_pipelines.ib.protocol.contract_messages import Candidate, candidate_of
from ktrdr_pipelines.ib.protocol.requests import (
    EPOCH_DATES,
    ContractQuery,
    HistoryQuery,
)
from ktrdr_pipelines.ib.source import Requester
from ktrdr_pipelines.settings import load_settings

T = TypeVar("T")
_PER_BAR, _HEADER = 8, 5


@dataclass
class Report:
    """What was expected and returned, one fact a line."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, fact: str, expected: str, seen: str) -> None:
        """Add what was returned for a fact."""
        self.lines.append((fact, expected, seen))

    def __str__(self) -> str:
        return "\n".join(
            f"fact:     {fact}\nexpected: {expected}\nseen:     {seen}\n"
            for fact, expected, seen in self.lines
        )


@dataclass(frozen=True)
class Bars:
    """Message 17: the range that it states, and the texts of its rows."""

    start: str
    end: str
    rows: list[list[str]]

    @property
    def timestamps(self) -> list[str]:
        """The timestamps of the bars, as written."""
        return [row[0] for row in self.rows]


@dataclass(frozen=True)
class Seen:
    """The result of one request: the fields of its response, and codes with their texts."""

    fields: list[str] = field(default_factory=list)
    codes: list[tuple[int, str]] = field(default_factory=list)

    @property
    def rows(self) -> list[list[str]]:
        """The bars of message 17, each with its eight texts."""
        return _rows(self.fields) if self.fields[:1] == ["17"] else []

    @property
    def timestamps(self) -> list[str]:
        """The timestamps of the bars, as written."""
        return [row[0] for row in self.rows]

    @property
    def head(self) -> str:
        """The head timestamp, or an empty text."""
        return self.fields[2] if self.fields[:1] == ["88"] else ""

    @property
    def zone(self) -> str:
        """The zone of a schedule, or an empty text."""
        return self.fields[4] if self.fields[:1] == ["106"] else ""

    def __str__(self) -> str:
        codes = "; ".join(f"{code} {text}".strip() for code, text in self.codes)
        if not self.fields:
            return codes or "nothing"
        text = ", ".join(self.fields[2:5])
        if self.rows:
            text = (
                f"{len(self.rows)} bars from {self.timestamps[0]} to {self.timestamps[-1]} ({text})"
            )
        return f"{text}; {codes}" if codes else text


@dataclass(frozen=True)
class Client:
    """One connection for the requests of a test."""

    connection: GatewayConnection
    requester: Requester

    async def details(self, contract: Contract) -> list[Candidate]:
        """Return the contracts that match a description."""
        what = f"details of {contract.symbol} {contract.secType}"
        query = ContractQuery(what, contract)
        frames = await self.requester.ask(query, self.connection.contracts(query))
        return [candidate_of(fields, self.connection.server_version) for fields in frames]

    async def raw(
        self,
        contract: Contract,
        bar_size: str,
        duration: str,
        *,
        end: str = "",
        what: str = "TRADES",
        use_rth: bool = True,
    ) -> list[str]:
        """Return the fields of the response to a request for bars or sessions."""
        query = _query(contract, bar_size, duration, end=end, what=what, use_rth=use_rth)
        return (await self.requester.ask(query, self.connection.history(query))).fields

    async def bars(
        self,
        contract: Contract,
        bar_size: str,
        duration: str,
        *,
        end: str = "",
        what: str = "TRADES",
        use_rth: bool = True,
    ) -> Bars:
        """Return the bars of message 17."""
        fields = await self.raw(contract, bar_size, duration, end=end, what=what, use_rth=use_rth)
        return Bars(fields[2], fields[3], _rows(fields))

    async def seen(
        self,
        contract: Contract,
        bar_size: str,
        duration: str,
        *,
        end: str = "",
        what: str = "TRADES",
        dates: int = EPOCH_DATES,
        is_head: bool = False,
    ) -> Seen:
        """Return the result of a request, even if it is a refusal."""
        kind = RequestKind.HEAD if is_head else RequestKind.BARS
        query = _query(contract, bar_size, duration, end=end, what=what, dates=dates, kind=kind)
        try:
            if is_head:
                return Seen(await self.requester.ask(query, self.connection.head(query)))
            reply = await self.requester.ask(query, self.connection.history(query))
        except GatewayError as error:
            if error.code is None:
                raise
            return Seen(codes=[(error.code, error.reason)])
        return Seen(reply.fields, [(code, "") for code in sorted(reply.codes)])


def _query(
    contract: Contract,
    bar_size: str,
    duration: str,
    *,
    end: str,
    what: str,
    use_rth: bool = True,
    dates: int = EPOCH_DATES,
    kind: RequestKind = RequestKind.BARS,
) -> HistoryQuery:
    return HistoryQuery(
        what=f"{contract.symbol} {bar_size}, {duration} to {end or 'now'}",
        contract=contract,
        what_to_show=what,
        use_rth=use_rth,
        end=end,
        duration=duration,
        bar_size=bar_size,
        dates=dates,
        kind=kind,
        small=True,
    )


def _rows(fields: list[str]) -> list[list[str]]:
    texts = fields[_HEADER:]
    return [texts[place : place + _PER_BAR] for place in range(0, len(texts), _PER_BAR)]


@dataclass(frozen=True)
class Live:
    """The gateway of the settings."""

    config: GatewayConfig
    report: Report

    def run(self, request: Callable[[Client], Awaitable[T]]) -> T:
        """Connect, make the requests, and close."""

        async def session() -> T:
            rate_limiter = RateLimiter.of(self.config)
            strategy = IbConnectionStrategy(self.config, rate_limiter=rate_limiter)
            try:
                async with strategy.get_connection_for_operation("tests") as connection:
                    return await request(
                        Client(connection, Requester(connection, rate_limiter, self.config))
                    )
            finally:
                await strategy.cleanup_temporary_connections()
                rate_limiter.close()

        return asyncio.run(session())

    def refusal(self, request: Callable[[Client], Awaitable[object]]) -> GatewayError | None:
        """Return the error with which the gateway refuses a request, or None if it accepts it."""
        try:
            self.run(request)
        except GatewayError as error:
            return error
        return None

    def note(self, fact: str, expected: str, seen: object) -> None:
        """Add what was returned to the report."""
        self.report.add(fact, expected, str(seen))


_REPORT = Report()


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """Return the gateway of the settings; the report is written after the last test."""
    yield Live(GatewayConfig.from_settings(load_settings()), _REPORT)
    Path(os.environ.get("LIVE_REPORT", "live-report.txt")).write_text(
        str(_REPORT), encoding="utf-8"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the report."""
    if _REPORT.lines:
        terminalreporter.section("fact, expected, seen")
        terminalreporter.write_line(str(_REPORT))
