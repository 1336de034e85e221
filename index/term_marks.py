"""Where the terms of a query stand in a text, by the analysis with which its index finds documents.

A word is marked whole, a name where its matching part stands, and scripts without spaces by character. A term that more
than half of the documents have weighs next to nothing; it is marked only where the query has no rarer one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from index.analyzer import located

COMMON = 0.5
"""Share of the documents from which on a term is marked only where the query has no rarer one."""

Span = tuple[int, int]
"""Start and end in a text, in characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryTerms:
    """The terms of a query that an index knows, and the analysis of the index."""

    language: str
    """Language of the stemmer; empty for none."""
    version: int
    """Version of the analysis."""
    shares: Mapping[str, float]
    """Term → share of all documents that have it."""
    _located: Callable[[str], list[tuple[int, int, tuple[str, ...]]]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_located", located(self.language, self.version))

    @property
    def marked(self) -> frozenset[str]:
        """The terms that are marked."""
        rare = frozenset(term for term, share in self.shares.items() if share <= COMMON)
        return rare or frozenset(self.shares)

    def spans(self, text: str) -> list[Span]:
        """Where the marked terms stand in a text: ascending, apart; neighbours are one span."""
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
    """The terms that any shard knows; None where there are none.

    Each shard counts the documents of all, so the share of a term is the same in all that know it.
    """
    if not parts:
        return None
    shares = {term: share for part in parts for term, share in part.shares.items()}
    return QueryTerms(language=parts[0].language, version=parts[0].version, shares=shares)
