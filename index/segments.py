"""Segments: the immutable pieces that an index over documents is made of, and the plan by which a re-index reuses them.

    positions   segment A: 0 1 2 3 4 5      segment B: 6 7 8        counted through all segments
    rows                   0 1 – 2 4 5                 3 – 6        row in the data; – where it is gone: a tombstone

A document is recognised by the digest of its content. A position whose content is in the data holds one of its rows;
every other position is a tombstone. So the map follows from the data and the segments alone, not from the re-indexes in
between, and a document that comes back has its old position. Rows without a position are written into one new segment.

Tiered merging: the new segment takes in every segment of which more than MAX_DEAD is dead, then the smaller ones in
ascending order as long as one is at most RATIO times as large as what was gathered. So the sizes of segments differ by
more than that factor, their number grows with the logarithm of the documents, and each document is written again that
many times. What ends as one segment of all documents is written as a fresh build writes it.

    <artifact>/                 a fresh build: the files of its one segment, position = row
    <artifact>/segments.json    otherwise: the list of segments, written with
               rows.npy         the row of each position, -1 for a tombstone
               <name>/…         the files of each segment, hard links where an earlier artifact has them
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.digests import Digests, Rows, matched
from pipeline import array_files, artifacts, disk
from pipeline.artifacts import Artifact, LinkedFile, Staging
from pipeline.errors import ArtifactError
from pipeline.manifest import FileRecord
from pipeline.text import counted

LIST, ROWS, DIGESTS = "segments.json", "rows.npy", "digests.npy"
RATIO = 3
"""Largest ratio of a segment's size to that of the newly written documents at which it is merged with them."""
MAX_DEAD = 0.3
"""Share of tombstones above which a segment is written again."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a stored index."""

    folder: str
    """Its folder inside the artifact; empty where the artifact is one segment."""
    documents: int

    def file(self, name: str) -> str:
        """The name of one of its files inside the artifact."""
        return f"{self.folder}/{name}" if self.folder else name


@dataclass(frozen=True, slots=True)
class SegmentMap:
    """The segments of a stored index, and the row of each of their documents."""

    segments: tuple[Segment, ...]
    rows: npt.NDArray[np.int32] | None
    """(positions,) row of each position, -1 for a tombstone; None where position and row are the same."""
    positions: npt.NDArray[np.int32] | None = field(init=False)
    """(rows,) position of each row."""

    def __post_init__(self) -> None:
        positions = None
        if self.rows is not None:
            live = np.flatnonzero(self.rows >= 0).astype(np.int32)
            positions = np.empty(len(live), np.int32)
            positions[self.rows[live]] = live
        object.__setattr__(self, "positions", positions)

    @classmethod
    def read(cls, artifact: Artifact, documents: int) -> "SegmentMap":
        """The segments of an artifact.

        Args:
            artifact: an artifact of any kind that has segments.
            documents: number of documents that it makes searchable, tombstones left out.

        Raises:
            ArtifactError: `segments.json` or `rows.npy` cannot be read, or does not fit the number of documents.
        """
        if LIST not in artifact.manifest.files:
            return cls((Segment("", documents),), None)
        listed = _listed(artifact)
        rows = read_array(artifact.file(ROWS))
        live = np.sort(rows[rows >= 0])
        if len(rows) != sum(item.documents for item in listed) or not np.array_equal(live, np.arange(documents)):
            raise ArtifactError(
                f"{artifact.path}: {ROWS} maps {len(rows)} positions to {counted(len(live), 'document')}; {LIST} has "
                f"{sum(item.documents for item in listed)} positions, and {counted(documents, 'document', 'are')} "
                f"indexed; {artifacts.remedy(artifact.path)}"
            )
        return cls(listed, rows)

    @property
    def starts(self) -> list[int]:
        """The first position of each segment, and the number of all positions."""
        return list(accumulate((item.documents for item in self.segments), initial=0))

    def rows_of(self, number: int) -> npt.NDArray[np.int32]:
        """The row of each document of a segment, -1 for a tombstone."""
        start, end = self.starts[number : number + 2]
        return np.arange(start, end, dtype=np.int32) if self.rows is None else self.rows[start:end]

    def located(self, rows: Rows) -> list[tuple[Rows, Rows]]:
        """Each segment's share of the rows: indices into `rows`, and the numbers of these documents inside it."""
        positions = np.asarray(rows if self.positions is None else self.positions[rows], np.int64)
        starts = self.starts
        located = []
        for start, end in pairwise(starts):
            held = np.flatnonzero((positions >= start) & (positions < end))
            located.append((held, positions[held] - start))
        return located


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """One segment of an earlier artifact, with the digests of its documents."""

    path: Path
    """The folder with its files."""
    files: Mapping[str, FileRecord]
    """Name of each of its files inside the folder → the record in the artifact's manifest."""
    digests: Digests


