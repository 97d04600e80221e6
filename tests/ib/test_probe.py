"""Asking about uncertain facts: what a gateway is asked, how it is judged, what is recorded."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ktrdr_pipelines.cli.edge import run
from ktrdr_pipelines.cli.logfile import LogFile
from ktrdr_pipelines.cli.main import command_line
from ktrdr_pipelines.cli.probe import tell
from ktrdr_pipelines.core.breaker import MOST_FAILURES
from ktrdr_pipelines.core.pacing import pacing_of
from ktrdr_pipelines.errors import CorruptFileError, DiskError
from ktrdr_pipelines.ib.capture import Capture, Frame, Scrubber, Way, read_capture, write_capture
from ktrdr_pipelines.ib.config import GatewayConfig
from ktrdr_pipelines.ib.pacer import Pacer
from ktrdr_pipelines.ib.probe import Finding, Probe, probe
from ktrdr_pipelines.ib.probe_facts import Seen
from ktrdr_pipelines.ib.probe_table import FACTS
from ktrdr_pipelines.limits import IbLimitsRegistry
from ktrdr_pipelines.simulator.server import running_simulator

HMDS = "Historical Market Data Service error message:"
BEGAN = datetime(2026, 1, 5, 14, 30, tzinfo=UTC)
HEADER = """\
{"format": "ktrdr-capture", "version": 1, "server_version": 178, "began": "2026-01-05T14:30:00Z"}"""
PAPER, LIVE = "DU" + "7654321", "U" + "1122334"
"""Made up; put together, so that no file of the project holds what looks like an account."""

PERSONAL = (PAPER, LIVE, "jdoe42", "jane@example.org", "192.0.2.17", "jane_doe")


async def asked(config: GatewayConfig, **other: Any) -> Probe:
    """Probe with a budget whose windows pass at once."""
    return await probe(config, pacer=Pacer(config.folder, pacing=pacing_of().scaled(0)), **other)


def test_some_twenty_polite_requests() -> None:
    """Fewer than half of what IB allows in ten minutes, each fact by one request."""
    assert 20 <= len(FACTS) <= IbLimitsRegistry.WINDOW_MOST.value // 2
    assert len({fact.name for fact in FACTS}) == len(FACTS)


def test_every_fact_gets_an_answer_of_a_simulated_gateway(config: GatewayConfig) -> None:
    """All are asked, over one connection, and most beliefs hold there."""
    now = datetime(2024, 1, 10, 20, 0, 30, tzinfo=UTC)
    with running_simulator(now=now) as simulator:
        there = replace(config, port=simulator.port)
        came = asyncio.run(asked(there))
    assert came.is_whole
    assert [finding.fact for finding in came.findings] == list(FACTS)
    disagreeing = {
        finding.fact.name: finding.seen for finding in came.findings if finding.agrees is False
    }
    assert len(disagreeing) <= 6, disagreeing


def test_a_gateway_that_goes_away_leaves_the_rest_unasked(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """What was found stays, and the rest is told as not asked."""

    def twice(talk: Any, fields: list[str]) -> None:
        if len(gateway.asked(20)) < 3:
            words.tell_bars(talk, fields)
        else:
            talk.close()

    gateway = gateways(bars=twice)
    gateway.script.contract = pair_and_stock(words)
    came = asyncio.run(asked(replace(config, port=gateway.port), facts=FACTS[:6]))
    assert [finding.was_asked for finding in came.findings] == [True] * 3 + [False] * 3
    assert [finding.known for finding in came.findings] == [True] * 2 + [False] * 4
    assert {finding.agrees for finding in came.findings[2:]} == {None}
    assert len(gateway.asked(20)) == 3
    assert not came.is_whole


def test_an_outage_is_no_finding(config: GatewayConfig, gateways: Any, words: Any) -> None:
    """What an outage swallows disagrees with nothing, and nothing more is asked in it."""

    def lose(talk: Any, fields: list[str]) -> None:
        talk.error(-1, 1100, "Connectivity between IBKR and Trader Workstation has been lost.")

    gateway = gateways(bars=lose, contract=pair_and_stock(words))
    came = asyncio.run(
        asked(replace(config, port=gateway.port, timeout_s=1.0, outage_s=0.2), facts=FACTS[:4])
    )
    assert [(finding.known, finding.agrees) for finding in came.findings] == [(False, None)] * 4
    assert len(gateway.asked(20)) == 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (354, "Requested market data is not subscribed."),
        (162, f"{HMDS}Historical data request pacing violation"),
    ],
)
def test_a_refusal_that_is_not_about_the_fact_is_no_finding(
    config: GatewayConfig, gateways: Any, words: Any, code: int, text: str
) -> None:
    """A missing subscription, or too much asked, says nothing of what is believed."""
    gateway = gateways(
        bars=lambda talk, fields: talk.error(fields[1], code, text), contract=pair_and_stock(words)
    )
    came = asyncio.run(asked(replace(config, port=gateway.port), facts=FACTS[2:3]))
    assert [(one.known, one.agrees, one.seen) for one in came.findings] == [
        (False, None, f"{code} {text}")
    ]


def test_a_contract_that_is_missing_costs_its_own_facts_only(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """An account without currencies can still be asked about stocks."""

    def stock_only(talk: Any, fields: list[str]) -> None:
        if fields[4] == "EUR":
            talk.error(fields[2], 200, "No security definition has been found for the request")
        else:
            pair_and_stock(words)(talk, fields)

    gateway = gateways(contract=stock_only, bars=words.tell_bars)
    facts = [fact for fact in FACTS if fact.trial.kind == "bars"]
    came = asyncio.run(asked(replace(config, port=gateway.port), facts=facts))
    unknown = {finding.fact.trial.symbol for finding in came.findings if not finding.known}
    assert unknown == {"EURUSD"}


def test_silence_is_a_finding_and_no_sign_of_life(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """A gateway that answers no bars is left alone after some, as any other work would leave it."""
    gateway = gateways(bars=words.ignore, contract=pair_and_stock(words))
    there = replace(config, port=gateway.port, timeout_s=1.0)
    came = asyncio.run(asked(there, facts=FACTS[:7]))
    assert [finding.seen for finding in came.findings[:MOST_FAILURES]] == ["silence"] * 5
    assert [finding.known for finding in came.findings] == [True] * 5 + [False] * 2
    assert len(gateway.asked(20)) == MOST_FAILURES


def pair_and_stock(words: Any) -> Any:
    """Tell the contract that is asked for."""

    def tell(talk: Any, fields: list[str]) -> None:
        texts = [text.format(id=fields[2]) for text in words.details]
        if fields[4] == "EUR":
            texts[2], texts[3], texts[7], texts[12], texts[20] = "EUR", "CASH", "IDEALPRO", "1", ""
        talk.send(*texts)
        talk.send(52, 1, fields[2])

    return tell


def test_an_answer_that_cannot_be_judged_disagrees(
    config: GatewayConfig, gateways: Any, words: Any
) -> None:
    """Stamps of another form are told, and end nothing."""

    def odd(talk: Any, fields: list[str]) -> None:
        talk.raw(words.history(fields[1], words.bar("20230705 09:30:00")))

    gateway = gateways(bars=odd, contract=pair_and_stock(words))
    came = asyncio.run(asked(replace(config, port=gateway.port), facts=FACTS[:2]))
    assert [finding.agrees for finding in came.findings] == [False, False]
    assert "cannot be read" in came.findings[1].seen


@pytest.mark.parametrize(
    ("name", "seen", "agrees"),
    [
        ("bar size '1 mins'", Seen(codes=((321, "cause - bar size"),)), True),
        ("bar size '1 mins'", Seen(), False),
        ("head in epoch form", Seen(("88", "1", "345479400")), True),
        ("head in epoch form", Seen(("88", "1", "19801212-14:30:00")), False),
        ("head in text form", Seen(("88", "1", "19801212-14:30:00")), True),
        ("zone of a SCHEDULE", Seen(("106", "1", "a", "b", "US/Eastern", "0")), True),
        ("1 D before the open", Seen(codes=((162, "no data"),)), None),
    ],
)
def test_judging_is_a_matter_of_what_came(name: str, seen: Seen, *, agrees: bool | None) -> None:
    """Each fact has its own measure; what nobody believed is learned."""
    fact = next(fact for fact in FACTS if fact.name == name)
    assert fact.judge(seen)[1] is agrees


def test_a_record_of_a_talkative_gateway_names_nobody(
    config: GatewayConfig, gateways: Any, words: Any, tmp_path: Path
) -> None:
    """Accounts, users, mail and network addresses are nowhere in the file."""

    def chatty(talk: Any, fields: list[str]) -> None:
        talk.send(15, 1, f"{PAPER},{LIVE}")
        talk.send(6, 2, "NetLiquidation", "123456.78", "USD", PAPER)
        talk.send(54, 1, "AccountName", "jane_doe", "", LIVE)
        talk.error(-1, 2104, "Market data farm connection is OK:usfarm for user jdoe42")
        talk.error(-1, 2106, f"OK:ushmds, account {LIVE} at 192.0.2.17 /home/jane_doe/Jts")
        talk.error(-1, 4711, "a text of jane@example.org that nobody knows")
        talk.error(fields[1], 354, f"{PAPER} is not subscribed; write to jane@example.org")

    gateway = gateways(account=f"{PAPER},{LIVE}", bars=chatty, contract=pair_and_stock(words))
    came = asyncio.run(asked(replace(config, port=gateway.port), facts=FACTS[:4]))
    write_capture(tmp_path / "record.jsonl", came.capture)
    text = (tmp_path / "record.jsonl").read_text()
    assert [name for name in PERSONAL if name in text] == []
    assert "(withheld)" in text
    assert "123456.78" not in text
    assert "usfarm" not in text
    assert '"354", "(withheld)", ""' in text
    assert '"way": "out"' in text
    assert read_capture(tmp_path / "record.jsonl").frames == tuple(
        replace(frame, at_s=round(frame.at_s, 3)) for frame in came.capture.frames
    )


def test_a_record_keeps_what_bars_are_made_of() -> None:
    """Requests and answers about bars are whole; numbers in them are no accounts."""
    scrubber = Scrubber([PAPER])
    fields = ["17", "3", "", "", "1", "1767623400", "10.0", "11.0", "9.0", "10.5", "100000"]
    assert scrubber.frame(0.5, Way.IN, fields) == Frame(0.5, Way.IN, tuple(fields))
    assert scrubber.frame(0.5, Way.IN, ["62", "1"]) == Frame(0.5, Way.IN, ("62",), cut=True)
    assert scrubber.frame(0.5, Way.OUT, ["71", "2", "201"]).cut


def test_a_record_survives_writing_and_reading(tmp_path: Path) -> None:
    """Every field comes back."""
    frames = (
        Frame(0.125, Way.OUT, ("20", "7", "AAPL", "")),
        Frame(0.25, Way.IN, ("17", "7", "é")),
        Frame(0.5, Way.IN, ("62",), cut=True),
    )
    capture = Capture(178, BEGAN, frames)
    write_capture(tmp_path / "a.jsonl", capture)
    assert read_capture(tmp_path / "a.jsonl") == capture


@pytest.mark.parametrize(
    ("text", "came"),
    [
        ("", "line 1"),
        ("nonsense\n", "line 1"),
        ('{"format": "other"}\n', "no header"),
        ('{"format": "ktrdr-capture", "version": 9}\n', "version 9"),
        (f"{HEADER}\n{{}}\n", "line 2"),
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, text: str, came: str) -> None:
    """The error names what is wrong and where."""
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(CorruptFileError, match=came):
        read_capture(tmp_path / "a.jsonl")


def test_a_record_that_cannot_be_written_or_read_is_told(tmp_path: Path) -> None:
    """Folders that are not there are an error of the disk."""
    with pytest.raises(DiskError):
        write_capture(tmp_path / "no" / "a.jsonl", Capture(178, BEGAN, ()))
    with pytest.raises(DiskError):
        read_capture(tmp_path / "a.jsonl")


def test_a_place_for_the_record_is_tried_before_anybody_is_asked(
    gateways: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Minutes of asking are not lost for want of a folder, and a try leaves no file behind."""
    gateway = gateways()
    monkeypatch.setenv("IB_PORT", str(gateway.port))
    monkeypatch.setenv("KTRDR_STATE", str(tmp_path / "state"))
    for out in (tmp_path / "no" / "a.jsonl", tmp_path):
        assert run(command_line, ["probe", "--out", str(out)], LogFile()) == 1
        assert f"capture {out}" in capsys.readouterr().err
    assert gateway.connects == 0
    gateway.script.greet = lambda talk: talk.close()
    assert run(command_line, ["probe", "--out", str(tmp_path / "a.jsonl")], LogFile()) == 1
    assert not (tmp_path / "a.jsonl").exists()


def test_the_command_shows_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Fact, grade, expected, seen and whether they agree."""
    outcomes = (
        (True, True, True),
        (False, True, True),
        (None, True, True),
        (None, False, True),
        (None, False, False),
    )
    findings = tuple(
        Finding(fact, "what came", agrees, known=known, was_asked=was_asked)
        for fact, (agrees, known, was_asked) in zip(FACTS, outcomes, strict=False)
    )
    came = Probe(findings, Capture(178, BEGAN, ()))
    tell(came, "127.0.0.1:4002", Path("a.jsonl"), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [one["agrees"] for one in told["facts"]] == [
        "yes",
        "NO",
        "learned",
        "not known",
        "not asked",
    ]
    tell(came, "127.0.0.1:4002", Path("a.jsonl"), as_json=False)
    out = capsys.readouterr().out
    assert FACTS[0].name in out
    assert "record of 0 frames: a.jsonl" in out
