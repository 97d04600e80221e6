"""What a bar file says of itself in its footer, and how that is written down.

Identity and coverage travel with the bars, so that one rename commits all three. Not here: the
reading and writing of files (``store.parquet``).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from ktrdr_pipelines.core.bars import micros, moment
from ktrdr_pipelines.core.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.core.instruments import Identity, Origin, WhatToShow
from ktrdr_pipelines.core.intervals import Interval, IntervalSet
from ktrdr_pipelines.core.timeframes import Timeframe

SCHEMA_VERSION = 1
"""Version of columns and footer; 1 is the first."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one bar file holds, without its bars."""

    identity: Identity
    coverage: Coverage
    rows: int
    rows_per_session: Mapping[date, int]
    schema_version: int = SCHEMA_VERSION


class NewerSchemaError(ValueError):
    """A footer was written by a newer version; its reader turns this into advice."""


def facts_to_json(facts: FileFacts) -> str:
    """Write down what a footer says."""
    return _dumps(
        {
            "schema_version": facts.schema_version,
            "rows": facts.rows,
            "identity": _identity_fields(facts.identity),
            "coverage": _coverage_fields(facts.coverage),
            "sessions": _session_fields(facts.rows_per_session),
        }
    )


def facts_from_json(text: str | bytes) -> FileFacts:
    """Read what a footer says.

    Raises:
        NewerSchemaError: it is of a newer version.
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is no footer of ours.
    """
    fields = json.loads(text)
    version = int(fields["schema_version"])
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(f"schema version {version}")
    return FileFacts(
        identity=_identity(fields["identity"]),
        coverage=_coverage(fields["coverage"]),
        rows=int(fields["rows"]),
        rows_per_session=_sessions(fields["sessions"]),
        schema_version=version,
    )


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


def _bounds(interval: Interval) -> list[int]:
    return [micros(interval.start), micros(interval.end)]


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
