"""The code location that Dagster loads: what the environment says, as definitions.

A code server refuses to load it while ``ktrdr up`` runs over the store with code servers of its own
(``app.services.dagster_lock``). Commands that load it in their own process always may:
``dagster definitions validate``, ``dg check defs``, ``dg list defs``.
"""

import sys
from contextlib import suppress

from ktrdr_pipelines.app.services.dagster_lock import is_code_server, share
from ktrdr_pipelines.defs.build import build_defs
from ktrdr_pipelines.errors import NoStoreError
from ktrdr_pipelines.settings import data_folder, load_settings
from ktrdr_pipelines.store.layout import open_store

_settings = load_settings()
if is_code_server(sys.argv):
    with suppress(NoStoreError):  # without a store there is nothing to request
        share(open_store(data_folder(_settings)))

defs = build_defs(_settings)
