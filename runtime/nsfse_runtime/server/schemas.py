"""Types of requests and replies: requests are checked against them, and /openapi.json is made from them."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from nsfse_runtime.inference.tokenizer import MAX_CHARACTERS
from nsfse_runtime.json_schema import SCHEMA_VERSION
from nsfse_runtime.retrieval.query import MAX_WEIGHT
from nsfse_runtime.retrieval.results import WordEvidence
from nsfse_runtime.retrieval.text_warnings import TextReading
from nsfse_runtime.server.errors import ErrorBody

MAX_HITS, MAX_OFFSET, MAX_RERANKED, MAX_PARTS, MAX_QUERIES, MAX_LISTED = 1000, 10_000, 500, 8, 16, 200
MAX_EMBEDDED = 32
MAX_COLUMN_VALUES = 50
COMPONENTS = "#/components/schemas/"

File = Annotated[Any, Meta(extra_json_schema={"type": "string", "format": "binary"})]
Id = Annotated[str, Meta(min_length=1, max_length=1024)]
Text = Annotated[str, Meta(max_length=MAX_CHARACTERS)]
Name = Annotated[str, Meta(max_length=64)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Files = Annotated[list[File], Meta(max_length=MAX_PARTS)]
Ids = Annotated[list[Id], Meta(max_length=MAX_PARTS)]
Texts = Annotated[list[Text], Meta(max_length=MAX_PARTS)]
Weights = Annotated[list[Annotated[float, Meta(gt=0, le=MAX_WEIGHT)]], Meta(max_length=MAX_PARTS)]
Column = Annotated[str, Meta(min_length=1, max_length=200)]
Columns = Annotated[list[Column], Meta(max_length=50)]
Where = Annotated[dict[str, Any], Meta(description="a filter on metadata; nsfse_runtime.gallery.filters checks it")]


Integer = Annotated[int, Meta(ge=-(2**53), le=2**53)]
Value = Annotated[str, Meta(max_length=2000)] | Integer | float | bool


class QueryOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The options of a query; see nsfse_runtime.retrieval.query.Query."""

    k: Annotated[int, Meta(ge=1, le=MAX_HITS)] = 10
    offset: Annotated[int, Meta(ge=0, le=MAX_OFFSET)] = 0
    where: Where = {}
    min_confidence: Fraction = 0.0
    rerank: Annotated[int, Meta(ge=0, le=MAX_RERANKED)] = 100
    balance: Fraction = 0.5
    heatmaps: bool = False
    fields: Columns = []
    group_by: Column | None = None
    fold_duplicates: Annotated[float, Meta(gt=0, le=1)] | None = None
    text_weights: Weights = []
    negative_text_weights: Weights = []


class QueryForm(QueryOptions, kw_only=True):
    """A query as a form: images as files or as ids of the gallery; `where` is a JSON object."""

    reference_images: Files = []
    reference_ids: Ids = []
    texts: Texts = []
    negative_texts: Texts = []
    negative_ids: Ids = []
    negative_images: Files = []
    gallery: Name | None = None


class BatchQuery(QueryOptions, kw_only=True):
    """One query of several, by ids of the gallery alone."""

    reference_ids: Ids = []
    texts: Texts = []
    negative_texts: Texts = []
    negative_ids: Ids = []


# Checked one by one: a malformed one does not fail the others.
_AnyQuery = Annotated[Any, Meta(extra_json_schema={"$ref": f"{COMPONENTS}BatchQuery"})]


class BatchForm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Several queries of one gallery."""

    queries: Annotated[list[_AnyQuery], Meta(min_length=1, max_length=MAX_QUERIES)]
    gallery: Name | None = None


class EmbeddingInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is embedded: an image (in base64, a data URI, or `id` of the gallery), a text, or both as a query."""

    image: str | None = None
    id: Id | None = None
    text: Text | None = None


# Checked one by one: a text, a data URI, or an object.
_AnyInput = {"oneOf": [{"type": "string"}, {"$ref": f"{COMPONENTS}EmbeddingInput"}]}
EmbeddingInputs = Annotated[
    Any, Meta(extra_json_schema={"oneOf": [*_AnyInput["oneOf"], {"type": "array", "items": _AnyInput}]})
]


class EmbeddingForm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What OpenAI's clients send, and infinity's: `model` is the name of a gallery, by default the first.

    With `modality` "image" a text is an image in base64. `dimensions` can only be those of the model.
    """

    input: EmbeddingInputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    modality: Literal["text", "image"] = "text"
    dimensions: int | None = None
    user: str | None = None


class ListForm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which images to list; `where` is a JSON object."""

    offset: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    limit: Annotated[int, Meta(ge=0, le=MAX_LISTED)] = 50
    where: Where = {}
    gallery: Name | None = None


