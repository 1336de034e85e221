"""The embedded default: Python's own documentation as documents, queries and grades.

A **document** is the docstring of one module, class, function or method of the standard library or an installed
package. Its title is the dotted name, its text the docstring without the summary and the See Also section. A **query**
is a summary, the authors' one line about the object. Documents contain neither summaries nor the authors' references.
The summary stands in a column of its own, which no model reads; `with_summaries` puts it back into documents that are
served.

**Grades** come from the authors:

3   the document of the summary, and another with the same summary
2   a document that its See Also section names
1   a document whose See Also section names it, or that has the same last name in the same package (`Series.cumsum` for
    `DataFrame.cumsum`), or whose own summary, which no model sees, has most of its rarer words in common

All other pairs are unjudged. No package is imported or downloaded; the same installed packages give the same tables.
"""

import functools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import text
from pipeline.config import SourceConfig
from pipeline.data.formats import docstrings, tables
from pipeline.data.formats.docstring_entries import Entry, entries_of
from pipeline.data.formats.tables import FoundSource, Tables
from pipeline.data.formats.text_files import STRING
from pipeline.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

NAME = "python_api"

VERSION = 3
"""Version of the rules here and in `docstring_entries`, part of the digest; raise it when the same sources give other
tables."""

MIN_QUERIED_WORDS = 40
"""Words that a document has at least, besides its summary, for the summary to be a query."""

QUERY_WORDS = range(3, 31)
"""Lengths of a query, in words."""

MAX_SAME_SUMMARY = 3
"""Documents that share a summary at most; a more frequent one ("Fit the model.") is no query."""

MAX_SAME_NAME = 8
"""Documents of a package with one last name at most; a more frequent one (`fit`, `run`) relates none of them."""

MIN_OVERLAP = 0.6
"""Share of the weight of two summaries' words that is common, from which the summaries are near."""

MAX_RELATED = 12
"""Documents judged for one query at most; a longer See Also section is a table of contents."""

SUMMARY = "summary"
"""Column of the documents with the summary that was taken out of each."""

log = logging.getLogger(__name__)

_NOT_QUERIES = re.compile(
    r"\W|\w+:|(alias|synonym|deprecated|see|same as|refer to|internal|implementation of|wrapper (for|around)|this|note"
    r"|todo|overrid\w+|inherit\w*|copyright|licen[sc]e|author|test)\b",
    re.IGNORECASE,
)
_STOP = frozenset(
    "a an the of to for in on and or by with from as is are be this that it its return returns given if at into "  # noqa: SIM905
    "using which each all object".split()
)


def read(roots: Sequence[Path] = ()) -> Tables:
    """Documents, queries and judgments of the installed packages; about 20,000 documents in a full installation.

    Args:
        roots: folders of packages to read instead of this Python's own.
    """
    import pyarrow as pa

    entries = _read_entries(roots)
    documents = _documents(entries)
    queries, judgments = judge(entries)
    sources = ["human"] * len(judgments["grade"])
    counts = (len(documents), "document"), (len(queries["text"]), "query"), (len(sources), "judgment")
    log.info("%s", ", ".join(counted(count, noun) for count, noun in counts))
    return Tables(documents=documents, queries=pa.table(queries), judgments=pa.table({**judgments, "source": sources}))


def read_documents(roots: Sequence[Path] = ()) -> "pa.Table":
    """The documents of `read` alone, which takes half of its time."""
    return _documents(_read_entries(roots))


def _documents(entries: Sequence[Entry]) -> "pa.Table":
    import pyarrow as pa

    names = [entry.name for entry in entries]
    bodies, summaries = [entry.body for entry in entries], [entry.summary for entry in entries]
    return pa.table({"doc_id": names, "title": names, "text": bodies, SUMMARY: summaries})


def _read_entries(roots: Sequence[Path]) -> list[Entry]:
    folders = roots or docstrings.installed()
    return _entries(tuple(folders), digest(folders))


@functools.lru_cache(maxsize=1)
def _entries(folders: tuple[Path, ...], _files: str) -> list[Entry]:
    """The entries of these folders; read once while their files, by `digest`, are the same."""
    return entries_of(docstrings.read(folders))


def with_summaries(documents: "pa.Table") -> "pa.Table":
    """The documents with their summaries back at the head of their texts, as a person searches for them."""
    import pyarrow.compute as pc

    summaries, bodies = (pc.cast(pc.fill_null(documents[name], ""), STRING) for name in (SUMMARY, "text"))
    texts = tables.joined(".\n\n", summaries, bodies)
    column = documents.column_names.index("text")
    return documents.set_column(column, "text", texts).drop_columns([SUMMARY])


def find(config: SourceConfig, _root: Path) -> FoundSource | None:
    """The source of format `python_api`; see `tables.Format`."""
    return FoundSource(NAME, NAME, digest, read) if config.format == NAME else None


def digest(roots: Sequence[Path] = ()) -> str:
    """A hash of all files that `read` would read; takes a tenth of its time."""
    return docstrings.digest(roots or docstrings.installed(), f"{NAME} {VERSION}")


