"""What a look at a broken set-up finds, and that its hint fits."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ktrdr_pipelines.cli.entry_point import LogFile, run
from ktrdr_pipelines.cli.main import command_line
from ktrdr_pipelines.errors import GatewayUnreachableError
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.connection.client_ids import ClientIdLeases
from ktrdr_pipelines.ib.diagnostics.doctor import diagnose, duration_at
from ktrdr_pipelines.ib.diagnostics.gateway_checks import Check, CheckVerdict, Name, no_connection
from ktrdr_pipelines.ib.pacing.circuit_breaker import MOST_FAILURES
from ktrdr_pipelines.ib.pacing.rate_limiter import RateLimiter
from ktrdr_pipelines.ib.protocol.transport import DisconnectReason, TransportError

HMDS = "Historical Market Data Service error message:"


@pytest.fixture
def series_gaps(config: GatewayConfig, gateways: Any) -> Any:
    """Look at a gateway of a script; give the checks by their names, and keep the gateway."""

    def at(timeout_s: float = 60.0, **script: Any) -> dict[Name, Check]:
        at.gateway = gateways(**script)
        there = replace(config, port=at.gateway.port, timeout_s=timeout_s)
        checks = asyncio.run(diagnose(there))
        assert [check.name for check in checks] == list(Name)
        return {check.name: check for check in checks}

    return at


def wrongs(checks: dict[Name, Check]) -> list[Name]:
    """Name what is wrong."""
    return [name for name, check in checks.items() if check.verdict is CheckVerdict.WRONG]


def daily(talk: Any, fields: list[str], words: Any) -> None:
    """Answer with a daily bar."""
    talk.raw(words.history(fields[1], words.bar("20260105")))


def contracts(words: Any) -> Any:
    """Tell the contract that is asked for: the stock or the currency pair."""

    def tell(talk: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in words.details]
        if fields[4] == "EUR":
            texts[2], texts[3], texts[7], texts[12], texts[20] = "EUR", "CASH", "IDEALPRO", "1", ""
        talk.send(*texts)
        talk.send(52, 1, fields[2])

    return tell


def test_a_good_gateway_has_nothing_wrong(series_gaps: Any, words: Any) -> None:
    """Every check but read-only is good, and it took three requests."""
    checks = series_gaps(bars=lambda talk, fields: daily(talk, fields, words))
    assert wrongs(checks) == []
    assert {check.verdict for name, check in checks.items() if name is not Name.READ_ONLY} == {
        CheckVerdict.GOOD
    }
    assert checks[Name.BARS].finding == "AAPL 1d: 1 bars, the last of 2026-01-05"
    assert checks[Name.READ_ONLY].finding.startswith("not checked: ")
    kinds = [fields[0] for fields in series_gaps.gateway.received]
    assert sorted(kinds) == ["20", "49", "49", "71", "9"]


def test_a_gateway_in_another_language_and_zone_is_told_so(series_gaps: Any, words: Any) -> None:
    """Neither is wrong by itself; each has a hint."""

    def start(talk: Any, fields: list[str]) -> None:
        talk.send(15, 1, talk.script.account)
        talk.send(9, 1, 1)
        talk.error(-1, 2104, "Verbindung zum Marktdatenserver OK:usfarm")

    def tell(talk: Any, fields: list[str]) -> None:
        reach = ("20260104 16:00:00 CST", "20260105 16:00:00 CST")
        talk.raw(words.history(fields[1], words.bar("20260105"), reach=reach))

    checks = series_gaps(bars=tell, start=start)
    assert wrongs(checks) == []
    language, zone = checks[Name.LANGUAGE], checks[Name.ZONE]
    assert language.verdict is zone.verdict is CheckVerdict.NOTE
    assert "2104 Verbindung zum Marktdatenserver OK:usfarm" in language.finding
    assert "English" in language.hint
    assert "CST" in zone.finding
    assert "America/New_York" in zone.hint


def test_a_closed_port_names_the_port(config: GatewayConfig, closed_port: int) -> None:
    """Nothing is looked at behind a closed port."""
    checks = asyncio.run(diagnose(replace(config, port=closed_port)))
    assert checks[0].verdict is CheckVerdict.WRONG
    assert "nothing listens there" in checks[0].finding
    assert {check.verdict for check in checks[1:]} == {CheckVerdict.UNKNOWN}


def broken_by(disconnect_reason: DisconnectReason, port: int, others: dict[str, int]) -> Check:
    """Say what a connection that ended so is told as."""
    error = GatewayUnreachableError(
        "connect", reason=str(TransportError(disconnect_reason)), hint="Start it"
    )
    error.__cause__ = TransportError(disconnect_reason)
    return no_connection(error, port, others)[-1]


def test_other_open_ports_are_offered() -> None:
    """A gateway at another of the known ports is probably the one that is meant."""
    check = broken_by(DisconnectReason.REFUSED, 4002, {"gateway live": 4001, "TWS paper": 7497})
    assert "4001 (gateway live), 7497 (TWS paper)" in check.finding
    assert "IB_PORT=4001" in check.hint


@pytest.mark.parametrize(("port", "part"), [(4002, "enable socket clients"), (4004, "container")])
def test_accept_then_end_depends_on_the_port(port: int, part: str) -> None:
    """At a container's port the forwarder listens alone; elsewhere the API is off."""
    assert part in broken_by(DisconnectReason.CLOSED, port, {}).hint


