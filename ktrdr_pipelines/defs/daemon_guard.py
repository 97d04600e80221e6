"""Dagster's scheduler, which refuses a daemon beside ``ktrdr up`` over one store.

``dagster.yaml`` names it. Dagster creates the scheduler in every process that opens its instance,
before anything else happens; only there can a second daemon be kept from the queue of the first.

Not here: the lock (``app.services.dagster_lock``).
"""

import os
import sys
from pathlib import Path

import click
from dagster._core.scheduler import DagsterDaemonScheduler
from dagster._serdes import ConfigurableClassData

from ktrdr_pipelines.app.services.dagster_lock import is_daemon, share
from ktrdr_pipelines.errors import KtrdrError, NoStoreError
from ktrdr_pipelines.settings import data_folder, load_settings
from ktrdr_pipelines.store.layout import open_store


class StoreScheduler(DagsterDaemonScheduler):
    """Dagster's default scheduler, for an instance in the folder ``dagster`` of a store.

    Raises:
        click.ClickException: this process is a daemon, and `ktrdr up` has one; Dagster's commands
            show it in one line.
    """

    def __init__(
        self,
        max_catchup_runs: int = 5,
        max_tick_retries: int = 0,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(max_catchup_runs, max_tick_retries, inst_data)
        if not is_daemon(sys.argv):
            return
        try:
            # Without a home the history is temporary, and the store that of the settings.
            home = os.environ.get("DAGSTER_HOME")
            folder = Path(home).expanduser().parent if home else data_folder(load_settings())
            share(open_store(folder))
        except NoStoreError:
            return  # the definitions report it
        except KtrdrError as error:
            raise click.ClickException(str(error)) from error
