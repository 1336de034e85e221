"""Long documents as passages: where a document is cut that a model cannot read whole, and one score of all parts.

    tokens of a document   |------------------------------------|
    passages               [----------)                            0 … window
                                [----------)                       stride … stride + window
                                          …      [----------)      the last ends where the document ends

Each passage is scored beside the whole query, as if it were a document. The score of the document is the maximum, or
the mean of the best few (Dai and Callan, Deeper Text Understanding for IR with Contextual Neural Language Modeling,
SIGIR 2019, arXiv:1905.09217). Training, offline scoring and the service cut and join by the functions below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import ConfigError

MAX_PASSAGES = 1000
"""Bound of the number of passages of one document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passages:
    """The passages of a document that is longer than what the model reads of it beside a query."""

    most: int
    """Maximum number of passages of one document; text after the last is not read."""
    tokens: int = 0
    """Length of a passage in tokens of the document; 0 for all that the query leaves."""
    stride: int = 0
    """Number of tokens from the start of a passage to the start of the next; 0 for half a passage."""
    best: int = 1
    """Number of best passages whose mean score is the document's; 1 takes the maximum."""
    max_document_tokens: int = 0
    """Maximum number of tokens of a document that are read; 0 for no further bound."""

    def __post_init__(self) -> None:
        if not 1 < self.most <= MAX_PASSAGES:
            raise ConfigError(f"passages.most is {self.most}; it must be from 2 to {MAX_PASSAGES}")
        for name in ("tokens", "stride", "max_document_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"passages.{name} is {getattr(self, name)}; it must be 0, for the default, or more")
        if not 1 <= self.best <= self.most:
            raise ConfigError(f"passages.best is {self.best}; it must be from 1 to passages.most, {self.most}")
        if self.tokens and self.stride >= self.tokens:
            raise ConfigError(
                f"passages.stride is {self.stride} and passages.tokens {self.tokens}; the stride must be smaller, so "
                "that no sentence falls between two passages"
            )
        if self.tokens == 1:
            raise ConfigError("passages.tokens is 1; it must be 0, for all that the query leaves, or at least 2")

    def check(self, room: int) -> None:
        """Raises ConfigError where a passage does not fit beside the longest query, which leaves `room` tokens."""
        if self.tokens > room:
            raise ConfigError(
                f"passages.tokens is {self.tokens}; the longest query leaves {room} tokens for a document: lower it, "
                "or set it to 0 for all that the query leaves"
            )
        if self.stride >= room:
            raise ConfigError(
                f"passages.stride is {self.stride}; the longest query leaves passages of {room} tokens, and the "
                "stride must be smaller: lower it, or set it to 0 for half a passage"
            )

    def window(self, room: int) -> int:
        """Tokens of one passage beside a query that leaves `room` tokens."""
        return min(self.tokens or room, room)

    def step(self, room: int) -> int:
        """Tokens between the starts of two passages beside a query that leaves `room` tokens."""
        return self.stride or max(self.window(room) // 2, 1)

    def reach(self, room: int) -> int:
        """Maximum number of tokens of a document that are read beside a query that leaves `room` tokens."""
        reach = self.window(room) + (self.most - 1) * self.step(room)
        return min(reach, self.max_document_tokens) if self.max_document_tokens else reach

    def spans(self, tokens: int, room: int) -> list[tuple[int, int]]:
        """Start and end of each passage of a document, in tokens, in their order.

        Args:
            tokens: number of the document's tokens.
            room: tokens that the query leaves.
        """
        window, step = self.window(room), self.step(room)
        tokens = min(tokens, self.reach(room))
        starts = [*range(0, max(tokens - window, 0), step), max(tokens - window, 0)]
        return [(start, min(start + window, tokens)) for start in starts[: self.most]]

    def join(self, scores: Sequence[float]) -> float:
        """The score of a document from those of its passages, of which it has at least one."""
        if self.best == 1:
            return max(scores)
        best = sorted(scores, reverse=True)[: self.best]
        return sum(best) / len(best)

    def to_dict(self) -> dict[str, Any]:
        """All values, as files hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Passages":
        """The inverse of `to_dict`."""
        return cls(**fields)
