"""A loaded release that scores texts which a client sends with a query: by the ranker alone, or in the fused order."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import features, text
from pipeline.errors import MissingError
from pipeline.passages import Passages
from serving.errors import NotServedError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.scoring import contents
from serving.scoring.loaded_release import LoadedRelease
from serving.scoring.reranker import Reranker, check_passages


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


class TextScorer(LoadedRelease):
    """A loaded release whose models score texts that it does not hold."""

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
            BodyTooLargeError: the texts have more than `reranker.max_passages` passages.
            BusyError, DeadlineError, InferenceError, ClientGoneError: see `Reranker.scores` and `Embedder.vectors`.
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
