"""Establishing the price basis on which the gateway serves a symbol, and finding re-basings.

IB serves bars adjusted for the splits that are known on the day of the request. Every response of a
stock is therefore compared with held bars that it has too. A comparison shows that the basis is the
same, that the symbol was re-based, or too little.

Until the basis of a symbol is established on a session date, its newest held bars are compared
first: by the tail that starts at them, at no extra request, else by one request for them alone.
A re-basing takes two responses, to different requests, that agree on the ratio for the newest held
bars. Until then, and where a comparison shows too little, received bars are on an unconfirmed
basis. Bars that cannot be compared are presumed to be on the basis that was established; if a
re-basing is found later, those of them that were requested after the last confirmation are
requested again.

Not here: the comparison itself (``domain.price_basis``), what recording an adjustment does
(``store.rebasing``).
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import Enum, auto
from typing import Final

import numpy as np
import pyarrow as pa

from ktrdr_pipelines.domain.bars import UNCONFIRMED, basis_of, micros, moment, timestamps
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.chunks import BY_THE_YEAR
from ktrdr_pipelines.domain.planning.responses import Response
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.domain.price_basis import (
    Adjustment,
    AdjustmentKind,
    BasisComparison,
    BasisVerdict,
    compare_basis,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ClientIdInUseError, GatewayError, GatewayUnreachableError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.ledger.basis_records import BasisCheck
from ktrdr_pipelines.store.ledger.file_index import IndexedFile
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.store.rebasing import record_adjustment, require_current_views
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester, Requests

_DAY, _SOON, _INSTANT = timedelta(days=1), timedelta(days=14), timedelta(microseconds=1)
_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

_SESSIONS: Final = {Timeframe.D1: 5, Timeframe.W1: 4, Timeframe.H4: 5, Timeframe.H1: 2}
"""How many of the newest held sessions (1w: weeks) a request for them alone has; of shorter
timeframes one session has bars enough."""

_ENOUGH: Final = 3
"""Bars that, compared without a constant ratio, are corrected bars and no re-basing."""

_LEAST_REPORTED: Final = 0.009
"""Change of price, as a share, from which bars at other prices are reported."""

_MOST_REQUESTS: Final = 2

_SAME_RATIO: Final = 0.005
"""Distance, as a share, of two estimates of one ratio: both were made from rounded prices."""


@dataclass(frozen=True, slots=True)
class FetchedBasis:
    """The basis of the bars of one response.

    ``basis`` is the number of the last adjustment that they include, ``UNCONFIRMED`` where that is
    not known. ``is_presumed``: no held bar could be compared.
    """

    basis: int
    is_presumed: bool = False


class BasisChecks:
    """The price bases of the symbols of one run.

    Args:
        store: the held bars, the adjustments, and the ledger.
        requests: the requests of the run.
    """

    def __init__(self, store: BarStore, requests: Requests) -> None:
        self._store, self._run = store, requests
        self._session = requests.source_session
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tried: set[tuple[str, date]] = set()
        self._reported: set[tuple[Series, DisagreementKind]] = set()
        self._are_views_current = False

    # --- establishing --------------------------------------------------------------------------

    def is_established(self, instrument: Instrument, calendar: SessionCalendar) -> bool:
        """Return whether the basis of an instrument is established on the present session date."""
        if not _has_splits(instrument):
            return True
        today = self._today(calendar)
        known = self._store.ledger.basis_checks.of(instrument.symbol)
        is_known = known.established_on == today and known.stated_ratio is None
        return is_known or (instrument.symbol, today) in self._tried

    async def establish(self, requester: BarRequester, calendar: SessionCalendar) -> None:
        """Compare the newest held bars of a symbol, unless its basis is established already.

        Args:
            requester: requests bars of the instrument.
            calendar: the sessions of the instrument.
        """
        instrument = requester.series.instrument
        if self.is_established(instrument, calendar):
            return
        async with self._locks[instrument.symbol]:
            if self.is_established(instrument, calendar):
                return
            today = self._today(calendar)
            self._tried.add((instrument.symbol, today))
            if self._newest(instrument) is None:
                self._change(instrument.symbol, lambda known: replace(known, established_on=today))
                return
            for _ in range(_MOST_REQUESTS):
                if self._may_request(instrument, calendar):
                    await self._request_newest(requester, calendar)

    # --- responses -----------------------------------------------------------------------------

    async def received(
        self,
        requester: BarRequester,
        calendar: SessionCalendar,
        response: Response,
        requested_at: datetime,
    ) -> FetchedBasis:
        """Return the basis of the bars of a response, compared with those that are held.

        Args:
            requester: sent the request.
            calendar: the sessions of the series.
            response: the response.
            requested_at: when the request was sent, by this machine's clock.
        """
        series = requester.series
        if not _has_splits(series.instrument):
            self._report_other(requester, response.bars, self._compared(series, response.bars))
            return FetchedBasis(0)
        async with self._locks[series.symbol]:
            self._require_current_views()
            statement = _Statement(series, calendar, str(response.request), requested_at)
            adjustments = self._store.history.of(series.symbol)
            found = self._compared(series, response.bars)
            if adjustments and requested_at < adjustments[-1].found_at:
                # It may be on the basis of before, and proves nothing about the present one.
                is_same = found.verdict is BasisVerdict.SAME
                return FetchedBasis(len(adjustments) if is_same else UNCONFIRMED)
            judged = self._judge(requester, statement, found)
            while judged is _Judgement.OPEN and self._may_request(series.instrument, calendar):
                await self._request_newest(requester, calendar)
                found = self._compared(series, response.bars)
                judged = self._judge(requester, statement, found)
            if judged is _Judgement.OPEN:
                return FetchedBasis(UNCONFIRMED)
            self._report_other(requester, response.bars, found)
            number = len(self._store.history.of(series.symbol))
            return FetchedBasis(number, is_presumed=judged is _Judgement.UNKNOWN)

    def _compared(self, series: Series, bars: pa.Table) -> BasisComparison:
        """Return how bars of a response compare with held ones.

        The first of several intraday bars may be clipped, and is left out.
        """
        if series.timeframe.is_intraday and bars.num_rows > 1:
            bars = bars.slice(1)
        keys = timestamps(bars)
        around = Interval(moment(keys[0]), moment(keys[-1]) + _INSTANT)
        if not self._store.coverage(series).bars.clip(around):
            return BasisComparison(BasisVerdict.UNKNOWN)
        raw = self._store.read_raw(series, around)
        raw = raw.filter(pa.array(basis_of(raw) != UNCONFIRMED))
        held = self._store.on_todays_basis(series.symbol, raw)
        times = np.ones(held.num_rows)
        stored, now = (one["close"].to_numpy() for one in (raw, held))
        np.divide(now, stored, out=times, where=stored != 0)
        return compare_basis(held, bars, times)

    def _judge(
        self, requester: BarRequester, statement: "_Statement", found: BasisComparison
    ) -> "_Judgement":
        """Return what a comparison means, and record it."""
        symbol, calendar = statement.series.symbol, statement.calendar
        known, today = self._store.ledger.basis_checks.of(symbol), self._today(calendar)
        is_confirmed = known.established_on == today and known.confirmed_at is not None
        if found.verdict is BasisVerdict.UNKNOWN:
            return _Judgement.UNKNOWN if known.stated_ratio is None else _Judgement.OPEN
        if found.verdict is BasisVerdict.SAME:
            self._confirm(statement)
            return _Judgement.KNOWN
        if found.verdict in {BasisVerdict.UNIT, BasisVerdict.OTHER}:
            self._change(symbol, lambda one: replace(one, established_on=today))
            return _Judgement.KNOWN
        is_newest = self._is_of_newest(statement, found)
        if found.verdict is BasisVerdict.REBASED and (
            is_newest or self._is_stated(statement, found, known)
        ):
            return self._state_rebasing(requester, statement, found, known)
        # Older bars on another basis than the newest ones: an earlier version mixed them. And bars
        # without a constant ratio are corrected, if the newest ones show the basis to be the same.
        is_settled = is_confirmed and not is_newest
        if found.verdict is BasisVerdict.UNCLEAR:
            is_later = known.confirmed_at is not None and (
                known.confirmed_at >= statement.requested_at
            )
            is_settled |= is_confirmed and is_later
            is_settled |= found.bars >= _ENOUGH and not found.is_constant
        return _Judgement.KNOWN if is_settled else _Judgement.OPEN

    @staticmethod
    def _is_stated(statement: "_Statement", found: BasisComparison, known: BasisCheck) -> bool:
        """Return whether the response to another request stated the same ratio before."""
        is_same = (known.stated_by, known.stated_at) == (statement.request, statement.requested_at)
        if known.stated_ratio is None or is_same:
            return False
        return abs(found.ratio / known.stated_ratio - 1) <= _SAME_RATIO

    def _state_rebasing(
        self,
        requester: BarRequester,
        statement: "_Statement",
        found: BasisComparison,
        known: BasisCheck,
    ) -> "_Judgement":
        """Record a re-basing, or that one response stated it, if that is the first."""
        if self._is_stated(statement, found, known):
            self._record(requester, statement, found, known)
            self._confirm(statement)
            return _Judgement.KNOWN
        self._change(
            statement.series.symbol,
            lambda one: replace(
                one,
                stated_ratio=found.ratio,
                stated_bars=found.bars,
                stated_by=statement.request,
                stated_at=statement.requested_at,
            ),
        )
        return _Judgement.OPEN

    def _confirm(self, statement: "_Statement") -> None:
        """Record that a request showed the basis to be the newest one that is known."""
        symbol, calendar = statement.series.symbol, statement.calendar
        number, today = len(self._store.history.of(symbol)), self._today(calendar)
        now = self._session.now()
        coming = calendar.sessions(today, today + _SOON)
        next_session = next((one.day for one in coming if one.opens_at > now), today + _DAY)

        def confirmed(known: BasisCheck) -> BasisCheck:
            times = [known.confirmed_at] if known.basis == number else []
            newest = max(filter(None, [*times, statement.requested_at]))
            is_refuted = known.stated_at is None or known.stated_at <= statement.requested_at
            found = replace(
                known,
                basis=number,
                established_on=today,
                confirmed_at=newest,
                next_session=next_session,
            )
            if not is_refuted:
                return found
            return replace(found, stated_ratio=None, stated_bars=0, stated_by="", stated_at=None)

        self._change(symbol, confirmed)

    def _record(
        self,
        requester: BarRequester,
        statement: "_Statement",
        found: BasisComparison,
        known: BasisCheck,
    ) -> None:
        """Record the re-basing on which two responses agree."""
        series, calendar = statement.series, statement.calendar
        number = len(self._store.history.of(series.symbol))
        ratio = found.ratio
        if known.stated_ratio is not None and known.stated_bars > found.bars:
            ratio = known.stated_ratio
        effective, is_estimated = self._effective(series.instrument, calendar, known, number)
        adjustment = Adjustment(
            number=number + 1,
            ratio=ratio,
            volume_ratio=1 / ratio,
            kind=AdjustmentKind.SPLIT,
            effective=effective,
            is_estimated=is_estimated,
            found_at=self._clock(),
            old_until=self._old_until(series, found, known, number),
            evidence=f"{found.bars} bars of {series} from {found.first:%Y-%m-%d %H:%MZ} to "
            f"{found.last:%Y-%m-%d %H:%MZ} were returned at {found.ratio:.6g} times their price, "
            f"and their volumes inversely, to the request {statement.request} at "
            f"{statement.requested_at:%Y-%m-%d %H:%M:%SZ}; so were {known.stated_bars} bars to the "
            f"request {known.stated_by} at {known.stated_at:%Y-%m-%d %H:%M:%SZ}",
        )
        if record_adjustment(self._store, series.symbol, adjustment):
            about = "about " if is_estimated else ""
            requester.note(
                f"re-based (a split): the prices of bars that were requested before are multiplied "
                f"by {ratio:.6g} when they are read, their volumes by {1 / ratio:.6g}; effective "
                f"{about}{effective}. `ktrdr load {series} --refresh` requests them again"
            )

    def _effective(
        self, instrument: Instrument, calendar: SessionCalendar, known: BasisCheck, number: int
    ) -> tuple[date, bool]:
        """Return the first session after the last request on the old basis; whether one is skipped.

        If a later session has opened since, the basis may have changed only then.
        """
        days = [day for _, day in self._newest_days(instrument)]
        last = max(days, default=None)
        after = calendar.sessions(last + _DAY, last + _SOON) if last else []
        found = [one.day for one in after[:1]]
        if known.basis == number and known.next_session is not None:
            found.append(known.next_session)
        today = self._today(calendar)
        effective = max(found, default=today)
        return effective, effective < today

    def _old_until(
        self, series: Series, found: BasisComparison, known: BasisCheck, number: int
    ) -> datetime:
        """Return until when requests were on the old basis for certain."""
        times = [known.confirmed_at] if known.basis == number else []
        compared = Interval(found.first or _LONG_AGO, (found.last or _LONG_AGO) + _INSTANT)
        for timeframe in self._store.layout.timeframes_of(series.symbol):
            for row in self._store.files.of_symbol(series.symbol, timeframe).values():
                times.append(row.basis.confirmed_at)
                if timeframe is series.timeframe:
                    times += [
                        one.fetched_at
                        for one in row.basis.presumed
                        if one.interval.overlaps(compared)
                    ]
        return max(filter(None, times), default=_LONG_AGO)

    def _report_other(
        self, requester: BarRequester, bars: pa.Table, found: BasisComparison
    ) -> None:
        """Record prices at another ratio that is no re-basing, and report them once a run."""
        series = requester.series
        is_unit = found.verdict is BasisVerdict.UNIT
        is_far = abs(found.ratio - 1) >= _LEAST_REPORTED and found.bars >= _ENOUGH
        if found.verdict in {BasisVerdict.SAME, BasisVerdict.UNKNOWN} or not is_far:
            return
        kind = DisagreementKind.UNIT if is_unit else DisagreementKind.PRICE
        if (series, kind) in self._reported:
            return
        self._reported.add((series, kind))
        first, last = found.first, found.last
        assert first is not None and last is not None  # noqa: S101, PT018  (bars were compared)
        if is_unit:
            keys = timestamps(bars)
            newer = keys[keys > micros(last)]
            first, last = (moment(newer[0]), moment(newer[-1])) if len(newer) else (first, last)
        differing = Disagreement(first, last, found.bars, found.ratio, kind)
        self._store.ledger.disagreements.record(series_key(series), differing, self._clock())
        requester.note(differing.text_for(series))

    # --- the newest held bars ------------------------------------------------------------------

    async def _request_newest(self, requester: BarRequester, calendar: SessionCalendar) -> None:
        """Request the newest held bars of a symbol alone, and judge the response.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
        """
        instrument, today = requester.series.instrument, self._today(calendar)
        newest = self._newest(instrument)
        if newest is None:
            return
        timeframe, _ = newest
        before = self._store.ledger.basis_checks.of(instrument.symbol)
        count = before.requests + 1 if before.requested_on == today else 1
        ends_at, duration = self._request_for(requester, calendar, newest, is_second=count > 1)
        self._change(
            instrument.symbol, lambda known: replace(known, requested_on=today, requests=count)
        )
        try:
            received = await requester.bars_of(timeframe, ends_at, duration)
        except (GatewayUnreachableError, ClientIdInUseError):
            raise
        except GatewayError as error:
            requester.note(f"the price basis could not be checked: {error}")
            return
        response, proved = received.with_bars, "the price basis: nothing, without bars"
        if response is not None:
            series = Series(instrument, timeframe)
            request, requested_at = str(response.request), received.requested_at
            statement = _Statement(series, calendar, request, requested_at)
            found = self._compared(series, response.bars)
            self._judge(requester, statement, found)
            proved = f"the price basis: {found.verdict}"
        requester.record(received, proved)

    def _request_for(
        self,
        requester: BarRequester,
        calendar: SessionCalendar,
        newest: tuple[Timeframe, date],
        *,
        is_second: bool,
    ) -> tuple[datetime, str]:
        """Return end and duration of the request for the newest held bars.

        A second one reaches further back, so that it is not identical to the first.
        """
        timeframe, day = newest
        first = monday_of(day) if timeframe is Timeframe.W1 else day
        length = 7 * _DAY if timeframe is Timeframe.W1 else _DAY
        sessions = calendar.sessions(first, first + length)
        ends_at = sessions[-1].closes_at if sessions else midnight(first + length)
        if not timeframe.is_intraday:
            ends_at = max(calendar.last_second_of(ends_at), ends_at)
        most, count = requester.widths.most(timeframe), _SESSIONS.get(timeframe, 1) + is_second
        unit = "W" if timeframe is Timeframe.W1 else "D"
        duration = f"{min(most or count, count)} {unit}"
        if most == BY_THE_YEAR and not timeframe.is_intraday:
            duration = "1 Y"
        return min(ends_at, self._session.now()), duration

    def _newest_days(self, instrument: Instrument) -> Iterator[tuple[Timeframe, date]]:
        """Yield each timeframe with bars on a known basis, and the newest session date of these."""
        for timeframe in self._store.layout.timeframes_of(instrument.symbol):
            rows = self._store.files.of_symbol(instrument.symbol, timeframe).values()
            days = [day for row in rows if (day := _newest_day(row)) is not None]
            if days:
                yield timeframe, max(days)

    def _newest(self, instrument: Instrument) -> tuple[Timeframe, date] | None:
        """Return the timeframe to compare first, and its newest session date; None without bars.

        Daily bars if there are any, else the longest shorter ones: few bars say enough then.
        """
        held = dict(self._newest_days(instrument))
        order = sorted(held, key=lambda one: (one is not Timeframe.W1, one.seconds))
        chosen = Timeframe.D1 if Timeframe.D1 in held else next(reversed(order), None)
        return None if chosen is None else (chosen, held[chosen])

    def _is_of_newest(self, statement: "_Statement", found: BasisComparison) -> bool:
        """Return whether the newest held bars of a series were among those compared."""
        timeframe = statement.series.timeframe
        day = dict(self._newest_days(statement.series.instrument)).get(timeframe)
        if day is None or found.last is None:
            return False
        if timeframe is Timeframe.W1:
            return found.last >= midnight(monday_of(day))
        last = statement.calendar.day_of(found.last) if timeframe.is_intraday else found.last.date()
        return last >= day

    # --- small things --------------------------------------------------------------------------

    def _may_request(self, instrument: Instrument, calendar: SessionCalendar) -> bool:
        """Return whether a request for the basis alone may be sent.

        One a session date, and a second one to confirm a re-basing that one response stated.
        """
        known = self._store.ledger.basis_checks.of(instrument.symbol)
        if known.requested_on != self._today(calendar):
            return True
        return known.requests < _MOST_REQUESTS and known.stated_ratio is not None

    def _change(self, symbol: str, change: Callable[[BasisCheck], BasisCheck]) -> None:
        self._store.ledger.basis_checks.change(symbol, change)

    def _today(self, calendar: SessionCalendar) -> date:
        return calendar.day_of(self._session.now())

    def _clock(self) -> datetime:
        return self._session.retry_policy.clock()

    def _require_current_views(self) -> None:
        if not self._are_views_current:
            require_current_views(self._store)
            self._are_views_current = True


class _Judgement(Enum):
    """What a comparison means for the bars of a response.

    Their basis is known, or is not because none could be compared, or stays open.
    """

    KNOWN = auto()
    UNKNOWN = auto()
    OPEN = auto()


@dataclass(frozen=True, slots=True)
class _Statement:
    """A response that may state something about a price basis: of which series, to which request.

    ``requested_at`` is when that was sent, by this machine's clock.
    """

    series: Series
    calendar: SessionCalendar
    request: str
    requested_at: datetime


def _has_splits(instrument: Instrument) -> bool:
    """Return whether the prices of an instrument are re-based by splits: stocks and funds."""
    return instrument.sec_type is SecType.STK


def _newest_day(row: IndexedFile) -> date | None:
    """Return the newest session date of a file that has bars on a known basis."""
    days: list[date] = row.session_arrays[0].astype(object).tolist()
    unconfirmed = row.basis.unconfirmed.bounds
    if unconfirmed is not None:
        known = [one.end for one, number in row.basis.intervals if number != UNCONFIRMED]
        newest = max(known, default=_LONG_AGO)
        if newest < unconfirmed.end:
            days = [day for day in days if midnight(day) < newest]
    return max(days, default=None)
