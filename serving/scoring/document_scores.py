"""The part of a document that a request lets the ranker read, and the score with the passage that it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.passages import Passages
from serving.runtime.passage_inputs import PassageInput


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentLimits:
    """The part of each document that a request wants to be read; what it leaves open is as the ranker has it."""

    max_passages: int | None = None
    """Maximum number of passages of a document; 1 cuts it at its end. None leaves it to the release."""
    max_tokens: int | None = None
    """Maximum number of tokens of a document; None for no bound of the request's own."""

    def passages(self, default: Passages | None) -> Passages | None:
        """The passages in which a ranker reads documents for the request.

        Args:
            default: its passages where the request says nothing.
        """
        if self.max_passages == 1 or (self.max_passages is None and default is None):
            return None
        most = self.max_passages or (default.most if default else 0)
        passages = replace(default, most=most, best=min(default.best, most)) if default else Passages(most=most)
        bounds = filter(None, (self.max_tokens, passages.max_document_tokens))
        return replace(passages, max_document_tokens=min(bounds, default=0))


@dataclass(frozen=True, slots=True)
class DocumentScore:
    """The raw score of a document, and the passage that fits the query best."""

    value: float
    best: int = 0
    """Index of the passage with the highest score, the first of equals."""
    passages: Sequence[PassageInput] = ()
    """All passages in their order; none where the document was not read in passages."""
