"""The findings about a faulty set-up, and their hints."""

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
from tests.ib.scripted_gateway import HMDS


@pytest.fixture
def diagnosed(config: GatewayConfig, gateways: Any) -> Any:
    """Return a function that diagnoses a scripted gateway, and keeps the gateway."""

    def at(timeout_s: float = 60.0, **script: Any) -> dict[Name, Check]:
        at.gateway = gateways(**script)
        gateway_config = replace(config, port=at.gateway.port, timeout_s=timeout_s)
        checks = asyncio.run(diagnose(gateway_config))
        assert [check.name for check in checks] == list(Name)
        return {check.name: check for check in checks}

    return at


def failed_checks(checks: dict[Name, Check]) -> list[Name]:
    """Return the names of the checks with verdict WRONG."""
    return [name for name, check in checks.items() if check.verdict is CheckVerdict.WRONG]


def send_daily_bar(client: Any, fields: list[str], replies: Any) -> None:
    """Send one daily bar."""
    client.raw(replies.history(fields[1], replies.bar("20260105")))


def respond_with_contract(replies: Any) -> Any:
    """Return a handler that sends the requested contract: the stock or the currency pair."""

    def respond(client: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in replies.details]
        if fields[4] == "EUR":
            texts[2], texts[3], texts[7], texts[12], texts[20] = "EUR", "CASH", "IDEALPRO", "1", ""
        client.send(*texts)
        client.send(52, 1, fields[2])

    return respond


def test_a_working_gateway_has_no_failed_check(diagnosed: Any, replies: Any) -> None:
    """Every check but read-only is good, after three requests."""
    checks = diagnosed(bars=lambda client, fields: send_daily_bar(client, fields, replies))
    assert failed_checks(checks) == []
    assert {check.verdict for name, check in checks.items() if name is not Name.READ_ONLY} == {
        CheckVerdict.GOOD
    }
    assert checks[Name.BARS].finding == "AAPL 1d: 1 bars, the last of 2026-01-05"
    assert checks[Name.READ_ONLY].finding.startswith("not checked: ")
    kinds = [fields[0] for fields in diagnosed.gateway.received]
    assert sorted(kinds) == ["20", "49", "49", "71", "9"]


def test_another_language_and_an_unknown_zone_are_notes(diagnosed: Any, replies: Any) -> None:
    """Both are notes with hints, not failures."""

    def start(client: Any, fields: list[str]) -> None:
        client.send(15, 1, client.script.account)
        client.send(9, 1, 1)
        client.error(-1, 2104, "Verbindung zum Marktdatenserver OK:usfarm")

    def respond(client: Any, fields: list[str]) -> None:
        reach = ("20260104 16:00:00 CST", "20260105 16:00:00 CST")
        client.raw(replies.history(fields[1], replies.bar("20260105"), reach=reach))

    checks = diagnosed(bars=respond, start=start)
    assert failed_checks(checks) == []
    language, zone = checks[Name.LANGUAGE], checks[Name.ZONE]
    assert language.verdict is zone.verdict is CheckVerdict.NOTE
    assert "2104 Verbindung zum Marktdatenserver OK:usfarm" in language.finding
    assert "English" in language.hint
    assert "CST" in zone.finding
    assert "America/New_York" in zone.hint


def test_checks_behind_a_closed_port_are_not_reached(
    config: GatewayConfig, closed_port: int
) -> None:
    """The checks behind a closed port are not reached."""
    checks = asyncio.run(diagnose(replace(config, port=closed_port)))
    assert checks[0].verdict is CheckVerdict.WRONG
    assert "nothing listens there" in checks[0].finding
    assert {check.verdict for check in checks[1:]} == {CheckVerdict.UNKNOWN}


def last_check_for(disconnect_reason: DisconnectReason, port: int, others: dict[str, int]) -> Check:
    """Return the check for a connection that ended for a reason."""
    error = GatewayUnreachableError(
        "connect", reason=str(TransportError(disconnect_reason)), hint="Start it"
    )
    error.__cause__ = TransportError(disconnect_reason)
    return no_connection(error, port, others)[-1]


def test_other_open_ports_are_offered() -> None:
    """The hint names another known port that is open."""
    check = last_check_for(
        DisconnectReason.REFUSED, 4002, {"gateway live": 4001, "TWS paper": 7497}
    )
    assert "4001 (gateway live), 7497 (TWS paper)" in check.finding
    assert "IB_PORT=4001" in check.hint


@pytest.mark.parametrize(("port", "part"), [(4002, "enable socket clients"), (4004, "container")])
def test_the_hint_for_a_closed_connection_depends_on_the_port(port: int, part: str) -> None:
    """At a container's port only the forwarder listens; elsewhere the API is off."""
    assert part in last_check_for(DisconnectReason.CLOSED, port, {}).hint


