"""A shop's catalogue: images with a table of what they are, filters, exclusions, and many customers at once.

    python examples/shop_catalogue.py BUNDLE IMAGES TABLE.csv

The table has a column `id` or `file` and any others; `nsfse data draw` makes such a folder to try it on.
"""

import sys
from collections.abc import Iterator

from nsfse_runtime import Gallery, NsfseError, Query, Result, Retriever, open_model


def open_shop(bundle_folder: str, images: str, table: str) -> Retriever:
    """Index the catalogue, or update its index, and return a retriever."""
    model = open_model(bundle_folder)
    gallery = Gallery.open(f"{images.rstrip('/')}.gallery", model, create=True)
    report = gallery.sync(images, metadata=table)
    print(f"{len(gallery)} images, {report.encoded} new, {len(report.unmatched)} rows without an image")
    return Retriever(model, gallery)


def alternatives(shop: Retriever, product: str, text: str, exclude: str) -> Result:
    """Find five products of `product`'s category that match `text` and not `exclude`."""
    snapshot = shop.gallery.snapshot
    category = snapshot.metadata[snapshot.row(product)].get("category")
    where = {"category": category} if category else None
    return shop.query(product, text, k=5, where=where, negative_texts=[exclude])


def answers(shop: Retriever, edits: list[tuple[str, str]]) -> Iterator[str]:
    """Answer a batch of queries; a query that fails does not affect the others."""
    queries = [Query(references=(product,), texts=(text,), k=3) for product, text in edits]
    for (product, text), result in zip(edits, shop.answer(queries), strict=True):
        line = str(result) if isinstance(result, NsfseError) else ", ".join(hit.id for hit in result.hits)
        yield f"{product}, {text!r}: {line}"


def main(bundle_folder: str, images: str, table: str) -> None:
    """Query a catalogue by its first products."""
    shop = open_shop(bundle_folder, images, table)
    snapshot = shop.gallery.snapshot
    first, second, *_ = snapshot.ids
    print(f"{first}, in red, without stripes:")
    for hit in alternatives(shop, first, "in red", "stripes").hits:
        print(f"  {hit.score:6.2f}  {hit.id}  {snapshot.metadata[snapshot.row(hit.id)]}")
    print(*answers(shop, [(first, "make it blue"), (second, "with dots"), ("sold out", "in red")]), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except NsfseError as error:
        sys.exit(str(error))
