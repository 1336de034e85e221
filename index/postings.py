"""Postings: for each term the documents that have it and how often; what a segment of the lexical index holds.

    terms.json      the terms, ascending
    starts.npy      (terms + 1,) where each term's list begins
    documents.npy   (postings,) numbers of documents in the segment, ascending in each list
    counts.npy      (postings,) times that the document has the term
    lengths.npy     (documents,) number of terms of each document

They hold counts and no scores, as BM25 weighs a term by the documents that are living, not deleted, at a search.
"""

import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.digests import Rows
from index.segments import read_array
from pipeline import artifacts
from pipeline.errors import ArtifactError
from pipeline.text import counted

FILES = ("terms.json", "starts.npy", "documents.npy", "counts.npy", "lengths.npy")
_ARRAYS = ("starts", "documents", "counts", "lengths")
BLOCK = 1 << 22
"""Occurrences of terms that are collected before they are counted."""

Counts = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class Postings:
    """The postings of some documents, numbered from 0."""

    terms: list[str]
    starts: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int32]
    counts: Counts
    lengths: npt.NDArray[np.int32]

    @classmethod
    def of(cls, term_lists: Iterable[Sequence[str]]) -> "Postings":
        """The postings of documents, given as their terms with repetitions."""
        columns: dict[str, int] = {}
        lengths, pending, first = array("i"), array("i"), 0
        blocks: list[tuple[Rows, Rows]] = []

        def count() -> None:
            documents = np.repeat(np.arange(first, len(lengths)), lengths[first:])
            keys = np.array(pending, np.int64) << 32 | documents
            blocks.append(np.unique(keys, return_counts=True))

        for terms in term_lists:
            lengths.append(len(terms))
            pending.extend([columns.setdefault(term, len(columns)) for term in terms])
            if len(pending) >= BLOCK:
                count()
                pending, first = array("i"), len(lengths)
        count()
        keys, counts = (np.concatenate(part) for part in zip(*blocks, strict=True))
        known = sorted(columns)
        sorted_columns = np.empty(len(known), np.int64)
        sorted_columns[[columns[term] for term in known]] = np.arange(len(known))
        keys = sorted_columns[keys >> 32] << 32 | keys & 0xFFFFFFFF
        return cls._of_keys(known, keys, counts, np.array(lengths, np.int32))

    @classmethod
    def merged(cls, parts: Sequence[tuple["Postings", Rows]], documents: int) -> "Postings":
        """The postings of several sets of documents as one.

        Args:
            parts: postings, and an array with the new number of each of their documents, -1 for one that is left out.
            documents: the number of documents of the result.
        """
        living = [postings.living(numbers >= 0) for postings, numbers in parts]
        terms = sorted(
            {
                postings.terms[column]
                for (postings, _), counts in zip(parts, living, strict=True)
                for column in np.flatnonzero(counts).tolist()
            }
        )
        columns = {term: column for column, term in enumerate(terms)}
        keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        lengths = np.zeros(documents, np.int32)
        for postings, numbers in parts:
            column = np.array([columns.get(term, -1) for term in postings.terms], np.int64)
            document = numbers[postings.documents]
            keys.append((np.repeat(column, np.diff(postings.starts)) << 32 | document)[document >= 0])
            counts.append(postings.counts[document >= 0].astype(np.int64))
            lengths[numbers[numbers >= 0]] = postings.lengths[numbers >= 0]
        return cls._of_keys(terms, np.concatenate(keys), np.concatenate(counts), lengths)

    @classmethod
    def _of_keys(cls, terms: list[str], keys: Rows, counts: Rows, lengths: npt.NDArray[np.int32]) -> "Postings":
        """Postings from 64-bit keys: the term in the upper 32 bits, the document in the lower ones."""
        order = np.argsort(keys, kind="stable")  # Stable, as it is fast where runs are sorted already.
        keys, counts = keys[order], counts[order]
        starts = np.searchsorted(keys >> 32, np.arange(len(terms) + 1))
        kind = np.uint16 if counts.max(initial=0) <= np.iinfo(np.uint16).max else np.uint32
        return cls(terms, starts.astype(np.int64), (keys & 0xFFFFFFFF).astype(np.int32), counts.astype(kind), lengths)

    def living(self, alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
        """Counts the living documents of each term, (terms,).

        Args:
            alive: (documents,) False for a deleted document.
        """
        before = np.concatenate([np.zeros(1, np.int32), np.cumsum(alive[self.documents], dtype=np.int32)])
        return np.diff(before[self.starts])

    def write(self, folder: Path) -> None:
        """Writes the files into a folder.

        Raises:
            OSError: the disk is full.
        """
        (folder / "terms.json").write_text(json.dumps(self.terms, ensure_ascii=False), encoding="utf-8")
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def read(cls, folder: Path) -> "Postings":
        """The postings in a folder, mapped into memory.

        Raises:
            ArtifactError: a file that cannot be read, by name, or files that do not belong together.
        """
        path = folder / "terms.json"
        try:
            terms = json.loads(path.read_bytes())
        except ValueError as error:
            raise ArtifactError(f"{path}: not a readable list of terms ({error}); {artifacts.remedy(path)}") from error
        arrays: dict[str, Any] = {name: read_array(folder / f"{name}.npy") for name in _ARRAYS}
        postings = cls(terms, **arrays)
        if not (
            isinstance(terms, list)
            and len(postings.starts) == len(terms) + 1
            and postings.starts[-1] == len(postings.documents) == len(postings.counts)
        ):
            raise ArtifactError(
                f"{folder}: {len(terms)} terms, {len(postings.starts) - 1} lists that end at {postings.starts[-1]}, "
                f"{counted(len(postings.documents), 'document')} and {len(postings.counts)} counts do not belong "
                f"together; {artifacts.remedy(folder)}"
            )
        return postings

    def check(self, folder: Path) -> None:
        """Checks that the lists do not overlap and that every document that they name exists.

        Raises:
            ArtifactError: they do not; names the folder.
        """
        sound = self.starts[0] == 0 and bool((np.diff(self.starts) >= 0).all()) and bool((self.lengths >= 0).all())
        inside = not len(self.documents) or (self.documents.min() >= 0 and self.documents.max() < len(self.lengths))
        if not (sound and inside):
            raise ArtifactError(
                f"{folder}: its lists overlap, or name documents beyond {len(self.lengths)}; {artifacts.remedy(folder)}"
            )
