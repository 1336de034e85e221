"""A loaded release that answers questions: two ways of finding documents, the ranker, and the order they give.

    query ─┬─► BM25 ───────────────┐
           └─► encoder ─► index ───┴─► pool ─► ranker ─► features ─► fusion ─► final order

Both ways bring their first `retrieve` documents; each document of the pool then gets all three scores, whichever
way it was found, so the features are those that the fusion was fitted on.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from index.document_store import Document, DocumentStore, Rows, Value
from index.hits import Hit
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex, join
from pipeline import artifacts, features, releases, text
from pipeline.errors import MissingError
from pipeline.features import Fusion
from pipeline.releases import part
from serving.errors import BusyError, DeadlineError, InferenceError, InvalidRequestError, NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from serving.runtime.items import Priority
from serving.runtime.scheduler import Scheduler
from serving.scoring import contents
from serving.scoring.cache import Fetched
from serving.scoring.contents import SearchableContents
from serving.scoring.reranker import Caches, Embedder, Reranker, Vector, relevance
from serving.scoring.snippets import snippets

EXAMPLES = 6
MAX_EXAMPLE = 70
PING_S = 5.0

Missing = Literal["ranker", "encoder"]
T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One document in one list."""

    doc_id: str
    title: str
    snippet: str
    score: float
    """BM25, cosine, or the fused score; comparable within one list only."""
    rank: int
    """From 1."""
    lexical_rank: int | None
    """Where BM25 had it among what it found; None when it did not find it."""
    semantic_rank: int | None
    rank_change: int | None
    """In the final list: how many places it rose (fell, when negative) against the order that BM25 and the encoder
    give together before the ranker. None in the other lists."""
    relevance: float | None
    """The ranker's own score in [0, 1]; None in the other lists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """Three lists for one query, and what they cost."""

    query: str
    release: str
    lexical: list[Answer]
    semantic: list[Answer]
    reranked: list[Answer]
    milliseconds: Mapping[str, float]
    """lexical, encode, semantic, documents, rerank, total."""
    candidates: int
    """Documents that the ranker looked at."""
    cache_hits: int
    cache_misses: int
    """Counts of the query's vector and the candidates' scores together."""
    degraded: Missing | None = None
    """The first model that gave nothing in time or failed: without the ranker the final order is that of BM25 and
    encoder, without the encoder that of BM25. None where all models answered."""
    model_failed: bool = False
    """Whether the model that is missing raised an error; False where it was only late or refused."""


class Searcher:
    """The models, indexes and documents of one release; safe to use from many threads."""

    def __init__(
        self,
        release_path: Path,
        *,
        precision: str = "auto",
        threads: int | None = None,
        caches: Caches | None = None,
        scheduler: Scheduler | None = None,
        verify: bool = True,
    ) -> None:
        """Loads a release.

        Args:
            release_path: the release artifact's folder.
            precision, threads: see `serving.runtime.engine.Engine`.
            caches: shared with other releases; its own of 64 MiB when not given.
            scheduler: whose runners both models share, also with other releases; each has its own when not given.
            verify: check the release as promotion does, and compare the models' outputs for the golden inputs with
                those that their exporter saw.

        Raises:
            MissingError: no such folder.
            ArtifactError: the release does not pass `pipeline.releases.verify`, or a model does not give its golden
                outputs.
            ConfigError: a bundle has no such precision.
        """
        began = time.monotonic()
        release = releases.verify(release_path) if verify else artifacts.load(release_path, "release", verify=False)
        caches = caches or Caches.of(64 * 2**20)
        self.release = release.fingerprint
        self.created = release.manifest.created
        self.surfaces: dict[str, Any] = release.manifest.metrics.get("surfaces", {})
        """Path → its worth by the release's report, see `pipeline.evaluation.surfaces`; empty in old releases."""
        self.models = {
            role: Engine(
                part(release, role).path,
                precision=precision,
                threads=threads,
                verify="golden" if verify else False,
                scheduler=scheduler,
                token_bytes=caches.token_bytes,
            )
            for role in releases.MODELS
            if releases.has_part(release, role)
        }
        """Role → model; a release of ready-made models may have one alone."""
        self._contents = SearchableContents.load(release)
        self.examples = _examples(release.path / "report" / "report.json")
        """Queries to try, out of the release's own test set."""
        self._caches = caches
        log.info("release %s: loaded in %.1f s", self.release[:12], time.monotonic() - began)

    @property
    def ranker(self) -> Engine:
        """The ranker's engine; raises NotServedError where the release has none."""
        return self._model("ranker")

    @property
    def encoder(self) -> Engine:
        """The encoder's engine; raises NotServedError where the release has none."""
        return self._model("encoder")

    @property
    def reranker(self) -> Reranker:
        """Scores of pairs through the caches; raises NotServedError where the release has no ranker."""
        return Reranker(self.ranker, self._caches.scores)

    @property
    def embedder(self) -> Embedder:
        """Vectors of texts through the caches; raises NotServedError where the release has no encoder."""
        return Embedder(self.encoder, self._caches.vectors)

    @property
    def unanswered(self) -> dict[str, str]:
        """Path → the reason why this release cannot answer it; empty for a whole release."""
        return contents.unanswered([*self.models, *(["documents"] if self._contents else [])])

    @property
    def lexical(self) -> LexicalIndex:
        """The BM25 index; this and the next two raise NotServedError where the release has no documents."""
        return self._searchable.lexical

    @property
    def semantic(self) -> SemanticIndex:
        """The index of vectors."""
        return self._searchable.semantic

    @property
    def documents(self) -> DocumentStore:
        """The texts and fields of the documents."""
        return self._searchable.documents

    @property
    def _searchable(self) -> SearchableContents:
        if self._contents is None:
            raise NotServedError(contents.LACKS["documents"])
        return self._contents

    def _model(self, role: Missing) -> Engine:
        if role not in self.models:
            raise NotServedError(contents.LACKS[role])
        return self.models[role]

    def ping(self) -> None:
        """A real inference of each model, past the caches and before all that waits.

        Raises:
            Exception: whatever a model that does not work raises.
            DeadlineError: no answer in PING_S.
        """
        deadline = Deadline.after(PING_S)
        for role, engine in self.models.items():
            if role == "ranker":
                engine.scores("ready", ["ready"], deadline, Priority.PROBE)
            else:
                engine.embed(["ready"], "query", deadline, Priority.PROBE)

    def search(
        self,
        query: str,
        *,
        top_n: int = 10,
        retrieve: int = 20,
        filters: Mapping[str, Sequence[Value]] | None = None,
        terms: RequestOptions | None = None,
        degrade: bool = True,
    ) -> SearchResult:
        """The best documents for a query by BM25, by the encoder, and by all models together.

        Args:
            top_n: length of each list.
            retrieve: documents that each of the two ways brings to the pool; `top_n`, when that is more.
            filters: see `index.documents.DocumentStore.rows_where`. What fits is found first and then searched
                among, exactly where few documents pass, so such a filter has the answers of a search among those alone.
            degrade: answer without a model that fails, or that cannot answer before the deadline; False raises its
                error.

        Raises:
            InvalidRequestError: no document has such a field, or the store is older than filters.
            BusyError: without `degrade`, too much waits for the models.
            InferenceError: without `degrade`, a model failed on the query or on a document.
            DeadlineError: the time is over; with `degrade`, only where it was before BM25 had answered.
            NotServedError: the release has no documents.
            ClientGoneError
        """
        terms = terms or RequestOptions(Deadline.never())
        models = _Models(replace(terms, deadline=terms.deadline.with_reserve()), degrade)
        watch = _Stopwatch()
        query = text.clean(query)
        depth = max(retrieve, top_n)
        with watch("lexical"):
            among = self._among(filters) if filters else None
            by_words = self._by_words(query, depth, among)
        terms.deadline.check()
        with watch("encode"):
            embedded = models.attempt("encoder", lambda: self.embedder.vectors([query], "query", models.terms))
        with watch("semantic"):
            by_meaning = self._by_meaning(embedded.values[0], depth, among) if embedded else []
            rows = join(by_words, by_meaning)
            pool = self._pool(query, rows, embedded)
        terms.deadline.check()
        with watch("documents"):
            documents = dict(zip(rows, self.documents.get_many(rows), strict=True))
        with watch("rerank"):
            bodies = [text.document_text(documents[row].title, documents[row].text) for row in rows]
            scored = None
            if "ranker" in self.models:
                scored = models.attempt("ranker", lambda: self.reranker.scores(query, bodies, models.terms))
            before, final = pool.before(), pool.final(self._searchable.fusion, scored.values if scored else None)
        ranks = _Ranks(
            lexical={hit.row: rank for rank, hit in enumerate(by_words, start=1)},
            semantic={hit.row: rank for rank, hit in enumerate(by_meaning, start=1)},
            before={rows[number]: rank for rank, number in enumerate(_order(before), start=1)},
        )
        reranked = [Hit(rows[number], documents[rows[number]].doc_id, final[number]) for number in _order(final)]
        says = {row: relevance(score) for row, score in zip(rows, scored.values, strict=True)} if scored else {}
        lists = [by_words[:top_n], by_meaning[:top_n], reranked[:top_n]]
        texts = {hit.row: documents[hit.row].text for hits in lists for hit in hits}
        shown = _Shown(documents, snippets(texts, query, terms.deadline), ranks)
        return SearchResult(
            query=query,
            release=self.release,
            lexical=_answers(lists[0], shown),
            semantic=_answers(lists[1], shown),
            reranked=_answers(lists[2], shown, says),
            milliseconds=watch.milliseconds(),
            candidates=len(rows),
            cache_hits=sum(part.hits for part in (embedded, scored) if part),
            cache_misses=sum(part.misses for part in (embedded, scored) if part),
            degraded=models.missing,
            model_failed=models.failed,
        )

    def _by_meaning(self, vector: Vector, depth: int, among: Rows | None) -> list[Hit]:
        if among is None:
            return self.semantic.search(vector, depth)
        return self.semantic.search_among(vector, depth, among)

    def _pool(self, query: str, rows: Sequence[int], embedded: Fetched[Vector] | None) -> "_Pool":
        cosines = self.semantic.similarities(embedded.values[0], rows).tolist() if embedded else None
        return _Pool(self.lexical.scores(query, rows).tolist(), cosines)

    def _among(self, filters: Mapping[str, Sequence[Value]]) -> Rows:
        try:
            return self.documents.rows_where(filters)
        except MissingError as error:
            raise InvalidRequestError(str(error)) from error

    def _by_words(self, query: str, depth: int, among: Rows | None) -> list[Hit]:
        if among is None:
            return self.lexical.search(query, depth)
        scores = self.lexical.scores(query, among)
        best = np.lexsort((among, -scores))[:depth]
        return [
            Hit(int(among[place]), self.lexical.doc_ids[among[place]], float(scores[place]))
            for place in best
            if scores[place] > 0
        ]


