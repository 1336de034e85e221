"""The passage of a long document that a search result shows: the one that the ranker found to fit the query best.

Where the ranker read no passages of a document, it is the one that the encoder found nearest.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from index.document_store import Document
from index.vector_rows import FoundPassage
from pipeline import text
from serving.runtime.deadline import Deadline
from serving.runtime.tokenizer import RuntimeTokenizer
from serving.scoring.document_scores import DocumentScore

MAX_PASSAGE_CHARS = 10_000
"""Characters of a passage that a result holds; 512 tokens of English have about 2,500."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestPassage:
    """The passage of a document that fits the query best."""

    text: str
    start: int
    """Where it begins in the document's text, in characters."""
    end: int
    number: int
    """Number of the passage within its document, from 1."""
    of: int
    """Number of passages that the model read."""


def best_passages(
    tokeniser: RuntimeTokenizer,
    documents: Mapping[int, Document],
    scores: Mapping[int, DocumentScore],
    deadline: Deadline,
) -> dict[int, BestPassage]:
    """The best passage of each document that was read in passages, by row.

    Args:
        tokeniser: the ranker's.
        documents: row → document, of those that are shown.
        scores: row → the ranker's score; documents without a score have no passage.

    Raises:
        DeadlineError: the deadline has passed.
        ClientGoneError: the client has closed the connection.
    """
    passages = {}
    for row, document in documents.items():
        score = scores.get(row)
        if score is None or not score.passages:
            continue
        deadline.check()
        part = score.passages[score.best]
        body = text.document_text(document.title, document.text)
        start, end = tokeniser.characters(body, part.start, part.end)
        chosen = FoundPassage(start=start, end=end, number=score.best + 1, of=len(score.passages))
        passages[row] = _shown(document, chosen)
    return passages


def nearest_passages(documents: Mapping[int, Document], nearest: Mapping[int, FoundPassage]) -> dict[int, BestPassage]:
    """The passages that the encoder found nearest, by row, of those documents that are shown."""
    return {row: _shown(documents[row], passage) for row, passage in nearest.items() if row in documents}


def _shown(document: Document, passage: FoundPassage) -> BestPassage:
    """Converts a passage of title and text together, as the models read them, into one of the text alone."""
    title = len(text.document_text(document.title, document.text)) - len(document.text)  # Read ahead of the text.
    start, end = (max(position - title, 0) for position in (passage.start, passage.end))
    end = min(end, start + MAX_PASSAGE_CHARS)
    return BestPassage(text=document.text[start:end], start=start, end=end, number=passage.number, of=passage.of)
