"""Documents alone, for a re-index: read and checked like those of a recipe, without queries or judgments."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipeline import schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import SourceConfig
from pipeline.data import followed, judgments, sources, validation
from pipeline.data.sources import ReadSource
from pipeline.data.validation import ValidatedTables
from pipeline.errors import SchemaError
from pipeline.stage import Stage
from pipeline.text import key_values

STAGE = Stage("corpus", version=1, section="data", inputs={"previous": "corpus"})

log = logging.getLogger(__name__)


@STAGE
def make(
    workspace: Path,
    chosen: Sequence[SourceConfig],
    root: Path,
    faulty_rows: Literal["error", "drop"],
    *,
    previous: Artifact | None = None,
) -> Artifact:
    """The artifact `corpus`: documents.parquet, rows in the order of the sources.

    With several collections, ids are prefixed by the collection's name and a colon, as in `judgments.make`. Sources
    that were given one name are one collection, of which some may hold no documents.

    Args:
        faulty_rows: what to do with documents that cannot be used; drop counts them by reason in the metrics.
        previous: the documents of the release that is brought up to date; of a source with a watermark, only what
            changed since is read then. Other sources are read whole.

    Raises:
        ConfigError: a source with a watermark beside others.
        MissingError: a source that is not there.
        SchemaError: no documents, rows that cannot be used, two sources of one name; names them.
    """
    if any(source.watermark for source in chosen):
        return followed.make(workspace, followed.alone(chosen, root), root, faulty_rows, previous=previous)
    named = [sources.find(source, root) for source in chosen]
    names = [item.name for item in named]
    unnamed = [item.name for item, config in zip(named, chosen, strict=True) if not config.name]
    if any(names.count(name) > 1 for name in unnamed):
        raise SchemaError(f"sources {', '.join(names)}: two have one name, so their ids would mix; rename a folder")

    def build(staging: Staging) -> Mapping[str, Any]:
        tables: list[pa.Table] = []
        dropped: dict[str, Counter[str]] = {name: Counter() for name in names}
        for item in named:
            usable = _usable(item, faulty_rows)
            tables.append(
                usable.documents if len(set(names)) == 1 else judgments.prefixed(usable.documents, item.name, "doc_id")
            )
            dropped[item.name].update(usable.counts().get("documents", {}))
        documents = judgments.join(tables)
        if not documents.num_rows:
            raise SchemaError(f"{', '.join(names)}: there are no documents to index")
        schema.write(documents, staging.folder / "documents.parquet", "documents")
        metrics = {"documents": documents.num_rows, "dropped": {name: dict(counts) for name, counts in dropped.items()}}
        log.info("corpus: %s", key_values(metrics))
        return metrics

    settings = {f"{number}:{item.name}": dict(item.settings) for number, item in enumerate(named) if item.settings}
    return STAGE.make(
        workspace,
        config={"faulty_rows": faulty_rows, "sources": names} | ({"settings": settings} if settings else {}),
        inputs={f"{number}:{item.name}": item.digest for number, item in enumerate(named)},
        build=build,
    )


def _usable(source: ReadSource, faulty_rows: Literal["error", "drop"]) -> ValidatedTables:
    """A source without the rows that cannot be used; raises SchemaError for documents among them unless dropped."""
    content = source.read()
    sifted = validation.sift(content)
    if faulty_rows == "error":
        of_documents = [finding for finding in sifted.findings if finding.fault.table == "documents"]
        validation.refuse(of_documents, content.shown or source.name, validation.MEND)
    return sifted
