"""A loaded release that answers questions: two ways of finding documents, the ranker, and the order they give.

    query ─┬─► BM25 ───────────────┐
           └─► encoder ─► index ───┴─► pool ─► ranker ─► features ─► fusion ─► final order

Both ways bring their first `retrieve` documents; each document of the pool then gets all three scores, whichever
way it was found, so the features are those that the fusion was fitted on.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.documents import Document, DocumentStore, Rows, Value
from index.hits import Hit
from index.lexical import LexicalIndex
from index.semantic import SemanticIndex, join
from pipeline import artifacts, features, text
from pipeline.errors import ArtifactError, MissingError
from pipeline.features import Fusion
from pipeline.releases import part
from serving.errors import InvalidRequestError
from serving.runtime.admission import RequestOptions
from serving.runtime.deadline import Deadline
from serving.runtime.engine import Engine
from serving.runtime.items import Priority
from serving.runtime.scheduler import Scheduler
from serving.scoring.reranker import Caches, Embedder, Reranker, relevance

SNIPPET_CHARS = 240
EXAMPLES = 6
MAX_EXAMPLE = 70
PING_S = 5.0

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
    """What the ranker alone says, in [0, 1]; None in the other lists."""


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
    """Of the query's vector and the candidates' scores."""


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
            verify: compare the files that are used with their sha256, and the models' outputs for the golden inputs
                with those that their exporter saw.

        Raises:
            MissingError: no such folder.
            ArtifactError: a file is damaged, a model does not give its golden outputs, or the index was built by
                another encoder than the release holds.
            ConfigError: a bundle has no such precision.
        """
        began = time.monotonic()
        # Each part below verifies what it reads; the precisions and the report that nobody asks for are left unread.
        release = artifacts.load(release_path, "release", verify=False)
        caches = caches or Caches.of(64 * 2**20)
        self.release = release.fingerprint
        self.created = release.manifest.created
        self.ranker, self.encoder = (
            Engine(
                part(release, role).path,
                precision=precision,
                threads=threads,
                verify=verify,
                scheduler=scheduler,
                token_bytes=caches.token_bytes,
            )
            for role in ("ranker", "encoder")
        )
        self.lexical = LexicalIndex.load(part(release, "lexical").path, verify=verify)
        self.semantic = SemanticIndex.load(part(release, "index").path, verify=verify)
        self.documents = DocumentStore.load(part(release, "documents").path, verify=verify)
        self.fusion = Fusion.from_json(part(release, "fusion").file("fusion.json").read_text(encoding="utf-8"))
        if self.semantic.encoder_digest != self.encoder.digest:
            raise ArtifactError(
                f"{release_path}: its index holds vectors of encoder {self.semantic.encoder_digest[:12]}, but its "
                f"encoder is {self.encoder.digest[:12]}; run `relevance reindex`, which makes a release that fits"
            )
        self.examples = _examples(part(release, "report").path / "report.json")
        """Queries to try, out of the release's own test set."""
        self.reranker = Reranker(self.ranker, caches.scores)
        self.embedder = Embedder(self.encoder, caches.vectors)
        log.info("release %s: loaded in %.1f s", self.release[:12], time.monotonic() - began)

    def ping(self) -> None:
        """A real inference of both models, past the caches and before all that waits.

        Raises:
            Exception: whatever a model that does not work raises.
            DeadlineError: no answer in PING_S.
        """
        deadline = Deadline.after(PING_S)
        self.ranker.scores("ready", ["ready"], deadline, Priority.PROBE)
        self.encoder.embed(["ready"], "query", deadline, Priority.PROBE)

    def search(
        self,
        query: str,
        *,
        top_n: int = 10,
        retrieve: int = 20,
        filters: Mapping[str, Sequence[Value]] | None = None,
        terms: RequestOptions | None = None,
    ) -> SearchResult:
        """The best documents for a query by BM25, by the encoder, and by all models together.

        Args:
            top_n: length of each list.
            retrieve: documents that each of the two ways brings to the pool; `top_n`, when that is more.
            filters: see `index.documents.DocumentStore.rows_where`. What fits is found first and then searched
                exactly, so a filter that few documents pass has the same answers as a search among those alone.

        Raises:
            InvalidRequestError: no document has such a field, or the store is older than filters.
            BusyError: too much waits for the models.
            InferenceError: a model failed on the query or on a document.
            DeadlineError, ClientGoneError
        """
        terms = terms or RequestOptions(Deadline.never())
        watch = _Stopwatch()
        query = text.clean(query)
        depth = max(retrieve, top_n)
        with watch("lexical"):
            among = self._among(filters) if filters else None
            by_words = self._by_words(query, depth, among)
        with watch("encode"):
            embedded = self.embedder.vectors([query], "query", terms)
            vector = embedded.values[0]
        with watch("semantic"):
            by_meaning = (
                self.semantic.search(vector, depth)
                if among is None
                else self.semantic.search_among(vector, depth, among)
            )
            rows = join(by_words, by_meaning)
            bm25 = self.lexical.scores(query, rows).tolist()
            cosines = self.semantic.similarities(vector, rows).tolist()
        with watch("documents"):
            found = dict(zip(rows, self.documents.get_many(rows), strict=True))
        with watch("rerank"):
            bodies = [text.document_text(found[row].title, found[row].text) for row in rows]
            scored = self.reranker.scores(query, bodies, terms)
            fused = self.fusion.scores(features.table(bm25, cosines, scored.values))
        before = features.reciprocal_rank_fusion(bm25, cosines)
        ranks = _Ranks(
            lexical={hit.row: rank for rank, hit in enumerate(by_words, start=1)},
            semantic={hit.row: rank for rank, hit in enumerate(by_meaning, start=1)},
            before={rows[place]: rank for rank, place in enumerate(_order(before), start=1)},
        )
        final = [Hit(row=rows[place], doc_id=found[rows[place]].doc_id, score=fused[place]) for place in _order(fused)]
        says = {row: relevance(score) for row, score in zip(rows, scored.values, strict=True)}
        return SearchResult(
            query=query,
            release=self.release,
            lexical=_answers(by_words[:top_n], found, query, ranks),
            semantic=_answers(by_meaning[:top_n], found, query, ranks),
            reranked=_answers(final[:top_n], found, query, ranks, says),
            milliseconds=watch.milliseconds(),
            candidates=len(rows),
            cache_hits=embedded.hits + scored.hits,
            cache_misses=embedded.misses + scored.misses,
        )

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


