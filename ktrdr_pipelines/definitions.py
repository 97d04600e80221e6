"""The code location that Dagster loads: what the environment says, as definitions.

A code server refuses to load it while ``ktrdr up`` runs over the store with code servers of its own
(``app.services.dagster_lock``). Commands that load it in their own process always may:
``dagster definitions validate``, ``dg check defs``, ``dg list defs``.

``dagster asset materialize`` ends in a traceback of Dagster's where a partition does not exist yet,
or a range of partitions would need several runs. For that command alone, partitions are registered
before it looks for them, and one run loads the range.
"""

import os
import sys
from contextlib import suppress

from ktrdr_pipelines.app.services.dagster_lock import SERVED, is_code_server, share
from ktrdr_pipelines.defs.build import build_defs, rates_of
from ktrdr_pipelines.defs.instance import is_materialize_command, register_symbols
from ktrdr_pipelines.errors import NoStoreError
from ktrdr_pipelines.settings import data_folder, load_settings
from ktrdr_pipelines.store.layout import open_store

_settings = load_settings()
_materializes = is_materialize_command(sys.argv)
_serves = is_code_server(sys.argv)
with suppress(NoStoreError):  # without a store there is nothing to request
    if _serves:
        share(open_store(data_folder(_settings)))
    if _materializes and os.environ.get("DAGSTER_HOME"):
        register_symbols(open_store(data_folder(_settings)))

defs = build_defs(
    _settings,
    shows_heatmap=SERVED in os.environ,
    in_one_run=_materializes,
    # A run's own process, which loads this module too, does not cut backfills into runs.
    rates=rates_of(_settings) if _serves else None,
)
