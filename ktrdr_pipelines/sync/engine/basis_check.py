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
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from enum import Enum, auto
from typing import Final

import pyarrow as pa

from ktrdr_pipelines.domain.adjustments import Adjustment, AdjustmentKind
from ktrdr_pipelines.domain.bars import UNCONFIRMED, micros, moment, timestamps, with_basis
from ktrdr_pipelines.domain.calendars.sessions import SessionCalendar, midnight, monday_of
from ktrdr_pipelines.domain.instruments import Instrument, SecType, Series
from ktrdr_pipelines.domain.intervals import Interval
from ktrdr_pipelines.domain.planning.chunks import BY_THE_YEAR
from ktrdr_pipelines.domain.planning.responses import BarRequest, Response
from ktrdr_pipelines.domain.plausibility import Disagreement, DisagreementKind
from ktrdr_pipelines.domain.price_basis import (
    FEWEST_BARS,
    LEAST_CHANGE,
    BasisComparison,
    BasisVerdict,
)
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.errors import ClientIdInUseError, GatewayError, GatewayUnreachableError
from ktrdr_pipelines.store.bars.bar_store import BarStore
from ktrdr_pipelines.store.bars.footer import Presumed
from ktrdr_pipelines.store.held_bars import HeldBars
from ktrdr_pipelines.store.ledger.basis_records import BasisCheck
from ktrdr_pipelines.store.ledger.ledger import series_key
from ktrdr_pipelines.store.rebasing import record_adjustment, require_current_views
from ktrdr_pipelines.sync.engine.bar_requester import BarRequester
from ktrdr_pipelines.sync.engine.series_state import StateChange
from ktrdr_pipelines.sync.engine.source_session import SourceSession

_DAY, _SOON, _INSTANT = timedelta(days=1), timedelta(days=14), timedelta(microseconds=1)

_SESSIONS: Final = {Timeframe.D1: 5, Timeframe.W1: 4, Timeframe.H4: 5}
_FEWEST_SESSIONS: Final = 2
"""How many of the newest held sessions (1w: weeks) a request for them alone has; of shorter
timeframes two, because the newest may have begun only."""

_MOST_REQUESTS: Final = 2
"""Requests for a basis alone on one session date: the second confirms what the first states."""

_SAME_RATIO: Final = 0.005
"""Distance, as a share, of two estimates of one ratio, where rounding explains no more: the closes
of a day may be corrected in between."""


@dataclass(frozen=True, slots=True)
class FetchedBasis:
    """The basis of the bars of one response.

    ``basis`` is the number of the last adjustment that they include, ``UNCONFIRMED`` where that is
    not known. ``is_presumed``: no comparison showed it. ``requested_at`` is when they were
    requested, by this machine's clock.
    """

    basis: int
    requested_at: datetime
    is_presumed: bool = False

    @property
    def is_unconfirmed(self) -> bool:
        """Whether it is not known."""
        return self.basis == UNCONFIRMED

    def stamped(self, change: StateChange) -> StateChange:
        """Return a change whose bars state this basis."""
        if change.bars is None or not change.bars.num_rows:
            return change
        bars = with_basis(change.bars, self.basis)
        if not self.is_presumed:
            return replace(change, bars=bars)
        keys, covered = timestamps(bars), change.coverage.bars
        first, end = keys.item(0), keys.item(-1) + 1
        if covered:
            first, end = min(first, covered.starts.item(0)), max(end, covered.ends.item(-1))
        bounds = Interval(moment(first), moment(end))
        presumed = Presumed(bounds, self.requested_at, self.requested_at)
        return replace(change, bars=bars, presumed=presumed)


