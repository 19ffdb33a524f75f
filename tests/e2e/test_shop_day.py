"""A shop's day over HTTP, by the client, with the files of deploy/: behind nginx and Caddy where they are installed."""

import asyncio
import urllib.request
from contextlib import ExitStack, suppress
from urllib.error import HTTPError

import numpy as np
import pytest

pytest.importorskip("starlette")

from nsfse_runtime import Gallery
from nsfse_runtime.client import (
    AccessError,
    AsyncClient,
    BusyError,
    Client,
    MissingError,
    RequestError,
    UnreachableError,
)
from nsfse_runtime.gallery.sqlite_file import sole_writer
from tests.proxies import PROXIES, path_of, proxy
from tests.serving import TOKEN, image, open_served, running

READER, SITE, IMAGES = "a-token-that-only-reads", "https://shop.example", 520


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    served = open_served(tmp_path_factory.mktemp("shop"), images=IMAGES)
    tokens = {"write_tokens": (TOKEN,), "read_tokens": (READER,)}
    with running(served, root_path="/images", allow_origins=(SITE,), per_client=0, **tokens) as server:
        yield server


@pytest.fixture(scope="module")
def front(server, tmp_path_factory):
    """The shop's address: behind nginx where there is one."""
    with ExitStack() as stack:
        if not path_of("nginx"):
            yield f"http://127.0.0.1:{server.port}/images"
            return
        yield stack.enter_context(proxy("nginx", tmp_path_factory.mktemp("nginx"), server.port))


def request(url, method="GET", headers=None):
    """Return (status, headers) of a request that is not the client's."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers or {})) as reply:
            return reply.status, reply.headers
    except HTTPError as error:
        return error.code, error.headers


@pytest.mark.parametrize("name", PROXIES)
def test_the_service_behind_a_proxy(server, tmp_path, name):
    if not path_of(name):
        pytest.skip(f"no {name} on this machine: apt-get install {name}")
    with proxy(name, tmp_path, server.port) as url:
        client = Client(url, READER)
        found = client.query(reference_images=[image(5, (900, 700))], texts=["make it red"], k=3)
        assert len(found.hits) == 3 and client.image(found.hits[0].id, thumbnail=True)[:2] == b"\xff\xd8"
        basic = {"Authorization": f"Bearer {READER}"}
        assert request(f"{url}/docs", headers=basic)[0] == request(url, headers=basic)[0] == 200
        own = {**basic, "Origin": url.removesuffix("/images"), "Content-Type": "application/json"}
        assert request(f"{url}/v1/query", "POST", own)[0] == 400  # from its own page: only the body is missing
        assert request(f"{url}/v1/query", "POST", {**own, "Origin": "https://evil.example"})[0] == 403
        if name == "caddy":
            return  # it reads on for a while, and may then reset the connection
        with suppress(UnreachableError), pytest.raises(RequestError, match=r"413|over the limit"):
            Client(url, TOKEN).put_image("big.png", bytes(22_000_000))  # a reset may come before the reply


def test_a_days_work(server, front, tmp_path):
    shop, owner = Client(front, READER), Client(front, TOKEN)
    ids = [each.id for start in range(0, IMAGES, 200) for each in shop.images(offset=start, limit=200).images]
    assert len(ids) == IMAGES and shop.info()["writable"] is False
    # Prices and sizes come from a table, stock over HTTP; the next table leaves the stock alone.
    gallery, folder = server.services.galleries["shop"].gallery, tmp_path / "t.csv"
    rows = "".join(f"{name},{number % 100}.5,{'SML'[number % 3]}\n" for number, name in enumerate(ids))
    folder.write_text("id,price,size\n" + rows)
    with Gallery.open(gallery.path, server.services.galleries["shop"].model) as writer:
        writer.sync(gallery.snapshot.folder, metadata=folder)
        assert owner.patch_image(ids[0], {"stock": 3, "price": 1}).metadata["stock"] == "3"
        report = writer.sync(gallery.snapshot.folder, metadata=folder)
    assert (report.metadata_changed, report.columns_changed) == (1, {"price": 1})
    assert shop.images({"stock": {"$gte": 1}}).images[0].metadata["price"] == "0.5"
    # A customer's query with price and size.
    where = {"price": {"$lt": 30}, "size": {"$in": ["S", "M"]}}
    found = shop.query(reference_ids=[ids[7]], texts=["make it red"], where=where, k=20)
    assert len(found.hits) == 20 and found.total == shop.images(where).total - (ids[7] in _ids(shop, where))
    assert all(float(hit.metadata["price"]) < 30 and hit.metadata["size"] in "SM" for hit in found.hits)
    # Through 500 hits, page by page: each image once.
    pages = [shop.query(texts=["in blue"], k=100, offset=start, rerank=0) for start in range(0, 500, 100)]
    assert len({hit.id for page in pages for hit in page.hits}) == 500


def _ids(shop, where):
    return {each.id for each in shop.images(where, limit=200).images}


def test_another_index_has_the_same_ten(server, front):
    shop = Client(front, READER)
    own = server.services.galleries["shop"].gallery.snapshot
    data = image(77, (40, 30), "JPEG")
    queries = [("make it red", {"texts": ["make it red"]}), (data, {"reference_images": [data]})]
    queries.append(((data, "with dots"), {"reference_images": [data], "texts": ["with dots"]}))
    vectors = shop.embed([query for query, _ in queries])
    for row, (_, fields) in zip(_search(own.vectors, vectors), queries, strict=True):
        hits = [hit.id for hit in shop.query(k=10, rerank=0, **fields).hits]
        assert [own.ids[place] for place in row] == hits


def _search(vectors, queries):
    """Return the ten nearest by inner product: of faiss where it is installed."""
    try:
        import faiss
    except ImportError:
        return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return index.search(np.ascontiguousarray(queries), 10)[1]


def test_rights_and_errors_have_types(server, front):
    shop, owner = Client(front, READER), Client(front, TOKEN)
    assert owner.put_image("new shelf/täsche.png", image(901), {"price": 9}).change == "added"
    for change in (
        lambda: shop.put_image("a.png", image(1)),
        lambda: shop.patch_image("new shelf/täsche.png", {}),
        lambda: shop.delete_image("new shelf/täsche.png"),
        lambda: Client(front).info(),
    ):
        with pytest.raises(AccessError):
            change()
    assert owner.patch_image("new shelf/täsche.png", {"price": None}).metadata == {}
    with sole_writer(server.services.galleries["shop"].gallery.path), pytest.raises(BusyError) as busy:
        owner.delete_image("new shelf/täsche.png")
    assert busy.value.retry_after == 1.0 and busy.value.error_type == "busy" and busy.value.request_id
    assert owner.delete_image("new shelf/täsche.png").change == "removed"
    with pytest.raises(MissingError, match="no image"):
        owner.delete_image("new shelf/täsche.png")
    with pytest.raises(RequestError, match="none of the words"):
        asyncio.run(AsyncClient(front, READER).query(texts=["zzz"]))
    with pytest.raises(UnreachableError, match="is nsfse serve running"):
        Client("http://127.0.0.1:9", timeout=5).info()


def test_a_front_of_another_site_may_ask(front):
    asks = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    status, headers = request(
        f"{front}/v1/query", "OPTIONS", asks | {"Access-Control-Request-Headers": "authorization"}
    )
    assert (status, headers["access-control-allow-origin"]) == (200, SITE)