class GalleryForm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which gallery: the first by default."""

    gallery: Name | None = None


class ImageForm(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An image to be added, under the name `id`; `metadata` is a JSON object of columns to set."""

    image: Annotated[list[File], Meta(min_length=1, max_length=1)]
    id: Annotated[str, Meta(min_length=1, max_length=255)]
    metadata: Annotated[dict[Column, Value], Meta(max_length=50)] = {}
    gallery: Name | None = None


class ImagePatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A merge patch (RFC 7396) of an image: a column is set, null removes it, all others stay; null removes all."""

    metadata: Annotated[dict[Column, Value | None], Meta(max_length=50)] | None


class ServedHit(msgspec.Struct, kw_only=True):
    """A hit with the metadata of its image; see nsfse_runtime.retrieval.retriever.Hit."""

    id: str
    score: float
    is_match: bool | None
    evidence: tuple[WordEvidence, ...]
    confidence: float | None
    metadata: dict[str, str]
    duplicates: tuple[str, ...]


class QueryReply(msgspec.Struct, kw_only=True):
    """Hits, best first; see nsfse_runtime.retrieval.retriever.Result. `timings_ms` adds the time in the queue."""

    schema_version: int = SCHEMA_VERSION
    hits: list[ServedHit]
    total: int
    has_match: bool | None
    threshold: float | None
    grid: tuple[int, int] | None
    references: tuple[tuple[WordEvidence, ...], ...]
    texts: tuple[TextReading, ...]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]
    gallery: str
    request_id: str


class FailedQuery(msgspec.Struct):
    """A query of several that could not be answered."""

    error: ErrorBody


# Written by hand: msgspec takes a union of two structs only where both have a tag, a field more in every reply.
BatchResult = Annotated[
    Any, Meta(extra_json_schema={"oneOf": [{"$ref": f"{COMPONENTS}{name}"} for name in ("QueryReply", "FailedQuery")]})
]


class BatchReply(msgspec.Struct, kw_only=True):
    """One result for each query, in their order."""

    schema_version: int = SCHEMA_VERSION
    results: list[BatchResult]


class ImageItem(msgspec.Struct):
    """An image of the gallery."""

    id: str
    metadata: dict[str, str]


class Embedding(msgspec.Struct, kw_only=True):
    """A vector of stage 1: a list of numbers, or their float32 bytes (little-endian) in base64."""

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct):
    """How many words of the texts were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(msgspec.Struct, kw_only=True):
    """A vector for each input, in their order."""

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ListReply(msgspec.Struct, kw_only=True):
    """Images in the order of their ids; `total` counts all that fit `where`, `notes` are of the filter."""

    schema_version: int = SCHEMA_VERSION
    total: int
    images: list[ImageItem]
    notes: tuple[str, ...]


class ChangeReply(msgspec.Struct, kw_only=True):
    """What was done to the image `id`: `added`, `removed`, `updated` (its metadata), or `unchanged`."""

    schema_version: int = SCHEMA_VERSION
    id: str
    change: str


class PatchReply(ChangeReply, kw_only=True):
    """What was done to the image `id`, and the metadata that it has now."""

    metadata: dict[str, str]


class BundleFacts(msgspec.Struct, kw_only=True):
    """The model of a gallery; `grid` is (rows, columns) of its regions, None where they are on no grid.

    `max_words` is how many words of a text it reads: tokens, of a model with a subword tokenizer.
    """

    name: str
    fingerprint: str
    trained_on: str
    precision: str
    has_confidence: bool
    max_words: int
    grid: tuple[int, int] | None


class GalleryFacts(msgspec.Struct, kw_only=True):
    """One gallery; `columns` counts the values of each column of its metadata that has few.

    `edits` and `descriptions` are texts to suggest, beside an image and alone.
    """

    name: str
    images: int
    columns: dict[str, dict[str, int]]
    bundle: BundleFacts
    edits: list[str]
    descriptions: list[str]


class Limits(msgspec.Struct, kw_only=True):
    """The limits of a request; `text_words` is how many words of a text the first gallery's model reads."""

    k: int
    offset: int
    image_bytes: int
    text_chars: int
    text_words: int
    deadline_seconds: float


class InfoReply(msgspec.Struct, kw_only=True):
    """What the server serves, and how."""

    schema_version: int = SCHEMA_VERSION
    version: str
    device: str
    galleries: list[GalleryFacts]
    limits: Limits
    suggestions: list[str]
    writable: bool
    note: str | None


class Status(msgspec.Struct):
    """Whether the server is alive, or ready."""

    status: str
