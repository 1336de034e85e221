"""Long documents cut into passages: for a ranker, which reads each beside the query, and for an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from pipeline.passages import Passages
from pipeline.tokens import PairTemplate, TextTemplate
from serving.runtime.items import Item
from serving.runtime.tokenizer import RuntimeTokenizer


@dataclass(frozen=True, slots=True)
class PassageInput:
    """A part of a document, or the whole of it, beside a query."""

    template: PairTemplate
    query: Sequence[int]
    """(query tokens,), without special tokens."""
    ids: Sequence[int]
    """(passage tokens,), without special tokens."""
    start: int = 0
    """Index of its first token in the document."""
    uncut: bool = True
    """Whether the document fits beside the query, so that it is not cut."""

    @property
    def end(self) -> int:
        """Index in the document of the first token after the passage."""
        return self.start + len(self.ids)

    @property
    def tokens(self) -> int:
        """Length of the model's input."""
        return self.template.special_tokens + sum(self.template.lengths(len(self.query), len(self.ids)))

    def item(self) -> Item:
        """The model's input."""
        return Item(*self.template.assemble(self.query, self.ids))


@dataclass(frozen=True, slots=True)
class PassageCutter:
    """Cuts documents for one ranker."""

    tokeniser: RuntimeTokenizer
    template: PairTemplate
    passages: Passages
    remember: bool = True
    """Whether the texts' ids are kept for the next request, and those kept are used."""
    check: Callable[[], None] | None = None
    """A function called between two texts; raises when the request's deadline has passed."""

    def cut(self, query: str, documents: Sequence[str]) -> list[list[PassageInput]]:
        """Each document whole, where it fits beside the query, else its passages in order.

        Raises:
            InvalidRequestError: a text is too long; see `RuntimeTokenizer.ids`.
        """
        (query_ids,) = self._ids([query], self.template.max_tokens)
        room = self.template.passage_room(len(query_ids))
        # The same number for every query, so that the remembered ids of a document serve all queries.
        longest = replace(self.template, passages=self.passages).document_tokens
        inputs = []
        for ids in self._ids(documents, longest):
            if self.template.lengths(len(query_ids), len(ids))[1] == len(ids):
                inputs.append([PassageInput(self.template, query_ids, ids)])
                continue
            spans = self.passages.spans(len(ids), room)
            inputs.append(
                [PassageInput(self.template, query_ids, ids[begin:end], begin, uncut=False) for begin, end in spans]
            )
        return inputs

    def _ids(self, texts: Sequence[str], max_tokens: int) -> list[Sequence[int]]:
        return self.tokeniser.ids(texts, max_tokens, remember=self.remember, check=self.check)


@dataclass(frozen=True, slots=True)
class TextCutter:
    """Cuts documents for one encoder, into parts of their text."""

    tokeniser: RuntimeTokenizer
    template: TextTemplate
    """The encoder's input for a document."""
    passages: Passages
    room: int = field(init=False)
    """Maximum length of a passage in tokens: that of the input without special tokens and prompt."""

    def __post_init__(self) -> None:
        """Raises ConfigError where a passage does not fit into the encoder's input."""
        prompt = len(self.tokeniser.ids([self.template.prompt], self.template.max_tokens, remember=False)[0])
        room = self.template.max_tokens - len(self.template.before) - len(self.template.after) - prompt
        object.__setattr__(self, "room", room)
        self.passages.check(room)

    def cut(self, documents: Sequence[str], check: Callable[[], None] | None = None) -> list[list[tuple[int, int]]]:
        """Start and end of each passage of each document, in characters; a document that fits the input is one passage.

        Args:
            check: called before each document; raises when the request's deadline has passed.

        Raises:
            InvalidRequestError: a text is too long; see `RuntimeTokenizer.ids`.
        """
        room = self.room
        # One token more than the room shows that a document does not fit.
        longest = max(room + 1, self.passages.reach(room))
        spans = []
        for document in documents:
            if check is not None:
                check()
            offsets = self.tokeniser.offsets(document, longest)
            if len(offsets) <= room:
                spans.append([(0, len(document))])
                continue
            parts = self.passages.spans(len(offsets), room)
            spans.append([(offsets[first][0], offsets[last - 1][1]) for first, last in parts])
        return spans
