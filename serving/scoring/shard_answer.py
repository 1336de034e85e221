"""The answer of a shard to POST /candidates, and the checks that it passes before the asking service uses it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from index.shards import shard_of

Value = TypeVar("Value", int, str)


class StrictModel(BaseModel):
    """A model of JSON that refuses a value of another type and a number that is not finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class NearestPassage(StrictModel):
    """The passage of a document that is nearest to the query, by its place in the cleaned title and text."""

    start: int = Field(description="Index of the passage's first character in the title and text that the models read.")
    end: int = Field(description="Index after the passage's last character.")
    number: int = Field(description="Number of the passage in its document, from 1.")
    of: int = Field(description="Number of passages of the document.")


class KnownTerms(StrictModel):
    """The terms of the query that the BM25 index knows."""

    language: str = Field(description="Language of the analyser that made the terms.")
    version: int = Field(description="Version of that analyser.")
    shares: dict[str, float] = Field(description="Term → share of the documents of all shards that have it.")


class ShardCandidate(StrictModel):
    """A document of a shard with its first-stage scores."""

    row: int = Field(description="Row of the document among the documents of all shards.")
    doc_id: str
    title: str
    text: str
    fields: dict[str, Any]
    bm25: float
    cosine: float | None = Field(description="Cosine with the query's vector; null where the request had no vector.")
    terms: dict[str, float] = Field(description="Matched term → its part of `bm25`; empty without `terms: true`.")
    features: dict[str, float] = Field(description="Name of each requested feature of a single field → score.")
    passage: NearestPassage | None = Field(
        description="The passage nearest to the query's vector; null where the document has one vector or none."
    )


class CandidatesAnswer(StrictModel):
    """The documents of a shard that BM25 and the encoder rank first for a query."""

    release: str = Field(description="Fingerprint of the release of the shard.")
    collection: str = Field(description="Fingerprint of the documents of all shards, and of how they are indexed.")
    shard: int = Field(description="Number of the shard, from 0.")
    known_filter: bool = Field(
        description="Whether the shard has documents with the fields of `filters`; earlier services read it in place "
        "of `field_names`."
    )
    field_names: list[str] = Field(description="Names of the fields by which the shard's documents can be filtered.")
    query_terms: KnownTerms | None = Field(description="Terms of the query; null without `matches: true`.")
    lexical: list[tuple[int, float]] = Field(description="Row and BM25 score of each document, the best first.")
    semantic: list[tuple[int, float]] = Field(description="Row and cosine of each document, the best first.")
    documents: list[ShardCandidate] = Field(description="The documents of `lexical` and `semantic`, each once.")

    @classmethod
    def read(cls, content: bytes | bytearray) -> "CandidatesAnswer":
        """Parses and validates the JSON of an answer.

        Raises:
            ValueError: the JSON is broken, or a value has the wrong type or is missing; names the first such value.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            path = ".".join(map(str, first["loc"])) or "the body"
            raise ValueError(f"its answer cannot be read: {path[:100]}: {first['msg'][:100]}") from None

    def fault(self, shards: int, *, with_vector: bool, features: Sequence[str]) -> str:
        """The reason why the answer cannot be right for the request; empty where nothing is wrong with it.

        Args:
            shards: number of shards of the collection.
            with_vector: whether the request had the query's vector.
            features: names of the features of single fields that the request named.
        """
        if not 0 <= self.shard < shards:
            return f"holds shard {self.shard + 1} of {shards}"
        rows = {item.row for item in self.documents}
        if absent := [row for row, _ in (*self.lexical, *self.semantic) if row not in rows]:
            return f"lists row {absent[0]} without its document"
        for hits in (self.lexical, self.semantic):
            if repeated := _repeated(row for row, _ in hits):
                return f"lists row {repeated[0]} twice"
        if repeated := _repeated(item.row for item in self.documents):
            return f"gives row {repeated[0]} as two documents"
        if repeated_ids := _repeated(item.doc_id for item in self.documents):
            return f"gives {repeated_ids[0][:100]!r} as two documents"
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


def _repeated(values: Iterable[Value]) -> list[Value]:
    """The values that stand more than once, each named once, in their first order."""
    return [value for value, count in Counter(values).items() if count > 1]
