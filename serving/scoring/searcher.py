"""A loaded release that answers questions: two ways of finding documents, the ranker, and the order they give.

    query ─┬─► BM25 ───────────────┐
           └─► encoder ─► index ───┴─► pool ─► ranker ─► features ─► fusion ─► final order

Both ways bring their first `retrieve` documents; each document of the pool then gets all three scores, whichever
way it was found, so the features are those that the fusion was fitted on.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from index.document_store import DocumentStore, Rows, Value
from index.hits import Hit
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex, join
from pipeline import artifacts, features, release_parts, text
from pipeline.errors import MissingError
from pipeline.features import Fusion, by_score
from pipeline.release_parts import part
from serving.errors import BusyError, DeadlineError, InferenceError, InvalidRequestError, NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from serving.runtime.items import Priority
from serving.runtime.scheduler import Scheduler
from serving.scoring import answers, contents, noise
from serving.scoring.answers import (
    Answer,
    Explanation,
    ListName,
    Missing,
    Ranks,
    SearchDetails,
    SearchResult,
    ShownDocuments,
)
from serving.scoring.best_passages import best_passages
from serving.scoring.contents import SearchableContents
from serving.scoring.document_scores import DocumentLimits
from serving.scoring.opened_document import OpenedDocument, open_document
from serving.scoring.report_excerpt import ReportExcerpt
from serving.scoring.reranker import Caches, Embedder, Reranker, Vector, relevance
from serving.scoring.running_search import CandidatePool, ModelAttempts, Stopwatch
from serving.scoring.snippets import snippets

PING_S = 5.0

MAX_FIELDS = 100
"""Fields of documents that are listed; a store with more has data in its field names."""
log = logging.getLogger(__name__)


__all__ = ["Answer", "SearchDetails", "SearchResult", "Searcher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedScores:
    """The scores of texts whose first-stage scores were given."""

    values: list[float]
    """Fused scores, comparable within one query only."""
    ranker: Sequence[float]
    """Raw scores of the ranker."""
    hits: int
    misses: int
    """Vectors and scores that the caches had, and that were computed."""


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
            ArtifactError: the release does not pass `pipeline.release_parts.verify`, or a model does not give its
                golden outputs.
            ConfigError: a bundle has no such precision.
        """
        began = time.monotonic()
        release = (
            release_parts.verify(release_path) if verify else artifacts.load(release_path, "release", verify=False)
        )
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
            for role in release_parts.MODELS
            if release_parts.has_part(release, role)
        }
        """Role → model; a release of ready-made models may have one alone."""
        self._contents = SearchableContents.load(release)
        excerpt = ReportExcerpt.read(release.path / "report" / "report.json", release.manifest.metrics)
        self.examples, self.thresholds = excerpt.examples, excerpt.thresholds
        self.fields = _fields(self._contents)
        """The names of the fields by which documents can be filtered and counted."""
        self._noise: float | None = None
        """Cosine that random letters reach; see `_fits`."""
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
        return Reranker(self.ranker, self._caches.scores, self.ranker.passages)

    def reranker_within(self, limits: DocumentLimits, max_passages: int = 0) -> Reranker:
        """The same for a request that bounds how much of each document is read; see `Reranker.max_passages`."""
        return replace(self.reranker, passages=limits.passages(self.ranker.passages), max_passages=max_passages)

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
    def fusion(self) -> Fusion:
        """The weights of the final order; raises NotServedError where the release has none."""
        fusion = self._contents.fusion if self._contents is not None else None
        if fusion is None:
            raise NotServedError(contents.LACKS["fusion"])
        return fusion

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
        details: SearchDetails | None = None,
        options: RequestOptions | None = None,
        degrade: bool = True,
    ) -> SearchResult:
        """The best documents for a query by BM25, by the encoder, and by all models together.

        Args:
            top_n: length of each list.
            retrieve: documents that each of the two ways brings to the pool; `top_n`, when that is more.
            filters: see `index.documents.DocumentStore.rows_where`. What fits is found first and then searched
                among, exactly where few documents pass, so such a filter has the answers of a search among those alone.
            details: three plain lists where not given.
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
        options, details = options or RequestOptions(Deadline.never()), details or SearchDetails()
        self._check_facets(details.facets)
        models = ModelAttempts(replace(options, deadline=options.deadline.with_reserve()), degrade)
        watch = Stopwatch()
        query = text.clean(query)
        depth = max(retrieve, top_n)
        with watch("lexical"):
            among = self._among(filters) if filters else None
            by_words = self._by_words(query, depth, among)
        options.deadline.check()
        with watch("encode"):
            embedded = None
            if list(details.lists) != ["lexical"]:
                embedded = models.attempt("encoder", lambda: self.embedder.vectors([query], "query", models.options))
        with watch("semantic"):
            vector = embedded.values[0] if embedded else None
            by_meaning = [] if vector is None else self._by_meaning(vector, depth, among)
            rows = join(by_words, by_meaning)
            fusion = self._searchable.fusion if embedded and "reranked" in details.lists else None
            pool = self._pool(query, rows, vector, fusion)
        options.deadline.check()
        with watch("documents"):
            documents = dict(zip(rows, self.documents.get_many(rows), strict=True))
        with watch("rerank"):
            bodies = [text.document_text(documents[row].title, documents[row].text) for row in rows]
            scored = None
            if "ranker" in self.models and "reranked" in details.lists:
                scored = models.attempt("ranker", lambda: self.reranker.read(query, bodies, models.options))
            read = dict(zip(rows, scored.values, strict=True)) if scored else {}
            values = [score.value for score in read.values()] if scored else None
            before, final = pool.before(), pool.final(self._searchable.fusion, values)
        fits = self._fits(by_words, by_meaning, models.options) if embedded else None
        ranks = Ranks(
            lexical={hit.row: rank for rank, hit in enumerate(by_words, start=1)},
            semantic={hit.row: rank for rank, hit in enumerate(by_meaning, start=1)},
            before={rows[number]: rank for rank, number in enumerate(by_score(before), start=1)},
        )
        reranked = [Hit(rows[number], documents[rows[number]].doc_id, final[number]) for number in by_score(final)]
        relevances = {row: relevance(score.value) for row, score in read.items()}
        if relevances:
            reranked = [hit for hit in reranked if relevances[hit.row] >= details.min_relevance]
        full_lists: dict[ListName, list[Hit]] = {"lexical": by_words, "semantic": by_meaning, "reranked": reranked}
        lists = {name: hits[:top_n] if name in details.lists else [] for name, hits in full_lists.items()}
        chosen = {hit.row: documents[hit.row] for hits in lists.values() for hit in hits}
        texts = {row: document.text for row, document in chosen.items()}
        passages = best_passages(self.ranker.tokeniser, chosen, read, options.deadline) if read else {}
        shown = ShownDocuments(
            documents=documents,
            snippets=snippets(texts, query, options.deadline, passages),
            passages=passages,
            ranks=ranks,
            fields=answers.chosen_fields(details.fields, chosen, options.deadline) if details.fields else {},
        )
        explanations = None
        if details.explain:
            table = dict(zip(rows, pool.table(values), strict=True))
            explanations = self._explanations(query, lists["reranked"], table, options.deadline)
        return SearchResult(
            query=query,
            release=self.release,
            lexical=answers.results(lists["lexical"], shown),
            semantic=answers.results(lists["semantic"], shown),
            reranked=answers.results(lists["reranked"], shown, relevances, explanations),
            fits=fits,
            facets=answers.facets(details.facets, documents.values(), options.deadline),
            milliseconds=watch.milliseconds(),
            candidates=len(rows),
            cache_hits=sum(part.hits for part in (embedded, scored) if part),
            cache_misses=sum(part.misses for part in (embedded, scored) if part),
            degraded=models.missing,
            model_failed=models.failed,
        )

    def fused(
        self,
        query: str,
        texts: Sequence[str],
        bm25: Sequence[float],
        options: RequestOptions,
        reranker: Reranker | None = None,
    ) -> FusedScores:
        """The scores of texts in the order that `search` would give them, from the first stage's and both models'.

        Args:
            texts: as `pipeline.text.document_text` writes documents.
            bm25: (texts,) first-stage scores, at least 0.
            reranker: from `reranker_within`; `reranker` when not given.

        Raises:
            NotServedError: the release has no ranker, no encoder or no fusion, or its fusion weighs single fields.
            BusyError, DeadlineError, InferenceError, ClientGoneError: see `reranker` and `embedder`.
        """
        reranker, embedder, fusion = reranker or self.reranker, self.embedder, self.fusion
        if fusion.fields:
            raise NotServedError(contents.LACKS["fields"])
        queried = embedder.vectors([query], "query", options)
        embedded = embedder.vectors(texts, "document", options)
        scored = reranker.scores(query, texts, options)
        cosines = [float(queried.values[0] @ vector) for vector in embedded.values]
        values = fusion.scores(features.table(bm25, cosines, scored.values))
        parts = (queried, embedded, scored)
        return FusedScores(
            values=values,
            ranker=scored.values,
            hits=sum(fetched.hits for fetched in parts),
            misses=sum(fetched.misses for fetched in parts),
        )

    def document(self, doc_id: str, *, neighbours: int, options: RequestOptions) -> OpenedDocument | None:
        """A whole document with those nearest to it; None where the release has no such document.

        Raises:
            NotServedError: the release has no documents.
            DeadlineError, ClientGoneError
        """
        return open_document(
            self._searchable, doc_id, neighbours=neighbours, deadline=options.deadline, release=self.release
        )

    def _explanations(
        self, query: str, hits: Sequence[Hit], table: Mapping[int, Sequence[float] | None], deadline: Deadline
    ) -> dict[int, Explanation]:
        """The reasons for each result of the final list, by row."""
        deadline.check()
        matched = self.lexical.term_scores(query, [hit.row for hit in hits])
        deadline.check()
        fusion = self._searchable.fusion
        return {
            hit.row: answers.explanation(terms, fusion, table[hit.row])
            for hit, terms in zip(hits, matched, strict=True)
        }

    def _fits(self, by_words: Sequence[Hit], by_meaning: Sequence[Hit], options: RequestOptions) -> bool | None:
        """Whether anything may answer the query: a document has a word of it, or one lies nearer than chance brings.

        Chance is what the encoder finds for random letters (`noise.queries`), measured once for a release; None where
        the time does not suffice for that.
        """
        if by_words:
            return True
        if self._noise is None:
            letters = noise.queries()
            try:
                vectors = self.embedder.vectors(letters, "query", options).values
            except (InferenceError, DeadlineError, BusyError) as error:
                log.warning("whether anything fits a query is not known: %s", error)
                return None
            nearest = self.semantic.search_batch(np.stack(vectors), 1)
            self._noise = noise.level([hits[0].score for hits in nearest if hits])
        return bool(by_meaning) and by_meaning[0].score > self._noise

    def _check_facets(self, names: Sequence[str]) -> None:
        """Raises InvalidRequestError for a field that no document has, naming those there are."""
        if not names:
            return
        unknown = [name for name in names if name not in self.fields]
        if unknown:
            known = ", ".join(self.fields) or "none"
            raise InvalidRequestError(f"no document has a field '{unknown[0][:100]}'; there are: {known}")

    def _by_meaning(self, vector: Vector, depth: int, among: Rows | None) -> list[Hit]:
        if among is None:
            return self.semantic.search(vector, depth)
        return self.semantic.search_among(vector, depth, among)

    def _pool(self, query: str, rows: Sequence[int], vector: Vector | None, fusion: Fusion | None) -> CandidatePool:
        """The first-stage scores of these documents.

        Args:
            vector: of the query; None where the encoder is missing.
            fusion: weighs scores of single fields; None where the search has no final order that needs them.
        """
        cosines = None if vector is None else self.semantic.similarities(vector, rows).tolist()
        fields = self._searchable.fields.scores(query, vector, rows, fusion.fields) if fusion else {}
        return CandidatePool(self.lexical.scores(query, rows).tolist(), cosines, fields)

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
            Hit(int(among[number]), self.lexical.doc_ids[among[number]], float(scores[number]))
            for number in best
            if scores[number] > 0
        ]


def _fields(searchable: SearchableContents | None) -> list[str]:
    """The fields of the documents; none where the store is older than fields, or there are no documents."""
    if searchable is None:
        return []
    try:
        return list(islice(searchable.documents.each_field(), MAX_FIELDS))
    except MissingError:
        return []