def test_an_api_that_is_off_or_distrusts_us(series_gaps: Any) -> None:
    """It accepts and hangs up: the API settings are named."""
    checks = series_gaps(greet=lambda talk: talk.close())
    assert wrongs(checks) == [Name.HANDSHAKE]
    assert "trusted" in checks[Name.HANDSHAKE].hint


def test_client_ids_that_are_all_taken(series_gaps: Any) -> None:
    """326 on three ids names the setting; nothing else is wrong."""

    def taken(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 326, "Unable to connect as the client id is already in use.")
        talk.close()

    checks = series_gaps(start=taken)
    assert wrongs(checks) == [Name.CLIENT_ID]
    assert "IB_CLIENT_ID" in checks[Name.CLIENT_ID].hint


def test_client_ids_that_were_refused_a_moment_ago(config: GatewayConfig, gateways: Any) -> None:
    """Where no id is left to try nothing was connected to, and nothing of that is claimed."""
    gateway = gateways()
    ids = {**config.client_id_ranges, "cli": (201, 202)}
    there = replace(config, port=gateway.port, client_id_ranges=ids)
    there.folder.mkdir(parents=True)
    for client_id in (201, 202):
        ClientIdLeases(there.folder).quarantine(client_id)
    checks = {check.name: check for check in asyncio.run(diagnose(there))}
    assert wrongs(checks) == [Name.CLIENT_ID]
    assert checks[Name.PORT].verdict is CheckVerdict.UNKNOWN
    assert gateway.connects == 0


def test_a_host_that_no_listener_knows(config: GatewayConfig) -> None:
    """A slip in IB_HOST is told as one."""
    checks = asyncio.run(diagnose(replace(config, host="gate..home")))
    assert checks[0].verdict is CheckVerdict.WRONG
    assert "no such host" in checks[0].finding
    assert "IB_HOST" in checks[0].hint


def test_a_gateway_without_bars_of_a_well_known_stock(series_gaps: Any) -> None:
    """No data for a stock that trades every day is no good answer."""
    checks = series_gaps(
        bars=lambda talk, fields: talk.error(fields[1], 162, f"{HMDS}HMDS query returned no data")
    )
    assert wrongs(checks) == [Name.BARS]
    assert "well-known stock" in checks[Name.BARS].finding


def test_a_gateway_that_hangs(series_gaps: Any, words: Any) -> None:
    """It shakes hands and does not tell the time."""
    checks = series_gaps(timeout_s=1.0, time=words.ignore)
    assert wrongs(checks) == [Name.CLOCK]
    assert "nightly reset" in checks[Name.CLOCK].hint


