"""A release of models that searches documents which other services hold, each a shard of them.

    query ─► encoder ─► POST /candidates to every shard ─► merged lists ─► ranker ─► fusion ─► final order

Shards weigh BM25 by the statistics of the whole (`index.shards`), so a merged list is that of one index. The ranker
runs here, once for each candidate of the merged pool. A shard that fails, is late, or holds another collection is named
in the answer, with the reason; it is never left out in silence.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from index.document_store import Document, Value
from index.hits import Hit
from index.semantic import join
from index.term_marks import QueryTerms, joined
from index.vector_rows import FoundPassage
from pipeline.errors import ArtifactError, ConfigError
from pipeline.passages import Passages
from serving.errors import InvalidRequestError, NotReadyError, NotServedError
from serving.runtime.deadline import Deadline
from serving.runtime.scheduler import Scheduler
from serving.scoring.answers import MissingShard, ShardCounts, check_facets
from serving.scoring.candidates import CandidatePool, Candidates
from serving.scoring.contents import NEEDS, SearchableContents
from serving.scoring.reranker import Caches
from serving.scoring.running_search import RunningSearch
from serving.scoring.searcher import Searcher

SHARE = 0.5
"""Share of the time left that shards have for their answer; the ranker has the rest."""
WITHOUT_DEADLINE_S = 30.0
"""Seconds that shards have where a request has no deadline."""
NO_DOCUMENT = "the documents of this release are in shards; ask the service of the shard that holds it for a whole one"
THREADS = 16
"""Requests to each shard at once; further ones wait, while their time runs."""

log = logging.getLogger(__name__)


class ShardLateError(Exception):
    """A shard did not answer in time."""


class ShardClient:
    """Asks all shards at once."""

    def __init__(self, addresses: Sequence[str], key: str = "") -> None:
        import httpx  # No other service needs it.

        self.addresses = tuple(addresses)
        self._late: type[Exception] = httpx.TimeoutException
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        count = THREADS * len(self.addresses)
        self._client = httpx.Client(
            headers=headers,
            limits=httpx.Limits(max_connections=count, max_keepalive_connections=count),
            trust_env=False,
        )
        self._threads = ThreadPoolExecutor(count, "shards")

    def ask(self, body: Mapping[str, Any], deadline: Deadline) -> list[dict[str, Any] | MissingShard]:
        """The outcome of each shard, in the order of the addresses: its answer, or the reason why there is none."""
        seconds = min(deadline.remaining * SHARE, WITHOUT_DEADLINE_S)
        until = Deadline.after(seconds)
        content = orjson.dumps(body)
        calls = [self._threads.submit(self._ask, address, content, until) for address in self.addresses]
        return [self._outcome(address, call, until) for address, call in zip(self.addresses, calls, strict=True)]

    def close(self) -> None:
        """Closes the connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _ask(self, address: str, content: bytes, until: Deadline) -> dict[str, Any]:
        seconds = until.remaining
        if seconds <= 0:
            raise ShardLateError
        headers = {"x-request-timeout-ms": str(max(1, int(seconds * 1000)))}
        answer = self._client.post(f"{address}/candidates", content=content, headers=headers, timeout=seconds)
        if answer.status_code != 200:
            raise ValueError(f"HTTP {answer.status_code}: {_message(answer.content)}")
        value = orjson.loads(answer.content)
        if not isinstance(value, dict):
            raise ValueError("its answer is no JSON object")
        return value

    def _outcome(self, address: str, call: "Future[dict[str, Any]]", until: Deadline) -> dict[str, Any] | MissingShard:
        try:
            return call.result(until.patience)
        except (TimeoutError, ShardLateError, self._late):
            call.cancel()
            reason = f"no answer in {until.seconds:.2g} s"
        except Exception as error:  # Whatever it is, the answer names it.
            reason = f"{type(error).__name__}: {error}"[:300]
        log.warning("shard %s: %s", address, reason)
        return MissingShard(shard=address, reason=reason)


def _message(content: bytes) -> str:
    try:
        return str(orjson.loads(content)["error"])[:200]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content[:200].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class ExpectedShards:
    """The collection and the encoder that every shard must have, and the number of shards."""

    data: str
    encoder: str
    count: int

    def problem(self, answer: Mapping[str, Any]) -> str:
        """Why an answer cannot be used; empty where it can."""
        if answer.get("data") != self.data:
            return f"holds a shard of other documents (release {str(answer.get('release'))[:12]})"
        if answer.get("encoder") != self.encoder:
            return f"holds vectors of another encoder (release {str(answer.get('release'))[:12]})"
        return ""