@dataclass(frozen=True, slots=True)
class _Ranks:
    """Places of rows, from 1, in the orders before the final one."""

    lexical: Mapping[int, int]
    semantic: Mapping[int, int]
    before: Mapping[int, int]


class _Models:
    """The models of one search, none of which is asked after one was missing."""

    def __init__(self, terms: RequestOptions, degrade: bool) -> None:
        self.terms = terms
        self.missing: Missing | None = None
        self.failed = False
        self._degrade = degrade

    def attempt(self, name: Missing, call: Callable[[], T]) -> T | None:
        """The result of `call`, or None where the model failed, was late, or one before it was missing."""
        if self.missing is not None:
            return None
        try:
            return call()
        except (InferenceError, DeadlineError, BusyError) as error:
            if not self._degrade:
                raise
            log.warning("a search goes on without the %s: %s", name, error)
            self.missing = name
            self.failed = isinstance(error, InferenceError)
            return None


@dataclass(frozen=True, slots=True)
class _Pool:
    """The first-stage scores of a query's candidates, each (candidates,)."""

    bm25: Sequence[float]
    cosines: Sequence[float] | None
    """None where the encoder is missing."""

    def before(self) -> Sequence[float]:
        """Scores of the order before the ranker."""
        return self.bm25 if self.cosines is None else features.reciprocal_rank_fusion(self.bm25, self.cosines)

    def final(self, fusion: Fusion | None, ranker: Sequence[float] | None) -> Sequence[float]:
        """Scores of the final order: fused, or those before the ranker where a model is missing."""
        if ranker is None or self.cosines is None or fusion is None:
            return self.before()
        return fusion.scores(features.table(self.bm25, self.cosines, ranker))