@dataclass(frozen=True, slots=True)
class SegmentUse:
    """A stored segment and what becomes of its documents."""

    path: Path
    """The folder with its files."""
    files: Mapping[str, FileRecord]
    digests: Digests
    rows: Rows
    """(documents,) row of each document in the new data, -1 for a tombstone."""

    @property
    def live(self) -> int:
        """The number of its documents that are in the new data."""
        return int((self.rows >= 0).sum())


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """Segments that a re-index keeps and writes again, and rows that it writes for the first time."""

    kept: tuple[SegmentUse, ...]
    merged: tuple[SegmentUse, ...]
    """Segments whose living documents go into the new segment."""
    fresh: Rows
    """Ascending rows that no segment holds."""
    written: Rows
    """Ascending rows of the new segment: those of `merged` and `fresh`. Its documents stand in this order."""
    digests: Digests
    """Digests of the data, by row."""

    @property
    def is_fresh(self) -> bool:
        """Whether the new segment holds all documents, so that the artifact is that of a fresh build."""
        return not self.kept

    @property
    def folder(self) -> str:
        """The folder of the new segment inside the artifact: empty for a fresh build."""
        return "" if self.is_fresh else name_of(self.digests[self.written])

    @property
    def layout(self) -> SegmentMap:
        """The segments that the plan leads to: the kept ones, then the new one."""
        if self.is_fresh:
            return SegmentMap((Segment("", len(self.digests)),), None)
        segments = [Segment(name_of(use.digests), len(use.rows)) for use in self.kept]
        rows = [use.rows for use in self.kept]
        if len(self.written):
            segments.append(Segment(self.folder, len(self.written)))
            rows.append(self.written)
        return SegmentMap(tuple(segments), np.concatenate(rows).astype(np.int32))

    def numbers(self, rows: Rows) -> Rows:
        """The index of each row inside the new segment; -1 for a row of -1."""
        return np.where(rows >= 0, np.searchsorted(self.written, rows), -1)

    def write(self, staging: Staging) -> None:
        """Links the kept segments into an artifact and writes list, map and the new segment's digests.

        Raises:
            OSError: the disk is full.
        """
        if len(self.written):
            folder = staging.folder / self.folder
            folder.mkdir(exist_ok=True)
            np.save(folder / DIGESTS, self.digests[self.written])
        if self.is_fresh:
            return
        layout = self.layout
        for use, segment in zip(self.kept, layout.segments, strict=False):  # The new segment is the last.
            (staging.folder / segment.folder).mkdir()
            for name, record in use.files.items():
                disk.link_or_copy(use.path / name, staging.folder / segment.folder / name)
                staging.linked[segment.file(name)] = LinkedFile(use.path / name, record)
            if DIGESTS not in use.files:
                np.save(staging.folder / segment.folder / DIGESTS, use.digests)
        assert layout.rows is not None
        np.save(staging.folder / ROWS, layout.rows)
        fields = [{"folder": item.folder, "documents": item.documents} for item in layout.segments]
        (staging.folder / LIST).write_text(json.dumps({"segments": fields}, indent=1) + "\n", encoding="utf-8")

    def figures(self) -> dict[str, Any]:
        """The part of an artifact's metrics that tells of segments; empty for a fresh build."""
        if self.is_fresh:
            return {}
        kept = sum(use.live for use in self.kept)
        dead = sum(len(use.rows) - use.live for use in self.kept)
        count = len(self.kept) + bool(len(self.written))
        return {"segments": count, "tombstones": dead, "rewritten": len(self.digests) - kept}


