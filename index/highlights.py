"""Finds the terms of a query in a text, so that a page can mark them.

The text is split into terms as the lexical index splits documents. A word is marked whole: with an English stemmer,
"sort" marks "Sorts". Of words that dots, hyphens or underscores join, only those that match are marked: "groupby" marks
the end of "DataFrame.groupby". In scripts without spaces, such as Chinese, single characters are marked. A term that
more than half of the documents have says little about one of them; it is marked only where the query has no rarer term.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from index.analyzer import located

COMMON = 0.5
"""Largest share of the documents that may have a term which counts as rare."""

Span = tuple[int, int]
"""Start and end in a text, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTerms:
    """The terms of a query that a lexical index knows, and how that index splits texts into terms."""

    language: str
    """Language of the stemmer; empty for none."""
    version: int
    """Version of the rules that split texts into terms, as in `analyzer.VERSION`; an index keeps that of its build."""
    shares: Mapping[str, float]
    """Term → share of all documents that have it."""
    _located: Callable[[str], list[tuple[int, int, tuple[str, ...]]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_located", located(self.language, self.version))

    @property
    def marked(self) -> frozenset[str]:
        """The terms to mark: the rare ones, or all of them where none is rare."""
        rare = frozenset(term for term, share in self.shares.items() if share <= COMMON)
        return rare or frozenset(self.shares)

    def spans(self, text: str) -> list[Span]:
        """The parts of a text that the marked terms cover, in order; parts that overlap or touch are one span."""
        marked, spans = self.marked, list[Span]()
        if not marked:
            return spans
        for start, end, terms in self._located(text):
            if marked.isdisjoint(terms):
                continue
            if spans and start <= spans[-1][1]:
                spans[-1] = spans[-1][0], max(end, spans[-1][1])
            else:
                spans.append((start, end))
        return spans


def joined(parts: Sequence[QueryTerms]) -> QueryTerms | None:
    """The terms of one query in all shards of an index together; None without shards.

    A shard gives a term's share among the documents of all shards, so those that know a term give the same share.
    """
    if not parts:
        return None
    shares = {term: share for part in parts for term, share in part.shares.items()}
    return QueryTerms(language=parts[0].language, version=parts[0].version, shares=shares)
