"""Settings of flags, environment (``IB_*``, ``KTRDR_*``) and file, and the search for data folders.

A flag takes precedence over the environment, the environment over the file
``state/settings.json`` of the data folder, the file over the default. The file has settings of the
gateway only, and programs change it at run time: ``effective_settings`` reads it at every call.
Environment and file are never read at import, and ``Settings(...)`` itself never reads them.
``.env`` files are not read.

Not here: writing the file (``app.services.gateway_settings``), creating a store or checking whether
a folder is one (``store.layout``), instruments (``domain.universe.universe``).
"""

import difflib
import json
import os
import re
import stat
from collections.abc import Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Self

import platformdirs
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    TypeAdapter,
    ValidationError,
    model_validator,
)
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
IN_FILE: Final = (
    "ib_host",
    "ib_port",
    "ib_timeout",
    "ib_pacing",
    "ib_max_retries",
    "ib_retry_delay",
    "ib_client_id_api",
)
"""The settings that the file may have: those of the gateway."""

_RANGES = IbLimitsRegistry.CLIENT_ID_RANGES.value
_MOST_CLIENT_ID: Final = 2**31 - 1
_API: Final = "ib_client_id_api"
_CLIENT_ID: Final = "IB_CLIENT_ID"
_TOKEN: Final = "ktrdr_api_token"  # noqa: S105  (the name of a setting)
_TOKEN_CHARACTERS: Final = 16
_OWNER: Final = re.compile(r"team:[A-Za-z0-9_-]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+")
_YES = frozenset({"1", "true", "yes", "on"})
_NEAR = 0.8
_FIFTY_YEARS_S: Final = 50 * 365.25 * 86_400


class Source(StrEnum):
    """Where the value of a setting comes from, strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


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


_LONGEST_WAIT_S: Final = 366 * 86_400.0
"""The longest wait that is accepted: a moment so far ahead can still be stated as a date."""


def wait_seconds(text: str) -> float:
    """Return the seconds of a wait such as ``90``, ``45s``, ``90m``, ``2h`` or ``1h30m``.

    Raises:
        ValueError: it is something else.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip(), re.ASCII)
    if found is None or not text.strip():
        raise ValueError("not a number of seconds, and not a number with s, m or h")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    wait_s = hours * 3600 + minutes * 60 + seconds
    if wait_s > _LONGEST_WAIT_S:
        raise ValueError("longer than a year")
    return wait_s


def _wait(value: object) -> object:
    return wait_seconds(value) if isinstance(value, str) else value


def _token(value: SecretStr) -> SecretStr:
    """Refuse a token that is short, or that an HTTP header cannot carry."""
    if not re.fullmatch(rf"[!-~]{{{_TOKEN_CHARACTERS},}}", value.get_secret_value()):
        raise ValueError("short, or with spaces or other characters")
    return value


def _owners(value: str) -> str:
    """Refuse owners that Dagster does not accept."""
    if not all(_OWNER.fullmatch(one.strip()) for one in value.split(",")):
        raise ValueError("neither an email nor team:NAME")
    return value


