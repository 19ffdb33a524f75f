"""The collections of a gallery in Qdrant, its points, and filters as its conditions.

NAME has one point for each image; images with the same bytes repeat their features. NAME_values says what the terms
of its metadata mean (see stored_columns). Points are named by 128 bits of a SHA-256.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast
from uuid import UUID

import numpy as np

from nsfse_runtime.errors import IntegrityError, VersionError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.stores import stored_columns
from nsfse_runtime.stores.protocol import Record, StoreFacts, features_crc
from nsfse_runtime.types import Mask

FORMAT = 1


def facts_of(facts: StoreFacts) -> dict[str, Any]:
    """Return the metadata of a collection: what is fixed when it is made."""
    return {"nsfse": FORMAT, **asdict(facts)}


def read_facts(url: str, metadata: Mapping[str, Any] | None) -> StoreFacts:
    """Return what facts_of returned. Raises VersionError."""
    facts = dict(metadata or {})
    if "nsfse" not in facts:
        raise VersionError(f"{url} is a collection, but no gallery of nsfse; choose another name")
    if (form := facts.pop("nsfse")) != FORMAT:
        raise VersionError(f"{url} has format {form}, this nsfse reads {FORMAT}; upgrade nsfse")
    return StoreFacts(**facts)


def point_id(name: str) -> str:
    """Return the id of the point of an image."""
    return str(UUID(hashlib.sha256(name.encode()).hexdigest()[:32]))


def point_of(record: Record) -> Any:
    """Return an image as Qdrant stores it."""
    from qdrant_client.models import PointStruct

    payload = {
        "id": record.id,
        "sha256": record.sha256.hex(),
        "crc": features_crc(record),
        "regions": base64.b64encode(record.regions).decode(),
        "metadata": dict(record.metadata),
        "terms": stored_columns.terms(record.metadata),
    }
    return PointStruct(id=point_id(record.id), vector=record.vector.tolist(), payload=payload)


def value_of(term: str, column: str, text: str) -> Any:
    """Return what a term means as Qdrant stores it: the term of its column, and a text."""
    from qdrant_client.models import PointStruct

    return PointStruct(id=str(UUID(term)), vector={}, payload={"column": column, "text": text})


def read_point(url: str, point: Any) -> Record:
    """Return an image that Qdrant stores, with or without its regions. Raises IntegrityError for what has rotted."""
    payload = point.payload
    record = Record(
        payload["id"],
        bytes.fromhex(payload["sha256"]),
        np.array(point.vector, np.float32),
        base64.b64decode(payload.get("regions", "")),
        payload["metadata"],
    )
    if "crc" in payload and features_crc(record) != payload["crc"]:
        raise IntegrityError(printable(f"{url}: the regions of {record.id} have changed by themselves"))
    return record


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on images: a filter of Qdrant; None is true of all of them."""

    filter: Any = None

    def __and__(self, other: "Condition") -> "Condition":
        return _joined(must=[part.filter for part in (self, other) if part.filter is not None])

    def __or__(self, other: "Condition") -> "Condition":
        if self.filter is None or other.filter is None:
            return EVERYTHING
        return _joined(should=[self.filter, other.filter])

    def __invert__(self) -> "Condition":
        return any_of([]) if self.filter is None else _joined(must_not=[self.filter])


def _joined(**parts: list[Any]) -> Condition:
    from qdrant_client.models import Filter

    return Condition(Filter(**parts)) if any(parts.values()) else EVERYTHING


EVERYTHING = Condition()


def one_of(field: str, values: Sequence[str]) -> Condition:
    """Return the condition that `field`, or one of its entries, is one of `values`."""
    from qdrant_client.models import FieldCondition, MatchAny

    return _joined(must=[FieldCondition(key=field, match=MatchAny(any=list(values)))])


def any_of(terms: Sequence[str]) -> Condition:
    """Return the condition that an image has one of `terms`."""
    return one_of("terms", terms)


def having(column: Column, chosen: Mask) -> Condition:
    """Return the condition that an image has one of the `chosen` values [U] of a column (see stored_columns)."""
    return cast(Condition, stored_columns.having(column, chosen, any_of))
