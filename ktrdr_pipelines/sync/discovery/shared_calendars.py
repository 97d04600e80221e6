"""Calendars that symbols share: contracts vote on them by their own hours, and bars refute.

Three contracts that agree change a shared calendar, unless held bars contradict.

Not here: when hours are requested (``sync.discovery.trading_hours``), what counts as agreement
(``domain.calendars.gateway_schedules``).
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import micros, timestamps
from ktrdr_pipelines.domain.calendars.gateway_schedules import (
    LearnedDay,
    SharedDay,
    agreed,
    differs,
    hours_of,
    lacks,
    speaks_for_others,
)
from ktrdr_pipelines.domain.calendars.registry import Calendars, calendar_named
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight
from ktrdr_pipelines.domain.instruments import Instrument, Series
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.bar_store import BarStore

_DAY = timedelta(days=1)


class SharedCalendars:
    """The votes of contracts on the calendars that symbols share.

    Args:
        store: its ledger keeps the votes, and its bars are evidence of sessions.
    """

    def __init__(self, store: BarStore) -> None:
        self._store = store
        self._refuted: set[tuple[str, LearnedDay]] = set()

    def vote(
        self, instrument: Instrument, days: Sequence[LearnedDay], today: date, at: datetime
    ) -> bool:
        """Count a contract's sessions as votes on its shared calendar; return whether any changed.

        A contract that agrees with the library votes only where another one did not. One that is
        not representative loses the votes that it had on these dates. Hours in which bars are held
        are never removed: where contracts would agree on that, their votes are withdrawn.

        Args:
            instrument: the instrument of the contract.
            days: its sessions, as accepted.
            today: the session date now.
            at: this machine's time.
        """
        library = calendar_named(instrument.calendar)
        key, ledger, symbol = instrument.calendar, self._store.ledger, instrument.symbol
        votes = ledger.votes.of(key)
        counting = [
            one
            for one in days
            if (one.day in votes or differs(library, one))
            and (library.known is None or one.day <= library.known[1])
            and (key, one) not in self._refuted
        ]
        if not counting:
            return False
        held = self.held_days(instrument)
        cast: list[LearnedDay] = []
        lost: list[date] = []
        refuted: list[date] = []
        for one in counting:
            day_votes = votes.get(one.day, {})
            if not speaks_for_others(library, instrument, one.day, today=today, held=held):
                lost += [one.day] if symbol in day_votes else []
                continue
            # A vote for the library's hours is the same whether or not it includes breaks.
            vote = one if differs(library, one) else hours_of(library, one.day)
            if day_votes.get(symbol) == vote:
                continue
            before, after = agreed(day_votes), agreed({**day_votes, symbol: vote})
            if (
                after is not None
                and (before is None or before.stated != after.stated)
                and self._is_held(instrument, library, after.stated, today)
            ):
                self._refuted.add((key, after.stated))
                refuted.append(one.day)
                continue
            cast.append(vote)
        if lost:
            ledger.votes.withdraw(key, lost, symbol=symbol)
        if refuted:
            ledger.votes.withdraw(key, refuted)
        if cast:
            ledger.votes.record(key, symbol, cast, at)
        return bool(lost or refuted or cast)

    def _is_held(
        self, like: Instrument, library: SessionCalendar, reported: LearnedDay, today: date
    ) -> bool:
        """Return whether the store has bars in the hours that a reported date removes.

        Symbols whose calendar is not known yet count too: it may be this one.
        """
        if reported.day > today or not lacks(library, reported):
            return False
        key = like.calendar
        around = Interval(midnight(reported.day) - _DAY, midnight(reported.day) + 2 * _DAY)
        calendar_of = self._store.ledger.symbol_calendars.all()
        for symbol, timeframe in self._store.series_on_disk():
            if timeframe is Timeframe.W1 or calendar_of.get(symbol, key) != key:
                continue
            bars = self._store.read(Series(replace(like, symbol=symbol), timeframe), around)
            if _has_removed_bars(library, reported, timeframe, bars):
                return True
        return False

    def refute(
        self,
        shared: Sequence[SharedDay],
        instrument: Instrument,
        timeframe: Timeframe,
        bars: pa.Table,
    ) -> list[str]:
        """Withdraw votes of contracts that agreed to remove hours in which bars lie.

        Args:
            shared: the dates on which contracts agree that the instrument's calendar is wrong.
            instrument: the instrument of the bars.
            timeframe: the timeframe of the bars.
            bars: bars, none of them flat.

        Returns: a text for each date on which the calendar's own hours apply again.
        """
        key = instrument.calendar
        library = calendar_named(key)
        wrong = [one for one in shared if _has_removed_bars(library, one.stated, timeframe, bars)]
        if not wrong:
            return []
        self._refuted.update((key, one.stated) for one in wrong)
        self._store.ledger.votes.withdraw(key, [one.stated.day for one in wrong])
        return [
            f"{key} {one.stated.day}: bars of {instrument} lie outside the hours that the "
            f"schedules of {len(one.symbols)} contracts give; the calendar's own hours apply again"
            for one in wrong
        ]

    def held_days(self, instrument: Instrument) -> frozenset[date]:
        """Return the dates with held bars of any timeframe but 1w."""
        kinds = (one for one in Timeframe if one is not Timeframe.W1)
        return frozenset(
            day for kind in kinds for day in self._store.rows_per_session(Series(instrument, kind))
        )


def _has_removed_bars(
    library: SessionCalendar, reported: LearnedDay, timeframe: Timeframe, bars: pa.Table
) -> bool:
    """Return whether bars lie in what a reported date removes from a library's session."""
    if not bars.num_rows or not lacks(library, reported):
        return False
    if not timeframe.is_intraday:
        days = bars["session_date"].to_numpy().astype("datetime64[D]")
        return not reported.parts and bool((days == np.datetime64(reported.day)).any())
    keys = timestamps(bars)
    [session] = library.sessions(reported.day, reported.day + _DAY)
    removed = IntervalSet([Interval(session.opens_at, session.closes_at)])
    if reported.parts:
        removed -= IntervalSet([Interval(reported.parts[0].start, reported.parts[-1].end)])
    return any(
        np.searchsorted(keys, micros(part.start)) < np.searchsorted(keys, micros(part.end))
        for part in removed
    )


def changed_days(key: str, before: Calendars, after: Calendars) -> list[str]:
    """Return one text for each changed date of a calendar that symbols share."""
    library = calendar_named(key)
    zone = ZoneInfo(library.zone)
    old, new = (
        {one.stated.day: one for one in calendars.shared_days(key)} for calendars in (before, after)
    )
    texts = []
    for day in sorted(old.keys() | new.keys()):
        was, now = old.get(day), new.get(day)
        if was is not None and now is not None and was.stated == now.stated:
            continue
        own = hours_of(library, day)
        hours = _hours_text(now.stated if now else own, zone)
        known = _hours_text(was.stated if was else own, zone)
        why = (
            f"according to {len(now.symbols)} contracts: {', '.join(now.symbols)}"
            if now
            else "because the contracts that changed it no longer agree"
        )
        texts.append(f"{key} {day}: {hours} instead of {known} ({library.zone}), {why}")
    return texts


def _hours_text(reported: LearnedDay, zone: ZoneInfo) -> str:
    if not reported.parts:
        return "closed"
    return f"{clock_text(reported.parts[0].start, zone)}-{clock_text(reported.parts[-1].end, zone)}"


def clock_text(at: datetime, zone: ZoneInfo) -> str:
    """Return a moment as a time of day in a zone."""
    return f"{at.astimezone(zone):%H:%M}"
