"""Turns token ids into a model's input: the special tokens around them and where they are cut.

Training writes a template into each exported bundle; serving reads it back. Both assemble inputs with
the functions below from ids that were made without special tokens, so a query is tokenised once for
all its documents and a document once for all its queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ConfigError
from pipeline.passages import Passages


@dataclass(frozen=True, kw_only=True, slots=True)
class PairTemplate:
    """The shape of a (query, document) input, such as `[CLS] query [SEP] document [SEP]`."""

    before: tuple[int, ...]
    """Special tokens ahead of the query."""
    between: tuple[int, ...]
    """Special tokens between query and document; RoBERTa has two."""
    after: tuple[int, ...]
    query_type: int = 0
    document_type: int = 1
    """Segment of the document and of `after`; RoBERTa has one segment only, so 0."""
    max_tokens: int
    """Maximum length of the whole input, special tokens included."""
    max_query_tokens: int
    """A longer query is cut; the document gets what the query leaves."""
    longest_first: bool = False
    """True cuts the longer of query and document until both fit, as transformers do; False keeps the query.

    A text is tokenised to `max_tokens` at most. Where both are longer than that, the document counts as the longer."""
    passages: Passages | None = None
    """The passages of a document that does not fit beside its query; None cuts the document at its end."""

    def __post_init__(self) -> None:
        if self.max_query_tokens + self.special_tokens >= self.max_tokens:
            raise ConfigError(
                f"max_query_tokens {self.max_query_tokens} and {self.special_tokens} special tokens leave no room "
                f"for a document in max_tokens {self.max_tokens}; lower max_query_tokens or raise max_tokens"
            )
        if self.passages:
            self.passages.check(self.passage_room(self.max_tokens))

    @property
    def special_tokens(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def document_room(self, query_tokens: int) -> int:
        """The number of document tokens that fit beside a query of this many tokens."""
        return self.max_tokens - self.special_tokens - min(query_tokens, self.max_query_tokens)

    def lengths(self, query_tokens: int, document_tokens: int) -> tuple[int, int]:
        """The numbers of tokens that are kept of a query and a document of this many tokens."""
        room = self.max_tokens - self.special_tokens
        if not self.longest_first:
            query = min(query_tokens, self.max_query_tokens)
            return query, min(document_tokens, room - query)
        if query_tokens + document_tokens <= room:
            return query_tokens, document_tokens
        shorter = min(query_tokens, document_tokens)
        if 2 * shorter > room:
            shorter = room // 2
        return (room - shorter, shorter) if query_tokens > document_tokens else (shorter, room - shorter)

    def passage_room(self, query_tokens: int) -> int:
        """Maximum length of a passage beside a query of this many tokens, so that no token of it is cut."""
        room = self.lengths(query_tokens, self.max_tokens)[1]
        return self.lengths(query_tokens, room)[1]  # Below the length of the query, `longest_first` cuts by one more.

    @property
    def document_tokens(self) -> int:
        """Maximum number of tokens of a document that are read, beside any query."""
        return max(self.max_tokens, self.passages.reach(self.max_tokens)) if self.passages else self.max_tokens

    @property
    def shared_query_tokens(self) -> int:
        """Greatest length of a query at which our input equals that of tokenizers that cut the longer text.

        transformers and sentence-transformers cut so (`longest_first`). A query up to half of the room keeps all tokens
        there beside any document; a longer one is cut once query and document together no longer fit.
        """
        return min(self.max_query_tokens, (self.max_tokens - self.special_tokens) // 2)

    def assemble(self, query: Sequence[int], document: Sequence[int]) -> tuple[list[int], list[int]]:
        """Input ids and segment ids, both (tokens,), at their exact length."""
        kept = self.lengths(len(query), len(document))
        query, document = query[: kept[0]], document[: kept[1]]
        ids = [*self.before, *query, *self.between, *document, *self.after]
        first = len(self.before) + len(query) + len(self.between)
        # BERT counts the separator after the query to the query's segment.
        return ids, [self.query_type] * first + [self.document_type] * (len(ids) - first)

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        if not self.longest_first:  # Files of models that keep the query are as they were before this field.
            del fields["longest_first"]
        if self.passages is None:
            del fields["passages"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "PairTemplate":
        fields = _tuples(fields)
        if fields.get("passages") is not None:
            fields["passages"] = Passages.from_dict(fields["passages"])
        return cls(**fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTemplate:
    """The shape of a single text, such as `[CLS] text [SEP]`; one segment, all zero."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    max_tokens: int
    prompt: str = ""
    """A text that stands before each text, such as "query: "; it is tokenised together with it."""

    def assemble(self, text: Sequence[int]) -> list[int]:
        """Input ids, (tokens,), at their exact length."""
        return [*self.before, *text[: self.max_tokens - len(self.before) - len(self.after)], *self.after]

    def prompted(self, texts: Sequence[str]) -> Sequence[str]:
        """The texts with the prompt before each, to be tokenised."""
        return [self.prompt + text for text in texts] if self.prompt else texts

    def to_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        if not self.prompt:  # Files of models without one are as they were before prompts were known.
            del fields["prompt"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TextTemplate":
        return cls(**_tuples(fields))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