def test_a_gateway_that_closes_at_once_points_to_the_api_settings(diagnosed: Any) -> None:
    """A gateway that accepts and closes: the hint names the API settings."""
    checks = diagnosed(greet=lambda client: client.close())
    assert failed_checks(checks) == [Name.HANDSHAKE]
    assert "trusted" in checks[Name.HANDSHAKE].hint


def test_client_ids_that_are_all_in_use(config: GatewayConfig, gateways: Any) -> None:
    """326 for every id names the setting, and no other check fails."""

    def taken(client: Any, fields: list[str]) -> None:
        client.error(-1, 326, "Unable to connect as the client id is already in use.")
        client.close()

    one_id = {**config.client_id_ranges, "cli": (201, 201)}  # a range of one needs no pause
    port = gateways(start=taken).port
    found = asyncio.run(diagnose(replace(config, port=port, client_id_ranges=one_id)))
    checks = {check.name: check for check in found}
    assert failed_checks(checks) == [Name.CLIENT_ID]
    assert "IB_CLIENT_ID" in checks[Name.CLIENT_ID].hint


def test_client_ids_that_were_refused_recently(config: GatewayConfig, gateways: Any) -> None:
    """Without an id to try, no connection is made and no other check is claimed."""
    gateway = gateways()
    ids = {**config.client_id_ranges, "cli": (201, 202)}
    gateway_config = replace(config, port=gateway.port, client_id_ranges=ids)
    gateway_config.folder.mkdir(parents=True)
    for client_id in (201, 202):
        ClientIdLeases(gateway_config.folder).quarantine(client_id)
    checks = {check.name: check for check in asyncio.run(diagnose(gateway_config))}
    assert failed_checks(checks) == [Name.CLIENT_ID]
    assert checks[Name.PORT].verdict is CheckVerdict.UNKNOWN
    assert gateway.connects == 0


def test_an_unknown_host(config: GatewayConfig) -> None:
    """An unknown host points to IB_HOST."""
    checks = asyncio.run(diagnose(replace(config, host="gate..home")))
    assert checks[0].verdict is CheckVerdict.WRONG
    assert "no such host" in checks[0].finding
    assert "IB_HOST" in checks[0].hint


def test_a_gateway_without_bars_of_a_well_known_stock(diagnosed: Any) -> None:
    """An empty response for a stock that trades every day is a failure."""
    checks = diagnosed(
        bars=lambda client, fields: client.error(
            fields[1], 162, f"{HMDS}HMDS query returned no data"
        )
    )
    assert failed_checks(checks) == [Name.BARS]
    assert "well-known stock" in checks[Name.BARS].finding


def test_a_gateway_that_hangs(diagnosed: Any, replies: Any) -> None:
    """A gateway completes the handshake and does not send the time."""
    checks = diagnosed(timeout_s=1.0, time=replies.ignore)
    assert failed_checks(checks) == [Name.CLOCK]
    assert "nightly reset" in checks[Name.CLOCK].hint