def test_a_gateway_that_is_logged_out(series_gaps: Any, words: Any) -> None:
    """It tells the time, its farms are broken, and it knows no contract."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:ushmds")

    checks = series_gaps(timeout_s=1.0, start=start, contract=words.ignore)
    assert wrongs(checks) == [Name.FARMS, Name.CONTRACTS]
    assert checks[Name.CLOCK].verdict is CheckVerdict.GOOD
    assert checks[Name.BARS].verdict is CheckVerdict.UNKNOWN
    assert "log in" in checks[Name.CONTRACTS].hint


def test_a_broken_farm_that_bars_come_without_is_noted(series_gaps: Any, words: Any) -> None:
    """The bars of the look were answered in spite of it, so it is nothing to act on."""

    def start(talk: Any, fields: list[str]) -> None:
        words.start(talk, fields)
        talk.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    def bars(talk: Any, fields: list[str]) -> None:
        talk.raw(words.history(fields[1], words.bar("20260105")))

    checks = series_gaps(timeout_s=1.0, start=start, bars=bars)
    assert not wrongs(checks)
    assert checks[Name.FARMS].verdict is CheckVerdict.NOTE
    assert "historical data euhmds broken" in checks[Name.FARMS].finding


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (10197, "No market data during competing live session"),
        (162, f"{HMDS}Trading TWS session is connected from a different IP address"),
    ],
)
def test_a_competing_session(series_gaps: Any, code: int, text: str) -> None:
    """Another session of the login has the data."""
    checks = series_gaps(bars=lambda talk, fields: talk.error(fields[1], code, text))
    assert wrongs(checks) == [Name.SESSION]
    assert "Log out the other" in checks[Name.SESSION].hint


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (354, "Requested market data is not subscribed."),
        (162, f"{HMDS}No market data permissions for ISLAND STK."),
    ],
)
def test_no_market_data_while_free_data_come(
    series_gaps: Any, words: Any, code: int, text: str
) -> None:
    """A missing subscription is told apart from a data path that is down, in five requests."""

    def stocks_refused(talk: Any, fields: list[str]) -> None:
        if fields[3] == "EUR":
            daily(talk, fields, words)
        else:
            talk.error(fields[1], code, text)

    checks = series_gaps(contract=contracts(words), bars=stocks_refused)
    assert wrongs(checks) == [Name.PERMISSIONS]
    assert "subscription" in checks[Name.PERMISSIONS].hint
    assert checks[Name.BARS].finding.startswith("EURUSD 1d: 1 bars")
    assert sum(fields[0] in {"9", "20", "87"} for fields in series_gaps.gateway.received) == 4


@pytest.mark.parametrize("offset_s", [-605, 185])
def test_a_clock_that_is_off(series_gaps: Any, words: Any, offset_s: int) -> None:
    """Minutes between two clocks are wrong, and told with their sign."""
    checks = series_gaps(
        clock_offset_s=offset_s, bars=lambda talk, fields: daily(talk, fields, words)
    )
    assert wrongs(checks) == [Name.CLOCK]
    assert f"{offset_s:+d}"[:2] in checks[Name.CLOCK].finding
    assert "NTP" in checks[Name.CLOCK].hint


def test_a_gateway_that_is_too_old(series_gaps: Any) -> None:
    """Its version is told."""
    checks = series_gaps(version=150)
    assert wrongs(checks) == [Name.VERSION]
    assert "version 150" in checks[Name.VERSION].finding


def test_something_else_at_the_port(series_gaps: Any) -> None:
    """Another protocol is no gateway."""
    checks = series_gaps(greet=lambda talk: talk.raw(b"SSH-2.0-OpenSSH_9.6\r\n"))
    assert wrongs(checks) == [Name.HANDSHAKE]
    assert "IB_PORT" in checks[Name.HANDSHAKE].hint


def test_bars_that_never_come(series_gaps: Any, words: Any) -> None:
    """Contracts are known and bars are not answered: the data path hangs."""
    assert wrongs(series_gaps(timeout_s=1.0, bars=words.ignore)) == [Name.BARS]


def test_a_pause_after_a_violation_is_told_and_not_waited_for(
    config: GatewayConfig, gateways: Any
) -> None:
    """A person who looks in the minutes after a violation learns why nothing goes."""
    gateway = gateways()
    there = replace(config, port=gateway.port)
    rate_limiter = RateLimiter.of(there)
    rate_limiter.pause_after_violation()
    checks = {check.name: check for check in asyncio.run(diagnose(there))}
    assert "too many requests" in checks[Name.CONTRACTS].finding
    assert wrongs(checks) == [Name.CONTRACTS]
    assert 0 < rate_limiter.vitals().paused_s <= 60
    assert gateway.what(9) == gateway.what(20) == []
    rate_limiter.close()


def test_two_looks_in_a_row_do_not_wait_for_each_other() -> None:
    """IB's rule of identical requests is none of a person's who fixes and looks again."""
    moments = [datetime(2026, 1, 5, tzinfo=UTC) + timedelta(seconds=2 * n) for n in range(20)]
    durations = {duration_at(moment) for moment in moments}
    assert durations == {f"{days} D" for days in range(5, 25)}


def test_looking_closes_the_breaker(config: GatewayConfig, gateways: Any, words: Any) -> None:
    """A person looks at a gateway that is left alone, and everybody may ask it again."""
    gateway = gateways(bars=lambda talk, fields: daily(talk, fields, words))
    there = replace(config, port=gateway.port)
    rate_limiter = RateLimiter.of(there)
    for number in range(MOST_FAILURES):
        rate_limiter.note_trouble(1e9 + number, failure="silence")
    assert rate_limiter.vitals().breaker.state == "open"
    checks = asyncio.run(diagnose(there))
    assert all(check.verdict is not CheckVerdict.WRONG for check in checks)
    assert rate_limiter.vitals().breaker.state == "closed"
    rate_limiter.close()


@pytest.fixture
def command(
    gateways: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: Any
) -> Any:
    """Run the command against a scripted gateway."""

    def doctor(*options: str, **script: Any) -> Any:
        bars = {"bars": lambda talk, fields: daily(talk, fields, words)}
        gateway = gateways(**bars | script)
        monkeypatch.setenv("IB_PORT", str(gateway.port))
        monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
        monkeypatch.setenv("IB_TIMEOUT", "60")
        return run(command_line, ["doctor", *options], LogFile()), capsys.readouterr().out

    return doctor


def test_the_command_prints_a_line_for_each_check(command: Any) -> None:
    """Verdict, name and finding; exit code 0."""
    code, out = command()
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 1 + len(Name)
    assert lines[1].startswith("good      port         something listens at port ")


def test_the_command_says_what_to_do(command: Any) -> None:
    """A wrong check has its hint below; exit code 1."""
    code, out = command(clock_offset_s=400)
    assert code == 1
    assert "WRONG     clock" in out
    assert "-> Set both clocks by NTP" in out


def test_the_command_gives_json(command: Any) -> None:
    """One document with all checks."""
    code, out = command("--json", greet=lambda talk: talk.close())
    told = json.loads(out)
    assert (code, told["good"]) == (1, False)
    assert [check["verdict"] for check in told["checks"]][:3] == ["good", "WRONG", "not seen"]
