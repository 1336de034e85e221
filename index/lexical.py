"""The lexical index: BM25 over titles and texts. Searches its segments, and writes runs and scores of candidates.

Segments hold counts (`index.postings`) that are mapped into memory and weighed when a query is asked
(`index.term_weights`): that starts in milliseconds, gives one document the same score in a search and in a look-up of
single documents, and the same score whatever segments its index is made of. Indexes from before segments hold the
finished scores of bm25s, and are searched as they are.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.analyzer import analyser
from index.highlights import QueryTerms
from index.hits import Hit, RunDepth, judged_queries, read_ids, write_run
from index.segments import SegmentMap
from index.term_weights import (
    COLLECTION,
    LengthNorm,
    LexicalSegment,
    WeighedSegment,
    idf,
    load_counted,
    read_collection,
)
from pipeline import artifacts, progress, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import MissingError, SchemaError
from pipeline.stage import Stage

KIND = "lexical"
RUN = Stage("run", version=1, inputs={"lexical": KIND, "data": ("data", "asked")}, title="BM25 run")
SCORES = Stage(
    "scores", version=1, inputs={"lexical": KIND, "data": "data", "pairs": ("pairs", "pool")}, title="BM25 scores"
)

MAX_TERMS = 4096
"""Maximum number of terms of a query, with repetitions; the rest is not searched for."""

IDS = "ids.parquet"
"""File of a `lexical` artifact: the id of each row."""


@RUN
def run(workspace: Path, *, lexical: Artifact, data: Artifact, depth: int, splits: Sequence[str]) -> Artifact:
    """The `run` artifact: the first `depth` documents of each query.

    A query without a known term has no rows; the metrics count such queries. In a collection whose queries are
    documents too (same id), a query never finds itself.

    Args:
        splits: the splits in whose judgments a query must occur; empty takes all queries.
    """
    listed = RunDepth.of(data, depth)
    settings = {"system": "bm25", "splits": sorted(splits), **listed.settings}

    def build(staging: Staging) -> Mapping[str, Any]:
        index = LexicalIndex.load(lexical.path, verify=False)
        queries = judged_queries(data, splits)

        def hits() -> Iterator[tuple[str, list[Hit]]]:
            with progress.bar("Searching the lexical index", len(queries), "queries") as advance:
                for query_id, text in queries.items():
                    yield query_id, index.search(text, listed.searched)
                    advance(1)

        return write_run(staging.folder / "run.parquet", hits(), "bm25", listed)

    inputs = {"lexical": lexical, "data": data}
    return RUN.make(workspace, config=settings, inputs=inputs, build=build)


@SCORES
def score(workspace: Path, *, lexical: Artifact, data: Artifact, pairs: Artifact, split: str) -> Artifact:
    """The `scores` artifact: scores.parquet (row_id, score), BM25 of each pair of one split of a table of pairs.

    Args:
        split: name of the split; empty takes all pairs, those of the table's own queries too.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        import pyarrow as pa

        index = LexicalIndex.load(lexical.path, verify=False)
        rows = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
        queries = judged_queries(data, [split] if split else [])
        table = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
        if split:
            table = table[table["split"] == split]
        elif "queries.parquet" in pairs.manifest.files:
            queries |= judged_queries(pairs, [])
        table = table.sort_values("query_id", kind="stable")
        scores = [
            index.scores(queries[str(query_id)], [rows[doc_id] for doc_id in doc_ids])
            for query_id, doc_ids in table.groupby("query_id")["doc_id"]
        ]
        columns = {"row_id": table["row_id"].to_numpy(), "score": np.concatenate([np.zeros(0, np.float32), *scores])}
        schema.write(pa.table(columns), staging.folder / "scores.parquet", "scores")
        return {"pairs": len(table)}

    inputs = {"model": lexical, "data": data, "pairs": pairs}
    config = {"split": split}
    return SCORES.make(workspace, config=config, inputs=inputs, build=build)


