"""Twenty queries of each protocol of a query set as contact sheets.

    python benchmarks/look.py GALLERY SET OUT [SEED]

GALLERY was indexed from the set's images; sheets are written as OUT/PROTOCOL.png and .html.
"""

import json
import sys
from pathlib import Path

from nsfse.demo.contact_sheet import write_contact_sheet

QUERIES = 20


def main() -> None:
    """Write the sheets."""
    gallery, folder, out = map(Path, sys.argv[1:4])
    seed = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    out.mkdir(parents=True, exist_ok=True)
    protocols = {json.loads(line)["protocol"] for line in (folder / "queries.jsonl").read_text("utf-8").splitlines()}
    for protocol in sorted(protocols):
        write_contact_sheet(gallery, None, folder, out / protocol, protocol=protocol, queries=QUERIES, seed=seed)
        print(out / f"{protocol}.png")


if __name__ == "__main__":
    main()
