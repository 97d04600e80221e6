"""A workspace over a store and a fake gateway, for tests of what loads through one."""

from dataclasses import replace

from ktrdr_pipelines.app.workspace import Workspace
from ktrdr_pipelines.domain.planning.reports import Progress, Quiet
from ktrdr_pipelines.domain.universe.universe import Universe
from ktrdr_pipelines.settings import Settings
from ktrdr_pipelines.sync.runner import LoadManager
from tests.support.fake_gateway import FakeGateway
from tests.support.loading import Harness, World

GATEWAY = "127.0.0.1:4999"
"""The gateway that a fake one stands for."""


class FakeWorkspace(Workspace):
    """A workspace whose loads request bars from a fake gateway, at the gateway's time."""

    def __init__(self, harness: Harness, universe: Universe) -> None:
        gateway: FakeGateway = harness.gateway
        gateway.gateway = GATEWAY
        folder = harness.layout.root
        settings = Settings(ib_port=4999, ktrdr_data=folder, ktrdr_state=folder / "state of user")
        super().__init__(
            settings, harness.layout, universe=universe, real=lambda: harness.gateway.time
        )
        self._harness = harness
        self.managers: list[str] = []

    def load_manager(
        self,
        *,
        operation: str = "cli",
        progress: Progress | None = None,
        wait_s: float = 0.0,
    ) -> LoadManager:
        """Return a manager that loads from the fake gateway."""
        self.managers.append(operation)
        return replace(self._harness.manager(), progress=progress or Quiet())


def workspace_of(made: World) -> FakeWorkspace:
    """Return a workspace over the store and the gateway of a world; its start is what is wanted."""
    instrument = replace(made.series.instrument, start=made.wanted.start.date())
    return FakeWorkspace(made.harness, Universe({instrument.symbol: instrument}))
