import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from ktrdr_pipelines.errors import NoStoreError, SettingsError
from ktrdr_pipelines.settings import (
    PacingMode,
    Settings,
    Source,
    data_folder,
    effective_settings,
    load_settings,
    settings_file,
    settings_sources,
    workspace_folder,
)

NAMES = (
    "IB_HOST IB_PORT IB_TIMEOUT IB_PACING IB_MAX_RETRIES IB_RETRY_DELAY IB_CLIENT_ID_API "
    "IB_CLIENT_ID_BATCH IB_CLIENT_ID_GAP_FILLER IB_CLIENT_ID_DATA_MANAGER IB_CLIENT_ID_CLI "
    "IB_CLIENT_ID_TESTS KTRDR_DATA KTRDR_STATE KTRDR_CLOCK_OFFSET_S"
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make a folder with a workspace.yaml."""
    folder = tmp_path / "project"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "workspace.yaml").touch()
    return folder


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Move the package to where there is no workspace.yaml."""
    monkeypatch.setattr("ktrdr_pipelines.settings.__file__", str(tmp_path / "lib" / "x" / "s.py"))
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_without_any_variable_the_defaults_hold() -> None:
    """They name a paper gateway on this machine."""
    settings = load_settings({})
    assert settings.ib_host == "127.0.0.1"
    assert settings.ib_port == 4002
    assert settings.ib_timeout == 30.0
    assert settings.ib_pacing is PacingMode.ADAPTIVE
    assert settings.ib_max_retries == 3
    assert settings.ib_retry_delay == 2.0
    assert settings.ktrdr_data is None
    assert settings.ktrdr_clock_offset_s == 0.0
    assert settings.ktrdr_state.is_absolute()
    assert settings.ktrdr_state.name == "ktrdr"
    assert dict(settings.client_ids) == {
        "api": (1, 10),
        "batch": (11, 50),
        "gap_filler": (101, 110),
        "data_manager": (111, 120),
        "cli": (201, 250),
        "tests": (251, 298),
    }


def test_every_variable_is_read(tmp_path: Path) -> None:
    """Each is parsed to its type."""
    settings = load_settings(
        {
            "IB_HOST": "gateway.local",
            "IB_PORT": "4004",
            "IB_TIMEOUT": "7.5",
            "IB_PACING": "conservative",
            "IB_MAX_RETRIES": "0",
            "IB_RETRY_DELAY": "0",
            "IB_CLIENT_ID_API": "300-300",
            "IB_CLIENT_ID_BATCH": " 301 - 309 ",
            "IB_CLIENT_ID_GAP_FILLER": "310-319",
            "IB_CLIENT_ID_DATA_MANAGER": "320-329",
            "IB_CLIENT_ID_CLI": "330-339",
            "IB_CLIENT_ID_TESTS": "340-2147483647",
            "KTRDR_DATA": str(tmp_path / "data"),
            "KTRDR_STATE": str(tmp_path / "state"),
            "KTRDR_CLOCK_OFFSET_S": "-86400.5",
        }
    )
    assert (settings.ib_host, settings.ib_port, settings.ib_timeout) == ("gateway.local", 4004, 7.5)
    assert settings.ib_pacing is PacingMode.CONSERVATIVE
    assert (settings.ib_max_retries, settings.ib_retry_delay) == (0, 0.0)
    assert settings.client_ids["api"] == (300, 300)
    assert settings.client_ids["batch"] == (301, 309)
    assert settings.client_ids["tests"] == (340, 2_147_483_647)
    assert settings.ktrdr_data == tmp_path / "data"
    assert settings.ktrdr_state == tmp_path / "state"
    assert settings.ktrdr_clock_offset_s == -86_400.5
    assert settings.clock.offset_s == -86_400.5


def test_the_environment_is_read_by_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the environment is seen by the next call."""
    for name in NAMES.split():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IB_PORT", "7497")
    assert load_settings().ib_port == 7497
    monkeypatch.setenv("IB_PORT", "7496")
    assert load_settings().ib_port == 7496


def test_constructed_settings_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests and resources get only what they set."""
    monkeypatch.setenv("IB_PORT", "7497")
    monkeypatch.setenv("KTRDR_NONSENSE", "1")
    settings = Settings(ib_host="h", ib_client_id_cli=(400, 401))
    assert (settings.ib_host, settings.ib_port) == ("h", 4002)
    assert settings.client_ids["cli"] == (400, 401)


def test_a_dotenv_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster reads .env for its own home; settings come from the environment alone."""
    (tmp_path / ".env").write_text("IB_PORT=7497\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings({}).ib_port == 4002


def test_settings_cannot_be_changed() -> None:
    """They are frozen."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().ib_port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings().client_ids["cli"] = (1, 2)  # type: ignore[index]


def test_an_unknown_field_is_refused() -> None:
    """A misspelled keyword is an error."""
    with pytest.raises(ValidationError, match="ib_prot"):
        Settings(ib_prot=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("IB_HOST", "", "a host name or address"),
        ("IB_HOST", "http://gateway", "without a port or a scheme"),
        ("IB_HOST", "two words", "a host name or address"),
        ("IB_HOST", "gate\0way", "a host name or address"),
        ("IB_PORT", "0", "1 to 65535"),
        ("IB_PORT", "65536", "1 to 65535"),
        ("IB_PORT", "paper", "a TCP port"),
        ("IB_PORT", "", "a TCP port"),
        ("IB_PORT", "4002.5", "a TCP port"),
        ("IB_TIMEOUT", "0", "seconds above 0"),
        ("IB_TIMEOUT", "nan", "seconds above 0"),
        ("IB_TIMEOUT", "inf", "seconds above 0"),
        ("IB_TIMEOUT", "30s", "seconds above 0"),
        ("IB_PACING", "Adaptive", "adaptive or conservative"),
        ("IB_MAX_RETRIES", "-1", "0 or more"),
        ("IB_MAX_RETRIES", "1.5", "a whole number"),
        ("IB_RETRY_DELAY", "-0.1", "0 or more"),
        ("IB_CLIENT_ID_CLI", "5", "such as 201-250"),
        ("IB_CLIENT_ID_CLI", "250-201", "such as 201-250"),
        ("IB_CLIENT_ID_CLI", "0-5", "from 1 to 2147483647"),
        ("IB_CLIENT_ID_CLI", "201-2147483648", "from 1 to 2147483647"),
        ("IB_CLIENT_ID_CLI", "-1-5", "such as 201-250"),
        ("IB_CLIENT_ID_CLI", "a-b", "such as 201-250"),
        ("KTRDR_CLOCK_OFFSET_S", "", "seconds by which market time is ahead"),
        ("KTRDR_CLOCK_OFFSET_S", "a day", "such as -86400"),
        ("KTRDR_CLOCK_OFFSET_S", "nan", "such as -86400"),
        ("KTRDR_CLOCK_OFFSET_S", "-inf", "such as -86400"),
        ("KTRDR_CLOCK_OFFSET_S", "1e12", "fifty years at most"),
        ("KTRDR_DATA", "", "a folder"),
        ("KTRDR_DATA", "~nobody-of-that-name/data", "a folder"),
        ("KTRDR_STATE", "  ", "a folder"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    """The error has the variable, the value as given, and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        load_settings({name: value})
    assert f"{name}={value!r}" in str(caught.value)
    assert allowed in str(caught.value)


@pytest.mark.parametrize("cli", ["50-60", "1-1", "5-300"])
def test_two_operations_never_share_an_id(cli: str) -> None:
    """The error names both ranges that overlap."""
    with pytest.raises(SettingsError, match=r"IB_CLIENT_ID_\w+=.* and IB_CLIENT_ID_\w+=.* overlap"):
        load_settings({"IB_CLIENT_ID_CLI": cli})
    with pytest.raises(ValidationError, match="overlap"):
        Settings(ib_client_id_cli=cli)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("KTRDR_DATE", "KTRDR_DATA"),
        ("KTRDR_STATE_DIR", "KTRDR_STATE"),
        ("ktrdr_data", "KTRDR_DATA"),
        ("KTRDR_", "KTRDR_"),
        ("IB_PROT", "IB_PORT"),
        ("IB_HOSTS", "IB_HOST"),
        ("ib_port", "IB_PORT"),
        ("IB_CLIENT_ID_CLIENT", "IB_CLIENT_ID_CLI"),
        ("IB_MAX_RETRY", "IB_MAX_RETRIES"),
    ],
)
def test_a_mistyped_name_is_an_error_with_the_right_one(name: str, near: str) -> None:
    """Any unknown name of this project is, and any near miss of the shared prefix."""
    with pytest.raises(SettingsError) as caught:
        load_settings({name: "x"})
    assert f"{name}='x'" in str(caught.value)
    assert f"Did you mean {near}" in str(caught.value)


@pytest.mark.parametrize("name", ["IB_ACCOUNT", "IB_GATEWAY_VERSION", "IBM_PORT", "PATH", "IB_"])
def test_variables_of_other_programs_are_ignored(name: str) -> None:
    """Other programs use the prefix IB_ too."""
    assert load_settings({name: "anything"}) == load_settings({})


@pytest.mark.parametrize(
    ("first", "api", "cut"),
    [
        (1, (1, 10), {}),
        (10, (10, 10), {}),
        (11, (11, 11), {"batch": (12, 50)}),
        (40, (40, 40), {"batch": (11, 39)}),
        (105, (105, 105), {"gap_filler": (106, 110)}),
        (298, (298, 298), {"tests": (251, 297)}),
        (2**31 - 1, (2**31 - 1, 2**31 - 1), {}),
    ],
)
def test_the_client_id_of_older_systems_begins_the_range_of_the_api(
    first: int, api: tuple[int, int], cut: dict[str, tuple[int, int]]
) -> None:
    """A default range that has the id loses it, and keeps its larger side."""
    settings = load_settings({"IB_CLIENT_ID": str(first)})
    changed = {
        name: ids for name, ids in settings.client_ids.items() if ids != Settings().client_ids[name]
    }
    assert settings.client_ids["api"] == api
    assert {"api": api, **cut} == {"api": api, **changed}
    [warning] = settings.warnings
    assert f"IB_CLIENT_ID={first} " in warning
    assert f"IB_CLIENT_ID_API={api[0]}-{api[1]}" in warning
    sources = settings_sources(settings)
    assert sources["ib_client_id_api"] is Source.ENVIRONMENT
    names = {f"ib_client_id_{name}" for name in cut}
    assert {name for name in names if sources[name] is Source.ENVIRONMENT} == names


def test_every_client_id_of_older_systems_can_be_used() -> None:
    """With the default ranges no id is refused."""
    for first in range(1, 320):
        assert load_settings({"IB_CLIENT_ID": str(first)}).client_ids["api"][0] == first


def test_a_range_takes_precedence_over_the_client_id_of_older_systems() -> None:
    """The warning says that the older variable is ignored."""
    variables = {"IB_CLIENT_ID": "7", "IB_CLIENT_ID_API": "2-4"}
    settings = load_settings(variables)
    assert settings.client_ids["api"] == (2, 4)
    [warning] = settings.warnings
    assert "IB_CLIENT_ID=7 is ignored" in warning
    assert load_settings({"IB_CLIENT_ID_API": "2-4"}).warnings == ()


def test_a_range_that_a_variable_sets_is_not_cut() -> None:
    """An overlap with the client id of older systems is an error that names both."""
    with pytest.raises(SettingsError, match=r"IB_CLIENT_ID=5 and IB_CLIENT_ID_BATCH=8-50 overlap"):
        load_settings({"IB_CLIENT_ID": "5", "IB_CLIENT_ID_BATCH": "8-50"})


@pytest.mark.parametrize("value", ["0", "-1", "seven", "", "2147483648", "1-10", "1.5"])
@pytest.mark.parametrize("api", [{}, {"IB_CLIENT_ID_API": "2-4"}])
def test_a_bad_client_id_of_older_systems_is_refused(value: str, api: dict[str, str]) -> None:
    """It is also checked where it would be ignored."""
    with pytest.raises(SettingsError, match=rf"IB_CLIENT_ID='{value}'.*1 to 2147483647"):
        load_settings({"IB_CLIENT_ID": value, **api})


@pytest.mark.parametrize("token", ["Zx81", "x" * 15, "with a space in it", "x" * 16 + "\u00e9", ""])
def test_a_bad_token_is_refused_without_naming_it(token: str) -> None:
    """The error has the variable and what is allowed, and no cause that has the value."""
    with pytest.raises(SettingsError, match=r"KTRDR_API_TOKEN: .*at least 16") as caught:
        load_settings({"KTRDR_API_TOKEN": token})
    text = "".join(traceback.format_exception(caught.value))
    assert not token or token not in text


SECRET = "Zx81-Zx81-Zx81-Zx81"  # noqa: S105  (of this test)


@pytest.mark.parametrize(
    "other",
    [
        {"IB_PORT": "paper"},
        {"IB_CLIENT_ID_CLI": "1-300"},
        {"KTRDR_API_TOKE": SECRET},
        {"KTRDR_TOKEN": SECRET},
        {"ktrdr_api_token": SECRET},
        {"KTRDR_API_KEY": SECRET},
    ],
)
def test_no_error_has_the_token(other: dict[str, str]) -> None:
    """Neither one of another setting, nor one of a mistyped name."""
    with pytest.raises(SettingsError) as caught:
        load_settings({"KTRDR_API_TOKEN": SECRET, **other})
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_token_is_kept_secret() -> None:
    """It is read, and no text of the settings has it."""
    settings = load_settings({"KTRDR_API_TOKEN": SECRET})
    assert settings.ktrdr_api_token is not None
    assert settings.ktrdr_api_token.get_secret_value() == SECRET
    assert SECRET not in f"{settings!r} {settings} {settings.model_dump_json()}"


@pytest.fixture
def in_file(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that writes the file of settings of a data folder."""

    def write(text: str) -> Path:
        path = settings_file(tmp_path)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_flags_then_environment_then_file_then_defaults(
    tmp_path: Path, in_file: Callable[[str], Path]
) -> None:
    """Each value is of the first that has one, and its source is known."""
    in_file('{"ib_host": "file", "ib_port": 1, "ib_timeout": 7, "ib_pacing": "conservative"}')
    variables = {"KTRDR_DATA": str(tmp_path), "IB_HOST": "environment", "IB_PORT": "2"}
    settings = effective_settings(variables, flags={"ib_port": 3})
    assert (settings.ib_host, settings.ib_port, settings.ib_timeout) == ("environment", 3, 7.0)
    assert settings.ib_pacing is PacingMode.CONSERVATIVE
    sources = settings_sources(settings)
    names = ("ib_port", "ib_host", "ib_timeout", "ib_max_retries")
    assert [sources[name] for name in names] == list(Source)
    assert load_settings(variables).ib_timeout == 30.0
    assert settings_sources(Settings(ib_port=3))["ib_port"] is Source.FLAG


def test_the_file_is_that_of_the_data_folder(
    project: Path, in_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is that of a flag, or beside the workspace; each call reads it."""
    path = in_file('{"ib_port": 1}')
    assert effective_settings({}, flags={"ktrdr_data": path.parents[1]}).ib_port == 1
    monkeypatch.chdir(project)
    assert effective_settings({}).ib_port == 4002
    settings_file(project / "data").parent.mkdir(parents=True)
    path.rename(settings_file(project / "data"))
    assert effective_settings({}).ib_port == 1
    settings_file(project / "data").write_text('{"ib_port": "5"}')
    assert effective_settings({}).ib_port == 5


def test_without_a_data_folder_there_is_no_file(
    nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that need no store work everywhere."""
    monkeypatch.chdir(nowhere)
    assert effective_settings({}) == Settings()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("cannot read the settings",)),
        ("{ib_port: 4002}", ("cannot read the settings", "line 1 column 2")),
        ("[]", ("it is not an object",)),
        ('{"ib_port": 1, "ib_port": 2}', ("the key ib_port is there twice",)),
        ("[" * 100_000, ("cannot read the settings",)),
        ('{"ib_prot": 4002}', (", ib_prot: ", "Did you mean ib_port?")),
        ('{"IB_PORT": 4002}', (", IB_PORT: ", "Did you mean ib_port?")),
        ('{"ktrdr_data": "x"}', (", ktrdr_data: ", "cannot have this key")),
        ('{"ib_client_id_cli": "1-2"}', (", ib_client_id_cli: ", "cannot have this key")),
        ('{"ib_port": 70000}', (", ib_port=70000: ", "1 to 65535")),
        ('{"ib_port": true}', (", ib_port=True: ", "1 to 65535")),
        ('{"ib_port": null}', (", ib_port=None: ", "1 to 65535")),
        ('{"ib_host": 7}', (", ib_host=7: ", "a host name or address")),
        ('{"ib_host": "http://x"}', (", ib_host='http://x': ", "without a port or a scheme")),
        ('{"ib_host": "a\\u0000b"}', (r", ib_host='a\x00b': ", "a host name or address")),
        ('{"ib_timeout": NaN}', (", ib_timeout=nan: ", "seconds above 0")),
        ('{"ib_pacing": "fast"}', (", ib_pacing='fast': ", "adaptive or conservative")),
        ('{"ib_client_id_api": 7}', (", ib_client_id_api=7: ", "such as 1-10")),
        ('{"ib_client_id_api": "1-60"}', (", ib_client_id_api=1-60 and IB_CLIENT_ID_BATCH=11-50",)),
    ],
)
def test_a_bad_file_is_named_with_its_key(
    tmp_path: Path, in_file: Callable[[str], Path], text: str, parts: tuple[str, ...]
) -> None:
    """The error has what is allowed, also where the environment sets another value."""
    path = in_file(text)
    with pytest.raises(SettingsError) as caught:
        effective_settings({"KTRDR_DATA": str(tmp_path), "IB_PORT": "4001", "IB_HOST": "x"})
    assert str(path) in str(caught.value)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_a_file_that_comes_and_goes_is_read_or_is_not_there(
    tmp_path: Path, in_file: Callable[[str], Path]
) -> None:
    """Also where it is removed while it is read."""
    path = in_file('{"ib_port": 4001}')
    kept = path.with_suffix(".kept")

    def come_and_go() -> None:
        for _ in range(1_000):
            path.rename(kept)
            kept.rename(path)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    ports = set()
    while thread.is_alive():
        ports.add(effective_settings({"KTRDR_DATA": str(tmp_path)}).ib_port)
    thread.join()
    assert ports <= {4001, 4002}


def test_something_else_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    """A folder is no file of settings."""
    settings_file(tmp_path).mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"settings\.json: not a file.*ktrdr repair"):
        effective_settings({"KTRDR_DATA": str(tmp_path)})


