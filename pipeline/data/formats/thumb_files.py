"""Reads the thumbs up and down of the search page, `thumbs.jsonl`, as judgments of source `page`.

A browser's last thumb on a result counts. Where more browsers find that a result fits than that it does not, the grade
is 1, where fewer, 0; a tie gives no judgment. `grades = [0, 3]` in the recipe's source maps the two to another scale.
"""

import logging
from collections import Counter
from pathlib import Path

import pyarrow as pa

from pipeline import thumbs
from pipeline.data.formats import row_locations, tables
from pipeline.data.formats.row_locations import FileRows
from pipeline.data.formats.tables import Tables
from pipeline.data.formats.text_files import STRING
from pipeline.errors import SchemaError
from pipeline.schema import PAGE
from pipeline.text import counted, read_lines
from pipeline.thumbs import Thumb

log = logging.getLogger(__name__)


def thumb_files(path: Path) -> list[Path]:
    """The file of thumbs, named itself or by its folder."""
    file = path if path.name == thumbs.FILE else path / thumbs.FILE
    return [file] if file.is_file() else []


def judgments_of_thumbs(path: Path) -> Tables:
    """Queries and judgments of a file of thumbs; it has no documents.

    Raises:
        SchemaError: not UTF-8, or no line is a thumb.
    """
    balance: Counter[tuple[str, str]] = Counter()
    lines: dict[tuple[str, str], int] = {}
    (file,) = thumb_files(path)
    last = _last_thumbs(file)
    for (_, query, doc_id), (number, thumb) in last.items():
        if thumb.thumb != "none":
            balance[query, doc_id] += 1 if thumb.thumb == "up" else -1
            lines.setdefault((query, doc_id), number)
    decided = {pair: votes for pair, votes in balance.items() if votes}
    ties = len(balance) - len(decided)
    log.info("%s: %s judged by thumbs, %d left out as a tie", path, counted(len(decided), "result"), ties)
    pairs = list(decided)
    texts = pa.chunked_array([pa.array([query for query, _ in pairs], STRING)])
    query_ids = tables.ids("q", texts)
    queries = pa.table({"query_id": query_ids, "text": texts})
    judgments = {
        "query_id": query_ids,
        "doc_id": pa.array([doc_id for _, doc_id in pairs], STRING),
        "grade": pa.array([int(votes > 0) for votes in decided.values()], pa.int64()),
        "split": tables.all_the_same(None, len(pairs)),
        "source": tables.all_the_same(PAGE, len(pairs)),
    }
    locations = row_locations.in_files([FileRows(file, len(pairs), lambda: [lines[pair] for pair in pairs])], path)
    first_queries, in_queries = tables.first_of(queries, "query_id", locations=locations)
    return Tables(
        queries=first_queries,
        judgments=pa.table(judgments),
        locations={"queries": in_queries, "judgments": locations},
    )


def _last_thumbs(file: Path) -> dict[tuple[str, str, str], tuple[int, Thumb]]:
    """The last thumb of each voter, query and document with its line, in the order of the first.

    A line that is no thumb, as one that a power cut tore, is left out and counted in the log.

    Raises:
        SchemaError: no line is a thumb.
    """
    last: dict[tuple[str, str, str], tuple[int, Thumb]] = {}
    unreadable: list[str] = []
    for number, line in read_lines(file):
        try:
            thumb = Thumb.from_json(line)
        except ValueError as error:
            unreadable.append(f"line {number}: {error}")
            continue
        last[thumb.voter, thumb.query, thumb.doc_id] = number, thumb
    if unreadable and not last:
        raise SchemaError(f"{file}, {unreadable[0]}; name a file that the service wrote (RELEVANCE_THUMBS)")
    if unreadable:
        lines = counted(len(unreadable), "line")
        log.warning("%s: leaves out %s without a thumb, the first is %s", file, lines, unreadable[0])
    return last