@dataclass(frozen=True, slots=True)
class _Shown:
    """The contents of the answers of one search, by row."""

    documents: Mapping[int, Document]
    snippets: Mapping[int, str]
    ranks: _Ranks


class _Stopwatch:
    """Milliseconds of named parts and of the whole."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._parts[name] = time.perf_counter() - began

    def milliseconds(self) -> dict[str, float]:
        parts = {**self._parts, "total": time.perf_counter() - self._began}
        return {name: round(1000 * seconds, 2) for name, seconds in parts.items()}


def _order(scores: Sequence[float]) -> list[int]:
    """Places by falling score; of equal ones the first stays first."""
    return sorted(range(len(scores)), key=lambda place: -scores[place])


def _answers(hits: Sequence[Hit], shown: _Shown, says: Mapping[int, float] | None = None) -> list[Answer]:
    """One list of a search; `says` is given for the final list, and empty where the ranker is missing."""
    return [
        Answer(
            doc_id=hit.doc_id,
            title=shown.documents[hit.row].title,
            snippet=shown.snippets[hit.row],
            score=float(hit.score),
            rank=rank,
            lexical_rank=shown.ranks.lexical.get(hit.row),
            semantic_rank=shown.ranks.semantic.get(hit.row),
            rank_change=shown.ranks.before[hit.row] - rank if says is not None else None,
            relevance=says.get(hit.row) if says is not None else None,
        )
        for rank, hit in enumerate(hits, start=1)
    ]


def _examples(report: Path) -> list[str]:
    """A few queries that the report shows; none where it shows none."""
    try:
        shown = json.loads(report.read_text(encoding="utf-8"))["examples"]
        queries = [str(example["query"]) for example in [*shown["wins"], *shown["losses"]]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []  # A decoration of the page; a report without them is no reason not to serve.
    return list(dict.fromkeys(query for query in queries if len(query) <= MAX_EXAMPLE))[:EXAMPLES]
