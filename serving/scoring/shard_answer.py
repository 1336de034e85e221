"""The answer of a shard to POST /candidates: its form, and what must hold before the asking service uses it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.shards import shard_of


class StrictModel(BaseModel):
    """A part of an answer: a value of another type is refused, and so is a number that is not finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class NearestPassage(StrictModel):
    """A passage of a document as the models read it, title first."""

    start: int
    end: int
    number: int = Field(description="From 1.")
    of: int


class KnownTerms(StrictModel):
    """The terms of the query that the index knows, by the analysis of this language and version."""

    language: str
    version: int
    shares: dict[str, float] = Field(description="Term → share of the documents of all shards that have it.")


class ShardCandidate(StrictModel):
    """One document of a shard with its first-stage scores."""

    row: int = Field(description="Its row among the documents of all shards.")
    doc_id: str
    title: str
    text: str
    fields: dict[str, Any]
    bm25: float
    cosine: float | None
    terms: dict[str, float]
    features: dict[str, float] = Field(description="Score by each single field of `features`.")
    passage: NearestPassage | None = Field(
        description="Where the passage nearest to the vector stands; null where the document has one vector or none."
    )


class CandidatesAnswer(StrictModel):
    """The documents that a shard finds by BM25 and by the encoder."""

    release: str
    collection: str = Field(description="Fingerprint of the documents of all shards, and of how they are indexed.")
    shard: int = Field(description="From 0.")
    known_filter: bool = Field(description="Whether the shard has documents with the fields of `filters`.")
    field_names: list[str]
    query_terms: KnownTerms | None = Field(description="Only with `matches`.")
    lexical: list[tuple[int, float]] = Field(description="Row and score, the best first.")
    semantic: list[tuple[int, float]]
    documents: list[ShardCandidate]

    @classmethod
    def read(cls, content: bytes) -> "CandidatesAnswer":
        """The answer with this JSON.

        Raises:
            ValueError: it is another one; names the first value that is wrong.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            path = ".".join(map(str, first["loc"])) or "the body"
            raise ValueError(f"its answer cannot be read: {path[:100]}: {first['msg'][:100]}") from None

    def fault(self, shards: int, *, with_vector: bool, features: Sequence[str]) -> str:
        """The reason why this is no answer of its shard to what was asked; empty where it is one.

        Args:
            shards: number of shards.
            with_vector: whether the request had the query's vector.
            features: scores of single fields that it named.
        """
        if not 0 <= self.shard < shards:
            return f"holds shard {self.shard + 1} of {shards}"
        rows = Counter[int | str](item.row for item in self.documents)
        doc_ids = Counter[int | str](item.doc_id for item in self.documents)
        if absent := [row for row, _ in (*self.lexical, *self.semantic) if row not in rows]:
            return f"lists row {absent[0]} without its document"
        if twice := [value for counts in (rows, doc_ids) for value in counts if counts[value] > 1]:
            return f"gives {twice[0]!r} as two documents"
        problems = (self._problem(item, shards, with_vector, features) for item in self.documents)
        return next(filter(None, problems), "")

    def _problem(self, document: ShardCandidate, shards: int, with_vector: bool, features: Sequence[str]) -> str:
        shown = f"document {document.doc_id[:100]!r}"
        if (owner := shard_of(document.doc_id, shards)) != self.shard:
            return f"gives {shown} of shard {owner + 1} as one of shard {self.shard + 1}"
        if with_vector and document.cosine is None:
            return f"gives no cosine of {shown}"
        lacking = [name for name in features if name not in document.features]
        return f"gives no {lacking[0]} of {shown}" if lacking else ""
