"""Embeds all documents: one unit vector a row, nothing embedded twice, nothing lost to a kill but seconds.

What has a vector already is known by the digest of its text: equal texts share one, an earlier artifact of
the same encoder gives its own, and an interrupted run left shards beside the artifact.
"""

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index import documents
from pipeline import artifacts, progress
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError

KIND = "vectors"
VERSION = 1
BATCH = 256
"""Documents given to the encoder at once."""
SHARD_S = 10.0
"""Seconds of embedding between shards; what a kill loses at most."""
TOLERANCE = 1e-3
"""Largest distance of a vector's length from 1."""

Vectors = npt.NDArray[np.float32]
Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → (texts, dimensions) unit vectors."""

log = logging.getLogger(__name__)


def make(
    workspace: Path, encoder_digest: str, data: Artifact, embed: Embed, previous: Artifact | None = None
) -> Artifact:
    """The `vectors` artifact: vectors.npy (documents, dimensions) float32 in row order, and rows.parquet.

    Args:
        encoder_digest: of the bundle that `embed` runs; part of the fingerprint.
        embed: called with at most BATCH document texts.
        previous: an earlier artifact; its vectors serve again where text and encoder are the same. It is not part of
            the fingerprint, as it changes only how long the work takes.

    Raises:
        SchemaError: no documents.
        ArtifactError: the encoder gave a vector that is not finite, not of unit length or of another width.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        began = time.monotonic()
        total = documents.count(data)
        doc_ids, digests = _digests(data)
        known = _Known()
        if previous is not None:
            _reuse(previous, encoder_digest, known)
        reused = sum(digest in known for digest in digests)
        for shard in _shards(staging.checkpoint):
            known.add(*shard)
        resumed = sum(digest in known for digest in digests) - reused
        embedded = _embed_missing(data, digests, embed, known, staging.checkpoint)
        dimensions = _write(staging.folder / "vectors.npy", digests, known)
        _write_rows(staging.folder / "rows.parquet", doc_ids, digests)
        log.info("vectors: %d documents, %d embedded, %d reused, %d resumed", total, embedded, reused, resumed)
        return {
            "documents": total,
            "dimensions": dimensions,
            "embedded": embedded,
            "reused": reused,
            "resumed": resumed,
            "embedded_per_s": round(embedded / (time.monotonic() - began), 1),
        }

    settings = {"encoder_digest": encoder_digest}
    return artifacts.make(workspace, KIND, version=VERSION, config=settings, inputs={"data": data}, build=build)


def content_digest(text: str) -> bytes:
    """16 bytes that stand for a document's text: `rows.parquet` keeps them in the column `content`."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class _Known:
    """The vectors that there are, by the digest of their text."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._blocks: list[Vectors] = []
        self._ends: list[int] = []

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def add(self, digests: Sequence[bytes], vectors: Vectors) -> None:
        if self._blocks and vectors.shape[1] != self.dimensions:
            raise ArtifactError(
                f"vectors: the encoder gives {vectors.shape[1]} dimensions now and gave {self.dimensions} before; "
                "its digest must change with its width"
            )
        start = self._ends[-1] if self._ends else 0
        self._blocks.append(vectors)
        self._ends.append(start + len(vectors))
        for place, digest in enumerate(digests, start):
            self._places.setdefault(digest, place)

    @property
    def dimensions(self) -> int:
        return int(self._blocks[0].shape[1])

    def take(self, digests: Sequence[bytes]) -> Vectors:
        """(digests, dimensions), all of which must be known."""
        places = np.array([self._places[digest] for digest in digests], np.int64)
        owners = np.searchsorted(self._ends, places, side="right")
        taken = np.empty((len(places), self.dimensions), np.float32)
        for owner in np.unique(owners).tolist():
            chosen = owners == owner
            block = self._blocks[owner]
            taken[chosen] = block[places[chosen] - (self._ends[owner] - len(block))]
        return taken


def _digests(data: Artifact) -> tuple[list[str], list[bytes]]:
    doc_ids, digests = [], []
    for doc_id, text in documents.texts(data):
        doc_ids.append(doc_id)
        digests.append(content_digest(text))
    return doc_ids, digests


