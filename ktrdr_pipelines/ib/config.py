"""Which gateway to connect to, with which deadlines and client ids.

Not here: reading the environment (``settings``), the limits themselves (``limits``).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.settings import PacingMode, Settings

_LOCAL_NAMES = {"localhost": "127.0.0.1", "::1": "127.0.0.1"}


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """One gateway, with the deadlines, retries and client ids that its connections use.

    ``timeout_s`` is the deadline of connecting and of every request; ``outage_s`` is how long a
    request waits during outages of the gateway's own connection; ``client_id_ranges`` holds the
    first and last id of each operation; ``state_dir`` is the folder of all that processes share
    about gateways.
    """

    state_dir: Path
    host: str = "127.0.0.1"
    port: int = IbLimitsRegistry.PORTS.value["gateway paper"]
    timeout_s: float = 30.0
    outage_s: float = 300.0
    max_retries: int = 3
    retry_delay_s: float = 2.0
    conservative: bool = False
    client_id_ranges: Mapping[str, tuple[int, int]] = field(
        default_factory=lambda: IbLimitsRegistry.CLIENT_ID_RANGES.value
    )

    @property
    def gateway(self) -> str:
        """Host and port, for messages and as the identity of the gateway."""
        return f"{self.host}:{self.port}"

    @property
    def folder(self) -> Path:
        """The folder of rate limiter and leases, the same for all names of this machine.

        Two folders for one gateway would mean two budgets.
        """
        host = _LOCAL_NAMES.get(self.host.casefold(), self.host.casefold())
        return self.state_dir / f"{re.sub(r'[^a-z0-9.-]', '_', host)}_{self.port}"

    @classmethod
    def from_settings(cls, settings: Settings) -> "GatewayConfig":
        """Return the gateway's part of the project's settings."""
        return cls(
            state_dir=settings.ktrdr_state,
            host=settings.ib_host,
            port=settings.ib_port,
            timeout_s=settings.ib_timeout,
            max_retries=settings.ib_max_retries,
            retry_delay_s=settings.ib_retry_delay,
            conservative=settings.ib_pacing is PacingMode.CONSERVATIVE,
            client_id_ranges=settings.client_ids,
        )
