"""The gap sensor in Dagster's instance of a store: is it on, is its daemon alive, switch, wake.

The state of a sensor lies in the storage of the instance, so any process can read and change it
without loading the code location. Dagster is imported when a home exists and is asked: the import
takes most of a second, and programs that never use Dagster must not wait for it.

Not here: what the sensor does (``defs.sensors.gap_sensor``), running Dagster (``cli.processes``).
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ktrdr_pipelines.app.setup import dagster_home, has_history
from ktrdr_pipelines.clock import system_now
from ktrdr_pipelines.errors import StoreError, UsageError
from ktrdr_pipelines.store.layout import StoreLayout

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.scheduler.instigation import InstigatorState, SensorInstigatorData

SENSOR: Final = "gap_sensor"
"""The name of the sensor; it is kept for ever, as its cursor hangs on it."""

ALIVE_FOR: Final = timedelta(seconds=75)
"""How long a heartbeat shows that the daemon is alive: it has one every 30 seconds."""

READ_EVERY: Final = timedelta(seconds=3)
"""How long what was read of the instance is served: reading it takes some milliseconds."""

TICK_WAIT_S: Final = 10.0
"""How long to wait for the end of a tick of the sensor that is in flight, in seconds."""

_PAUSE_S: Final = 0.25
_SENSOR_DAEMON: Final = "SENSOR"
_RUN_UP: Final = "Start Dagster once with `ktrdr up`: the sensor is then switched on by itself"


@dataclass(frozen=True, slots=True)
class SwitchState:
    """The sensor as the instance has it; ``enabled`` None where it has never run."""

    enabled: bool | None = None
    heartbeat_at: datetime | None = None

    def has_daemon(self, now: datetime) -> bool:
        """Return whether the daemon is alive, by its last heartbeat."""
        return self.heartbeat_at is not None and now - self.heartbeat_at < ALIVE_FOR


def _wait(seconds: float) -> None:
    """Wait: the default of ``SensorSwitch``."""
    threading.Event().wait(seconds)


class SensorSwitch:
    """The switch of the gap sensor of one store; may be used from any thread.

    Args:
        clock: returns real time.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], datetime] = system_now,
        *,
        pause: Callable[[float], object] = _wait,
    ) -> None:
        self._clock, self._pause = clock, pause
        self._guard = threading.RLock()
        self._home: Path | None = None
        self._instance: dg.DagsterInstance | None = None
        self._read: tuple[datetime, SwitchState] | None = None

    def __repr__(self) -> str:
        return f"SensorSwitch({self._home or 'no instance open'})"

    def close(self) -> None:
        """Close the instance; the next use opens it again."""
        with self._guard:
            if self._instance is not None:
                self._instance.dispose()
            self._instance = self._home = self._read = None

    def state(self, layout: StoreLayout) -> SwitchState:
        """Return the state of the sensor, at most ``READ_EVERY`` old.

        Raises:
            StoreError: the instance cannot be read.
        """
        with self._guard:
            if not has_history(layout):
                self.close()
                return SwitchState()
            now = self._clock()
            if self._read is None or not (
                self._home == dagster_home(layout)
                and timedelta() <= now - self._read[0] < READ_EVERY
            ):
                self._read = now, self._state_now(layout)
            return self._read[1]

    def switch(self, layout: StoreLayout, *, on: bool) -> None:
        """Switch the sensor on or off.

        Raises:
            UsageError: Dagster has never run on the store, or has never run the sensor.
            StoreError: the instance cannot be used.
        """

        def switched(state: "InstigatorState") -> "InstigatorState":
            from dagster._core.scheduler.instigation import InstigatorStatus

            if state.is_running == on:
                return state
            if not on:
                return state.with_status(InstigatorStatus.STOPPED)
            running = state.with_status(InstigatorStatus.RUNNING)
            data = running.sensor_instigator_data
            started_s = self._clock().timestamp()
            return (
                running
                if data is None
                else running.with_data(data.with_sensor_start_timestamp(started_s))
            )

        self._change(layout, switched)

    def wake(self, layout: StoreLayout) -> bool:
        """Make the daemon run the sensor in its next round, whenever the last tick was.

        A tick that is in flight writes its time when it ends, so that its end is waited for, for
        ``TICK_WAIT_S`` at most. Return whether the next round will run the sensor; otherwise it
        runs when its interval is over.

        Raises: as ``switch``.
        """

        def without_ticks(state: "InstigatorState") -> "InstigatorState":
            # The daemon waits for the interval of the sensor after the newer of these two moments.
            data = state.sensor_instigator_data
            if data is None or _is_ticking(data):
                return state
            return state.with_data(
                data._replace(last_tick_timestamp=None, last_tick_start_timestamp=None)
            )

        for _ in range(round(TICK_WAIT_S / _PAUSE_S)):
            states = self._change(layout, without_ticks)
            if not any(_is_ticking(state.sensor_instigator_data) for state in states):
                return True
            self._pause(_PAUSE_S)
        return False

    def _change(
        self, layout: StoreLayout, change: Callable[["InstigatorState"], "InstigatorState"]
    ) -> Sequence["InstigatorState"]:
        """Change the states of the sensor, and return those from before."""
        what = f"switch the sensor {SENSOR}"
        with self._guard:
            if not has_history(layout):
                raise UsageError(
                    what, reason=f"there is no Dagster in {dagster_home(layout)}", hint=_RUN_UP
                )
            with _storage_errors(what):
                instance = self._opened(layout)
                states = _states(instance)
                for state in states:
                    if (changed := change(state)) is not state:
                        instance.update_instigator_state(changed)
            self._read = None
        if not states:
            raise UsageError(what, reason="it has never run", hint=_RUN_UP)
        return states

    def _state_now(self, layout: StoreLayout) -> SwitchState:
        with _storage_errors(f"read the state of the sensor {SENSOR}"):
            instance = self._opened(layout)
            states = _states(instance)
            heartbeat = instance.get_daemon_heartbeats().get(_SENSOR_DAEMON)
        enabled = any(state.is_running for state in states) if states else None
        beat_at = None if heartbeat is None else datetime.fromtimestamp(heartbeat.timestamp, UTC)
        return SwitchState(enabled, beat_at)

    def _opened(self, layout: StoreLayout) -> "dg.DagsterInstance":
        """Return the open instance of a store; that of another store is closed."""
        import dagster as dg

        home = dagster_home(layout)
        if self._home != home:
            self.close()
        if self._instance is None:
            self._instance = dg.DagsterInstance.from_config(str(home))
            self._home = home
        return self._instance


def _is_ticking(data: "SensorInstigatorData | None") -> bool:
    """Return whether a tick has begun and not ended: its begin is the last tick's time then."""
    if data is None or data.last_tick_start_timestamp is None:
        return False
    return data.last_tick_start_timestamp > (data.last_tick_timestamp or 0.0)


def _states(instance: "dg.DagsterInstance") -> Sequence["InstigatorState"]:
    """Return the states of the sensor, one for each code location that ever had it."""
    from dagster._core.definitions.run_request import InstigatorType

    found = instance.all_instigator_state(instigator_type=InstigatorType.SENSOR)
    return [state for state in found if state.instigator_name == SENSOR]


@contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Raise StoreError where the instance or its database cannot be used."""
    from dagster import DagsterError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (DagsterError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split()[:40])
        raise StoreError(
            what, reason=reason, hint="Look at the log of Dagster, and restart `ktrdr up`"
        ) from error
