"""The ledger's probes: how far back data were found, and which stretches were found silent.

Both are of one contract and what_to_show at one gateway, in session dates. Not here: probing, and
what a silence excuses (``load``).
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.store.database import Database


@dataclass(frozen=True, slots=True)
class ProbeRecord:
    """The date of the oldest bar that probing found, after how many requests, and when."""

    oldest: date
    requests: int
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class SilenceRecord:
    """Session dates ``[first, end)`` that probing found to have no bar, and when."""

    first: date
    end: date
    asked_at: datetime

    @property
    def expires_at(self) -> datetime:
        """Until when that is believed: as long as a proof that old sessions are empty."""
        return self.asked_at + timedelta(days=IbLimitsRegistry.EMPTY_OLD_DAYS.value)

    def is_valid(self, now: datetime) -> bool:
        """Say whether that is still believed."""
        return now < self.expires_at


class ProbesTable(Database):
    """Probes and silences by contract id, what_to_show and gateway."""

    def record_probe(
        self, contract_id: int, what_to_show: str, gateway: str, *, record: ProbeRecord
    ) -> None:
        """Keep what probing found; it replaces what was found before."""
        values = (record.oldest.isoformat(), record.requests, micros(record.asked_at))
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO probes VALUES (?, ?, ?, ?, ?, ?)",
                (contract_id, what_to_show, gateway, *values),
            )

    def probe(self, contract_id: int, what_to_show: str, gateway: str) -> ProbeRecord | None:
        """Give what probing found last, or None."""
        with self._reading() as connection:
            row = connection.execute(
                "SELECT oldest, requests, asked_at FROM probes "
                "WHERE contract_id = ? AND what_to_show = ? AND gateway = ?",
                (contract_id, what_to_show, gateway),
            ).fetchone()
        return None if row is None else ProbeRecord(_day(row[0]), row[1], moment(row[2]))

    def record_silence(
        self, contract_id: int, what_to_show: str, gateway: str, *, record: SilenceRecord
    ) -> None:
        """Keep that a stretch was found silent."""
        days = (record.first.isoformat(), record.end.isoformat())
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO silences VALUES (?, ?, ?, ?, ?, ?)",
                (contract_id, what_to_show, gateway, *days, micros(record.asked_at)),
            )

    def silences_of(self, contract_id: int, what_to_show: str, gateway: str) -> list[SilenceRecord]:
        """Give the silences of one contract, oldest first."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT first_date, end_date, asked_at FROM silences "
                "WHERE contract_id = ? AND what_to_show = ? AND gateway = ? "
                "ORDER BY first_date, end_date",
                (contract_id, what_to_show, gateway),
            ).fetchall()
        return [SilenceRecord(_day(first), _day(end), moment(at)) for first, end, at in rows]

    def silences(self, gateway: str) -> dict[tuple[int, str], tuple[SilenceRecord, ...]]:
        """Give all silences of a gateway by contract id and what_to_show, oldest first."""
        found: dict[tuple[int, str], list[SilenceRecord]] = defaultdict(list)
        with self._reading() as connection:
            for contract_id, what, first, end, asked_at in connection.execute(
                "SELECT contract_id, what_to_show, first_date, end_date, asked_at FROM silences "
                "WHERE gateway = ? ORDER BY first_date, end_date",
                (gateway,),
            ):
                record = SilenceRecord(_day(first), _day(end), moment(asked_at))
                found[contract_id, what].append(record)
        return {key: tuple(records) for key, records in found.items()}


def _day(text: str) -> date:
    return date.fromisoformat(text)
