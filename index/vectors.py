"""Embeds all documents as unit vectors; equal texts are embedded once, and a kill loses only seconds of work.

A text that has a vector already is recognised by its digest: equal texts share one vector, earlier artifacts of
the same encoder give theirs, and an interrupted run left shards beside the artifact.

    round 0      the first vectors of an encoder and a data set; later data sets reuse what they can
    round 1, …   made by `reindex --full`, without any earlier vector; an artifact of their own, so that whoever
                 works with an earlier round keeps its files

Vectors are kept in segments (`index.segments`): a re-index links the files of an earlier artifact and writes one
segment of what they lack.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index import document_reader, segments
from index.digests import DIGEST_BYTES, as_bytes
from index.known_vectors import KnownVectors, SharedVectors
from index.vector_matrix import BLOCK, FILE, KIND, Vectors, unit_vectors
from index.vector_texts import TextChoice, VectorTexts
from pipeline import array_files, artifacts, compute, disk, progress
from pipeline.artifacts import Artifact, Staging
from pipeline.compute import ComputeEngine
from pipeline.errors import ArtifactError, RelevanceError
from pipeline.stage import Stage
from pipeline.temporary import temporary_file
from pipeline.text import counted

STAGE = Stage(KIND, version=1, inputs={"data": ("data", "corpus"), "previous": KIND}, title="document vectors")
BATCH = 256
"""Documents given to the encoder at once."""
SHARD_S = 10.0
"""Seconds of embedding between shards; what a kill loses at most."""

Texts = Callable[[npt.NDArray[np.int64]], Iterator[tuple[str, str]]]
"""Ascending row numbers of the matrix → doc_id and text of each row."""
Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → (texts, dimensions) unit vectors."""


WHOLE_DOCUMENTS = TextChoice()
"""The default choice: one vector for each document, of title and text."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DocumentEncoder:
    """An encoder of documents as a function, and the digest by which its vectors are known again."""

    digest: str
    """Digest of the exported bundle that `embed` runs."""
    embed: Embed
    """The function that embeds up to BATCH texts."""
    engine: ComputeEngine = compute.LOCAL
    """The engine that calls `embed`."""

    def embed_batches(self, batches: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
        """Embeds batches of texts, and yields their vectors in the same order."""
        return self.engine.map(self.embed, batches, label="embedding documents")


@STAGE
def make(
    workspace: Path,
    encoder: DocumentEncoder,
    *,
    data: Artifact,
    previous: Sequence[Artifact] = (),
    embedding_round: int = 0,
    choice: TextChoice = WHOLE_DOCUMENTS,
) -> Artifact:
    """The `vectors` artifact: a matrix of (vectors, dimensions) float32, and rows.parquet with the document of each.

    `vector_matrix` reads the matrix and tells its files.

    Each document has one vector, in row order. With a quality filter only the documents that pass have one. With
    passages each passage has one. Then the column `document` of rows.parquet gives the row in documents.parquet.

    Args:
        workspace: the folder that holds `artifacts/`.
        encoder: its digest is part of the fingerprint.
        data: an artifact with documents.parquet.
        previous: earlier artifacts, the preferred first; their vectors are reused where text and encoder are the same,
            and the segments of the first one of the same field are shared. They are not part of the fingerprint, as
            they change only how long the work takes and which files hold the vectors.
        embedding_round: see `next_round`; part of the fingerprint unless 0.
        choice: the texts that get vectors; part of the fingerprint.

    Raises:
        SchemaError: no documents, no such column, or nothing in it.
        ArtifactError: the encoder gave a vector that is not finite, not of unit length or of another width.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        began = time.monotonic()
        total = document_reader.count(data)
        documents = choice.documents(data)
        texts = choice.in_passages(data, documents, previous)
        shared = SharedVectors.of(previous, encoder.digest, choice.field)
        plan = segments.plan_over(shared.segments, texts.digest_array)
        digests = [texts.digests[row] for row in plan.written.tolist()]
        known = KnownVectors(shared.dimensions)
        known.reuse(previous, encoder.digest, set(digests))
        unknown = known.missing(digests)
        resumed = _resume(known, digests, staging.checkpoint)

        def read(numbers: npt.NDArray[np.int64]) -> Iterator[tuple[str, str]]:
            return texts.read(data, choice.field, plan.written[numbers])

        embedded = _embed_missing(read, digests, encoder, known, staging.checkpoint)
        if not texts.digests:  # As in a shard whose documents all lack a field; the file keeps the width.
            known.add((), unit_vectors(encoder.embed([""]), [""])[:0])
        plan.write(staging)
        if digests or plan.is_fresh:
            _write(staging.folder / plan.folder / FILE, digests, known)
        texts.write(staging.folder / "rows.parquet")
        reused = len(texts.digests) - unknown
        shown = counted(total, "document")
        log.info("vectors: %s, %d embedded, %d reused, %d resumed", shown, embedded, reused, resumed)
        return {
            "documents": total,
            **_counts(documents, texts),
            "dimensions": known.dimensions,
            "embedded": embedded,
            "reused": reused,
            "resumed": resumed,
            **plan.figures(),
            **({"embedded_per_s": round(embedded / (time.monotonic() - began), 1)} if embedded else {}),
        }

    rounds = {"round": embedding_round} if embedding_round else {}
    settings = {"encoder_digest": encoder.digest, **rounds, **choice.settings}
    return STAGE.make(workspace, config=settings, inputs={"data": data}, build=build)


