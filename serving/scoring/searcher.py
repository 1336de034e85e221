"""A loaded release that answers questions: two ways of finding documents, the ranker, and the order they give.

    query ─┬─► BM25 ───────────────┐
           └─► encoder ─► index ───┴─► pool ─► ranker ─► features ─► fusion ─► final order

Both ways bring their first `retrieve` documents; each document of the pool then gets all three scores, whichever
way it was found, so the features are those that the fusion was fitted on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from index.document_store import Value
from index.hits import Hit
from index.semantic import join
from pipeline import text
from pipeline.features import by_score
from serving.errors import InvalidRequestError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import answers
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
from serving.scoring.embedder import Vector
from serving.scoring.noise import ChanceLevel
from serving.scoring.opened_document import OpenedDocument, open_document
from serving.scoring.reranker import relevance
from serving.scoring.running_search import ModelAttempts, RunningSearch
from serving.scoring.snippets import snippets
from serving.scoring.text_scorer import TextScorer

__all__ = ["Answer", "SearchDetails", "SearchResult", "Searcher"]


class Searcher(TextScorer):
    """A loaded release that searches, and scores texts that are sent; see `LoadedRelease` for how it is loaded."""

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
            InvalidRequestError: no document has such a field, the store is older than filters, or a least relevance is
                given where no ranker is.
            BusyError: without `degrade`, too much waits for the models.
            InferenceError: without `degrade`, a model failed on the query or on a document.
            DeadlineError: the time is over; with `degrade`, only where it was before BM25 had answered.
            NotServedError: the release has no documents.
            ServingError: a score is not finite, so a file of the release is damaged.
            ClientGoneError: the client has closed the connection.
        """
        options, details = options or RequestOptions(Deadline.never()), details or SearchDetails()
        if details.min_relevance and "ranker" not in self.models:
            raise InvalidRequestError(
                "min_relevance bounds the score of a ranker, and this release has none; leave it out"
            )
        models = ModelAttempts(replace(options, deadline=options.deadline.with_reserve()), degrade)
        search = RunningSearch(text.clean(query), details, options, models)
        candidates = self._candidates(search, max(retrieve, top_n), filters)
        ranked = self._ranked(search, candidates)
        fits = self._fits(candidates, models.options) if candidates.queried else None
        return self._result(search, candidates, ranked, fits, top_n)

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
            scored, wanted = None, "reranked" in search.details.lists
            if "ranker" in self.models and wanted:
                bodies = [text.document_text(documents[row].title, documents[row].text) for row in rows]
                scored = search.models.attempt(
                    "ranker", lambda: self.reranker.read(search.query, bodies, search.models.options)
                )
            read = dict(zip(rows, scored.values, strict=True)) if scored else {}
            table = None
            if fusion and wanted and (scored or "ranker" not in self.models):  # Without a ranker its feature is 0.
                table = pool.table([score.value for score in read.values()] or [0.0] * len(rows))
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