def _reuse(previous: Artifact, encoder_digest: str, known: _Known) -> None:
    import pyarrow.parquet as pq

    made_by = previous.manifest.config.get("encoder_digest")
    if previous.manifest.kind != KIND or made_by != encoder_digest:
        log.info("vectors: those before are of another encoder (%s), so all documents are embedded", made_by)
        return
    rows = pq.read_table(previous.file("rows.parquet"), columns=["content"])
    known.add(
        rows.column("content").to_pylist(), np.load(previous.file("vectors.npy"), mmap_mode="r", allow_pickle=False)
    )


def _embed_missing(data: Artifact, digests: Sequence[bytes], embed: Embed, known: _Known, checkpoint: Path) -> int:
    """Makes the vectors that are not known yet, and leaves a shard behind every SHARD_S; how many were made."""
    missing = {digest for digest in digests if digest not in known}
    shard: list[tuple[list[bytes], Vectors]] = []
    written = time.monotonic()
    done = len(set(digests)) - len(missing)
    with progress.bar("Embedding documents", done + len(missing), "documents", done) as advance:
        for batch in _missing_texts(data, digests, missing):
            names, doc_ids, texts = (list(column) for column in zip(*batch, strict=True))
            vectors = _checked(embed(texts), doc_ids)
            known.add(names, vectors)
            shard.append((names, vectors))
            if time.monotonic() - written >= SHARD_S:
                _write_shard(checkpoint, shard)
                shard, written = [], time.monotonic()
            advance(len(texts))
    return len(missing)


def _missing_texts(
    data: Artifact, digests: Sequence[bytes], missing: set[bytes]
) -> Iterator[list[tuple[bytes, str, str]]]:
    """(digest, doc_id, text) of each missing text once, BATCH at a time, in row order."""
    left, batch = set(missing), []
    for digest, (doc_id, text) in zip(digests, documents.texts(data), strict=True):
        if digest in left:
            left.remove(digest)
            batch.append((digest, doc_id, text))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _checked(made: np.ndarray, doc_ids: Sequence[str]) -> Vectors:
    vectors: Vectors = np.ascontiguousarray(made, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(doc_ids):
        raise ArtifactError(
            f"vectors: the encoder gave an array of {vectors.shape} for {len(doc_ids)} documents; "
            "it must give (documents, dimensions)"
        )
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= TOLERANCE))  # A length that is not a number is wrong too.
    if len(wrong):
        raise ArtifactError(
            f"vectors: the vector of document '{doc_ids[wrong[0]]}' has length {lengths[wrong[0]]}, not 1 "
            f"({len(wrong)} of {len(doc_ids)} in its batch); export the encoder again in fp32 and compare"
        )
    return vectors


def _shards(checkpoint: Path) -> Iterator[tuple[list[bytes], Vectors]]:
    """What an interrupted run left; a shard that cannot be read is embedded again."""
    for path in sorted(checkpoint.glob("*.npz")):
        try:
            # Opened here, as numpy leaves a damaged file open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as shard:
                digests, vectors = [row.tobytes() for row in shard["digests"]], shard["vectors"]
            yield digests, _checked(vectors, [digest.hex() for digest in digests])
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, ArtifactError) as error:
            log.warning("%s: not a readable shard (%s); its documents are embedded again", path, error)
            path.unlink()


def _write_shard(checkpoint: Path, shard: Sequence[tuple[list[bytes], Vectors]]) -> None:
    checkpoint.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(path.stem) for path in checkpoint.glob("*.npz")), default=0)
    path = checkpoint / f"{number:06d}.npz"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        digests = np.frombuffer(b"".join(digest for names, _ in shard for digest in names), np.uint8).reshape(-1, 16)
        np.savez(file, digests=digests, vectors=np.concatenate([vectors for _, vectors in shard]))
    artifacts.fsync(temporary)
    os.replace(temporary, path)
    artifacts.fsync(checkpoint)


def _write(path: Path, digests: Sequence[bytes], known: _Known) -> int:
    """Writes the matrix in row order and returns its width.

    By plain writes: through a memory map, a full disk would kill the process without a word.
    """
    with path.open("wb") as file:
        shape = (len(digests), known.dimensions)
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, len(digests), 1 << 16):
            file.write(known.take(digests[start : start + (1 << 16)]).astype("<f4").tobytes())
    return known.dimensions


def _write_rows(path: Path, doc_ids: Sequence[str], digests: Sequence[bytes]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "row": pa.array(range(len(doc_ids)), pa.int64()),
            "doc_id": pa.array(doc_ids, pa.string()),
            "content": pa.array(digests, pa.binary(16)),
        }
    )
    pq.write_table(table, path, compression="zstd")
