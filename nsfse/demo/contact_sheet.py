"""Queries of a query set, chosen by a seed, as a contact sheet and a page: what a score does not show."""

import json
import random
from pathlib import Path
from typing import Any

HITS = 6


def write_contact_sheet(
    gallery: Path, bundle: Path | None, folder: Path, out: Path, *, protocol: str, queries: int, seed: int
) -> None:
    """Write OUT.png and OUT.html: some queries of a query set with their hits, targets framed.

    Args:
        gallery: A gallery of the set's images under the same names.
        bundle: Its bundle; by default the one that the gallery remembers.
        folder: The query set.
        out: Path of both files without a suffix.
        protocol: The protocol that queries are chosen from.
        queries: How many.
        seed: Chooses them.

    Raises:
        NsfseError: The gallery cannot be opened or searched.
        OutputError: `out` cannot be written.
    """
    from nsfse.open import image_file, open_retriever
    from nsfse_runtime.visualize.contact_sheet import contact_sheet
    from nsfse_runtime.visualize.html_page import html_page
    from nsfse_runtime.visualize.rows import sheet_row

    retriever = open_retriever(gallery, bundle)
    with retriever.reading() as view:
        names = {Path(name).stem: name for name in view.ids()}
    rows = []
    for query in _chosen(folder, protocol, queries, seed):
        reference, text = names[query["reference"]], query["texts"][0]
        hits = retriever.query(reference, text, k=HITS).hits
        right = {names[target] for target in query["targets"] if target in names}
        rows.append(sheet_row(image_file(view, reference), text, hits, right=right, note=reference))
    title = f"{protocol}: {len(rows)} queries, seed {seed}"
    contact_sheet(rows, out.with_suffix(".png"), title=title)
    html_page(rows, out.with_suffix(".html"), title=title, note="right answers are framed green")


def _chosen(folder: Path, protocol: str, count: int, seed: int) -> list[dict[str, Any]]:
    lines = (folder / "queries.jsonl").read_text("utf-8").splitlines()
    queries = [query for query in map(json.loads, lines) if query["protocol"] == protocol]
    return random.Random(seed).sample(queries, min(count, len(queries)))