_ClientId = Annotated[int, Field(le=_MOST_CLIENT_ID)]
ClientIds = Annotated[tuple[_ClientId, _ClientId], BeforeValidator(_id_range)]
_client_ids = TypeAdapter(ClientIds)
Folder = Annotated[Path, BeforeValidator(_folder)]
Owners = Annotated[str, AfterValidator(_owners)]
Token = Annotated[SecretStr, AfterValidator(_token)]


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
        hide_input_in_errors=True,  # one of them is a secret
    )

    ib_host: str = Field(
        default="127.0.0.1",
        pattern=r"^[^\s/\x00-\x1f\x7f]{1,253}$",  # a name of DNS has 253 characters at most
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
    ktrdr_owners: Owners = Field(
        default="team:market-data",
        description="emails or team:NAME, separated by commas, such as team:a,me@example.org",
    )
    ktrdr_clock_offset_s: float = Field(
        default=0.0,
        ge=-_FIFTY_YEARS_S,
        le=_FIFTY_YEARS_S,
        allow_inf_nan=False,
        description="seconds by which market time is ahead of this machine's, negative where it "
        "is behind, such as -86400; fifty years at most",
    )

    ktrdr_wait: Annotated[float, BeforeValidator(_wait)] | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="how long ktrdr load and ktrdr update wait for a gateway that is away: "
        "seconds, or a number with m or h, such as 90m; 0 to end at once",
    )
    ktrdr_api_token: Token | None = Field(
        default=None,
        description=f"at least {_TOKEN_CHARACTERS} letters, digits or signs, without spaces",
    )

    _sources: dict[str, Source] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())

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
    def owners(self) -> tuple[str, ...]:
        """The owners of the assets in Dagster."""
        return tuple(one.strip() for one in self.ktrdr_owners.split(","))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about these settings, such as a variable to be replaced."""
        return self._warnings

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
    """Return the settings of the environment, or of a mapping given in its place; no file is read.

    Use ``effective_settings`` for whatever concerns the gateway.

    Raises:
        SettingsError: a variable is unknown or has a bad value; the error names it.
    """
    return _Overrides(os.environ if environ is None else environ).settings()


def effective_settings(
    environ: Mapping[str, str] | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    file: Mapping[str, object] | None = None,
) -> Settings:
    """Return the settings as they are now: flags, then environment, then file, then defaults.

    Args:
        environ: variables in place of the environment.
        flags: values by the names of fields, such as ``{"ktrdr_data": folder}``.
        file: values in place of those in the file of the data folder, if there is one.

    Raises:
        SettingsError: a variable, a flag or a key of the file is unknown or has a bad value.
    """
    overrides = _Overrides(os.environ if environ is None else environ, flags or {})
    settings = overrides.settings()
    try:
        path = settings_file(data_folder(settings))
    except NoStoreError:
        return settings
    values = read_settings_file(path) if file is None else _checked_file(file, path)
    return overrides.settings(values, path) if values else settings


def settings_sources(settings: Settings) -> Mapping[str, Source]:
    """Return where the value of each field comes from.

    What was passed to ``Settings(...)`` counts as a flag.
    """
    own = dict.fromkeys(settings.model_fields_set, Source.FLAG)
    every = dict.fromkeys(Settings.model_fields, Source.DEFAULT)
    return MappingProxyType({**every, **own, **settings._sources})  # noqa: SLF001  (of this module)


def settings_file(folder: Path) -> Path:
    """Return the path of the file of settings in a data folder."""
    return folder / "state" / "settings.json"


def read_settings_file(path: Path) -> dict[str, object]:
    """Return the values in a file of settings, by the names of fields; none if there is no file.

    Raises:
        SettingsError: the file cannot be read, has an unknown key or a bad value.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a named pipe would wait for its other end
            hint = "Run `ktrdr repair`, which quarantines it, or move it away"
            raise SettingsError(f"cannot read the settings {path}", reason="not a file", hint=hint)
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # also where it is removed at this moment
        return {}
    except OSError as error:
        raise _bad_file(path, error.strerror or str(error)) from error
    try:
        content = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _bad_file(path, reason) from error
    if not isinstance(content, dict):
        raise _bad_file(path, "it is not an object")
    return _checked_file(content, path)


def checked_setting(field: str, value: object, what: str) -> object:
    """Return a value of a field as ``Settings`` would hold it.

    Args:
        field: the name of the field.
        value: the value.
        what: names the value in the error, such as ``port``.

    Raises:
        SettingsError: the field cannot have this value.
    """
    allowed = Settings.model_fields[field].description
    hint = f"It must be {allowed}"
    # As numbers, true would be 1, and a number in place of a text is an oversight.
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise SettingsError(f"{what}={value!r}", reason="the value is not allowed", hint=hint)
    try:
        settings = Settings.model_validate({field: value})
    except ValidationError as error:
        if not error.errors()[0]["loc"]:  # it is valid, but overlaps the range of another operation
            return _client_ids.validate_python(value)
        raise SettingsError(
            f"{what}={value!r}", reason="the value is not allowed", hint=hint
        ) from error
    checked: object = getattr(settings, field)
    return checked


def api_client_ids(first: int | str, what: str) -> tuple[int, int]:
    """Return the range of the API's client ids that begins with an id.

    It reaches to the end of the default range if the id is in that, else it has this id alone.

    Args:
        first: the id.
        what: names it in the error.

    Raises:
        SettingsError: it is not a client id.
    """
    is_number = re.fullmatch(r"\s*[0-9]{1,10}\s*", str(first)) is not None
    if not is_number or not 1 <= int(first) <= _MOST_CLIENT_ID:
        raise SettingsError(
            f"{what}={first!r}",
            reason="the value is not allowed",
            hint=f"It must be a client id, 1 to {_MOST_CLIENT_ID}",
        )
    number, (low, high) = int(first), _RANGES["api"]
    return (number, high) if low <= number <= high else (number, number)


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