def judge(entries: Sequence[Entry]) -> tuple[dict[str, list[str]], dict[str, list[Any]]]:
    """Columns of the queries made from these documents, by name, and columns of their judgments."""
    same_summary: dict[str, list[int]] = defaultdict(list)
    for row, entry in enumerate(entries):
        same_summary[text.normalise(entry.summary)].append(row)
    related = _Related(entries)
    queries: dict[str, list[str]] = {"query_id": [], "text": []}
    judgments: dict[str, list[Any]] = {"query_id": [], "doc_id": [], "grade": []}
    for rows in same_summary.values():
        entry = entries[rows[0]]
        if len(rows) > MAX_SAME_SUMMARY or not _is_query(entry):
            continue
        queries["query_id"].append(entry.name)
        queries["text"].append(entry.summary)
        for row, grade in related.grades(rows):
            judgments["query_id"].append(entry.name)
            judgments["doc_id"].append(entries[row].name)
            judgments["grade"].append(grade)
    return queries, judgments


def _is_query(entry: Entry) -> bool:
    words = entry.summary.split()
    return (
        len(words) in QUERY_WORDS
        and len(entry.body.split()) >= MIN_QUERIED_WORDS
        and len(_content(entry.summary)) >= 2
        and not _NOT_QUERIES.match(entry.summary)
    )


def _content(summary: str) -> frozenset[str]:
    """The words of a summary that carry meaning, a plural as its singular."""
    words = re.findall(r"[^\W\d_]{2,}", summary.casefold())
    return frozenset(word.removesuffix("s") for word in words if word not in _STOP)


class _Related:
    """Relations between documents, by the authors' references, names and summaries."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.names: dict[str, int] = {}
        """Every dotted name of a document → its row; a title before an alias."""
        self.ends: dict[tuple[str, str], list[int]] = defaultdict(list)
        """(package, end of a dotted name) → rows."""
        self.words = [_content(entry.summary) for entry in entries]
        self.with_word: dict[str, list[int]] = defaultdict(list)
        for row, entry in enumerate(entries):
            self.names[entry.name] = row
            package, *parts = entry.name.split(".")
            for start in range(len(parts)):
                self.ends[package, ".".join(parts[start:])].append(row)
            for word in self.words[row]:
                self.with_word[word].append(row)
        self.weight = {word: math.log(1 + len(entries) / len(rows)) for word, rows in self.with_word.items()}
        """Word → its weight; a rare word weighs more, as `NOT` in "the element-wise NOT of the given tensor"."""
        for row, entry in enumerate(entries):
            for alias in entry.aliases:
                self.names.setdefault(alias, row)
        self.forward = [self._referred(entry) for entry in entries]
        self.back: dict[int, list[int]] = defaultdict(list)
        for row, rows in enumerate(self.forward):
            for other in rows:
                self.back[other].append(row)
        self.last = [(entry.name.partition(".")[0], entry.name.rpartition(".")[2]) for entry in entries]

    def _referred(self, entry: Entry) -> list[int]:
        """Rows that the entry's See Also names, in its order."""
        rows = (self._find(reference, entry.name) for reference in entry.see_also)
        return list(dict.fromkeys(row for row in rows if row is not None and row != self.names[entry.name]))

    def _find(self, reference: str, name: str) -> int | None:
        """The document that a reference in the docstring of `name` means, looked up from the inside outwards."""
        parts = name.split(".")
        for length in range(len(parts), -1, -1):
            row = self.names.get(".".join([*parts[:length], reference]))
            if row is not None:
                return row
        rows = self.ends.get((parts[0], reference), [])
        return rows[0] if len(rows) == 1 else None

    def grades(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """(row, grade) of the query that these documents share, best grade first, at most MAX_RELATED."""
        grades = dict.fromkeys(rows, 3)
        for row in rows:
            for other in self.forward[row]:
                grades.setdefault(other, 2)
        for row in rows:
            namesakes = self.ends[self.last[row]]
            near = (*self._alike(row), *self.back[row], *(namesakes if len(namesakes) <= MAX_SAME_NAME else ()))
            for other in near:
                grades.setdefault(other, 1)
        return list(grades.items())[:MAX_RELATED]

    def _alike(self, row: int) -> list[int]:
        """Rows whose summaries share most words with this one's, the nearest first."""
        words = self.words[row]
        total = sum(self.weight[word] for word in words)
        # A near summary must have one of the rarest words that together exceed the weight that may differ.
        rarest, spent = [], 0.0
        for word in sorted(words, key=lambda word: (-self.weight[word], word)):
            if spent > (1 - MIN_OVERLAP) * total:
                break
            rarest.append(word)
            spent += self.weight[word]
        overlap = {}
        for other in {other for word in rarest for other in self.with_word[word]} - {row}:
            common = words & self.words[other]
            union = words | self.words[other]
            if len(common) > 1:
                overlap[other] = math.fsum(map(self.weight.__getitem__, common)) / math.fsum(
                    map(self.weight.__getitem__, union)
                )
        near = [other for other, share in overlap.items() if share >= MIN_OVERLAP]
        return sorted(near, key=lambda other: (-overlap[other], other))
