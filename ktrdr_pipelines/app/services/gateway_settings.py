"""Change the settings of the gateway while sensors, runs and services work.

They are kept in ``state/settings.json`` of the data folder. Whatever opens a connection reads them
anew, so a change holds from the next connection on, without a restart.

Not here: what the file may have, and what takes precedence over it (``settings``).
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ktrdr_pipelines.errors import SettingFixedError, SettingsError, SettingValueError
from ktrdr_pipelines.settings import (
    Settings,
    Source,
    api_client_ids,
    checked_setting,
    effective_settings,
    read_settings_file,
    settings_file,
    settings_sources,
)
from ktrdr_pipelines.store.files import locked, write_atomically
from ktrdr_pipelines.store.layout import StoreLayout

_HOST: Final = "ib_host"
_PORT: Final = "ib_port"
_API: Final = "ib_client_id_api"


def update_gateway_settings(
    layout: StoreLayout,
    *,
    host: str | None = None,
    port: int | None = None,
    client_id: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[Settings, Settings]:
    """Write settings of the gateway into the store's file; what is None stays as it is.

    Args:
        layout: the store.
        host: the host of the gateway.
        port: its TCP port.
        client_id: the first client id of the API's range.
        environ: variables in place of the environment.

    Returns:
        The effective settings before and after.

    Raises:
        SettingFixedError: the environment fixes a setting at another value; nothing is written.
        SettingValueError: a value is not allowed, or not beside the other settings.
        SettingsError: the file or the environment is not valid.
        StoreReplacedError: the store is not the one that was opened.
        StoreError: another process has kept the file locked.
        DiskError: the file cannot be written; it is unchanged.
    """
    path, own = settings_file(layout.root), {"ktrdr_data": layout.root}
    with locked(layout.lock("settings"), f"the settings {path}"):
        before = effective_settings(environ, flags=own)
        wanted = _checked(before, host, port, client_id)
        _refuse_fixed(before, wanted, os.environ if environ is None else environ)
        sources = settings_sources(before)
        changes = {
            name: _written(value)
            for name, value in wanted.items()
            if sources[name] is not Source.ENVIRONMENT
        }
        if not changes:
            return before, before
        file = {name: _written(one) for name, one in read_settings_file(path).items()} | changes
        # Only the ids of an operation can be wrong because of other settings.
        with _naming("client_id", f"client_id={client_id}"):
            after = effective_settings(environ, flags=own, file=file)
        text = f"{json.dumps(file, indent=2, ensure_ascii=False)}\n".encode()
        write_atomically(
            path, lambda opened: opened.write(text), before_renaming=layout.require_same
        )
    return before, after


def _checked(
    before: Settings, host: str | None, port: int | None, client_id: int | None
) -> dict[str, Any]:
    """Return the wanted values by the names of their settings."""
    wanted: dict[str, Any] = {}
    if host is not None:
        with _naming("host"):
            wanted[_HOST] = checked_setting(_HOST, host, "host")
    if port is not None:
        with _naming("port"):
            wanted[_PORT] = checked_setting(_PORT, port, "port")
    if client_id is not None:
        with _naming("client_id"):
            ids, held = api_client_ids(client_id, "client_id"), before.ib_client_id_api
        wanted[_API] = held if held[0] == ids[0] else ids
    return wanted


@contextmanager
def _naming(field: str, what: str = "") -> Iterator[None]:
    """Make an error of the settings one of a value that was to be set."""
    try:
        yield
    except SettingsError as error:
        raise SettingValueError(
            what or error.what, field=field, reason=error.reason, hint=error.hint
        ) from error


def _refuse_fixed(
    before: Settings, wanted: Mapping[str, Any], variables: Mapping[str, str]
) -> None:
    sources = settings_sources(before)
    for name, value in wanted.items():
        held = getattr(before, name)
        if sources[name] is Source.ENVIRONMENT and value != held:
            variable = name.upper() if name.upper() in variables else "IB_CLIENT_ID"
            raise SettingFixedError(
                f"cannot change {name} to {_written(value)}",
                variable=variable,
                reason=f"{variable} in the environment fixes it at {_written(held)}",
                hint=f"Change or unset {variable}, and start the program again",
            )


def _written(value: Any) -> str | int | float:
    """Return a value as the file holds it: ranges as ``1-10``."""
    return f"{value[0]}-{value[1]}" if isinstance(value, tuple) else value
