"""What every GalleryStore must keep: the test kit of `pytest tests/unit/runtime/test_stores.py --gallery URL`.

Each promise is a function of `open`, which opens one gallery, empty at first, as often as it is called.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from nsfse_runtime.errors import InputError, NotFoundError, UsageError, VersionError
from nsfse_runtime.inference.region_codec import to_bytes
from nsfse_runtime.stores.protocol import REGION_FORMAT, GalleryStore, Link, Record, StoreFacts

N, DIM, REGIONS = 60, 8, 3
FACTS = StoreFacts("f" * 64, DIM, REGIONS, bundle="/models/one", folder="/photos")
Open = Callable[..., GalleryStore]
PROMISES: dict[str, Callable[[Open], None]] = {}
_random = np.random.default_rng(0)


def _unit(*shape: int) -> np.ndarray:
    rows = _random.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


VECTORS, QUERIES = _unit(N, DIM), _unit(4, DIM)
RECORDS = [
    Record(
        f"shelf{n % 7}/item{n:03d}.jpg",
        n.to_bytes(32, "big"),
        VECTORS[n],
        to_bytes(_unit(REGIONS, DIM), REGION_FORMAT),
        {"colour": f"c{n % 10}", "price": str(n)} | ({"odd": "yes"} if n % 2 else {}),
    )
    for n in range(N)
]


def promise(function: Callable[[Open], None]) -> Callable[[Open], None]:
    PROMISES[function.__name__] = function
    return function


def filled(open: Open) -> GalleryStore:
    store = open()
    store.upsert(RECORDS)
    return store


def best(query: np.ndarray, k: int, fits: Callable[[int], bool] = lambda n: True) -> list[str]:
    allowed = [n for n in range(N) if fits(n)]
    return [RECORDS[n].id for n in sorted(allowed, key=lambda n: -float(VECTORS[n] @ query))[:k]]


def same(one: Record, other: Record) -> bool:
    """Tell whether two records are the same to the last bit."""
    is_same_vector = one.vector.dtype == np.float32 and np.array_equal(one.vector, other.vector)
    return is_same_vector and replace(one, vector=other.vector) == other


def has_distinct(store: GalleryStore, number: int) -> bool:
    """Tell whether a store has `number` images that differ in their bytes, or promises no such count."""
    return store.info().distinct in (number, None)


@promise
def what_is_written_comes_back(open: Open) -> None:
    wanted = [RECORDS[n] for n in (5, 59, 5, 0)]
    for got, record in zip(filled(open).fetch([record.id for record in wanted]), wanted, strict=True):
        assert same(got, record)
    assert open().fetch([RECORDS[1].id], regions=False)[0].regions == b""


@promise
def info_tells_what_is_there(open: Open) -> None:
    store = filled(open)
    info = store.info()
    assert (info.facts, info.images) == (FACTS, N) and has_distinct(store, N)
    assert info.search in ("exact", "approximate") and info.consistency in ("snapshot", "bounded")
    assert info.batches in ("whole", "repeated")


@promise
def writing_again_changes_nothing(open: Open) -> None:
    store = filled(open)
    store.upsert(RECORDS[:20][::-1])
    assert store.info().images == N and has_distinct(store, N)
    assert store.search(QUERIES[0], 5, exact=True).ids == tuple(best(QUERIES[0], 5))


@promise
def features_of_another_model_are_refused(open: Open) -> None:
    open()
    with pytest.raises(VersionError, match="another bundle"):
        open(replace(FACTS, fingerprint="0" * 64))


@promise
def a_batch_is_written_whole_or_not_at_all(open: Open) -> None:
    store = open()
    for bad, error in (
        (replace(RECORDS[1], id="../secret.jpg"), InputError),
        (replace(RECORDS[1], id="bad\udcff.jpg"), InputError),
        (replace(RECORDS[1], metadata={"a": "\0"}), InputError),
        (replace(RECORDS[1], vector=VECTORS[1][:3]), UsageError),
    ):
        with pytest.raises(error):
            store.upsert([RECORDS[0], bad])
    assert store.info().images == 0 and not store.known([RECORDS[0].sha256])


@promise
def exact_search_is_exact(open: Open) -> None:
    store = filled(open)
    for query in QUERIES:
        found = store.search(query, 10, exact=True)
        assert list(found.ids) == best(query, 10) and found.total == N
        assert np.abs(found.scores - np.sort(VECTORS @ query)[::-1][:10]).max() < 1e-6
    assert len(store.search(QUERIES[0], 1000, exact=True).ids) == N


@promise
def search_finds_nearly_all(open: Open) -> None:
    store = filled(open)
    store.build_index()
    for query in QUERIES:
        found = store.search(query, 20)
        assert len(set(found.ids) & set(best(query, 20))) >= 19
        scores = {record.id: float(record.vector @ query) for record in RECORDS}
        assert np.abs(found.scores - [scores[name] for name in found.ids]).max() < 1e-5
        assert (np.diff(found.scores) <= 0).all()


@promise
def what_is_written_after_the_index_is_made_is_found_as_well(open: Open) -> None:
    store = open()
    store.upsert(RECORDS[:40])
    store.build_index()
    store.upsert(RECORDS[30:])
    assert store.delete([record.id for record in RECORDS[25:35]]) == 10
    store.upsert(RECORDS[25:30])
    there = [n for n in range(N) if not 30 <= n < 35]
    assert store.ids() == sorted(RECORDS[n].id for n in there)
    assert list(store.search(QUERIES[0], N, exact=True).ids) == best(QUERIES[0], N, there.__contains__)
    assert store.search(QUERIES[0], 20).ids == tuple(best(QUERIES[0], 20, there.__contains__))
    assert store.known([record.sha256 for record in RECORDS]) == {RECORDS[n].sha256 for n in there}


@promise
def filters_are_exact(open: Open) -> None:
    store = filled(open)
    for where, fits in (
        ({"colour": "c7"}, lambda n: n % 10 == 7),
        ({"Colour": "c7,c8", "odd": "yes"}, lambda n: n % 10 == 7),
        ({"price": {"$gte": 10, "$lt": 30.5}}, lambda n: 10 <= n <= 30),
        ({"odd": {"$exists": False}}, lambda n: n % 2 == 0),
        ({"$not": {"odd": "yes"}, "price": {"$ne": "4"}}, lambda n: n % 2 == 0 and n != 4),
        ({"$or": [{"colour": "c1"}, {"price": 3}]}, lambda n: n % 10 == 1 or n == 3),
    ):
        found = store.search(QUERIES[0], N, where)
        assert list(found.ids) == best(QUERIES[0], N, fits) and found.total == len(found.ids), where
    nothing = store.search(QUERIES[0], 5, {"colour": "c77"})
    assert not nothing.ids and nothing.total == 0 and "no image has colour=c77" in nothing.notes[0]
    with pytest.raises(UsageError, match="no column size"):
        store.search(QUERIES[0], 5, {"size": "S"})
    assert store.columns() == ("colour", "odd", "price")


@promise
def files_of_the_query_are_left_out(open: Open) -> None:
    store = filled(open)
    found = store.search(VECTORS[3], N, without=[RECORDS[3].sha256, RECORDS[4].sha256])
    assert list(found.ids) == best(VECTORS[3], N, lambda n: n not in (3, 4)) and found.total == N - 2


@promise
def groups_have_their_best_image(open: Open) -> None:
    store = filled(open)
    order = best(QUERIES[0], N)
    colours = {record.id: record.metadata["colour"] for record in RECORDS}
    firsts = [name for at, name in enumerate(order) if colours[name] not in {colours[other] for other in order[:at]}]
    found = store.search(QUERIES[0], N, group_by="colour")
    assert list(found.ids) == firsts and found.total == 10
    found = store.search(QUERIES[0], N, group_by="odd")
    assert found.total == len(found.ids) == N // 2 + 1, "an image without the column is a group of its own"


@promise
def ties_come_in_the_order_of_ids(open: Open) -> None:
    store = filled(open)
    store.link([Link(name, RECORDS[5].sha256, {}) for name in ("z.jpg", "a.jpg", "Z.jpg")])
    assert store.search(VECTORS[5], 4, exact=True).ids == ("Z.jpg", "a.jpg", RECORDS[5].id, "z.jpg")


@promise
def an_image_is_replaced(open: Open) -> None:
    store = filled(open)
    new = replace(RECORDS[9], id=RECORDS[3].id, sha256=b"n" * 32, vector=-VECTORS[3], metadata={"colour": "new"})
    store.upsert([new])
    assert store.fetch([new.id])[0].regions == new.regions and store.search(-VECTORS[3], 1).ids == (new.id,)
    assert store.search(VECTORS[3], 5, {"colour": "new"}).ids == (new.id,)
    assert not store.known([RECORDS[3].sha256]), "features that no image has"
    assert store.info().images == N and has_distinct(store, N)


@promise
def a_name_is_given_to_known_features(open: Open) -> None:
    store = filled(open)
    store.link([Link("copy.jpg", RECORDS[5].sha256, {"colour": "copy"})])
    assert same(store.fetch(["copy.jpg"])[0], replace(RECORDS[5], id="copy.jpg", metadata={"colour": "copy"}))
    assert store.info().images == N + 1 and has_distinct(store, N)
    with pytest.raises(NotFoundError):
        store.link([Link("first.jpg", RECORDS[5].sha256, {}), Link("other.jpg", b"x" * 32, {})])
    assert store.info().images == N + 1, "all or nothing"


@promise
def features_go_with_their_last_name(open: Open) -> None:
    store = filled(open)
    store.link([Link("copy.jpg", RECORDS[5].sha256, {})])
    assert store.delete(["copy.jpg", "not there"]) == 1 and store.known([RECORDS[5].sha256, b"x" * 32])
    assert store.delete([RECORDS[5].id]) == 1 and not store.known([RECORDS[5].sha256])
    with pytest.raises(NotFoundError):
        store.fetch([RECORDS[5].id])
    assert RECORDS[5].id not in store.search(VECTORS[5], N).ids and has_distinct(store, N - 1)


@promise
def ids_are_walked_in_order(open: Open) -> None:
    store = filled(open)
    walked, after = [], ""
    while part := store.ids(after=after, limit=7):
        walked, after = walked + part, part[-1]
    assert walked == sorted(record.id for record in RECORDS)
    assert store.ids("shelf3/", limit=3) == [name for name in walked if name.startswith("shelf3/")][:3]
    assert store.ids("shelf3/", after=walked[-1]) == []


@promise
def a_ledger_of_shards_is_kept(open: Open) -> None:
    store = filled(open)
    assert store.shards() == {}
    store.put_shard("a 'b", "first")
    store.put_shard("c", "facts")
    store.put_shard("a 'b", "second")
    store.close()
    assert open().shards() == {"a 'b": "second", "c": "facts"} and open().info().images == N
    assert "shards" not in open().columns()
    open().upsert([replace(RECORDS[0], metadata={"shards": "c"})])
    assert open().search(QUERIES[0], 5, {"shards": "c"}).total == 1 and len(open().shards()) == 2


@promise
def any_name_will_do(open: Open) -> None:
    names = ["a'b\";--/ü 界.jpg", "x" * 300 + ".jpg", "%_\\.png", "Ａ.png"]
    odd = {"co'lour": "o'dd %s", 'k"ey': "v,al", "{}": "%"}
    store = open()
    store.upsert([replace(record, id=name, metadata=odd) for name, record in zip(names, RECORDS, strict=False)])
    assert [record.metadata for record in store.fetch(names)] == [odd] * 4 and store.ids() == sorted(names)
    for where in ({"co'lour": "o'dd %s"}, {'k"ey': ["v,al"]}, {"{}": "%"}):
        assert store.search(QUERIES[0], 9, where).total == 4
    assert store.ids("%_") == ["%_\\.png"] and store.delete(names) == 4


@promise
def what_is_written_is_there_when_it_is_opened_again(open: Open) -> None:
    filled(open).close()
    assert open().info().images == N and open().search(VECTORS[3], 1).ids == (RECORDS[3].id,)


@promise
def a_reader_sees_one_state(open: Open) -> None:
    reader, writer = filled(open), open()
    if reader.info().consistency != "snapshot":
        pytest.skip("this store promises no snapshot")
    with reader.reading():
        before = reader.search(QUERIES[0], 5, exact=True)
        in_thread(lambda: writer.delete(list(before.ids)))
        assert reader.search(QUERIES[0], 5, exact=True).ids == before.ids
        assert [record.id for record in reader.fetch(before.ids)] == list(before.ids)
    assert not set(reader.search(QUERIES[0], 5, exact=True).ids) & set(before.ids)


@promise
def many_writers_never_fail(open: Open) -> None:
    if filled(open).info().writers == "one":
        pytest.skip("this store promises one writer")

    def write(number: int) -> None:
        store = open()
        for start in range(0, N, 20):
            batch = RECORDS[start : start + 20]
            store.upsert(batch if number % 2 else batch[::-1])
            store.delete([record.id for record in batch[:5]])
            store.link([Link(f"new{number}.jpg", batch[10].sha256, {})])
        store.upsert(RECORDS)
        store.close()

    in_thread(*[lambda number=number: write(number) for number in range(3)])
    assert open().info().images == N + 3 and has_distinct(open(), N)


def in_thread(*functions: Callable[[], object]) -> None:
    """Run functions, each in a thread of its own, and raise what one of them raises."""
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
