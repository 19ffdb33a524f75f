"""The collections of a gallery in Milvus, and filters as its expressions.

NAME has one entity for each image; images with the same bytes repeat their features. NAME_values says what the terms
of its metadata mean (see stored_columns).
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from nsfse_runtime.errors import InputError, IntegrityError, UsageError, VersionError
from nsfse_runtime.escaping import printable
from nsfse_runtime.gallery.columns import Column
from nsfse_runtime.stores import stored_columns
from nsfse_runtime.stores.protocol import Record, StoreFacts, features_crc
from nsfse_runtime.types import Mask

FORMAT, PORT = 1, 19530
LONGEST_ID, LONGEST_TEXT, MOST_TERMS = 4096, 65_535, 4096
"""The longest id and text in bytes, and the most terms, that Milvus takes."""


def values_of(name: str) -> str:
    """Return the name of the collection that says what terms mean."""
    return f"{name}_values"


def write_facts(facts: StoreFacts) -> str:
    """Return the description of a collection: what is fixed when it is made."""
    return json.dumps({"nsfse": FORMAT, **asdict(facts)})


def read_facts(url: str, description: str) -> StoreFacts:
    """Return what write_facts wrote. Raises VersionError."""
    try:
        facts = json.loads(description)
        form = facts.pop("nsfse")
    except (ValueError, AttributeError, KeyError, TypeError):
        raise VersionError(f"{url} is a collection, but no gallery of nsfse; choose another name") from None
    if form != FORMAT:
        raise VersionError(f"{url} has format {form}, this nsfse reads {FORMAT}; upgrade nsfse")
    return StoreFacts(**facts)


def schemas(name: str, facts: StoreFacts) -> list[dict[str, Any]]:
    """Return what create_collection takes, of each collection of a gallery; the gallery's own comes last.

    Raises UsageError where the features of an image are longer than Milvus takes.
    """
    from pymilvus import DataType, MilvusClient

    longest = LONGEST_TEXT // 4 * 3  # in base64
    if facts.regions * (facts.dim + 4) > longest:
        raise UsageError(f"{facts.regions} regions of {facts.dim} numbers are more than {longest} bytes; use a file")
    values = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=f"values of {name}")
    values.add_field("term", DataType.VARCHAR, is_primary=True, max_length=32)
    values.add_field("column", DataType.VARCHAR, max_length=32)
    values.add_field("text", DataType.VARCHAR, max_length=LONGEST_TEXT)
    values.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # no collection is without a vector
    images = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=write_facts(facts))
    images.add_field("id", DataType.VARCHAR, is_primary=True, max_length=LONGEST_ID)
    images.add_field("sha256", DataType.VARCHAR, max_length=64)
    images.add_field("crc", DataType.INT64)
    images.add_field("regions", DataType.VARCHAR, max_length=LONGEST_TEXT)
    images.add_field("metadata", DataType.VARCHAR, max_length=LONGEST_TEXT)
    images.add_field("terms", DataType.ARRAY, element_type=DataType.VARCHAR, max_capacity=MOST_TERMS, max_length=32)
    images.add_field("vector", DataType.FLOAT_VECTOR, dim=facts.dim)
    of_values, of_images = MilvusClient.prepare_index_params(), MilvusClient.prepare_index_params()
    of_values.add_index("nothing", index_type="FLAT", metric_type="IP")
    of_images.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 128})
    return [
        {"collection_name": values_of(name), "schema": values, "index_params": of_values},
        {"collection_name": name, "schema": images, "index_params": of_images},
    ]


def row_of(record: Record) -> dict[str, Any]:
    """Return an image as Milvus stores it. Raises InputError where it is too long."""
    metadata, terms = json.dumps(dict(record.metadata), ensure_ascii=False), stored_columns.terms(record.metadata)
    for what, size, most in (
        ("id", len(record.id.encode()), LONGEST_ID),
        ("metadata", len(metadata.encode()), LONGEST_TEXT),
        ("list of columns", len(terms), MOST_TERMS),
    ):
        if size > most:
            raise InputError(printable(f"the {what} of {record.id[:200]} is too long for Milvus; shorten it"))
    return {
        "id": record.id,
        "sha256": record.sha256.hex(),
        "crc": features_crc(record),
        "regions": base64.b64encode(record.regions).decode(),
        "metadata": metadata,
        "terms": terms,
        "vector": record.vector.tolist(),
    }


def read_row(url: str, row: Mapping[str, Any]) -> Record:
    """Return an image that Milvus stores, with or without its regions. Raises IntegrityError for what has rotted."""
    record = Record(
        row["id"],
        bytes.fromhex(row["sha256"]),
        np.array(row["vector"], np.float32),
        base64.b64decode(row.get("regions", "")),
        json.loads(row["metadata"]),
    )
    if "crc" in row and features_crc(record) != row["crc"]:
        raise IntegrityError(printable(f"{url}: the regions of {record.id} have changed by themselves"))
    return record


def literal(value: str | Sequence[str]) -> str:
    """Return a text, or a list of texts, as an expression."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on images: an expression; "" is true of all of them."""

    text: str = ""

    def __and__(self, other: "Condition") -> "Condition":
        return Condition(" and ".join(f"({text})" for text in (self.text, other.text) if text))

    def __or__(self, other: "Condition") -> "Condition":
        return Condition(f"({self.text}) or ({other.text})") if self.text and other.text else EVERYTHING

    def __invert__(self) -> "Condition":
        return Condition(f"not ({self.text})") if self.text else NOTHING


EVERYTHING, NOTHING = Condition(), Condition('id == ""')


def any_of(terms: Sequence[str]) -> Condition:
    """Return the condition that an image has one of `terms`."""
    return Condition(f"array_contains_any(terms, {literal(terms)})") if terms else NOTHING


def having(column: Column, chosen: Mask) -> Condition:
    """Return the condition that an image has one of the `chosen` values [U] of a column (see stored_columns)."""
    return cast(Condition, stored_columns.having(column, chosen, any_of))


def one_of(field: str, values: Sequence[str]) -> Condition:
    """Return the condition that `field` is one of `values`."""
    return Condition(f"{field} in {literal(values)}") if values else NOTHING
