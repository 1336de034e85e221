"""The answer to a search: three lists of documents, and what was asked about them."""

from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, Field

from serving.scoring.answers import LISTS, SearchDetails, SearchResult


class FeaturePart(BaseModel):
    """The part of one feature in the score of a result."""

    value: float
    weight: float
    share: float = Field(description="value · weight; the shares of a result sum to its score.")


class HitExplanation(BaseModel):
    """The reasons for a result's place in the final list."""

    terms: dict[str, float] = Field(description="Matched term → its part in BM25, the largest first.")
    features: dict[str, FeaturePart] = Field(description="Empty where a model was missing.")


class PassageHit(BaseModel):
    """The passage of a long document that fits the query best, by the ranker, or by the encoder where it read none."""

    text: str
    start: int = Field(description="Its first character, as an index in the document's text.")
    end: int
    number: int = Field(description="Number of the passage, from 1.")
    of: int = Field(description="Number of passages that the model read.")


class MatchedTerms(BaseModel):
    """Where terms of the query stand, found by the analysis of the index: [start, end] in characters, ascending."""

    title: list[tuple[int, int]]
    snippet: list[tuple[int, int]]


class SearchHit(BaseModel):
    """One document in one of the three lists of a search."""

    doc_id: str
    title: str
    snippet: str
    score: float
    rank: int
    lexical_rank: int | None
    semantic_rank: int | None
    rank_change: int | None = Field(description="Ranks it rose against BM25 and encoder together; final list only.")
    relevance: float | None = Field(description="The ranker's own score, in [0, 1]; final list only.")
    fields: dict[str, Any] | None = Field(None, description="The columns of `fields`, where they were asked for.")
    explain: HitExplanation | None = Field(None, description="Only with `explain`, and in the final list.")
    matches: MatchedTerms | None = Field(None, description="Only with `matches`.")
    passage: PassageHit | None = Field(
        None,
        description="The passage that the snippet is cut from, where a model read the document in passages.",
    )


class AbsentShard(BaseModel):
    """A shard whose documents are not in the answer."""

    shard: str
    reason: str


class AskedShards(BaseModel):
    """The shards that the answer rests on."""

    answered: int
    of: int
    missing: list[AbsentShard]


class SearchAnswer(BaseModel):
    """Three lists for one query: of BM25, of the encoder, and of all models together."""

    query: str
    release: str
    lexical: list[SearchHit] | None = Field(None, description="The lists that were asked for.")
    semantic: list[SearchHit] | None = None
    reranked: list[SearchHit] | None = Field(
        None,
        description="The final order: by the release's fusion of BM25, encoder and ranker. Where the release has no "
        "ranker, it is the order of BM25 and encoder joined (reciprocal ranks), and `relevance` is null.",
    )
    milliseconds: dict[str, float]
    candidates: int
    cache_hits: int
    cache_misses: int
    fits: bool | None = Field(
        None,
        description="false: no document has a word of the query, and none lies nearer to it than to random letters. "
        "null: not known; the encoder did not answer, or the documents are in shards and none has a word.",
    )
    facets: dict[str, dict[str, int]] | None = Field(None, description="Field → value → number of candidates with it.")
    degraded: str | None = Field(
        None,
        description="Only where a model failed or was late. ranker: the final list has the order of BM25 and encoder; "
        "encoder: that of BM25.",
    )
    partial: bool | None = Field(
        None, description="Only where documents are in shards. true: those of the shards in `missing` are not searched."
    )
    shards: AskedShards | None = Field(None, description="Only where documents are in shards.")


def answered(result: SearchResult, details: SearchDetails) -> dict[str, Any]:
    """A result as JSON, without what was not asked for."""
    answer = asdict(result)
    del answer["model_failed"]
    if result.shards is None:
        del answer["shards"]
    else:
        answer["partial"] = bool(result.shards.missing)
    if result.degraded is None:
        del answer["degraded"]
    if not details.facets:
        del answer["facets"]
    for name in LISTS:
        if name not in details.lists:
            del answer[name]
            continue
        for hit in answer[name]:
            if not details.fields:
                del hit["fields"]
            if not (details.explain and name == "reranked"):
                del hit["explain"]
            if not details.matches:
                del hit["matches"]
            if hit["passage"] is None:
                del hit["passage"]
    return answer
