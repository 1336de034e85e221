"""Looks inside the parts of a release that make documents searchable: whether their contents fit together.

Digests show that files are what was written. These checks show that what was written makes sense: that id maps agree
and repeat nothing, that the counts of the lexical index are those of its living documents, that each document stands
in its row of the store, that vectors are finite, and that every index holds the texts that the others hold.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from index import ann, document_store, inventory, vector_matrix
from index.digests import Digests, Rows
from index.document_store import DocumentStore
from index.hits import read_ids
from index.postings import Postings
from index.segments import DIGESTS, SegmentMap, read_array
from index.semantic import SemanticIndex
from index.shards import ROWS, WholeCollection, shard_of
from index.store_file import StoreReader
from index.term_weights import HOLDERS, WeighedSegment
from index.vector_texts import text_digests
from pipeline import artifacts
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError
from pipeline.text import counted


@dataclass(frozen=True, slots=True)
class PartContents:
    """The documents that a part of a release holds, in its order; in an `index` one for each vector."""

    doc_ids: list[str]
    rows: Rows | None = None
    """Row of each among all documents of the release; None where the part holds them all, in order."""


def problems(parts: Mapping[str, Artifact], vectors: Artifact | None = None) -> Iterator[str]:
    """Yields a sentence for each fault inside the searchable parts of a release: the file, the fault, what to do.

    Args:
        parts: name of a part → its artifact, whose files were compared with its manifest before.
        vectors: the artifact that the part `index` was built from; None where the workspace no longer has it.
    """
    held: dict[str, PartContents] = {}
    texts: dict[str, Digests] = {}
    for name, part in parts.items():
        check = _CHECKS.get(part.manifest.kind)
        if check is None:
            continue
        try:
            held[name] = check(part)
            if name in ("lexical", "index") and (digests := _digests(part)) is not None:
                texts[name] = digests
        except (ArtifactError, OSError) as error:
            yield str(error)
    yield from _ids_agree(parts, held)
    if vectors is None or "index" not in held:
        return
    try:
        _check_vectors(vectors, held["index"].doc_ids)
        yield from _texts_agree(parts, texts, vectors, held["index"].rows)
    except (ArtifactError, OSError, ValueError) as error:
        yield str(error)


def _check_lexical(part: Artifact) -> PartContents:
    """Checks a lexical index and returns its documents."""
    doc_ids = read_ids(part.file("ids.parquet"))
    if WeighedSegment.FILES[0] in part.manifest.files:
        WeighedSegment(part, len(doc_ids), verify=True)
        return PartContents(doc_ids)
    layout = SegmentMap.read(part, len(doc_ids))
    holders = []
    for number, segment in enumerate(layout.segments):
        folder = part.path / segment.folder
        stored = Postings.read(folder)
        stored.check(folder)
        if len(stored.lengths) != segment.documents:
            raise _wrong(
                folder / "lengths.npy", f"{len(stored.lengths)} lengths of {counted(segment.documents, 'document')}"
            )
        if stored.terms != sorted(set(stored.terms)):
            raise _wrong(folder / "terms.json", "its terms do not ascend, or repeat")
        lengths = np.bincount(stored.documents, stored.counts, minlength=segment.documents)
        if not np.array_equal(lengths, stored.lengths):
            raise _wrong(folder / "counts.npy", "its counts do not add up to the lengths of the documents")
        holders.append(stored.living(layout.rows_of(number) >= 0))
    if (collection := WholeCollection.of(part)) is not None:
        _check_shard(part, collection, doc_ids, np.concatenate(holders))
    elif HOLDERS in part.manifest.files:
        path = part.file(HOLDERS)
        if not np.array_equal(read_array(path), np.concatenate(holders)):
            raise _wrong(path, "its numbers are not those of the living documents of each term")
    return PartContents(doc_ids)


def _check_shard(
    part: Artifact, collection: WholeCollection, doc_ids: list[str], holders: npt.NDArray[np.int32]
) -> None:
    """Checks that a lexical index is the shard of a collection that it says it is.

    Args:
        holders: (terms,) number of documents of the shard that have each term.

    Raises:
        ArtifactError: a number of the whole collection cannot be, or a document belongs to another shard.
    """
    path = part.file(HOLDERS)
    of_whole = read_array(path)
    if of_whole.shape != holders.shape or bool(((of_whole < holders) | (of_whole > collection.documents)).any()):
        raise _wrong(
            path, f"its numbers are not those of {counted(collection.documents, 'document')} with these among them"
        )
    path = part.file(ROWS)
    rows = read_array(path)
    if len(rows) != len(doc_ids) or bool((np.diff(rows, prepend=-1, append=collection.documents) < 1).any()):
        raise _wrong(path, f"its rows do not ascend among {counted(collection.documents, 'document')}")
    for doc_id in doc_ids:
        if (other := shard_of(doc_id, collection.shards)) != collection.shard:
            raise _wrong(
                part.file("ids.parquet"),
                f"document '{doc_id}' belongs to shard {other + 1} of {collection.shards}, not {collection.shard + 1}",
            )


def _check_documents(part: Artifact) -> PartContents:
    """Checks a document store and returns its documents."""
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
    return PartContents([doc_id for doc_id in doc_ids if doc_id is not None])


def _check_index(part: Artifact) -> PartContents:
    """Checks a semantic index and returns the documents of its vectors, by position."""
    index = SemanticIndex.load(part.path, verify=False)
    doc_ids = index.doc_ids
    for start in range(0, len(doc_ids), vector_matrix.BLOCK):
        vectors = index.stored(np.arange(start, min(start + vector_matrix.BLOCK, len(doc_ids)), dtype=np.int64))
        bad = np.flatnonzero(~(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)))
        if len(bad):
            doc_id = doc_ids[start + int(bad[0])]
            raise _wrong(part.path, f"the vector of document '{doc_id}' is zero, or not finite, in its {ann.FILE}")
    return PartContents(doc_ids, index.rows)


_CHECKS: Mapping[str, Callable[[Artifact], PartContents]] = {
    "lexical": _check_lexical,
    "documents": _check_documents,
    "index": _check_index,
}


def _check_vectors(part: Artifact, doc_ids: list[str]) -> None:
    """Checks the vectors that an index was built from.

    Args:
        doc_ids: documents of the index, by the position of the vector.

    Raises:
        ArtifactError: a vector is not of length 1, or they are of other documents.
    """
    layout = SegmentMap.read(part, inventory.indexed(part))
    for segment in layout.segments:
        path = part.file(segment.file(vector_matrix.FILE))
        matrix = read_array(path)
        if len(matrix) != segment.documents:
            raise _wrong(path, f"{len(matrix)} vectors of {counted(segment.documents, 'text')}")
        for start in range(0, len(matrix), vector_matrix.BLOCK):
            lengths = np.linalg.norm(matrix[start : start + vector_matrix.BLOCK], axis=1)
            bad = np.flatnonzero(~(np.abs(lengths - 1) <= 1e-2))  # A length that is not a number is bad too.
            if len(bad):
                raise _wrong(path, f"row {start + int(bad[0])} has length {lengths[bad[0]]}, not 1")
    rows = part.file("rows.parquet")
    if read_ids(rows) != doc_ids or inventory.indexed(part) != len(doc_ids):
        raise _wrong(rows, "its documents are not those of the index that was built from it")


def _digests(part: Artifact) -> Digests | None:
    """The digests of the texts of an index, by row or by position of the vector; None where it keeps none."""
    layout = SegmentMap.read(part, inventory.indexed(part))
    names = [segment.file(DIGESTS) for segment in layout.segments]
    if not all(name in part.manifest.files for name in names):
        return None
    held = np.concatenate([read_array(part.file(name)) for name in names])
    return held if layout.positions is None else held[layout.positions]


def _ids_agree(parts: Mapping[str, Artifact], held: Mapping[str, PartContents]) -> Iterator[str]:
    """Yields a sentence for each part whose documents are not those of the document store, or of the lexical index."""
    reference = next((name for name in ("documents", "lexical") if name in held), None)
    if reference is None:
        return
    expected = held[reference].doc_ids
    if len(set(expected)) != len(expected):
        yield str(_wrong(parts[reference].path, "two rows have one doc_id"))
    for name, own in held.items():
        wanted = expected if own.rows is None else [expected[row] for row in own.rows.tolist() if row < len(expected)]
        if own.doc_ids != wanted:
            yield str(_wrong(parts[name].path, f"its documents and their order are not those of {reference}"))


def _texts_agree(
    parts: Mapping[str, Artifact], texts: Mapping[str, Digests], vectors: Artifact, rows: Rows | None
) -> Iterator[str]:
    """Yields a sentence for each index that holds other texts than the vectors of its release.

    Args:
        texts: name of the part → digests of its texts.
        rows: row of each vector's document among all documents; None where position and row are the same.
    """
    import pyarrow.parquet as pq

    path = vectors.file("rows.parquet")
    has_passages = "whole" in pq.read_schema(path).names
    own = _digests(vectors)
    if own is not None and not np.array_equal(own, text_digests(path)):
        yield str(_wrong(path, "its texts are not those of the segments beside it"))
    if "index" in texts and not np.array_equal(texts["index"], text_digests(path)):
        yield str(_wrong(parts["index"].path, "it holds other texts than the vectors that it was built from"))
    if "lexical" in texts:
        lexical = texts["lexical"] if rows is None else texts["lexical"][rows[rows < len(texts["lexical"])]]
        if not np.array_equal(lexical, text_digests(path, "whole" if has_passages else "content")):
            yield str(_wrong(parts["lexical"].path, "it holds other texts than the vectors of the release"))


def _wrong(path: Path, problem: str) -> ArtifactError:
    return ArtifactError(f"{path}: {problem}; {artifacts.remedy(path)}")
