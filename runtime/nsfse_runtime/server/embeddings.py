"""POST /v1/embeddings: stage 1's vectors of images, texts and queries, as OpenAI's clients ask for them.

The vector of an image alone is the one that a gallery holds of it. So an index of such vectors, searched by the
largest inner product with the vector of a query, gives stage 1's hits.
"""

import base64
from io import BytesIO
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from nsfse_runtime.errors import NotFoundError, NsfseError
from nsfse_runtime.retrieval.query import Query
from nsfse_runtime.retrieval.references import Reference
from nsfse_runtime.server import schemas
from nsfse_runtime.server.conversion import watch_disconnect
from nsfse_runtime.server.errors import HTTPError, to_http_error, usage_error
from nsfse_runtime.server.galleries import Answer, ServedGallery, VectorOf
from nsfse_runtime.server.handlers import as_json, decode_all
from nsfse_runtime.server.load_shedding import client_address
from nsfse_runtime.server.parsing import convert_json, decode_base64, read_json
from nsfse_runtime.server.schemas import EmbeddingForm, EmbeddingInput
from nsfse_runtime.server.services import Services
from nsfse_runtime.server.settings import MAX_BODY_BYTES
from nsfse_runtime.server.telemetry import request_log
from nsfse_runtime.types import Floats, GalleryId


async def embeddings(services: Services, request: Request) -> Response:
    """Embed images, texts, or images with texts."""
    form = await read_json(request, EmbeddingForm, services.settings.body_seconds, MAX_BODY_BYTES)
    gallery, inputs = _gallery_of(services, form.model), _inputs_of(form)
    with services.queue.reserve(client_address(request.scope), len(inputs)):
        async with watch_disconnect(request) as disconnected:
            deadline = services.clock() + services.settings.deadline
            files = [BytesIO(decode_base64(_name(n), each.image)) for n, each in enumerate(inputs) if each.image]
            uploads = iter(await decode_all(services, gallery, files, disconnected, deadline))
            queries = [_query(each, next(uploads) if each.image else None) for each in inputs]
            jobs = [services.queue.create_job(VectorOf(query), gallery, deadline) for query in queries]
            answers = await services.queue.submit(jobs, disconnected)
    request_log(request).fields |= {"gallery": gallery.name, "inputs": len(inputs), "batch": jobs[0].batch_size}
    vectors = [_vector(number, answer, form.dimensions) for number, answer in enumerate(answers)]
    words = sum(len(gallery.model.tokenizer.tokens(text)) for query in queries for text in query.texts)
    return as_json(
        schemas.EmbeddingReply(
            data=[
                schemas.Embedding(index=number, embedding=_encoded(vector, form.encoding_format))
                for number, vector in enumerate(vectors)
            ],
            model=gallery.name,
            usage=schemas.EmbeddingUsage(words, words),
        )
    )


def _gallery_of(services: Services, model: str | None) -> ServedGallery:
    """Return the gallery of a name, or the first whose bundle has this name. Raises NotFoundError."""
    if model is None or model in services.galleries:
        return services.gallery(model)
    for gallery in services.galleries.values():
        if gallery.model.bundle.manifest.name == model:
            return gallery
    raise NotFoundError(f"no model is called {model[:80]}; there are: {', '.join(services.galleries)}")


def _inputs_of(form: EmbeddingForm) -> list[EmbeddingInput]:
    """Return what to embed. Raises HTTPError."""
    values = form.input if isinstance(form.input, list) else [form.input]
    if not 1 <= len(values) <= schemas.MAX_EMBEDDED:
        raise usage_error(f"input has {len(values)} entries; send 1 to {schemas.MAX_EMBEDDED} at a time")
    return [_input(_name(number), value, form.modality) for number, value in enumerate(values)]


def _name(number: int) -> str:
    return f"input[{number}]"


def _input(name: str, value: Any, modality: str) -> EmbeddingInput:
    if isinstance(value, str):
        is_image = modality == "image" or value[:5].lower() == "data:"
        value = {"image" if is_image else "text": value}
    if not isinstance(value, dict):
        raise usage_error(f'{name}: Expected a text, a data URI, or an object such as {{"image": ..., "text": ...}}')
    found = convert_json(value, EmbeddingInput, name)
    if not (found.image or found.id or found.text) or (found.image and found.id):
        raise usage_error(f"{name}: give an image (image or id), a text, or both")
    return found


def _query(each: EmbeddingInput, upload: Reference | None) -> Query:
    reference = upload if each.id is None else GalleryId(each.id)
    return Query(
        references=() if reference is None else (reference,), texts=(each.text,) if each.text is not None else ()
    )


def _vector(number: int, answer: Answer, dimensions: int | None) -> Floats:
    """Return the vector [d] of an answer. Raises HTTPError, which names the input that has none."""
    if isinstance(answer, NsfseError):
        error = to_http_error(answer)
        if error is None:
            raise answer
        raise HTTPError(error.status, error.error_type, f"{_name(number)}: {error.message}")
    assert isinstance(answer, np.ndarray)
    if dimensions not in (None, len(answer)):
        raise usage_error(f"dimensions: the vectors of this model have {len(answer)}")
    return answer


def _encoded(vector: Floats, encoding: str) -> list[float] | str:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