def plan(previous: Artifact | None, names: Collection[str], digests: Digests) -> SegmentPlan:
    """The plan that makes these documents searchable and reuses the segments of an earlier artifact.

    Args:
        previous: an artifact of the same kind; one without digests, written before there were segments, gives none.
        names: the files that each segment of this kind has.
        digests: digests of the documents' contents, by row.
    """
    return plan_over(stored_segments(previous, names) if previous is not None else [], digests)


def plan_over(stored: Sequence[StoredSegment], digests: Digests) -> SegmentPlan:
    """The plan for documents with these digests, by row, over these segments."""
    rows = matched(np.concatenate([digests[:0], *(item.digests for item in stored)]), digests)
    uses, start = [], 0
    for item in stored:
        uses.append(SegmentUse(item.path, item.files, item.digests, rows[start : start + len(item.digests)]))
        start += len(item.digests)
    fresh = np.ones(len(digests), bool)
    fresh[rows[rows >= 0]] = False
    merging = merges([(use.live, len(use.rows)) for use in uses], int(fresh.sum()))
    merged = tuple(use for number, use in enumerate(uses) if number in merging)
    written = np.concatenate([np.flatnonzero(fresh), *(use.rows[use.rows >= 0] for use in merged)])
    return SegmentPlan(
        kept=tuple(use for number, use in enumerate(uses) if number not in merging and use.live),
        merged=merged,
        fresh=np.flatnonzero(fresh),
        written=np.sort(written),
        digests=digests,
    )


def merges(segments: Sequence[tuple[int, int]], fresh: int) -> set[int]:
    """The indices of the segments that are merged with the fresh documents; the head of this file has the rule.

    Args:
        segments: (documents without tombstones, all documents) of each.
        fresh: number of documents that no segment holds.
    """
    merging = {number for number, (live, total) in enumerate(segments) if live and total - live > MAX_DEAD * total}
    gathered = fresh + sum(segments[number][0] for number in merging)
    for live, number in sorted((live, number) for number, (live, _) in enumerate(segments)):
        if live and number not in merging:
            if live > RATIO * gathered:
                break
            merging.add(number)
            gathered += live
    return merging


def name_of(digests: Digests) -> str:
    """The folder of a segment: the same for the same documents, whichever run writes it."""
    return hashlib.blake2b(digests.tobytes(), digest_size=8).hexdigest()


def size(folder: Path, name: str) -> int:
    """Bytes of the files of this name below a folder: one for each segment."""
    return sum(path.stat().st_size for path in folder.rglob(name))


def read_array(path: Path) -> npt.NDArray[Any]:
    """An array of a segment, mapped into memory.

    Raises:
        ArtifactError: not a readable array.
    """
    # Still mapped; a plain view slices faster than numpy's memmap class.
    return np.asarray(array_files.of_artifact(path, "r"))


def _listed(artifact: Artifact) -> tuple[Segment, ...]:
    try:
        fields = json.loads(artifact.file(LIST).read_bytes())["segments"]
        return tuple(Segment(str(item["folder"]), int(item["documents"])) for item in fields)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{artifact.path / LIST}: not a readable list of segments ({error}); {artifacts.remedy(artifact.path)}"
        ) from error


def stored_segments(artifact: Artifact, names: Collection[str]) -> list[StoredSegment]:
    """The segments of an artifact; empty for one without digests.

    Args:
        names: the files that each segment of this kind has.

    Raises:
        ArtifactError: the list or the digests cannot be read.
    """
    files = artifact.manifest.files
    folders = [""] if DIGESTS in files else []
    if LIST in files:
        folders = [segment.folder for segment in _listed(artifact)]
    stored = []
    for folder in folders:
        paths = {name: f"{folder}/{name}" if folder else name for name in (*names, DIGESTS)}
        records = {name: files[path] for name, path in paths.items() if path in files}
        stored.append(StoredSegment(artifact.path / folder, records, read_array(artifact.file(paths[DIGESTS]))))
    return stored
