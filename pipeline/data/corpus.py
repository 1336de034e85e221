"""Documents alone, for a re-index: read and checked like those of a recipe, without queries or judgments."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline import artifacts, schema
from pipeline.artifacts import Artifact, Staging
from pipeline.config import SourceConfig
from pipeline.data import faults, sources
from pipeline.errors import SchemaError

VERSION = 1

log = logging.getLogger(__name__)


def make(workspace: Path, source: SourceConfig, root: Path, faulty_rows: Literal["error", "drop"]) -> Artifact:
    """The artifact `corpus`: documents.parquet, rows in the order of the source.

    Args:
        faulty_rows: what to do with documents that cannot be used; drop counts them by reason in the metrics.

    Raises:
        MissingError: a source that is not there.
        SchemaError: no documents, or rows that cannot be used; names them.
    """
    found = sources.find(source, root)

    def build(staging: Staging) -> Mapping[str, Any]:
        sifted = faults.sift(found.read())
        if faulty_rows == "error":
            advice = 'mend them, or set data.faulty_rows = "drop" in the recipe to do without them'
            faults.refuse([item for item in sifted.findings if item.fault.table == "documents"], found.name, advice)
        if not sifted.documents.num_rows:
            raise SchemaError(f"{found.name}: there are no documents to index")
        schema.write(sifted.documents, staging.folder / "documents.parquet", "documents")
        dropped = sifted.counts().get("documents", {})
        log.info("corpus: %d documents, dropped %s", sifted.documents.num_rows, dropped or "none")
        return {"documents": sifted.documents.num_rows, "dropped": dropped}

    return artifacts.make(
        workspace,
        "corpus",
        version=VERSION,
        config={"faulty_rows": faulty_rows},
        inputs={found.name: found.digest},
        build=build,
    )