class ShardedSearcher(Searcher):
    """A loaded release of models whose searches ask shards for documents."""

    def __init__(
        self, release_path: Path, shards: ShardClient, *, precision: str, caches: Caches, scheduler: Scheduler
    ) -> None:
        """Loads a release; see `LoadedRelease`.

        Raises:
            ArtifactError: the release is not the one of models that `relevance reindex --shards` made.
            ConfigError: it was made for another number of shards.
        """
        super().__init__(release_path, precision=precision, caches=caches, scheduler=scheduler)
        collection = self.collection
        if not collection or self._contents is not None:
            raise ArtifactError(
                f"{release_path}: not the release of models that `relevance reindex --shards` prints; serve that one"
            )
        if collection["shards"] != len(shards.addresses):
            raise ConfigError(
                f"release {self.release[:12]} has {collection['shards']} shards, and {len(shards.addresses)} addresses "
                "are given (--shards, RELEVANCE_SHARDS)"
            )
        self._shards = shards
        self._expected = ExpectedShards(collection["data"], self.encoder.digest, collection["shards"])

    @property
    def unanswered(self) -> dict[str, str]:
        """Path → the reason why this release cannot answer it."""
        of_whole_documents = dict.fromkeys(NEEDS["documents"], NO_DOCUMENT)
        return {path: reason for path, reason in (super().unanswered | of_whole_documents).items() if path != "/search"}

    @property
    def _indexed_passages(self) -> Passages | None:
        rule = (self.collection or {}).get("passages")
        return None if rule is None else Passages.from_dict(rule)

    @property
    def _searchable(self) -> SearchableContents:
        raise NotServedError(NO_DOCUMENT)

    def _candidates(
        self, search: RunningSearch, depth: int, filters: Mapping[str, Sequence[Value]] | None
    ) -> Candidates:
        """The candidates of all shards, merged as one index would have them.

        Raises:
            NotReadyError: no shard gave an answer.
            InvalidRequestError: no document has a field that the search names.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        queried = self._query_vector(search)
        body = {
            "query": search.query,
            "depth": depth,
            "vector": queried.values[0].tolist() if queried else None,
            "filters": filters or None,
            "terms": search.details.explain,
        }
        if weighed := self._weighed_fields(search, queried):  # A shard from before them answers a body without.
            body["features"] = list(weighed)
        if search.details.matches:
            body["matches"] = True
        with search.watch("shards"):
            answered, counts = self._checked(self._shards.ask(body, search.models.options.deadline))
        search.options.deadline.check()
        _check_names(answered, bool(filters), search.details.facets)
        by_row = {document["row"]: document for answer in answered for document in answer["documents"]}
        by_words, by_meaning = (_merged(answered, name, by_row, depth) for name in ("lexical", "semantic"))
        rows = join(by_words, by_meaning)
        cosines = [by_row[row]["cosine"] for row in rows] if queried else None
        fields = {name: [by_row[row]["features"][name] for row in rows] for name in weighed}
        with search.watch("documents"):
            documents = {row: _document(by_row[row]) for row in rows}
        return Candidates(
            by_words=by_words,
            by_meaning=by_meaning,
            rows=rows,
            pool=CandidatePool([by_row[row]["bm25"] for row in rows], cosines, fields),
            queried=queried,
            documents=documents,
            terms={row: by_row[row]["terms"] for row in rows},
            query_terms=joined([QueryTerms(**known) for answer in answered if (known := answer.get("query_terms"))]),
            nearest={row: FoundPassage(**part) for row in rows if (part := by_row[row].get("passage"))},
            shards=counts,
        )

    def _checked(self, outcomes: Sequence[dict[str, Any] | MissingShard]) -> tuple[list[dict[str, Any]], ShardCounts]:
        """The answers that can be used, and counts of all shards."""
        answered: list[dict[str, Any]] = []
        missing: list[MissingShard] = []
        seen: set[int] = set()
        for address, outcome in zip(self._shards.addresses, outcomes, strict=True):
            if isinstance(outcome, MissingShard):
                missing.append(outcome)
                continue
            problem = self._expected.problem(outcome)
            if not problem and outcome["shard"] in seen:
                problem = f"holds shard {outcome['shard'] + 1}, as another one does"
            if problem:
                log.warning("shard %s: %s", address, problem)
                missing.append(MissingShard(shard=address, reason=problem))
            else:
                seen.add(outcome["shard"])
                answered.append(outcome)
        if not answered:
            reasons = "; ".join(f"{item.shard}: {item.reason}" for item in missing)
            raise NotReadyError(f"no shard of the documents answers: {reasons}"[:1000])
        return answered, ShardCounts(answered=len(answered), of=self._expected.count, missing=missing)


def _check_names(answered: Sequence[Mapping[str, Any]], filtered: bool, facets: Sequence[str]) -> None:
    known = sorted({name for answer in answered for name in answer["field_names"]})
    if filtered and not any(answer["known_filter"] for answer in answered):
        listed = ", ".join(known) or "none"
        raise InvalidRequestError(f"no document has the fields of these filters; there are: {listed}")
    check_facets(facets, known)


def _merged(
    answered: Sequence[Mapping[str, Any]], name: str, by_row: Mapping[int, Mapping[str, Any]], depth: int
) -> list[Hit]:
    """The first `depth` hits of all shards; equal scores are ordered by the row in the whole collection."""
    hits = [Hit(row, by_row[row]["doc_id"], score) for answer in answered for row, score in answer[name]]
    return sorted(hits, key=lambda hit: (-hit.score, hit.row))[:depth]


def _document(candidate: Mapping[str, Any]) -> Document:
    return Document(candidate["doc_id"], candidate["title"], candidate["text"], candidate["fields"])