def _answers(
    hits: Sequence[Hit],
    found: Mapping[int, Document],
    query: str,
    ranks: _Ranks,
    says: Mapping[int, float] | None = None,
) -> list[Answer]:
    return [
        Answer(
            doc_id=hit.doc_id,
            title=found[hit.row].title,
            snippet=snippet(found[hit.row].text, query),
            score=float(hit.score),
            rank=rank,
            lexical_rank=ranks.lexical.get(hit.row),
            semantic_rank=ranks.semantic.get(hit.row),
            rank_change=ranks.before[hit.row] - rank if says is not None else None,
            relevance=says[hit.row] if says is not None else None,
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


def snippet(body: str, query: str) -> str:
    """At most SNIPPET_CHARS of a text: its beginning, or the part around the first word of the query far below."""
    flat = " ".join(body[: 40 * SNIPPET_CHARS].split())
    if len(flat) <= SNIPPET_CHARS:
        return flat
    lowered = flat.lower()
    places = [lowered.find(word) for word in query.lower().split() if len(word) > 2 or not word.isascii()]
    first = min((place for place in places if place >= 0), default=0)
    start = 0
    if first > SNIPPET_CHARS // 2:
        start = flat.find(" ", first - SNIPPET_CHARS // 4, first) + 1 or first
    end = start + SNIPPET_CHARS
    return ("… " if start else "") + flat[start:end].rstrip() + ("" if end >= len(flat) else " …")