def test_client_ids_of_the_file_are_cut_from_default_ranges(
    tmp_path: Path, in_file: Callable[[str], Path]
) -> None:
    """A variable with the range, or the older one, takes precedence."""
    in_file('{"ib_client_id_api": "100-103"}')
    data = {"KTRDR_DATA": str(tmp_path)}
    settings = effective_settings(data)
    assert (settings.client_ids["api"], settings.client_ids["gap_filler"]) == (
        (100, 103),
        (104, 110),
    )
    assert settings_sources(settings)["ib_client_id_gap_filler"] is Source.FILE
    for variables, api in (({"IB_CLIENT_ID_API": "2-3"}, (2, 3)), ({"IB_CLIENT_ID": "4"}, (4, 10))):
        settings = effective_settings({**data, **variables})
        assert (settings.client_ids["api"], settings.client_ids["gap_filler"]) == (api, (101, 110))
    with pytest.raises(SettingsError, match="ib_client_id_api=100-103 and IB_CLIENT_ID_BATCH=99-"):
        effective_settings({**data, "IB_CLIENT_ID_BATCH": "99-100"})


@pytest.mark.parametrize("value", ["1", "true", "True", "yes", "on"])
def test_read_only_is_accepted_where_it_is_true(value: str) -> None:
    """Connections are read-only in any case."""
    assert load_settings({"IB_READONLY": value}) == load_settings({})


