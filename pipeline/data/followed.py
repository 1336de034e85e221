"""The documents of a table that is followed by its watermark: those of the last release with what changed since."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import SourceConfig
from pipeline.data import changes, sources
from pipeline.data.changes import Changes, HeldDocuments, Watermark
from pipeline.data.formats.text_files import STRING
from pipeline.errors import ConfigError, SchemaError
from pipeline.secrets import hide_passwords
from pipeline.stage import Stage
from pipeline.temporary import temporary_folder
from pipeline.text import key_values

STAGE = Stage("corpus", version=1, section="data", inputs={"previous": "corpus"}, title="followed corpus")
FILE = "documents.parquet"
"""The file of documents of a corpus."""
ROWS_AT_ONCE = 10_000
"""Number of documents in memory at once."""

log = logging.getLogger(__name__)


def alone(chosen: Sequence[SourceConfig], root: Path) -> SourceConfig:
    """The source with a watermark, where no other one has documents.

    Raises:
        ConfigError: another source has documents too, or another name, by which the ids of all would be prefixed.
    """
    followed = [source for source in chosen if source.watermark]
    unfollowed = [source for source in chosen if not source.watermark]
    crowded = len(followed) > 1 or any(sources.read(source, root).documents.num_rows for source in unfollowed)
    if crowded:
        raise ConfigError(
            f"{', '.join(source.path for source in chosen)}: a source with a watermark is indexed alone; join the "
            "tables in a view, or leave the watermark out"
        )
    if len({source.name for source in chosen}) > 1 or (unfollowed and not followed[0].name):
        raise ConfigError(
            f"{', '.join(source.path for source in chosen)}: sources beside one with a watermark belong to its "
            "collection; give all of them one name in the recipe"
        )
    return followed[0]


@STAGE
def make(
    workspace: Path,
    source: SourceConfig,
    root: Path,
    faulty_rows: Literal["error", "drop"],
    *,
    previous: Artifact | None = None,
) -> Artifact:
    """The `corpus` artifact of a table: the previous one's documents without those that are gone, then what changed.

    The previous artifact itself where nothing changed. The metrics keep the watermark, from which the next one starts;
    rows, changed, gone and dropped count what was read. Memory holds ROWS_AT_ONCE documents, 8 bytes for each id that
    is read, and the ids of the rows that changed.

    Args:
        previous: the documents that are brought up to date; all rows are read where it is None, has no watermark, or
            was read from another table or by another query or map of columns.

    Raises:
        RelevanceError: see `changes.read`; nothing is kept of what was read.
        SchemaError: no documents are left.
    """
    settings, table = sources.settings_of(source), hide_passwords(source.path)
    if previous is not None and not _is_same(previous, table, settings):
        log.info("%s: read from elsewhere or by another map than before, so all rows are read", table)
        previous = None
    held = _held(previous)
    with temporary_folder(_folder(workspace) / "rows") as folder:
        change = changes.read(source, root, held, faulty_rows, folder)
        same = set[str]() if change.complete or previous is None else _unchanged(previous, change)
        gone = change.gone
        written = change.documents.rows - len(same)
        if previous is not None and not change.complete and not written and not _any_held(previous, gone):
            log.info("%s: nothing changed since the last re-index", source.path)
            return previous
        columns = held.schema if held and not change.complete else change.documents.schema()

        def build(staging: Staging) -> Mapping[str, Any]:
            parts = _parts(None if change.complete else previous, change, same, columns)
            total = _write(staging.folder / FILE, parts, columns)
            if not total:
                raise SchemaError(f"{source.path}: there are no documents to index")
            counts = {"documents": total, "read": change.documents.rows, "changed": written, "gone": len(gone)}
            log.info("corpus: %s", key_values({**counts, "dropped": change.dropped}))
            return {**counts, "dropped": change.dropped, "watermark": change.watermark.to_json(), "table": table}

        # A mark beside equal contents: else a table whose marks went back would find its old, higher one every time.
        basis = repr(change.watermark) if change.complete or previous is None else previous.fingerprint
        return STAGE.make(
            workspace,
            config={"faulty_rows": faulty_rows} | ({"settings": settings} if settings else {}),
            # A digest of both, so that no release needs the documents of all that were before it.
            inputs={"content": _digest(basis, change, same, columns)},
            build=build,
        )


def _folder(workspace: Path) -> Path:
    folder = workspace / "artifacts" / STAGE.kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_same(previous: Artifact, table: str, settings: Mapping[str, Any]) -> bool:
    """Whether an artifact was read from this table by these settings; one made before says nothing of its table."""
    known = previous.metrics.get("table", table), previous.manifest.config.get("settings", {})
    return known == (table, settings)


def _held(previous: Artifact | None) -> HeldDocuments | None:
    """The documents of an artifact that knows its watermark; None for any other."""
    if previous is None or not previous.metrics.get("watermark"):
        return None
    path = previous.file(FILE)
    return HeldDocuments(
        watermark=Watermark.from_json(previous.metrics["watermark"]),
        schema=pq.read_schema(path).remove_metadata(),
        ids=(batch["doc_id"].to_pylist() for batch in _batches(previous, ["doc_id"])),
    )


def _batches(artifact: Artifact, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(artifact.file(FILE)) as file:
        yield from file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns)


def _unchanged(previous: Artifact, change: Changes) -> set[str]:
    """Ids of rows that were read and are as they were: a watermark moves without the content, and its last rows are
    read again."""
    columns = pq.read_schema(previous.file(FILE)).remove_metadata()
    contents = {row["doc_id"]: _content(row) for rows in change.documents.tables(columns) for row in rows.to_pylist()}
    wanted = pa.array(list(contents), STRING)
    same: set[str] = set()
    for batch in _batches(previous) if contents else ():
        for row in batch.filter(pc.is_in(batch["doc_id"], wanted)).to_pylist():
            if contents[row["doc_id"]] == _content(row):
                same.add(row["doc_id"])
    return same


def _content(row: Mapping[str, Any]) -> bytes:
    return hashlib.blake2b(repr(sorted(row.items())).encode(), digest_size=16).digest()


def _any_held(previous: Artifact, ids: frozenset[str]) -> bool:
    if not ids:
        return False
    wanted = pa.array(sorted(ids), STRING)
    return any(pc.any(pc.is_in(batch["doc_id"], wanted)).as_py() for batch in _batches(previous, ["doc_id"]))


def _parts(previous: Artifact | None, change: Changes, same: set[str], columns: pa.Schema) -> Iterator[pa.Table]:
    """The documents that stay, in their order, then those that are new or changed."""
    if previous is not None:
        changed = {name for rows in change.documents.tables() for name in rows["doc_id"].to_pylist()} - same
        replaced = pa.array(sorted(changed | change.gone), STRING)
        for batch in _batches(previous):
            yield pa.table(batch.filter(pc.invert(pc.is_in(batch["doc_id"], replaced))))
    yield from _new(change, same, columns)


def _new(change: Changes, same: set[str], columns: pa.Schema) -> Iterator[pa.Table]:
    left_out = pa.array(sorted(same | change.gone), STRING)
    for rows in change.documents.tables(columns):
        yield rows.filter(pc.invert(pc.is_in(rows["doc_id"], left_out))) if len(left_out) else rows


def _write(path: Path, parts: Iterator[pa.Table], columns: pa.Schema) -> int:
    """Writes the documents and returns their number."""
    total = 0
    with pq.ParquetWriter(path, columns, compression="zstd") as writer:
        for part in parts:
            if faults := schema.column_faults(part, "documents"):
                raise SchemaError(f"{path}: " + "; ".join(str(fault) for fault in faults))
            writer.write_table(part.select(columns.names).cast(columns))
            total += part.num_rows
    return total


def _digest(basis: str, change: Changes, same: set[str], columns: pa.Schema) -> str:
    """A digest of the documents that result: of the basis, the ids that are gone, and the new and changed documents.

    Args:
        basis: names what the changes start from: the previous artifact, or the watermark where all rows were read.
    """
    gone = [] if change.complete else sorted(change.gone)
    digest = hashlib.blake2b(repr([basis, gone, str(columns)]).encode(), digest_size=16)
    for rows in _new(change, same, columns):
        for batch in rows.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()
