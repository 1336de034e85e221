"""Looks inside the parts of a release that make documents searchable: whether their contents fit together.

Digests show that files are what was written. These checks show that what was written makes sense: that id maps agree
and repeat nothing, that the counts of the lexical index are those of its living documents, that each document stands
in its row of the store, that vectors are finite, and that every index holds the texts that the others hold.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index import ann, document_store
from index.document_store import DocumentStore
from index.hits import read_ids
from index.postings import Postings
from index.segments import DIGESTS, SegmentMap, read_array
from index.semantic import SemanticIndex, read_stats
from index.store_file import StoreReader
from index.term_weights import HOLDERS, WeighedSegment
from index.vector_rows import VectorRows
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError

BLOCK = 1 << 16
"""Vectors in memory at once."""

Digests = npt.NDArray[np.uint8]


def problems(parts: Mapping[str, Artifact], vectors: Artifact | None = None) -> Iterator[str]:
    """Each fault inside the searchable parts of a release, a sentence each, with the file and what to do.

    Args:
        parts: name of a part → its artifact, whose files were compared with its manifest before.
        vectors: the artifact that the part `index` was built from; None where the workspace no longer has it.
    """
    ids: dict[str, list[str]] = {}
    texts: dict[str, Digests] = {}
    for name, part in parts.items():
        check = _CHECKS.get(part.manifest.kind)
        if check is None:
            continue
        try:
            ids[name] = check(part)
            if (digests := _digests(part)) is not None and name in ("lexical", "index"):
                texts[name] = digests
        except (ArtifactError, OSError) as error:
            yield str(error)
    yield from _ids_agree(parts, ids)
    try:
        if vectors is not None and "index" in ids:
            texts["vectors"] = _check_vectors(vectors, ids["index"])
            texts["documents"] = _whole_texts(vectors, texts["vectors"])
        yield from _texts_agree(parts, texts)
    except (ArtifactError, OSError, ValueError) as error:
        yield str(error)


def _check_lexical(part: Artifact) -> list[str]:
    """Checks a lexical index and returns its ids by row."""
    doc_ids = read_ids(part.file("ids.parquet"))
    if WeighedSegment.FILES[0] in part.manifest.files:
        WeighedSegment(part, len(doc_ids), verify=True)
        return doc_ids
    layout = SegmentMap.read(part, len(doc_ids))
    holders = []
    for number, segment in enumerate(layout.segments):
        folder = part.path / segment.folder
        stored = Postings.read(folder)
        stored.check(folder)
        if len(stored.lengths) != segment.documents:
            raise _wrong(folder / "lengths.npy", f"{len(stored.lengths)} lengths of {segment.documents} documents")
        if stored.terms != sorted(set(stored.terms)):
            raise _wrong(folder / "terms.json", "its terms do not ascend, or repeat")
        lengths = np.bincount(stored.documents, stored.counts, minlength=segment.documents)
        if not np.array_equal(lengths, stored.lengths):
            raise _wrong(folder / "counts.npy", "its counts do not add up to the lengths of the documents")
        holders.append(stored.living(layout.rows_of(number) >= 0))
    if HOLDERS in part.manifest.files:
        path = part.file(HOLDERS)
        if not np.array_equal(read_array(path), np.concatenate(holders)):
            raise _wrong(path, "its numbers are not those of the living documents of each term")
    return doc_ids


def _check_documents(part: Artifact) -> list[str]:
    """Checks a document store and returns its ids by row."""
    store = DocumentStore.load(part.path, verify=False)
    total = len(store)
    store.close()
    layout = SegmentMap.read(part, total)
    doc_ids: list[str | None] = [None] * total
    for number, segment in enumerate(layout.segments):
        path = part.file(segment.file(document_store.FILE))
        rows = layout.rows_of(number)
        reader = StoreReader(path)
        for row, doc_id in reader.all("SELECT row, doc_id FROM documents"):
            if rows[row] >= 0:
                doc_ids[rows[row]] = doc_id
        reader.close()
    if None in doc_ids:
        raise _wrong(part.path, f"no file holds the document of row {doc_ids.index(None)}")
    return [doc_id for doc_id in doc_ids if doc_id is not None]


def _check_index(part: Artifact) -> list[str]:
    """Checks a semantic index and returns the ids of its vectors, by position."""
    doc_ids = SemanticIndex.load(part.path, verify=False).doc_ids
    stored: Any = ann.load(part, len(doc_ids))
    for start in range(0, len(doc_ids), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(doc_ids)), dtype=np.int64)
        vectors = stored.reconstruct_batch(rows)
        bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
        if len(bad):
            doc_id = doc_ids[start + int(bad[0])]
            raise _wrong(part.path, f"the vector of document '{doc_id}' is zero, or not finite, in its {ann.FILE}")
    return doc_ids


_CHECKS: Mapping[str, Callable[[Artifact], list[str]]] = {
    "lexical": _check_lexical,
    "documents": _check_documents,
    "index": _check_index,
}


def _check_vectors(part: Artifact, doc_ids: list[str]) -> Digests:
    """Checks a `vectors` artifact and returns the digests of its texts, by position."""
    import pyarrow.parquet as pq

    path = part.file("vectors.npy")
    matrix = read_array(path)
    for start in range(0, len(matrix), BLOCK):
        lengths = np.linalg.norm(matrix[start : start + BLOCK], axis=1)
        bad = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-2))  # A length that is not a number is bad too.
        if len(bad):
            raise _wrong(path, f"row {start + int(bad[0])} has length {lengths[bad[0]]}, not 1")
    rows = part.file("rows.parquet")
    if read_ids(rows) != doc_ids or len(matrix) != len(doc_ids):
        raise _wrong(rows, "its documents are not those of the index that was built from it")
    held = b"".join(pq.read_table(rows, columns=["content"]).column("content").to_pylist())
    return np.frombuffer(held, np.uint8).reshape(len(doc_ids), -1)


def _whole_texts(part: Artifact, texts: Digests) -> Digests:
    """The digests of the whole texts that those of a `vectors` artifact are cut from, by position.

    Args:
        texts: of this artifact; its own where it has no passages.
    """
    import pyarrow.parquet as pq

    rows = part.file("rows.parquet")
    if "whole" not in pq.read_schema(rows).names:
        return texts
    held = b"".join(pq.read_table(rows, columns=["whole"]).column("whole").to_pylist())
    return np.frombuffer(held, np.uint8).reshape(texts.shape)


def _digests(part: Artifact) -> Digests | None:
    """The digests of a part's contents by row; None of a part that keeps none."""
    files = part.manifest.files
    if part.manifest.kind == "index":
        total = read_stats(part.file("index.json")).rows
    else:
        total = int(part.metrics["documents"])
    layout = SegmentMap.read(part, total)
    names = [segment.file(DIGESTS) for segment in layout.segments]
    if not all(name in files for name in names):
        return None
    held = np.concatenate([read_array(part.file(name)) for name in names])
    return held if layout.positions is None else held[layout.positions]


