"""Shards: a collection divided by a hash of its ids, each part with indexes of its own and the statistics of the whole.

    corpus ─► lexical index of the whole ─┐
       └────► documents of shard 0 … N-1 ─┴─► lexical index of the shard, with idf and average length of the whole
                                          └─► vectors, document store and semantic index, as of any documents

So BM25 gives each document the score that it has in one index over all documents, bit for bit, and a merged list of
all shards is the list of one index. A document's row among all documents is kept, as equal scores are ordered by it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index import document_reader
from index.hits import read_ids, write_ids
from index.postings import Postings
from index.segments import SegmentMap, read_array
from index.term_weights import COLLECTION, HOLDERS, WeighedSegment, read_collection
from pipeline import artifacts
from pipeline.artifacts import Artifact, Staging
from pipeline.errors import ArtifactError, SchemaError
from pipeline.stage import Stage

DOCUMENTS = Stage("corpus", version=1, inputs={"data": ("data", "corpus")}, title="documents of a shard")
LEXICAL = Stage("lexical", version=1, inputs={"data": "corpus", "full": "lexical"}, title="lexical index of a shard")
WHOLE = Stage(
    "collection", version=2, inputs={"data": ("data", "corpus"), "whole_parts": "lexical"}, title="collection of shards"
)

ROWS = document_reader.COLLECTION_ROWS
"""The file with the row of each document among those of the whole collection."""


def shard_of(doc_id: str, count: int) -> int:
    """The shard, from 0, that holds the document with this id."""
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest(), "big") % count


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeCollection:
    """The collection that a shard is a part of, as `collection.json` of the shard's lexical index has it."""

    shard: int
    """From 0."""
    shards: int
    data: str
    """Fingerprint of all documents; equal for the shards of one build."""
    documents: int
    """Documents of all shards."""
    terms: int
    """Terms of all documents, with repetitions."""

    @classmethod
    def of_shard(cls, shard: Artifact, full: Artifact, *, documents: int, terms: int) -> "WholeCollection":
        """The collection that a shard was cut from.

        Args:
            shard: the documents of the shard.
            full: the lexical index of the collection.
        """
        return cls(
            shard=int(shard.manifest.config["shard"]),
            shards=int(shard.manifest.config["shards"]),
            data=full.manifest.inputs["data"],
            documents=documents,
            terms=terms,
        )

    @classmethod
    def of(cls, lexical: Artifact) -> "WholeCollection | None":
        """The collection that a lexical index is a shard of; None where it is whole.

        Raises:
            ArtifactError: the file cannot be read.
        """
        if COLLECTION not in lexical.manifest.files:
            return None
        try:
            return cls(**read_collection(lexical))
        except TypeError as error:
            path = lexical.file(COLLECTION)
            raise ArtifactError(f"{path}: not readable ({error}); {artifacts.remedy(path)}") from error


@DOCUMENTS
def documents(workspace: Path, number: int, count: int, *, data: Artifact) -> Artifact:
    """The `corpus` artifact of one shard: its documents in the order of the whole, and their rows there.

    Raises:
        SchemaError: the shard has no document.
    """

    def build(staging: Staging) -> Mapping[str, Any]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows: list[int] = []
        start = 0
        target = staging.folder / "documents.parquet"
        with (
            pq.ParquetFile(data.file("documents.parquet")) as file,
            pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as out,
        ):
            for batch in file.iter_batches():
                ids = batch.column("doc_id").to_pylist()
                held = [index for index, doc_id in enumerate(ids) if shard_of(doc_id, count) == number]
                rows += [start + index for index in held]
                start += len(ids)
                if held:
                    out.write_batch(batch.take(pa.array(held)))
        if not rows:
            raise SchemaError(f"{data.path}: shard {number} of {count} would have no document; make fewer shards")
        np.save(staging.folder / ROWS, np.array(rows, np.int64))
        return {"documents": len(rows)}

    config = {"shard": number, "shards": count}
    return DOCUMENTS.make(workspace, config=config, inputs={"data": data}, build=build)