def test_a_gateway_that_is_logged_out(diagnosed: Any, replies: Any) -> None:
    """It sends the time, its farms are broken, and it knows no contract."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2105, "HMDS data farm connection is broken:ushmds")

    checks = diagnosed(timeout_s=1.0, start=start, contract=replies.ignore)
    assert failed_checks(checks) == [Name.FARMS, Name.CONTRACTS]
    assert checks[Name.CLOCK].verdict is CheckVerdict.GOOD
    assert checks[Name.BARS].verdict is CheckVerdict.UNKNOWN
    assert "log in" in checks[Name.CONTRACTS].hint


def test_a_broken_farm_that_bars_do_not_need_is_a_note(diagnosed: Any, replies: Any) -> None:
    """Bars arrived in spite of it, so it is a note."""

    def start(client: Any, fields: list[str]) -> None:
        replies.start(client, fields)
        client.error(-1, 2105, "HMDS data farm connection is broken:euhmds")

    def bars(client: Any, fields: list[str]) -> None:
        client.raw(replies.history(fields[1], replies.bar("20260105")))

    checks = diagnosed(timeout_s=1.0, start=start, bars=bars)
    assert not failed_checks(checks)
    assert checks[Name.FARMS].verdict is CheckVerdict.NOTE
    assert "historical data euhmds broken" in checks[Name.FARMS].finding


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (10197, "No market data during competing live session"),
        (162, f"{HMDS}Trading TWS session is connected from a different IP address"),
    ],
)
def test_a_competing_session(diagnosed: Any, code: int, text: str) -> None:
    """Another session of the login receives the data."""
    checks = diagnosed(bars=lambda client, fields: client.error(fields[1], code, text))
    assert failed_checks(checks) == [Name.SESSION]
    assert "Log out the other" in checks[Name.SESSION].hint


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (354, "Requested market data is not subscribed."),
        (162, f"{HMDS}No market data permissions for ISLAND STK."),
    ],
)
def test_no_market_data_while_free_data_arrive(
    diagnosed: Any, replies: Any, code: int, text: str
) -> None:
    """A missing subscription differs from a failed data path, in four requests."""

    def stocks_refused(client: Any, fields: list[str]) -> None:
        if fields[3] == "EUR":
            send_daily_bar(client, fields, replies)
        else:
            client.error(fields[1], code, text)

    checks = diagnosed(contract=respond_with_contract(replies), bars=stocks_refused)
    assert failed_checks(checks) == [Name.PERMISSIONS]
    assert "subscription" in checks[Name.PERMISSIONS].hint
    assert checks[Name.BARS].finding.startswith("EURUSD 1d: 1 bars")
    assert sum(fields[0] in {"9", "20", "87"} for fields in diagnosed.gateway.received) == 4


@pytest.mark.parametrize("offset_s", [-605, 185])
def test_a_clock_that_is_off(diagnosed: Any, replies: Any, offset_s: int) -> None:
    """Minutes between the clocks are a failure, stated with their sign."""
    checks = diagnosed(
        clock_offset_s=offset_s, bars=lambda client, fields: send_daily_bar(client, fields, replies)
    )
    assert failed_checks(checks) == [Name.CLOCK]
    assert f"{offset_s:+d}"[:2] in checks[Name.CLOCK].finding
    assert "NTP" in checks[Name.CLOCK].hint


def test_a_gateway_that_is_too_old(diagnosed: Any) -> None:
    """The finding names its version."""
    checks = diagnosed(version=150)
    assert failed_checks(checks) == [Name.VERSION]
    assert "version 150" in checks[Name.VERSION].finding


def test_another_protocol_at_the_port(diagnosed: Any) -> None:
    """Another protocol is not a gateway."""
    checks = diagnosed(greet=lambda client: client.raw(b"SSH-2.0-OpenSSH_9.6\r\n"))
    assert failed_checks(checks) == [Name.HANDSHAKE]
    assert "IB_PORT" in checks[Name.HANDSHAKE].hint


def test_bars_without_a_response(diagnosed: Any, replies: Any) -> None:
    """Contracts are known and bars get no response: the data path hangs."""
    assert failed_checks(diagnosed(timeout_s=1.0, bars=replies.ignore)) == [Name.BARS]


def test_a_pause_after_a_violation_is_reported_and_not_waited_for(
    config: GatewayConfig, gateways: Any
) -> None:
    """The finding names the pause, and nothing is requested during it."""
    gateway = gateways()
    gateway_config = replace(config, port=gateway.port)
    rate_limiter = RateLimiter.of(gateway_config)
    rate_limiter.pause_after_violation()
    checks = {check.name: check for check in asyncio.run(diagnose(gateway_config))}
    assert "too many requests" in checks[Name.CONTRACTS].finding
    assert failed_checks(checks) == [Name.CONTRACTS]
    assert 0 < rate_limiter.vitals().paused_s <= 60
    assert gateway.frames(9) == gateway.frames(20) == []
    rate_limiter.close()


def test_two_diagnoses_in_a_row_do_not_wait() -> None:
    """Durations differ, so IB's rule of identical requests does not delay a second diagnosis."""
    moments = [datetime(2026, 1, 5, tzinfo=UTC) + timedelta(seconds=2 * n) for n in range(20)]
    durations = {duration_at(moment) for moment in moments}
    assert durations == {f"{days} D" for days in range(5, 25)}


def test_a_diagnosis_closes_the_breaker(config: GatewayConfig, gateways: Any, replies: Any) -> None:
    """A diagnosis resets the circuit breaker for all processes."""
    gateway = gateways(bars=lambda client, fields: send_daily_bar(client, fields, replies))
    gateway_config = replace(config, port=gateway.port)
    rate_limiter = RateLimiter.of(gateway_config)
    for number in range(MOST_FAILURES):
        rate_limiter.note_trouble(1e9 + number, failure="silence")
    assert rate_limiter.vitals().breaker.state == "open"
    checks = asyncio.run(diagnose(gateway_config))
    assert all(check.verdict is not CheckVerdict.WRONG for check in checks)
    assert rate_limiter.vitals().breaker.state == "closed"
    rate_limiter.close()


@pytest.fixture
def command(
    gateways: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, replies: Any
) -> Any:
    """Return a function that runs the command against a scripted gateway."""

    def doctor(*options: str, **script: Any) -> Any:
        bars = {"bars": lambda client, fields: send_daily_bar(client, fields, replies)}
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


def test_the_command_prints_the_hint_of_a_failed_check(command: Any) -> None:
    """A failed check has its hint below it; exit code 1."""
    code, out = command(clock_offset_s=400)
    assert code == 1
    assert "WRONG     clock" in out
    assert "-> Set both clocks by NTP" in out


def test_the_command_prints_json(command: Any) -> None:
    """--json prints one document with all checks."""
    code, out = command("--json", greet=lambda client: client.close())
    document = json.loads(out)
    assert (code, document["good"]) == (1, False)
    assert [check["verdict"] for check in document["checks"]][:3] == ["good", "WRONG", "not seen"]
