"""The lexical index: BM25 over titles and texts. Builds it with bm25s, searches it, and writes candidate runs.

bm25s stores each term's contribution to each document's score, so a search only adds. Its files are
memory-mapped and added up here: that starts in milliseconds, needs no bm25s in the service, and gives
one document the same score in a search and in a look-up of single documents.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from index import analyzer, documents
from index.analyzer import analyser
from index.hits import Hit, RunDepth, judged_queries, read_ids, write_ids, write_run
from pipeline import artifacts, progress, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, SchemaError
from pipeline.stage import Stage

if TYPE_CHECKING:
    from pipeline.config import IndexConfig

KIND = "lexical"
STAGE = Stage(KIND, version=1, inputs={"data": ("data", "corpus")}, section="index", title="lexical index")
RUN = Stage("run", version=1, inputs={"lexical": KIND, "data": ("data", "asked")}, title="BM25 run")
SCORES = Stage(
    "scores", version=1, inputs={"lexical": KIND, "data": "data", "pairs": ("pairs", "pool")}, title="BM25 scores"
)

MAX_TERMS = 4096
"""Maximum number of terms of a query, with repetitions; the rest is not searched for."""

# The names that bm25s gives its files: a sparse matrix by columns, a column a term.
_SCORES, _ROWS, _STARTS = "data.csc.index.npy", "indices.csc.index.npy", "indptr.csc.index.npy"
_VOCABULARY, _IDS = "vocab.index.json", "ids.parquet"

log = logging.getLogger(__name__)


@STAGE
def make(workspace: Path, config: "IndexConfig", *, data: Artifact, field: str = "") -> Artifact:
    """The `lexical` artifact: BM25 (the Lucene variant) of all documents of this data.

    Args:
        field: the column that is indexed alone, see `index.fields`; title and text together where empty.

    Raises:
        ConfigError: no stemmer for `index.language`.
        SchemaError: there are no documents, no such column, or no term in any document.
    """
    settings = {"language": config.language, "k1": config.k1, "b": config.b, "analysis": analyzer.VERSION}
    settings |= {"field": field} if field else {}
    analyse = analyser(config.language)

    def build(staging: Staging) -> Mapping[str, Any]:
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # It logs every step otherwise.
        total = documents.count(data)
        doc_ids: list[str] = []
        counted: list[list[int]] = []
        vocabulary: dict[str, int] = {}
        with progress.bar("Indexing terms", total, "documents") as advance:
            for doc_id, text in documents.texts(data, field):
                doc_ids.append(doc_id)
                counted.append([vocabulary.setdefault(term, len(vocabulary)) for term in analyse(text)])
                advance(1)
        if not vocabulary:
            columns = f"column {field}, which index.fields names" if field else "title and text columns"
            raise SchemaError(f"{data.path}: not one word in {total} documents; look at their {columns}")
        bm25 = bm25s.BM25(method="lucene", k1=config.k1, b=config.b)
        bm25.index((counted, vocabulary), create_empty_token=False, show_progress=False)
        bm25.save(staging.folder)
        write_ids(staging.folder / _IDS, doc_ids)
        size = sum(path.stat().st_size for path in staging.folder.iterdir())
        return {"documents": total, "terms": len(vocabulary), "bytes_per_document": round(size / total, 1)}

    return STAGE.make(workspace, config=settings, inputs={"data": data}, build=build)


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
    """The `scores` artifact: scores.parquet (row_id, score), BM25 of each pair of one split of a table of pairs."""

    def build(staging: Staging) -> Mapping[str, Any]:
        import pyarrow as pa

        index = LexicalIndex.load(lexical.path, verify=False)
        rows = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
        queries = judged_queries(data, [split])
        table = schema.read(pairs.file("pairs.parquet"), "pairs").to_pandas()
        table = table[table["split"] == split].sort_values("query_id", kind="stable")
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
        analyse: Callable[[str], list[str]],
        vocabulary: Mapping[str, int],
        postings: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int64]],
        doc_ids: list[str],
    ) -> None:
        self._analyse, self._vocabulary = analyse, vocabulary
        self._scores, self._rows, self._starts = postings
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
        file = artifact.file(_VOCABULARY)
        try:
            vocabulary = json.loads(file.read_bytes())
        except ValueError as error:
            raise ArtifactError(f"{file}: not a readable vocabulary ({error}); build the index again") from error
        scores, rows, starts = (_array(artifact.file(name)) for name in (_SCORES, _ROWS, _STARTS))
        if not (len(starts) == len(vocabulary) + 1 and starts[-1] == len(scores) == len(rows)):
            raise ArtifactError(
                f"{path}: {len(vocabulary)} terms, {len(starts) - 1} lists that end at {starts[-1]}, {len(scores)} "
                f"scores and {len(rows)} rows do not belong together; build the index again"
            )
        doc_ids = read_ids(artifact.file(_IDS))
        if verify:
            _check_postings(path, scores, rows, starts, len(doc_ids))
        config = artifact.manifest.config
        analyse = analyser(config["language"], config.get("analysis", 1))
        return cls(analyse, vocabulary, (scores, rows, starts), doc_ids)

    def search(self, query: str, k: int) -> list[Hit]:
        """Finds at most k documents with a score above 0, best first; equal scores are ordered by row."""
        totals = np.zeros(len(self.doc_ids), np.float32)
        for _, times, start, end in self._lists(query):
            totals[self._rows[start:end]] += times * self._scores[start:end]  # A document is in a list once.
        rows = np.flatnonzero(totals)
        scores = totals[rows]
        if 0 < k < len(rows):
            last = np.partition(scores, len(rows) - k)[len(rows) - k]
            above, level = np.flatnonzero(scores > last), np.flatnonzero(scores == last)
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
        wanted = wanted.astype(self._rows.dtype)  # Else each list would be widened to be searched.
        totals = np.zeros(len(wanted), np.float32)
        for _, part in self._parts(query, wanted):
            totals += part
        return totals

    def term_scores(self, query: str, rows: Sequence[int]) -> list[dict[str, float]]:
        """The part of each query term in the BM25 of each of these documents; terms that a document lacks are left out.

        The parts of a document sum to its score. Terms are as the index has them: folded, stems where the recipe names
        a language.
        """
        shares: list[dict[str, float]] = [{} for _ in rows]
        for term, part in self._parts(query, np.asarray(rows, self._rows.dtype)):
            for number in np.flatnonzero(part):
                shares[number][term] = float(part[number])
        return shares

    def _parts(self, query: str, wanted: npt.NDArray[Any]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Each known term of a query with its part in the BM25 of each wanted row, (rows,)."""
        for term, times, start, end in self._lists(query):
            listed = self._rows[start:end]  # Ascending, as documents were indexed in their order.
            nearest = np.minimum(np.searchsorted(listed, wanted), end - start - 1)
            yield (
                term,
                np.where(listed[nearest] == wanted, times * self._scores[start:end][nearest], np.float32(0)),
            )

    def _lists(self, query: str) -> Iterator[tuple[str, np.float32, int, int]]:
        """The known terms of a query: the term, times in the query, start and end of its list of documents."""
        for term, times in Counter(self._analyse(query)[:MAX_TERMS]).items():
            column = self._vocabulary.get(term)
            if column is not None:
                yield term, np.float32(times), int(self._starts[column]), int(self._starts[column + 1])


def _check_postings(
    path: Path,
    scores: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    documents: int,
) -> None:
    """Raises ArtifactError where a score is not finite, a row does not exist or the lists overlap."""
    sound = starts[0] == 0 and bool((np.diff(starts) >= 0).all()) and bool(np.isfinite(scores).all())
    if not sound or (len(rows) and not (rows.min() >= 0 and rows.max() < documents)):
        raise ArtifactError(
            f"{path}: its lists overlap, hold a score that is not finite, or name rows beyond {documents} documents; "
            f"{artifacts.remedy(path)}"
        )


def _array(path: Path) -> npt.NDArray[Any]:
    try:
        loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ArtifactError(f"{path}: not a readable array ({error}); build the index again") from error
    return np.asarray(loaded)  # Still mapped; a plain view slices faster than numpy's memmap class.
