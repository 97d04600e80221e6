"""What a series run leaves open, with the verdict of the statements on each session and part.

Not here: the rule (``domain.planning.empty_ranges``), the statements (``store.evidence``), the
requests that get more of them (``sync.engine.confirmation``).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from ktrdr_pipelines.domain.calendars.session_grid import Span
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.planning.empty_ranges import CONFIRM_AFTER, Proof
from ktrdr_pipelines.domain.planning.gaps import bar_lag
from ktrdr_pipelines.domain.planning.retry_schedule import AttemptKind
from ktrdr_pipelines.store.evidence import Evidence, Open
from ktrdr_pipelines.sync.discovery.trading_hours import Schedules
from ktrdr_pipelines.sync.engine.series_state import SeriesState, StateChange
from ktrdr_pipelines.sync.engine.source_session import SourceSession

_WEEKS = timedelta(days=14)

_TEXTS: Final = {
    Proof.UNCONFIRMED: "the gateway returned no bars once; a second response is due",
    Proof.CONTRADICTED: "the gateway returned no bars, but held data contradict that; three "
    "responses on three days are needed",
}
_KINDS: Final = {
    Proof.UNCONFIRMED: AttemptKind.PROBED,
    Proof.CONTRADICTED: AttemptKind.CONTRADICTED,
}


class OpenAttempt(NamedTuple):
    """A range that responses left open, why, and when another statement can count."""

    interval: Interval
    kind: AttemptKind
    text: str
    due_at: datetime


class OpenRanges:
    """What is open of one series, judged by all statements about its symbol.

    Args:
        state: the state of the series, which is only read here.
        contract_id: its contract, whose head timestamp is a statement.
        evidence: the statements.
        schedules: the dates that the contract's own hours call closed.
        source_session: the gateway's time.
    """

    def __init__(
        self,
        state: SeriesState,
        contract_id: int,
        *,
        evidence: Evidence,
        schedules: Schedules,
        source_session: SourceSession,
    ) -> None:
        self._state, self._contract_id = state, contract_id
        self._evidence, self._schedules = evidence, schedules
        self._source_session = source_session

    def sessions(self) -> list[Open]:
        """Return the sessions that are missing as a whole, with their verdicts, oldest first."""
        series = self._state.series
        return self._evidence.open_sessions(
            series,
            self._state.calendar,
            self._gaps(),
            empty=self._state.empty,
            empty_before=self._state.empty_before,
            now=self._source_session.gateway_now(),
            contract_id=self._contract_id,
            closed=self._schedules.calendars.stated_closed(series.instrument),
        )

    def stated(self) -> list[Open]:
        """Return those of ``sessions`` that there is any statement about; nothing proves others."""
        series = self._state.series
        closed = self._schedules.calendars.stated_closed(series.instrument)
        if not closed and not self._evidence.has_any(series, self._contract_id):
            return []
        return [one for one in self.sessions() if one.statements]

    @property
    def has_gaps(self) -> bool:
        """Whether anything is missing of sessions that have closed."""
        return bool(self._gaps())

    def parts(self) -> list[Open]:
        """Return the missing parts of sessions that have bars, with their verdicts."""
        if not (gaps := self._gaps()):
            return []
        whole = IntervalSet(one.span.interval for one in self.sessions())
        return self._evidence.open_pieces(
            self._state.series,
            self._state.calendar,
            gaps - whole,
            now=self._source_session.gateway_now(),
            empty_before=self._state.empty_before,
        )

    def confirmed(self, found: Iterable[Open]) -> StateChange:
        """Return the coverage of what is confirmed empty."""
        at = self._source_session.market_now().replace(minute=0, second=0, microsecond=0)
        proofs = tuple(
            Emptiness(one.span.interval, at, one.verdict.proof_kind)
            for one in found
            if one.verdict.is_proved
        )
        return StateChange(coverage=Coverage().merged(Coverage(empty=proofs)))

    def attempts(self) -> Iterator[OpenAttempt]:
        """Yield what stays open, due when another statement can count, by this machine's clock.

        What was due in this run and got no statement is due a while later.
        """
        here = self._source_session.retry_policy.clock()
        there = self._source_session.gateway_now()
        groups: dict[tuple[Proof, datetime], list[Interval]] = defaultdict(list)
        parts = self.parts()
        for one in (*self.sessions(), *parts):
            proof, next_at, _ = one.verdict
            if proof not in _KINDS or next_at is None:
                continue
            if one in parts and proof is Proof.CONTRADICTED:
                next_at = max(next_at, self._bars_behind(one.span))
            due = here + (next_at - there if next_at > there else CONFIRM_AFTER)
            groups[proof, due.replace(microsecond=0)].append(one.span.interval)
        for (proof, due), intervals in groups.items():
            for part in IntervalSet(intervals):
                yield OpenAttempt(part, _KINDS[proof], _TEXTS[proof], due)

    def _bars_behind(self, span: Span) -> datetime:
        """Return when the next session can have bars, so that there is evidence on both sides."""
        after = Interval(span.closes_at, span.closes_at + _WEEKS)
        opens = (one.opens_at for one in self._state.calendar.sessions_meeting(after))
        following = next((at for at in opens if at >= span.closes_at), span.closes_at)
        return following + self._state.series.timeframe.length + bar_lag()

    def _gaps(self) -> IntervalSet:
        session = self._source_session
        return self._state.closed_gaps(session.now(), session.market_now())
