"""The parts of a release that a search reads, and what a release answers that lacks some.

A trained release has all parts. One of ready-made models may have no ranker, or models alone: then `/search`, or the
path of the missing model, answers with NotServedError, and `/v1/models` says so beforehand.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from index import shards
from index.document_store import DocumentStore
from index.fields import FieldIndexes
from index.lexical import LexicalIndex
from index.segments import read_array
from index.semantic import SemanticIndex
from index.shards import WholeCollection
from pipeline import release_parts
from pipeline.artifacts import Artifact
from pipeline.command_line import typed, workspace_of

Lacking = Literal["ranker", "encoder", "documents", "words", "fields", "fusion"]
"""A part that a release may lack and a request may need, or the fields of texts that are sent."""

LACKS: Mapping[Lacking, tuple[str, tuple[str, ...]]] = {
    "ranker": (
        "this release has no ranker; {} serves one, and {} or {} makes a release with one",
        ("serve --ranker FOLDER", "quickstart DOCUMENTS --ranker FOLDER", "retrain RECIPE"),
    ),
    "encoder": ("this release has no encoder; {} serves one", ("serve --encoder FOLDER",)),
    "documents": (
        "this release has models and no documents to search; {} or {} makes one that has",
        ("quickstart DOCUMENTS", "retrain RECIPE"),
    ),
    "words": (
        "the fused order needs the BM25 score of each text, and the words of this release's documents are in its "
        'shards; send first_stage_scores, or "fused": false for the order of the ranker',
        (),
    ),
    "fields": (
        "the final order of this release weighs fields of its own documents, which texts that are sent do not "
        'have apart; send "fused": false for the order of the ranker, or POST /search',
        (),
    ),
    "fusion": (
        'this release has no fusion of BM25, encoder and ranker; send "fused": false for the order of the ranker; {} '
        "and {} make a release with one",
        ("quickstart DOCUMENTS --ranker FOLDER", "retrain RECIPE"),
    ),
}
"""Part → what is said to a client whose request needs it, where the release lacks it, and the commands in that."""

NEEDS: Mapping[Lacking, tuple[str, ...]] = {
    "ranker": ("/rerank", "/v1/rerank", "/v2/rerank"),
    "encoder": ("/embed", "/v1/embed", "/v2/embed", "/v1/embeddings"),
    "documents": ("/search", "/document", "/thumbs"),
}
"""Part → the paths that cannot be answered without it."""


def lacks(lacking: Lacking, workspace: Path) -> str:
    """The message to a client whose request needs what a release of this workspace lacks, with commands to copy."""
    words, commands = LACKS[lacking]
    return words.format(*(f"`{typed(command, workspace)}`" for command in commands))


def unanswered(parts: Collection[str], workspace: Path) -> dict[str, str]:
    """Path → the reason why a release with these parts cannot answer it; empty for a whole release."""
    return {path: lacks(part, workspace) for part, paths in NEEDS.items() if part not in parts for path in paths}


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchableContents:
    """The indexes and documents of one release."""

    lexical: LexicalIndex
    semantic: SemanticIndex
    documents: DocumentStore
    fields: FieldIndexes
    """Indexes of single fields; empty where the recipe names none."""
    workspace: Path
    """The workspace that holds the release, for commands in messages."""
    collection: WholeCollection | None = None
    """The documents that these are a shard of; None where they are all."""
    collection_rows: NDArray[np.int64] | None = None
    """(documents,) row of each document in that collection."""

    @classmethod
    def load(cls, release: Artifact) -> "SearchableContents | None":
        """The indexes of a release, whose files were checked before; None where it has no documents."""
        if not release_parts.has_part(release, "documents"):
            return None
        lexical = release_parts.part(release, "lexical")
        collection = WholeCollection.of(lexical)
        return cls(
            workspace=workspace_of(release.path),
            collection=collection,
            collection_rows=read_array(lexical.file(shards.ROWS)) if collection else None,
            lexical=LexicalIndex.load(lexical.path, verify=False),
            semantic=SemanticIndex.load(release_parts.part(release, "index").path, verify=False),
            documents=DocumentStore.load(release_parts.part(release, "documents").path, verify=False),
            fields=FieldIndexes.load(release_parts.field_parts(release)),
        )
