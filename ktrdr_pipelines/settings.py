"""Settings from the environment (``IB_*``, ``KTRDR_*``), and the search for the data folder.

The environment is read when ``load_settings`` is called, never at import; ``Settings(...)`` itself
never reads it. ``.env`` files are not read.

Not here: creating a store or checking whether a folder is one (``store.layout``), instruments
(``domain.universe.universe``).
"""

import difflib
import os
import re
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

import platformdirs
from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from ktrdr_pipelines.clock import Clock
from ktrdr_pipelines.errors import NoStoreError, SettingsError
from ktrdr_pipelines.limits import IbLimitsRegistry

WORKSPACE_FILE = "workspace.yaml"
_RANGES = IbLimitsRegistry.CLIENT_ID_RANGES.value
_MOST_CLIENT_ID: Final = 2**31 - 1
_YES = frozenset({"1", "true", "yes", "on"})
_NEAR = 0.8
_FIFTY_YEARS_S: Final = 50 * 365.25 * 86_400


class PacingMode(StrEnum):
    """Rate of requests: as fast as the gateway allows, or always under the small-bar rules."""

    ADAPTIVE = "adaptive"
    CONSERVATIVE = "conservative"


def _id_range(value: object) -> object:
    """Parse ``1-10`` as (1, 10), both ends included."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+)\s*-\s*([0-9]+)\s*", value)
        if not match:
            raise ValueError("not two numbers and a dash")
        value = int(match[1]), int(match[2])
    if isinstance(value, tuple) and len(value) == 2 and not 1 <= value[0] <= value[1]:
        raise ValueError("reversed, or below 1")
    return value


def _folder(value: object) -> object:
    """Make a path absolute at once: other processes of the run have other working folders."""
    if not isinstance(value, (str, Path)) or not str(value).strip():
        raise ValueError("not a folder")
    try:
        return Path(value).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(str(error)) from error


_ClientId = Annotated[int, Field(le=_MOST_CLIENT_ID)]
ClientIds = Annotated[tuple[_ClientId, _ClientId], BeforeValidator(_id_range)]
Folder = Annotated[Path, BeforeValidator(_folder)]


def _ids(operation: str) -> tuple[int, int]:
    """Declare the default range of an operation."""
    first, last = _RANGES[operation]
    text = f"a range of client ids from 1 to {_MOST_CLIENT_ID}, such as {first}-{last}"
    field: tuple[int, int] = Field(default=(first, last), description=text)
    return field


class Settings(BaseSettings):
    """Everything that can be set; the environment variable of a field is its name in capitals.

    Times are in seconds. Folders are made absolute.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        enable_decoding=False,  # values are words and numbers, not JSON
    )

    ib_host: str = Field(
        default="127.0.0.1",
        pattern=r"^[^\s/]+$",
        description="a host name or address without a port or a scheme",
    )
    ib_port: int = Field(default=4002, ge=1, le=65535, description="a TCP port, 1 to 65535")
    ib_timeout: float = Field(
        default=30.0, gt=0, allow_inf_nan=False, description="seconds above 0, such as 30"
    )
    ib_pacing: PacingMode = Field(
        default=PacingMode.ADAPTIVE, description="adaptive or conservative"
    )
    ib_max_retries: int = Field(default=3, ge=0, description="a whole number, 0 or more")
    ib_retry_delay: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="seconds, 0 or more"
    )
    ib_client_id_api: ClientIds = _ids("api")
    ib_client_id_batch: ClientIds = _ids("batch")
    ib_client_id_gap_filler: ClientIds = _ids("gap_filler")
    ib_client_id_data_manager: ClientIds = _ids("data_manager")
    ib_client_id_cli: ClientIds = _ids("cli")
    ib_client_id_tests: ClientIds = _ids("tests")
    ktrdr_data: Folder | None = Field(default=None, description="a folder for the store")
    ktrdr_state: Folder = Field(
        default_factory=lambda: platformdirs.user_state_path("ktrdr", appauthor=False),
        description="a folder for what all stores of a user share",
    )
    ktrdr_alert_command: str | None = Field(
        default=None,
        min_length=1,
        description="a command that takes alerts as JSON on its stdin, such as /home/me/alert.sh",
    )
    ktrdr_clock_offset_s: float = Field(
        default=0.0,
        ge=-_FIFTY_YEARS_S,
        le=_FIFTY_YEARS_S,
        allow_inf_nan=False,
        description="seconds by which market time is ahead of this machine's, negative where it "
        "is behind, such as -86400; fifty years at most",
    )

    @classmethod
    def settings_customise_sources(  # noqa: PLR0917  (as declared by the base)
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the only source of ``Settings(...)``: its arguments."""
        return (init_settings,)

    @property
    def client_ids(self) -> Mapping[str, tuple[int, int]]:
        """First and last client id of each operation, both included."""
        return MappingProxyType({name: getattr(self, f"ib_client_id_{name}") for name in _RANGES})

    @property
    def clock(self) -> Clock:
        """The clock of this process: real time, and the time of the market."""
        return Clock(self.ktrdr_clock_offset_s)

    @model_validator(mode="after")
    def _ranges_are_apart(self) -> Self:
        ordered = sorted((ids, name) for name, ids in self.client_ids.items())
        for (left, one), (right, other) in pairwise(ordered):
            if right[0] <= left[1]:
                raise ValueError(
                    f"{_variable(f'ib_client_id_{one}')}={left[0]}-{left[1]} and "
                    f"{_variable(f'ib_client_id_{other}')}={right[0]}-{right[1]} overlap"
                )
        return self


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the environment, or of a mapping given in its place.

    Raises:
        SettingsError: a variable is unknown or has a bad value; the error names it.
    """
    variables = os.environ if environ is None else environ
    _refuse_old_names(variables)
    _refuse_unknown_names(variables)
    source = EnvSettingsSource(Settings)
    source.env_vars = {name.lower(): value for name, value in variables.items()}
    values = source()
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _settings_error(error, values) from error


def workspace_folder(start: Path | None = None) -> Path:
    """Return the folder of the nearest workspace.yaml, upwards from start or the working folder.

    If there is none, the folder of the installed package is searched.

    Raises:
        NoStoreError: there is no workspace.yaml.
    """
    begin = (Path.cwd() if start is None else start).absolute()
    beside_package = Path(__file__).resolve().parents[1]
    for folder in (begin, *begin.parents, beside_package):
        if (folder / WORKSPACE_FILE).is_file():
            return folder
    raise NoStoreError(
        f"looked for {WORKSPACE_FILE} in {begin} and the folders above it",
        reason="found none",
        hint="Run from the project's folder, or set KTRDR_DATA to the folder of the store",
    )


def data_folder(settings: Settings, start: Path | None = None) -> Path:
    """Return the data folder: KTRDR_DATA, else ``data`` beside workspace.yaml; it may not exist.

    Raises:
        NoStoreError: KTRDR_DATA is not set, and there is no workspace.yaml.
    """
    return settings.ktrdr_data or workspace_folder(start) / "data"


def _variable(field: str) -> str:
    return field.upper()


def _refuse_old_names(variables: Mapping[str, str]) -> None:
    """Refuse variables of older systems without a meaning now; IB_READONLY=true still holds."""
    if "IB_CLIENT_ID" in variables:
        raise SettingsError(
            f"IB_CLIENT_ID={variables['IB_CLIENT_ID']!r}",
            reason="one client id for everything is no longer used",
            hint="Unset it; to move the ids, set a range for each operation, such as "
            "IB_CLIENT_ID_CLI=201-250 or IB_CLIENT_ID_BATCH=11-50",
        )
    if variables.get("IB_READONLY", "true").strip().lower() not in _YES:
        raise SettingsError(
            f"IB_READONLY={variables['IB_READONLY']!r}",
            reason="connections are always read-only, this cannot be switched off",
            hint="Unset it or set it to true",
        )


def _refuse_unknown_names(variables: Mapping[str, str]) -> None:
    """Refuse unknown KTRDR_ names, and IB_ names (a shared prefix) that look like a typo."""
    known = [_variable(name) for name in Settings.model_fields]
    for name in variables:
        capitals = name.upper()
        if name in known or capitals == "IB_READONLY" or not capitals.startswith(("KTRDR_", "IB_")):
            continue
        ours = capitals.startswith("KTRDR_")
        family = [one for one in known if one.startswith("KTRDR_")] if ours else known
        near = difflib.get_close_matches(capitals, family, n=1, cutoff=0 if ours else _NEAR)
        if near:
            raise SettingsError(
                f"{name}={variables[name]!r}",
                reason="no such setting",
                hint=f"Did you mean {near[0]}? Known are {', '.join(sorted(known))}",
            )


def _settings_error(error: ValidationError, values: Mapping[str, Any]) -> SettingsError:
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        return SettingsError(
            "client id ranges",
            reason=first["msg"].removeprefix("Value error, "),
            hint="Give each operation ids of its own",
        )
    name = str(first["loc"][0])
    field = Settings.model_fields[name]
    return SettingsError(
        f"{_variable(name)}={values[name]!r}",
        reason="the value is not allowed",
        hint=f"It must be {field.description}; unset it for the default",
    )
