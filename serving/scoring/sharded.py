"""A release of models that searches documents which other services hold, each a shard of them.

    query ─► encoder ─► POST /candidates to every shard ─► merged lists ─► ranker ─► fusion ─► final order

Shards weigh BM25 by the statistics of the whole (`index.shards`), so a merged list is that of one index. The ranker
runs here, once for each candidate of the merged pool. A shard that fails, is late, holds no shard of the collection, or
answers what cannot be right is named in the answer, with the reason; it is never left out in silence.

Shards and this service take new releases at different moments. A request names the collection of the release that asks,
and a shard answers it with the release before, too, while that is loaded. So an answer is of one collection always, and
of all its shards where shards take a new release before this service does.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import orjson

from index.document_store import Document, Value
from index.highlights import QueryTerms, joined
from index.hits import Hit
from index.semantic import join
from index.vector_rows import FoundPassage
from pipeline.command_line import typed
from pipeline.errors import ArtifactError, ConfigError
from pipeline.passages import Passages
from pipeline.text import counted
from serving.errors import NotReadyError, NotServedError
from serving.runtime.deadline import Deadline
from serving.runtime.scheduler import Scheduler
from serving.scoring.answers import MissingShard, ShardCounts, check_known
from serving.scoring.candidates import CandidatePool, Candidates
from serving.scoring.contents import NEEDS, SearchableContents
from serving.scoring.process_caches import Caches
from serving.scoring.running_search import RunningSearch
from serving.scoring.searcher import Searcher
from serving.scoring.shard_answer import CandidatesAnswer, ShardCandidate

SHARE = 0.5
"""Share of the time left that shards have for their answer; the ranker has the rest."""
WITHOUT_DEADLINE_S = 30.0
"""Seconds that shards have where a request has no deadline."""
PROBE_S = 5.0
"""Seconds that shards have to say whether they hold a collection."""
MAX_ANSWER_BYTES = 256 * 2**20
"""Largest answer of a shard that is read."""
NO_DOCUMENT = "the documents of this release are in shards; ask the service of the shard that holds it for a whole one"
"""The message where a document is asked for by its id."""
THREADS = 16
"""Requests to each shard at once; further ones wait, while their time runs."""

log = logging.getLogger(__name__)


class ShardLateError(Exception):
    """A shard did not answer in time."""


class ShardClient:
    """An HTTP client of the services that hold the shards, which sends a request to all of them at once."""

    def __init__(self, addresses: Sequence[str], key: str = "") -> None:
        import httpx  # No other service needs it.

        logging.getLogger("httpx").setLevel(logging.WARNING)  # It has a line for each request.
        self.addresses = tuple(addresses)
        self._late: type[Exception] = httpx.TimeoutException
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        count = THREADS * len(self.addresses)
        self._client = httpx.Client(
            headers=headers | {"accept-encoding": "identity"},
            limits=httpx.Limits(max_connections=count, max_keepalive_connections=count),
            trust_env=False,
        )
        # A pool for each, so that calls which wait for one shard never hold up those to others.
        self._threads = [ThreadPoolExecutor(THREADS, f"shard-{number}") for number in range(len(self.addresses))]

    def ask(self, body: Mapping[str, Any], until: Deadline) -> list[CandidatesAnswer | MissingShard]:
        """The outcome of each shard, in the order of the addresses: its answer, or the reason why there is none.

        Args:
            body: the request.
            until: the moment from which a shard is late.
        """
        content = orjson.dumps(body)
        calls = [
            threads.submit(self._ask, address, content, until)
            for address, threads in zip(self.addresses, self._threads, strict=True)
        ]
        return [self._outcome(address, call, until) for address, call in zip(self.addresses, calls, strict=True)]

    def close(self) -> None:
        """Closes the connections."""
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _ask(self, address: str, content: bytes, until: Deadline) -> CandidatesAnswer:
        seconds = until.remaining
        if seconds <= 0:
            raise ShardLateError
        headers = {"x-request-timeout-ms": str(max(1, int(seconds * 1000)))}
        url = f"{address}/candidates"
        with self._client.stream("POST", url, content=content, headers=headers, timeout=seconds) as answer:
            sent = bytearray()
            for part in answer.iter_bytes():
                sent += part
                if until.over:  # The client's own limit is for each part.
                    raise ShardLateError
                if len(sent) > MAX_ANSWER_BYTES:
                    raise ValueError(f"its answer has more than {MAX_ANSWER_BYTES:,} bytes")
        if answer.status_code != 200:
            raise ValueError(f"HTTP {answer.status_code}: {_message(sent)}")
        return CandidatesAnswer.read(sent)

    def _outcome(
        self, address: str, call: "Future[CandidatesAnswer]", until: Deadline
    ) -> CandidatesAnswer | MissingShard:
        try:
            return call.result(until.patience)
        except (TimeoutError, ShardLateError, self._late):
            call.cancel()
            reason = f"no answer in {until.seconds:.2g} s"
        except ValueError as error:
            reason = str(error)[:300]
        except Exception as error:  # Whatever it is, the answer names it.
            reason = f"{type(error).__name__}: {error}"[:300]
        return MissingShard(shard=address, reason=reason)


@dataclass(frozen=True, slots=True)
class ShardAnswers:
    """The answers of shards to one request that can be used."""

    answers: Sequence[CandidatesAnswer]
    by_row: Mapping[int, ShardCandidate]
    """Row among the documents of all shards → document, of all answers."""
    counts: ShardCounts


def _message(content: bytearray) -> str:
    try:
        return str(orjson.loads(content)["error"])[:200]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return content[:200].decode(errors="replace")


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
            reindex = typed("reindex --documents DOCUMENTS --shards N", self.workspace)
            raise ArtifactError(f"{release_path}: not the release of models that `{reindex}` prints; serve that one")
        if collection["shards"] != len(shards.addresses):
            raise ConfigError(
                f"release {self.release[:12]} has {counted(collection['shards'], 'shard')}, and "
                f"{len(shards.addresses)} addresses are given (--shards, RELEVANCE_SHARDS)"
            )
        self._shards = shards
        self._count: int = collection["shards"]

    @property
    def unanswered(self) -> dict[str, str]:
        """Path → the reason why this release cannot answer it."""
        of_whole_documents = dict.fromkeys(NEEDS["documents"], NO_DOCUMENT)
        return {path: reason for path, reason in (super().unanswered | of_whole_documents).items() if path != "/search"}

    def probe_shards(self) -> ShardCounts:
        body = {"query": "ready", "depth": 1, "collection": self.collection_id}
        return self._ask_shards(body, Deadline.after(PROBE_S)).counts

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
        weighed = self._weighed_fields(search, queried)
        body: dict[str, Any] = {"query": search.query, "collection": self.collection_id, "depth": depth}
        body |= {"vector": queried.values[0].tolist() if queried else None, "filters": filters or None}
        body |= {"terms": search.details.explain}
        if weighed:  # A shard from before these two keys answers a body without them.
            body["features"] = list(weighed)
        if search.details.matches:
            body["matches"] = True
        with search.watch("shards"):
            seconds = min(search.models.options.deadline.remaining * SHARE, WITHOUT_DEADLINE_S)
            usable = self._ask_shards(body, Deadline.after(seconds))
        answered, by_row, counts = usable.answers, usable.by_row, usable.counts
        _check_counts(counts)
        search.options.deadline.check()
        if not counts.missing:  # A missing shard may have documents with any field.
            names = sorted({name for answer in answered for name in answer.field_names})
            check_known([*(filters or ()), *search.details.facets], names)
        by_words = _merged([hit for answer in answered for hit in answer.lexical], by_row, depth)
        by_meaning = _merged([hit for answer in answered for hit in answer.semantic], by_row, depth)
        rows = join(by_words, by_meaning)
        # Every candidate has a cosine here: `CandidatesAnswer.fault` refuses answers that lack any.
        cosines = cast(list[float], [by_row[row].cosine for row in rows]) if queried else None
        fields = {name: [by_row[row].features[name] for row in rows] for name in weighed}
        with search.watch("documents"):
            documents = {row: _document(by_row[row]) for row in rows}
        known_terms = [QueryTerms(**known.model_dump()) for answer in answered if (known := answer.query_terms)]
        return Candidates(
            by_words=by_words,
            by_meaning=by_meaning,
            rows=rows,
            pool=CandidatePool([by_row[row].bm25 for row in rows], cosines, fields),
            queried=queried,
            documents=documents,
            terms={row: by_row[row].terms for row in rows},
            query_terms=joined(known_terms),
            nearest={row: FoundPassage(**part.model_dump()) for row in rows if (part := by_row[row].passage)},
            shards=counts,
        )

    def _ask_shards(self, body: Mapping[str, Any], until: Deadline) -> ShardAnswers:
        """The answers of all shards to a request; one that cannot be used counts as missing."""
        answers: dict[int, CandidatesAnswer] = {}
        by_row: dict[int, ShardCandidate] = {}
        missing: list[MissingShard] = []
        for address, outcome in zip(self._shards.addresses, self._shards.ask(body, until), strict=True):
            if isinstance(outcome, MissingShard):
                missing.append(outcome)
            elif problem := self._problem(outcome, body, answers, by_row):
                missing.append(MissingShard(shard=address, reason=problem))
            else:
                answers[outcome.shard] = outcome
                by_row |= {document.row: document for document in outcome.documents}
        counts = ShardCounts(answered=len(answers), of=self._count, missing=missing)
        return ShardAnswers(list(answers.values()), by_row, counts)

    def _problem(
        self,
        answer: CandidatesAnswer,
        body: Mapping[str, Any],
        answered: Collection[int],
        rows: Collection[int],
    ) -> str:
        """The reason why an answer cannot be used; empty where it can.

        Args:
            body: the request.
            answered: numbers of the shards whose answers are used already.
            rows: the rows of their documents.
        """
        if answer.collection != self.collection_id:
            return f"holds a shard of another collection (release {answer.release[:12]})"
        if answer.shard in answered:
            return f"holds shard {answer.shard + 1}, as another one does"
        with_vector = body.get("vector") is not None
        fault = answer.fault(self._count, with_vector=with_vector, features=body.get("features", ()))
        if not fault and any(document.row in rows for document in answer.documents):
            return "lists a row of another shard"
        return fault


def _check_counts(counts: ShardCounts) -> None:
    """Logs each missing shard; raises NotReadyError where all are."""
    for item in counts.missing:
        log.warning("shard %s: %s", item.shard, item.reason)
    if not counts.answered:
        reasons = "; ".join(f"{item.shard}: {item.reason}" for item in counts.missing)
        raise NotReadyError(f"no shard of the documents answers: {reasons}"[:1000])


def _merged(hits: Sequence[tuple[int, float]], by_row: Mapping[int, ShardCandidate], depth: int) -> list[Hit]:
    """The first `depth` of the rows and scores of all shards; equal scores are ordered by the row in the whole."""
    best = sorted(hits, key=lambda hit: (-hit[1], hit[0]))[:depth]
    return [Hit(row, by_row[row].doc_id, score) for row, score in best]


def _document(candidate: ShardCandidate) -> Document:
    return Document(candidate.doc_id, candidate.title, candidate.text, candidate.fields)
