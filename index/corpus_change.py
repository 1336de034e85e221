"""Compares the documents of two stores, to see whether a source that was read again gave what it should.

A sample of at most SAMPLE documents of each side is looked at, so the cost does not grow with the corpus; smaller
collections are compared whole.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.document_store import Document, DocumentStore

SAMPLE = 1000
"""Documents of each side that are compared; a share of 20 % is then known within 2.5 points (95 %)."""
SHORTENED = 1 / 3
"""A text that keeps less than this share of its characters is shortened."""
FEW_FRESH = 0.1
"""Share of new documents plus share of changed ones, up to which the texts are not compared with each other."""
COMMON = 0.1
"""A word pair is common if it stands in at least this share of the texts."""
LEAST_COMMON = 3
"""Minimum number of texts with a common word pair, however few texts there are."""
ALIKE = 0.5
"""A text is alike the others if at least this share of its word pairs is common. Of 2,000 documents of any of twelve
real sets at most 0.2 % are; of error pages that differ in an address or a number, all."""
TEXT_CHARS = 4000
"""Characters of a text that are compared."""

# Scripts without spaces by character, other words without digits, as error pages differ in times and numbers.
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusChange:
    """The change from the documents of one store to those of another, as shares from 0 to 1."""

    ids_kept: float
    """Share of the earlier documents whose id is there still."""
    changed: float
    """Share of the documents whose id is there still that have another title or text."""
    shortened: float
    """Share of the documents whose id is there still that have less than a third of their text left."""
    alike: tuple[float, float]
    """Share of near-duplicate texts (`alike_share`), before and after; 0 and 0
    where hardly a document is new or changed."""
    fields_gone: tuple[str, ...]
    """Columns that earlier documents had and none has now; a filter by them is refused."""


def compare(before: DocumentStore, after: DocumentStore) -> CorpusChange:
    """The change from one store's documents to another's."""
    earlier = before.get_many(_sample(before))
    counterparts = [after.row_of(document.doc_id) for document in earlier]
    rows = [row for row in counterparts if row is not None]
    kept = [document for document, row in zip(earlier, counterparts, strict=True) if row is not None]
    pairs = list(zip(kept, after.get_many(rows), strict=True))
    changed = [(old, new) for old, new in pairs if (old.title, old.text) != (new.title, new.text)]
    shortened = [pair for pair in changed if _length(pair[1]) < SHORTENED * _length(pair[0])]
    later = after.get_many(_sample(after))
    added = [document for document in later if before.row_of(document.doc_id) is None]
    alike = (0.0, 0.0)
    if _share(added, later) + _share(changed, pairs) > FEW_FRESH:
        alike = (alike_share([_body(item) for item in earlier]), alike_share([_body(item) for item in later]))
    present = set(after.fields())
    return CorpusChange(
        ids_kept=_share(kept, earlier),
        changed=_share(changed, pairs),
        shortened=_share(shortened, pairs),
        alike=alike,
        fields_gone=tuple(name for name in before.fields() if name not in present),
    )


def alike_share(texts: Sequence[str]) -> float:
    """Share of the texts at least half of whose word pairs stand in a tenth of all texts.

    Repeated texts are alike, and so are pages made from one short template: "access denied", "page not found".
    """
    by_text = [_word_pairs(text) for text in texts]
    holders = Counter(pair for pairs in by_text for pair in set(pairs))
    common = max(COMMON * len(texts), LEAST_COMMON)
    alike = [pairs for pairs in by_text if sum(holders[pair] >= common for pair in pairs) >= ALIKE * len(pairs)]
    return _share(alike, by_text)


def _body(document: Document) -> str:
    return document.text or document.title


def _length(document: Document) -> int:
    return len(document.title) + len(document.text)


def _word_pairs(text: str) -> list[tuple[str, str]]:
    words = _WORD.findall(text[:TEXT_CHARS].casefold())
    return list(zip(["", *words], [*words, ""], strict=True))


def _sample(store: DocumentStore) -> list[int]:
    """Draws SAMPLE rows, or all where there are fewer; they ascend, and depend on the number of documents alone."""
    rows = np.random.default_rng(0).permutation(len(store))[:SAMPLE]
    return sorted(rows.tolist())


def _share(part: Sequence[object], sample: Sequence[object]) -> float:
    return len(part) / max(len(sample), 1)
