"""Confirming empty sessions: what a series still lacks after everything was requested.

Sessions without bars are judged by all statements about their symbol. If these do not suffice,
daily bars are requested: one year of them, with bars on both sides, is evidence for 250 sessions of
every timeframe. A control, a request for bars that are held, shows that the gateway did return bars
at the time when it had none for the rest.

Not here: the rule (``domain.planning.empty_ranges``), what is open (``sync.engine.open_ranges``).
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

from ktrdr_pipelines.domain.instruments import Series
from ktrdr_pipelines.domain.intervals import IntervalSet
from ktrdr_pipelines.domain.planning.chunks import newest_closed_day, session_chunk
from ktrdr_pipelines.domain.planning.empty_ranges import (
    STATEMENT_DAYS,
    WITHOUT_BARS,
    Proof,
    Statement,
    StatementKind,
    stated_days,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.evidence import Evidence
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester
from ktrdr_pipelines.sync.engine.daily_bars import DailyBars
from ktrdr_pipelines.sync.engine.open_ranges import OpenAttempt, OpenRanges
from ktrdr_pipelines.sync.engine.series_state import SeriesState, StateChange


class Confirmation:
    """Confirms as empty what one run leaves open of one series.

    Each step yields a ``StateChange``, which the series run applies before the next one.
    ``found_bars`` says that some sessions turned out to have bars, and are to be requested.

    Args:
        state: the state of the series, which is only read here.
        open_ranges: what is open.
        requester: sends the requests.
        evidence: the statements.
        schedules: requests the contract's own hours.
    """

    def __init__(
        self,
        state: SeriesState,
        open_ranges: OpenRanges,
        requester: BarRequester,
        *,
        evidence: Evidence,
        schedules: Schedules,
    ) -> None:
        self._state, self._open_ranges = state, open_ranges
        self._requester, self._evidence, self._schedules = requester, evidence, schedules
        self._series = state.series
        self._daily_bars = DailyBars(state, open_ranges, requester, evidence)
        self._left = IntervalSet()
        self.found_bars = False

    def from_statements(self) -> StateChange:
        """Return what statements of other runs and timeframes prove, without any request.

        What they do not prove is requested with bars on both sides from now on.
        """
        found = self._open_ranges.stated()
        empty = [one for one in found if any(said.kind in WITHOUT_BARS for said in one.statements)]
        has_bars = self._state.oldest_open is not None
        return replace(
            self._open_ranges.confirmed(found),
            without_bars=IntervalSet(one.span.interval for one in empty),
            unconfirmed=IntervalSet(
                one.span.interval
                for one in empty
                if has_bars and not self._state.is_before_bars(one.span)
            ),
        )

    def left_to_daily_bars(self) -> StateChange:
        """Skip the sessions that one request for daily bars, evidence for a year, can confirm.

        These are sessions whose confirmed empty range has expired, and sessions that daily bars
        have shown to be empty although their neighbours are full; on the day that decides, the
        latter are requested themselves. Sessions that turn out to have traded are requested
        afterwards.
        """
        expired, left = self._state.confirmed_before, []
        for one in self._open_ranges.sessions() if expired else self._open_ranges.stated():
            is_told = any(_is_daily(said) for said in one.statements)
            is_early = (
                one.verdict.proof is Proof.CONTRADICTED
                and len(stated_days(one.statements)) < STATEMENT_DAYS - 1
            )
            if (is_told and is_early) or expired.covers(one.span.interval):
                left.append(one.span.interval)
        self._left = IntervalSet(left)
        return StateChange(skipped=self._left)

    def attempts(self) -> Iterator[OpenAttempt]:
        """Yield what stays open, and when another statement can count."""
        return self._open_ranges.attempts()

    async def run(self) -> AsyncGenerator[StateChange]:
        """Confirm what can be confirmed now; everything that was received is on disk already.

        Raises:
            GatewayError: a request failed after all retries.
        """
        self.found_bars = False
        if not self._open_ranges.has_gaps:
            return
        sessions, parts = self._open_ranges.sessions, self._open_ranges.parts
        yield self._open_ranges.confirmed(sessions())
        if not sessions() and not parts():
            return
        async with self._evidence.of(self._series.symbol).lock:
            before = [
                one
                for one in sessions()
                if self._state.oldest_open is None or self._state.is_before_bars(one.span)
            ]
            if before:
                yield StateChange(is_about_beginning=True)
                if self._state.begins is None:
                    if any(one.statements for one in before):
                        await self._requester.head()
                    yield StateChange(is_about_beginning=True)
            yield self._open_ranges.confirmed(sessions())
            async with aclosing(self._daily_bars.request()) as changes:
                async for change in changes:
                    self.found_bars |= bool(change.resumed)
                    yield change
            if not self.found_bars:
                change = self._not_confirmed_by_daily_bars()
                self.found_bars = bool(change.resumed)
                yield change
            await self._request_schedule()
            yield StateChange()  # with the calendar as it is known now
            if not self.found_bars:
                await self._control()
        yield self._open_ranges.confirmed((*sessions(), *parts()))

    def _not_confirmed_by_daily_bars(self) -> StateChange:
        """Resume what daily bars should have proved but did not."""
        today = self._requester.source_session.gateway_now().date()
        left, self._left = self._left, IntervalSet()
        return StateChange(
            resumed=IntervalSet(
                one.span.interval
                for one in self._open_ranges.sessions()
                if left.covers(one.span.interval)
                and not any(
                    _is_daily(said) and said.said_at.date() == today for said in one.statements
                )
            )
        )

    # --- schedule and control ------------------------------------------------------------------

    async def _request_schedule(self) -> None:
        """Request the schedule of the contract if a day is empty among full ones."""
        for one in reversed(self._open_ranges.sessions()):
            kinds = {said.kind for said in one.statements}
            is_puzzling = one.verdict.proof is Proof.CONTRADICTED and StatementKind.AROUND in kinds
            if is_puzzling and StatementKind.TRADED not in kinds:
                day = max(self._state.calendar.days_meeting(one.span.open_interval))
                note = self._requester.note
                await self._schedules.after_empty_session(self._series, day, note)
                return

    async def _control(self) -> None:
        """Request bars that are held, so that responses without bars can count."""
        today = self._requester.source_session.gateway_now().date()
        waiting = {
            said.timeframe
            for one in (*self._open_ranges.sessions(), *self._open_ranges.parts())
            if one.verdict.proof is not Proof.CONTRADICTED
            or today not in stated_days(one.statements)
            for said in one.statements
            if said.kind is StatementKind.EMPTY and not said.controlled
        }
        if self._series.timeframe.value in waiting:
            await self._control_of(self._series)
        daily = Series(self._series.instrument, Timeframe.D1)
        if daily != self._series and Timeframe.D1.value in waiting:
            await self._control_of(daily)

    async def _control_of(self, series: Series) -> None:
        """Request one held session of a series; without bars, statements around it are voided."""
        requester, calendar = self._requester, self._state.calendar
        held, now = self._evidence.held_days(series), requester.source_session.now()
        day = held[len(held) // 2] if held else newest_closed_day(calendar, now)
        chunk = session_chunk(calendar, series.timeframe, day, now) if day else None
        if chunk is None:
            return
        received = await requester.bars_of(series.timeframe, chunk.ends_at, chunk.duration)
        at = requester.source_session.gateway_now()
        if received.with_bars is not None:
            requester.record(received, "a control: bars came")
            self._evidence.saw_bars(series.symbol, series.timeframe, at)
            return
        if not held:
            requester.record(received, "a control: no bars of the newest session either")
            return
        requester.record(received, "a control: no bars for a session that is held")
        if self._evidence.void_around(at):
            requester.note(
                f"the gateway returned no bars of {series} for {day} although the store has some: "
                "its responses without bars within a day of this one no longer count"
            )


def _is_daily(said: Statement) -> bool:
    """Return whether a response had daily bars on both sides of a session but none of it."""
    return said.kind is StatementKind.AROUND and said.timeframe == Timeframe.D1
