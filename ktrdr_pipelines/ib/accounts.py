"""Whose gateway it is: real or simulated, and the account as a hash that names nobody.

Not here: asking for accounts (ib_async's handshake), taking them out of records (``ib.capture``).
"""

import hashlib
from collections.abc import Sequence

from ktrdr_pipelines.core.instruments import Origin

SIMULATED_ACCOUNT = "SIM"
"""How the account of a simulated gateway begins."""

_HASH_DOMAIN = "ktrdr-pipelines account:"


def origin_of(accounts: Sequence[str]) -> Origin:
    """Say whether the accounts are those of a simulated gateway."""
    simulated = any(name.startswith(SIMULATED_ACCOUNT) for name in accounts)
    return Origin.SIMULATED if simulated else Origin.IB


def account_hash(accounts: Sequence[str]) -> str:
    """Give a one-way hash of the accounts, whatever their order."""
    text = _HASH_DOMAIN + ",".join(sorted(accounts))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
