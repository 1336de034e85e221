"""One document of a release, opened whole, with the documents nearest to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.runtime.deadline import Deadline
from serving.scoring.contents import SearchableContents
from serving.scoring.snippets import snippets

MAX_SHOWN_CHARS = 1_000_000
"""Characters of a document that is opened whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbour:
    """A document near to another one."""

    doc_id: str
    title: str
    snippet: str
    score: float
    """Cosine of both vectors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenedDocument:
    """One document whole, with its fields and neighbours."""

    doc_id: str
    title: str
    text: str
    cut: bool
    """Whether the text is longer than MAX_SHOWN_CHARS."""
    fields: Mapping[str, Any]
    neighbours: list[Neighbour]
    """Nearest first, by the vectors of the index."""
    release: str


def open_document(
    contents: SearchableContents, doc_id: str, *, neighbours: int, deadline: Deadline, release: str
) -> OpenedDocument | None:
    """A whole document with those nearest to it; None where there is no such document.

    Raises:
        DeadlineError: the time is over.
    """
    store, semantic = contents.documents, contents.semantic
    row = store.row_of(doc_id)
    if row is None:
        return None
    document = store.get(row)
    deadline.check()
    hits = semantic.neighbours(row, neighbours) if neighbours else []
    near = dict(zip((hit.row for hit in hits), store.get_many([hit.row for hit in hits]), strict=True))
    cuts = snippets({row: item.text for row, item in near.items()}, document.title, deadline)
    return OpenedDocument(
        doc_id=document.doc_id,
        title=document.title,
        text=document.text[:MAX_SHOWN_CHARS],
        cut=len(document.text) > MAX_SHOWN_CHARS,
        fields=document.extra,
        neighbours=[
            Neighbour(doc_id=hit.doc_id, title=near[hit.row].title, snippet=cuts[hit.row], score=float(hit.score))
            for hit in hits
        ],
        release=release,
    )
