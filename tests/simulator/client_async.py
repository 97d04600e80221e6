"""The ib_async client, with its event loop run during each request."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ib_async
from ib_async import IB

from tests.simulator.clients import (
    NOTICES,
    WAIT_S,
    Response,
    bar_row,
    details_row,
    sessions,
    with_defaults,
)


class AsyncClient:
    """ib_async, with its event loop run during each request."""

    name = "ib_async"

    def __init__(self, port: int, client_id: int) -> None:
        self._runner = asyncio.Runner()
        self._ib = IB()
        self._run(self._ib.connectAsync("127.0.0.1", port, clientId=client_id, timeout=30.0))
        self.version = self._ib.client.serverVersion()

    def close(self) -> None:
        self._run(self._disconnect())
        self._runner.close()

    def details(self, contract: dict[str, Any]) -> Response:
        found, errors = self._request(lambda: self._ib.reqContractDetailsAsync(of_async(contract)))
        return Response([details_row(each) for each in found or []], errors)

    def bars(self, contract: dict[str, Any], size: str, duration: str, **other: Any) -> Response:
        options = with_defaults(other)
        found, errors = self._request(
            lambda: self._ib.reqHistoricalDataAsync(
                *(of_async(contract), options["end"], duration, size),
                *(options["what"], options["rth"], options["format"]),
            )
        )
        return Response([bar_row(bar) for bar in found or []], errors)

    def schedule(self, contract: dict[str, Any], days: int, end: str) -> Response:
        found, errors = self._request(
            lambda: self._ib.reqHistoricalScheduleAsync(of_async(contract), days, end)
        )
        return Response([(found.timeZone, *sessions(found.sessions))] if found else [], errors)

    def head(self, contract: dict[str, Any], what: str) -> Response:
        found, errors = self._request(
            lambda: self._ib.reqHeadTimeStampAsync(of_async(contract), what, True, 2)
        )
        return Response([(str(int(found.timestamp())),)] if found else [], errors)

    def summary(self) -> dict[str, str]:
        self._request(self._ib.reqAccountSummaryAsync)
        return {each.tag: each.value for each in self._ib.wrapper.acctSummary.values()}

    def values(self) -> dict[str, str]:
        self._request(lambda: self._ib.reqAccountUpdatesAsync(""))
        return {each.tag: each.value for each in self._ib.accountValues()}

    def positions(self) -> int:
        return len(self._request(self._ib.reqPositionsAsync)[0])

    def cancelled(self, contract: dict[str, Any]) -> list[int]:
        async def session() -> list[int]:
            codes: asyncio.Queue[int] = asyncio.Queue()
            self._ib.errorEvent += lambda _, code, *__: codes.put_nowait(code)
            options = self._ib.reqHistoricalDataAsync(
                of_async(contract), "", "1 D", "1 day", "TRADES", useRTH=True
            )
            task = asyncio.ensure_future(options)
            await asyncio.sleep(0)
            number = self._ib.client.getReqId() - 1
            for _ in range(2):
                self._ib.client.cancelHistoricalData(number)
            found = [await codes.get(), await codes.get()]
            task.cancel()
            return found

        return self._run(session())

    def live(self, contract: dict[str, Any], size: str, move: Callable[[], None]) -> Response:
        async def session() -> Response:
            bars = await self._ib.reqHistoricalDataAsync(
                of_async(contract),
                "",
                "1 D",
                size,
                "TRADES",
                useRTH=True,
                formatDate=2,
                keepUpToDate=True,
            )
            count = len(bars)
            move()
            while len(bars) == count:
                await bars.updateEvent
            self._ib.cancelHistoricalData(bars)
            await self._ib.errorEvent
            return Response([bar_row(bar) for bar in bars])

        return self._run(session())

    def _run(self, work: Any) -> Any:
        async def limited() -> Any:
            return await asyncio.wait_for(work, WAIT_S)

        return self._runner.run(limited())

    def _request(self, request: Callable[[], Any]) -> tuple[Any, list[tuple[int, str]]]:
        return self._run(self._response_or_error(request))

    async def _response_or_error(
        self, request: Callable[[], Any]
    ) -> tuple[Any, list[tuple[int, str]]]:
        """Wait for a response or an error: after 321 alone ib_async would wait without end."""
        errors: list[tuple[int, str]] = []
        refused = asyncio.Event()

        def note(request_id: int, code: int, text: str, _: Any) -> None:
            if request_id >= 0 and code not in NOTICES:
                errors.append((code, text))
                refused.set()

        self._ib.errorEvent += note
        task, waiting = asyncio.ensure_future(request()), asyncio.ensure_future(refused.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        self._ib.errorEvent -= note
        waiting.cancel()
        if errors:
            task.cancel()
        with suppress(asyncio.CancelledError):
            return (await task if not errors else None), errors
        return None, errors

    async def _disconnect(self) -> None:
        self._ib.disconnect()


def of_async(contract: dict[str, Any]) -> ib_async.Contract:
    """Return a contract of ib_async."""
    return ib_async.Contract(**contract)