@pytest.mark.parametrize("value", ["0", "false", "", "maybe"])
def test_read_only_cannot_be_switched_off(value: str) -> None:
    """The error says that connections are always read-only."""
    with pytest.raises(SettingsError, match="always read-only"):
        load_settings({"IB_READONLY": value})


def test_folders_are_absolute_and_know_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of one run have different working folders, and need the same store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_settings({"KTRDR_DATA": "bars"}).ktrdr_data == tmp_path / "bars"
    assert load_settings({"KTRDR_DATA": "~/bars"}).ktrdr_data == tmp_path / "home" / "bars"
    assert Settings(ktrdr_state=Path("s")).ktrdr_state == tmp_path / "s"


def test_the_data_folder_of_the_environment_comes_first(project: Path, tmp_path: Path) -> None:
    """KTRDR_DATA takes precedence inside a project, and no folder is created."""
    settings = Settings(ktrdr_data=tmp_path / "mine")
    assert data_folder(settings, project) == tmp_path / "mine"
    assert not (tmp_path / "mine").exists()


def test_the_data_folder_lies_beside_the_nearest_workspace(project: Path) -> None:
    """It is searched for upwards, and not created."""
    assert data_folder(Settings(), project / "deep" / "er") == project / "data"
    assert workspace_folder(project / "deep") == project
    assert not (project / "data").exists()


def test_the_search_begins_in_the_working_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands are run from inside the project."""
    monkeypatch.chdir(project / "deep")
    assert workspace_folder() == project


def test_the_workspace_beside_the_package_is_the_last_resort(nowhere: Path, tmp_path: Path) -> None:
    """An editable install is found from everywhere."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "workspace.yaml").touch()
    assert data_folder(Settings(), nowhere) == tmp_path / "lib" / "data"


def test_without_any_workspace_the_error_says_what_to_set(nowhere: Path) -> None:
    """The error names the folder where the search began, and KTRDR_DATA."""
    with pytest.raises(NoStoreError, match=r"elsewhere.*KTRDR_DATA"):
        data_folder(Settings(), nowhere)
