"""Every store keeps every promise of tests/store_promises.py, and each promise is one that a store can break."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from nsfse import index
from nsfse.cli.repair_commands import build_index
from nsfse_runtime.errors import (
    InputError,
    IntegrityError,
    MissingExtraError,
    NotFoundError,
    OutputError,
    UsageError,
    VersionError,
)
from nsfse_runtime.gallery.gallery import Gallery
from nsfse_runtime.inference.devices import ON_CPU
from nsfse_runtime.retrieval.retriever import Retriever
from nsfse_runtime.stores import (
    addresses,
    milvus,
    milvus_connection,
    milvus_tables,
    postgres,
    qdrant,
    qdrant_tables,
    stored_columns,
)
from nsfse_runtime.stores.copy import copy_gallery
from nsfse_runtime.stores.file import FileStore
from nsfse_runtime.stores.indexing import facts_of, index_folder
from nsfse_runtime.stores.open import is_store_url, open_store
from nsfse_runtime.stores.protocol import Found, GalleryStore, Link, Record, StoreFacts, with_features
from nsfse_runtime.stores.stored_columns import StoredColumn
from nsfse_runtime.types import GalleryId
from tests import milvus as milvus_for_tests
from tests import postgres as postgres_for_tests
from tests import qdrant as qdrant_for_tests
from tests.galleries import ColourScorer, save_images
from tests.store_promises import FACTS, PROMISES, QUERIES, RECORDS, N, Open, best, same

_numbers = itertools.count()


SERVERS = {
    "postgresql": (
        lambda: postgres_for_tests.programs() is not None,
        postgres_for_tests.postgres_server,
        postgres_for_tests.WHY_NOT,
    ),
    "milvus": (milvus_for_tests.available, milvus_for_tests.milvus_server, milvus_for_tests.WHY_NOT),
    "qdrant": (qdrant_for_tests.available, qdrant_for_tests.qdrant_in_process, qdrant_for_tests.WHY_NOT),
}


@pytest.fixture(scope="session", params=["postgresql", pytest.param("milvus", marks=pytest.mark.slow), "qdrant"])
def server(request) -> Iterator[str]:
    """The URL of a database: that of --gallery, or a real server for these tests."""
    if url := request.config.getoption("--gallery"):
        if not url.startswith(f"{request.param}://"):
            pytest.skip(f"--gallery is no {request.param}")
        yield url
        return
    is_there, start, why_not = SERVERS[request.param]
    if not is_there():
        pytest.skip(why_not)
    with start() as url:
        yield url


def gallery_url(server: str, name: str) -> str:
    return f"{server}{'&' if '?' in server else '?'}gallery={name}"


def opener(url: str) -> Open:
    """Return what opens one new gallery of a database, or a file."""
    if is_store_url(url):
        url = gallery_url(url, f"promise_{uuid4().hex}")
    return lambda facts=FACTS: open_store(url, facts)


@pytest.mark.parametrize("name", PROMISES)
def test_a_file_keeps_its_promises(name: str, tmp_path: Path) -> None:
    PROMISES[name](opener(str(tmp_path / "a.gallery")))


@pytest.mark.parametrize("name", PROMISES)
def test_a_database_keeps_its_promises(name: str, server: str) -> None:
    PROMISES[name](opener(server))


class Broken:
    """A store, one of whose methods is another."""

    def __init__(self, store: GalleryStore, method: str, change: Callable[..., Any]) -> None:
        self._store, self._method, self._change = store, method, change

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._store, name)
        return own if name != self._method else lambda *args, **options: self._change(own, *args, **options)


def _drop_first(search, *args, **options):
    found = search(*args, **options)
    return replace(found, ids=found.ids[1:], scores=found.scores[1:])


def _unfiltered(search, vector, k, where=None, **options):
    return search(vector, k, None, **options)


def _by_id(search, *args, **options):
    found = search(*args, **options)
    order = sorted(range(len(found.ids)), key=lambda at: found.ids[at], reverse=True)
    return Found(tuple(found.ids[at] for at in order), found.scores[order], found.total, found.notes)


def _one_by_one(upsert, records):
    for record in records:
        upsert([record])


BREAKS: dict[str, tuple[str, Callable[..., Any]]] = {
    "what_is_written_comes_back": ("fetch", lambda fetch, ids, regions=True: fetch(sorted(ids), regions)),
    "info_tells_what_is_there": ("info", lambda info: replace(info(), distinct=1)),
    "writing_again_changes_nothing": (
        "upsert",
        lambda upsert, records: upsert([replace(one, id=f"{next(_numbers)}.jpg") for one in records]),
    ),
    "a_batch_is_written_whole_or_not_at_all": ("upsert", _one_by_one),
    "exact_search_is_exact": ("search", _drop_first),
    "search_finds_nearly_all": (
        "search",
        lambda search, *args, **options: replace(
            search(*args, **options), scores=search(*args, **options).scores.astype(np.float16)
        ),
    ),
    "what_is_written_after_the_index_is_made_is_found_as_well": (
        "ids",
        lambda ids, *args, **options: ids(*args, **options)[:-1],
    ),
    "filters_are_exact": ("search", _unfiltered),
    "files_of_the_query_are_left_out": ("search", lambda search, *args, without=(): search(*args)),
    "groups_have_their_best_image": ("search", lambda search, *args, group_by=None: search(*args)),
    "ties_come_in_the_order_of_ids": ("search", _by_id),
    "an_image_is_replaced": ("known", lambda known, hashes: set(hashes)),
    "a_name_is_given_to_known_features": ("link", lambda link, links: [link([one]) for one in links]),
    "features_go_with_their_last_name": ("known", lambda known, hashes: set(hashes)),
    "ids_are_walked_in_order": ("ids", lambda ids, *args, **options: ids(*args, **options)[::-1]),
    "a_ledger_of_shards_is_kept": ("put_shard", lambda put_shard, name, facts: put_shard(name, "facts")),
    "any_name_will_do": ("delete", lambda delete, ids: delete([name for name in ids if name.isascii()])),
    "what_is_written_is_there_when_it_is_opened_again": ("upsert", lambda upsert, records: upsert(records[:-1])),
    "a_reader_sees_one_state": ("delete", lambda delete, ids: 0),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_promise_can_be_broken(name: str, tmp_path: Path) -> None:
    whole = opener(str(tmp_path / "a.gallery"))
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        PROMISES[name](lambda facts=FACTS: Broken(whole(facts), *BREAKS[name]))


def test_a_store_that_mixes_models_or_fails_its_writers_is_seen(tmp_path: Path) -> None:
    whole = opener(str(tmp_path / "a.gallery"))
    with pytest.raises(pytest.fail.Exception):
        PROMISES["features_of_another_model_are_refused"](lambda facts=FACTS: whole())
    many = ("info", lambda info: replace(info(), writers="many"))
    with pytest.raises(OutputError, match="being written"):
        PROMISES["many_writers_never_fail"](lambda facts=FACTS: Broken(whole(), *many))


def test_an_index_is_used_and_rescored(server: str, monkeypatch) -> None:
    monkeypatch.setattr(postgres, "FEW", 20)
    for engine in (milvus, qdrant):
        monkeypatch.setattr(engine, "FEW", 20)
        monkeypatch.setattr(engine, "_PAGE", 7)
        monkeypatch.setattr(engine, "_BATCH", 9)
    store = opener(server)()
    store.upsert(RECORDS)
    store.build_index()
    for query in QUERIES:
        found = store.search(query, 10)
        assert list(found.ids) == best(query, 10), "sixty vectors are few: the graph reaches all of them"
        assert list(store.search(query, 10, {"odd": "yes"}).ids) == best(query, 10, lambda n: n % 2 == 1)
        assert list(store.search(query, N, {"odd": "yes"}).ids) == best(query, N, lambda n: n % 2 == 1)
        assert list(store.search(query, N, exact=True).ids) == best(query, N)
    assert store.search(QUERIES[0], N, group_by="colour").total == 10


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_the_last_of_one_id_in_a_batch_counts(server: str) -> None:
    store, last = opener(server)(), replace(RECORDS[1], id=RECORDS[0].id)
    store.upsert([RECORDS[0], RECORDS[2], last])
    store.upsert([replace(RECORDS[2], id="same.jpg"), RECORDS[0], last])
    assert store.info().images == 3 and store.info().distinct == 2
    assert same(store.fetch([RECORDS[0].id])[0], last) and store.known([RECORDS[0].sha256]) == set()


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
def test_an_index_is_built_after_all_is_loaded(server: str, tmp_path: Path, monkeypatch) -> None:
    url, model = gallery_url(server, f"deferred_{uuid4().hex}"), ColourScorer()
    save_images(tmp_path / "photos", 3)
    store = open_store(url, facts_of(model, "", str((tmp_path / "photos").resolve())))
    monkeypatch.setattr(index, "open_or_make", lambda *given: (model, store))

    def is_built() -> bool:
        return store._run("SELECT to_regclass('images_vector') IS NOT NULL")[0][0]

    assert index.index_folder(url, tmp_path / "photos", None, ON_CPU, defer_index=True)[1] == 3 and not is_built()
    build_index(url)
    assert is_built()
    store._run("DROP INDEX images_vector")
    index.index_folder(url, tmp_path / "photos", None, ON_CPU)
    assert is_built()


@pytest.fixture
def photos(tmp_path: Path) -> Gallery:
    """A gallery file of 24 images with metadata, two of them with the same bytes."""
    names = save_images(tmp_path / "photos", 24)
    (tmp_path / "photos" / names[3]).write_bytes((tmp_path / "photos" / names[20]).read_bytes())
    table = ["id,colour,price", *(f"{name},c{n % 4},{n}" for n, name in enumerate(names) if n % 5)]
    (tmp_path / "table.csv").write_text("\n".join(table))
    gallery = Gallery.open(tmp_path / "a.gallery", ColourScorer(), create=True)
    gallery.sync(tmp_path / "photos", metadata=tmp_path / "table.csv")
    return gallery


def test_a_copy_gives_the_same_answers(photos: Gallery, server: str, tmp_path: Path) -> None:
    url = gallery_url(server, f"copied_{uuid4().hex}")
    sent = copy_gallery(str(photos.path), url)
    back = copy_gallery(url, str(tmp_path / "back.gallery"))
    assert (sent.images, sent.sent) == (24, 24) and (back.images, copy_gallery(url, str(photos.path)).sent) == (24, 0)
    model, name = ColourScorer(), photos.ids[5]
    retrievers = [
        Retriever(model, own) for own in (photos, open_store(url), Gallery.open(tmp_path / "back.gallery", model))
    ]
    for reference, options in (
        (name, {}),
        (GalleryId(photos.ids[20]), {"where": {"colour": ["c1", "c2"], "price": {"$lt": 20}}}),
        ((tmp_path / "photos" / name).read_bytes(), {"group_by": "colour"}),
        (str(tmp_path / "photos" / name), {"k": 4, "offset": 6, "rerank": 5, "fields": ["Price"]}),
        ([name, photos.ids[7]], {"rerank": 0, "negative_images": [photos.ids[9]]}),
    ):
        answers = [ask.query(reference, "red dots", **options) for ask in retrievers]
        assert answers[0].hits and len({len(answer.hits) for answer in answers}) == 1
        for hits in zip(*(answer.hits for answer in answers), strict=True):
            assert hits[0].id == hits[1].id == hits[2].id and hits[0].metadata == hits[1].metadata == hits[2].metadata
            assert hits[0].path == hits[1].path, "the folder is copied, too"
            numbers = [[hit.score, *(word.score for word in hit.evidence)] for hit in hits]
            assert np.ptp(numbers, axis=0).max() < 1e-6
        assert answers[0].total == answers[1].total and answers[0].notes == answers[1].notes
    for ask in retrievers:
        with pytest.raises(NotFoundError, match="has no image"):
            ask.query(GalleryId("absent.png"), "red")
        with pytest.raises(UsageError, match="no column size"):
            ask.query(name, "red", fields=["size"])


def test_a_copy_is_refused_by_a_gallery_of_another_model(photos: Gallery, tmp_path: Path) -> None:
    Gallery.open(tmp_path / "other.gallery", ColourScorer("others"), create=True).close()
    with pytest.raises(VersionError, match="another bundle"):
        copy_gallery(str(photos.path), str(tmp_path / "other.gallery"))
    with pytest.raises(InputError, match="is empty"):
        copy_gallery(str(tmp_path / "other.gallery"), str(photos.path))
    with pytest.raises(VersionError, match="another bundle"):
        Retriever(ColourScorer("others"), FileStore(photos.path))


def test_urls(server: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no gallery at \w+://"):
        open_store(gallery_url(server, "absent"))
    with pytest.raises(UsageError, match="no name of a gallery"):
        open_store(gallery_url(server, "drop%20table"))
    with pytest.raises(UsageError, match="knows no engine redis"):
        open_store("redis://here")
    with pytest.raises(NotFoundError, match="no gallery at"):
        open_store(str(tmp_path / "absent.gallery"))
    scheme, _, rest = server.partition("://")
    secret = f"{scheme}://postgres:secret@{rest.removeprefix('postgres@')}"
    url = open_store(gallery_url(secret, "shown"), StoreFacts("f", 4, 1)).info().url
    assert "secret" not in url and "postgres" in url


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql://nowhere/db", "psycopg", "postgres"),
        ("milvus://nowhere", "pymilvus", "milvus"),
        ("qdrant://nowhere", "qdrant_client", "qdrant"),
    ],
)
def test_an_engine_is_an_extra(monkeypatch, url: str, module: str, extra: str) -> None:
    monkeypatch.setattr("nsfse_runtime.extras.installed", lambda name: name != module)
    with pytest.raises(MissingExtraError, match=rf"nsfse\[{extra}\]"):
        open_store(url)


@pytest.mark.parametrize("module", ["psycopg", "pymilvus", "qdrant_client"])
def test_a_server_that_is_not_there_is_named(module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    urls = {"psycopg": f"postgresql://postgres@/postgres?host={tmp_path}", "pymilvus": "milvus://127.0.0.1:1"}
    urls["qdrant_client"] = "qdrant://127.0.0.1:1"
    with pytest.raises(ValueError, match=r"cannot be reached: .*; check the URL and the server"):
        open_store(urls[module])


@pytest.mark.parametrize(
    "url",
    ["milvus:///no/host", "milvus://here:port", "milvus://here?ef=3", "milvus://h?secure=1", "milvus://h&gallery=a"],
)
def test_what_is_no_address_of_milvus_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"use milvus://HOST"):
        addresses.parse(url, 19530)


def test_milvus_is_read_strongly_for_a_while_after_opening_and_writing(monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(milvus_connection.time, "monotonic", lambda: clock[0])
    freshness, levels = milvus_connection.Freshness(), []
    for moment, writes in ((100, False), (109, False), (111, False), (112, True), (121, False), (123, False)):
        clock[0] = moment
        if writes:
            freshness.renew()
        levels.append(freshness.level)
    assert levels == ["Strong", "Strong", "Bounded", "Strong", "Strong", "Bounded"]


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (replace(RECORDS[0], id="ü" * 2100), "id"),
        (replace(RECORDS[0], metadata={"a": "x" * 70_000}), "metadata"),
        (replace(RECORDS[0], metadata={str(n): "" for n in range(2100)}), "list of columns"),
    ],
)
def test_what_is_too_long_for_milvus_is_refused(record: Record, what: str) -> None:
    with pytest.raises(InputError, match=f"the {what} of .* is too long"):
        milvus_tables.row_of(record)


def test_a_link_is_written_though_its_image_goes_meanwhile(tmp_path: Path) -> None:
    store, wanted = FileStore(tmp_path / "a.gallery", FACTS), [Link("new.jpg", RECORDS[0].sha256, {})]
    store.upsert(RECORDS[:3])
    names = iter([RECORDS[1].id, "gone.jpg", RECORDS[0].id])  # of another content by now, deleted, and the right one
    (record,) = with_features(store, wanted, lambda _: {RECORDS[0].sha256: next(names)})
    assert same(record, replace(RECORDS[0], id="new.jpg", metadata={}))
    with pytest.raises(InputError, match="try again"):
        with_features(store, wanted, lambda _: {RECORDS[0].sha256: "gone.jpg"})


def test_what_rots_in_milvus_is_seen() -> None:
    row = milvus_tables.row_of(RECORDS[0])
    assert same(milvus_tables.read_row("url", row), RECORDS[0])
    with pytest.raises(IntegrityError, match="have changed"):
        milvus_tables.read_row("url", row | {"regions": "AAAA"})
    with pytest.raises(VersionError, match="no gallery of nsfse"):
        milvus_tables.read_facts("url", "somebody else's")
    with pytest.raises(VersionError, match="upgrade"):
        milvus_tables.read_facts("url", '{"nsfse": 2}')


def test_what_rots_in_qdrant_is_seen() -> None:
    pytest.importorskip("qdrant_client")
    point = qdrant_tables.point_of(RECORDS[0])
    assert same(qdrant_tables.read_point("url", point), RECORDS[0])
    point.payload["regions"] = "AAAA"
    with pytest.raises(IntegrityError, match="have changed"):
        qdrant_tables.read_point("url", point)
    with pytest.raises(VersionError, match="no gallery of nsfse"):
        qdrant_tables.read_facts("url", None)
    with pytest.raises(VersionError, match="upgrade"):
        qdrant_tables.read_facts("url", {"nsfse": 2})


def test_a_filter_of_too_many_values_is_refused(monkeypatch) -> None:
    column = StoredColumn("price", [str(n) for n in range(9)], lambda own, chosen: 0)
    monkeypatch.setattr(stored_columns, "MOST_VALUES", 3)
    with pytest.raises(UsageError, match="4 values of price fit"):
        stored_columns.having(column, np.array([False] * 6 + [True] * 4), list)
    assert stored_columns.having(column, np.array([False] + [True] * 9), list) == [stored_columns.term("price")]


def test_a_file_of_format_1_gives_and_takes_the_same_features(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "a.gallery", FACTS)
    store.upsert(RECORDS[:3])
    snapshot = store.gallery.snapshot
    first = snapshot.encoded_regions([0], 1)[0]
    assert len(first) == 2 * FACTS.dim * FACTS.regions, "float16, as format 1 has them"


def test_a_folder_is_indexed_into_a_database(server: str, tmp_path: Path) -> None:
    names, model = save_images(tmp_path / "photos", 12), ColourScorer()
    url = gallery_url(server, f"indexed_{uuid4().hex}")
    store = open_store(url, facts_of(model, "", str((tmp_path / "photos").resolve())))
    assert index_folder(store, tmp_path / "photos", model).added == 12
    (tmp_path / "photos" / names[0]).rename(tmp_path / "photos/moved.png")
    (tmp_path / "photos" / names[1]).unlink()
    report = index_folder(store, tmp_path / "photos", model)
    assert (report.renamed, report.removed, report.unchanged, report.encoded) == (1, 1, 10, 0)
    file = Gallery.open(tmp_path / "a.gallery", model, create=True)
    file.sync(tmp_path / "photos")
    hits = [Retriever(model, own).query(names[5], "red dots").hits for own in (store, file)]
    assert [hit.id for hit in hits[0]] == [hit.id for hit in hits[1]] and len(hits[0]) == 10