class _Overrides:
    """The values that flags and environment give, which take precedence over those of a file."""

    def __init__(
        self, variables: Mapping[str, str], flags: Mapping[str, object] | None = None
    ) -> None:
        _refuse_read_write(variables)
        _refuse_unknown_names(variables)
        source = EnvSettingsSource(Settings)
        source.env_vars = {name.lower(): value for name, value in variables.items()}
        environment = source()
        if _TOKEN in environment:
            environment[_TOKEN] = SecretStr(environment[_TOKEN])
        self._client_id = variables.get(_CLIENT_ID)
        self._values: dict[str, Any] = {**environment, **(flags or {})}
        self._sources = {
            **dict.fromkeys(environment, Source.ENVIRONMENT),
            **dict.fromkeys(flags or {}, Source.FLAG),
        }

    def settings(
        self, file: Mapping[str, object] | None = None, path: Path | None = None
    ) -> Settings:
        """Return the settings with the values of a file at a path."""
        values = {**(file or {}), **self._values}
        sources = {**dict.fromkeys(file or {}, Source.FILE), **self._sources}
        warnings: tuple[str, ...] = ()
        if self._client_id is None:
            if sources.get(_API) is Source.FILE:
                cut = _cut_defaults(values[_API], values, f"{path}, {_API}={_text(values[_API])}")
                values.update(cut)
                sources.update(dict.fromkeys(cut, Source.FILE))
        else:
            ids = api_client_ids(self._client_id, _CLIENT_ID)
            label = f"{_CLIENT_ID}={ids[0]}"
            if _API in self._values:
                warnings = (f"{label} is ignored, because {_variable(_API)} is set. Unset it",)
            else:
                ranges = {_API: ids, **_cut_defaults(ids, values, label)}
                values.update(ranges)
                sources.update(dict.fromkeys(ranges, Source.ENVIRONMENT))
                own = " ".join(f"{_variable(name)}={_text(one)}" for name, one in ranges.items())
                warnings = (f"{label} is an older name, and is read as {own}. Set that instead",)
        try:
            settings = Settings.model_validate(values)
        except ValidationError as error:
            raise _settings_error(error, values) from error
        settings._sources, settings._warnings = sources, warnings  # noqa: SLF001
        return settings


def _text(ids: tuple[int, int]) -> str:
    return f"{ids[0]}-{ids[1]}"


def _cut_defaults(
    ids: tuple[int, int], values: Mapping[str, object], label: str
) -> dict[str, tuple[int, int]]:
    """Return the default ranges of other operations that overlap the API's, without its ids.

    Each keeps its larger side. A range that a value sets, or that would lose all ids, is not cut.

    Raises:
        SettingsError: the API's range overlaps a range that cannot be cut.
    """
    first, last = ids
    cut = {}
    for operation, default in _RANGES.items():
        name = f"ib_client_id_{operation}"
        try:
            low, high = _client_ids.validate_python(values.get(name, default))
        except ValidationError:
            continue  # ``Settings`` refuses this value
        if operation == "api" or last < low or high < first:
            continue
        below, above = (low, first - 1), (last + 1, high)
        longer = max(below, above, key=lambda one: one[1] - one[0])
        if name in values or longer[1] < longer[0]:
            raise SettingsError(
                "client id ranges",
                reason=f"{label} and {_variable(name)}={low}-{high} overlap",
                hint="Give each operation ids of its own",
            )
        cut[name] = longer
    return cut


def _checked_file(content: Mapping[str, object], path: Path) -> dict[str, object]:
    """Return the values of a file as ``Settings`` holds them."""
    for name in content:
        if name not in IN_FILE:
            near = difflib.get_close_matches(str(name).lower(), IN_FILE, n=1, cutoff=_NEAR)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise SettingsError(
                f"{path}, {name}",
                reason="the file cannot have this key",
                hint=f"{meant}Allowed are {', '.join(IN_FILE)}; set all else by the environment",
            )
    return {name: checked_setting(name, one, f"{path}, {name}") for name, one in content.items()}


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the key {name} is there twice")
    return dict(pairs)


def _bad_file(path: Path, reason: str) -> SettingsError:
    return SettingsError(
        f"cannot read the settings {path}",
        reason=reason,
        hint='It should be like {"ib_host": "127.0.0.1", "ib_port": 4002}. Correct it, or move it '
        "away for the defaults",
    )


def _refuse_read_write(variables: Mapping[str, str]) -> None:
    """Refuse IB_READONLY of older systems unless it is true, which still holds."""
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
        if name in {*known, _CLIENT_ID} or capitals == "IB_READONLY":
            continue
        if not capitals.startswith(("KTRDR_", "IB_")):
            continue
        ours = capitals.startswith("KTRDR_")
        family = [one for one in known if one.startswith("KTRDR_")] if ours else known
        near = difflib.get_close_matches(capitals, family, n=1, cutoff=0 if ours else _NEAR)
        if near:
            is_secret = "TOKEN" in capitals or near[0] == _variable(_TOKEN)
            raise SettingsError(
                name if is_secret else f"{name}={variables[name]!r}",
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
    is_secret = name == _TOKEN
    return SettingsError(
        _variable(name) if is_secret else f"{_variable(name)}={values[name]!r}",
        reason="the value is not allowed",
        hint=f"It must be {field.description}; unset it for the default",
    )
