"""The footer of a bar file: what the file states about its bars, and its JSON form.

Identity and coverage travel with the bars, so that one rename commits all three.

Not here: reading and writing files (``store.bars.bar_file``).
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache, reduce
from typing import Any, Final

import numpy as np

from ktrdr_pipelines.domain.bars import UNCONFIRMED, micros, moment
from ktrdr_pipelines.domain.coverage import Coverage, Emptiness, ProofKind
from ktrdr_pipelines.domain.instruments import Identity, Origin, WhatToShow
from ktrdr_pipelines.domain.intervals import Interval, IntervalSet
from ktrdr_pipelines.domain.timeframes import Timeframe
from ktrdr_pipelines.store.bars.digests import Seal

SCHEMA_VERSION = 2
"""Version of columns and footer. 1 is the first; 2 adds the column ``basis`` and the price basis of
the bars in the footer. Files of version 1 are read, and become version 2 when they are written."""

UNKNOWN_DIGEST: Final = "0" * 64
"""Placeholder in a footer for the digest of its file, until the file is complete."""

_MOST_ROWS: Final = 2**40
"""More bars than any file can have."""

_MOST_PARSED: Final = 256
"""JSON texts whose values are kept: the files of a load are read with every save."""

_NO_CRC = 0
"""Marks a session whose bars cannot be checked; no CRC-32 of a ``Seal`` is zero."""


@dataclass(frozen=True, slots=True, order=True)
class Presumed:
    """Bars whose basis was presumed: their response had no held bar to compare with.

    ``interval`` is by bar timestamp; ``fetched_at`` is when the newest of their requests was sent,
    ``fetched_from`` when the oldest was. They are on the basis that their rows state if that held
    until then.
    """

    interval: Interval
    fetched_at: datetime
    fetched_from: datetime


@dataclass(frozen=True, slots=True)
class FileBasis:
    """The price basis of a file's bars.

    ``intervals`` are runs of bars on one basis, by bar timestamp, oldest first; ``presumed`` is
    what a basis found later may concern. ``confirmed_at`` is when the basis of the symbol was last
    confirmed before the file was written; None if it never was.
    """

    intervals: tuple[tuple[Interval, int], ...] = ()
    presumed: tuple[Presumed, ...] = ()
    confirmed_at: datetime | None = None

    @property
    def unconfirmed(self) -> IntervalSet:
        """The intervals of bars on an unconfirmed basis."""
        return IntervalSet(one for one, basis in self.intervals if basis == UNCONFIRMED)


def presuming(
    known: FileBasis, new: Iterable[Presumed], keys: np.ndarray, *, confirmed_at: datetime | None
) -> FileBasis:
    """Return what is presumed of a file's bars once more are saved.

    Neighbours that were requested in the same hour become one interval, if no other bar lies
    between them.

    Args:
        known: what was presumed before.
        new: the presumed bars among those saved.
        keys: the timestamps of all bars of the file, sorted.
        confirmed_at: when the newest request was sent that confirmed the basis of the symbol: what
            was requested before it is no longer presumed. None without any.
    """
    joined: list[Presumed] = []
    for one in sorted([*known.presumed, *new]):
        if confirmed_at is not None and one.fetched_at <= confirmed_at:
            continue
        before = joined[-1] if joined else None
        if (
            before is not None
            and _hour_of(before) == _hour_of(one)
            and not _has_bars(keys, before.interval.end, one.interval.start)
        ):
            whole = Interval(before.interval.start, max(before.interval.end, one.interval.end))
            joined[-1] = Presumed(
                whole,
                max(before.fetched_at, one.fetched_at),
                min(before.fetched_from, one.fetched_from),
            )
        else:
            joined.append(one)
    times = [one for one in (known.confirmed_at, confirmed_at) if one is not None]
    return FileBasis((), tuple(joined), max(times, default=None))


def _hour_of(one: Presumed) -> datetime:
    return one.fetched_at.replace(minute=0, second=0, microsecond=0)


def _has_bars(keys: np.ndarray, start: datetime, end: datetime) -> bool:
    low, high = keys.searchsorted([micros(start), micros(end)])
    return bool(low < high)


@dataclass(frozen=True, slots=True)
class Footer:
    """What one bar file states about its bars; files of earlier versions have no ``seal``."""

    identity: Identity
    coverage: Coverage
    rows: int
    rows_per_session: Mapping[date, int]
    schema_version: int = SCHEMA_VERSION
    seal: Seal | None = None
    basis: FileBasis = FileBasis()


class ChangedFooterError(ValueError):
    """A footer does not match the digest it contains; its reader adds a hint."""


class NewerSchemaError(ValueError):
    """A footer was written by a newer version; its reader adds a hint."""


def footer_to_json(footer: Footer) -> str:
    """Return a footer as JSON.

    With a seal the JSON also contains a digest of everything else in it, and a placeholder for the
    digest of the whole file (``UNKNOWN_DIGEST``).
    """
    fields: dict[str, object] = {
        "schema_version": footer.schema_version,
        "rows": footer.rows,
        "identity": _identity_fields(footer.identity),
        "coverage": _coverage_fields(footer.coverage),
        "sessions": {
            day.isoformat(): rows for day, rows in sorted(footer.rows_per_session.items())
        },
        "basis": _basis_fields(footer.basis),
    }
    if footer.seal is not None:
        digests = seal_to_json(footer.seal, footer.rows_per_session)
        fields["digests"] = json.loads(digests)
        fields["seal"] = {"facts": _digest(fields), "file": UNKNOWN_DIGEST}
    return _dumps(fields)


def footer_from_json(text: str | bytes) -> Footer:
    """Return the footer in a JSON text.

    Raises:
        NewerSchemaError: a newer version wrote it.
        ChangedFooterError: it was changed since it was written.
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is not a ktrdr footer.
    """
    fields = json.loads(text)
    version = int(fields["schema_version"])
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(f"schema version {version}")
    written = fields.pop("seal", None)
    is_whole = written is not None and written.keys() == {"facts", "file"}
    if (is_whole and written["facts"] != _digest(fields)) or is_whole != ("digests" in fields):
        raise ChangedFooterError("its footer was changed since it was written")
    sessions = {date.fromisoformat(day): int(rows) for day, rows in fields["sessions"].items()}
    if not 0 <= int(fields["rows"]) < _MOST_ROWS:
        raise ValueError(f"{fields['rows']} rows")
    return Footer(
        identity=_identity(fields["identity"]),
        coverage=_coverage(fields["coverage"]),
        rows=int(fields["rows"]),
        rows_per_session=sessions,
        schema_version=version,
        seal=_seal(fields["digests"], sessions) if is_whole else None,
        basis=_basis(fields["basis"]) if version > 1 else FileBasis(),
    )


def seal_to_json(seal: Seal, rows_per_session: Mapping[date, int]) -> str:
    """Return a seal as JSON; the digests of sessions are in the order of their dates."""
    crcs = [seal.sessions.get(day, _NO_CRC) for day in sorted(rows_per_session)]
    encoded = base64.b64encode(np.array(crcs, "<u4").tobytes()).decode()
    return _dumps({"bars": seal.bars, "sessions": encoded})


def seal_from_json(text: str, rows_per_session: Mapping[date, int]) -> Seal:
    """Return the seal in a JSON text; the session dates are those of ``rows_per_session``."""
    return _seal(json.loads(text), rows_per_session)


def identity_to_json(identity: Identity) -> str:
    """Return an identity as JSON."""
    return _dumps(_identity_fields(identity))


@lru_cache(maxsize=_MOST_PARSED)
def identity_from_json(text: str) -> Identity:
    """Return the identity in a JSON text."""
    return _identity(json.loads(text))


def coverage_to_json(coverage: Coverage) -> str:
    """Return coverage as JSON; moments are microseconds since 1970 UTC."""
    return _dumps(_coverage_fields(coverage))


@lru_cache(maxsize=_MOST_PARSED)
def coverage_from_json(text: str) -> Coverage:
    """Return the coverage in a JSON text."""
    return _coverage(json.loads(text))


def joined_coverage(texts: Iterable[str]) -> Coverage:
    """Return the coverage in several JSON texts; what a later one says prevails."""
    parts = [json.loads(text) for text in texts]
    if any(fields["empty"] or fields.get("proofs") for fields in parts):
        return reduce(Coverage.merged, map(_coverage, parts), Coverage())
    bounds = [bound for fields in parts for bound in fields["bars"]]
    starts, ends = np.array(bounds, dtype=np.int64).reshape(-1, 2).T
    return Coverage(IntervalSet.from_arrays(starts, ends))


def basis_to_json(basis: FileBasis) -> str:
    """Return the price basis of a file as JSON; moments are microseconds since 1970 UTC."""
    return _dumps(_basis_fields(basis))


def basis_from_json(text: str) -> FileBasis:
    """Return the price basis in a JSON text; an empty text is that of a file of version 1."""
    return _basis(json.loads(text)) if text else FileBasis()


def _identity_fields(identity: Identity) -> dict[str, object]:
    return {
        "symbol": identity.symbol,
        "timeframe": identity.timeframe,
        "what_to_show": identity.what_to_show,
        "use_rth": identity.use_rth,
        "contract_id": identity.contract_id,
        "origin": identity.origin,
    }


def _coverage_fields(coverage: Coverage) -> dict[str, object]:
    """Return plain proofs in the form of earlier versions; others, and notes, in another field.

    An earlier version ignores those and requests their ranges again, which costs requests.
    """
    is_plain = [proof.kind is ProofKind.PLAIN and not proof.note for proof in coverage.empty]
    plain = [proof for proof, known in zip(coverage.empty, is_plain, strict=True) if known]
    others = [proof for proof, known in zip(coverage.empty, is_plain, strict=True) if not known]
    fields: dict[str, object] = {
        "bars": np.column_stack((coverage.bars.starts, coverage.bars.ends)).tolist(),
        "empty": [[*_bounds(p.interval), micros(p.proved_at)] for p in plain],
    }
    if others:
        fields["proofs"] = [
            [*_bounds(p.interval), micros(p.proved_at), p.kind, p.note] for p in others
        ]
    return fields


def _identity(fields: Mapping[str, Any]) -> Identity:
    return Identity(
        symbol=str(fields["symbol"]),
        timeframe=Timeframe(fields["timeframe"]),
        what_to_show=WhatToShow(fields["what_to_show"]),
        use_rth=bool(fields["use_rth"]),
        contract_id=int(fields["contract_id"]),
        origin=Origin(fields["origin"]),
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


def _basis_fields(basis: FileBasis) -> dict[str, object]:
    return {
        "intervals": [[*_bounds(interval), number] for interval, number in basis.intervals],
        "presumed": [
            [*_bounds(one.interval), micros(one.fetched_at), micros(one.fetched_from)]
            for one in basis.presumed
        ],
        "confirmed_at": None if basis.confirmed_at is None else micros(basis.confirmed_at),
    }


def _basis(fields: Mapping[str, Any]) -> FileBasis:
    confirmed = fields["confirmed_at"]
    return FileBasis(
        tuple(
            (Interval(moment(start), moment(end)), int(number))
            for start, end, number in fields["intervals"]
        ),
        tuple(
            Presumed(Interval(moment(start), moment(end)), moment(newest), moment(oldest))
            for start, end, newest, oldest in fields["presumed"]
        ),
        None if confirmed is None else moment(confirmed),
    )


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
