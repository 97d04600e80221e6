"""Range discovery: where the gateway's data of an instrument begins.

Not here: what lies before it in a series (``core.gaps``).
"""

import asyncio
from collections.abc import Callable
from datetime import date, datetime, timedelta

from ktrdr_pipelines.core.answers import BarSource
from ktrdr_pipelines.core.instruments import Instrument, Series
from ktrdr_pipelines.errors import GatewayError
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.load.audit import About, Inquiry, audited
from ktrdr_pipelines.load.keeper import SourceKeeper
from ktrdr_pipelines.load.probing import Search
from ktrdr_pipelines.store.ledger import HeadRecord, Ledger, ProbeRecord, SilenceRecord


class RangeDiscovery:
    """Head timestamps by contract and what_to_show, remembered in the ledger for a day."""

    def __init__(self, ledger: Ledger, gateway: str) -> None:
        self._ledger = ledger
        self._gateway = gateway
        self._asking = asyncio.Lock()
        self._failed: set[tuple[int, str]] = set()

    @property
    def gateway(self) -> str:
        """Whose data they are, as ``host:port``."""
        return self._gateway

    def known_head(self, instrument: Instrument, contract_id: int) -> datetime | None:
        """Give the head timestamp that was last heard, however long ago."""
        record = self.record(instrument, contract_id)
        return record.head if record else None

    def is_fresh(self, instrument: Instrument, contract_id: int, now: datetime) -> bool:
        """Say whether the gateway was asked within the last day."""
        record = self.record(instrument, contract_id)
        most = timedelta(seconds=IbLimitsRegistry.HEAD_CACHE_S.value)
        return record is not None and now - record.asked_at < most

    async def head(
        self,
        keeper: SourceKeeper,
        instrument: Instrument,
        contract_id: int,
        note: Callable[[str], None],
    ) -> datetime | None:
        """Give the head timestamp, asking where it is not fresh; None where it can't be had.

        A gateway that fails to answer is noted, is not asked again and leaves what was known: the
        head timestamp saves requests, it proves nothing that a bar request would not.
        """
        async with self._asking:
            return await self._head(keeper, instrument, contract_id, note)

    async def _head(
        self,
        keeper: SourceKeeper,
        instrument: Instrument,
        contract_id: int,
        note: Callable[[str], None],
    ) -> datetime | None:
        contract = (contract_id, instrument.what_to_show.value)
        is_fresh = self.is_fresh(instrument, contract_id, keeper.patience.clock())
        if is_fresh or contract in self._failed:
            return self.known_head(instrument, contract_id)
        try:
            head = await self.ask_head(keeper, instrument, contract_id)
        except GatewayError as error:
            self._failed.add(contract)
            note(f"the start of the data of {instrument} could not be learned: {error}")
            return self.known_head(instrument, contract_id)
        self.record_head(instrument, contract_id, head, keeper.patience.clock())
        return head

    async def ask_head(
        self, keeper: SourceKeeper, instrument: Instrument, contract_id: int
    ) -> datetime | None:
        """Ask for the head timestamp, whatever is known; None where the gateway cannot say.

        Raises:
            GatewayError: it could not be asked.
        """
        series = Series(instrument, instrument.timeframes[0])
        about = About(series, contract_id, instrument.what_to_show.value)

        async def question(source: BarSource) -> datetime | None:
            return await audited(
                Inquiry(
                    self._ledger,
                    source,
                    about,
                    keeper.patience.clock,
                    clock_offset_s=keeper.patience.clock_offset_s,
                ),
                lambda sent: source.head(instrument, sent=sent),
                outcome="head",
                told=lambda head: f"data begin {head:%Y-%m-%d %H:%MZ}" if head else "no head",
            )

        return await keeper.ask(question)

    def record_head(
        self, instrument: Instrument, contract_id: int, head: datetime | None, at: datetime
    ) -> None:
        """Remember what the gateway said of the oldest data; None where it cannot say."""
        what = instrument.what_to_show.value
        self._ledger.record_head(contract_id, what, self._gateway, head=head, asked_at=at)

    def probe(self, instrument: Instrument, contract_id: int) -> ProbeRecord | None:
        """Give what probing found last, however long ago."""
        return self._ledger.probe(contract_id, instrument.what_to_show.value, self._gateway)

    def is_probed(self, instrument: Instrument, contract_id: int, now: datetime) -> bool:
        """Say whether what probing found is still believed."""
        record = self.probe(instrument, contract_id)
        most = timedelta(seconds=IbLimitsRegistry.PROBE_CACHE_S.value)
        return record is not None and now - record.asked_at < most

    def record_search(
        self,
        instrument: Instrument,
        contract_id: int,
        search: Search,
        oldest: date,
        *,
        at: datetime,
        requests: int,
    ) -> None:
        """Remember what a search found: the oldest bar, and the stretches that are silent."""
        contract = (contract_id, instrument.what_to_show.value, self._gateway)
        self._ledger.record_probe(*contract, record=ProbeRecord(oldest, requests, at))
        for cell in (cell for cell, is_silent in search.silent.items() if is_silent):
            silence = SilenceRecord(cell.first, cell.end, at)
            self._ledger.record_silence(*contract, record=silence)

    def silences(
        self, instrument: Instrument, contract_id: int, now: datetime
    ) -> list[SilenceRecord]:
        """Give the stretches that probing found silent, as far as that is still believed."""
        what = instrument.what_to_show.value
        records = self._ledger.silences_of(contract_id, what, self._gateway)
        return [record for record in records if record.is_valid(now)]

    def record(self, instrument: Instrument, contract_id: int) -> HeadRecord | None:
        """Give what the gateway said of the oldest data, and when; None where it was not asked."""
        return self._ledger.head(contract_id, instrument.what_to_show.value, self._gateway)
