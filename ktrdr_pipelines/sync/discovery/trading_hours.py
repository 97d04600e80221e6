"""Learning trading sessions from the gateway: when they are requested, and how calendars change.

The hours in contract details cost no request: they are recorded whenever a contract is looked up. A
schedule is requested

- always before a load with a calendar that only the gateway knows, or with one whose library ends
  before now, for the dates that are not known yet;
- when a closed session of a known calendar had no bars, and no schedule of the contract received in
  the last 30 days reaches it: one request covers a year.

The sessions of a contract are recorded under its symbol if
``domain.calendars.gateway_schedules.judged`` accepts them, and only add to what is expected of it.
A contract that is representative of its calendar also has a vote on the calendar that symbols
share: three that agree change it, unless held bars contradict. Where the calendar is an assumption
(coins), the contract's own hours apply to that contract alone, and bars on a date reported as
closed make it expected again. Bars after the close extend the sessions of their instrument
(``domain.calendars.session_extension``). Rejected sessions, changes and failed requests are noted;
a failed request leaves a known calendar as it is.

Not here: parsing schedules (``ib.protocol.schedule_messages``), where they are kept
(``store.ledger.gateway_records``).
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import pyarrow as pa

from ktrdr_pipelines.domain.bars import timestamps, without_flat
from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    ScheduleSource,
    closed_against,
    days_by_close,
    differs,
    every_day,
    extending,
    judged,
    with_own_hours,
)
from ktrdr_pipelines.domain.calendars.registry import (
    Calendars,
    calendar_named,
    is_assumed,
    is_gateways,
    learned_key,
)
from ktrdr_pipelines.domain.calendars.session_extension import late_bars_of
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.responses import BarSource
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import BadAnswerError, GatewayError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.gateway_records import ScheduleAsk
from ktrdr_pipelines.store.ledger.ledger import Ledger
from ktrdr_pipelines.sync.discovery.shared_calendars import (
    SharedCalendars,
    changed_days,
    clock_text,
)
from ktrdr_pipelines.sync.engine.audited_requests import RequestAudit, RequestSubject, audited
from ktrdr_pipelines.sync.engine.source_session import SourceSession

_DATED_IN: Final = ZoneInfo("America/New_York")
"""Zone in which sessions of coins are dated by their close: west of every exchange, so that a
session that ends at midnight at any exchange belongs to the date before."""

REACH_DAYS = 365
"""How far back one request for a schedule reaches, in days."""

_SCHEDULE: Final = "SCHEDULE"
_VALID_FOR = timedelta(days=30)
_DAY, _WEEK = timedelta(days=1), timedelta(days=7)


class Schedules:
    """What one run knows of trading sessions; ``calendars`` is replaced when a run learns more.

    ``requests`` counts the requests for schedules.

    Args:
        store: its ledger keeps learned sessions, and its bars are evidence of sessions.
        source_session: where to request schedules.
    """

    def __init__(self, store: BarStore, source_session: SourceSession) -> None:
        self._store, self._source_session = store, source_session
        self._requesting: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.calendars: Calendars = store.ledger.calendars()
        self.requests = 0
        self._calendar_of: dict[str, str] = {}
        self._shared = SharedCalendars(store)
        self._unavailable: set[str] = set()
        self._has_bars: dict[str, frozenset[date]] = defaultdict(frozenset)

    async def learn_stated_hours(self, instrument: Instrument, note: Callable[[str], None]) -> None:
        """Record the hours in the details of a contract that was looked up."""
        try:
            days = await self._source_session.ask(lambda source: source.hours(instrument))
        except GatewayError as error:
            note(f"the trading hours of {instrument} cannot be read: {error}")
            return
        self._record_sessions(instrument, _dated(instrument, days), ScheduleSource.DETAILS, note)

    async def learn_own_hours(
        self, series: Series, interval: Interval, note: Callable[[str], None]
    ) -> None:
        """Request the sessions of an interval if a contract's hours differ from the assumption.

        A failed request is noted, and round-the-clock trading stays assumed for its dates. Other
        years are then left to the next run.
        """
        instrument, now = series.instrument, self._source_session.now()
        key = learned_key(instrument)
        if not is_assumed(instrument.calendar):
            return
        async with self._requesting[key]:
            while key not in self._unavailable and self._learned(instrument):
                missing = self._unknown(instrument, interval, now)
                if missing is None:
                    return
                try:
                    await self._request_schedule(instrument, missing, now, note)
                except GatewayError as error:
                    note(f"schedule of {instrument} not available: {error}")
                    self._record_request(instrument, missing, now)
                    self._unavailable.add(key)

    async def ensure(self, series: Series, interval: Interval, note: Callable[[str], None]) -> None:
        """Learn the sessions of an interval that no library knows, before anything is expected.

        Raises:
            GatewayError: a request failed, or the gateway returned no usable sessions.
        """
        instrument, now = series.instrument, self._source_session.now()
        async with self._requesting[learned_key(instrument)]:
            while (missing := self._unknown(instrument, interval, now)) is not None:
                await self._request_schedule(instrument, missing, now, note)
        if self.calendars.of(instrument).known is None and instrument.end is None:
            raise BadAnswerError(
                f"sessions of {instrument}",
                reason="the gateway returned no plausible ones",
                hint="Without sessions no bars are expected: set a known calendar in the universe",
            )

    async def after_empty_session(
        self, series: Series, day: date, note: Callable[[str], None]
    ) -> bool:
        """Request the schedule around a date without bars, unless requested in the last 30 days.

        Returns: whether the instrument's calendar or its closed dates have changed.
        """
        instrument, now = series.instrument, self._source_session.now()
        async with self._requesting[learned_key(instrument)]:
            before = self.calendars
            if not self._was_requested(instrument, day, now):
                try:
                    await self._request_schedule(instrument, day, now, note)
                except GatewayError as error:
                    note(f"schedule of {instrument} not available: {error}")
                    ended_at = _requested_end(instrument, day, now)
                    last = calendar_named(instrument.calendar).day_of(ended_at)
                    self._record_request(instrument, last, now)
            return not _is_same(before, self.calendars, instrument)

    def saw_bars(
        self,
        instrument: Instrument,
        timeframe: Timeframe,
        bars: pa.Table,
        note: Callable[[str], None] | None = None,
    ) -> bool:
        """Update calendars by bars after the close, or where contracts had agreed on no session.

        Flat bars, with which some gateways fill time without trades, are no evidence of a session.

        Args:
            instrument: the instrument of the bars.
            timeframe: the timeframe of the bars.
            bars: the kept bars of a response.
            note: receives notes for the user.

        Returns: whether the instrument's calendar or its closed dates have changed.
        """
        if timeframe is Timeframe.W1 or not (bars := without_flat(bars)).num_rows:
            return False
        before = self.calendars
        if shared := before.shared_days(instrument.calendar):
            texts = self._shared.refute(shared, instrument, timeframe, bars)
            if texts:
                self._rebuild_calendars()
            if note is not None:
                for text in texts:
                    note(text)
        if is_assumed(instrument.calendar):
            closed = _closed_with_bars(instrument, self._learned(instrument), timeframe, bars)
            if closed:
                self._store.ledger.schedules.remove(learned_key(instrument), closed)
                self._has_bars[instrument.symbol] |= closed
                self._rebuild_calendars()
                if note is not None:
                    days = ", ".join(map(str, sorted(closed)))
                    note(
                        f"the gateway reported {instrument} closed on {days}, but there are bars: "
                        "sessions are expected again"
                    )
        if timeframe.is_intraday:
            self._record_late_bars(instrument, timeframe, bars, note)
        return self.calendars is not before and not _is_same(before, self.calendars, instrument)

    # --- bars -----------------------------------------------------------------------------------

    def _record_late_bars(
        self,
        instrument: Instrument,
        timeframe: Timeframe,
        bars: pa.Table,
        note: Callable[[str], None] | None,
    ) -> None:
        """Record bars later after the close than known ones, and report which sessions change."""
        calendars, keys = self.calendars, timestamps(bars)
        base = calendars.before_late_bars(instrument)
        known = calendars.extensions(instrument)
        late = late_bars_of(base, keys, timeframe.seconds * 1_000_000, known)
        if not late:
            return
        held = calendars.late_bars(instrument.symbol)
        late = {day: bar for day, bar in late.items() if day not in held or bar > held[day]}
        if not late:
            return
        self._store.ledger.late_bars.record(instrument.symbol, late)
        self._rebuild_calendars()
        if note is None:
            return
        after = self.calendars.of(replace(instrument, end=None))
        zone = ZoneInfo(base.zone)
        known_extensions = {(one.length_us, one.by_us) for one in known}
        for one in self.calendars.extensions(instrument):
            if (one.length_us, one.by_us) in known_extensions:
                continue
            [old], [new] = (
                calendar.sessions(one.sessions[-1], one.sessions[-1] + _DAY)
                for calendar in (base, after)
            )
            kind = "sessions" if one.length_us is None else "short sessions"
            note(
                f"{kind} of {instrument} last until {clock_text(new.closes_at, zone)} instead of "
                f"{clock_text(old.closes_at, zone)} ({base.zone}): bars after the close on "
                f"{', '.join(map(str, one.sessions))}"
            )

    def _unknown(self, instrument: Instrument, interval: Interval, now: datetime) -> date | None:
        """Return the newest date before now that is not known and was not requested lately."""
        library = calendar_named(instrument.calendar)
        until = min(library.day_of(min(interval.end, now)), _last(instrument))
        first = max(library.day_of(interval.start), instrument.start)
        if library.known is not None and not is_assumed(instrument.calendar):
            first = max(first, library.known[1] + _DAY)
        learned = {one.day for one in self._learned(instrument)}
        day = until
        while day >= first:
            if day not in learned and not self._was_requested(instrument, day, now):
                return day
            day -= _DAY
        return None

    def _was_requested(self, instrument: Instrument, day: date, now: datetime) -> bool:
        """Return whether a schedule requested in the last 30 days, after the date, reaches it."""
        asks = self._store.ledger.schedules.asks(learned_key(instrument))
        return any(ask.first <= day < ask.end and now - ask.asked_at < _VALID_FOR for ask in asks)

    async def _request_schedule(
        self, instrument: Instrument, day: date, now: datetime, note: Callable[[str], None]
    ) -> None:
        """Request the year that ends a week after a date, and record its sessions.

        Only a session after the date shows that the schedule reaches it: without one, nothing is
        known of the date, and only the request is recorded.
        """
        ends_at = _requested_end(instrument, day, now)
        self.requests += 1

        reported = await _request(self._source_session, self._store.ledger, instrument, ends_at)
        days = every_day(_dated(instrument, reported))
        self._record_request(instrument, max(days[-1].day, day) if days else day, now)
        self._record_sessions(instrument, days, ScheduleSource.SCHEDULE, note)

    def _record_request(self, instrument: Instrument, last: date, now: datetime) -> None:
        """Record a request for a schedule that reached up to a date."""
        ask = ScheduleAsk(last + _WEEK - REACH_DAYS * _DAY, last + _DAY, now)
        self._store.ledger.schedules.record_ask(learned_key(instrument), ask)

    def _record_sessions(
        self,
        instrument: Instrument,
        days: Sequence[LearnedDay],
        source: ScheduleSource,
        note: Callable[[str], None],
    ) -> None:
        """Record the sessions that are accepted and new, and rebuild the calendars if any are."""
        library, assumed = calendar_named(instrument.calendar), is_assumed(instrument.calendar)
        if self._calendar_of.get(instrument.symbol) != instrument.calendar:  # once a run
            self._calendar_of[instrument.symbol] = instrument.calendar
            self._store.ledger.symbol_calendars.record(instrument.symbol, instrument.calendar)
        if assumed:
            held = self._has_bars[instrument.symbol] | _closed_with_held_bars(
                self._store, instrument, days
            )
        else:
            denied = any(not one.parts and differs(library, one) for one in days)
            held = self._shared.held_days(instrument) if denied else frozenset()
        accepted = judged(library, days, held, assumed=assumed)
        if accepted.refused:
            note(f"the gateway's sessions of {instrument} are rejected: {accepted.refused}")
        is_shared = not assumed and not is_gateways(instrument.calendar)
        if is_shared:
            for one in extending(self.calendars.shared(instrument.calendar), accepted.days).refused:
                note(
                    f"the gateway's session {one} of {instrument} is rejected: it reaches into "
                    "another session, or is more than eight hours longer than the known one"
                )
        known = {one.day: one for one in self._learned(instrument)}
        new = [one for one in accepted.days if _is_new(one, known.get(one.day), library)]
        if new:
            key, at = learned_key(instrument), self._source_session.retry_policy.clock()
            self._store.ledger.schedules.record(key, new, source, at)
        has_voted = False
        if accepted.days and is_shared:
            today = library.day_of(self._source_session.now())
            at = self._source_session.retry_policy.clock()
            has_voted = self._shared.vote(instrument, accepted.days, today, at)
        if new or has_voted:
            before = self.calendars
            self._rebuild_calendars()
            for text in changed_days(instrument.calendar, before, self.calendars):
                note(text)

    # --- what is known --------------------------------------------------------------------------

    def _rebuild_calendars(self) -> None:
        """Rebuild the calendars from the ledger."""
        self.calendars = self._store.ledger.calendars()

    def _learned(self, instrument: Instrument) -> list[LearnedDay]:
        return self._store.ledger.schedules.of(learned_key(instrument))


async def _request(
    source_session: SourceSession, ledger: Ledger, instrument: Instrument, ends_at: datetime
) -> list[LearnedDay]:
    """Request the schedule of the year up to a moment."""
    policy = source_session.retry_policy

    async def request(source: BarSource) -> list[LearnedDay]:
        contract_id = await source.contract_id(instrument)
        daily, duration = Series(instrument, Timeframe.D1), f"{REACH_DAYS} D"
        about = RequestSubject(daily, contract_id, _SCHEDULE, ends_at, duration)
        return await audited(
            RequestAudit(
                ledger,
                source,
                about,
                policy.clock,
                clock_offset_s=policy.clock_offset_s,
            ),
            lambda sent: source.schedule(instrument, ends_at, REACH_DAYS, sent=sent),
            outcome="schedule",
            proved=lambda days: f"{len(days)} session dates",
        )

    return await source_session.ask(request)


def _closed_with_bars(
    instrument: Instrument,
    days: Sequence[LearnedDay],
    timeframe: Timeframe,
    bars: pa.Table,
) -> frozenset[date]:
    """Return the dates reported as closed on which bars lie outside all reported sessions."""
    if not timeframe.is_intraday:
        held = bars["session_date"].to_pylist()
        return frozenset(held) & {one.day for one in days if not one.parts}
    calendar = with_own_hours(calendar_named(instrument.calendar), days)
    return closed_against(days, timestamps(bars), calendar)


def _closed_with_held_bars(
    store: BarStore, instrument: Instrument, days: Sequence[LearnedDay]
) -> frozenset[date]:
    """Return the dates reported as closed that held bars of any timeframe contradict."""
    if all(one.parts for one in days):
        return frozenset()
    around = Interval(midnight(days[0].day) - _DAY, midnight(days[-1].day) + 2 * _DAY)
    wrong: set[date] = set()
    for timeframe in Timeframe:
        if timeframe is Timeframe.W1:
            continue
        bars = without_flat(store.read(Series(instrument, timeframe), around))
        if bars.num_rows:
            wrong |= _closed_with_bars(instrument, days, timeframe, bars)
    return frozenset(wrong)


def _is_same(before: Calendars, after: Calendars, instrument: Instrument) -> bool:
    """Return whether two sets of calendars agree on an instrument and its closed dates."""
    return before is after or (
        before.of(instrument).is_same(after.of(instrument))
        and before.stated_closed(instrument) == after.stated_closed(instrument)
    )


def _is_new(reported: LearnedDay, known: LearnedDay | None, library: SessionCalendar) -> bool:
    """Return whether a date is worth recording: the library differs, or does not reach it."""
    if known is not None:
        return reported != known
    return library.known is None or reported.day > library.known[1] or differs(library, reported)


def _dated(instrument: Instrument, days: Sequence[LearnedDay]) -> Sequence[LearnedDay]:
    """Return reported days, dated the same for every kind of message if the calendar is assumed.

    Details and schedules may each use their own zone, and a schedule may date a session by its
    open, or have one that lasts for days.
    """
    if not is_assumed(instrument.calendar):
        return days
    parts = [part for one in days for part in one.parts]
    return days_by_close(parts, [one.day for one in days if not one.parts], _DATED_IN)


def _requested_end(instrument: Instrument, day: date, now: datetime) -> datetime:
    return min(calendar_named(instrument.calendar).day_starts_at(day + _WEEK), now)


def _last(instrument: Instrument) -> date:
    return date.max if instrument.end is None else instrument.end - _DAY


def must_learn_sessions(instrument: Instrument, now: datetime) -> bool:
    """Return whether sessions up to now must be learned from the gateway before a load."""
    known = calendar_named(instrument.calendar).known
    return known is None or known[1] < now.date() < _last(instrument)