class LexicalIndex:
    """Searches a `lexical` artifact; one index serves all threads of a process."""

    def __init__(
        self,
        analysis: tuple[str, int],
        segments: Sequence[LexicalSegment],
        layout: SegmentMap,
        doc_ids: list[str],
        weigh: Callable[[int], float],
        living: int,
        norm: LengthNorm | None = None,
    ) -> None:
        """
        Args:
            analysis: language of the stemmer and version of the analysis.
            weigh: number of documents with a term → the factor of its weights in the segments; 1 where they contain it.
            living: number of documents of the whole collection.
            norm: the norm of a document by its length; None for segments with finished scores.
        """
        self._norm = norm
        self._analysis, self._analyse = analysis, analyser(*analysis)
        self._segments, self._layout, self._weigh, self._living = segments, layout, weigh, living
        self.doc_ids = doc_ids
        """row → doc_id"""

    @classmethod
    def load(cls, path: Path, *, verify: bool = True) -> "LexicalIndex":
        """The index in a `lexical` artifact; with `verify` its content is checked against the manifest and for sense.

        Raises:
            MissingError: no such folder.
            ArtifactError: a damaged file, by name, or files that do not belong together.
        """
        artifact = artifacts.load(path, KIND, verify=verify)
        doc_ids = read_ids(artifact.file(IDS))
        layout = SegmentMap.read(artifact, len(doc_ids))
        config = artifact.manifest.config
        analysis = config["language"], int(config.get("analysis", 1))
        if WeighedSegment.FILES[0] in artifact.manifest.files:
            weighed = WeighedSegment(artifact, len(doc_ids), verify=verify)
            return cls(analysis, [weighed], layout, doc_ids, lambda _: 1.0, len(doc_ids))
        counted, norm = load_counted(artifact, layout, verify=verify)
        is_shard = COLLECTION in artifact.manifest.files
        living = int(read_collection(artifact)["documents"]) if is_shard else len(doc_ids)
        return cls(analysis, counted, layout, doc_ids, partial(idf, living), living, norm)

    def search(self, query: str, k: int) -> list[Hit]:
        """Finds at most k documents with a score above 0, best first; equal scores are ordered by row."""
        starts = self._layout.starts
        totals = np.zeros(starts[-1], np.float32)
        for _, weight, lists in self._terms(query):
            for number, bounds in lists:
                segment = self._segments[number]
                weights = segment.weights(bounds, slice(None)) * weight
                # A document is in a list once.
                totals[starts[number] : starts[number + 1]][segment.listed(bounds)] += weights
        positions = np.flatnonzero(totals)  # A tombstone has 0.
        scores = totals[positions]
        rows = positions if self._layout.rows is None else self._layout.rows[positions]
        if 0 < k < len(rows):
            last = np.partition(scores, len(rows) - k)[len(rows) - k]
            above, level = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
            level = level[np.argsort(rows[level], kind="stable")]
            kept = np.concatenate([above, level[: k - len(above)]])
            rows, scores = rows[kept], scores[kept]
        order = np.lexsort((rows, -scores))[: max(k, 0)]
        pairs = zip(rows[order].tolist(), scores[order].tolist(), strict=True)
        return [Hit(row, self.doc_ids[row], score) for row, score in pairs]

    def scores(self, query: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """BM25 of each of these documents, (rows,); 0 where no term is shared. The same numbers as `search` gives.

        Raises:
            SchemaError: there is no such row.
        """
        wanted = np.asarray(rows, np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self.doc_ids)):
            raise SchemaError(
                f"rows {wanted.min()} to {wanted.max()} are requested; there are 0 to {len(self.doc_ids) - 1}"
            )
        totals = np.zeros(len(wanted), np.float32)
        for _, part in self._parts(query, wanted):
            totals += part
        return totals

    def text_scores(
        self, query: str, texts: Sequence[str], check: Callable[[], None] = lambda: None
    ) -> npt.NDArray[np.float32]:
        """BM25 that documents of these texts would have, (texts,), by the words of the documents that are indexed.

        A text that is the `pipeline.text.document_text` of an indexed document has the score that `search` gives it.

        Args:
            check: called before each text is read; what it raises is raised.

        Raises:
            MissingError: the index is from before segments, and holds finished scores alone.
        """
        if self._norm is None:
            raise MissingError(
                "the lexical index of this release is older than BM25 of texts; build it again with the command that "
                "made the release"
            )
        weights = {term: weight for term, weight, _ in self._terms(query)}
        counts, lengths = np.zeros((len(weights), len(texts)), np.float32), np.zeros(len(texts), np.int32)
        for number, text in enumerate(texts):
            check()
            terms = self._analyse(text)
            times, lengths[number] = Counter(terms), len(terms)
            counts[:, number] = [times[term] for term in weights]
        norms = self._norm.of(lengths)
        totals = np.zeros(len(texts), np.float32)
        for weight, count in zip(weights.values(), counts, strict=True):
            totals += np.divide(count, norms + count, out=np.zeros_like(totals), where=count > 0) * weight
        return totals

    def term_scores(self, query: str, rows: Sequence[int]) -> list[dict[str, float]]:
        """The part of each query term in the BM25 of each of these documents; terms that a document lacks are left out.

        The parts of a document sum to its score. Terms are as the index has them: folded, stems where the recipe names
        a language.
        """
        shares: list[dict[str, float]] = [{} for _ in rows]
        for term, part in self._parts(query, np.asarray(rows, np.int64)):
            for number in np.flatnonzero(part):
                shares[number][term] = float(part[number])
        return shares

    def query_terms(self, query: str) -> QueryTerms:
        """The terms of a query that the index knows, which `QueryTerms.spans` finds in texts."""
        language, version = self._analysis
        shares = {
            term: sum(self._segments[number].holders(term) for number, _ in lists) / self._living
            for term, _, lists in self._terms(query)
        }
        return QueryTerms(language=language, version=version, shares=shares)

    def _parts(self, query: str, wanted: npt.NDArray[np.int64]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Each known term of a query with its part in the BM25 of each wanted row, (rows,)."""
        located = self._layout.located(wanted)
        for term, weight, lists in self._terms(query):
            part = np.zeros(len(wanted), np.float32)
            for number, bounds in lists:
                held, documents = located[number]
                segment = self._segments[number]
                listed = segment.listed(bounds)
                nearest = np.minimum(np.searchsorted(listed, documents), len(listed) - 1)
                has = listed[nearest] == documents
                part[held[has]] = segment.weights(bounds, nearest[has]) * weight
            yield term, part

    def _terms(self, query: str) -> Iterator[tuple[str, np.float32, list[tuple[int, tuple[int, int]]]]]:
        """The known terms of a query: the term, its weight, and segment and bounds of each list that it has."""
        for term, times in Counter(self._analyse(query)[:MAX_TERMS]).items():
            lists = [
                (number, bounds)
                for number, segment in enumerate(self._segments)
                if (bounds := segment.bounds(term)) is not None
            ]
            if lists:
                holders = sum(self._segments[number].holders(term) for number, _ in lists)
                yield term, np.float32(times * self._weigh(holders)), lists
