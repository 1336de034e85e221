"""The texts that get vectors: whole documents, one column of each, or the passages of long documents.

    documents   0     1                    2        all, or those that a quality filter keeps
    vectors     0     1     2     3        4        `documents` is 0, 1, 1, 1, 2; each has its span of the text

A passage is known by the digest of its own text: a document that changes at its end keeps the vectors of what stands
before, and the earlier vectors of an unchanged document tell where it is cut.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from index import document_reader
from index.digests import DIGEST_BYTES, Digests, Rows, as_bytes
from index.document_reader import content_digest
from index.quality import QualityFilter
from index.vector_rows import Spans
from pipeline import progress
from pipeline.artifacts import Artifact
from pipeline.errors import ArtifactError, SchemaError
from pipeline.passages import Passages

Cut = Callable[[Sequence[str]], list[list[tuple[int, int]]]]
"""Texts → start and end of the passages of each, in characters, in order; a text that is not cut has one."""
CUT_BATCH = 256
"""Texts that are cut at once."""


@dataclass(frozen=True, slots=True)
class DocumentCutter:
    """The rule by which an encoder reads long documents, and the function that finds the cuts."""

    passages: Passages
    cut: Cut

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the vectors' fingerprint that the passages add."""
        return {"passages": self.passages.to_dict()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextChoice:
    """The texts of a collection that get vectors: by default each document, with title and text as one."""

    quality: QualityFilter | None = None
    """The documents that get vectors; all where None."""
    field: str = ""
    """The column that is embedded alone, see `index.field_vectors`; the whole document where empty. Documents whose
    column is empty get no vector."""
    cutter: DocumentCutter | None = None
    """The rule by which long texts become passages; they are cut at their end where None."""

    @property
    def settings(self) -> dict[str, Any]:
        """The part of the vectors' fingerprint that the choice adds; empty for whole documents."""
        return {
            **(self.quality.settings if self.quality else {}),
            **({"field": self.field} if self.field else {}),
            **(self.cutter.settings if self.cutter else {}),
        }

    def documents(self, data: Artifact) -> "VectorTexts":
        """The chosen texts before they are cut into passages.

        Raises:
            SchemaError: no documents, no such column, or nothing in it.
        """
        return _whole_texts(data, self.quality.kept(data) if self.quality else None, self.field)

    def in_passages(self, data: Artifact, documents: "VectorTexts", previous: Sequence[Artifact]) -> "VectorTexts":
        """The passages of these texts; the texts themselves where none is cut.

        Args:
            documents: the result of `documents`.
            previous: earlier `vectors` artifacts, which tell where unchanged texts are cut.
        """
        if self.cutter is None:
            return documents
        return _cut_texts(data, documents, self.cutter, previous, self.field)


@dataclass(frozen=True, slots=True)
class VectorTexts:
    """The texts that get vectors, in the order of the vectors."""

    doc_ids: list[str]
    digests: list[bytes]
    """Digest of the text of each vector."""
    documents: Rows | None
    """(vectors,) row among all documents, ascending; None where vectors and documents are the same."""
    spans: Spans | None = None
    """(vectors, 2) start and end of each passage in its document's text; None where every text is whole."""
    wholes: Sequence[bytes] = ()
    """Digest of the whole text that each passage is cut from; empty where every text is whole."""

    @property
    def digest_array(self) -> Digests:
        """The digests as an array, (vectors, 16)."""
        return np.frombuffer(b"".join(self.digests), np.uint8).reshape(-1, DIGEST_BYTES)

    def read(self, data: Artifact, field: str, positions: Rows) -> Iterator[tuple[str, str]]:
        """Yields doc_id and text of the vectors at these positions, which ascend."""
        rows = positions if self.documents is None else self.documents[positions]
        if self.spans is None:
            yield from document_reader.texts(data, field, rows)
            return
        wholes = document_reader.texts(data, field, np.unique(rows))
        last, doc_id, text = -1, "", ""
        for row, (start, end) in zip(rows.tolist(), self.spans[positions].tolist(), strict=True):
            if row != last:
                last, (doc_id, text) = row, next(wholes)
            yield doc_id, text[start:end]

    def write(self, path: Path) -> None:
        """Writes rows.parquet, which maps vectors to documents."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {
            "row": pa.array(range(len(self.doc_ids)), pa.int64()),
            "doc_id": pa.array(self.doc_ids, pa.string()),
            "content": pa.array(self.digests, pa.binary(DIGEST_BYTES)),
        }
        if self.documents is not None:
            columns["document"] = pa.array(self.documents)
        if self.spans is not None:
            columns |= {"start": pa.array(self.spans[:, 0]), "end": pa.array(self.spans[:, 1])}
            columns["whole"] = pa.array(self.wholes, pa.binary(DIGEST_BYTES))
        pq.write_table(pa.table(columns), path, compression="zstd")


def text_digests(path: Path, column: str = "content") -> Digests:
    """The digests of the texts in a rows.parquet, (vectors, 16), by position.

    Args:
        column: content for the text of each vector, whole for the document that a passage is cut from.
    """
    import pyarrow.parquet as pq

    digests = b"".join(pq.read_table(path, columns=[column]).column(column).to_pylist())
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)


def _whole_texts(data: Artifact, kept: Rows | None, field: str = "") -> VectorTexts:
    """The whole texts of these documents, or one column of each.

    Args:
        kept: ascending rows; all where None.

    Raises:
        SchemaError: the column is empty in every document of a whole collection; a shard then has no vectors.
    """
    if field:
        kept = _filled(data, field, kept)
    known = document_reader.digests(data)
    texts = document_reader.field_digests(data, field) if field else known.texts
    if kept is None:
        return VectorTexts(known.doc_ids, as_bytes(texts), None)
    return VectorTexts([known.doc_ids[row] for row in kept.tolist()], as_bytes(texts[kept]), kept)


def _cut_texts(
    data: Artifact, documents: VectorTexts, cutter: DocumentCutter, previous: Sequence[Artifact], field: str = ""
) -> VectorTexts:
    """Cuts these documents into passages, each of which gets a vector.

    Args:
        documents: the result of `_whole_texts`.
        previous: earlier `vectors` artifacts. Those that were cut by the same rule tell where unchanged texts are cut.

    Raises:
        ArtifactError: a document was cut into no passage.
    """
    rows = np.arange(len(documents.doc_ids)) if documents.documents is None else documents.documents
    cuts = _known_cuts(previous, cutter, set(documents.digests))
    missing = [number for number, digest in enumerate(documents.digests) if digest not in cuts]
    texts = document_reader.texts(data, field, rows[missing])
    with progress.bar("Cutting documents", len(missing), "documents") as advance:
        numbered = zip(missing, texts, strict=True)
        while part := list(islice(numbered, CUT_BATCH)):
            bodies = [text for _, (_, text) in part]
            for (number, (doc_id, text)), spans in zip(part, cutter.cut(bodies), strict=True):
                if not spans:
                    raise ArtifactError(f"vectors: document '{doc_id}' was cut into no passage")
                cuts[documents.digests[number]] = [
                    (start, end, content_digest(text[start:end])) for start, end in spans
                ]
            advance(len(bodies))
    counts = [len(cuts[digest]) for digest in documents.digests]
    owners = np.repeat(np.arange(len(counts)), counts).tolist()
    flat = [cut for digest in documents.digests for cut in cuts[digest]]
    return VectorTexts(
        doc_ids=[documents.doc_ids[owner] for owner in owners],
        digests=[digest for *_, digest in flat],
        documents=rows[owners],
        spans=np.array([span for *span, _ in flat], np.int32).reshape(-1, 2),
        wholes=[documents.digests[owner] for owner in owners],
    )


def _known_cuts(
    previous: Sequence[Artifact], cutter: DocumentCutter, needed: set[bytes]
) -> dict[bytes, list[tuple[int, int, bytes]]]:
    """Digest of a whole text → start, end and digest of its passages, of needed texts that were cut before."""
    import pyarrow.parquet as pq

    cuts: dict[bytes, list[tuple[int, int, bytes]]] = {}
    for artifact in previous:
        if len(cuts) == len(needed):
            break
        if artifact.manifest.config.get("passages") != cutter.passages.to_dict():
            continue
        # `index.vectors` names damaged files when it reads their vectors.
        try:
            table = pq.read_table(
                artifact.file("rows.parquet"), columns=["document", "start", "end", "content", "whole"]
            )
        except (OSError, ValueError, ArtifactError):
            continue
        fresh: dict[bytes, dict[int, list[tuple[int, int, bytes]]]] = {}
        for document, start, end, content, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
            if text in needed and text not in cuts:
                fresh.setdefault(text, {}).setdefault(document, []).append((start, end, content))
        # Documents with equal texts are cut alike, so the cuts of one of them do.
        cuts |= {text: next(iter(copies.values())) for text, copies in fresh.items()}
    return cuts


def _filled(data: Artifact, field: str, kept: Rows | None) -> Rows:
    """The ascending rows among these, or among all, whose column is not empty."""
    filled = [row for row, (_, text) in enumerate(document_reader.texts(data, field)) if text.strip()]
    rows = np.array(filled, np.int64) if kept is None else np.intersect1d(filled, kept).astype(np.int64)
    if not len(rows) and not document_reader.is_shard(data):
        raise SchemaError(f"{data.path}: column {field}, which index.fields names, is empty in every document")
    return rows
