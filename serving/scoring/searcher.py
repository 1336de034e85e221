"""A loaded release that answers questions: two ways of finding documents, the ranker, and the order they give.

    query ─┬─► BM25 ───────────────┐
           └─► encoder ─► index ───┴─► pool ─► ranker ─► features ─► fusion ─► final order

Both ways bring their first `retrieve` documents; each document of the pool then gets all three scores, whichever
way it was found, so the features are those that the fusion was fitted on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from index.document_store import Value
from index.hits import Hit
from index.semantic import join
from pipeline import features, text
from pipeline.errors import MissingError
from pipeline.features import by_score
from pipeline.passages import Passages
from serving.errors import NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import answers, contents
from serving.scoring.answers import (
    Answer,
    Explanation,
    ListName,
    SearchDetails,
    SearchResult,
    ShardCounts,
    ShownDocuments,
)
from serving.scoring.best_passages import best_passages, nearest_passages
from serving.scoring.cache import Fetched
from serving.scoring.candidates import Candidates, RankedCandidates, Retrieval
from serving.scoring.loaded_release import LoadedRelease
from serving.scoring.noise import ChanceLevel
from serving.scoring.opened_document import OpenedDocument, open_document
from serving.scoring.reranker import Reranker, Vector, check_passages, relevance
from serving.scoring.running_search import ModelAttempts, RunningSearch
from serving.scoring.snippets import snippets

__all__ = ["Answer", "SearchDetails", "SearchResult", "Searcher"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RerankScores:
    """The scores of texts that were sent with a query."""

    values: list[float]
    """Raw scores of the ranker, or fused scores, which are comparable within one query only."""
    ranker: Sequence[float]
    """Raw scores of the ranker."""
    fused: bool
    """Whether `values` are fused scores."""
    hits: int
    misses: int
    """Vectors and scores that the caches had, and that were computed."""


class Searcher(LoadedRelease):
    """A loaded release that searches; see `LoadedRelease` for how it is loaded."""

    @cached_property
    def _chance(self) -> ChanceLevel | None:
        """None where shards hold the vectors, as they measure no such level."""
        return ChanceLevel(self.embedder, self._contents.semantic) if self._contents else None

    @property
    def retrieval(self) -> Retrieval:
        """The two ways of finding documents; raises NotServedError where the release has none."""
        return Retrieval(self._searchable)

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
            filters: see `index.document_store.DocumentStore.rows_where`. Documents that pass are selected before the
                search. Among few of them the search is exact, so it answers as an index of these documents alone.
            details: three plain lists where not given.
            degrade: answer without a model that fails, or that cannot answer before the deadline; False raises its
                error.

        Raises:
            InvalidRequestError: no document has such a field, or the store is older than filters.
            BusyError: without `degrade`, too much waits for the models.
            InferenceError: without `degrade`, a model failed on the query or on a document.
            DeadlineError: the time is over; with `degrade`, only where it was before BM25 had answered.
            NotServedError: the release has no documents.
            ClientGoneError: the client has closed the connection.
        """
        options, details = options or RequestOptions(Deadline.never()), details or SearchDetails()
        models = ModelAttempts(replace(options, deadline=options.deadline.with_reserve()), degrade)
        search = RunningSearch(text.clean(query), details, options, models)
        candidates = self._candidates(search, max(retrieve, top_n), filters)
        ranked = self._ranked(search, candidates)
        fits = self._fits(candidates, models.options) if candidates.queried else None
        return self._result(search, candidates, ranked, fits, top_n)

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        bm25: Sequence[float] | None = None,
        fused: bool | None = None,
        *,
        options: RequestOptions | None = None,
        reranker: Reranker | None = None,
    ) -> RerankScores:
        """Scores of texts by the ranker alone or fused, as `pipeline.features.in_fused_order` decides.

        Args:
            fused: the request's own wish; None where it has none.

        The other arguments and the errors are those of `fused`.
        """
        reranker, options = reranker or self.reranker, options or RequestOptions(Deadline.never())
        if features.in_fused_order(self._fusion, bm25, fused):
            return self.fused(query, texts, bm25, options, reranker)
        scored = reranker.scores(query, texts, options)
        return RerankScores(
            values=scored.values, ranker=scored.values, fused=False, hits=scored.hits, misses=scored.misses
        )

    def fused(
        self,
        query: str,
        texts: Sequence[str],
        bm25: Sequence[float] | None,
        options: RequestOptions,
        reranker: Reranker | None = None,
    ) -> RerankScores:
        """Fused scores of texts, by which `search` would order them: from first-stage scores and those of both models.

        Args:
            texts: documents in the form of `pipeline.text.document_text`.
            bm25: (texts,) first-stage scores, at least 0; None takes BM25 by the words of the release's documents.
            reranker: the result of `reranker_within`; `reranker` when not given.

        Raises:
            NotServedError: the release has no ranker, no encoder or no fusion, its fusion weighs single fields, or it
                has no words to take BM25 by.
            BusyError, DeadlineError, InferenceError, ClientGoneError: see `reranker` and `embedder`.
        """
        reranker, embedder, fusion = reranker or self.reranker, self.embedder, self.fusion
        if fusion.fields:
            raise NotServedError(contents.lacks("fields", self.workspace))
        if bm25 is None:
            bm25 = self._text_scores(query, texts, options)
        queried = embedder.vectors([query], "query", options)
        cut = self._cut(texts, reranker.max_passages, options)
        embedded = embedder.vectors([part for parts in cut for part in parts], "document", options)
        scored = reranker.scores(query, texts, options)
        nearness = iter([float(queried.values[0] @ vector) for vector in embedded.values])
        cosines = [max(next(nearness) for _ in parts) for parts in cut]
        values = fusion.scores(features.table(bm25, cosines, scored.values))
        parts = (queried, embedded, scored)
        return RerankScores(
            values=values,
            ranker=scored.values,
            fused=True,
            hits=sum(fetched.hits for fetched in parts),
            misses=sum(fetched.misses for fetched in parts),
        )

    def _text_scores(self, query: str, texts: Sequence[str], options: RequestOptions) -> list[float]:
        """BM25 of texts by the words of all documents of the release."""
        if self._contents is None or self._contents.collection is not None:
            raise NotServedError(contents.lacks("words", self.workspace))
        cleaned = [text.clean(item) for item in texts]
        try:
            scores = self.lexical.text_scores(text.clean(query), cleaned, options.deadline.check)
        except MissingError as error:
            raise NotServedError(str(error)) from error
        return [float(score) for score in scores]

    def _cut(self, texts: Sequence[str], most: int, options: RequestOptions) -> list[list[str]]:
        """The parts of each text that get vectors in the index of this release: its passages, or the text itself.

        Args:
            most: maximum number of parts of all texts; 0 for no bound.

        Raises:
            BodyTooLargeError: there are more.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        passages = self._indexed_passages
        if passages is None:
            return [[item] for item in texts]
        texts = [text.clean(item) for item in texts]
        spans = self.encoder.text_cutter(passages).cut(texts, options.deadline.check)
        check_passages(len(texts), sum(map(len, spans)), most)
        return [[item[start:end] for start, end in parts] for item, parts in zip(texts, spans, strict=True)]

    @property
    def _indexed_passages(self) -> Passages | None:
        """The passages in which the index holds long documents; None where each document has one vector."""
        return self._contents.semantic.passages if self._contents else None

    def probe_shards(self) -> ShardCounts:
        """The services that answer as shards of this release; none where it holds its documents itself."""
        return ShardCounts(answered=0, of=0, missing=[])

    def document(self, doc_id: str, *, neighbours: int, options: RequestOptions) -> OpenedDocument | None:
        """A whole document with those nearest to it; None where the release has no such document.

        Raises:
            NotServedError: the release has no documents.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
        """
        return open_document(
            self._searchable, doc_id, neighbours=neighbours, deadline=options.deadline, release=self.release
        )

    def _fits(self, candidates: Candidates, options: RequestOptions) -> bool | None:
        """Whether anything may answer the query, see `ChanceLevel.exceeded`; None where that is not known."""
        if self._chance is None:
            return True if candidates.by_words else None
        return self._chance.exceeded(candidates.by_words, candidates.by_meaning, options)

    def _candidates(
        self, search: RunningSearch, depth: int, filters: Mapping[str, Sequence[Value]] | None
    ) -> Candidates:
        """The first `depth` documents that BM25 and the encoder find for a query, with their first-stage scores.

        Raises:
            InvalidRequestError: no document has a field that the search names.
            DeadlineError: the deadline has passed.
            ClientGoneError: the client has closed the connection.
            NotServedError: the release lacks a part that this needs.
        """
        answers.check_known(search.details.facets, self.fields)
        retrieval, query = self.retrieval, search.query
        with search.watch("lexical"):
            among = retrieval.rows_where(filters) if filters else None
            by_words = retrieval.by_words(query, depth, among)
        search.options.deadline.check()
        queried = self._query_vector(search)
        with search.watch("semantic"):
            vector = queried.values[0] if queried else None
            by_meaning = [] if vector is None else retrieval.by_meaning(vector, depth, among)
            rows = join(by_words, by_meaning)
            pool = retrieval.pool(query, rows, vector, self._weighed_fields(search, queried))
        search.options.deadline.check()
        with search.watch("documents"):
            documents = dict(zip(rows, self.documents.get_many(rows), strict=True))
        return Candidates(
            by_words=by_words,
            by_meaning=by_meaning,
            rows=rows,
            pool=pool,
            queried=queried,
            documents=documents,
            query_terms=self.lexical.query_terms(query) if search.details.matches else None,
        )

    def _weighed_fields(self, search: RunningSearch, queried: Fetched[Vector] | None) -> Sequence[str]:
        """The features of single fields that the final order needs; none where the search has no fused order."""
        if self._fusion is None or queried is None or "reranked" not in search.details.lists:
            return ()
        return self._fusion.fields

    def _query_vector(self, search: RunningSearch) -> Fetched[Vector] | None:
        """The encoder's vector of the query; None where no list needs it, or the encoder is missing."""
        with search.watch("encode"):
            if list(search.details.lists) == ["lexical"]:
                return None
            return search.models.attempt(
                "encoder", lambda: self.embedder.vectors([search.query], "query", search.models.options)
            )

    def _ranked(self, search: RunningSearch, candidates: Candidates) -> RankedCandidates:
        """The candidates in the final order: by all scores, or by those of the models that answered."""
        rows, pool, documents, fusion = candidates.rows, candidates.pool, candidates.documents, self._fusion
        with search.watch("rerank"):
            scored = None
            if "ranker" in self.models and "reranked" in search.details.lists:
                bodies = [text.document_text(documents[row].title, documents[row].text) for row in rows]
                scored = search.models.attempt(
                    "ranker", lambda: self.reranker.read(search.query, bodies, search.models.options)
                )
            read = dict(zip(rows, scored.values, strict=True)) if scored else {}
            table = pool.table([score.value for score in read.values()]) if scored and fusion else None
            final = fusion.scores(table) if fusion and table else pool.before()
        hits = [Hit(rows[number], documents[rows[number]].doc_id, final[number]) for number in by_score(final)]
        least = search.details.min_relevance
        return RankedCandidates(
            scored=scored,
            read=read,
            features=dict(zip(rows, table, strict=True)) if table else {},
            hits=[hit for hit in hits if relevance(read[hit.row].value) >= least] if read else hits,
        )

    def _result(
        self, search: RunningSearch, candidates: Candidates, ranked: RankedCandidates, fits: bool | None, top_n: int
    ) -> SearchResult:
        """The answer: the first `top_n` of each list, with what the search asks for beside them."""
        hits = {"lexical": candidates.by_words, "semantic": candidates.by_meaning, "reranked": ranked.hits}
        lists = {name: hits[name][:top_n] if name in search.details.lists else [] for name in answers.LISTS}
        shown = self._shown(search, lists, candidates, ranked)
        relevances = {row: relevance(score.value) for row, score in ranked.read.items()}
        fetched = [part for part in (candidates.queried, ranked.scored) if part]
        return SearchResult(
            query=search.query,
            release=self.release,
            lexical=answers.results(lists["lexical"], shown),
            semantic=answers.results(lists["semantic"], shown),
            reranked=answers.results(
                lists["reranked"], shown, relevances, self._explanations(search, lists["reranked"], candidates, ranked)
            ),
            fits=fits,
            facets=answers.facets(search.details.facets, candidates.documents.values(), search.options.deadline),
            milliseconds=search.watch.milliseconds(),
            candidates=len(candidates.rows),
            cache_hits=sum(part.hits for part in fetched),
            cache_misses=sum(part.misses for part in fetched),
            degraded=search.models.missing,
            shards=candidates.shards,
            model_failed=search.models.failed,
        )

    def _shown(
        self,
        search: RunningSearch,
        lists: Mapping[ListName, Sequence[Hit]],
        candidates: Candidates,
        ranked: RankedCandidates,
    ) -> ShownDocuments:
        """The snippets, passages, ranks and fields of all documents that the lists show."""
        names, deadline = search.details.fields, search.options.deadline
        chosen = {hit.row: candidates.documents[hit.row] for hits in lists.values() for hit in hits}
        texts = {row: document.text for row, document in chosen.items()}
        passages = best_passages(self.ranker.tokeniser, chosen, ranked.read, deadline) if ranked.read else {}
        unread = {row: document for row, document in chosen.items() if row not in passages}
        nearest = candidates.nearest
        if nearest is None and candidates.queried:
            nearest = self.semantic.nearest_passages(candidates.queried.values[0], list(unread))
        passages |= nearest_passages(unread, nearest or {})
        cut, terms = snippets(texts, search.query, deadline, passages), candidates.query_terms
        return ShownDocuments(
            documents=candidates.documents,
            snippets=cut,
            matches=answers.term_matches(terms, chosen, cut, deadline) if terms else {},
            passages=passages,
            ranks=candidates.ranks(),
            fields=answers.chosen_fields(names, chosen, deadline) if names else {},
        )

    def _explanations(
        self, search: RunningSearch, hits: Sequence[Hit], candidates: Candidates, ranked: RankedCandidates
    ) -> dict[int, Explanation] | None:
        """The reasons for each result of the final list, by row; None where the search does not ask for them."""
        if not search.details.explain:
            return None
        search.options.deadline.check()
        rows, sent = [hit.row for hit in hits], candidates.terms
        matched = self.lexical.term_scores(search.query, rows) if sent is None else [sent[row] for row in rows]
        search.options.deadline.check()
        return {
            row: answers.explanation(terms, self._fusion, ranked.features.get(row))
            for row, terms in zip(rows, matched, strict=True)
        }