def earlier(workspace: Path, encoder_digest: str) -> list[Artifact]:
    """All vectors of this encoder, those of the latest round first and of one round the newest first.

    Only their manifests are read here; `make` checks the files of those that it needs.
    """
    known = []
    for path in artifacts.finished(workspace, KIND):
        try:
            manifest = artifacts.read_manifest(path)
        except RelevanceError as error:
            log.warning("vectors: not reused: %s", error)
            continue
        if manifest.config.get("encoder_digest") == encoder_digest:
            known.append(Artifact(path, manifest))
    known.reverse()
    return sorted(known, key=_round, reverse=True)  # A stable sort: of one round the newest stays first.


def of_index(known: Sequence[Artifact], index: Artifact | None) -> list[Artifact]:
    """Earlier vectors in an order that prefers those that this index was built from, whose segments it shares."""
    used = index.manifest.inputs.get("vectors") if index is not None else None
    return sorted(known, key=lambda item: item.fingerprint != used)


def last_round(known: Sequence[Artifact], data: Artifact) -> int:
    """The latest round in which these documents were embedded; 0 also where they never were."""
    return max((_round(item) for item in known if item.manifest.inputs["data"] == data.fingerprint), default=0)


def next_round(known: Sequence[Artifact]) -> int:
    """The number of a new full embedding, one above the last finished; a killed run gets it again."""
    return max(map(_round, known), default=0) + 1


def _round(vectors: Artifact) -> int:
    return int(vectors.manifest.config.get("round", 0))


def _counts(documents: VectorTexts, chosen: VectorTexts) -> dict[str, int]:
    """Counts for the metrics where not every document has one vector: of documents with vectors, and of passages."""
    counts = {} if documents.documents is None else {"with_vectors": len(documents.digests)}
    if chosen.spans is not None and chosen.documents is not None:
        _, passages = np.unique(chosen.documents, return_counts=True)
        counts |= {"passages": len(chosen.digests), "in_passages": int((passages > 1).sum())}
    return counts


def _resume(known: KnownVectors, digests: Sequence[bytes], checkpoint: Path) -> int:
    """Adds the vectors that an interrupted run left; returns the number of these digests whose vectors are new."""
    unknown = known.missing(digests)
    for shard in _shards(checkpoint):
        known.add(*shard)
    return unknown - known.missing(digests)


def _embed_missing(
    texts: Texts, digests: Sequence[bytes], encoder: DocumentEncoder, known: KnownVectors, checkpoint: Path
) -> int:
    """Embeds the texts whose vectors are not known yet, and writes a shard every SHARD_S; returns their number."""
    missing = {digest for digest in digests if digest not in known}
    shard: list[tuple[list[bytes], Vectors]] = []
    written = time.monotonic()
    done = len(set(digests)) - len(missing)
    drawn: deque[tuple[list[bytes], list[str]]] = deque()

    def bodies() -> Iterator[list[str]]:
        for batch in _missing_texts(texts, digests, missing):
            names, doc_ids, texts_of_batch = (list(column) for column in zip(*batch, strict=True))
            drawn.append((names, doc_ids))
            yield texts_of_batch

    with progress.bar("Embedding documents", done + len(missing), "documents", done) as advance:
        for embedded in encoder.embed_batches(bodies()):
            names, doc_ids = drawn.popleft()
            vectors = unit_vectors(embedded, doc_ids)
            known.add(names, vectors)
            shard.append((names, vectors))
            if time.monotonic() - written >= SHARD_S:
                _write_shard(checkpoint, shard)
                shard, written = [], time.monotonic()
            advance(len(names))
    return len(missing)


def _missing_texts(
    texts: Texts, digests: Sequence[bytes], missing: set[bytes]
) -> Iterator[list[tuple[bytes, str, str]]]:
    """(digest, doc_id, text) of each missing text once, BATCH at a time, in row order."""
    left, numbers = set(missing), []
    for number, digest in enumerate(digests):
        if digest in left:
            left.remove(digest)
            numbers.append(number)
    wanted = zip(numbers, texts(np.array(numbers, np.int64)), strict=True)
    while batch := [(digests[number], doc_id, text) for number, (doc_id, text) in islice(wanted, BATCH)]:
        yield batch


def _shards(checkpoint: Path) -> Iterator[tuple[list[bytes], Vectors]]:
    """Digests and vectors that an interrupted run left; a damaged shard is removed, and its texts embedded again."""
    for path in sorted(checkpoint.glob("*.npz")):
        with disk.kept_if_unreadable(path):
            try:
                shard = array_files.load_named(path, ("digests", "vectors"))
                digests, vectors = as_bytes(shard["digests"]), shard["vectors"]
                yield digests, unit_vectors(vectors, [digest.hex() for digest in digests])
            except (ValueError, ArtifactError) as error:
                log.warning("%s: not a readable shard (%s); its documents are embedded again", path, error)
                path.unlink()


def _write_shard(checkpoint: Path, shard: Sequence[tuple[list[bytes], Vectors]]) -> None:
    checkpoint.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.stem) for path in checkpoint.glob("*.npz")), default=0)
    path = checkpoint / f"{number:06d}.npz"
    with temporary_file(path) as temporary:
        with temporary.open("wb") as file:
            digests = np.frombuffer(b"".join(digest for names, _ in shard for digest in names), np.uint8)
            matrix = np.concatenate([vectors for _, vectors in shard])
            np.savez(file, digests=digests.reshape(-1, DIGEST_BYTES), vectors=matrix)
        disk.fsync(temporary)
        os.replace(temporary, path)
    disk.fsync(checkpoint)


def _write(path: Path, digests: Sequence[bytes], known: KnownVectors) -> None:
    """Writes the matrix of these texts, in this order.

    By plain writes: through a memory map, a full disk would kill the process without a word.
    """
    with path.open("wb") as file:
        shape = (len(digests), known.dimensions)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, len(digests), BLOCK):
            file.write(known.take(digests[start : start + BLOCK]).astype("<f4").tobytes())
