"""Learning sessions from the gateway: when it is asked, and what becomes of the book.

Policy. The hours in contract details cost no request: they are recorded whenever a contract is
looked up. A schedule is asked for

- always before a load of a calendar that only the gateway knows, and of one whose library ends
  before now, for the dates that are not known yet;
- once when a closed session of a known calendar stays silent and no schedule of the last 30 days
  reaches it: one request tells a year of the calendar, for all symbols of it.

What the gateway says of a date wins, as far as ``core.schedules.judged`` believes it; what is not
believed is noted. A failure to answer is noted too, and costs a known calendar nothing.

Not here: reading the answers (``ib.schedules``), where they are kept (``store.schedules``).
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import Final

from ktrdr_pipelines.core.answers import BarSource
from ktrdr_pipelines.core.calendars import Calendars, calendar_named, learned_key
from ktrdr_pipelines.core.instruments import Instrument, Series
from ktrdr_pipelines.core.intervals import Interval
from ktrdr_pipelines.core.schedules import LearnedDay, ScheduleSource, differs, every_day, judged
from ktrdr_pipelines.core.sessions import SessionCalendar
from ktrdr_pipelines.core.timeframes import Timeframe
from ktrdr_pipelines.errors import BadAnswerError, GatewayError
from ktrdr_pipelines.load.audit import About, Inquiry, audited
from ktrdr_pipelines.load.calendars import open_calendars
from ktrdr_pipelines.load.keeper import SourceKeeper
from ktrdr_pipelines.store.parquet import BarStore
from ktrdr_pipelines.store.schedules import ScheduleAsk

REACH_DAYS = 365
"""How far back one request reaches."""

_SCHEDULE: Final = "SCHEDULE"
_BELIEVED_FOR = timedelta(days=30)
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)


class Schedules:
    """What one run knows of sessions; the book grows as the gateway tells more.

    Args:
        store: whose ledger remembers it, and whose bars speak for sessions.
        keeper: where to ask.
    """

    def __init__(self, store: BarStore, keeper: SourceKeeper) -> None:
        self._store, self._keeper = store, keeper
        self._asking = asyncio.Lock()
        self.calendars: Calendars = open_calendars(store.ledger)
        self.requests = 0

    async def hear_hours(self, instrument: Instrument, note: Callable[[str], None]) -> None:
        """Record the hours in the details of a contract that was looked up."""
        try:
            days = await self._keeper.ask(lambda source: source.hours(instrument))
        except GatewayError as error:
            note(f"the trading hours of {instrument} cannot be read: {error}")
            return
        self._take(instrument, days, ScheduleSource.DETAILS, note)

    async def ensure(self, series: Series, stretch: Interval, note: Callable[[str], None]) -> None:
        """Learn the sessions of a stretch that no library knows, before anything is expected.

        Raises:
            GatewayError: the gateway did not tell, and without it nothing is known.
        """
        instrument, now = series.instrument, self._keeper.now()
        async with self._asking:
            while (missing := self._unknown(instrument, stretch, now)) is not None:
                await self._ask(instrument, missing, now, note)
        if self.calendars.of(instrument).known is None and instrument.end is None:
            raise BadAnswerError(
                f"sessions of {instrument}",
                came="the gateway told none that can be believed",
                remedy="Without them nothing is expected: name a known calendar in the universe",
            )

    async def after_empty_session(
        self, series: Series, day: date, note: Callable[[str], None]
    ) -> bool:
        """Ask, where that was not done lately, whether a silent date has a session at all.

        Returns: whether the calendar is another one now.
        """
        instrument, now = series.instrument, self._keeper.now()
        async with self._asking:
            before = self.calendars
            if not self._was_asked(instrument, day, now):
                try:
                    await self._ask(instrument, day, now, note)
                except GatewayError as error:
                    note(f"the schedule of {instrument.calendar} could not be learned: {error}")
                    ended_at = _asked_end(instrument, day, now)
                    last = calendar_named(instrument.calendar).day_of(ended_at)
                    self._remember(instrument, last, now)
            return self.calendars is not before

    def _unknown(self, instrument: Instrument, stretch: Interval, now: datetime) -> date | None:
        """Give the newest date before now of which nothing is known and nothing was asked."""
        library = calendar_named(instrument.calendar)
        until = min(library.day_of(min(stretch.end, now)), _last(instrument))
        first = max(library.day_of(stretch.start), instrument.start)
        if library.known is not None:
            first = max(first, library.known[1] + _DAY)
        learned = {one.day for one in self._learned(instrument)}
        day = until
        while day >= first:
            if day not in learned and not self._was_asked(instrument, day, now):
                return day
            day -= _DAY
        return None

    def _was_asked(self, instrument: Instrument, day: date, now: datetime) -> bool:
        """Say whether a schedule of the last 30 days, asked after the date was over, has it."""
        asks = self._store.ledger.schedule_asks(learned_key(instrument))
        return any(
            ask.first <= day < ask.end and now - ask.asked_at < _BELIEVED_FOR for ask in asks
        )

    async def _ask(
        self, instrument: Instrument, day: date, now: datetime, note: Callable[[str], None]
    ) -> None:
        """Ask for the year that ends a week after a date, and take in what comes.

        Only a session after the date shows that the schedule reaches it: without one, nothing is
        known of the date, and it is remembered that it was asked for.
        """
        ends_at, daily = _asked_end(instrument, day, now), Series(instrument, Timeframe.D1)
        self.requests += 1

        async def question(source: BarSource) -> list[LearnedDay]:
            contract_id = await source.contract_id(instrument)
            about = About(daily, contract_id, _SCHEDULE, ends_at, f"{REACH_DAYS} D")
            return await audited(
                Inquiry(
                    self._store.ledger,
                    source,
                    about,
                    self._keeper.patience.clock,
                    clock_offset_s=self._keeper.patience.clock_offset_s,
                ),
                lambda sent: source.schedule(instrument, ends_at, REACH_DAYS, sent=sent),
                outcome="schedule",
                told=lambda days: f"{len(days)} session dates",
            )

        days = await self._keeper.ask(question)
        told = every_day(days)
        self._remember(instrument, max(told[-1].day, day) if told else day, now)
        self._take(instrument, told, ScheduleSource.SCHEDULE, note)

    def _remember(self, instrument: Instrument, last: date, now: datetime) -> None:
        """Remember an asking that reached up to a date."""
        ask = ScheduleAsk(last + _WEEK - REACH_DAYS * _DAY, last + _DAY, now)
        self._store.ledger.record_ask(learned_key(instrument), ask)

    def _take(
        self,
        instrument: Instrument,
        days: Sequence[LearnedDay],
        source: ScheduleSource,
        note: Callable[[str], None],
    ) -> None:
        """Keep what is believed and new, and make the book anew where it says something new."""
        library = calendar_named(instrument.calendar)
        denied = any(not one.parts and differs(library, one) for one in days)
        told = judged(library, days, self._held(instrument) if denied else frozenset())
        if told.refused:
            note(f"the gateway's sessions of {instrument} are not believed: {told.refused}")
        known = {one.day: one for one in self._learned(instrument)}
        new = [one for one in told.days if _is_new(one, known.get(one.day), library)]
        if new:
            key, at = learned_key(instrument), self._keeper.patience.clock()
            self._store.ledger.record_days(key, new, source, at)
            self.calendars = open_calendars(self._store.ledger)

    def _learned(self, instrument: Instrument) -> list[LearnedDay]:
        return self._store.ledger.learned_days().get(learned_key(instrument), [])

    def _held(self, instrument: Instrument) -> frozenset[date]:
        """Give the dates of which bars of any timeframe below a week are held."""
        kinds = (one for one in Timeframe if one is not Timeframe.W1)
        return frozenset(
            day for kind in kinds for day in self._store.rows_per_session(Series(instrument, kind))
        )


def _is_new(told: LearnedDay, known: LearnedDay | None, library: SessionCalendar) -> bool:
    """Say whether a date is worth remembering: the library errs, or does not reach it."""
    if known is not None:
        return told != known
    return library.known is None or told.day > library.known[1] or differs(library, told)


def _asked_end(instrument: Instrument, day: date, now: datetime) -> datetime:
    return min(calendar_named(instrument.calendar).day_starts_at(day + _WEEK), now)


def _last(instrument: Instrument) -> date:
    return date.max if instrument.end is None else instrument.end - _DAY


def is_to_be_told(instrument: Instrument, now: datetime) -> bool:
    """Say whether the gateway must tell sessions before anything can be expected up to now."""
    known = calendar_named(instrument.calendar).known
    return known is None or known[1] < now.date() < _last(instrument)
