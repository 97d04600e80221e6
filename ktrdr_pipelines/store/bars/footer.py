"""What a bar file says of itself in its footer, and how that is written down.

Identity and coverage travel with the bars, so that one rename commits all three. Not here: the
reading and writing of files (``store.bars.bar_store``).
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

import numpy as np

from ktrdr_pipelines.domain.bars import micros, moment
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Identity, Origin, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.digests import Seal

SCHEMA_VERSION = 1
"""Version of columns and footer; 1 is the first."""


UNKNOWN_DIGEST: Final = "0" * 64
"""Stands in a footer for the digest of its file until the file is complete."""

_MOST_ROWS: Final = 2**40
"""More bars than any file can have."""

_NO_CRC = 0
"""Stands for a session whose bars cannot be judged; no CRC-32 of a ``Seal`` is zero."""


@dataclass(frozen=True, slots=True)
class Footer:
    """What one bar file holds, without its bars; files of earlier versions have no ``seal``."""

    identity: Identity
    coverage: Coverage
    rows: int
    rows_per_session: Mapping[date, int]
    schema_version: int = SCHEMA_VERSION
    seal: Seal | None = None


class ChangedFooterError(ValueError):
    """A footer does not have the digest that it names; its reader turns this into advice."""


class NewerSchemaError(ValueError):
    """A footer was written by a newer version; its reader turns this into advice."""


def footer_to_json(footer: Footer) -> str:
    """Write down what a footer says.

    With a seal the footer also holds a digest of everything else that it says, and the place for
    the digest of the whole file (``UNKNOWN_DIGEST``).
    """
    fields: dict[str, object] = {
        "schema_version": footer.schema_version,
        "rows": footer.rows,
        "identity": _identity_fields(footer.identity),
        "coverage": _coverage_fields(footer.coverage),
        "sessions": _session_fields(footer.rows_per_session),
    }
    if footer.seal is not None:
        digests = seal_to_json(footer.seal, footer.rows_per_session)
        fields["digests"] = json.loads(digests)
        fields["seal"] = {"facts": _digest(fields), "file": UNKNOWN_DIGEST}
    return _dumps(fields)


def footer_from_json(text: str | bytes) -> Footer:
    """Read what a footer says.

    Raises:
        NewerSchemaError: it is of a newer version.
        ChangedFooterError: it is not what was written.
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is no footer of ours.
    """
    fields = json.loads(text)
    version = int(fields["schema_version"])
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(f"schema version {version}")
    written = fields.pop("seal", None)
    is_whole = written is not None and written.keys() == {"facts", "file"}
    if (is_whole and written["facts"] != _digest(fields)) or is_whole != ("digests" in fields):
        raise ChangedFooterError("its footer was changed since it was written")
    sessions = _sessions(fields["sessions"])
    if not 0 <= int(fields["rows"]) < _MOST_ROWS:
        raise ValueError(f"{fields['rows']} rows")
    return Footer(
        identity=_identity(fields["identity"]),
        coverage=_coverage(fields["coverage"]),
        rows=int(fields["rows"]),
        rows_per_session=sessions,
        schema_version=version,
        seal=_seal(fields["digests"], sessions) if is_whole else None,
    )


def seal_to_json(seal: Seal, rows_per_session: Mapping[date, int]) -> str:
    """Write down the digests of bars; those of sessions in the order of their dates."""
    crcs = [seal.sessions.get(day, _NO_CRC) for day in sorted(rows_per_session)]
    encoded = base64.b64encode(np.array(crcs, "<u4").tobytes()).decode()
    return _dumps({"bars": seal.bars, "sessions": encoded})


def seal_from_json(text: str, rows_per_session: Mapping[date, int]) -> Seal:
    """Read the digests of bars."""
    return _seal(json.loads(text), rows_per_session)


def identity_to_json(identity: Identity) -> str:
    """Write down an identity."""
    return _dumps(_identity_fields(identity))


def identity_from_json(text: str) -> Identity:
    """Read an identity."""
    return _identity(json.loads(text))


def coverage_to_json(coverage: Coverage) -> str:
    """Write down coverage: bounds, and moments of proof, as microseconds since 1970 UTC."""
    return _dumps(_coverage_fields(coverage))


def coverage_from_json(text: str) -> Coverage:
    """Read coverage."""
    return _coverage(json.loads(text))


def _identity_fields(identity: Identity) -> dict[str, object]:
    return {
        "symbol": identity.symbol,
        "timeframe": identity.timeframe,
        "what_to_show": identity.what_to_show,
        "use_rth": identity.use_rth,
        "contract_id": identity.contract_id,
        "origin": identity.origin,
        "epoch": identity.epoch,
    }


def _coverage_fields(coverage: Coverage) -> dict[str, object]:
    """Write plain proofs as earlier versions do; the others, and notes, stand in another field.

    An earlier version does not see those and asks for their ranges again, which costs requests.
    """
    is_plain = [proof.kind is ProofKind.PLAIN and not proof.note for proof in coverage.empty]
    plain = [proof for proof, known in zip(coverage.empty, is_plain, strict=True) if known]
    others = [proof for proof, known in zip(coverage.empty, is_plain, strict=True) if not known]
    fields: dict[str, object] = {
        "bars": [_bounds(part) for part in coverage.bars],
        "empty": [[*_bounds(p.interval), micros(p.proved_at)] for p in plain],
    }
    if others:
        fields["proofs"] = [
            [*_bounds(p.interval), micros(p.proved_at), p.kind, p.note] for p in others
        ]
    return fields


def _session_fields(rows_per_session: Mapping[date, int]) -> dict[str, int]:
    return {day.isoformat(): rows for day, rows in sorted(rows_per_session.items())}


def _identity(fields: Mapping[str, Any]) -> Identity:
    return Identity(
        symbol=str(fields["symbol"]),
        timeframe=Timeframe(fields["timeframe"]),
        what_to_show=WhatToShow(fields["what_to_show"]),
        use_rth=bool(fields["use_rth"]),
        contract_id=int(fields["contract_id"]),
        origin=Origin(fields["origin"]),
        epoch=int(fields["epoch"]),
    )


def _coverage(fields: Mapping[str, Any]) -> Coverage:
    bars = IntervalSet(Interval(moment(start), moment(end)) for start, end in fields["bars"])
    plain = [
        Emptiness(Interval(moment(start), moment(end)), moment(proved))
        for start, end, proved in fields["empty"]
    ]
    others = [
        Emptiness(Interval(moment(start), moment(end)), moment(proved), ProofKind(kind), str(note))
        for start, end, proved, kind, note in fields.get("proofs", ())
    ]
    return Coverage(bars, tuple(sorted([*plain, *others])))


def _sessions(fields: Mapping[str, int]) -> dict[date, int]:
    return {date.fromisoformat(day): int(rows) for day, rows in fields.items()}


def _seal(fields: Mapping[str, Any], rows_per_session: Mapping[date, int]) -> Seal:
    crcs = np.frombuffer(base64.b64decode(fields["sessions"], validate=True), "<u4").tolist()
    days = sorted(rows_per_session)
    known = {day: crc for day, crc in zip(days, crcs, strict=True) if crc != _NO_CRC}
    return Seal(str(fields["bars"]), known)


def _digest(fields: Mapping[str, object]) -> str:
    return hashlib.sha256(_dumps(fields).encode()).hexdigest()


def _bounds(interval: Interval) -> list[int]:
    return [micros(interval.start), micros(interval.end)]


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