@WHOLE
def collection(
    workspace: Path,
    count: int,
    passages: Mapping[str, Any] | None,
    *,
    encoder: str,
    index: Mapping[str, Any],
    data: Artifact,
    whole_parts: Mapping[str, Artifact],
) -> Artifact:
    """The `collection` artifact: documents, divided and indexed in one way.

    It is a part of the release of models that asks shards, and of each shard's. Answers of releases with the same
    collection can be merged: any other documents, number of shards or settings give another one. It keeps the table of
    the documents from gc.

    Args:
        count: number of shards.
        passages: the rule by which the shards cut long documents (`Passages.to_dict`); None where they do not.
        encoder: digest of the encoder whose vectors the shards hold.
        index: section `index` of the recipe.
        data: all documents.
        whole_parts: the lexical indexes of all documents, by part of a release, from which those of shards are cut.
    """
    held = {"data": data.fingerprint, "shards": count, **({"passages": dict(passages)} if passages else {})}

    def build(staging: Staging) -> Mapping[str, Any]:
        (staging.folder / COLLECTION).write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
        return {"collection": held}

    config = held | {"encoder": encoder, "index": index}
    return WHOLE.make(workspace, config=config, inputs={"data": data, **whole_parts}, build=build)


@LEXICAL
def lexical(workspace: Path, *, data: Artifact, full: Artifact) -> Artifact:
    """The `lexical` artifact of a shard: its postings, cut out of those of the whole, with the whole's statistics.

    Args:
        data: the documents of the shard.
        full: the lexical index of all documents.

    Raises:
        ArtifactError: the index holds bm25s's matrix of scores in place of postings, or other documents than those
            that the shard was cut from.
    """
    if WeighedSegment.FILES[0] in full.manifest.files or full.manifest.inputs["data"] != data.manifest.inputs["data"]:
        raise ArtifactError(f"{full.path}: no index of the documents that {data.path} is a shard of; index them again")

    def build(staging: Staging) -> Mapping[str, Any]:
        doc_ids = read_ids(full.file("ids.parquet"))
        rows = read_array(data.file(ROWS))
        numbers = np.full(len(doc_ids), -1, np.int64)
        numbers[rows] = np.arange(len(rows))
        layout = SegmentMap.read(full, len(doc_ids))
        parts: list[tuple[Postings, npt.NDArray[np.int64]]] = []
        holders: dict[str, int] = {}
        occurrences = 0
        for order, segment in enumerate(layout.segments):
            postings = Postings.read(full.path / segment.folder)
            of_whole = layout.rows_of(order).astype(np.int64)
            alive = of_whole >= 0
            parts.append((postings, np.where(alive, numbers[of_whole], -1)))
            for term, held in zip(postings.terms, postings.living(alive).tolist(), strict=True):
                holders[term] = holders.get(term, 0) + held
            occurrences += int(postings.lengths[alive].sum(dtype=np.int64))
        own = Postings.merged(parts, len(rows))
        own.write(staging.folder)
        np.save(staging.folder / HOLDERS, np.array([holders[term] for term in own.terms], np.int32))
        np.save(staging.folder / ROWS, rows)
        write_ids(staging.folder / "ids.parquet", [doc_ids[row] for row in rows.tolist()])
        collection = WholeCollection.of_shard(data, full, documents=len(doc_ids), terms=occurrences)
        (staging.folder / COLLECTION).write_text(json.dumps(asdict(collection), indent=1) + "\n", encoding="utf-8")
        size = sum(path.stat().st_size for path in staging.folder.iterdir())
        return {"documents": len(rows), "terms": len(own.terms), "bytes_per_document": round(size / len(rows), 1)}

    return LEXICAL.make(workspace, config=dict(full.manifest.config), inputs={"data": data, "full": full}, build=build)
