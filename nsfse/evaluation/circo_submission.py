"""CIRCO's test-server file: {query id: the numbers of 50 images}, best first."""

import json
from pathlib import Path

from nsfse.data import EvaluationProtocol
from nsfse.data.datasets.file_index import counted
from nsfse.evaluation.results import ProtocolResult
from nsfse_runtime.atomic_write import replacing
from nsfse_runtime.errors import DataError, OutputError

NAMES = 50
FILE = "circo.json"


def check_circo_split(protocol: EvaluationProtocol) -> None:
    """Raise DataError where no valid file can be made: the gallery lacks images, or ids are not those of the server."""
    lacking = max(protocol.missing, len(protocol.missing_ids))
    ids = sorted(int(query.pairid) for query in protocol.queries)
    fault = ""
    if lacking:
        fault = f"{counted(lacking, 'image')} of its gallery {'is' if lacking == 1 else 'are'} missing"
    elif len(protocol.gallery) < NAMES:
        fault = f"its gallery has {counted(len(protocol.gallery), 'image')}, and {NAMES} are sent"
    elif ids != list(range(len(ids))):
        fault = "its query ids are not 0, 1, 2 ..."
    if fault:
        raise DataError(f"{protocol.name}: {fault}; the file would be refused by the test server, so none is written")


def write_circo_submission(result: ProtocolResult, folder: Path) -> tuple[Path, ...]:
    """Write the file for the test server into `folder`, made if need be, and return its path.

    Raises DataError (a query is not answered in full) or OutputError (it cannot be written, or is something else).
    """
    check_circo_split(result.protocol)
    gallery = result.protocol.gallery
    answers = {
        ranked.query.pairid: [int(gallery[row]) for row in ranked.rows[:NAMES].tolist()] for ranked in result.rankings
    }
    short = sorted(result.protocol.queries, key=lambda query: len(answers.get(query.pairid, ())))[:1]
    if short and len(answers.get(short[0].pairid, ())) < NAMES:
        raise DataError(f"query {short[0].pairid} has no {NAMES} answers; run `nsfse data check circo`")
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(answers), "utf-8")
    except OSError as error:
        raise OutputError(f"cannot write into {folder} ({error.strerror}); name another folder") from error
    return (path,)
