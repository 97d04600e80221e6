"""Documents of the universe: fields with their origins, and the results of edits.

Not here: the edits themselves (``app.universe_edits``), what commands print as text (``cli``).
"""

from collections.abc import Mapping
from datetime import date
from typing import Any, Self

from pydantic import AliasChoices, Field

from ktrdr_pipelines.app.views.documents import Document, ResultDocument
from ktrdr_pipelines.domain.instruments import Instrument
from ktrdr_pipelines.domain.universe.universe import Universe


class FieldDocument(Document):
    """One field of an instrument.

    Attributes:
        value: as a JSON type: contract ids are numbers, lists are lists, dates are ISO texts; null
            for none.
        derived: whether its entry does not set it.
        origin: ``set``, ``defaults``, ``derived``, or ``as SYMBOL`` if another entry sets it.
    """

    value: bool | int | str | list[str] | None
    derived: bool
    origin: str

    @classmethod
    def of(cls, value: Any, origin: str) -> Self:
        """Return the document of a value as an instrument holds it."""
        return cls(value=_json_value(value), derived=origin != "set", origin=origin)

    @classmethod
    def all_of(cls, fields: Mapping[str, tuple[object, str]]) -> dict[str, Self]:
        """Return the documents of fields that have their origin beside them."""
        return {name: cls.of(value, origin) for name, (value, origin) in fields.items()}


FieldDocuments = dict[str, FieldDocument]
"""All fields of an instrument, by IB's names."""


def field_documents(universe: Universe, instrument: Instrument) -> FieldDocuments:
    """Return the fields of an instrument with their origins."""
    return FieldDocument.all_of(universe.fields_of(instrument))


def symbol_documents(universe: Universe) -> dict[str, FieldDocuments]:
    """Return the fields of each symbol of a universe."""
    return {
        symbol: field_documents(universe, instrument)
        for symbol, instrument in universe.instruments.items()
    }


class UniverseChangeDocument(Document):
    """What a universe changes of a symbol: ``added``, ``removed``, ``changed`` or ``refused``."""

    kind: str
    symbol: str
    text: str
    hint: str


class PartitionChangeDocument(Document):
    """Symbols whose partitions of a timeframe Dagster adds and removes."""

    added: list[str]
    removed: list[str]


class UniverseCheckDocument(ResultDocument):
    """The result of ``universe check`` for a universe without malformed entries.

    It is complete if every symbol can be loaded. ``well`` is always true.
    """

    universe: str
    is_valid: bool = Field(
        default=True,
        serialization_alias="well",
        validation_alias=AliasChoices("is_valid", "well"),
    )
    symbols: dict[str, FieldDocuments]
    changes: list[UniverseChangeDocument]
    partitions: dict[str, PartitionChangeDocument]


class AddedDocument(ResultDocument):
    """Symbols that were added, as they were given; ``fields`` are those of a single one."""

    added: str
    universe: str
    symbols: dict[str, FieldDocuments]
    fields: FieldDocuments


class ChangedDocument(ResultDocument):
    """Symbols of which fields were set or removed."""

    changed: list[str]
    universe: str
    symbols: dict[str, FieldDocuments]


class RenamedDocument(ResultDocument):
    """A symbol that was renamed; ``contract_id`` is null if its contract is not known."""

    renamed: str
    to: str
    partition_sets: int
    contract_id: int | None
    fields: FieldDocuments


class RetiredDocument(ResultDocument):
    """A symbol that was retired; ``restore`` is the command that restores it."""

    retired: str
    kept_in: str | None
    partition_sets: int
    restore: str


class RestoredDocument(ResultDocument):
    """A symbol that was restored; ``retired_as`` is the name that it had meanwhile."""

    restored: str
    retired_as: str
    partition_sets: int
    fields: FieldDocuments


def _json_value(value: Any) -> bool | int | str | list[str] | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, tuple):
        return [str(one) for one in value]
    return value.isoformat() if isinstance(value, date) else str(value)