def _ids_agree(parts: Mapping[str, Artifact], ids: Mapping[str, list[str]]) -> Iterator[str]:
    """The faults of id maps beside each other."""
    reference = next((name for name in ("documents", "lexical") if name in ids), None)
    if reference is None:
        return
    expected = ids[reference]
    if len(set(expected)) != len(expected):
        yield str(_wrong(parts[reference].path, "two rows have one doc_id"))
    for name, doc_ids in ids.items():
        rows = None
        if parts[name].manifest.kind == "index":
            rows = VectorRows.read(parts[name].file("rows.parquet"), len(doc_ids)).rows
        wanted = expected if rows is None else [expected[row] for row in rows.tolist() if row < len(expected)]
        if doc_ids != wanted:
            yield str(_wrong(parts[name].path, f"its documents and their order are not those of {reference}"))


def _texts_agree(parts: Mapping[str, Artifact], texts: Mapping[str, Digests]) -> Iterator[str]:
    """The faults of the digests of texts that two parts keep for the same rows."""
    vectors = texts.get("vectors")
    if vectors is None:
        return
    if "index" in texts and not np.array_equal(texts["index"], vectors):
        yield str(_wrong(parts["index"].path, "it holds other texts than the vectors that it was built from"))
    if "lexical" in texts:
        rows = VectorRows.read(parts["index"].file("rows.parquet"), len(vectors)).rows
        lexical = texts["lexical"] if rows is None else texts["lexical"][rows]
        if not np.array_equal(lexical, texts["documents"]):
            yield str(_wrong(parts["lexical"].path, "it holds other texts than the vectors of the release"))


def _wrong(path: Path, problem: str) -> ArtifactError:
    return ArtifactError(f"{path}: {problem}; {artifacts.remedy(path)}")