class BasisChecks:
    """The price bases of the symbols of one run.

    Args:
        store: the held bars, the adjustments, and the ledger.
        source_session: the clocks of the run.
    """

    def __init__(self, store: BarStore, source_session: SourceSession) -> None:
        self._store, self._session = store, source_session
        self._held, self._judge = HeldBars(store), _Judge(store)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._compared_on: set[tuple[str, date]] = set()
        self._are_views_current = False

    def is_established(self, instrument: Instrument, calendar: SessionCalendar) -> bool:
        """Return whether the basis of an instrument is established on the present session date."""
        if not _has_splits(instrument):
            return True
        symbol, today = instrument.symbol, self._today(calendar)
        return (symbol, today) in self._compared_on or self._judge.is_established(symbol, today)

    async def establish(self, requester: BarRequester, calendar: SessionCalendar) -> bool:
        """Compare the newest held bars of a symbol, unless its basis is established already.

        Args:
            requester: requests bars of the instrument.
            calendar: the sessions of the instrument.

        Returns: whether this may have waited, for a response or for another series' request.

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
        """
        instrument = requester.series.instrument
        if self.is_established(instrument, calendar):
            return False
        async with self._locks[instrument.symbol]:
            if self.is_established(instrument, calendar):
                return True
            symbol, today = instrument.symbol, self._today(calendar)
            self._compared_on.add((symbol, today))
            if not self._held.newest(symbol):
                self._judge.establish(symbol, today)
                return True
            while self._judge.may_request(symbol, today):
                await self._request_newest(requester, calendar)
        return True

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

        Raises:
            GatewayUnreachableError, ClientIdInUseError: no gateway can be reached.
        """
        series, bars = requester.series, response.bars
        statement = self._statement(series, calendar, response, requested_at)
        if not _has_splits(series.instrument):
            self._judge.report_other(statement, bars, self._held.compared(series, bars), requester)
            return FetchedBasis(len(self._store.bases.of(series.symbol)), requested_at)
        async with self._locks[series.symbol]:
            self._require_current_views()
            with self._store.ledger.as_of_now():
                adjustments = self._store.bases.of(series.symbol)
                found = self._held.compared(series, bars)
                if found.verdict is BasisVerdict.UNKNOWN and not adjustments:
                    judged = self._judge(statement, found, requester)  # which records nothing then
                    if judged is _Judgement.UNKNOWN and not self._is_open(statement, judged):
                        return FetchedBasis(0, requested_at, is_presumed=True)
            if adjustments and requested_at < adjustments[-1].found_at:
                # It may be on the basis of before, and proves nothing about the present one.
                is_same = found.verdict is BasisVerdict.SAME
                return FetchedBasis(len(adjustments) if is_same else UNCONFIRMED, requested_at)
            judged = self._judge(statement, found, requester)
            while self._is_open(statement, judged):
                await self._request_newest(requester, calendar)
                found = self._held.compared(series, bars)
                judged = self._judge(statement, found, requester)
            number = len(self._store.bases.of(series.symbol))
            if number > len(adjustments):
                # It was requested before the re-basing was found, here or by another process.
                found = self._held.compared(series, bars)
                if found.verdict is not BasisVerdict.SAME:
                    judged = _Judgement.OPEN
            if judged is _Judgement.OPEN:
                return FetchedBasis(UNCONFIRMED, requested_at)
            self._judge.report_other(statement, bars, found, requester)
            return FetchedBasis(number, requested_at, is_presumed=judged is _Judgement.UNKNOWN)

    def _is_open(self, statement: "_Statement", judged: "_Judgement") -> bool:
        """Return whether to request the newest held bars because a response showed too little."""
        symbol, today = statement.series.symbol, statement.today
        if judged is _Judgement.UNKNOWN:
            is_left = not self._judge.is_established(symbol, today)
            is_left = is_left and bool(self._held.newest(symbol))
        else:
            is_left = judged is _Judgement.OPEN
        return is_left and self._judge.may_request(symbol, today)

    async def _request_newest(self, requester: BarRequester, calendar: SessionCalendar) -> None:
        """Request the newest held bars of a symbol alone, and judge the response.

        Where that shows nothing, those of another timeframe are requested.
        """
        instrument, today = requester.series.instrument, self._today(calendar)
        for timeframe, day in [*self._held.newest(instrument.symbol).items()][:_MOST_REQUESTS]:
            count = self._judge.count_request(instrument.symbol, today)
            most = requester.widths.most(timeframe)
            ends_at, duration = _request_for(
                calendar, timeframe, day, most=most, is_second=count > 1
            )
            ends_at = min(ends_at, self._session.now())
            try:
                received = await requester.bars_of(timeframe, ends_at, duration)
            except (GatewayUnreachableError, ClientIdInUseError):
                raise
            except GatewayError as error:
                requester.note(f"the price basis could not be checked: {error}")
                continue
            verdict, response = BasisVerdict.UNKNOWN, received.with_bars
            if response is not None:
                series = Series(instrument, timeframe)
                found = self._held.compared(series, response.bars)
                verdict = found.verdict
                statement = self._statement(series, calendar, response, received.requested_at)
                self._judge(statement, found, requester)
            requester.record(received, f"the price basis: {verdict}")
            if verdict is not BasisVerdict.UNKNOWN:
                return

    def _statement(
        self,
        series: Series,
        calendar: SessionCalendar,
        response: Response,
        requested_at: datetime,
    ) -> "_Statement":
        clock, now = self._session.retry_policy.clock(), self._session.now()
        return _Statement(series, calendar, response.request, requested_at, clock, now)

    def _today(self, calendar: SessionCalendar) -> date:
        return calendar.day_of(self._session.now())

    def _require_current_views(self) -> None:
        if not self._are_views_current:
            require_current_views(self._store)
            self._are_views_current = True


class _Judgement(Enum):
    """What a comparison means for the bars of a response.

    Their basis is known; or it is not known, but nothing speaks against the one that was
    established; or it stays open.
    """

    KNOWN = auto()
    UNKNOWN = auto()
    OPEN = auto()


@dataclass(frozen=True, slots=True)
class _Statement:
    """A response that may state something about a price basis: of which series, to which request.

    ``requested_at`` is when that was sent, and ``clock`` the present, by this machine's clock;
    ``now`` is the present by the gateway's.
    """

    series: Series
    calendar: SessionCalendar
    requested: BarRequest
    requested_at: datetime
    clock: datetime
    now: datetime

    @property
    def request(self) -> str:
        """The request, in words."""
        return str(self.requested)

    @property
    def today(self) -> date:
        """The present session date."""
        return self.calendar.day_of(self.now)

    @property
    def next_session(self) -> date:
        """The first session that has not opened yet."""
        coming = self.calendar.sessions(self.today, self.today + _SOON)
        return next((one.day for one in coming if one.opens_at > self.now), self.today + _DAY)


class _Judge:
    """Decides what comparisons mean, and records it.

    Args:
        store: the held bars, the adjustments, and the ledger.
    """

    def __init__(self, store: BarStore) -> None:
        self._store, self._held = store, HeldBars(store)
        self._reported: set[tuple[Series, DisagreementKind]] = set()

    def __call__(
        self, statement: _Statement, found: BasisComparison, requester: BarRequester
    ) -> _Judgement:
        """Return what a comparison means, and record it; a note tells of a re-basing."""
        series = statement.series
        if found.verdict is BasisVerdict.SAME:
            self._confirm(statement)
            return _Judgement.KNOWN
        known = self._known(series.symbol)
        if found.verdict is BasisVerdict.UNKNOWN:
            return _Judgement.UNKNOWN if known.stated_ratio is None else _Judgement.OPEN
        today = statement.today
        is_confirmed = known.established_on == today and known.confirmed_at is not None
        if found.verdict in {BasisVerdict.UNIT, BasisVerdict.OTHER}:
            self.establish(series.symbol, today)
            return _Judgement.UNKNOWN
        is_newest = self._held.includes_newest(series, statement.calendar, found)
        if found.verdict is BasisVerdict.REBASED:
            return self._rebased(statement, found, requester, is_newest=is_newest)
        # Bars were corrected, if there are enough of them to tell, or if the newest ones show the
        # basis to be the same.
        is_corrected = found.bars >= FEWEST_BARS and not found.is_constant
        if is_confirmed and known.confirmed_at is not None:
            is_corrected |= not is_newest or known.confirmed_at >= statement.requested_at
        return _Judgement.UNKNOWN if is_corrected else _Judgement.OPEN

    def _rebased(
        self,
        statement: _Statement,
        found: BasisComparison,
        requester: BarRequester,
        *,
        is_newest: bool,
    ) -> _Judgement:
        """Record a re-basing, if two responses agree, or that one stated it."""
        known = self._known(statement.series.symbol)
        if _is_stated(statement, found, known):
            text = self._record(statement, found, known)
            if text is None:  # another process was first, with this one or another
                return _Judgement.OPEN
            requester.note(text)
            self._confirm(statement)
            return _Judgement.KNOWN
        if is_newest:
            self._state(statement, found)
            return _Judgement.OPEN
        # Older bars on another basis than the newest ones: an earlier version mixed them.
        is_confirmed = known.established_on == statement.today and known.confirmed_at is not None
        return _Judgement.UNKNOWN if is_confirmed else _Judgement.OPEN

    def is_established(self, symbol: str, today: date) -> bool:
        """Return whether the basis of a symbol was established today, and nothing refutes it."""
        known = self._known(symbol)
        return known.established_on == today and known.stated_ratio is None

    def establish(self, symbol: str, today: date) -> None:
        """Record that nothing more can be found out today."""
        self._change(symbol, lambda known: replace(known, established_on=today))

    def may_request(self, symbol: str, today: date) -> bool:
        """Return whether a request for the basis alone may be sent.

        One a session date, and a second one to confirm a re-basing that one response stated.
        """
        known = self._known(symbol)
        if known.established_on == today and known.stated_ratio is None and known.confirmed_at:
            return False
        if known.requested_on != today:
            return True
        return known.requests < _MOST_REQUESTS and known.stated_ratio is not None

    def count_request(self, symbol: str, today: date) -> int:
        """Record that a request for the basis alone is sent; return which it is today."""
        known = self._known(symbol)
        count = known.requests + 1 if known.requested_on == today else 1
        self._change(symbol, lambda one: replace(one, requested_on=today, requests=count))
        return count

    def report_other(
        self,
        statement: _Statement,
        bars: pa.Table,
        found: BasisComparison,
        requester: BarRequester,
    ) -> None:
        """Record prices at another ratio that is no re-basing, and note them once a run."""
        is_far = abs(found.ratio - 1) >= LEAST_CHANGE and found.bars >= FEWEST_BARS
        if found.verdict in {BasisVerdict.SAME, BasisVerdict.UNKNOWN} or not is_far:
            return
        differing = _disagreement(bars, found)
        if (statement.series, differing.kind) not in self._reported:
            self._reported.add((statement.series, differing.kind))
            key = series_key(statement.series)
            self._store.ledger.disagreements.record(key, differing, statement.clock)
            requester.note(differing.text_for(statement.series))

    def _known(self, symbol: str) -> BasisCheck:
        return self._store.ledger.basis_checks.of(symbol)

    def _change(self, symbol: str, change: Callable[[BasisCheck], BasisCheck]) -> None:
        self._store.ledger.basis_checks.change(symbol, change)

    def _state(self, statement: _Statement, found: BasisComparison) -> None:
        """Record that one response stated a re-basing; another one has to confirm it."""
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

    def _confirm(self, statement: _Statement) -> None:
        """Record that a request showed the basis to be the newest one that is known."""
        number = len(self._store.bases.of(statement.series.symbol))

        def confirmed(known: BasisCheck) -> BasisCheck:
            times = [known.confirmed_at] if known.basis == number else []
            found = replace(
                known,
                basis=number,
                established_on=statement.today,
                confirmed_at=max(filter(None, [*times, statement.requested_at])),
                next_session=statement.next_session,
            )
            if known.stated_at is not None and known.stated_at > statement.requested_at:
                return found  # it was requested before the response that states another one
            return replace(found, stated_ratio=None, stated_bars=0, stated_by="", stated_at=None)

        self._change(statement.series.symbol, confirmed)

    def _record(
        self, statement: _Statement, found: BasisComparison, known: BasisCheck
    ) -> str | None:
        """Record the re-basing on which two responses agree; return it in words.

        None if another adjustment was recorded meanwhile.
        """
        series, symbol = statement.series, statement.series.symbol
        number = len(self._store.bases.of(symbol))
        is_known = known.basis == number
        ratio = found.ratio
        if known.stated_ratio is not None and known.stated_bars > found.bars:
            ratio = known.stated_ratio
        # The first session after the last request on the old basis, of any timeframe. If a later
        # one has opened since, the basis may have changed only then.
        days = [self._held.session_after(symbol, statement.calendar)]
        times = [self._held.on_their_basis_until(series, found)]
        if is_known and known.confirmed_at is not None:
            days.append(known.next_session)
            times.append(known.confirmed_at)
        effective = max(filter(None, days), default=statement.today)
        adjustment = Adjustment(
            number=number + 1,
            ratio=ratio,
            volume_ratio=1 / ratio,
            kind=AdjustmentKind.SPLIT,
            effective=effective,
            is_estimated=effective < statement.today,
            found_at=statement.clock,
            old_until=max(times),
            evidence=_evidence(statement, found, known),
        )
        assert found.first is not None and found.last is not None  # noqa: S101, PT018
        compared = Interval(found.first, found.last + _INSTANT)
        if not record_adjustment(self._store, series, adjustment, compared=compared):
            return None
        about = "about " if adjustment.is_estimated else ""
        return (
            f"re-based (a split): the prices of bars that were requested before are multiplied by "
            f"{ratio:.6g} when they are read, their volumes by {1 / ratio:.6g}; effective "
            f"{about}{effective}. `ktrdr load {series} --refresh` requests them again"
        )


def _has_splits(instrument: Instrument) -> bool:
    """Return whether the prices of an instrument are re-based by splits: stocks and funds."""
    return instrument.sec_type is SecType.STK


def _is_stated(statement: _Statement, found: BasisComparison, known: BasisCheck) -> bool:
    """Return whether the response to another request stated the same ratio before."""
    is_same = (known.stated_by, known.stated_at) == (statement.request, statement.requested_at)
    if known.stated_ratio is None or is_same:
        return False
    return abs(found.ratio / known.stated_ratio - 1) <= max(_SAME_RATIO, 2 * found.precision)


def _request_for(
    calendar: SessionCalendar,
    timeframe: Timeframe,
    day: date,
    *,
    most: int | None,
    is_second: bool,
) -> tuple[datetime, str]:
    """Return end and duration of the request for the newest held bars, up to a session date.

    A second one reaches further back, so that it is not identical to the first.
    """
    first = monday_of(day) if timeframe is Timeframe.W1 else day
    length = 7 * _DAY if timeframe is Timeframe.W1 else _DAY
    sessions = calendar.sessions(first, first + length)
    ends_at = sessions[-1].closes_at if sessions else midnight(first + length)
    count = _SESSIONS.get(timeframe, _FEWEST_SESSIONS) + is_second
    count = min(most or count, count)
    if timeframe.is_intraday:
        return (
            ends_at,
            f"{min(most or 9, _SESSIONS.get(timeframe, _FEWEST_SESSIONS) + is_second)} D",
        )
    ends_at = max(calendar.last_second_of(ends_at), ends_at)
    if most == BY_THE_YEAR:
        return ends_at, "1 Y"
    count = min(most or 9, _SESSIONS[timeframe] + is_second)
    return ends_at, f"{count} {'W' if timeframe is Timeframe.W1 else 'D'}"


def _evidence(statement: _Statement, found: BasisComparison, known: BasisCheck) -> str:
    """Return in words what shows a re-basing: the bars, and both requests."""
    return (
        f"{found.bars} bars of {statement.series} from {found.first:%Y-%m-%d %H:%MZ} to "
        f"{found.last:%Y-%m-%d %H:%MZ} were returned at {found.ratio:.6g} times their price to the "
        f"request {statement.request} at {statement.requested_at:%Y-%m-%d %H:%M:%SZ}, as were "
        f"{known.stated_bars} bars to the request {known.stated_by} at "
        f"{known.stated_at:%Y-%m-%d %H:%M:%SZ}"
    )


def _disagreement(bars: pa.Table, found: BasisComparison) -> Disagreement:
    """Return the record of bars at other prices; of a unit, it begins with the first new bar."""
    first, last = found.first, found.last
    assert first is not None and last is not None  # noqa: S101, PT018  (bars were compared)
    if found.verdict is not BasisVerdict.UNIT:
        return Disagreement(first, last, found.bars, found.ratio, DisagreementKind.PRICE)
    keys = timestamps(bars)
    newer = keys[keys > micros(last)]
    if len(newer):
        first, last = moment(newer[0]), moment(newer[-1])
    return Disagreement(first, last, found.bars, found.ratio, DisagreementKind.UNIT)
