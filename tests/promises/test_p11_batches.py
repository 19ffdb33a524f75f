"""P11: an answer does not depend on who shares its batch, nor on what was answered before."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("starlette")

from nsfse_runtime import Query, Result, Retriever
from tests.promises.counts import count
from tests.serving import PATIENCE, Callers, Gate, image, open_served, running, wait_until

QUERIES, EARLIER = count(60, 500), count(40, 1000)
TEXTS = ("make it red", "in green", "without stripes", "turn it into trousers", "red", "with dots and long sleeves")
TOLERANCE = 1e-5
"""Scores of an uploaded image may differ so much: a batch of another size is multiplied in another order."""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    return open_served(tmp_path_factory.mktemp("batches"), images=40)


def draw(number, ids, seed):
    """Draw queries of all sorts: by id and by upload, of several images and texts, with exclusions."""
    chance = random.Random(seed)
    uploads = [image(seed, (60, 40)) for seed in range(8)]

    def one():
        references = chance.sample(ids, chance.choice((1, 1, 2)))
        if chance.random() < 0.4:
            references[0] = chance.choice(uploads)
        excluded = {"negative_texts": ("stripes",)} if chance.random() < 0.2 else {}
        texts = tuple(chance.sample(TEXTS, chance.choice((1, 1, 2))))
        return Query(
            references=tuple(references), texts=texts, k=10, balance=chance.choice((0.5, 0.5, 0.8)), **excluded
        )

    return [one() for _ in range(number)]


def same(query, alone, shared):
    """Tell whether two answers are the same: to the last bit where no image had to be encoded."""
    assert isinstance(alone, Result) and isinstance(shared, Result), (alone, shared)
    if not any(isinstance(reference, bytes) for reference in query.references):
        return (alone.hits, alone.has_match) == (shared.hits, shared.has_match)
    scores, others = ({hit.id: hit.score for hit in found.hits} for found in (alone, shared))
    ranked = np.array([scores.get(hit.id, alone.hits[-1].score) for hit in shared.hits])
    close = np.allclose([hit.score for hit in alone.hits], [hit.score for hit in shared.hits], rtol=0, atol=TOLERANCE)
    return close and len(scores) == len(others) and bool(np.all(np.diff(ranked) <= TOLERANCE))


def test_an_answer_is_the_same_alone_in_any_batch_and_after_others(served):
    """Broken once: `compose` without its split by length."""
    retriever = Retriever(served.model, served.gallery)
    queries = draw(QUERIES, served.gallery.ids, seed=1)
    alone = [retriever.answer([query])[0] for query in queries]
    chance, at = random.Random(2), 0
    order = chance.sample(range(QUERIES), QUERIES)
    while at < QUERIES:
        batch = order[at : at + chance.randint(2, 16)]
        found = retriever.answer([queries[number] for number in batch])
        assert all(same(queries[n], alone[n], answer) for n, answer in zip(batch, found, strict=True))
        at += len(batch)
    for query in draw(EARLIER, served.gallery.ids, seed=3):
        retriever.answer([query])
    again = [retriever.answer([query])[0] for query in queries[:40]]
    assert all(same(query, first, later) for query, first, later in zip(queries, alone, again, strict=False))


def test_what_waits_is_answered_together_and_as_if_alone(served, monkeypatch):
    """Broken once: `next_batch` with batches of one."""
    with running(served) as server:
        gate, callers = Gate(served.model, monkeypatch), Callers(server, 8)
        first = callers.send(100)
        assert gate.held.wait(PATIENCE)
        others = [callers.send(101 + number) for number in range(7)]
        callers.wait_for_places(8)
        wait_until(lambda: server.services.queue.waiting == 7)
        gate.open.set()
        replies = [call.result()[1] for call in (first, *others)]
        assert gate.batches == [1, 7]
    retriever = Retriever(served.model, served.gallery)
    for number, reply in enumerate(replies):
        alone = retriever.query(image(100 + number), "make it red", k=3).hits
        assert [hit["id"] for hit in reply["hits"]] == [hit.id for hit in alone]
        assert [hit["score"] for hit in reply["hits"]] == pytest.approx([hit.score for hit in alone], abs=1e-5)


def test_batches_of_a_server_hold_their_queries_apart(served):
    """Broken once: `_answer_batch` zipped the answers in reverse."""
    ids = served.gallery.ids
    retriever = Retriever(served.model, served.gallery)
    fields = [[("reference_ids", ids[n % len(ids)]), ("texts", TEXTS[n % len(TEXTS)])] for n in range(count(24, 200))]
    with running(served, per_client=0) as server, ThreadPoolExecutor(12) as pool:
        replies = [reply for _, reply, _ in pool.map(server.query, fields)]
    for (reference, text), reply in zip(fields, replies, strict=True):
        expected = retriever.query(reference[1], text[1])
        assert [hit["id"] for hit in reply["hits"]] == [hit.id for hit in expected.hits]
