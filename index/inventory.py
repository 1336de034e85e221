"""The segments of a stored index as `relevance index list` shows them: documents, tombstones, bytes, files.

A tombstone is a document that a segment holds and that is no longer among the documents of the index.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from index import ann, document_store, postings, vector_matrix
from index.segments import DIGESTS, SegmentMap
from index.semantic import read_stats
from index.term_weights import WeighedSegment
from pipeline.artifacts import Artifact
from pipeline.manifest import FileRecord

FILES: Mapping[str, tuple[str, ...]] = {
    "lexical": (*postings.FILES, *WeighedSegment.FILES, DIGESTS),
    "documents": (document_store.FILE, DIGESTS),
    "index": (ann.FILE, DIGESTS),
    "vectors": (vector_matrix.FILE, DIGESTS),
}
"""Kind of an artifact → names of the files that each of its segments may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRecord:
    """One segment of an artifact that makes documents searchable."""

    name: str
    """Its folder inside the artifact; empty where the artifact is one segment."""
    documents: int
    """Number of its documents, or of its vectors where the artifact holds vectors; tombstones included."""
    live: int
    """The number of rows without tombstones."""
    files: Mapping[Path, FileRecord]
    """Path → record in the artifact's manifest."""

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(record.bytes for record in self.files.values())

    def inodes(self) -> frozenset[tuple[int, int]]:
        """(device, inode) of each file. Segments of two releases that have these in common share their bytes."""
        stats = [path.stat() for path in self.files]
        return frozenset((item.st_dev, item.st_ino) for item in stats)


def indexed(part: Artifact) -> int:
    """The number of documents in an artifact of a kind in FILES, or of vectors where the kind is `index` or `vectors`.

    Raises:
        ArtifactError: the `index.json` of an index cannot be read.
    """
    if part.manifest.kind == "index":
        return read_stats(part.file("index.json")).rows
    if part.manifest.kind == "vectors":
        return vector_matrix.count(part.metrics)
    return int(part.metrics["documents"])


def segments_of(part: Artifact) -> list[SegmentRecord]:
    """The segments of an artifact of a kind in FILES, in the order of their positions.

    Raises:
        ArtifactError: `segments.json`, `rows.npy` or `index.json` cannot be read.
    """
    layout = SegmentMap.read(part, indexed(part))
    names = FILES[part.manifest.kind]
    records = []
    for number, segment in enumerate(layout.segments):
        paths = [segment.file(name) for name in names if segment.file(name) in part.manifest.files]
        records.append(
            SegmentRecord(
                name=segment.folder,
                documents=segment.documents,
                live=int((layout.rows_of(number) >= 0).sum()),
                files={part.path / path: part.manifest.files[path] for path in paths},
            )
        )
    return records
